"""The command line: `optchain --help`. Needs `pip install "optchain[demo]"`."""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

from optchain.cli.errors import UserError
from optchain.interop.packages import EXTRAS

INTERRUPTED = 130  # what a shell reports for a program that SIGINT ended
MISTAKE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code. A mistake gets one line on stderr and code 2, never a traceback."""
    for size in ("COLUMNS", "LINES"):  # 0 where nobody knows: then nothing would be printed
        if os.environ.get(size, "").strip() == "0":
            del os.environ[size]
    try:
        import typer

        from optchain.cli.app import app
    except KeyboardInterrupt:
        return INTERRUPTED
    except ModuleNotFoundError as error:
        return _fail(_missing(error))
    # The base class of typer's usage errors has no public name, and moved between its versions.
    usage_error = cast(type[Exception], typer.BadParameter.__mro__[2])
    for theirs in ("absl", "asyncio"):  # Orbax tells there, at length, what it raises too
        logging.getLogger(theirs).setLevel(logging.CRITICAL)
    # Where a write fails, Orbax leaves the others that it had planned.
    warnings.filterwarnings("ignore", r"coroutine '.*async_serialize.*' was never awaited", RuntimeWarning)
    hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(_but_of_closed_loops, hook)
    try:
        code = typer.main.get_command(app).main(arguments, "optchain", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except usage_error as error:
        message = cast(Any, error).format_message()
        return _fail(message) if message else MISTAKE  # without a command typer shows the help, and has nothing to add
    except ModuleNotFoundError as error:
        return _fail(_missing(error))
    except OSError as error:
        hook = sys.unraisablehook  # for what threads of Orbax's still have to say of a disk that is full
        return _fail(str(error))
    except UserError as error:
        return _fail(str(error))
    finally:
        sys.unraisablehook = hook


def _but_of_closed_loops(hook: Callable[[Any], Any], what: Any) -> None:
    """Where one of the writes fails that Orbax makes at once, the others find its event loop closed, each with a traceback."""
    if not (isinstance(what.exc_value, RuntimeError) and str(what.exc_value) == "Event loop is closed"):
        hook(what)


def _missing(error: ModuleNotFoundError) -> str:
    """What to install; an error that is no missing package is raised on."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "optchain"):
        raise error
    return (
        f'this command needs {package}, which is not installed: pip install "optchain[{EXTRAS.get(package, "demo")}]"'
    )


def _fail(message: str) -> int:
    sys.stderr.write(f"optchain: {' '.join(message.split())}\n")
    return MISTAKE
