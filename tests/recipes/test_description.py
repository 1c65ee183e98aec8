"""`describe`: what a recipe is made of and what its state costs, to the byte, on real parameters or on paper."""

import json
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc

RECIPES = {
    "sgd": lambda: oc.sgd(0.1),
    "momentum": lambda: oc.sgd(0.1, 0.9, moment_dtype="bfloat16"),
    "adam amsgrad": lambda: oc.adam(0.1, amsgrad=True),
    "adamw, everything": lambda: oc.adamw(
        oc.schedules.CosineDecay(0.1, 10),
        jnp.array(0.1),
        global_clipnorm=1.0,
        use_ema=True,
        loss_scale_factor=8.0,
        gradient_accumulation_steps=3,
    ),
    "gates": lambda: oc.dynamic_loss_scale(oc.skip_nonfinite(oc.accumulate(oc.adamw(0.1), 2), 5)),
    "monitored chain": lambda: oc.chain(
        oc.clip_by_global_norm(1.0),
        oc.scale_by_adam(moment_dtype="bfloat16"),
        oc.scale_by_learning_rate(),
        oc.monitor(per_subtree=True),
        oc.average_params(0.9),
        learning_rate=0.1,
    ),
    "optax inside": lambda: oc.chain(("lion", optax.scale_by_lion()), oc.scale_by_learning_rate(0.1)),
    "a bare link": lambda: oc.clip_by_norm(1.0),
}
every_recipe = pytest.mark.parametrize("name", RECIPES)


def params_of(dtype: str) -> Any:
    return {
        "dense": {"kernel": jnp.ones((7, 5), dtype), "bias": jnp.ones(5, dtype)},
        "list": [jnp.ones((), dtype), jnp.ones((0, 3), dtype)],
    }


def nbytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@every_recipe
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_bytes_are_those_of_the_real_state(name: str, dtype: str) -> None:
    tx, params = RECIPES[name](), params_of(dtype)
    described = oc.describe(tx, params)
    state = tx.init(params)
    assert described.state_bytes == nbytes(state)
    assert described.parameter_bytes == nbytes(params)
    assert described.parameters == 41
    assert sum(row.bytes for row in described.rows) == described.state_bytes
    assert described.state_bytes_per_parameter == nbytes(state) / 41


@every_recipe
def test_paper_and_real_parameters_are_described_alike(name: str) -> None:
    tx, params = RECIPES[name](), params_of("float32")
    on_paper = jax.eval_shape(lambda: params)
    assert oc.describe(tx, on_paper) == oc.describe(tx, params)


@every_recipe
def test_the_description_is_data_for_json(name: str) -> None:
    described = oc.describe(RECIPES[name](), params_of("float32"))
    data = json.loads(json.dumps(described.to_dict()))
    assert data["state_bytes"] == described.state_bytes
    assert [row["path"] for row in data["rows"]] == [row.path for row in described.rows]


@every_recipe
def test_each_row_has_a_path_of_its_own_and_the_table_prints_each(name: str) -> None:
    described = oc.describe(RECIPES[name](), params_of("float32"))
    paths = [row.path for row in described.rows]
    assert len(set(paths)) == len(paths)
    table = str(described)
    assert all(row.code in table for row in described.rows)
    assert f"{described.state_bytes_per_parameter:.2f} bytes per parameter" in table
    assert len({line.rstrip() == line for line in table.splitlines()}) == 1


def seven_billion() -> Any:
    """The shapes of a Llama of seven billion parameters, in bfloat16."""
    width, hidden, layers, vocabulary = 4096, 11008, 32, 32000
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16)  # noqa: E731
    layer = {
        "attention": {name: shape(width, width) for name in ("q", "k", "v", "o")},
        "mlp": {"gate": shape(width, hidden), "up": shape(width, hidden), "down": shape(hidden, width)},
        "norms": [shape(width), shape(width)],
    }
    return {
        "embed": shape(vocabulary, width),
        "head": shape(width, vocabulary),
        "norm": shape(width),
        "layers": [layer for _ in range(layers)],
    }


