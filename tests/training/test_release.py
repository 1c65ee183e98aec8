"""`make_step(…, release=…)`: the numbers of a step with all gradients at once, and none of these kept."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optchain as oc
from optchain.core.precision import enable_x64
from tests.sampling import others_for_release, others_thorough

LAYERS, WIDTH = 5, 8
IDS = jnp.array([1, 3, 1, 7])


def fresh(dtype: Any = None, width: int = WIDTH) -> dict[str, Any]:
    keys = iter(jax.random.split(jax.random.key(0), 6))

    def normal(*shape: int) -> jax.Array:
        return 0.3 * jax.random.normal(next(keys), shape, dtype)

    layers = {"bias": normal(LAYERS, width), "kernel": normal(LAYERS, width, width)}
    return {"embed": normal(11, width), "head": normal(width), "model": {"layers": layers}, "scale": normal()}


def body(params: dict[str, Any], x: jax.Array, layer: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """One that uses a parameter of its own, and two that all layers share."""
    y = x + jnp.tanh(x @ layer["kernel"] + layer["bias"] + params["head"]) * params["scale"]
    return y, jnp.mean(y)


def loss_of(x: jax.Array, means: jax.Array, params: dict[str, Any]) -> jax.Array:
    return jnp.mean((x @ params["head"] - 1) ** 2) + 0.1 * jnp.sum(means) + jnp.sum(params["embed"] ** 2)


def plain(params: dict[str, Any], ids: jax.Array) -> jax.Array:
    x, means = lax.scan(lambda x, layer: body(params, x, layer), params["embed"][ids], params["model"]["layers"])
    return loss_of(x, means, params)


def within_jit(params: dict[str, Any], ids: jax.Array) -> jax.Array:
    run = jax.jit(lambda layers, x: lax.scan(lambda x, layer: body(params, x, layer), x, layers))
    x, means = jax.jit(run)(params["model"]["layers"], oc.rows_of(params["embed"], ids))
    return loss_of(x, means, params)


def backwards_and_checkpointed(params: dict[str, Any], ids: jax.Array) -> jax.Array:
    step = jax.checkpoint(lambda x, layer: body(params, x, layer))
    x, means = lax.scan(step, params["embed"][ids], params["model"]["layers"], reverse=True, unroll=2)
    return loss_of(x, means, params)


def beside_other_rows(params: dict[str, Any], ids: jax.Array) -> jax.Array:
    """Keys, numbers that depend on a parameter, an integer that is carried, and nothing that is collected."""

    def step(carry: Any, row: Any) -> tuple[Any, None]:
        (x, count), (key, layer, factor) = carry, row
        noise = jax.random.normal(key, x.shape, x.dtype)
        return (body(params, x * factor, layer)[0] + 0.1 * noise * count, count + 1), None

    rows = jax.random.split(jax.random.key(1), LAYERS), params["model"]["layers"], jnp.arange(LAYERS) * params["scale"]
    (x, _), _ = lax.scan(step, (params["embed"][ids], 0), rows)
    return loss_of(x, params["scale"], params)


def beside_another_scan(params: dict[str, Any], ids: jax.Array) -> jax.Array:
    """One over parameters that are no layers, of which each turn has a scan within; and a table before, within and after."""
    table = params["embed"]

    def step(x: jax.Array, layer: dict[str, jax.Array]) -> tuple[jax.Array, None]:
        run = lax.scan(lambda x, _: body(params, x, layer), x, None, 2)[0]
        return run + 0.1 * table.sum(0), None

    x, _ = lax.scan(step, table[ids], params["model"]["layers"])
    sums, _ = lax.scan(lambda total, row: (total + jnp.sin(row), None), jnp.zeros(WIDTH, table.dtype), table)
    return loss_of(x @ table.T @ table + sums, params["scale"], params)


@jax.custom_vjp
def clipped_backwards(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


clipped_backwards.defvjp(
    lambda x, kernel: (x @ kernel, (x, kernel)),
    lambda kept, ct: (jnp.clip(ct @ kept[1].T, -0.01, 0.01), kept[0].T @ ct),
)


def with_a_gradient_of_its_own(params: dict[str, Any], ids: jax.Array) -> jax.Array:
    def step(x: jax.Array, layer: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return body(params, clipped_backwards(x, layer["kernel"]), layer)

    return loss_of(*lax.scan(step, params["embed"][ids], params["model"]["layers"]), params)


LOSSES = [
    plain,
    within_jit,
    backwards_and_checkpointed,
    beside_other_rows,
    beside_another_scan,
    with_a_gradient_of_its_own,
]


def steps(loss_fn: Any, tx: Any, params: Any, release: str | None, **options: Any) -> tuple[Any, Any, Any]:
    params, state = jax.tree.map(jnp.copy, params), tx.init(params)
    if getattr(tx, "keeps_low_bits", False):
        params = oc.narrow(params, min_size=1)
    step: Any = oc.make_step(loss_fn, tx, release=release, **options)
    metrics = None
    for _ in range(3):
        params, state, metrics = step(params, state, IDS)
    return params, state, metrics


def assert_same_numbers(loss_fn: Any, tx: Any, **options: Any) -> None:
    with enable_x64():
        params = fresh(jnp.float64)
        expected = steps(loss_fn, tx, params, None, **options)
        released = steps(loss_fn, tx, params, "model/layers", **options)
    assert jax.tree.structure(released) == jax.tree.structure(expected)
    for got, wanted in zip(jax.tree.leaves(released), jax.tree.leaves(expected), strict=True):
        assert (got.dtype, got.shape, got.weak_type) == (wanted.dtype, wanted.shape, wanted.weak_type)
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)
    moved = jax.tree.map(lambda new, old: bool((new != old).any()), released[0], params)
    assert all(jax.tree.leaves(moved))


def only_stacks(params: Any) -> Any:
    return jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)


RECIPES: dict[str, Callable[[], Any]] = {
    "adamw": lambda: oc.adamw(
        oc.schedules.CosineDecay(0.1, 10), 0.1, use_ema=True, amsgrad=True, loss_scale_factor=8.0, clipvalue=0.5
    ),
    "masks": lambda: oc.adamw(0.1, 0.1, exclude_from_weight_decay=only_stacks),
    "patterns": lambda: oc.adamw(0.1, 0.1, exclude_from_weight_decay=["layers/bias$", "^head$"]),
    "by_path": lambda: oc.chain(oc.sgd(0.1, 0.9, nesterov=True), oc.scale_by_path({"kernel": 0.5, "embed": 2.0})),
    "decay_first": lambda: oc.ftrl(0.1, weight_decay=0.1),
    "overwrite": lambda: oc.lion(0.01, use_ema=True, ema_overwrite_frequency=2),
    "own scalars": lambda: oc.nadam(0.1),
    "others clipped": lambda: oc.multi_optimizer(
        ("rest", "^embed|^head|^scale", oc.skip_nonfinite(oc.adamw(0.1, global_clipnorm=0.1))), default=oc.adam(0.1)
    ),
}


@pytest.mark.parametrize("recipe", others_thorough(RECIPES, "adamw", "masks"))
def test_a_released_step_has_the_numbers_of_one_with_all_gradients(recipe: str) -> None:
    assert_same_numbers(plain, RECIPES[recipe]())


@pytest.mark.parametrize("loss_fn", others_thorough(LOSSES, within_jit), ids=lambda f: f.__name__)
def test_any_loss_that_scans_once_over_the_layers_is_differentiated(loss_fn: Any) -> None:
    assert_same_numbers(loss_fn, oc.adamw(0.1))


def test_auxiliary_results_come_out() -> None:
    def with_aux(params: Any, ids: Any) -> Any:
        return plain(params, ids), {"embedded": params["embed"][ids], "ids": ids}

    assert_same_numbers(with_aux, oc.adamw(0.1), has_aux=True)


@pytest.mark.parametrize("frozen", others_thorough(["model", "embed"], "model"))
def test_frozen_parameters_stay(frozen: str) -> None:
    tx = oc.freeze(oc.adamw(0.1), oc.matching(f"^{frozen}"))
    params, expected = (steps(plain, tx, fresh(), release)[0] for release in ("model/layers", None))
    jax.tree.map(lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6), params, expected)
    jax.tree.map(np.testing.assert_array_equal, params[frozen], fresh()[frozen])


@pytest.mark.thorough
@pytest.mark.parametrize("weights", others_for_release([None, 24, "stochastic"], 24))
def test_codes_are_those_of_the_whole_stack(weights: Any) -> None:
    tx = oc.compact(oc.adamw(0.1, use_ema=True), weights=weights, average="bfloat16", min_size=1)

    def linear(params: Any, ids: Any) -> jax.Array:
        """Gradients without roundings: each path to a code has the same bits."""
        x, _ = lax.scan(
            lambda x, layer: (x + layer["kernel"].sum() + layer["bias"].sum(), None), jnp.zeros(()), params["layers"]
        )
        return x

    params = {"layers": fresh(width=64)["model"]["layers"]}
    released, expected = (steps(linear, tx, params, release)[:2] for release in ("layers", None))
    jax.tree.map(np.testing.assert_array_equal, released, expected)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "spec",
    others_for_release([P("data"), P(None, "data"), P(None, None, "data")], P("data"), P(None, None, "data")),
    ids=str,
)
def test_over_devices_the_codes_are_those_of_one(spec: P) -> None:
    tx = oc.compact(oc.adamw(0.1), weights=24, min_size=1)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))

    def loss_fn(params: Any, ids: Any) -> jax.Array:
        return lax.scan(lambda x, kernel: (x + kernel.sum(), None), jnp.zeros(()), params["layers"])[0]

    def step(place: Callable[[Any], Any], release: str | None) -> Any:
        params = {"layers": jax.random.normal(jax.random.key(0), (4, 32, 128))}
        params, state = place(oc.narrow(params, min_size=1)), place(tx.init(params))
        made: Any = oc.make_step(loss_fn, tx, release=release)
        return made(params, state, IDS)[:2]

    def split(tree: Any) -> Any:
        return jax.device_put(tree, jax.tree.map(lambda x: NamedSharding(mesh, spec if x.ndim else P()), tree))

    released, expected = step(split, "layers"), step(lambda tree: tree, None)
    jax.tree.map(np.testing.assert_array_equal, released, expected)
    assert released[0]["layers"].sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)


def test_all_parameters_may_be_layers() -> None:
    def loss_fn(params: Any, ids: Any) -> jax.Array:
        return lax.scan(
            lambda x, layer: (jnp.tanh(x @ layer["kernel"] + layer["bias"]), None), jnp.ones(8), params["layers"]
        )[0].sum()

    params = {"layers": fresh()["model"]["layers"]}
    released, expected = (steps(loss_fn, oc.adamw(0.1), params, release) for release in ("layers", None))
    jax.tree.map(lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6), released, expected)


def test_a_flax_model_under_nn_scan_is_released() -> None:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return x + jnp.tanh(nn.Dense(WIDTH)(x)), None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, ids: jax.Array) -> jax.Array:
            x = nn.Embed(11, WIDTH)(ids)
            scanned = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
            return nn.Dense(1)(scanned(name="layers")(x, None)[0])

    model = Model()
    params = model.init(jax.random.key(0), IDS)
    tx = oc.adamw(0.1, exclude_from_weight_decay=["bias"])
    released, expected = (
        steps(lambda params, ids: jnp.mean(model.apply(params, ids) ** 2), tx, params, release)[0]
        for release in ("params/layers", None)
    )
    jax.tree.map(lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6), released, expected)


def test_a_path_may_lead_through_a_key_with_a_slash() -> None:
    params = {"net/layers": jnp.ones((LAYERS, 3)), "net/layers_norm": jnp.ones(3)}

    def loss_fn(params: Any, ids: Any) -> jax.Array:
        return jnp.sum(lax.scan(lambda x, p: (x * p, None), params["net/layers_norm"], params["net/layers"])[0])

    released, expected = (steps(loss_fn, oc.sgd(0.1), params, release)[0] for release in ("net/layers", None))
    jax.tree.map(lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=1e-6), released, expected)


# What it needs --------------------------------------------------------------------------------------------------------


def temporaries(tx: Any, layers: int, release: str | None) -> int:
    width = 128

    def loss_fn(params: Any, x: jax.Array) -> jax.Array:
        def body(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
            return x + jnp.tanh(x @ layer["up"] + layer["bias"]) @ layer["down"], None

        return jnp.mean(lax.scan(body, x @ params["in"], params["layers"])[0] ** 2)

    stack = {"bias": (layers, width), "down": (layers, width, width), "up": (layers, width, width)}
    shapes = {"in": (width, width), "layers": stack}
    params = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )
    step: Any = oc.make_step(loss_fn, tx, release=release)
    x = jax.ShapeDtypeStruct((4, width), jnp.float32)
    return step.lower(params, jax.eval_shape(tx.init, params), x).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.long
@pytest.mark.programs
@pytest.mark.parametrize(
    "tx",
    others_thorough([oc.sgd(0.1), oc.adamw(0.1), oc.compact(oc.adamw(0.1, use_ema=True), min_size=1)], oc.adamw(0.1)),
    ids=lambda tx: tx.name,
)
def test_temporaries_do_not_grow_with_the_gradient_of_the_stack(tx: Any) -> None:
    gradient_of_layer = 4 * (2 * 128**2 + 128)
    few, many = (temporaries(tx, layers, "layers") for layers in (8, 32))
    assert (many - few) / 24 <= 0.05 * gradient_of_layer  # the input of each layer
    few, many = (temporaries(tx, layers, None) for layers in (8, 32))
    assert (many - few) / 24 >= gradient_of_layer


# What it refuses ------------------------------------------------------------------------------------------------------

REFUSED = {
    "clip_by_global_norm needs the norm of whole arrays": lambda: oc.adamw(0.1, global_clipnorm=1.0),
    "clip_by_norm needs the norm of whole arrays": lambda: oc.adamw(0.1, clipnorm=1.0),
    "zclip needs the norm of whole arrays": lambda: oc.chain(oc.zclip(), oc.adam(0.1)),
    "adagc looks across the layers": lambda: oc.chain(oc.adagc(), oc.adam(0.1)),
    "cautious looks across the layers": lambda: oc.chain(oc.cautious(oc.scale_by_adam())),
    "project_initial_norm looks across the layers": lambda: oc.chain(oc.sgd(0.1), oc.project_initial_norm()),
    "skip_spikes decides by all gradients": lambda: oc.skip_spikes(oc.adam(0.1)),
    "accumulate decides by all gradients": lambda: oc.adamw(0.1, gradient_accumulation_steps=2),
    "skip_nonfinite decides by all gradients": lambda: oc.compact(oc.skip_nonfinite(oc.adamw(0.1))),
    "dynamic_loss_scale decides by all gradients": lambda: oc.dynamic_loss_scale(oc.sgd(0.1)),
    "lazy_rows needs gradients that name rows": lambda: oc.lazy_rows(oc.sgd(0.1)),
    "is Optax's": lambda: optax.adam(0.1),
    "scale_by_trust_ratio looks across the layers": lambda: oc.lamb(0.1),
    "looks across the layers": lambda: oc.adafactor(0.1),
    "monitor looks across the layers": lambda: oc.chain(oc.monitor(), oc.sgd(0.1)),
    "add_noise looks across the layers": lambda: oc.chain(oc.add_noise(0.1), oc.sgd(0.1)),
    "project_unit_norm looks across the layers": lambda: oc.chain(oc.sgd(0.1), oc.project_unit_norm()),
    "scale_by_muon looks across the layers": lambda: oc.muon(0.1),
    "scale_by_soap looks across the layers": lambda: oc.soap(0.1),
    "schedule_free looks across the layers": lambda: oc.schedule_free(oc.sgd(0.1)),
    "adamw reads learning_rate on the host": lambda: oc.adamw(lambda: 0.1),
    r"table \(lazy_rows\) needs gradients that name rows": lambda: oc.multi_optimizer(
        ("table", "embed", oc.lazy_rows(oc.sgd(0.1))), default=oc.sgd(0.1)
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_needs_more_than_one_layer_is_refused_with_the_reason(why: str) -> None:
    with pytest.raises(ValueError, match=f"release='layers' hands on .*{why}"):
        oc.make_step(plain, REFUSED[why](), release="layers")


def test_what_needs_more_than_one_layer_of_some_parameters_is_refused_when_called() -> None:
    tx = oc.masked(oc.clip_by_global_norm(1.0), oc.matching("kernel"))
    with pytest.raises(ValueError, match=r'acts on params\["model"\]\["layers"\]\["kernel"\], needs the norm'):
        steps(plain, tx, fresh(), "model/layers")
    steps(plain, oc.masked(oc.clip_by_global_norm(1.0), oc.matching("embed")), fresh(), "model/layers")


def few_numbers(params: Any) -> Any:
    return jax.tree.map(lambda p: jnp.size(p) <= 2 * WIDTH, params)


@pytest.mark.parametrize(
    "tx",
    [
        oc.adamw(0.1, 0.1, exclude_from_weight_decay=few_numbers),
        oc.chain(oc.add_l2_penalty(0.1, mask=few_numbers), oc.sgd(0.1)),
        oc.masked(oc.sgd(0.1), few_numbers),
        oc.multi_optimizer(("few", few_numbers, oc.sgd(0.1)), default=oc.adam(0.1)),
    ],
    ids=lambda tx: tx.name,
)
def test_a_mask_that_chooses_otherwise_of_one_layer_is_refused(tx: Any) -> None:
    with pytest.raises(ValueError, match=r'the mask of .* says .* of one of params\["model"\]\["layers"\]\["bias"\]'):
        steps(plain, tx, fresh(), "model/layers")


def looped(params: Any, ids: Any) -> jax.Array:
    x = params["embed"][ids]
    for i in range(LAYERS):
        x, _ = body(params, x, jax.tree.map(lambda leaf, i=i: leaf[i], params["model"]["layers"]))
    return jnp.mean(x)


def penalized(params: Any, ids: Any) -> jax.Array:
    return plain(params, ids) + jnp.sum(params["model"]["layers"]["kernel"] ** 2)


def closed_over(params: Any, ids: Any) -> jax.Array:
    layers = params["model"]["layers"]
    step = lambda x, i: body(params, x, jax.tree.map(lambda leaf: leaf[i], layers))  # noqa: E731
    return jnp.mean(lax.scan(step, params["embed"][ids], jnp.arange(LAYERS))[0])


def returned(params: Any, ids: Any) -> Any:
    return plain(params, ids), params["model"]["layers"]["bias"]


MISUSED: dict[str, tuple[Any, str]] = {
    r'it uses params\["model"\]\["layers"\]\["bias"\] by': (looped, "model/layers"),
    r'it uses params\["model"\]\["layers"\]\["kernel"\] by': (penalized, "model/layers"),
    r"by scan, which closes over it": (closed_over, "model/layers"),
    r"it uses .* a second time": (lambda params, ids: plain(params, ids) + plain(params, ids), "model/layers"),
    r'no jax.lax.scan of the loss runs over params\["head"\]': (lambda params, ids: jnp.mean(params["embed"]), "head"),
    r'is the path of no parameter; there are params\["embed"\]': (plain, "model/layer"),
}


@pytest.mark.parametrize("message", MISUSED)
def test_a_loss_that_does_not_scan_over_the_layers_is_refused(message: str) -> None:
    loss_fn, release = MISUSED[message]
    with pytest.raises(ValueError, match=message):
        steps(loss_fn, oc.sgd(0.1), fresh(), release)


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must return a real scalar; got shape \(2,\)"):
        steps(lambda params, ids: plain(params, ids) * jnp.ones(2), oc.sgd(0.1), fresh(), "model/layers")


def test_a_loss_that_returns_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r'the loss returns params\["model"\]\["layers"\]\["bias"\], which the step'):
        steps(returned, oc.sgd(0.1), fresh(), "model/layers", has_aux=True)


def test_a_stack_of_no_layers_is_refused() -> None:
    params = fresh() | {"model": {"layers": {"bias": jnp.ones((0, WIDTH)), "kernel": jnp.ones((0, WIDTH, WIDTH))}}}
    with pytest.raises(ValueError, match=r'\["bias"\] of shape \(0, 8\) has no layers'):
        steps(plain, oc.sgd(0.1), params, "model/layers")


def test_a_state_in_the_memory_of_the_host_is_refused() -> None:
    mesh, tx = jax.make_mesh((1,), ("data",)), oc.adam(0.1)
    params = jax.device_put(fresh(), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    state = oc.init_sharded(tx, params, mesh, memory_kind="pinned_host")
    with pytest.raises(ValueError, match=r'state\["scale_by_adam"\]\["mu"\]\["embed"\] lies in the host'):
        oc.make_step(plain, tx, release="model/layers")(params, state, IDS)


def test_blocks_across_the_layers_are_refused() -> None:
    params = {"layers": jnp.ones((32, 3))}

    def loss_fn(params: Any, ids: Any) -> jax.Array:
        return lax.scan(lambda x, layer: (x + layer.sum(), None), jnp.zeros(()), params["layers"])[0]

    with pytest.raises(ValueError, match="its blocks lie across the layers; keep it wide"):
        steps(loss_fn, oc.compact(oc.adam(0.1), min_size=1), params, "layers")


def test_a_mesh_is_refused() -> None:
    with pytest.raises(ValueError, match="leave out mesh"):
        oc.make_step(plain, oc.sgd(0.1), release="layers", mesh=jax.make_mesh((1,), ("data",)))
