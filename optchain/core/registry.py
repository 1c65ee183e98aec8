"""The registry: functions that build transformations, by name.

It is filled when modules are imported, and is what a saved config is looked up in: a name in data imports nothing.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, overload

import optax

from optchain.core import arguments
from optchain.core.calls import bind
from optchain.core.identity import FACTORIES
from optchain.core.optax_link import as_transformation
from optchain.core.slot import note_links, slot_names
from optchain.core.transformation import Transformation
from optchain.core.values import NAME, Ordered

P = ParamSpec("P")
Builder = Callable[P, Transformation]


@overload
def register(
    factory: Callable[P, optax.GradientTransformation], /, *, name: str | None = None, ordered: Iterable[str] = ()
) -> Builder[P]: ...
@overload
def register(
    *, name: str | None = None, ordered: Iterable[str] = ()
) -> Callable[[Callable[P, optax.GradientTransformation]], Builder[P]]: ...
def register(
    factory: Callable[..., optax.GradientTransformation] | None = None,
    /,
    *,
    name: str | None = None,
    ordered: Iterable[str] = (),
) -> Any:
    """Makes a function that builds a transformation one of optchain's: with a config, a `repr`, equality, pickling.

    The arguments of the call become the `config`; their names and the registered name are what a saved config holds.

    Args:
      factory: a function that returns a `Transformation`, or any Optax transformation.
      name: the registered name; the function's own by default.
      ordered: the arguments whose dicts are read in order, such as patterns of which the first that is found decides: recipes that
        differ in it are not equal, and a config keeps it, in whatever order a file has its keys.

    Returns:
      The function, whose result carries `name` and `config`. A call with an unknown argument raises an error that suggests
      the right name.

    Raises:
      TypeError: an argument without a name of its own: `**kwargs`, or one before a `/`; `ordered` as a string.
      ValueError: the name is no identifier, or is taken by another function or as that of a slot; or `ordered` names no argument.

    Example:
      >>> import optax, optchain
      >>> @optchain.register
      ... def optax_noise(eta, gamma=0.55):
      ...     return optax.add_noise(eta, gamma, key=0)
      >>> optax_noise(0.1)
      optax_noise(0.1)
    """
    if factory is None:
        return functools.partial(register, name=name, ordered=ordered)
    arguments.check_function("factory", factory)
    registered = _checked_name(factory.__name__ if name is None else name)
    signature = inspect.signature(factory)
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"{registered} must have arguments with names, which a config holds; got {parameter}")

    if isinstance(ordered, str):
        raise TypeError(f"ordered must be a list of names of arguments; got {ordered!r}")
    ordered = frozenset(ordered)
    if unknown := ordered - signature.parameters.keys():
        raise ValueError(f"ordered must name arguments of {registered}; got {', '.join(sorted(unknown))}")

    @functools.wraps(factory)
    def build(*args: Any, **kwargs: Any) -> Transformation:
        bound = bind(registered, signature, args, kwargs)
        made = as_transformation(factory(*args, **kwargs), registered.rpartition(".")[2])
        bound.apply_defaults()
        for argument in ordered:
            if isinstance(bound.arguments[argument], Mapping):
                bound.arguments[argument] = Ordered(bound.arguments[argument])
        return made.built_by(build, bound)

    known = FACTORIES.get(registered)
    if known is not None and (known.__module__, known.__qualname__) != (factory.__module__, factory.__qualname__):
        raise ValueError(
            f"name {registered!r} is taken by {known.__module__}.{known.__qualname__}: give another, register(name=…)"
        )
    setattr(build, NAME, registered)
    FACTORIES[registered] = build
    note_links([registered.rpartition(".")[2]], numbered=True)
    return build


def _checked_name(name: Any) -> str:
    """A name that a link may have in a state; a dialect stands before it, as in `torch.adam`."""
    for part in name.split(".") if isinstance(name, str) else [name]:
        arguments.check_identifier("the registered name", part)
    own = name.rpartition(".")[2]
    if own in slot_names():
        raise ValueError(
            f"a transformation cannot be called {own!r}: it is the name of a slot; give another, register(name=…)"
        )
    return name
