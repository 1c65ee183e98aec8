"""Recipes that people already know, with the arguments they already know and the same numbers.

`keras` holds Keras's, which are at the top level of the package too; `torch` PyTorch's, `optax` Optax's, `keras_adamw` keras-adamw's.
"""

from optchain.presets import keras as keras
from optchain.presets import keras_adamw as keras_adamw
from optchain.presets import optax as optax
from optchain.presets import torch as torch
