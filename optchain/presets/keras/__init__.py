"""Keras's optimizers: its arguments, in its order, with its defaults and its numbers.

Checked step by step against Keras 3 on its JAX backend. What differs on purpose: clips <= 0 and betas out of range are
refused, where Keras ignores them; integers are accepted as learning rates; `gradient_accumulation_steps=1` is accepted;
and where a division by 0 makes Keras's numbers NaN, in corners of RMSprop, Ftrl, Adafactor and ScheduleFreeAdamW that their
docstrings name, ours stay finite.
"""

from optchain.presets.keras.adafactor import adafactor as adafactor
from optchain.presets.keras.adam import adam as adam
from optchain.presets.keras.adam import adamax as adamax
from optchain.presets.keras.adam import adamw as adamw
from optchain.presets.keras.adam import nadam as nadam
from optchain.presets.keras.ftrl import ftrl as ftrl
from optchain.presets.keras.lamb import lamb as lamb
from optchain.presets.keras.lion import lion as lion
from optchain.presets.keras.loss_scale import loss_scale_optimizer as loss_scale_optimizer
from optchain.presets.keras.muon import muon as muon
from optchain.presets.keras.rms import adadelta as adadelta
from optchain.presets.keras.rms import adagrad as adagrad
from optchain.presets.keras.rms import rmsprop as rmsprop
from optchain.presets.keras.schedule_free import schedule_free_adamw as schedule_free_adamw
from optchain.presets.keras.sgd import sgd as sgd
