"""`optchain verify`."""

import dataclasses
import enum
import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optchain.cli.arguments import AsJson
from optchain.cli.errors import UserError

if TYPE_CHECKING:
    from optchain.verification import Result

EXAMPLE = "optchain verify --peer keras --optimizer AdamW"
FAILED = 1


class PeerName(enum.StrEnum):
    KERAS = "keras"
    TORCH = "torch"
    OPTAX = "optax"


class DtypeName(enum.StrEnum):
    FLOAT32 = "float32"
    FLOAT64 = "float64"


NAMES = {PeerName.KERAS: "Keras", PeerName.TORCH: "PyTorch", PeerName.OPTAX: "Optax"}


def verify(
    peer: Annotated[
        list[PeerName] | None, typer.Option(help="Whom to compare with; may be repeated.", show_default="all")
    ] = None,
    optimizer: Annotated[
        list[str] | None,
        typer.Option(
            help="The peer's name of an optimizer, AdamW; may be repeated.", metavar="NAME", show_default="all"
        ),
    ] = None,
    dtype: Annotated[
        list[DtypeName] | None, typer.Option(help="Of parameters and arithmetic; may be repeated.", show_default="both")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compares every preset with the library whose numbers it promises, on this machine and its accelerator.

    Runs 30 steps of each in both libraries, on gradients of sizes between 1e-3 and 30, in the apply and in the update form,
    and shows the worst error of a leaf: the largest difference over the largest number of its run. float64 shows a wrong
    rule that the rounding of float32 hides.

    A peer that is not installed is named and left out. Exit code 1: an error is above its bound.
    """
    import jax

    from optchain import verification
    from optchain.cli.screen import progress
    from optchain.verification.suite import missing, version

    peers = [NAMES[name] for name in peer or list(PeerName)]
    dtypes = [str(name) for name in dtype or list(DtypeName)]
    left_out = missing(peers)
    cases = [case for case in verification.cases(peers) if not optimizer or case.name in optimizer]
    if not cases:
        raise UserError(_nothing(peers, optimizer, left_out))
    place = {
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "jax": jax.__version__,
        **{name: version(name) for name in peers if name not in left_out},
    }
    results = []
    with progress(len(cases)) as advance:
        for case in cases:
            results += verification.verify([case], dtypes)
            advance(f"{case.peer} {case.name}")
    passed = all(result.passed for result in results)
    if as_json:
        rows = [dataclasses.asdict(result) | {"passed": result.passed} for result in results]
        rows = [row | {"error": None if math.isnan(row["error"]) else row["error"]} for row in rows]
        report = {"place": place, "passed": passed, "results": rows, "left_out": left_out}
        typer.echo(json.dumps(report, indent=1))
    else:
        _show(place, results, left_out)
    if not passed:
        raise typer.Exit(FAILED)


def _nothing(peers: list[str], optimizer: list[str] | None, left_out: dict[str, str]) -> str:
    from optchain import verification

    known = sorted({case.name for case in verification.cases(peers)})
    if known:
        return f"--optimizer {', '.join(optimizer or [])}: there are {', '.join(known)}"
    return "there is nobody to compare with: " + "; ".join(f"{name} is {why}" for name, why in left_out.items())


def _show(place: dict[str, Any], results: list["Result"], left_out: dict[str, str]) -> None:
    from optchain.cli.screen import console, say, show

    screen = console()
    say(screen, ", ".join(f"{name} {value}" for name, value in place.items()))
    rows, styles, sections = [], [], []
    previous = ""
    for apply, update in zip(results[::2], results[1::2], strict=True):
        if apply.peer != previous:
            sections.append(len(rows))
        previous = apply.peer
        good = apply.passed and update.passed
        verdict = "ok" if good else apply.problem or update.problem or "DIFFERS"
        errors = [f"{result.error:.1e}" for result in (apply, update)]
        rows.append([apply.peer, apply.name, apply.dtype, *errors, verdict, f"{apply.bound:.0e}", apply.recipe])
        styles.append("" if good else "bold red")
    header = ("peer", "optimizer", "dtype", "apply", "update", "verdict", "bound", "recipe")
    show(screen, header, rows, right=["apply", "update", "bound"], styles=styles, sections=sections)
    bad = sum(not result.passed for result in results)
    say(screen, f"{len(results)} comparisons, {bad or 'none'} above the bound")
    for name, why in left_out.items():
        say(screen, f"left out: {name}: {why}")
    say(screen, "left out: keras-adamw: it runs on TensorFlow 1 and 2 only; the tests compare with recorded runs of it")
