"""Runs that move between Keras and optchain: the recipe, the optimizer's state, the parameters.

A recipe and a live optimizer need Keras; a `.keras` archive or a `.weights.h5` file is read with h5py alone.
"""

from optchain.interop.keras.export import save_state as save_state
from optchain.interop.keras.parameters import load_params as load_params
from optchain.interop.keras.parameters import save_params as save_params
from optchain.interop.keras.recipes import from_keras as from_keras
from optchain.interop.keras.recipes import to_keras as to_keras
from optchain.interop.keras.state import load_state as load_state
from optchain.interop.keras.state import load_with_report as load_with_report
