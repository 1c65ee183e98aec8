"""The packages that readers of files need, and what installs them."""

import importlib
from typing import Any

EXTRAS = {"h5py": "interop", "safetensors": "interop", "torch": "torch", "keras": "keras"}
"""The extra of optchain that has a package."""


def import_package(package: str) -> Any:
    """A package, imported.

    Raises:
      ModuleNotFoundError: it is not installed; the message says what installs it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(install_hint(package, EXTRAS[package]), name=package) from error


def install_hint(package: str, extra: str) -> str:
    return f'this needs {package}, which is not installed: pip install "optchain[{extra}]"'
