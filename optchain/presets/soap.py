"""SOAP, with the arguments that the presets share."""

from typing import Any, Unpack

from optchain.core.hyperparams import Hyperparam
from optchain.core.masks import Mask
from optchain.core.transformation import Transformation
from optchain.presets.shared import SharedButDecay, assemble, preset
from optchain.rules.soap import scale_by_soap
from optchain.transforms.learning_rate import scale_by_learning_rate


@preset
def soap(
    learning_rate: Hyperparam = 0.003,
    beta_1: Hyperparam = 0.95,
    beta_2: Hyperparam = 0.95,
    epsilon: Hyperparam = 1e-8,
    weight_decay: Hyperparam | None = 0.01,
    *,
    shampoo_beta: Hyperparam | None = None,
    precondition_frequency: int = 10,
    max_precondition_dim: int = 10000,
    one_sided: bool = False,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    mask: Mask | None = None,
    moment_dtype: Any = None,
    **shared: Unpack[SharedButDecay],
) -> Transformation:
    """SOAP: AdamW in the eigenbases of Shampoo's preconditioners.

        p ← p − lr · weight_decay · p − lr · u

    with `u` of `scale_by_soap`, whose docstring has the formulas, and what a parameter costs in memory. The first call begins the
    preconditioners: of the step there is the decay only. Decay reads the parameters as they were before the step, as in AdamW;
    the authors' code multiplies the new ones by `1 − lr · weight_decay`, which differs by `lr² · weight_decay · u`.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      beta_1: decay of the first moment, in [0, 1).
      beta_2: decay of the second moment, in [0, 1).
      epsilon: added to the denominator, >= 0.
      weight_decay: decoupled decay, >= 0; None for none.
      shampoo_beta: decay of the preconditioners, in [0, 1); `beta_2` if None.
      precondition_frequency: the number of updates from one refresh of the bases to the next, >= 1.
      max_precondition_dim: the size above which an axis has no basis, >= 1.
      one_sided: whether only the smallest axis of a parameter has a basis.
      merge_dims: whether neighbouring axes of a parameter of more than two are taken as one, while their product is at most
        `max_precondition_dim`.
      precondition_1d: whether vectors have a basis too.
      mask: which parameters have bases; the others go by Adam's rule. None for all of two axes or more.
      moment_dtype: the dtype in which the moments are stored, bfloat16, float32 or float64, or a dict of these by the names of
        slots; float32 or wider if None.
      {shared}

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; two clips.

    Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024, arXiv:2409.11321.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.soap(0.5, epsilon=1e-4, weight_decay=None)
      >>> params = jnp.zeros((2, 2))
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     params, state = tx.apply(params, state, grads=jnp.array([[3.0, 1.0], [1.0, 3.0]]))
      >>> params.round(2) + 0.0
      Array([[-0.5,  0. ],
             [ 0. , -0.5]], dtype=float32)
    """
    rule = scale_by_soap(
        beta_1,
        beta_2,
        epsilon,
        shampoo_beta=shampoo_beta,
        precondition_frequency=precondition_frequency,
        max_precondition_dim=max_precondition_dim,
        one_sided=one_sided,
        merge_dims=merge_dims,
        precondition_1d=precondition_1d,
        mask=mask,
        moment_dtype=moment_dtype,
    )
    return assemble([rule, scale_by_learning_rate()], learning_rate, weight_decay=weight_decay, **shared)
