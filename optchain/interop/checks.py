"""What a value that was read must be, whichever library wrote it."""

import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optchain.core import arguments
from optchain.core.arguments import Range
from optchain.core.registry import FACTORIES
from optchain.interop.report import Names, is_field, split

SQUARES = frozenset({"nu", "nu_max", "adam_nu", "sum_of_squares", "e_g", "e_x", "v", "v_row", "v_col"})
"""The entries of a link's state that are means or sums of squares, or the largest of absolute values."""
MOMENTS = SQUARES | {"mu", "velocity", "linear_term"}
"""The entries that are means or sums of gradients, or of their squares: once infinite or NaN they stay so."""
COUNTS = frozenset({"count", "updates", "good_steps", "skipped_steps", "consecutive"})


def count(what: str, value: Any) -> int:
    """A number of steps, as an integer: PyTorch keeps it in a float.

    Raises:
      ValueError: it is no integer from 0 to the largest int32.
    """
    number = _scalar(value)
    if number is None or not 0 <= number <= arguments.LARGEST_INTEGER or number != math.floor(number):
        raise ValueError(f"{what} must be an integer in [0, {arguments.LARGEST_INTEGER}]; it is {_shown(value)}")
    return int(number)


def hyperparam(what: str, name: str, value: Any) -> None:
    """Requires what the argument `name` may be: a real number in its range, as a float32 too.

    Raises:
      ValueError: it is something else.
    """
    number(what, value, arguments.RANGES.get(name, arguments.FINITE))


def number(what: str, value: Any, allowed: Range) -> None:
    """Requires a real number in a range, as a float32 too."""
    found = _scalar(value)
    with np.errstate(over="ignore"):
        if found is None or found not in allowed or float(np.float32(arguments.as_float(found))) not in allowed:
            raise ValueError(f"{what} must be {allowed}, in float32; it is {_shown(value)}")


def squares(what: str, values: Any) -> None:
    """Requires what a mean of squares can be.

    Raises:
      ValueError: it is complex, or a number is negative.
    """
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise ValueError(f"{what} must be real, a mean of squares; its dtype is {values.dtype}")
    negative = np.asarray(values) < 0
    if np.any(negative):
        raise ValueError(
            f"{what} must be >= 0, a mean of squares; {np.count_nonzero(negative)} of {negative.size} numbers are negative"
        )


def moment(what: str, field: str, values: Any, dtype: Any) -> None:
    """Requires what the entry `field` can be, a mean or sum of gradients or of their squares, kept in `dtype`.

    Raises:
      ValueError: a number is not finite, or not in that dtype; or it is none that a mean of squares can be.
    """
    if field in SQUARES:
        squares(what, values)
    xp = jnp if isinstance(values, jax.Array) else np
    with np.errstate(over="ignore"):
        finite = xp.isfinite(values) & (xp.abs(values) <= float(jnp.finfo(dtype).max))
    if not xp.all(finite):
        wrong = values.size - int(xp.count_nonzero(finite))
        raise ValueError(
            f"{what} must be finite, in {jnp.dtype(dtype).name}; {wrong} of {values.size} numbers are not. They come from a "
            "run that had diverged: take an earlier state"
        )


def entry(names: Names, value: Any, dtype: Any, siblings: Callable[[Names], Collection[str]]) -> None:
    """Requires an entry of a state to be what such an entry can be.

    Args:
      names: where it is.
      value: what was read.
      dtype: what it is kept in.
      siblings: the entries beside one in a tree, by the place of their owner. A parameter may be called `v`.
    """
    owner, field, below = split(names)
    beside = siblings(owner)
    # A chain may keep nothing else of its own.
    alone = field == "hyperparams" and len(below) == 1 and np.ndim(value) == 0
    if not alone and not (owner and owner[-1].rstrip("_0123456789") in FACTORIES) and sum(map(is_field, beside)) < 2:
        return
    what = "/".join(names)
    if field in MOMENTS:
        moment(what, field, value, dtype)
    elif field == "mu_product" and not below:
        number(what, value, arguments.FRACTION)
    elif field in COUNTS and not below:
        count(what, value)
    elif field == "hyperparams" and below:
        hyperparam(what, below[-1], value)
    elif field == "loss_scale" and "good_steps" in beside:
        number(what, value, arguments.RANGES["initial_scale"])
    elif field == "weight" and "grads" in beside:
        number(what, value, arguments.NON_NEGATIVE)


def kind(what: str, dtype: Any, wanted: Any) -> None:
    """Requires numbers that another dtype can be made of.

    Raises:
      ValueError: they are complex and the other real, integers and floats, or no numbers.
    """
    kinds = (jnp.floating, jnp.complexfloating, jnp.integer, jnp.bool_)
    same = any(jnp.issubdtype(dtype, group) and jnp.issubdtype(wanted, group) for group in kinds)
    if not (same or (jnp.issubdtype(dtype, jnp.floating) and jnp.issubdtype(wanted, jnp.complexfloating))):
        raise ValueError(f"{what}: saved as {dtype}, expected {wanted}")


def _scalar(value: Any) -> int | float | None:
    """A real number of Python or of an array without axes; None for anything else, True and None among it."""
    if isinstance(value, bool) or not (arguments.is_number(value) or hasattr(value, "dtype")):
        return None
    if isinstance(value, int | float):
        return value
    dtype = value.dtype
    real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    return np.asarray(value).item() if real and np.ndim(value) == 0 else None


def _shown(value: Any) -> str:
    if isinstance(value, int):
        return repr(value) if abs(value) < 10**30 else f"{arguments.as_float(value):g}"
    plain = hasattr(value, "dtype") and np.ndim(value) == 0
    return repr(np.asarray(value).item()) if plain else " ".join(repr(value).split())[:80]
