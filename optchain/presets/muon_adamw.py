"""Muon for the matrices of a real model and AdamW for the rest, with the arguments that the presets share."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

from optchain.core import arguments
from optchain.core.hyperparams import Hyperparam
from optchain.core.masks import Mask, matching
from optchain.core.matrix_axes import Axes
from optchain.core.transformation import Transformation
from optchain.presets.shared import SharedButDecay, assemble, preset
from optchain.rules.muon import Triple, scale_by_muon
from optchain.transforms.learning_rate import scale_by_learning_rate

EMBEDDINGS = matching("(?i)embed", allow_unmatched=True)


@functools.partial(preset, ordered=["matrices"])
def muon_adamw(
    learning_rate: Hyperparam = 0.001,
    weight_decay: Hyperparam | None = 0.1,
    *,
    matrices: Mapping[str, tuple[Axes, Axes] | None] | None = None,
    mask: Mask | None = None,
    momentum: Hyperparam = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    coefficients: str | Triple | Sequence[Triple] = "polar_express",
    iteration_dtype: Any = None,
    scaling: Literal["rms", "width"] = "rms",
    adam_beta_1: Hyperparam = 0.9,
    adam_beta_2: Hyperparam = 0.95,
    epsilon: Hyperparam = 1e-8,
    adam_lr_ratio: Hyperparam = 1.0,
    moment_dtype: Any = None,
    **shared: Unpack[SharedButDecay],
) -> Transformation:
    """Muon for matrices in whatever shape a model keeps them, AdamW for all other parameters.

        matrices:   p ← p − lr · weight_decay · p − lr · scale · orthogonal(momentum of g)
        others:     p ← p − lr · weight_decay · p − lr · adam_lr_ratio · Adam's step

    The formulas are those of `scale_by_muon`. With `scaling="rms"` the scale is 0.2 · √max(inputs, outputs): an update's root
    mean square is about that of AdamW's, whose learning rate and decay go on. With `"width"` it is √max(1, outputs / inputs),
    that of Jordan et al.: rates are larger, and the same for all widths. `describe` shows which parameter goes by which rule.
    `muon`, Keras's, takes matrices of two axes only, and has a decay for each of both.

    Args:
      learning_rate: a number >= 0, an array, a schedule of the count of calls, or a callable of no arguments.
      weight_decay: decoupled decay of all parameters, >= 0; None for none.
      matrices: which axes are inputs and which outputs, by a pattern that is searched in the path; the first that is found
        decides: `{"embed|head": None, "layers/": (-2, -1), "query": (0, (1, 2))}`. All other axes count matrices, each made
        orthogonal by itself. What has None, or is found by no pattern, goes by Adam's rule. None for all: parameters of two
        axes without `embed` in their path, in any case of letters.
      mask: which of these matrices are made orthogonal: a tree of bools, or a callable of the parameters that returns one, such
        as `~matching("head")`. None for all.
      momentum: decay of the momentum of the matrices, in [0, 1].
      nesterov: whether to look ahead.
      ns_steps: the number of iterations, >= 1.
      coefficients: of the iterations: `"polar_express"`, `"cans"`, `"classic"`, three numbers, or a list of such triples.
      iteration_dtype: the dtype of the iterations, bfloat16, float32 or float64; that of the arithmetic if None.
      scaling: the scale of the updates of matrices: "rms" or "width", see above.
      adam_beta_1: decay of Adam's first moment, in [0, 1).
      adam_beta_2: decay of Adam's second moment, in [0, 1).
      epsilon: added to the denominator of Adam's step, >= 0.
      adam_lr_ratio: the factor of the learning rate in Adam's steps, but not in its decay, >= 0.
      moment_dtype: the dtype in which the rule's slots are stored, bfloat16, float32 or float64, or a dict of these by the
        names of slots; float32 or wider if None.
      {shared}

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; two clips; at `init`, a pattern that decides for no
        parameter, and axes that one has not.

    Warns:
      UserWarning: at `init`, without `matrices`, parameters of more than two axes that `mask` does not leave out.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; Liu et al., "Muon is Scalable for
    LLM Training", 2025, arXiv:2502.16982; the coefficients: Amsel et al., 2025, arXiv:2505.16932.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> params = {"embed": jnp.ones((8, 4)), "layers": {"query": jnp.ones((3, 4, 2, 2)), "scale": jnp.ones((3, 4))}}
      >>> tx = optchain.muon_adamw(1e-3, matrices={"query": (1, (2, 3))})
      >>> [(row.path, row.group) for row in optchain.describe(tx, params).per_parameter]
      [('embed', 'Adam'), ('layers/query', 'orthogonal'), ('layers/scale', 'Adam')]
    """
    arguments.check_choice("scaling", scaling, ("rms", "width"))
    rule = scale_by_muon(
        momentum,
        nesterov,
        ns_steps,
        coefficients=coefficients,
        rms_rate=0.2 if scaling == "rms" else None,
        width_scale=scaling == "width",
        adam_beta_1=adam_beta_1,
        adam_beta_2=adam_beta_2,
        epsilon=epsilon,
        adam_lr_ratio=adam_lr_ratio,
        mask=~EMBEDDINGS if matrices is None and mask is None else mask,
        moment_dtype=moment_dtype,
        matrices=matrices,
        iteration_dtype=iteration_dtype,
    )
    return assemble([rule, scale_by_learning_rate()], learning_rate, weight_decay, **shared)
