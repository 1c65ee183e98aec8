"""What each argument may be: one table of names, checked where the argument is written.

The same names carry the same rule everywhere: in a link, in a preset, and when a value is set at run time. A value that
is traced by JAX cannot be looked at and passes.
"""

import dataclasses
import inspect
import math
import operator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def is_number(value: Any) -> bool:
    """A real Python or NumPy number; a bool is not one."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool | np.bool_)


def is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray)


def is_traced(value: Any) -> bool:
    return isinstance(value, Tracer)


def as_float(value: Any) -> float:
    """The number as a float; an integer beyond all floats is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of real numbers, for checking and for saying what is allowed."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    high_apart: bool = False
    """Whether the upper end does something else than every number below: a number that rounds to it is refused."""
    endless: bool = False
    """Whether infinity is in it."""

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            if not is_number(getattr(self, name)):
                value = getattr(self, name)
                raise TypeError(f"{name} must be a number or an infinity; got {value!r} ({type(value).__name__})")
        has_ends = not (self.low_open or self.high_open)
        if not (self.low < self.high or (has_ends and self.low == self.high)):
            raise ValueError(f"low must be below high, got {self!r}, which has no number in it")

    def __contains__(self, value: float) -> bool:
        return self.has(value)

    def has(self, value: float, dtype: Any = None) -> bool:
        """Whether a number lies in it, which has been rounded to a dtype if one is given, as the ends are then."""
        low, high = (end if dtype is None else as_used(end, dtype)[0] for end in (self.low, self.high))
        value = as_float(value)
        above = value > low if self.low_open else value >= low
        below = value < high if self.high_open else value <= high
        return above and below and (math.isfinite(value) or (self.endless and value == math.inf))

    def sets_apart(self, value: float) -> bool:
        """Whether a number is an end that does something else than its neighbours."""
        return self.high_apart and value == self.high

    def covers(self, other: "Range") -> bool:
        """Whether each number of the other is one of it."""
        above = (self.low, self.low_open) <= (other.low, other.low_open)
        below = (other.high, not other.high_open) <= (self.high, not self.high_open)
        return above and below and other.endless <= self.endless

    def __str__(self) -> str:
        if self.low == -math.inf:
            below = f" {'<' if self.high_open else '<='} {self.high:g}"
            return "a finite number" + (below if self.high < math.inf else "")
        above = f"{'>' if self.low_open else '>='} {self.low:g}"
        if self.endless:
            return f"a number {above}, or infinity"
        if self.high == math.inf:
            return f"a finite number {above}"
        left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"a number in {left}{self.low:g}, {self.high:g}{right}"


@dataclasses.dataclass(frozen=True)
class Either:
    """Several ranges of one name: a number lies in one of them."""

    ranges: tuple[Range, ...]

    def has(self, value: float, dtype: Any = None) -> bool:
        return any(allowed.has(value, dtype) for allowed in self.ranges)

    def sets_apart(self, value: float) -> bool:
        return all(allowed.sets_apart(value) for allowed in self.ranges if allowed.has(value))

    def __str__(self) -> str:
        return " or ".join(map(str, self.ranges))


Allowed: TypeAlias = Range | Either

LARGEST_INTEGER = 2**31 - 1

NON_NEGATIVE = Range(0.0)
NON_NEGATIVE_OR_NEVER = Range(0.0, endless=True)
POSITIVE = Range(0.0, low_open=True)
FRACTION = Range(0.0, 1.0)
KEPT = Range(0.0, 1.0, high_apart=True)
"""The part of an average that a call keeps: at 1 it never moves."""
BELOW_ONE = Range(0.0, 1.0, high_open=True)
NON_POSITIVE = Range(-math.inf, 0.0)
FINITE = Range(-math.inf)

WEIGHTS = Range(2.0**-64, 2.0**64)
"""What a call's weight may be beside 0: with headroom for its products with gradients, and for their sums."""

