"""Muon's rule: a momentum whose matrices are made orthogonal, and Adam for everything that is no matrix."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.each_leaf import each_leaf
from optchain.core.factors import Factor
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.masks import Mask, check_mask, resolve_mask
from optchain.core.registry import register
from optchain.core.slot import Slot, declare, stored
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.rules.moments import average, average_of_squares, one_minus_power

QUINTIC = (3.4445, -4.7750, 2.0315)
"""The coefficients of Jordan et al.: the steepest at 0 of those that stay near 1."""


class ScaleByMuonState(TypedDict):
    count: jax.Array
    """The number of updates made, int32."""
    mu: Tree
    """The momentum: the decaying sum of a matrix's gradients, the average of any other's."""
    adam_nu: Tree
    """The average of the squared gradients, real; of one element for a matrix that is made orthogonal."""


SLOTS = declare(
    # The momentum of a matrix, the average of any other's gradients. Making it orthogonal makes its small directions as large as
    # any, and the noise of 8 bits with them.
    mu=Slot(narrowest="bfloat16"),
    adam_nu=Slot(
        real=True, nonnegative=True, full=False
    ),  # the average of the squares; of one element for a matrix that is made orthogonal
)


@register
def scale_by_muon(
    momentum: Hyperparam = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    *,
    coefficients: Sequence[float] = QUINTIC,
    rms_rate: Hyperparam | None = 0.2,
    adam_beta_1: Hyperparam = 0.9,
    adam_beta_2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-7,
    adam_lr_ratio: Hyperparam = 1.0,
    mask: Mask | None = None,
    moment_dtype: Any = None,
) -> Transformation:
    """Makes the momentum of each matrix orthogonal, by `ns_steps` steps of a Newton-Schulz iteration:

        mu ← momentum · mu + g
        X = mu, or with `nesterov`: g + momentum · mu
        X ← X / (‖X‖ + 1e-7);   then ns_steps times   X ← a X + (b XXᵀ + c (XXᵀ)²) X
        u = √max(n, m) · rms_rate · X, for a matrix of n · m

    The singular values of `X` end up around 1. Parameters that have not two axes, or that the mask leaves out, go by Adam's
    rule (`scale_by_adam`, with ε outside the bias correction), times `adam_lr_ratio`. The learning rate is not in it:
    `scale_by_learning_rate` follows. Matrix products have JAX's default precision: on a GPU or TPU set
    `jax.default_matmul_precision` where float32's digits matter.

    Args:
      momentum: decay of the momentum of matrices, in [0, 1].
      nesterov: whether to look ahead.
      ns_steps: the number of iterations, >= 1.
      coefficients: `a, b, c`, numbers.
      rms_rate: the root mean square of an update, >= 0, about that of Adam's by default; None to leave out the scale
        `√max(n, m) · rms_rate`.
      adam_beta_1: decay of Adam's first moment, in [0, 1).
      adam_beta_2: decay of Adam's second moment, in [0, 1).
      epsilon: added to the denominator of Adam's step, >= 0.
      adam_lr_ratio: the factor of Adam's updates, >= 0.
      mask: which matrices are made orthogonal: a tree of bools, or a callable of the parameters that returns one, such as
        `~matching("embedding")`. None for all. It is asked when the state is made.
      moment_dtype: the dtype in which the moments are stored, bfloat16, float32 or float64, or one by name, `{"mu": "bfloat16"}`; float32
        or wider if None. Arithmetic is not done in it.

    Returns:
      A transformation with state `count, mu, adam_nu`. `describe` shows which parameter goes by which rule.

    Warns:
      UserWarning: at `init`, parameters of more than two axes that the mask does not leave out, such as the stacked layers of
        a scanned network: they go by Adam's rule.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the scale: Liu et al., "Muon is
    Scalable for LLM Training", 2025, arXiv:2502.16982, equation 4.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_muon(ns_steps=10, coefficients=(1.5, -0.5, 0.0), rms_rate=None)
      >>> grads = {"kernel": jnp.array([[3.0, 0.0], [0.0, -1.0]]), "bias": jnp.array([10.0])}
      >>> updates, state = tx.update(grads, tx.init(grads))
      >>> updates["kernel"].round(3) + 0.0, updates["bias"].round(3)
      (Array([[ 1.,  0.],
             [ 0., -1.]], dtype=float32), Array([1.], dtype=float32))
    """
    scale = {} if rms_rate is None else {"rms_rate": rms_rate}
    hyperparams = Hyperparams(
        momentum=momentum,
        adam_beta_1=adam_beta_1,
        adam_beta_2=adam_beta_2,
        epsilon=epsilon,
        adam_lr_ratio=adam_lr_ratio,
        **scale,
    )
    nesterov = arguments.check_bool("nesterov", nesterov)
    ns_steps = arguments.check_integer("ns_steps", ns_steps, minimum=1)
    slots = stored(SLOTS, moment_dtype)
    if isinstance(coefficients, str) or not isinstance(coefficients, Sequence) or len(coefficients) != 3:
        raise TypeError(f"coefficients must be three numbers; got {coefficients!r}")
    for name, value in zip(("muon_a", "muon_b", "muon_c"), coefficients, strict=True):
        arguments.check_number(name, value, arguments.RANGES[name])
    if mask is not None:
        check_mask("mask", mask)

    def labels(params: Tree) -> Tree:
        chosen = resolve_mask("mask", mask, params)
        return jax.tree.map(lambda p, flag: "orthogonal" if flag and jnp.ndim(p) == 2 else "Adam", params, chosen)

    def init(params: Tree) -> ScaleByMuonState:
        chosen = resolve_mask("mask", mask, params)
        _warn_of_stacks(params, chosen)
        full = slots["adam_nu"].init(params)
        return {
            "count": jnp.zeros((), jnp.int32),
            "mu": slots["mu"].init(params),
            "adam_nu": jax.tree.map(
                lambda nu, flag: jnp.zeros((1,), nu.dtype) if flag and nu.ndim == 2 else nu, full, chosen
            ),
        }

    def update(updates: Tree, state: ScaleByMuonState, params: Tree, **extra: Any) -> tuple[Tree, ScaleByMuonState]:
        count = trees.increment(state["count"])
        old = [state["mu"], state["adam_nu"]]
        values = {name: extra[name] for name in hyperparams.names}
        directions, *new = each_leaf(step, updates, *old, outputs=3, t=count, **values)
        mu, nu = (jax.tree.map(slot.store, *pair) for slot, *pair in zip(slots.values(), new, old, strict=True))
        return directions, {"count": count, "mu": mu, "adam_nu": nu}

    def step(
        t: jax.Array,
        momentum: jax.Array,
        adam_beta_1: jax.Array,
        adam_beta_2: jax.Array,
        epsilon: jax.Array,
        adam_lr_ratio: jax.Array,
        rms_rate: jax.Array | float | None = None,
    ) -> Callable[..., tuple[jax.Array, ...]]:
        one_minus_b1, one_minus_b2 = one_minus_power(adam_beta_1, t), one_minus_power(adam_beta_2, t)
        factor = adam_lr_ratio * jnp.sqrt(one_minus_b2) / one_minus_b1

        def orthogonal(g: jax.Array, mu: jax.Array) -> tuple[jax.Array, jax.Array]:
            mu = momentum * mu + g
            u = orthogonalize(g + momentum * mu if nesterov else mu, coefficients, ns_steps)
            return u if rms_rate is None else u * (rms_rate * max(u.shape) ** 0.5), mu

        def adam(g: jax.Array, mu: jax.Array, nu: jax.Array) -> tuple[jax.Array, ...]:
            mu, nu = average(mu, g, adam_beta_1), average_of_squares(nu, g, adam_beta_2)
            return mu * factor / (trees.root(nu) + epsilon), mu, nu

        def leaf(g: jax.Array, mu: jax.Array, nu: jax.Array) -> tuple[jax.Array, ...]:
            is_matrix = nu.ndim != g.ndim  # one that was chosen when the state was made
            return (*orthogonal(g, mu), nu) if is_matrix else adam(g, mu, nu)

        return leaf

    return Transformation(
        init,
        update,
        fields=["count"],
        slots=slots,
        hyperparams=hyperparams,
        stage="second_moment",
    ).with_labels(labels)


def _warn_of_stacks(params: Tree, chosen: Tree) -> None:
    """Says which parameters of more than two axes no mask leaves out: stacked matrices, whose owner may expect otherwise."""
    flags = jax.tree.leaves(chosen)
    stacks = [
        f"{trees.path_string(path) or 'the array'} {jnp.shape(p)}"
        for (path, p), flag in zip(trees.leaves_with_paths(params), flags, strict=True)
        if flag and jnp.ndim(p) > 2
    ]
    if stacks:
        warnings.warn(
            f"Muon makes matrices orthogonal, which have two axes; these have more and are trained by Adam's rule: "
            f"{', '.join(stacks)}. To silence this, exclude them by name: exclude_layers of muon, the mask of scale_by_muon",
            UserWarning,
            stacklevel=2,
        )


def orthogonalize(
    x: jax.Array,
    coefficients: Sequence[float] = QUINTIC,
    steps: int = 5,
    *,
    least_norm: float | None = None,
    dtype: Any = None,
) -> jax.Array:
    """A matrix with all singular values brought near 1, by the Newton-Schulz iteration of :func:`scale_by_muon`.

    With `least_norm` the matrix is divided by its norm, or by that if it is less, in the place of `‖X‖ + 1e-7`. The
    iteration is done in `dtype`, that of `x` if None.
    """
    a, b, c = coefficients

    def iterate(x: jax.Array) -> jax.Array:
        # A power of two first, and its largest value is near 1: squares neither overflow nor underflow.
        peak = Factor.of(jnp.max(jnp.abs(x), initial=0))
        power = Factor(jnp.ones_like(peak.significand), -peak.exponent)
        x = power.times(x)
        epsilon = power.times(jnp.full_like(power.significand, 1e-7 if least_norm is None else least_norm))
        norm = trees.root(trees.sum_of_squares(x))
        x = x / (norm + epsilon if least_norm is None else _at_least(norm, epsilon))
        x = x if dtype is None else x.astype(dtype)
        for _ in range(steps):
            square = x @ x.conj().T
            x = a * x + (b * square + c * square @ square) @ x
        return x.astype(wide)

    wide, tall = x.dtype, x.shape[0] > x.shape[1]
    x = x.conj().T if tall else x
    # Along explicit axes of a mesh a product of split matrices has no one type: the compiler chooses what lies between.
    sharding = jax.typeof(x).sharding
    is_split = any(axis is not None for axis in sharding.spec)
    automatic: Any = jax.sharding.auto_axes(iterate, out_sharding=sharding) if is_split else iterate
    x = automatic(x)
    return x.conj().T if tall else x


def _at_least(norm: jax.Array, least: jax.Array) -> jax.Array:
    """The larger of both; 1 where both are 0, so that nothing is divided by 0."""
    larger = jnp.maximum(norm, least)
    return jnp.where(larger == 0, 1.0, larger)
