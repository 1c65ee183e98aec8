"""Code in running text that is a public name leads to its page: `adamw`, `optchain.adamw(…)`, `make_step`, `schedules.CosineDecay`.

A transformation's name leads to the page made of it. `adamw` is a name of several libraries: in a paragraph or a row that speaks of
another one it leads nowhere, `presets.optax.adamw` to its page. Other names are what the pages of docs/api list after `:::`, so that a name
that is added there is linked from everywhere.
"""

import bisect
import re
from html import unescape
from pathlib import Path

API = Path(__file__).parents[1] / "api"

# What is left as it is: blocks of code, headings, and links with all they hold.
_PIECES = re.compile(
    r"(?P<kept><(pre|a|h1|h2|h3|h4|autoref|svg)\b.*?</\2>)|<code>(?P<code>[^<]*)</code>",
    re.DOTALL,
)
_BLOCK = re.compile(r"</?(?:p|tr|li|dd|dt|pre|h[1-6])\b")
_ELSEWHERE = re.compile(r"<code>(?:presets\.|optax|torch|nnx|flax)")
_NAME = re.compile(r"(?:optchain\.)?(?P<name>[A-Za-z_][\w.]*)(?:\(.*\))?", re.DOTALL)


def listed() -> dict[str, str]:
    """What the pages of the API list, by the names that text has for it, and what each is called in whole."""
    names: dict[str, str] = {}
    for page in sorted(API.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for path, options in re.findall(r"^::: (optchain[\w.]*)\n((?:    .*\n)*)", text, re.MULTILINE):
            short = path.removeprefix("optchain.")
            names.setdefault(short, path)
            module, _, last = short.rpartition(".")
            if not module.startswith(("core.trees", "interop")):  # `read`, `copy` alone may be anything
                names.setdefault(last, path)
            names.setdefault(f"{module.rpartition('.')[2]}.{last}".lstrip("."), path)  # `trees.cast`
            if members := re.search(r"members: \[(.*)\]", options):
                for member in members[1].split(", "):
                    names.setdefault(f"{short}.{member}", f"{path}.{member}")
                    if member[0].isupper():  # a class, which is its own name wherever it stands
                        names.setdefault(member, f"{path}.{member}")
    return names


def linked(html: str, pages: dict[str, str], names: dict[str, str]) -> str:
    """`html` with links around the code in it that is one of the names.

    Args:
      html: A page's content.
      pages: Addresses by names, relative to this page. A name whose address is empty is this page's own.
      names: Identifiers by names, for autorefs.
    """
    several = {name.rpartition(".")[2] for name in pages if name.startswith("presets.")}
    edges = [0, *(found.start() for found in _BLOCK.finditer(html)), len(html)]

    def of_another(place: int) -> bool:
        after = bisect.bisect_right(edges, place)
        return _ELSEWHERE.search(html, edges[after - 1], edges[after]) is not None

    def link(found: re.Match[str]) -> str:
        if found["kept"] is not None or not (match := _NAME.fullmatch(unescape(found["code"]))):
            return found[0]
        name = match["name"]
        if name in several and not found["code"].startswith("optchain.") and of_another(found.start()):
            return found[0]
        if name in pages:
            return f'<a href="{pages[name]}">{found[0]}</a>' if pages[name] else found[0]
        if name in names:
            return f'<autoref optional identifier="{names[name]}">{found[0]}</autoref>'
        return found[0]

    return _PIECES.sub(link, html)
