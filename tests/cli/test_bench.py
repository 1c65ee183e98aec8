"""`optchain bench` on trees so small that it takes seconds: who is in the report, what is counted, what is left out."""

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from optchain.cli.app import app
from optchain.cli.bench import trees
from optchain.cli.bench.contenders import optax_chain, ours
from optchain.cli.bench.names import ContenderName, RecipeName, TreeName
from optchain.cli.bench.recipes import RECIPES
from optchain.cli.bench.traffic import Traffic, copied_arrays, kernels, traffic

ON_JAX = [ContenderName.APPLY, ContenderName.UPDATE, ContenderName.OPTAX, ContenderName.KERAS]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_tree = ("two small layers", lambda: trees.transformer(layers=2, width=8))
    monkeypatch.setitem(trees.TREES, TreeName.TRANSFORMER, small_tree)


def bench(*arguments: str) -> dict:
    result = CliRunner().invoke(app, ["bench", "--json", "--steps", "4", *arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.long
@pytest.mark.thorough
@pytest.mark.usefixtures("small")
def test_every_contender_has_a_row_and_the_files_say_what_the_report_says(tmp_path: Path) -> None:
    report = bench("--recipe", "adamw", "--recipe", "accumulate", "--out", str(tmp_path), *only(ON_JAX))
    assert {(row["recipe"], row["contender"]) for row in report["rows"]} == {
        (recipe, contender) for recipe in ("adamw", "accumulate") for contender in ON_JAX
    }
    assert json.loads((tmp_path / "bench.json").read_text()) == report
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    for row in report["rows"]:
        assert row["milliseconds"] > 0
        assert row["state_bytes"] == pytest.approx(8 if row["recipe"] == "adamw" else 12, rel=0.02)
        assert (row["over_apply"] == 1) == (row["contender"] == ContenderName.APPLY)
        assert (row["waiting_milliseconds"] is None) == (row["recipe"] == "adamw")


@pytest.mark.for_release
@pytest.mark.usefixtures("small")
def test_what_cannot_run_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.import_module

    def without_torch(name: str, package: str | None = None) -> object:
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return find(name, package)

    monkeypatch.setattr(importlib, "import_module", without_torch)
    chosen = [ContenderName.APPLY, ContenderName.KERAS, ContenderName.TORCH_FUSED]
    report = bench("--recipe", "skip-nonfinite", *only(chosen))
    assert [row["contender"] for row in report["rows"]] == [ContenderName.APPLY]
    assert {entry["contender"]: entry["reason"] for entry in report["left_out"]} == {
        "keras": "Keras has no argument that skips non-finite gradients",
        "torch-fused": "torch is not installed",
    }


def only(contenders: list[ContenderName]) -> list[str]:
    return [word for contender in contenders for word in ("--contender", contender)]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", [name for name in RECIPES if name not in (RecipeName.SKIP_NONFINITE, RecipeName.CLIP_BY_NORM)], ids=str
)
def test_optchain_and_optax_run_the_same_recipe(name: RecipeName) -> None:
    """Else the times would compare different things. What differs is where ε stands, which tiny gradients feel."""
    rng = np.random.default_rng(0)
    start, *grads = ({"kernel": rng.normal(size=(8, 4)), "bias": rng.normal(size=4)} for _ in range(9))
    start = jax.tree.map(jnp.float32, start)
    ends = []
    for functions in (ours.apply_form(RECIPES[name]), optax_chain.step_functions(RECIPES[name])):
        params, state, step = start, functions.init(start), jax.jit(functions.step)
        for g in grads:
            params, state = step(params, state, jax.tree.map(jnp.float32, g))
        ends.append(params)
    for before, mine, theirs in zip(*map(jax.tree.leaves, (start, *ends)), strict=True):
        assert jnp.linalg.norm(mine - theirs) <= 0.03 * jnp.linalg.norm(theirs - before)


@pytest.mark.parametrize(
    ("name", "floor"),
    [
        (RecipeName.ADAMW, 28),
        (RecipeName.GLOBAL_CLIP, 32),
        (RecipeName.AVERAGE, 36),
        (RecipeName.SKIP_NONFINITE, 32),
        (RecipeName.ACCUMULATE, (3 * 12 + 32) / 4),
        (RecipeName.SGD, 20),
    ],
)
def test_the_floor_of_a_recipe_is_what_must_be_read_and_written(name: RecipeName, floor: float) -> None:
    assert RECIPES[name].floor() == floor


def test_traffic_is_what_instructions_read_and_write() -> None:
    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    assert traffic(jax.jit(lambda a, b: 2 * a + b * b).lower(x, x).compile().as_text()) == Traffic(12000, 12000)


def test_traffic_looks_at_each_branch_of_a_condition() -> None:
    x, flag = jax.ShapeDtypeStruct((1000,), jnp.float32), jax.ShapeDtypeStruct((), jnp.bool_)
    program = jax.jit(lambda flag, a: jax.lax.cond(flag, lambda a: jnp.sin(a) + 1, lambda a: a, a), donate_argnums=1)
    counted = traffic(program.lower(flag, x).compile().as_text())
    assert counted.least < 100
    assert 8000 <= counted.most < 8100


def test_traffic_counts_a_loop_of_unknown_length_as_a_gate_and_another_by_its_rounds() -> None:
    x, flag = jax.ShapeDtypeStruct((1000,), jnp.float32), jax.ShapeDtypeStruct((), jnp.bool_)

    def gate(flag, a):
        return jax.lax.while_loop(lambda carry: carry[0], lambda carry: (~carry[0], jnp.sin(carry[1]) + 1), (flag, a))[
            1
        ]

    counted = traffic(jax.jit(gate, donate_argnums=1).lower(flag, x).compile().as_text())
    rounds = lambda a: jax.lax.fori_loop(0, 5, lambda i, a: jnp.sin(a) + 1, a)  # noqa: E731
    five = traffic(jax.jit(rounds, donate_argnums=0).lower(x).compile().as_text())
    assert counted.least < 100
    assert 8000 <= counted.most < 8100
    assert five.least == five.most
    assert 40000 <= five.most < 40500


PROGRAM = """
HloModule step

%body (carry: (pred[], f32[8])) -> (pred[], f32[8]) {
  %carry = (pred[], f32[8]{0}) parameter(0)
  %pending = pred[] get-tuple-element(%carry), index=0
  %x = f32[8]{0} get-tuple-element(%carry), index=1
  %done = pred[] not(%pending)
  %copied = f32[8]{0} copy(%x)
  ROOT %out = (pred[], f32[8]{0}) tuple(%done, %copied)
}

%condition (carry: (pred[], f32[8])) -> pred[] {
  %carry = (pred[], f32[8]{0}) parameter(0)
  ROOT %pending = pred[] get-tuple-element(%carry), index=0
}

ENTRY %main (flag: pred[], x: f32[8]) -> f32[8] {
  %flag = pred[] parameter(0)
  %x = f32[8]{0} parameter(1)
  %kept = pred[] copy(%flag)
  %start = (pred[], f32[8]{0}) tuple(%kept, %x)
  %loop = (pred[], f32[8]{0}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


def test_kernels_and_copied_arrays_are_counted() -> None:
    assert kernels(PROGRAM) == Traffic(1, 3)
    assert copied_arrays(PROGRAM) == 1


def test_an_unknown_target_is_one_clear_line() -> None:
    for target, names in {"abacus:1x1": "libtpu", "abacus": "h100"}.items():
        result = CliRunner().invoke(app, ["bench", "--target", target, "--recipe", "sgd"])
        assert result.exit_code == 2
        assert names in result.stderr
