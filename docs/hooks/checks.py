"""What the built site must have: no link to nowhere, and a search that finds what people look for."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

SEARCHED = ("wsd", "tensorboard", "weight decay", "8-bit")
ELSEWHERE = ("http:", "https:", "mailto:", "data:", "javascript:")


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    site = Path(config.site_dir).resolve()
    if broken := broken_links(site):
        raise PluginError("links to nowhere:\n" + "\n".join(broken))
    found = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    text = "\n".join(f"{entry['title']} {entry['text']}" for entry in found).lower()
    if missing := [words for words in SEARCHED if words not in text]:
        raise PluginError(f"the search does not find {missing}")


def broken_links(site: Path) -> list[str]:
    """The links of all pages to files and headings that are not there."""
    pages = {p: p.read_text(encoding="utf-8") for p in site.rglob("*.html") if p.name != "404.html"}
    anchors = {page: set(re.findall(r'(?:id|name)="?([^"\s>]+)', html)) for page, html in pages.items()}
    broken = []
    for page, html in pages.items():
        for link in re.findall(r'(?:href|src)="([^"]+)"', html):
            if link.startswith(ELSEWHERE):
                continue
            place, _, anchor = link.partition("#")
            target = (page.parent / unquote(place)).resolve() if place else page
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (anchor and target in anchors and unquote(anchor) not in anchors[target]):
                broken.append(f"{page.relative_to(site)}: {link}")
    return sorted(set(broken))
