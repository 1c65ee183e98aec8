"""Pages that are made when the site is built: one a transformation, from the registry and its docstring; the benchmarks; the notebooks;
the programs of the cookbook; the gallery.
"""

import base64
import functools
import inspect
import json
import logging
import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

import calls
import cookbook
import gallery
import links
import optchain
import optchain.presets.keras_adamw
import pictures
import runs
from optchain.cli.race import chart
from optchain.cli.race.results import from_json
from optchain.core.registry import FACTORIES

log = logging.getLogger("mkdocs.hooks")
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"

AROUND_OTHERS = {"chain", "decay_first", "freeze", "masked", "multi_optimizer"}
GROUPS = {
    "Gates": lambda module, made: made is not None and made.kind == "gate",
    "Parameter links": lambda module, made: made is not None and made.kind == "parameter",
    "Gradient links": lambda module, made: True,
}
PRESETS = {
    "presets.keras.": "Presets: Keras",
    "presets.torch.": "Presets: PyTorch",
    "presets.optax": "Presets: Optax",
    "presets.keras_adamw": "Presets: keras-adamw",
    "presets.soap": "Presets: from papers",
    "presets.muon_adamw": "Presets: from papers",
}
ORDER = [*reversed(GROUPS), "Around other transformations", *dict.fromkeys(PRESETS.values())]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, and the pictures that others show."""
    pages: dict[str, list[tuple[str, str]]] = {}
    for name, factory in sorted(FACTORIES.items()):
        if not factory.__module__.startswith("optchain."):
            continue
        made, code = _example(name)
        group = "Around other transformations" if name in AROUND_OTHERS else _group(factory.__module__, made)
        pages.setdefault(group, []).append((name, _summary(factory)))
        files.append(File.generated(config, f"transformations/{name}.md", content=_page(name, factory, code)))
        if made is not None:
            picture = pictures.draw(made, code)
            files.append(File.generated(config, f"transformations/{name}.svg", content=picture))
    for name, picture in {"coordinates": pictures.coordinates(), **runs.drawn()}.items():
        files.append(File.generated(config, f"guide/{name}.svg", content=picture))
    files.append(File.generated(config, "transformations/index.md", content=_index(pages)))
    listed = [{group: [{name: f"transformations/{name}.md"} for name, _ in pages[group]]} for group in ORDER]
    config.nav = [
        {"Transformations": ["transformations/index.md", *listed]} if "Transformations" in entry else entry
        for entry in config.nav or []
    ]
    for name, picture in cookbook.drawn().items():
        files.append(File.generated(config, f"cookbook/{name}.svg", content=picture))
    for name, (_, made, steps) in gallery.schedules().items():
        files.append(File.generated(config, f"schedules/{name}.svg", content=pictures.schedule(made, steps)))
    files.append(File.generated(config, "race.svg", content=_race_picture()))
    shown = {
        group: [name for name, _ in pages[group] if files.get_file_from_path(f"transformations/{name}.svg")]
        for group in ORDER
    }
    files.append(File.generated(config, "gallery.md", content=gallery.page(shown)))
    for picture in sorted(RESULTS.rglob("*.png")):
        place = f"images/{picture.relative_to(RESULTS).as_posix()}"
        files.append(File.generated(config, place, abs_src_path=str(picture)))
    for name in ("CHANGELOG", "CONTRIBUTING"):
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        files.append(File.generated(config, f"{name.lower()}.md", content=text.replace("](docs/", "](")))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for made_file in _notebook(notebook, config):
            files.append(made_file)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Shows the programs of the cookbook, and the benchmarks' charts, which lie outside of the site, with their own notes on costs."""
    if page.file.src_uri.startswith("cookbook/"):
        return cookbook.shown(page.file.src_uri, markdown)
    if "{{ schedules }}" in markdown:
        markdown = markdown.replace("{{ schedules }}", gallery.schedule_cards())
    if "{{ race }}" in markdown:
        markdown = markdown.replace("{{ race }}", _race())
    for folder in ("spikes", "additions"):
        if (place := f"{{{{ {folder} }}}}") in markdown:
            markdown = markdown.replace(place, (RESULTS / folder / "table.md").read_text(encoding="utf-8"))
    markdown = markdown.replace("](../../benchmarks/results/", "](../images/")
    markdown = markdown.replace("](../benchmarks/results/", "](images/")
    if "{{ benchmarks }}" not in markdown:
        return markdown
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    _, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    return markdown.replace("{{ benchmarks }}", "".join(f"## {section}" for section in sections))


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Leads from the names in the text to their pages."""
    own = [name for name, factory in FACTORIES.items() if factory.__module__.startswith("optchain.")]
    addresses = {name: f"transformations/{name}/" for name in own}
    pages = {name: "" if at == page.url else get_relative_url(at, page.url) for name, at in addresses.items()}
    return links.linked(html, pages, links.listed())


@functools.cache
def _race_drawn() -> str:
    """The race that is kept with the benchmarks, in the colours of the page."""
    kept = json.loads((RESULTS / "race" / "race.json").read_text(encoding="utf-8"))
    return chart.svg([from_json(result) for result in kept["results"]], kept["settings"]["level"])


def _race_picture() -> str:
    """Likewise as a file: in colours for white and for black."""
    return _race_drawn().replace("currentColor", chart.INK)


def _race() -> str:
    """What came out of the race that is kept with the benchmarks: its command, its picture, its tables."""
    folder = RESULTS / "race"
    if not (folder / "race.json").exists():
        return ""
    kept = json.loads((folder / "race.json").read_text(encoding="utf-8"))
    place, tables = kept["place"], (folder / "table.md").read_text(encoding="utf-8")
    picture = _race_drawn()  # in the page itself, where it has the colours of the page, in the dark too
    return (
        f"## What came out\n\n    {kept['command']}\n\n"
        f"{place['date']}, {place['device']}, {place['cores']} cores, Python {place['python']}, jax {place['versions']['jax']}. "
        f'{kept["caption"]}\n\n<figure class="race">{picture}</figure>\n\n{tables}'
    )


def _example(name: str) -> tuple[optchain.Transformation | None, str]:
    """The transformation that the picture is of, and its code."""
    if name in calls.NO_PICTURE:
        return None, ""
    code = f"optchain.{calls.CALLS.get(name, f'{name}()')}"
    if name not in calls.CALLS and _needs_arguments(FACTORIES[name]):
        log.info("%s has no picture: docs/hooks/calls.py has no call of it", name)
        return None, ""
    return eval(code, {"optchain": optchain}), code  # noqa: S307 - the calls that stand beside this file


def _needs_arguments(factory: Any) -> bool:
    parameters = inspect.signature(factory).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is p.empty and p.kind not in variadic for p in parameters)


def _group(module: str, made: optchain.Transformation | None) -> str:
    for part, group in PRESETS.items():
        if f".{part}" in module + ".":
            return group
    return next(group for group, belongs in GROUPS.items() if belongs(module, made))


def _summary(factory: Any) -> str:
    return (factory.__doc__ or "").strip().partition("\n")[0].rstrip(":")


def _page(name: str, factory: Any, code: str) -> str:
    source = f"{factory.__module__}.{factory.__name__}"
    shown = f"![what {name} does to an update]({name}.svg)\n\n`{code}` on a gradient that fades, with noise.\n\n"
    options = "    options:\n      heading: Signature\n      toc_label: Signature\n"
    return f"# {name}\n\n{shown if code else ''}::: {source}\n{options}"


def _index(pages: dict[str, list[tuple[str, str]]]) -> str:
    lines = [
        "# Transformations",
        "",
        "Every transformation by what it acts on. See [Chains and order](../guide/chains.md).",
    ]
    for group in ORDER:
        lines += ["", f"## {group}", "", "| transformation | what it does |", "|---|---|"]
        lines += [f"| [`{name}`]({name}.md) | {summary} |" for name, summary in pages.get(group, [])]
    return "\n".join(lines) + "\n"


# Notebooks -----------------------------------------------------------------------------------------------------------


def _notebook(path: Path, config: MkDocsConfig) -> list[File]:
    """A notebook as it is kept: its text, its code, its outputs."""
    parts, files = [], []
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(_typeset(source))
            continue
        parts.append(f"```python\n{source}\n```")
        for index, output in enumerate(cell["outputs"]):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}_{number}_{index}.png"
                content = base64.b64decode("".join(data["image/png"]))
                files.append(File.generated(config, f"notebooks/{name}", content=content))
                parts.append(f"![output]({name})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    heading, _, rest = "\n\n".join(parts).partition("\n")
    content = f"{heading}\n\n[Download this notebook]({path.name}){{ download }}\n{rest}\n"
    files.append(File.generated(config, f"notebooks/{path.name}", abs_src_path=str(path)))
    return [*files, File.generated(config, f"notebooks/{path.stem}.md", content=content)]


def _typeset(markdown: str) -> str:
    """Formulas as MathML, which browsers show by themselves: nothing is fetched, no script runs."""

    def typeset(found: re.Match[str]) -> str:
        return latex2mathml.converter.convert(found[1], display="block")

    return re.sub(r"\$\$(.+?)\$\$", typeset, markdown, flags=re.DOTALL)
