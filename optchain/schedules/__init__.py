"""Schedules: functions of the step that know their arguments.

Every schedule is a frozen callable of an integer step, a Python number or an array of any shape, and computes in JAX's
default float (float64 with x64). Names, arguments and values are Keras's where Keras has the schedule. They work in Optax
too, and Optax's schedules work here.
"""

from optchain.schedules.base import Schedule as Schedule
from optchain.schedules.composition import Join as Join
from optchain.schedules.composition import LegacyDecay as LegacyDecay
from optchain.schedules.composition import PerEpoch as PerEpoch
from optchain.schedules.composition import Scaled as Scaled
from optchain.schedules.composition import join as join
from optchain.schedules.composition import legacy_decay as legacy_decay
from optchain.schedules.decays import CosineDecay as CosineDecay
from optchain.schedules.decays import CosineDecayRestarts as CosineDecayRestarts
from optchain.schedules.decays import ExponentialDecay as ExponentialDecay
from optchain.schedules.decays import InverseTimeDecay as InverseTimeDecay
from optchain.schedules.decays import LinearWarmupDecay as LinearWarmupDecay
from optchain.schedules.decays import PiecewiseConstantDecay as PiecewiseConstantDecay
from optchain.schedules.decays import PolynomialDecay as PolynomialDecay
