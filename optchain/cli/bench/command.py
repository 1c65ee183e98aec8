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
    topology: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of timing, compile for TPUs that are not there, such as v5e:2x2; may be repeated. Needs libtpu.",
            metavar="TOPOLOGY",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Timed calls of each contender, at the least.", min=1)] = 40,
    as_json: AsJson = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write bench.json and bench.png, or tpu.json, to this folder.", metavar="DIR"),
    ] = None,
) -> None:
    """Times training recipes side by side: optchain, Optax, Keras on JAX, PyTorch.

    One process, the same trees, the contenders taking turns; every step is compiled, warmed up, and updates parameters and
    state in place. Ratios first: on a machine that does other things too they mean something, and times do not. Also
    counts the bytes that each step moves and needs, and the seconds to trace and compile it.

    A library that is not installed is named and left out. Nothing is downloaded.
    """
    trees, recipes = tree or [TreeName.TRANSFORMER], recipe or list(RecipeName)
    if topology:
        report = _compile(topology, trees, recipes)
    else:
        report = _measure(trees, recipes, contender or list(ContenderName), steps)
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=1))
    else:
        _show(report)
    if not topology and not report.rows:
        raise UserError(
            f"nothing was timed: {'; '.join(sorted({f'{left.contender}, {left.reason}' for left in report.left_out}))}"
        )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        written = out / ("tpu.json" if topology else "bench.json")
        written.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
        typer.echo(f"see {written}", err=as_json)
        if not topology:
            from optchain.cli.bench import chart

            chart.draw(out / "bench.png", report)
            typer.echo(f"see {out / 'bench.png'}", err=as_json)


def _show(report: "Report") -> None:
    from optchain.cli.bench import table
    from optchain.cli.screen import console

    table.show(console(), report)


def _compile(topologies: list[str], trees: list[TreeName], recipes: list[RecipeName]) -> "Report":
    import jax

    jax.config.update("jax_platforms", "cpu")  # with libtpu here, JAX would look for TPUs
    from optchain.cli.bench import ahead, results
    from optchain.cli.bench.contenders.steps import UnavailableError
    from optchain.cli.bench.trees import TREES
    from optchain.cli.screen import progress

    report = results.Report(results.place())
    total = len(trees) * len(topologies) * len(ahead.LAYOUTS) * len(recipes) * len(ahead.CONTENDERS)
    with progress(total) as advance:
        for tree in trees:
            for topology in topologies:
                try:
                    report.compiled += ahead.compile_all(topology, TREES[tree][1](), recipes, advance=advance)
                except UnavailableError as error:
                    raise typer.BadParameter(str(error), param_hint="--topology") from error
    return report


def _measure(trees: list[TreeName], recipes: list[RecipeName], contenders: list[ContenderName], steps: int) -> "Report":
    from optchain.cli.bench import results, suite
    from optchain.cli.bench.bandwidth import in_place_gigabytes_per_second
    from optchain.cli.screen import progress

    report = results.Report(results.place(in_place_gigabytes_per_second=in_place_gigabytes_per_second(), steps=steps))
    with progress(suite.stages(trees, recipes, contenders, steps)) as advance:
        suite.run(report, trees, recipes, contenders, steps, advance)
    return report
