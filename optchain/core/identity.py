"""What a transformation is, whatever it does: a name, a config, the code that builds it, equality by value."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Self

import jax
import optax

from optchain.core.values import call_code, freeze, given_arguments, on_host, registered_name

FACTORIES: dict[str, Callable[..., Any]] = {}
"""The functions that build transformations, by their registered names: `register` fills it."""


class Identity(optax.GradientTransformationExtraArgs):
    """An Optax transformation that knows how it was built.

    It is immutable, a pytree without leaves, and equal to any other that was built from the same arguments, so that building a
    preset twice does not make a jitted step compile twice. `init, update = tx` works. Subclasses define what it does.

    Attributes:
      name: what it is called in a chain's state.
      config: the arguments it was built from.
    """

    name: str
    config: Mapping[str, Any]
    _factory: Callable[..., Self] | None
    _arguments: inspect.BoundArguments | None

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_static(cls)

    @classmethod
    def _build(cls, attributes: Mapping[str, Any]) -> Self:
        # The two functions of the tuple, and those of no other object: they must find `self`.
        def init(params: Any) -> Any:
            return self._public_init(params)

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
            return self._public_update(updates, state, params, extra)

        self = tuple.__new__(cls, (init, update))
        defaults = {"name": "transformation", "config": MappingProxyType({}), "_factory": None, "_arguments": None}
        given = {name: value for name, value in attributes.items() if not _is_cached(cls, name)}
        vars(self).update(defaults | given)
        return self

    def _changed(self, **attributes: Any) -> Self:
        return self._build(vars(self) | attributes)

    def _public_init(self, params: Any) -> Any:
        raise NotImplementedError

    def _public_update(self, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
        raise NotImplementedError

    def built_by(self, factory: Callable[..., Any], bound: inspect.BoundArguments) -> Self:
        """This transformation as the work of `factory` called with these arguments."""
        values = bound.arguments = {name: on_host(value) for name, value in bound.arguments.items()}
        name = values.get("name") or factory.__name__
        return self._changed(name=name, config=MappingProxyType(values), _factory=factory, _arguments=bound)

    def renamed(self, name: str) -> Self:
        """The same transformation under the name that it has in a chain."""
        return self._changed(name=name)

    @property
    def is_registered(self) -> bool:
        """Whether a registered factory built it, so that it has a config."""
        return self._factory is not None

    @property
    def registered_name(self) -> str:
        """The name of its factory in the registry."""
        assert self._factory is not None
        return registered_name(self._factory)

    def given(self) -> dict[str, Any]:
        """The arguments of `config` that differ from their defaults."""
        assert self._factory is not None
        return given_arguments(inspect.signature(self._factory), self.config)

    def code(self, values: Mapping[str, Any], *, one_line: bool = False) -> str:
        """The call of its factory with these of the arguments in `config`."""
        assert self._factory is not None
        return call_code(self.registered_name, inspect.signature(self._factory), values, one_line=one_line)

    def rebuilt(self, **changes: Any) -> Self:
        """The transformation that the same factory builds with some arguments changed."""
        assert self._factory is not None
        return self._factory(**{**self.config, **changes})

    @functools.cached_property
    def _key(self) -> Any:
        return None if self._factory is None else (self._factory, freeze(dict(self.config)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Identity):
            return NotImplemented
        if self._key is None or other._key is None:
            return self is other
        return self._key == other._key

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return id(self) if self._key is None else hash(self._key)

    def __repr__(self) -> str:
        if self._factory is None:
            return f"<{type(self).__name__} {self.name}>"
        return self.code(self.given())

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Transformation is immutable; build another instead of setting {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Transformation is immutable; {name} cannot be deleted")

    def _replace(self, /, **kwargs: Any) -> Self:  # pyright: ignore  # a NamedTuple's; it would leave `apply` and `config` behind
        raise TypeError(f"a Transformation cannot be taken apart with _replace({', '.join(kwargs)}); build another")

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Self:  # pyright: ignore
        raise TypeError("a Transformation cannot be made from a pair of functions; use chain(link) for an Optax link")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self._factory is None or self._arguments is None:
            raise TypeError(
                f"{self!r} cannot be pickled: it has no config. Build it by a function decorated with register"
            )
        args, kwargs = self._arguments.args, self._arguments.kwargs
        if FACTORIES.get(self.registered_name) is self._factory and self._factory.__module__.startswith("optchain."):
            return _rebuild_named, (self.registered_name, args, kwargs)  # which stays when a file moves
        return _rebuild, (self._factory, args, kwargs)


def _is_cached(cls: type, name: str) -> bool:
    return isinstance(getattr(cls, name, None), functools.cached_property)


def _rebuild(factory: Callable[..., Identity], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Identity:
    return factory(*args, **kwargs)


def _rebuild_named(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Identity:
    return FACTORIES[name](*args, **kwargs)