def test_seven_billion_parameters_are_described_without_allocating_them() -> None:
    params = seven_billion()
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert count == 6_738_415_616
    live = {id(array) for array in jax.live_arrays()}
    tracemalloc.start()
    described = oc.describe(oc.adamw(1e-4, use_ema=True, gradient_accumulation_steps=4), params)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max((array.nbytes for array in jax.live_arrays() if id(array) not in live), default=0) < 1000
    assert peak < 100e6
    assert described.parameters == count
    assert described.parameter_bytes == 2 * count
    # mu, nu, the accumulator and the average are float32 for narrow parameters; the rest is scalars.
    assert 0 < described.state_bytes - 16 * count < 100
    assert described.state_bytes_per_parameter == pytest.approx(16, abs=1e-6)
    assert "6,738,415,616 parameters (13.48 GB), state 107.81 GB: 16.00 bytes per parameter" in str(described)


def test_each_rows_state_is_at_its_path() -> None:
    tx, params = oc.adamw(0.1, gradient_accumulation_steps=2, use_ema=True), params_of("float32")
    state, rows = tx.init(params), oc.describe(tx, params).rows
    assert [(row.path, row.depth) for row in rows] == [
        ("adamw", 0),
        ("adamw/accumulate", 1),
        ("adamw/accumulate/inner", 2),
        ("adamw/accumulate/inner/scale_by_adam", 3),
        ("adamw/accumulate/inner/scale_by_learning_rate", 3),
        ("adamw/accumulate/inner/decay_weights", 3),
        ("adamw/average_params", 1),
    ]
    by_path = {row.path: row for row in rows}
    adam = state["accumulate"]["inner"]["scale_by_adam"]
    assert by_path["adamw/accumulate/inner/scale_by_adam"].bytes == nbytes(adam)
    assert by_path["adamw/accumulate/inner/scale_by_adam"].entries == {
        "count": {"int32": 1},
        "mu": {"float32": 41},
        "nu": {"float32": 41},
    }
    own = {key: value for key, value in state["accumulate"].items() if key != "inner"}
    assert by_path["adamw/accumulate"].bytes == nbytes(own)


@pytest.mark.filterwarnings("ignore:muon")  # of leaves that it does not orthogonalize
@pytest.mark.parametrize(
    "make",
    [
        lambda: oc.adamw(0.1, exclude_from_weight_decay=vectors),
        lambda: oc.muon(0.1),
        lambda: oc.muon(0.1, exclude_layers=["bias"]),
    ],
    ids=["adamw", "muon", "muon with layers left out"],
)
def test_code_has_no_address_and_is_the_same_for_two_built_alike(make: Callable[[], oc.Transformation]) -> None:
    first, second = (str(oc.describe(make(), params_of("float32")["dense"])) for _ in range(2))
    assert " at 0x" not in first
    assert first == second


def vectors(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim < 2, params)


def test_a_link_without_state_keeps_nothing() -> None:
    described = oc.describe(oc.clip_by_norm(1.0), params_of("float32"))
    assert (described.state_bytes, described.rows[0].entries) == (0, {})
    assert str(described).splitlines()[2].split() == ["clip_by_norm(1.0)", "-", "-"]


def test_an_optax_transformation_is_described_too() -> None:
    params = params_of("float32")
    described = oc.describe(optax.adam(0.1), params)
    assert described.state_bytes == nbytes(optax.adam(0.1).init(params))


def test_no_parameters_cost_nothing_a_parameter() -> None:
    assert oc.describe(oc.adam(0.1), {}).state_bytes_per_parameter == 0.0


def test_what_is_no_transformation_is_refused() -> None:
    with pytest.raises(TypeError, match="must be an optchain or Optax transformation"):
        oc.describe("adamw", {"w": np.ones(3, np.float32)})


