"""`optchain bench`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optchain.cli.arguments import AsJson
from optchain.cli.bench.names import ContenderName, RecipeName, TreeName
from optchain.cli.errors import UserError

if TYPE_CHECKING:
    from optchain.cli.bench.results import Report

EXAMPLE = "optchain bench --recipe adamw --recipe accumulate --tree leaf"


def bench(
    recipe: Annotated[
        list[RecipeName] | None, typer.Option(help="What to run; may be repeated.", show_default="all")
    ] = None,
    tree: Annotated[
        list[TreeName] | None,
        typer.Option(help="The parameters to run it on; may be repeated.", show_default=TreeName.TRANSFORMER),
    ] = None,
    contender: Annotated[
        list[ContenderName] | None, typer.Option(help="Who runs it; may be repeated.", show_default="all")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of timing, compile for a device that is not there: h100, a100, v5e, v4, …, a TPU topology such as v5e:2x2; "
            "or for this cpu. May be repeated. Needs its compiler, and no device.",
            metavar="TARGET",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Timed calls of each contender, at the least.", min=1)] = 40,
    as_json: AsJson = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write bench.json and bench.png, or compiled.json, to this folder.", metavar="DIR"),
    ] = None,
) -> None:
    """Times training recipes side by side: optchain, Optax, Keras on JAX, PyTorch.

    One process, the same trees, the contenders taking turns; every step is compiled, warmed up, and updates parameters and
    state in place. Ratios first: on a machine that does other things too they mean something, and times do not. Also
    counts the bytes that each step moves and needs, and the seconds to trace and compile it.

    A library that is not installed is named and left out. Nothing is downloaded.
    """
    trees, recipes = tree or [TreeName.TRANSFORMER], recipe or list(RecipeName)
    if target:
        report = _compile(target, trees, recipes, contender)
    else:
        report = _measure(trees, recipes, contender or list(ContenderName), steps)
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=1))
    else:
        _show(report)
    if not target and not report.rows:
        raise UserError(
            f"nothing was timed: {'; '.join(sorted({f'{left.contender}, {left.reason}' for left in report.left_out}))}"
        )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        written = out / ("compiled.json" if target else "bench.json")
        written.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
        typer.echo(f"see {written}", err=as_json)
        if not target:
            from optchain.cli.bench import chart

            chart.draw(out / "bench.png", report)
            typer.echo(f"see {out / 'bench.png'}", err=as_json)


def _show(report: "Report") -> None:
    from optchain.cli.bench import table
    from optchain.cli.screen import console

    table.show(console(), report)


def _compile(
    targets: list[str], trees: list[TreeName], recipes: list[RecipeName], contenders: list[ContenderName] | None
) -> "Report":
    import jax

    jax.config.update("jax_platforms", "cpu")  # with a device's compiler here, JAX would look for the device
    from optchain.cli.bench import ahead, results
    from optchain.cli.bench.contenders.steps import UnavailableError
    from optchain.cli.bench.trees import TREES
    from optchain.cli.screen import progress

    report = results.Report(results.place())
    chosen = [name for name in ahead.CONTENDERS if contenders is None or name in contenders]
    total = len(trees) * len(recipes) * len(chosen) * sum(len(ahead.layouts_of(target)) for target in targets)
    with progress(total) as advance:
        for tree in trees:
            shapes = TREES[tree][1]()
            for target in targets:
                try:
                    report.compiled += ahead.compile_all(
                        target, shapes, recipes, chosen, advance=advance, tree=tree.value
                    )
                except UnavailableError as error:
                    raise typer.BadParameter(str(error), param_hint="--target") from error
    return report


def _measure(trees: list[TreeName], recipes: list[RecipeName], contenders: list[ContenderName], steps: int) -> "Report":
    from optchain.cli.bench import results, suite
    from optchain.cli.bench.bandwidth import in_place_gigabytes_per_second
    from optchain.cli.screen import progress

    report = results.Report(results.place(in_place_gigabytes_per_second=in_place_gigabytes_per_second(), steps=steps))
    with progress(suite.stages(trees, recipes, contenders, steps)) as advance:
        suite.run(report, trees, recipes, contenders, steps, advance)
    return report
