"""The report of a race: one page that needs nothing else, light or dark as its reader's screen is."""

import html
from collections.abc import Sequence
from pathlib import Path

from optchain.cli.files import written
from optchain.cli.race import chart, table
from optchain.cli.race.results import Result
from optchain.race.statistics import BETTER, WORSE

FEW = 5
CLASSES = {BETTER: "better", WORSE: "worse"}
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{heading}</title>
<style>
:root {{ color-scheme: light dark; --good: light-dark(#0b6e4f, #4fd1a1); --bad: light-dark(#b03024, #ff8a7d); }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 84rem; padding: 1.5rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.3rem 0.8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }}
th:nth-child(1), td:nth-child(1), th:nth-child(3), td:nth-child(3) {{ text-align: left; }}
.better {{ color: var(--good); }} .worse {{ color: var(--bad); }}
.small {{ font-size: 0.85rem; opacity: 0.8; max-width: 60rem; }}
svg {{ min-width: 44rem; width: 100%; height: auto; }}
code {{ overflow-wrap: anywhere; }}
</style>
<h1>{heading}</h1>
<p><code>{command}</code></p>
<p class="small">{place}</p>
<div class="wide">{picture}</div>
{tables}
<p class="small">{caption}</p>
</html>
"""


def write(
    path: Path, results: Sequence[Result], about: dict[str, str], command: str, place: str, caption: str, level: float
) -> None:
    recipes = list(dict.fromkeys(result.recipe for result in results))
    text = PAGE.format(
        heading=html.escape(f"{_listed(recipes, 'recipes')} on {_listed(list(about), 'tasks')}"),
        command=html.escape(command),
        place=html.escape(place),
        picture=chart.svg(results, level),
        tables="\n".join(_table(rows, about[task]) for task, rows in table.by_task(results).items()),
        caption=html.escape(caption),
    )
    with written(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _listed(names: Sequence[str], what: str) -> str:
    return ", ".join(names) if len(names) <= FEW else f"{len(names)} {what}"


def _table(rows: Sequence[Result], about: str) -> str:
    heads = "".join(f"<th>{html.escape(heading)}" for heading in table.HEADINGS)
    lines = []
    for result in rows:
        kind = "" if result.comparison is None else CLASSES.get(result.comparison.verdict, "")
        lines.append(f'<tr class="{kind}">' + "".join(f"<td>{html.escape(cell)}" for cell in table.cells(result)))
    body = "\n".join(lines)
    return f'<h2>{html.escape(table.title(rows, about))}</h2>\n<div class="wide"><table>\n<tr>{heads}\n{body}\n</table></div>'
