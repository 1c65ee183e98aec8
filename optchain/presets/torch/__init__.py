"""PyTorch's optimizers: its arguments, in its order, with its defaults and its numbers.

    from optchain.presets import torch

    tx = torch.adamw(1e-3, betas=(0.9, 0.95), weight_decay=0.1)

Checked step by step against PyTorch 2.13. Arguments that choose an implementation (`foreach`, `fused`, `capturable`,
`differentiable`) are not here: the numbers do not depend on them. `lr` is the run-time hyperparameter `learning_rate`, and
may be a schedule. What differs on purpose: a momentum above 1, a negative dampening and a `rho` of 1 are refused; a complex number has
one second moment, of its modulus, where PyTorch takes the real and the imaginary part for two parameters.

L-BFGS is Optax's: a step of it asks for the loss again.

PyTorch's schedulers are in `optchain.schedules`, except for `ReduceLROnPlateau`, which is no function of the step and is here.
"""

from optchain.presets.torch.averaged import asgd as asgd
from optchain.presets.torch.matrices import adafactor as adafactor
from optchain.presets.torch.matrices import muon as muon
from optchain.presets.torch.moments import adam as adam
from optchain.presets.torch.moments import adamax as adamax
from optchain.presets.torch.moments import adamw as adamw
from optchain.presets.torch.moments import nadam as nadam
from optchain.presets.torch.moments import radam as radam
from optchain.presets.torch.moments import sparse_adam as sparse_adam
from optchain.presets.torch.momentum import sgd as sgd
from optchain.presets.torch.plateau import ReduceLROnPlateau as ReduceLROnPlateau
from optchain.presets.torch.signs import rprop as rprop
from optchain.presets.torch.squares import adadelta as adadelta
from optchain.presets.torch.squares import adagrad as adagrad
from optchain.presets.torch.squares import rmsprop as rmsprop