def test_integer_leaves_are_refused_by_name_on_paper_too() -> None:
    with pytest.raises(TypeError, match=r'params\["ids"\] has dtype int32'):
        oc.describe(oc.adam(0.1), {"ids": jax.ShapeDtypeStruct((3,), jnp.int32)})


def test_a_link_within_may_have_the_name_of_an_entry():
    rows = {
        row.path.rpartition("/")[2]: row for row in oc.describe(oc.schedule_free_adamw(0.1), {"w": jnp.ones(3)}).rows
    }
    assert rows["schedule_free"].entries["iterates"] == {"float32": 3}
    assert rows["scale_by_rms"].entries == {"count": {"int32": 1}, "nu": {"float32": 3}}


# What happens to each parameter ---------------------------------------------------------------------------------------

MODEL = {
    "embed": {"w": jnp.ones((4, 2))},
    "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "norm": {"scale": jnp.ones(2)},
}


def row_of(tx: Any, path: str, params: Any = MODEL) -> Any:
    return {row.path: row for row in oc.describe(tx, params).per_parameter}[path]


def many_kinds() -> oc.Transformation:
    body = oc.adamw(1e-3, weight_decay=0.01, global_clipnorm=0.5, exclude_from_weight_decay=["bias$"])
    head = oc.chain(body, oc.scale_by_path({"kernel": 2.0}))
    groups = oc.multi_optimizer(("head", "^dense", head), default=oc.presets.torch.adam(1e-2, weight_decay=0.1))
    return oc.freeze(groups, oc.matching("norm"))


def test_each_parameter_has_a_row_with_its_group_optimizer_rate_decay_clip_and_storage() -> None:
    kernel, bias = row_of(many_kinds(), "dense/kernel"), row_of(many_kinds(), "dense/bias")
    assert (kernel.group, kernel.optimizer, kernel.learning_rate, kernel.rate_factor) == ("head", "adamw", 1e-3, 2.0)
    assert kernel.decay == {"weight_decay": 0.02}  # before the factor of 2
    assert kernel.clips == {"clip_by_global_norm": {"max_norm": 0.5}}
    assert kernel.storage == {"mu": "float32", "nu": "float32"}
    assert kernel.state_bytes == 2 * 4 * 4
    assert (bias.decay, bias.rate_factor) == ({}, 1.0)
    assert any(link.endswith("/decay_weights") for link in kernel.links)
    assert not any(link.endswith("/decay_weights") for link in bias.links)
    embed = row_of(many_kinds(), "embed/w")
    assert (embed.group, embed.optimizer, embed.decay) == ("default", "presets.torch.adam", {"l2_penalty": 0.1})


def test_a_frozen_parameter_has_no_optimizer_no_rate_and_no_storage() -> None:
    row = row_of(many_kinds(), "norm/scale")
    assert (row.group, row.optimizer, row.learning_rate, row.rate_factor) == ("frozen", None, None, 0.0)
    assert (row.decay, row.clips, row.storage, row.state_bytes, row.links) == ({}, {}, {}, 0, ())


def test_what_the_rows_say_of_rate_and_decay_is_what_a_step_does() -> None:
    tx, zeros = many_kinds(), jax.tree.map(jnp.zeros_like, MODEL)
    rates = jax.tree.map(jnp.ones_like, MODEL)
    moved, _ = tx.apply(MODEL, tx.init(MODEL), grads=rates)
    decayed, _ = tx.apply(MODEL, tx.init(MODEL), grads=zeros)
    for path in ("dense/kernel", "dense/bias", "norm/scale"):
        row = row_of(tx, path)
        name, leaf = path.split("/")
        decay = row.decay.get("weight_decay", 0.0) * (row.learning_rate or 0.0)
        rate = (row.learning_rate or 0.0) * row.rate_factor
        np.testing.assert_allclose(1 - decayed[name][leaf], decay, atol=1e-7)
        np.testing.assert_allclose(decayed[name][leaf] - moved[name][leaf], rate, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("factor", "before", "after"), [(0.5, 0.1, 0.2), (0.0, None, 0.2), (1.0, 0.2, 0.2)])
