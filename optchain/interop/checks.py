"""What a value that was read must be, whichever library wrote it."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optchain.core import arguments
from optchain.core.arguments import Allowed
from optchain.core.slot import CONTAINERS, is_link_name, is_nonnegative, is_real, is_registered
from optchain.core.slot_paths import Names, SlotPaths
from optchain.core.trees import default_float, dtype_of

MOMENTS = frozenset({"mu", "mu_slow", "velocity", "linear_term", "previous"})
"""The entries that are means or sums of gradients: once infinite or NaN they stay so, as do those that are never negative."""
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
    """Requires what the argument `name` may be: a real number in its range, as it is used in JAX's default float too.

    Raises:
      ValueError: it is something else.
    """
    decays = name == "learning_rate"  # to nothing, by a schedule
    number(what, value, arguments.range_of(name), computed=decays)


def number(what: str, value: Any, allowed: Allowed, *, computed: bool = True) -> None:
    """Requires a real number in a range, as it is used in JAX's default float too; see `arguments.check_range`."""
    if _scalar(value) is None or not arguments.is_in_range(value, allowed, computed=computed):
        raise ValueError(f"{what} must be {allowed}, in {default_float().name}; it is {_shown(value)}")


def real(what: str, values: Any) -> None:
    """Requires real numbers.

    Raises:
      ValueError: they are complex.
    """
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise ValueError(f"{what} must be real; its dtype is {values.dtype}")


def nonnegative(what: str, values: Any) -> None:
    """Requires numbers >= 0. Of complex ones both parts: Rprop has a step size for each.

    Raises:
      ValueError: a number is negative.
    """
    values = np.asarray(values)
    with np.errstate(invalid="ignore"):  # NaN of a bfloat16
        negative = (values.real < 0) | (values.imag < 0) if np.iscomplexobj(values) else values < 0
    if np.any(negative):
        raise ValueError(f"{what} must be >= 0; {np.count_nonzero(negative)} of {negative.size} numbers are negative")


def is_moment(field: str) -> bool:
    """Whether the entry is a mean or sum of gradients, of their squares, or of sizes."""
    return field in MOMENTS or is_nonnegative(field)


def moment(what: str, field: str, values: Any, dtype: Any) -> None:
    """Requires what the entry `field` can be, a mean or sum of gradients or of their squares, kept in `dtype`.

    Raises:
      ValueError: a number is not finite, or not in that dtype; or it is none that slots of that name have.
    """
    if is_real(field):
        real(what, values)
    if is_nonnegative(field):
        nonnegative(what, values)
    xp = jnp if isinstance(values, jax.Array) else np
    with np.errstate(over="ignore"):
        finite = xp.isfinite(values) & (xp.abs(values) <= float(jnp.finfo(dtype).max))
    if not xp.all(finite):
        wrong = values.size - int(xp.count_nonzero(finite))
        raise ValueError(
            f"{what} must be finite, in {jnp.dtype(dtype).name}; {wrong} of {values.size} numbers are not. They come from a "
            "run that had diverged: take an earlier state"
        )


def entry(names: Names, value: Any, wanted: SlotPaths) -> None:
    """Requires an entry of a state to be what such an entry can be.

    Args:
      names: where it is.
      value: what was read. In the state of a `sweep` a number has the axis of members.
      wanted: the state that it is for. A parameter may be called `v`, and its module as a group of parameters is.
    """
    owner, field, below = wanted.split(names)
    like = wanted.leaves[names]
    dtype = dtype_of(like)
    if field == "hyperparams" and below and np.ndim(value) < 2:  # alone in a state too, as in that of `sgd`
        for where, each in _members("/".join(names), value):
            hyperparam(where, below[-1], each)
        return
    beside = wanted.entries[owner]
    entries = sum(wanted.is_field((*owner, name)) or is_registered(name) for name in beside)
    known = entries > 1 or (bool(owner) and is_registered(owner[-1]))
    named = not owner or owner[-1] in CONTAINERS or is_link_name(owner[-1])
    what = "/".join(names)
    if is_moment(field):
        # What the state that it is for has itself is no error: where a module is called as a link, it is a parameter.
        is_signed = not known and is_nonnegative(field) and _has_negative(like)
        if (known or named) and not is_signed and jnp.issubdtype(dtype, jnp.inexact):  # and no codes
            moment(what, field, value, dtype)
        return
    if not (known or named):
        return
    own = beside - {"hyperparams", "scheduled"}
    for where, each in _members(what, value):
        if field == "mu_product" and own == {"count", "mu_product", "mu", "nu"}:  # of `scale_by_nadam`
            number(where, each, arguments.FRACTION)
        elif field == "eta" and own == {"count", "eta"}:  # of `scale_by_asgd`
            number(where, each, arguments.NON_NEGATIVE)
        elif field in COUNTS and not below and jnp.issubdtype(dtype, jnp.integer):
            count(where, each)
        elif field == "loss_scale" and "good_steps" in beside:
            number(where, each, arguments.RANGES["initial_scale"])
        elif field == "weight" and "grads" in beside:
            number(where, each, arguments.NON_NEGATIVE)


def kind(what: str, dtype: Any, wanted: Any) -> None:
    """Requires numbers that another dtype can be made of.

    Raises:
      ValueError: they are complex and the other real, integers and floats, or no numbers.
    """
    kinds = (jnp.floating, jnp.complexfloating, jnp.integer, jnp.bool_)
    same = any(jnp.issubdtype(dtype, group) and jnp.issubdtype(wanted, group) for group in kinds)
    if not (same or (jnp.issubdtype(dtype, jnp.floating) and jnp.issubdtype(wanted, jnp.complexfloating))):
        raise ValueError(f"{what}: saved as {dtype}, expected {wanted}")


def _has_negative(array: Any) -> bool:
    """Whether a concrete array has numbers below 0."""
    if isinstance(array, jax.ShapeDtypeStruct) or jnp.issubdtype(dtype_of(array), jnp.complexfloating):
        return False
    return bool((np.asarray(array) < 0).any())


def _members(what: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A number and what to call it; each member's where there are several."""
    if np.ndim(value) == 0:
        yield what, value
    else:
        members = np.asarray(value)
        for index in np.ndindex(members.shape):
            yield f"{what}[{', '.join(map(str, index))}]", members[index]


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
