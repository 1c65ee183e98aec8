"""The cookbook: each page shows a program of `examples/cookbook`, what it prints, and a picture of what came out of it."""

import contextlib
import functools
import io
import os
import runpy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import pictures

PROGRAMS = Path(__file__).parents[2] / "examples" / "cookbook"
Namespace = Mapping[str, Any]


def path(page: str) -> Path:
    """The program of a page: `cookbook/own-link.md` has `own_link.py`."""
    return PROGRAMS / f"{Path(page).stem.replace('-', '_')}.py"


def title(name: str) -> str:
    """The heading of a program's page."""
    page = Path(__file__).parents[1] / "cookbook" / f"{name.replace('_', '-')}.md"
    return page.read_text(encoding="utf-8").partition("\n# ")[2].partition("\n")[0]


@functools.cache
def run(name: str) -> tuple[Namespace, str] | None:
    """What a program of that name leaves behind, and what it printed; None where a library that it needs is missing."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings(action="ignore"):
            namespace = runpy.run_path(str(PROGRAMS / f"{name}.py"), run_name="__main__")
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in ("equinox", "flax", "h5py", "keras", "orbax", "torch"):
            return None
        raise
    return namespace, printed.getvalue().rstrip()


def shown(page: str, markdown: str) -> str:
    """The page with its program, what that prints, and its picture, in the places that it names."""
    program = path(page)
    if not program.exists():
        return markdown
    ran = run(program.stem)
    where = f"`examples/cookbook/{program.name}`"
    code = f'```python title="{where[1:-1]}"\n{program.read_text(encoding="utf-8").rstrip()}\n```'
    if ran is not None and ran[1]:
        code += f"\n\nIt prints:\n\n```text\n{ran[1]}\n```"
    picture = f"![{ALT[program.stem]}]({program.stem}.svg)" if program.stem in PICTURES and ran is not None else ""
    return markdown.replace("{{ program }}", code).replace("{{ picture }}", picture)


def drawn() -> dict[str, str]:
    """The pictures by the names of their programs, as SVG."""
    ran = {name: run(name) for name in PICTURES}
    return {name: pictures.panels(ALT[name], PICTURES[name](found[0])) for name, found in ran.items() if found}


# The pictures ---------------------------------------------------------------------------------------------------------


def _nnx_average(ran: Namespace) -> list[pictures.Panel]:
    calls = 20 * np.arange(1, len(ran["losses"]) + 1)
    lines = {"the weights": (calls, ran["losses"]), "their average": (calls, ran["of_average"])}
    return [pictures.Panel("loss on clean data", "call", lines, y="log")]


def _warmup_stable_decay(ran: Namespace) -> list[pictures.Panel]:
    first, later = np.arange(200), np.arange(200, 300)
    rates = {
        "the full rate": (np.arange(300), ran["rates"] + ran["more_rates"]),
        "decayed from call 200": (later, ran["down_rates"]),
    }
    losses = {
        "the full rate": (np.concatenate([first, later]), ran["losses"] + ran["more_losses"]),
        "decayed from call 200": (later, ran["down_losses"]),
    }
    return [pictures.Panel("learning rate", "call", rates), pictures.Panel("loss", "call", losses, y="log")]


def _plateau(ran: Namespace) -> list[pictures.Panel]:
    epochs = np.arange(len(ran["losses"]))
    return [
        pictures.Panel("held-out loss", "epoch", {"": (epochs, ran["losses"])}, y="log"),
        pictures.Panel("learning rate", "epoch", {"": (epochs, ran["rates"])}, y="log"),
    ]


def _bfloat16(ran: Namespace) -> list[pictures.Panel]:
    lines = {"float32": ran["float32"], "bfloat16, weights=24": ran["compact"], "bfloat16": ran["plain"]}
    means = {name: (np.arange(4, 300, 8), np.reshape(losses[:296], (-1, 8)).mean(1)) for name, losses in lines.items()}
    return [pictures.Panel("loss, the mean of eight calls", "call", means, widths=(4.5, 1.7, 1.5))]


def _float16(ran: Namespace) -> list[pictures.Panel]:
    calls = np.arange(len(ran["losses"]))
    return [
        pictures.Panel("loss", "call", {"": (calls, ran["losses"])}, y="log"),
        pictures.Panel("loss scale, as a power of two", "call", {"": (calls, np.log2(ran["scales"]))}),
    ]


def _sweep(ran: Namespace) -> list[pictures.Panel]:
    lines = {"": (np.asarray(ran["rates"]), np.asarray(ran["final"]))}
    return [pictures.Panel("loss after 150 calls, of forty runs", "learning rate", lines, "log", "log", marker="o")]


def _range_test(ran: Namespace) -> list[pictures.Panel]:
    lines = {"loss": (ran["rates"], ran["losses"]), "smoothed": (ran["rates"], ran["smooth"])}
    return [pictures.Panel("loss while the rate rises", "learning rate", lines, "log", "log")]


def _survive_nan(ran: Namespace) -> list[pictures.Panel]:
    calls = np.arange(len(ran["losses"]))
    lines = {"skip_nonfinite": (calls, ran["losses"]), "without": (calls, ran["without"])}
    return [pictures.Panel("loss; a NaN at calls 20, 21 and 50", "call", lines, y="log")]


def _own_link(ran: Namespace) -> list[pictures.Panel]:
    return [pictures.Panel("loss", "call", {"": (np.arange(len(ran["losses"])), ran["losses"])}, y="log")]


PICTURES: dict[str, Callable[[Namespace], list[pictures.Panel]]] = {
    "nnx_average": _nnx_average,
    "warmup_stable_decay": _warmup_stable_decay,
    "plateau": _plateau,
    "bfloat16": _bfloat16,
    "float16": _float16,
    "sweep": _sweep,
    "range_test": _range_test,
    "survive_nan": _survive_nan,
    "own_link": _own_link,
}
ALT = {
    "nnx_average": "the averaged weights have the lower and steadier loss",
    "warmup_stable_decay": "one run at the full rate, and one brought down from its checkpoint, whose loss falls",
    "plateau": "each time the held-out loss stalls the rate is halved",
    "bfloat16": "bfloat16 weights stay behind float32 ones; with weights=24 the two curves are one",
    "float16": "the loss scale is halved at each skipped step and doubled after twenty good ones",
    "sweep": "the loss over the learning rate, with one lowest point",
    "range_test": "the loss falls as the rate rises, and then goes astray",
    "survive_nan": "with the gate the loss goes on after a NaN; without it the curve ends",
    "own_link": "the loss of a run with a rule of one's own",
}

jax.config.update("jax_num_cpu_devices", 8)  # read when JAX first looks for devices: the page on ZeRO-1 shows eight
