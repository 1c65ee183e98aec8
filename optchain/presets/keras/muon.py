"""Keras's Muon."""

from collections.abc import Sequence
from typing import Any, Unpack

from optchain.core import arguments
from optchain.core.hyperparams import Hyperparam
from optchain.core.masks import Choice, matching, matrices
from optchain.core.transformation import Transformation
from optchain.presets.shared import SharedButDecay, all_but, assemble, check_exclusions, preset
from optchain.rules.muon import scale_by_muon
from optchain.transforms.decay import decay_weights
from optchain.transforms.learning_rate import scale_by_learning_rate

EMBEDDINGS = matching("(?i)embedding", allow_unmatched=True)


@preset
def muon(
    learning_rate: Hyperparam = 0.001,
    adam_beta_1: Hyperparam = 0.9,
    adam_beta_2: Hyperparam = 0.999,
    adam_weight_decay: Hyperparam | None = 0.004,
    epsilon: Hyperparam = 1e-7,
    weight_decay: Hyperparam | None = 0.004,
    *,
    exclude_layers: Sequence[str] | None = None,
    exclude_embeddings: bool = True,
    muon_a: float = 3.4445,
    muon_b: float = -4.7750,
    muon_c: float = 2.0315,
    adam_lr_ratio: Hyperparam = 1,
    momentum: Hyperparam = 0.95,
    ns_steps: int = 5,
    nesterov: bool = True,
    rms_rate: Hyperparam | None = 0.2,
    moment_dtype: Any = None,
    **shared: Unpack[SharedButDecay],
) -> Transformation:
    """Keras's Muon: the momentum of matrices made orthogonal, AdamW for all other parameters.

        matrices:   p ← p − lr · weight_decay · p − lr · √max(n, m) · rms_rate · orthogonal(momentum of g)
        others:     p ← p − lr · adam_weight_decay · p − lr · adam_lr_ratio · Adam's step

    The formulas are those of `scale_by_muon`. Others are parameters that have not two axes, embeddings, and the layers that
    `exclude_layers` names: the last layer of a network, usually. As everywhere here, patterns are searched in the whole path
    of a parameter, `layers/0/kernel`, and a pattern that finds none is an error. `describe` shows which parameter goes by which
    rule. Matrices that are stacked, as in the layers of a scanned network, have more than two axes, and go by Adam too: `init`
    warns of them unless `exclude_layers` names them.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      adam_beta_1: decay of Adam's first moment, in [0, 1).
      adam_beta_2: decay of Adam's second moment, in [0, 1).
      adam_weight_decay: decoupled decay of the other parameters, >= 0; None for none.
      epsilon: added to the denominator of Adam's step, >= 0.
      weight_decay: decoupled decay of the matrices, >= 0; None for none.
      exclude_layers: regular expressions; a matrix in whose path one is found goes by Adam.
      exclude_embeddings: whether a matrix with `embedding` in its path, in any case of letters, goes by Adam.
      muon_a: the first coefficient of the Newton-Schulz iteration, a number.
      muon_b: its second coefficient.
      muon_c: its third coefficient.
      adam_lr_ratio: the factor of the learning rate in Adam's steps, but not in its decay, >= 0.
      momentum: decay of the momentum of the matrices, in [0, 1].
      ns_steps: the number of iterations, >= 1.
      nesterov: whether to look ahead.
      rms_rate: the root mean square of an update, >= 0; None to leave out the scale `√max(n, m) · rms_rate`.
      moment_dtype: the dtype in which the rule's slots are stored, bfloat16, float32 or float64, or a dict of these by the
        names of slots; float32 or wider if None.
      {shared}

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; two clips.

    Warns:
      UserWarning: at `init`, parameters of more than two axes that `exclude_layers` does not name.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; Liu et al., "Muon is Scalable for
    LLM Training", 2025, arXiv:2502.16982; `keras.optimizers.Muon`.

    Example:
      >>> import jax, jax.numpy as jnp, optchain
      >>> tx = optchain.muon(0.1, exclude_layers=["head"])
      >>> params = {"dense": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}, "head": {"kernel": jnp.eye(4)}}
      >>> state = tx.init(params)
      >>> jax.tree.map(jnp.shape, state["scale_by_muon"]["adam_nu"])
      {'dense': {'bias': (4,), 'kernel': (1,)}, 'head': {'kernel': (4, 4)}}
    """
    for name, value in [("adam_weight_decay", adam_weight_decay), ("weight_decay", weight_decay)]:
        if value is not None:
            arguments.check_hyperparam(name, value)
    exclude_from_weight_decay = shared.pop("exclude_from_weight_decay", None)
    check_exclusions(exclude_from_weight_decay, weight_decay, adam_weight_decay)
    excluded = _excluded(exclude_layers, arguments.check_bool("exclude_embeddings", exclude_embeddings))
    rule = scale_by_muon(
        momentum,
        nesterov,
        ns_steps,
        coefficients=(muon_a, muon_b, muon_c),
        rms_rate=rms_rate,
        adam_beta_1=adam_beta_1,
        adam_beta_2=adam_beta_2,
        epsilon=epsilon,
        adam_lr_ratio=adam_lr_ratio,
        mask=~excluded if excluded else None,
        moment_dtype=moment_dtype,
    )
    orthogonal = matrices & ~excluded if excluded else matrices
    decaying = None if exclude_from_weight_decay is None else all_but(exclude_from_weight_decay)
    decays = [
        decay_weights(value, mask=group & decaying if decaying else group)
        for value, group in [(weight_decay, orthogonal), (adam_weight_decay, ~orthogonal)]
        if value is not None
    ]
    return assemble([rule, scale_by_learning_rate(), *decays], learning_rate, **shared)


def _excluded(exclude_layers: Sequence[str] | None, exclude_embeddings: bool) -> Choice | None:
    """The matrices that go by Adam all the same."""
    if exclude_layers is not None and not isinstance(exclude_layers, list | tuple):
        raise TypeError(f"exclude_layers must be a list of patterns or None; got {exclude_layers!r}")
    layers = matching(*exclude_layers) if exclude_layers else None
    if not exclude_embeddings:
        return layers
    return layers | EMBEDDINGS if layers else EMBEDDINGS
