"""Code in the text of the site leads to the page of the name it has."""

import importlib.util
from pathlib import Path

import pytest

import optchain

HOOKS = Path(__file__).parents[1] / "docs" / "hooks"
spec = importlib.util.spec_from_file_location("docs_links", HOOKS / "links.py")
assert spec is not None
assert spec.loader is not None
links = importlib.util.module_from_spec(spec)
spec.loader.exec_module(links)


@pytest.mark.parametrize("code", ["adamw", "optchain.adamw", "optchain.adamw(1e-3, weight_decay=0.1)"])
def test_a_transformation_leads_to_its_page(code):
    html = links.linked(f"<p><code>{code}</code></p>", {"adamw": "../adamw/"}, {})
    assert html == f'<p><a href="../adamw/"><code>{code}</code></a></p>'


@pytest.mark.parametrize(
    "html",
    [
        "<pre><code>adamw</code></pre>",
        '<a href="x"><code>adamw</code></a>',
        '<h2 id="x"><code>adamw</code></h2>',
        "<p><code>optax.adamw</code></p>",
        "<p><code>adamw = 3</code></p>",
    ],
)
def test_blocks_links_headings_and_other_names_stay_as_they_are(html):
    assert links.linked(html, {"adamw": "../adamw/"}, {}) == html


DIALECTS = {"adamw": "../adamw/", "presets.optax.adamw": "../presets.optax.adamw/"}


@pytest.mark.parametrize("block", ["p", "td", "li"])
@pytest.mark.parametrize("other", ["optax.adam", "presets.torch.adam", "torch.optim.AdamW"])
def test_a_name_of_several_libraries_leads_nowhere_beside_another_one(block, other):
    html = f"<{block}><code>{other}</code> and <code>adamw</code></{block}>"
    assert links.linked(html, DIALECTS, {}) == html
    after = links.linked(f"{html}<p><code>adamw</code></p>", DIALECTS, {})
    assert after == f'{html}<p><a href="../adamw/"><code>adamw</code></a></p>'


def test_whole_names_lead_to_the_page_of_their_dialect():
    html = "<p><code>presets.optax.adamw</code> and <code>optchain.adamw</code></p>"
    assert links.linked(html, DIALECTS, {}) == (
        '<p><a href="../presets.optax.adamw/"><code>presets.optax.adamw</code></a> and '
        '<a href="../adamw/"><code>optchain.adamw</code></a></p>'
    )


def test_a_page_does_not_lead_to_itself():
    assert links.linked("<code>adamw</code>", {"adamw": ""}, {}) == "<code>adamw</code>"


def test_every_name_of_the_pages_of_the_api_is_there():
    for path in set(links.listed().values()):
        module, found = optchain, optchain
        for name in path.split(".")[1:]:
            if not hasattr(found, name):
                module = importlib.import_module(f"{module.__name__}.{name}")
                found = module
            else:
                found = getattr(found, name)
                module = found
        assert found is not None


@pytest.mark.parametrize(
    "name",
    ["Hyperparams", "init_sharded", "state_shardings", "value_and_grad", "rows_of", "RowGradient", "make_step",
     "trees.cast", "schedules.CosineDecay", "interop.keras.from_keras"],
)  # fmt: skip
def test_what_users_import_has_an_entry(name):
    assert name in links.listed()
