"""The layers of the package: imports run down, never in a circle, and the picture in the documentation is drawn from them.

`python tests/test_layers.py` draws it anew.
"""

import ast
import dataclasses
import functools
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "pictures" / "layers.svg"

LAYERS = (
    ("cli",),
    ("race", "verification", "testing"),
    ("interop",),
    ("optchain",),
    ("recipes", "training"),
    ("presets",),
    ("wrappers", "rows"),
    ("schedules", "rules", "transforms"),
    ("core",),
)
"""From the top down: a package imports what stands below it. `optchain` is the public names."""
HEIGHT = {package: height for height, layer in enumerate(reversed(LAYERS)) for package in layer}
BELOW = {"jax", "numpy", "optax"}
"""What `import optchain` may need besides Python."""


@dataclasses.dataclass(frozen=True, order=True)
class Import:
    """A module that imports another, of ours or of others."""

    module: str
    imported: str
    deferred: bool
    """Whether it stands in a function, and runs when that is called."""

    def __str__(self) -> str:
        return f"{self.module} → {self.imported}{' (in a function)' if self.deferred else ''}"


def modules_in(root: Path) -> dict[str, Path]:
    names = ((path, path.relative_to(root).with_suffix("").parts) for path in sorted((root / "optchain").rglob("*.py")))
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in names}


def imports_in(modules: dict[str, Path]) -> Iterator[Import]:
    for module, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [
            node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        ]
        deferred = {inner for function in functions for inner in ast.walk(function)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} imports relatively"
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in modules else str(node.module) for name in whole]
            else:
                continue
            yield from (Import(module, name, node in deferred) for name in names)


def package_of(module: str) -> str:
    """The package of a module of ours; `optchain.flax` is of training, and has a short name because it is public."""
    parts = module.split(".")
    return "optchain" if len(parts) == 1 else {"flax": "training"}.get(parts[1], parts[1])


MODULES = modules_in(ROOT)


@functools.cache
def imports() -> list[Import]:
    return sorted(set(imports_in(MODULES)))


def ours() -> list[Import]:
    return [found for found in imports() if found.imported.partition(".")[0] == "optchain"]


def runs_up(found: Import) -> bool:
    above, below = package_of(found.module), package_of(found.imported)
    return above != below and HEIGHT[above] < HEIGHT[below]


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of a circle, or none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def graph_of(pairs: Iterator[tuple[str, str]]) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for a, b in pairs:
        if a != b:
            graph.setdefault(a, set()).add(b)
    return graph


def packages() -> dict[str, set[str]]:
    return graph_of((package_of(found.module), package_of(found.imported)) for found in ours())


def test_every_module_stands_in_a_layer():
    assert {package_of(module) for module in MODULES} == HEIGHT.keys()


def test_imports_run_down():
    assert [str(found) for found in ours() if runs_up(found)] == []


def test_the_layers_above_the_core_hardly_cast():
    """Rules and links see leaves made wide and scalars made ready for them: a cast of their own is a dtype known twice."""
    casts = [
        f"{path.relative_to(ROOT)}:{number}"
        for module, path in modules_in(ROOT).items()
        if not module.startswith("optchain.core")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"trees\.(astype|cast|wide)\b", line)
    ]
    assert len(casts) <= 10, casts


def test_no_packages_import_each_other_in_a_circle():
    assert circle_in(packages()) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circle_in(graph_of((found.module, found.imported) for found in ours())) == []


def loaded_by(*modules: str, at_once: bool) -> set[str]:
    """The modules of ours that these import, and those import; with what functions import, or what is imported at once."""
    below: dict[str, list[str]] = {}
    for found in ours():
        if not (at_once and found.deferred):
            below.setdefault(found.module, []).append(found.imported)
    loaded, left = set(), [*modules]
    while left:
        module = left.pop()
        if module not in loaded:
            loaded.add(module)
            left += below.get(module, [])
    return loaded


def test_what_import_optchain_loads_needs_jax_and_optax_only():
    loaded = loaded_by("optchain", at_once=True)
    assert "optchain.core.transformation" in loaded
    needed = {f.imported.partition(".")[0]: str(f) for f in imports() if f.module in loaded and not f.deferred}
    assert needed.keys() - {"optchain", *BELOW} - sys.stdlib_module_names == set(), needed


