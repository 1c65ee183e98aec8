"""The whole measurement: every recipe on every tree, the contenders side by side."""

import dataclasses
import gc
import math
from collections.abc import Callable, Sequence

from optchain.cli.bench import trees
from optchain.cli.bench.contenders.steps import UnavailableError
from optchain.cli.bench.names import ContenderName, RecipeName, TreeName
from optchain.cli.bench.programs import Program, prepare
from optchain.cli.bench.recipes import RECIPES, Recipe
from optchain.cli.bench.results import LeftOut, Report, Row
from optchain.cli.bench.timing import Times, take_turns
from optchain.cli.bench.trees import TREES
from optchain.core.trees import Tree

GRADIENT_SIZE = 1e-3
PARAMETER_SIZE = 2e-2

Advance = Callable[[str], None]


def turns(steps: int, recipe: Recipe) -> int:
    """How often each contender's turn comes: whole windows, at least `steps` calls."""
    return math.ceil(steps / recipe.accumulate)


def stages(
    tree_names: Sequence[TreeName],
    recipe_names: Sequence[RecipeName],
    contenders: Sequence[ContenderName],
    steps: int,
) -> int:
    """How often `run` calls `advance`."""
    return len(tree_names) * sum(len(contenders) + turns(steps, RECIPES[name]) for name in recipe_names)


def run(
    report: Report,
    tree_names: Sequence[TreeName],
    recipe_names: Sequence[RecipeName],
    contenders: Sequence[ContenderName],
    steps: int,
    advance: Advance = lambda what: None,
) -> None:
    """Adds the rows to the report, each recipe's as soon as they are there."""
    for tree_name in tree_names:
        shapes = TREES[tree_name][1]()
        params = trees.filled(shapes, seed=0, scale=PARAMETER_SIZE)
        grads = trees.filled(shapes, seed=1, scale=GRADIENT_SIZE)
        for recipe_name in recipe_names:
            _measure(report, tree_name, recipe_name, contenders, params, grads, steps, advance)


def _measure(
    report: Report,
    tree_name: TreeName,
    recipe_name: RecipeName,
    contenders: Sequence[ContenderName],
    params: Tree,
    grads: Tree,
    steps: int,
    advance: Advance,
) -> None:
    recipe = RECIPES[recipe_name]
    where = f"{tree_name}, {recipe_name}"
    programs: dict[ContenderName, Program] = {}
    for contender in contenders:
        advance(f"{where}: compiling {contender}")
        try:
            programs[contender] = prepare(contender, recipe, params, grads)
        except (UnavailableError, ModuleNotFoundError) as error:
            reason = f"{error.name} is not installed" if isinstance(error, ModuleNotFoundError) else str(error)
            report.left_out.append(LeftOut(tree_name, recipe_name, contender, reason))
    times = take_turns(programs, recipe.accumulate, turns(steps, recipe), lambda: advance(f"{where}: running"))
    for contender, program in programs.items():
        report.rows.append(_row(tree_name, recipe_name, contender, program, times, params))
    programs.clear()
    gc.collect()  # Keras's variables are in cycles


def _row(
    tree_name: TreeName,
    recipe_name: RecipeName,
    contender: ContenderName,
    program: Program,
    times: Times[ContenderName],
    params: Tree,
) -> Row:
    recipe, size, counts = RECIPES[recipe_name], trees.size(params), program.counts()
    typical, waiting = times.typical(contender), times.waiting(contender)
    floor = recipe.floor(trees.itemsize(params), counts.state_itemsize)

    def over(reference: ContenderName) -> float | None:
        return times.ratio(contender, reference) if reference in times.seconds else None

    counted = {f.name: getattr(counts, f.name) for f in dataclasses.fields(counts) if f.name != "state_itemsize"}
    return Row(
        tree_name,
        recipe_name,
        contender,
        parameters=size,
        milliseconds=1e3 * typical,
        mean_milliseconds=1e3 * times.mean(contender),
        waiting_milliseconds=None if waiting is None else 1e3 * waiting,
        over_apply=over(ContenderName.APPLY),
        over_update=over(ContenderName.UPDATE),
        gigabytes_per_second=floor * size / typical / 1e9,
        floor_bytes=floor,
        **counted,
    )