RANGES: dict[str, Range] = {
    "learning_rate": NON_NEGATIVE,
    "max_learning_rate": POSITIVE,
    "weight_decay": NON_NEGATIVE,
    "decay": NON_NEGATIVE,
    "beta_1": BELOW_ONE,
    "beta_2": BELOW_ONE,
    "beta_3": BELOW_ONE,
    "slow_weight": NON_NEGATIVE,
    "rho": BELOW_ONE,
    "epsilon": NON_NEGATIVE,
    "epsilon_root": NON_NEGATIVE,
    "adam_beta_1": BELOW_ONE,
    "adam_beta_2": BELOW_ONE,
    "adam_lr_ratio": NON_NEGATIVE,
    "adam_weight_decay": NON_NEGATIVE,
    "beta_2_decay": NON_POSITIVE,
    "clip_threshold": POSITIVE,
    "epsilon_1": NON_NEGATIVE,
    "epsilon_2": NON_NEGATIVE,
    "factor": FINITE,
    "initial_accumulator_value": NON_NEGATIVE,
    "learning_rate_power": NON_POSITIVE,
    "l1_regularization_strength": NON_NEGATIVE,
    "l2_regularization_strength": NON_NEGATIVE,
    "l2_shrinkage_regularization_strength": NON_NEGATIVE,
    "beta": NON_NEGATIVE,
    "shampoo_beta": BELOW_ONE,
    "momentum": KEPT,
    "dampening": KEPT,
    "ema_momentum": KEPT,
    "min_scale": NON_NEGATIVE,
    "muon_a": FINITE,
    "muon_b": FINITE,
    "muon_c": FINITE,
    "rms_rate": NON_NEGATIVE,
    "threshold": POSITIVE,
    "max_value": POSITIVE,
    "max_norm": POSITIVE,
    "clipvalue": POSITIVE,
    "clipnorm": POSITIVE,
    "global_clipnorm": POSITIVE,
    "clipping": POSITIVE,
    "eta": NON_NEGATIVE,
    "gamma": NON_NEGATIVE,
    "min_value": NON_NEGATIVE,
    "rate": FRACTION,
    "initial_scale": Range(2.0**-24, 2.0**127),
    "loss_scale": POSITIVE,
    "loss_scale_factor": POSITIVE,
    "momentum_decay": NON_NEGATIVE,
    "schedule_decay": NON_NEGATIVE,
    # PyTorch's names
    "alpha": BELOW_ONE,
    "lr": NON_NEGATIVE,
    "betas[0]": BELOW_ONE,
    "betas[1]": BELOW_ONE,
    "eps": NON_NEGATIVE,
    # Optax's
    "b1": BELOW_ONE,
    "b2": BELOW_ONE,
    "eps_root": NON_NEGATIVE,
}


_declared: dict[str, tuple[Range, ...]] = {}


def check_declared(name: str, allowed: Range) -> None:
    """Requires a range that a hyperparameter of a link of one's own may have: no wider than that of its name everywhere.

    Raises:
      TypeError: it is no `Range`.
      ValueError: it is not within the range that the table has for the name.
    """
    if not isinstance(allowed, Range):
        raise TypeError(f"the range of {name} must be a Range; got {allowed!r} ({type(allowed).__name__})")
    if name in RANGES and not RANGES[name].covers(allowed):
        raise ValueError(
            f"{name} must be {RANGES[name]} everywhere, since states are read by names; got the range of {allowed}: "
            "choose another name"
        )


def declare_range(name: str, allowed: Range) -> None:
    """Notes what a hyperparameter that the table has not may be: a state is read by names, without the link."""
    if name not in RANGES:
        others = _declared.get(name, ())
        if not any(_says_all(other, allowed) for other in others):
            _declared[name] = (*(other for other in others if not _says_all(allowed, other)), allowed)


def _says_all(allowed: Range, other: Range) -> bool:
    """Whether whatever the other allows is allowed without it."""
    return allowed.covers(other) and allowed.high_apart <= other.high_apart


def range_of(name: str) -> Allowed:
    """The range of a name; of one that the table has not, what links of one's own have declared, or else any finite number."""
    declared = (RANGES[name],) if name in RANGES else _declared.get(name, (FINITE,))
    return declared[0] if len(declared) == 1 else Either(declared)


def as_used(value: Any, dtype: Any = None) -> tuple[float, str]:
    """The number as it will be in a dtype, JAX's default float if none is given, and the name of that dtype.

    XLA flushes subnormal numbers to 0.
    """
    dtype = jax.dtypes.canonicalize_dtype(float) if dtype is None else jnp.dtype(dtype)
    with np.errstate(over="ignore", under="ignore"):
        used = float(np.asarray(as_float(value), dtype))
    return (0.0 if abs(used) < jnp.finfo(dtype).tiny else used), dtype.name


def becomes_another(value: float, used: float, allowed: Allowed) -> bool:
    """Whether a number does something else as it is used than as it is written: as 0, or as the upper end of some ranges."""
    return used != value and (used == 0 or allowed.sets_apart(used))


