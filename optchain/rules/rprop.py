"""Rprop's rule: a step size for each number, which grows while the sign of its gradient stays."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.registry import register
from optchain.core.rule import Leaf, LeafUpdate, rule
from optchain.core.slot import Slot, declare, stored
from optchain.core.transformation import Transformation

SLOTS = declare(
    previous=Slot(narrowest="bfloat16"),  # the gradient of the update before, 0 where its sign had turned
    step_size=Slot(nonnegative=True, narrowest="float32"),  # the size of the next step; 0 before the first
)


@register
def scale_by_rprop(
    etas: Sequence[float] = (0.5, 1.2), step_sizes: Sequence[float] = (1e-6, 50), *, moment_dtype: Any = None
) -> Transformation:
    """Steps by the sign of the gradient alone, each number by a size of its own:

        turned = previous · g < 0,   step_size = learning_rate at first
        step_size ← clip(step_size · (etas[1] if previous · g > 0, etas[0] if turned, else 1), *step_sizes)
        previous ← 0 if turned else g
        u = −step_size · sign(previous)

    It is for gradients of the whole data set: signs of small batches turn by chance. The learning rate of the chain is read
    at the first update and never again, so that a schedule has no effect. Of complex numbers, real and imaginary parts go
    each by themselves. A gradient of NaN makes its parameter NaN, where PyTorch takes its sign for 0 and goes on.

    Args:
      etas: the factors of a step size whose gradient's sign has turned, in (0, 1), and of one whose sign stays, > 1.
      step_sizes: the smallest and the largest step size, > 0.
      moment_dtype: the dtype in which the slots are stored, bfloat16, float32 or float64, or one by name,
        `{"previous": "bfloat16"}`; float32 or wider if None. Arithmetic is not done in it.

    Returns:
      A transformation with state `previous, step_size`, that needs the learning rate of the chain.

    Raises:
      ValueError, TypeError: an argument out of range or of the wrong kind.

    Source: Riedmiller & Braun, "A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP Algorithm", 1993, as
    `torch.optim.Rprop` has it.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.chain(optchain.scale_by_rprop(), learning_rate=0.1)
      >>> params = jnp.zeros(2)
      >>> state = tx.init(params)
      >>> for grads in ([3.0, 3.0], [9.0, -1.0]):
      ...     params, state = tx.apply(params, state, grads=jnp.array(grads))
      >>> [round(float(p), 3) for p in params]
      [-0.22, -0.1]
    """
    smaller, larger = _pair("etas", etas, arguments.Range(0.0, 1.0, True, True), arguments.Range(1.0, low_open=True))
    least, most = _pair("step_sizes", step_sizes, arguments.POSITIVE, arguments.POSITIVE)
    if least > most:
        raise ValueError(f"step_sizes must be a pair, the smallest first; got {step_sizes!r}")

    def step(learning_rate: jax.Array) -> Leaf:
        def leaf(g: jax.Array, previous: jax.Array, step_size: jax.Array) -> LeafUpdate:
            return on_parts(act, g, previous, step_size)

        def act(g: jax.Array, previous: jax.Array, step_size: jax.Array) -> LeafUpdate:
            agreement = jnp.sign(g) * jnp.sign(previous)
            turned = agreement < 0
            factor = jnp.where(turned, smaller, jnp.where(agreement > 0, larger, 1.0))
            size = jnp.where(step_size == 0, learning_rate, step_size)
            size = jnp.clip(size * factor, least, most)
            previous = jnp.where(turned, 0.0, g)
            return -size * jnp.sign(previous), {"previous": previous, "step_size": size}

        return leaf

    return rule(step, slots=stored(SLOTS, moment_dtype), stage="learning_rate")


def on_parts(act: Callable[..., LeafUpdate], g: jax.Array, *slots: jax.Array) -> LeafUpdate:
    """A rule of real numbers, on the real and the imaginary parts of complex ones."""
    if not trees.is_complex(g):
        return act(g, *slots)
    (u, new), (v, more) = act(*(x.real for x in (g, *slots))), act(*(x.imag for x in (g, *slots)))
    return jax.lax.complex(u, v), {name: jax.lax.complex(new[name], more[name]) for name in new}


def _pair(name: str, values: Any, *allowed: arguments.Range) -> tuple[float, float]:
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != 2:
        raise TypeError(f"{name} must be a pair of numbers; got {values!r}")
    for index, (value, range_) in enumerate(zip(values, allowed, strict=True)):
        arguments.check_number(f"{name}[{index}]", value, range_)
    return float(values[0]), float(values[1])