def test_the_command_line_has_no_module_that_no_command_runs():
    """What only benchmarks or tests import stands in `benchmarks/`, which is not installed."""
    run = loaded_by("optchain.cli.__main__", at_once=False)
    parents = {module.rpartition(".")[0] for module in MODULES}
    assert {module for module in MODULES if package_of(module) == "cli"} - run - parents == set()


@pytest.mark.parametrize("deferred", [False, True])
def test_an_import_that_runs_up_and_a_circle_are_seen(tmp_path, deferred):
    for package, text in {"core": "import optchain.presets.a", "presets": "from optchain.core import a"}.items():
        folder = tmp_path / "optchain" / package
        folder.mkdir(parents=True)
        (folder / "a.py").write_text(f"def f():\n    {text}\n" if deferred else text)
    found = sorted(set(imports_in(modules_in(tmp_path))))
    assert [str(each) for each in found if runs_up(each)] == [
        "optchain.core.a → optchain.presets.a" + " (in a function)" * deferred
    ]
    assert circle_in(graph_of((each.module, each.imported) for each in found))


# The picture ----------------------------------------------------------------------------------------------------------

WIDTH, HALF, TALL, ROW, MARGIN = 780, 75, 34, 74, 20
COLUMNS = {
    "cli": 380, "race": 150, "verification": 380, "testing": 690, "interop": 150, "optchain": 380, "recipes": 150,
    "training": 380, "presets": 150, "wrappers": 380, "rows": 590, "schedules": 130, "rules": 300, "transforms": 470,
    "core": 410,
}  # fmt: skip
"""Where each package stands, so that no arrow runs through another."""
WIDE = {
    "optchain": ("optchain: the public names", 115),
    "core": ("core: the object, its kinds, chain, gate, rule, slot", 350),
}


def reduced(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows without those that a longer way makes superfluous."""

    def reached(start: str, skip: str) -> set[str]:
        seen: set[str] = set()
        left = [node for node in graph.get(start, ()) if node != skip]
        while left:
            node = left.pop()
            if node not in seen:
                seen.add(node)
                left += graph.get(node, ())
        return seen

    return sorted((a, b) for a, below in graph.items() for b in below if b not in reached(a, skip=b))


def draw() -> str:
    """The packages by layers, and which imports which, as SVG."""
    tops = {package: MARGIN + number * ROW for number, layer in enumerate(LAYERS) for package in layer}
    at_once = {(package_of(f.module), package_of(f.imported)) for f in ours() if not f.deferred}

    def nearest(package: str, x: int) -> int:
        """Where an arrow that comes from x meets the package."""
        reach = WIDE.get(package, ("", HALF))[1] - 20
        return min(max(x, COLUMNS[package] - reach), COLUMNS[package] + reach)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {2 * MARGIN + ROW * (len(LAYERS) - 1) + TALL}" '
        'font-family="sans-serif" font-size="14">',
        "<title>The packages of optchain: each imports what its arrows lead to, and what those lead to</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#7b8591"/></marker></defs>',
        '<g stroke="#7b8591" stroke-width="1.5" marker-end="url(#tip)">',
    ]
    for above, below in reduced(packages()):
        if tops[above] == tops[below]:
            side = 1 if COLUMNS[below] > COLUMNS[above] else -1
            y = tops[above] + TALL // 2
            places = COLUMNS[above] + side * HALF, y, COLUMNS[below] - side * HALF, y
        else:
            end = nearest(below, COLUMNS[above])
            places = nearest(above, end), tops[above] + TALL, end, tops[below]
        dash = "" if (above, below) in at_once else ' stroke-dasharray="5 4"'
        lines.append(f'<path d="M{places[0]} {places[1]} {places[2]} {places[3]}"{dash}/>')
    lines.append("</g>")
    for package, x in COLUMNS.items():
        label, half = WIDE.get(package, (package, HALF))
        lines.append(
            f'<rect x="{x - half}" y="{tops[package]}" width="{2 * half}" height="{TALL}" rx="5" fill="#e3eff4" stroke="#0b7fab"/>'
            f'<text x="{x}" y="{tops[package] + 22}" text-anchor="middle" fill="#1d2b33">{label}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


def test_the_picture_in_the_documentation_is_of_these_imports():
    assert PICTURE.read_text(encoding="utf-8") == draw(), "draw it anew: python tests/test_layers.py"


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(draw(), encoding="utf-8")