def is_in_range(value: Any, allowed: Allowed, dtype: Any = None, *, computed: bool = False) -> bool:
    """Whether a number lies in a range, and does so still in the dtype in which it is used; see :func:`check_range`.

    An end is rounded as the number was: 0.1 lies in [0, 0.1], and so does `float32(0.1)`, which is larger.
    """
    number, own = as_float(value), _float_dtype(value)
    used, dtype = as_used(number, dtype)
    is_same = computed or not becomes_another(number, used, allowed)
    return is_same and allowed.has(number, own) and allowed.has(used, _narrower(own, dtype))


def _float_dtype(value: Any) -> Any:
    """The dtype of an array of floats, None for other numbers."""
    dtype = getattr(value, "dtype", None)
    return dtype if dtype is not None and jnp.issubdtype(dtype, jnp.floating) else None


def _narrower(own: Any, dtype: Any) -> Any:
    return dtype if own is None else min(own, dtype, key=lambda dtype: jnp.finfo(dtype).nmant)


def check_range(
    name: str,
    value: Any,
    allowed: Range | None = None,
    *,
    dtype: Any = None,
    where: str | None = None,
    computed: bool = False,
) -> None:
    """Requires a concrete number, or scalar array, to lie in a range: that of its name, if none is given.

    It must do so still in `dtype`, JAX's default float if none is given; `where` says what has that dtype. A number other than
    0 must not become 0, unless it was `computed`, as a rate that has decayed.
    """
    if is_traced(value):
        return
    _require(name, value, allowed or range_of(name), dtype, where, computed=computed)


def check_number(name: str, value: Any, allowed: Range, *, computed: bool = False) -> None:
    """Requires a Python number in a range; see :func:`check_range`."""
    if not is_number(value):
        raise TypeError(f"{name} must be {allowed}; got {value!r} ({type(value).__name__})")
    _require(name, value, allowed, computed=computed)


def _require(
    name: str, value: Any, allowed: Allowed, dtype: Any = None, where: str | None = None, *, computed: bool = False
) -> None:
    """Requires a number to lie in a range, and to do so still in the dtype in which it is used."""
    if is_in_range(value, allowed, dtype, computed=computed):
        return
    number, (used, dtype) = as_float(value), as_used(value, dtype)
    what = f"{name} must be {allowed}; got {number!r}"
    if not allowed.has(number, _float_dtype(value)):
        raise ValueError(what)
    becomes = "overflows" if math.isinf(used) else "is flushed to 0" if used == 0 else f"rounds to {used:g}"
    raise ValueError(
        f"{what}, which {becomes} in {dtype}{f', the dtype in which {where} is computed' if where else ''}"
    )


def check_hyperparam(name: str, value: Any, allowed: Range | None = None) -> None:
    """Requires a number in range (that of its name, if none is given), a real scalar array, or a callable."""
    if callable(value):
        takes_step(name, value)
        return
    if is_array(value):
        check_real_scalar(name, value)
    elif not is_number(value):
        raise TypeError(
            f"{name} must be {allowed or range_of(name)}, a scalar array, a schedule (a callable of the step) or a callable of no "
            f"arguments; got {value!r} ({type(value).__name__})"
        )
    check_range(name, value, allowed)


