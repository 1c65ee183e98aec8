"""Schedules: functions of the step that know their arguments.

The step is the number of calls made before, or of updates inside `accumulate`: 0 at the first. Every schedule is a frozen
callable of it, a Python number or an array of any shape, and computes in JAX's default float (float64 with x64). Names,
arguments and values are Keras's where Keras has the schedule; those whose names end in `LR`,
`CosineAnnealingWarmRestarts` and `ChainedScheduler` are PyTorch's. They work in Optax too, and Optax's schedules work here.
"""

from optchain.schedules.averages import DebiasedEMA as DebiasedEMA
from optchain.schedules.averages import PowerEMA as PowerEMA
from optchain.schedules.averages import TailAverage as TailAverage
from optchain.schedules.averages import WarmedUpEMA as WarmedUpEMA
from optchain.schedules.base import Scaled as Scaled
from optchain.schedules.base import Schedule as Schedule
from optchain.schedules.base import register as register
from optchain.schedules.composition import Join as Join
from optchain.schedules.composition import LegacyDecay as LegacyDecay
from optchain.schedules.composition import PerEpoch as PerEpoch
from optchain.schedules.composition import join as join
from optchain.schedules.composition import legacy_decay as legacy_decay
from optchain.schedules.cyclic import CyclicLR as CyclicLR
from optchain.schedules.cyclic import CyclicMomentum as CyclicMomentum
from optchain.schedules.decays import CosineDecay as CosineDecay
from optchain.schedules.decays import CosineDecayRestarts as CosineDecayRestarts
from optchain.schedules.decays import ExponentialDecay as ExponentialDecay
from optchain.schedules.decays import InverseTimeDecay as InverseTimeDecay
from optchain.schedules.decays import LinearWarmupDecay as LinearWarmupDecay
from optchain.schedules.decays import PiecewiseConstantDecay as PiecewiseConstantDecay
from optchain.schedules.decays import PolynomialDecay as PolynomialDecay
from optchain.schedules.keras_adamw import CosineMultiplier as CosineMultiplier
from optchain.schedules.one_cycle import OneCycleLR as OneCycleLR
from optchain.schedules.one_cycle import OneCycleMomentum as OneCycleMomentum
from optchain.schedules.torch import ConstantLR as ConstantLR
from optchain.schedules.torch import CosineAnnealingLR as CosineAnnealingLR
from optchain.schedules.torch import CosineAnnealingWarmRestarts as CosineAnnealingWarmRestarts
from optchain.schedules.torch import ExponentialLR as ExponentialLR
from optchain.schedules.torch import LinearLR as LinearLR
from optchain.schedules.torch import MultiStepLR as MultiStepLR
from optchain.schedules.torch import PolynomialLR as PolynomialLR
from optchain.schedules.torch import StepLR as StepLR
from optchain.schedules.torch_composition import ChainedScheduler as ChainedScheduler
from optchain.schedules.torch_composition import SequentialLR as SequentialLR
from optchain.schedules.torch_functions import LambdaLR as LambdaLR
from optchain.schedules.torch_functions import MultiplicativeLR as MultiplicativeLR
from optchain.schedules.warmup import Constant as Constant
from optchain.schedules.warmup import InverseSquareRoot as InverseSquareRoot
from optchain.schedules.warmup import PowerDecay as PowerDecay
from optchain.schedules.warmup import WarmupStableDecay as WarmupStableDecay
