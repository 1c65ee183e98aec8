"""The step of a training loop, where its state lies, and what is decided between epochs."""

from optchain.training.callbacks import EarlyStopping as EarlyStopping
from optchain.training.callbacks import ReduceLROnPlateau as ReduceLROnPlateau
from optchain.training.sharding import init_sharded as init_sharded
from optchain.training.sharding import state_shardings as state_shardings
from optchain.training.step import Step as Step
from optchain.training.step import make_step as make_step