def takes_step(name: str, function: Any) -> bool:
    """Whether it is a function of the step; a hyperparameter may else be one of no arguments, and no other."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some builtins have none; a callable of the step is the common case
        return True
    if _binds(signature, 0):
        return True
    if _binds(signature):
        return False
    raise TypeError(
        f"{name} must be callable with the step or with no arguments; got {function!r} with signature {signature}"
    )


def _binds(signature: inspect.Signature, *args: Any) -> bool:
    try:
        signature.bind(*args)
    except TypeError:
        return False
    return True


def check_scalar(name: str, value: Any, allowed: Range, *, computed: bool = False) -> None:
    """Requires a number in range or a real scalar array, whose value is looked at if it is concrete."""
    check_real_scalar(name, value, str(allowed))
    check_range(name, value, allowed, computed=computed)


def check_real_scalar(name: str, value: Any, allowed: str = "a number") -> None:
    """Requires a number or a real scalar array; any of them, NaN too."""
    if not (hasattr(value, "dtype") and hasattr(value, "shape")):
        if not is_number(value):
            raise TypeError(f"{name} must be {allowed}, or a scalar array; got {value!r} ({type(value).__name__})")
    elif value.shape != () or not (
        jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
    ):
        raise ValueError(f"{name} must be a real scalar; got an array of shape {value.shape}, dtype {value.dtype}")


def check_weight(value: Any) -> None:
    """Requires a call's weight to be a real scalar, 0 or of a size whose products with gradients stay in float32's range."""
    check_scalar("weight", value, NON_NEGATIVE, computed=True)  # what float32 flushes to 0 is refused below
    if not is_traced(value) and as_float(value) and as_float(value) not in WEIGHTS:
        raise ValueError(f"weight must be 0 or {WEIGHTS}; got {value!r}")


def check_integer(name: str, value: Any, *, minimum: int, maximum: int = LARGEST_INTEGER) -> int:
    """Requires a Python integer, at least `minimum` and at most `maximum`."""
    if is_traced(value):
        raise TypeError(
            f"{name} must be a Python integer, known before tracing; got a traced value. Under optax.inject_hyperparams, "
            f'name it in static_args=("{name}",).'
        )
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be an integer >= {minimum}; got {value!r} ({type(value).__name__})")
    integer = operator.index(value)
    if integer < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}; got {integer}")
    if integer > maximum:
        what = ", the largest int32" if maximum == LARGEST_INTEGER else ""
        raise ValueError(f"{name} must be an integer <= {maximum}{what}; got {as_float(integer):g}")
    return integer


def check_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False; got {value!r} ({type(value).__name__})")
    return bool(value)


def check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    """Requires one of a few strings or integers."""
    if isinstance(value, bool) or not isinstance(value, int | str) or value not in allowed:
        raise ValueError(f"{name} must be {', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}; got {value!r}")
    return value


def check_function(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be a function; got {value!r} ({type(value).__name__})")


def check_dtype(name: str, value: Any) -> str | None:
    """The name of a floating-point dtype, or None."""
    if value is None:
        return None
    try:
        dtype = jnp.dtype(value)
    except TypeError as error:
        raise TypeError(f"{name} must be a floating-point dtype or None; got {value!r}") from error
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be a floating-point dtype or None; got {dtype.name}")
    return dtype.name


def check_storage(name: str, value: Any) -> str | None:
    """The name of a dtype that holds numbers of float32's range, or None: moments are squares, and small."""
    dtype = check_dtype(name, value)
    if dtype is None or (jnp.finfo(dtype).tiny <= jnp.finfo(jnp.float32).tiny and jnp.dtype(dtype).itemsize > 1):
        return dtype
    info = jnp.finfo(dtype)
    raise ValueError(
        f"{name} must have the range of float32, as bfloat16, float32 and float64 have; got {dtype}, which holds "
        f"{float(info.tiny):.1e} to {float(info.max):.1e}: smaller numbers would become 0. Use bfloat16 to store 2 bytes"
    )


def check_identifier(name: str, value: Any) -> str:
    """A dot or a slash in a key would corrupt some checkpoints silently, so names are identifiers."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string; got {value!r} ({type(value).__name__})")
    if not value.isidentifier():
        raise ValueError(f"{name} must be an identifier (letters, digits, underscores); got {value!r}")
    return value


def check_axis_name(value: Any, name: str = "axis_name") -> str | tuple[str, ...] | None:
    """The name of a mesh axis, several, or None."""
    if isinstance(value, list | tuple):  # a list is what JSON makes of a tuple
        value = tuple(value)
    axes = value if isinstance(value, tuple) else (value,)
    if value is not None and not all(isinstance(axis, str) for axis in axes):
        raise TypeError(f"{name} must be a string, a tuple of strings or None; got {value!r}")
    return value


def check_axes(name: str, value: Any, *, several: bool = True) -> tuple[int, ...]:
    """The axes of an array, as a tuple: an integer or, if allowed, several different ones."""
    axes = tuple(value) if several and isinstance(value, list | tuple) else (value,)
    if not axes or any(isinstance(axis, bool) or not hasattr(type(axis), "__index__") for axis in axes):
        allowed = "an integer or a sequence of integers" if several else "an integer"
        raise TypeError(f"{name} must be {allowed}; got {value!r}")
    if len(set(axes)) < len(axes):
        raise ValueError(f"{name} must not have an axis twice; got {value!r}")
    return tuple(operator.index(axis) for axis in axes)


def check_real_dtype(name: str, dtype: Any) -> None:
    """Requires the dtype of real numbers: bools and complex numbers would be cast to some."""
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"{name} must be a real number; got dtype {dtype}")


def check_values(name: str, values: Any) -> None:
    """Requires real numbers, and of those that are known that each lies in the range of its name."""
    check_real_dtype(name, getattr(values, "dtype", np.dtype(float)))
    if not is_traced(values):
        for number in np.ravel(np.asarray(values)):
            check_range(name, number)
