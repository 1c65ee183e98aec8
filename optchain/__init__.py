"""Training recipes for JAX: Optax transformations with the arguments and the numbers of Keras and PyTorch."""

from optchain import schedules as schedules
from optchain.callbacks import EarlyStopping as EarlyStopping
from optchain.callbacks import ReduceLROnPlateau as ReduceLROnPlateau
from optchain.configs import from_config as from_config
from optchain.configs import to_config as to_config
from optchain.core.chain import chain as chain
from optchain.core.hyperparams import get_hyperparams as get_hyperparams
from optchain.core.hyperparams import set_hyperparams as set_hyperparams
from optchain.core.masks import matching as matching
from optchain.core.metrics import metrics as metrics
from optchain.core.registry import register as register
from optchain.core.sweep import sweep as sweep
from optchain.core.transformation import Transformation as Transformation
from optchain.description import describe as describe
from optchain.presets.keras import adam as adam
from optchain.presets.keras import adamw as adamw
from optchain.presets.keras import sgd as sgd
from optchain.training import make_step as make_step
from optchain.transforms.accumulation import accumulate as accumulate
from optchain.transforms.accumulation import flush as flush
from optchain.transforms.adam import scale_by_adam as scale_by_adam
from optchain.transforms.averaging import average_params as average_params
from optchain.transforms.averaging import averaged_params as averaged_params
from optchain.transforms.averaging import finalize as finalize
from optchain.transforms.clipping import clip_by_global_norm as clip_by_global_norm
from optchain.transforms.clipping import clip_by_norm as clip_by_norm
from optchain.transforms.clipping import clip_by_value as clip_by_value
from optchain.transforms.decay import decay_weights as decay_weights
from optchain.transforms.learning_rate import scale_by_learning_rate as scale_by_learning_rate
from optchain.transforms.loss_scale import dynamic_loss_scale as dynamic_loss_scale
from optchain.transforms.loss_scale import scale_loss as scale_loss
from optchain.transforms.loss_scale import unscale_gradients as unscale_gradients
from optchain.transforms.masking import freeze as freeze
from optchain.transforms.masking import masked as masked
from optchain.transforms.momentum import apply_momentum as apply_momentum
from optchain.transforms.monitoring import monitor as monitor
from optchain.transforms.multi_optimizer import multi_optimizer as multi_optimizer
from optchain.transforms.nonfinite import check as check
from optchain.transforms.nonfinite import skip_nonfinite as skip_nonfinite
from optchain.transforms.projections import project_max_norm as project_max_norm
from optchain.transforms.projections import project_min_max_norm as project_min_max_norm
from optchain.transforms.projections import project_non_negative as project_non_negative
from optchain.transforms.projections import project_unit_norm as project_unit_norm

__version__ = "0.1.0"