def test_a_decay_before_the_factor_of_its_path_is_multiplied_by_it(factor, before, after) -> None:
    def decay_of(*links: Any) -> dict[str, Any]:
        tx = oc.chain(oc.scale_by_adam(), oc.scale_by_learning_rate(), *links, learning_rate=0.1)
        return row_of(tx, "dense/kernel").decay

    decay, by_path = oc.decay_weights(0.2), oc.scale_by_path({"kernel": factor})
    assert decay_of(decay, by_path) == ({} if before is None else {"weight_decay": before})
    assert decay_of(by_path, decay) == {"weight_decay": after}
    assert row_of(oc.chain(oc.sgd(0.1), by_path), "dense/kernel").rate_factor == factor
    penalized = oc.chain(oc.add_l2_penalty(0.2), oc.adam(0.1), by_path)
    assert row_of(penalized, "dense/kernel").decay == {"l2_penalty": 0.2}


def test_a_preset_in_a_group_keeps_its_name_beside_the_groups() -> None:
    codes = [row.code for row in oc.describe(oc.multi_optimizer(("head", "", oc.muon(0.1))), MODEL["dense"]).rows]
    assert "head: muon(learning_rate=0.1)" in codes


@pytest.mark.parametrize(
    ("tx", "told"),
    [
        (oc.adamw(), ["adamw(learning_rate=0.001)", "scale_by_adam(beta_1=0.9, beta_2=0.999, epsilon=1e-07)"]),
        (oc.presets.torch.sgd(momentum=0.9), ["presets.torch.sgd(lr=0.001, momentum=0.9)"]),
        (oc.chain(oc.scale_by_learning_rate(), oc.project_max_norm(), learning_rate=1.0), ["max_value=2.0"]),
    ],
)
def test_numbers_that_a_link_goes_by_are_shown_though_they_are_defaults(tx: Any, told: list[str]) -> None:
    codes = "\n".join(row.code for row in oc.describe(tx, MODEL["dense"]).rows)
    assert all(text in codes for text in told), codes


def test_decays_by_path_are_those_of_the_first_pattern() -> None:
    tx = oc.chain(oc.sgd(0.1), oc.decay_by_path({"kernel": (0.5, 0.25), "w": (0.0, 0.125)}, learning_rate=1.0))
    assert row_of(tx, "dense/kernel").decay == {"l1": 0.5, "l2": 0.25}
    assert row_of(tx, "embed/w").decay == {"l2": 0.125}
    assert row_of(tx, "dense/bias").decay == {}


@pytest.mark.parametrize(
    ("tx", "storage"),
    [
        (oc.adamw(0.1, moment_dtype="bfloat16"), {"mu": "bfloat16", "nu": "bfloat16"}),
        (optax.adamw(0.1), {"mu": "float32", "nu": "float32"}),
        (
            oc.sgd(0.1, use_ema=True, gradient_accumulation_steps=2),
            {"grads": "float32", "average": "float32"},
        ),
    ],
)
@pytest.mark.parametrize("params", [{"w": jnp.ones((2, 2))}, jnp.ones((2, 2))], ids=["dict", "bare"])
def test_storage_names_what_mirrors_the_parameter(tx: Any, storage: dict[str, str], params: Any) -> None:
    (row,) = oc.describe(tx, params).per_parameter
    assert row.storage == storage


def test_a_schedule_is_its_code_and_a_set_array_its_number() -> None:
    tx = oc.adamw(oc.schedules.CosineDecay(0.1, 10), jnp.array(0.5))
    row = row_of(tx, "dense/kernel")
    assert (row.learning_rate, row.decay) == ("CosineDecay(0.1, 10)", {"weight_decay": 0.5})


