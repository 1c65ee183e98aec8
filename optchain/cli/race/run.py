"""The race itself: for each recipe on each task a search for the rate, then the seeds that are compared."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from rich.console import Console

from optchain.cli.errors import UserError
from optchain.cli.race.folder import Folder
from optchain.cli.race.progress import progress
from optchain.cli.race.results import Result
from optchain.cli.race.settings import ScheduleName, Settings
from optchain.cli.screen import say
from optchain.race import Entrant, Group, Program, Task, constant, cosine, rates
from optchain.race.members import StoppedError

SHAPES = {ScheduleName.COSINE: cosine, ScheduleName.CONSTANT: constant}


def race(
    settings: Settings,
    tasks: Sequence[Task],
    entrants: Sequence[Entrant],
    folder: Folder,
    console: Console,
    stop: Callable[[], bool],
) -> list[Result]:
    """All results, in order; those that the folder has already are taken from there.

    Raises:
      StoppedError: `stop` asked for it.
      UserError: a recipe does not go with a task.
    """
    made = []
    for task in tasks:
        say(console, f"{task.name}: {task.about or 'a task of your own'}, {task.steps} steps")
        for entrant in entrants:
            result = _Contest(settings, task, entrant, folder, console, stop).result()
            made.append(result)
            say(console, f"  {entrant.name}: {result.mean:.4g} ± {result.standard_error:.2g}{_at(result)}")
    return made


def _at(result: Result) -> str:
    rates = set(result.rates.values())
    if not rates:
        return " at its own rate"
    return f" at a rate of {rates.pop():.3g}" if len(rates) == 1 else ""


def digest(task: Task) -> str:
    """What tells a task from another of the same name.

    Raises:
      UserError: it cannot be run.
    """
    try:
        task.shapes()
        return task.digest()
    except (TypeError, ValueError) as error:
        raise UserError(f"{task.name}: {error}") from error


class _Contest:
    """One recipe on one task. Its program is compiled when there is something left to run."""

    def __init__(
        self,
        settings: Settings,
        task: Task,
        entrant: Entrant,
        folder: Folder,
        console: Console,
        stop: Callable[[], bool],
    ):
        self.settings, self.task, self.entrant = settings, task, entrant
        self.folder, self.console, self.stop = folder, console, stop
        with _told(entrant, task):
            program = Program(task, entrant, settings.seeds, SHAPES[ScheduleName(settings.schedule)](task.steps))
            if entrant.is_schedule_free(program.params):
                program.shape = constant(task.steps)  # the average takes the place of the decay
        self.program = program

    def result(self) -> Result:
        factor, tried = self._factor()
        seeds = self.settings.compared
        group = self._group("compared", seeds, [factor] * len(seeds))
        return Result(
            self.task.name,
            self.entrant.name,
            self.program.parameters,
            self.program.state_bytes / self.program.parameters,
            {name: base * factor for name, base in self.program.rates.items()},
            factor,
            {f"{rates.factor(place):g}": losses for place, losses in sorted(tried.items())},
            group,
        )

    def _factor(self) -> tuple[float, dict[int, list[float]]]:
        """The factor to compare at, and what was tried for it."""
        with _told(self.entrant, self.task):
            kept = self.entrant.factor(self.program.rates)
        if kept is not None:
            return kept, {}
        losses: dict[int, list[float]] = {}
        tried: dict[int, list[float]] = {}
        while wanted := rates.next_places(losses):
            members = [(place, seed) for place in wanted for seed in self.settings.tuned]
            for first in range(0, len(members), self.program.width):
                some = members[first : first + self.program.width]
                name = f"rates-{some[0][0]}-to-{some[-1][0]}-{first}"
                group = self._group(name, [seed for _, seed in some], [rates.factor(place) for place, _ in some])
                for (place, _), final, lost in zip(some, group.final, group.lost, strict=True):
                    tried.setdefault(place, []).append(float(final))
                    losses.setdefault(place, []).append(np.inf if lost else float(final))
        return rates.factor(rates.best_place(losses)), tried

    def _group(self, name: str, seeds: Sequence[int], factors: Sequence[float]) -> Group:
        where = (self.task.name, self.entrant.name, name)
        kept = self.folder.group(*where, seeds, factors)
        if kept is not None:
            return kept
        if self.stop():
            raise StoppedError
        about = f"{self.entrant.name}, {'seeds to compare' if name == 'compared' else 'rates'}"
        with progress(self.console, self.task.steps, about) as advance, _told(self.entrant, self.task):
            unfinished = self.folder.unfinished(*where)
            group = self.program.run(seeds, factors, folder=unfinished, advance=advance, stop=self.stop)
        for seed, curve in zip(seeds, group.held_out, strict=True):
            if curve[0] is None:
                raise UserError(
                    f"{self.task.name}: the held-out loss of fresh parameters is not finite, of seed {seed}"
                )
        self.folder.keep(*where, group)
        return group


@contextlib.contextmanager
def _told(entrant: Entrant, task: Task) -> Iterator[None]:
    """Turns what a recipe and a task do not agree on into a line that names both."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UserError(f"{entrant.name} on {task.name}: {error}") from error
