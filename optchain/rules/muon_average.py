"""Muon as PyTorch has it: the average of gradients made orthogonal, in bfloat16."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.each_leaf import each_leaf
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.registry import register
from optchain.core.slot import Slot, declare, stored
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.rules.moments import average
from optchain.rules.muon import QUINTIC, orthogonalize

SLOTS = declare(
    mu=Slot(narrowest="bfloat16", decay="momentum"),  # the average of the gradients
)
SCALES = ("original", "match_rms_adamw")


@register
def scale_by_muon_average(
    momentum: Hyperparam = 0.95,
    nesterov: bool = True,
    ns_coefficients: Sequence[float] = QUINTIC,
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "original",
    *,
    output_axis: int = -1,
    iteration_dtype: Any = "bfloat16",
    moment_dtype: Any = None,
) -> Transformation:
    """Makes the average of each matrix's gradients orthogonal, by the Newton-Schulz iteration of `scale_by_muon`:

        mu ← momentum · mu + (1 − momentum) · g
        X = mu, or with `nesterov`: momentum · mu + (1 − momentum) · g
        X ← X / max(‖X‖, eps);   then ns_steps times   X ← a X + (b XXᵀ + c (XXᵀ)²) X
        u = √max(1, outputs / inputs) · X,   or with "match_rms_adamw": 0.2 · √max(outputs, inputs) · X

    All parameters must be matrices: give the others a rule of their own, by `multi_optimizer`. `scale_by_muon` does that by
    itself, and has the sum of the gradients in the place of their average.

    Args:
      momentum: decay of the average, in [0, 1].
      nesterov: whether to look ahead.
      ns_coefficients: `a, b, c`, numbers.
      eps: the least norm by which a matrix is divided, a number >= 0.
      ns_steps: the number of iterations, in [1, 99].
      adjust_lr_fn: the scale of the update, see above.
      output_axis: which axis of a matrix is that of the outputs: -1 (or 1) in Flax and Keras, 0 in PyTorch and Equinox.
      iteration_dtype: the floating-point dtype of the iteration, bfloat16 as in PyTorch. Complex matrices are iterated as they are.
      moment_dtype: the dtype in which the average is stored; float32 or wider if None.

    Returns:
      A transformation with state `mu`.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind; at `init`, a parameter that is no matrix.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the second scale: Liu et al., "Muon
    is Scalable for LLM Training", 2025, arXiv:2502.16982, equation 4; `torch.optim.Muon`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_muon_average(ns_coefficients=(1.5, -0.5, 0.0), ns_steps=10, iteration_dtype="float32")
      >>> grads = jnp.array([[3.0, 0.0], [0.0, -1.0]])
      >>> tx.update(grads, tx.init(grads))[0].round(3) + 0.0
      Array([[ 1.,  0.],
             [ 0., -1.]], dtype=float32)
    """
    nesterov = arguments.check_bool("nesterov", nesterov)
    if isinstance(ns_coefficients, str) or not isinstance(ns_coefficients, Sequence) or len(ns_coefficients) != 3:
        raise TypeError(f"ns_coefficients must be three numbers; got {ns_coefficients!r}")
    for index, value in enumerate(ns_coefficients):
        arguments.check_number(f"ns_coefficients[{index}]", value, arguments.FINITE)
    arguments.check_number("eps", eps, arguments.NON_NEGATIVE)
    ns_steps = arguments.check_integer("ns_steps", ns_steps, minimum=1, maximum=99)
    arguments.check_choice("adjust_lr_fn", adjust_lr_fn, SCALES)
    outputs = arguments.check_integer("output_axis", output_axis, minimum=-1, maximum=1)
    dtype = arguments.check_dtype("iteration_dtype", iteration_dtype)
    if dtype is None:
        raise TypeError("iteration_dtype must be a floating-point dtype; got None")
    slot = (slots := stored(SLOTS, moment_dtype))["mu"]

    def init(params: Tree) -> dict[str, Any]:
        wrong = [
            f"{trees.path_string(path) or 'the array'} {jnp.shape(p)}"
            for path, p in trees.leaves_with_paths(params)
            if jnp.ndim(p) != 2
        ]
        if wrong:
            raise ValueError(
                f"Muon makes matrices orthogonal, which have two axes; these have not: {', '.join(wrong)}. Give them a rule of "
                'their own, such as multi_optimizer(("matrices", optchain.matrices, muon), default=adamw)'
            )
        return {"mu": slot.init(params)}

    def update(updates: Tree, state: dict[str, Any], params: Tree, *, momentum: jax.Array) -> tuple[Tree, dict]:
        updates, mu = each_leaf(step, updates, state["mu"], outputs=2, momentum=momentum)
        return updates, {"mu": jax.tree.map(slot.store, mu, state["mu"])}

    def step(momentum: jax.Array) -> Callable[..., tuple[jax.Array, ...]]:
        def leaf(g: jax.Array, mu: jax.Array) -> tuple[jax.Array, ...]:
            mu = average(mu, g, momentum)
            x = average(mu, g, momentum) if nesterov else mu
            own = None if trees.is_complex(x) else dtype  # there is no narrower complex dtype
            u = orthogonalize(x, ns_coefficients, ns_steps, least_norm=eps, dtype=own)
            return u * scale_of(g.shape), mu

        return leaf

    def scale_of(shape: tuple[int, ...]) -> float:
        if 0 in shape:
            return 1.0
        ratio = shape[outputs] / shape[1 - outputs % 2]
        return max(1.0, ratio) ** 0.5 if adjust_lr_fn == "original" else 0.2 * max(shape) ** 0.5

    return Transformation(init, update, slots=slots, hyperparams=Hyperparams(momentum=momentum), stage="second_moment")
