"""Functions as Python has them: presets get their shared arguments, and the text on these, when they are imported."""

import importlib
import inspect
import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Gives every object the docstring that `help` would show, with its example as a section, and the signature."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None or obj.is_module or obj.is_attribute:
            return
        found = importlib.import_module(obj.module.path)
        for name in obj.path.removeprefix(f"{obj.module.path}.").split("."):
            found = getattr(found, name, None)
        if text := inspect.getdoc(found):
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
        if isinstance(obj, griffe.Function) and callable(found):
            obj.parameters = griffe.Parameters(*map(_parameter, inspect.signature(found).parameters.values()))


def _parameter(parameter: inspect.Parameter) -> griffe.Parameter:
    default = None if parameter.default is parameter.empty else repr(parameter.default)
    kind = griffe.ParameterKind(parameter.kind.description)
    if parameter.kind is parameter.VAR_POSITIONAL:
        default = "()"
    if parameter.kind is parameter.VAR_KEYWORD:
        default = "{}"
    return griffe.Parameter(parameter.name, kind=kind, default=default)