def test_the_table_has_one_line_for_layers_that_are_treated_alike() -> None:
    params = {"layers": [{"w": jnp.ones(3), "bias": jnp.ones(3)} for _ in range(12)]}
    lines = str(oc.describe(oc.adamw(exclude_from_weight_decay=["bias$"]), params)).splitlines()
    (bias,) = [line.split() for line in lines if "bias" in line and "layers" in line]
    (w,) = [line.split() for line in lines if "layers/*/w" in line]
    assert bias[:5] == ["layers/*/bias", "12", "0.001", "-", "adamw"]
    assert w[:5] == ["layers/*/w", "12", "0.001", "0.004", "adamw"]


@pytest.mark.parametrize(
    ("frozen", "trained"),
    [("^layers/0/", "layers/1-11/w"), ("^layers/([2-5]|7|10)/", "layers/0,1,6,8,9,11/w"), ("^layers/3/", "layers/0-2,4-11/w")],
)  # fmt: skip
def test_a_line_of_some_layers_says_which(frozen: str, trained: str) -> None:
    params = {"layers": [{"w": jnp.ones(3)} for _ in range(12)]}
    rows = str(oc.describe(oc.freeze(oc.sgd(0.1), oc.matching(frozen)), params)).splitlines()
    assert [line.split()[0] for line in rows if line.startswith("layers/") and "frozen" not in line] == [trained]


def test_the_table_says_that_the_decay_does_not_have_the_factor_of_the_rate() -> None:
    def table(*last: oc.Transformation) -> str:
        links = [oc.scale_by_learning_rate(), oc.decay_weights(0.1), *last]
        return str(oc.describe(oc.chain(*links, learning_rate=1e-2), {"w": jnp.ones(3)}))

    said = "The decay is multiplied by the rate without its factor."
    assert said not in table()
    with_factor = table(oc.scale_by_path({"w": 10.0}))
    (row,) = [line.split() for line in with_factor.splitlines() if line.startswith("w ")]
    assert row[1:5] == ["0.01", "×", "10", "1"]
    assert said in with_factor


def test_json_has_numbers_for_what_is_a_number() -> None:
    data = json.loads(json.dumps(oc.describe(many_kinds(), MODEL).to_dict()))
    adam = next(row for row in data["rows"] if row["rule"] == "scale_by_adam")
    assert adam["arguments"]["beta_1"] == 0.9
    assert adam["entries"]["mu"] == {"float32": 6}
    kernel = next(row for row in data["per_parameter"] if row["path"] == "dense/kernel")
    assert (kernel["rate_factor"], kernel["decay"], kernel["learning_rate"]) == (2.0, {"weight_decay": 0.02}, 1e-3)


def test_describing_draws_nothing_from_the_parameters_on_paper_either() -> None:
    paper = jax.eval_shape(lambda: MODEL)
    assert oc.describe(many_kinds(), paper).per_parameter == oc.describe(many_kinds(), MODEL).per_parameter


def test_a_link_of_ones_own_says_how_strongly_it_acts() -> None:
    def halve(updates: Any, state: Any, params: Any) -> Any:
        return jax.tree.map(lambda u: u * 0.5, updates), state

    half = oc.Transformation(update=halve).with_effects(lambda params: {"rate": jax.tree.map(lambda p: 0.5, params)})
    assert row_of(oc.chain(oc.sgd(0.1), ("half", half)), "norm/scale").rate_factor == 0.5


def test_what_a_rule_does_not_keep_for_a_parameter_is_not_in_its_row():
    params = {"w": jnp.ones((2, 4, 4)), "b": jnp.ones(3)}
    soap, muon, factored = (
        {row.path: set(row.storage) for row in oc.describe(tx, params).per_parameter}
        for tx in (
            oc.scale_by_soap(),
            oc.scale_by_muon(matrices={"w": (-2, -1)}),
            oc.scale_by_factored_rms(),
        )
    )
    assert soap == {"w": {"mu", "nu", "gram", "basis"}, "b": {"mu", "nu"}}
    assert muon == {"w": {"mu"}, "b": {"mu", "adam_nu"}}
    assert factored == {"w": {"v_row", "v_col"}, "b": {"v"}}
