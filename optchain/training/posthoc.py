"""Averages of other widths than those that were kept, after a run."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optchain.core import arguments, trees
from optchain.core.trees import Tree
from optchain.schedules.averages import PowerEMA


def posthoc_average(snapshots: Iterable[tuple[float, int, Tree]], width: float, updates: int | None = None) -> Tree:
    """The average of the parameters that `PowerEMA(width)` would have kept, made of others that were saved during the run.

    It is the linear combination of the snapshots, with weights whose sum is 1, whose profile over the run is nearest to that of the
    average that is wanted, by least squares. Two widths, 0.05 and 0.1, and some ten snapshots of each, spread over the run, do for
    every width between them and, less exactly, for wider ones.

    Args:
      snapshots: `(width, updates, average)` each: the width of the `PowerEMA`, how many updates it had seen, and the average.
      width: the width that is wanted, in (0, 0.2886].
      updates: at which update, that of a snapshot; None for the last.

    Returns:
      A tree of fresh arrays in the dtypes of the first snapshot.

    Raises:
      TypeError: a snapshot that is no such triple; an average that is traced, or has leaves that are no floating-point arrays.
      ValueError: no snapshots; a width out of range; an update of no snapshot; averages of different parameters.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", 2024, arXiv:2312.02696, section 3.2
    and appendix C.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> from optchain.schedules import PowerEMA
      >>> tx = optchain.chain(
      ...     optchain.scale_by_learning_rate(0.1),
      ...     ("short", optchain.average_params(PowerEMA(0.05))),
      ...     ("long", optchain.average_params(PowerEMA(0.1))),
      ... )
      >>> params, snapshots = {"w": jnp.zeros(1)}, []
      >>> state = tx.init(params)
      >>> for update in range(1, 101):
      ...     params, state = tx.apply(params, state, grads={"w": -jnp.ones(1)})  # 0.1, 0.2, 0.3, …
      ...     if update % 20 == 0:
      ...         snapshots.append((0.05, update, state["short"]["average"]))
      ...         snapshots.append((0.1, update, state["long"]["average"]))
      >>> print(f"{optchain.posthoc_average(snapshots, 0.15)['w'][0]:.1f}")
      8.3
    """
    snapshots = list(snapshots)
    if not snapshots:
        raise ValueError("snapshots must have at least one (width, updates, average); got none")
    for place, snapshot in enumerate(snapshots):
        if not isinstance(snapshot, tuple | list) or len(snapshot) != 3:
            raise TypeError(f"snapshots[{place}] must be (width, updates, average); got {type(snapshot).__name__}")
    kept = [
        (PowerEMA(_number(own)).exponent, arguments.check_integer("updates", at, minimum=1)) for own, at, _ in snapshots
    ]
    times = sorted({at for _, at in kept})
    at = times[-1] if updates is None else arguments.check_integer("updates", updates, minimum=1)
    if at not in times:
        raise ValueError(f"updates must be those of a snapshot, {', '.join(map(str, times))}; got {at}")
    wanted = (PowerEMA(_number(width)).exponent, at)
    # The least squares under that condition: one more unknown, and one more equation.
    among = np.array([[*(_overlap(one, other) for other in kept), 1.0] for one in kept] + [[1.0] * len(kept) + [0.0]])
    shares = np.linalg.lstsq(among, np.array([*(_overlap(one, wanted) for one in kept), 1.0]), rcond=None)[0][:-1]
    (_, _, first), *others = snapshots
    trees.check_leaves("snapshots[0]", first)
    for path, leaf in trees.leaves_with_paths(first):
        if arguments.is_traced(leaf):
            raise TypeError(
                f"{trees.path_code('snapshots[0]', path)} is traced: posthoc_average computes on the host, outside of jit"
            )
    for place, (_, _, average) in enumerate(others, start=1):
        trees.check_match(f"snapshots[{place}]", average, "snapshots[0]", first)

    def combined(*leaves: Any) -> jax.Array:
        wide = np.complex128 if trees.is_complex(leaves[0]) else np.float64
        total = sum(share * np.asarray(leaf).astype(wide) for share, leaf in zip(shares, leaves, strict=True))
        return jnp.asarray(total, trees.dtype_of(leaves[0]))

    return jax.tree.map(combined, *(average for _, _, average in snapshots))


def _number(width: Any) -> Any:
    return width.item() if arguments.is_array(width) and width.ndim == 0 and not arguments.is_traced(width) else width


def _overlap(one: tuple[float, int], other: tuple[float, int]) -> float:
    """`∫ p q` of two profiles `(γ + 1) s^γ / t^(γ + 1)` from 0 to t, each by its γ and t."""
    (a, t_a), (b, t_b) = one, other
    first, power = (t_a / t_b, b) if t_a < t_b else (t_b / t_a, a)
    return (a + 1) * (b + 1) / (a + b + 1) * first**power / max(t_a, t_b)
