"""The folder of a race: `race.json`, and what is done of it, group by group, so that a race that was killed goes on."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optchain.cli.errors import UserError
from optchain.cli.files import written
from optchain.cli.race.settings import Settings
from optchain.cli.train.folder import check_folder, made
from optchain.race import Group

PROGRAM = "optchain race"
VERSION = 1


class Folder:
    """Where a race is kept. A file is complete or not there."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def about(self) -> Path:
        return self.path / "race.json"

    def holds_race(self) -> bool:
        return self.about.is_file()

    def begin(self, settings: Settings, recipes: dict[str, str], tasks: dict[str, str]) -> None:
        """Says what the race is: what was chosen, the recipes that were meant, and a digest of each task.

        Raises:
          UserError: the folder holds another race, or something else.
        """
        check_folder(self.path, "--out")
        if self.holds_race():
            if self.settings() != settings:
                raise UserError(f"--out {self.path} holds a race of other settings: choose another folder")
            kept = self.read()
            for what, now in {"recipe": recipes, "task": tasks}.items():
                for name, value in now.items():
                    if self._entry(kept, f"{what}s").get(name) != value:
                        why = "" if what == "recipe" else " (its functions, its data or the version of JAX has changed)"
                        raise UserError(
                            f"--out {self.path} holds a race in which the {what} {name} was another{why}: choose another folder"
                        )
            return
        if self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(f"--out {self.path} is not empty: choose another folder")
        made(self.path, "--out")
        self.write({"settings": settings.to_json(), "recipes": recipes, "tasks": tasks})

    def settings(self) -> Settings:
        """Those with which the race was begun.

        Raises:
          UserError: the folder holds no race of this version.
        """
        try:
            return Settings.from_json(self._entry(self.read(), "settings"))
        except TypeError as error:
            raise UserError(f"{self.about} was not written by this version of {PROGRAM}: {error}") from error

    def read(self) -> dict[str, Any]:
        if not self.path.is_dir():
            raise UserError(f"--resume {self.path}: there is no such folder")
        if not self.holds_race():
            raise UserError(f"--resume {self.path}: the folder holds no race")
        try:
            kept = json.loads(self.about.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.about} is damaged: {error}") from error
        if not isinstance(kept, dict):
            raise UserError(f"{self.about} is damaged: it holds no object")
        if (kept.get("program"), kept.get("version")) != (PROGRAM, VERSION):
            raise UserError(f"{self.about} was not written by this version of {PROGRAM}")
        return kept

    def _entry(self, kept: dict[str, Any], name: str) -> dict[str, Any]:
        if not isinstance(kept.get(name), dict):
            raise UserError(f"{self.about} is damaged: it has no {name}")
        return kept[name]

    def write(self, values: dict[str, Any]) -> None:
        _write(self.about, {"program": PROGRAM, "version": VERSION, **values})

    # Groups ----------------------------------------------------------------------------------------------------------

    def unfinished(self, task: str, recipe: str, name: str) -> Path:
        """Where a group is kept that is not done."""
        return self.path / "groups" / task / recipe / f"{name}.unfinished"

    def group(self, task: str, recipe: str, name: str, seeds: Sequence[int], factors: Sequence[float]) -> Group | None:
        """What a group of these members did, None if it is not done.

        Raises:
          UserError: the file is damaged, or of other members.
        """
        path = self._path(task, recipe, name)
        if not path.exists():
            return None
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            group = Group.from_json(kept)
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged: {error}. Delete it, and it is run again") from error
        if (group.seeds, group.factors) != (list(seeds), list(factors)):
            raise UserError(f"{path} is damaged: it is of other members. Delete it, and it is run again")
        return group

    def keep(self, task: str, recipe: str, name: str, group: Group) -> None:
        path = self._path(task, recipe, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, dataclasses.asdict(group))
        shutil.rmtree(self.unfinished(task, recipe, name), ignore_errors=True)

    def _path(self, task: str, recipe: str, name: str) -> Path:
        return self.path / "groups" / task / recipe / f"{name}.json"


def _write(path: Path, values: Any) -> None:
    with written(path) as partial:
        partial.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
