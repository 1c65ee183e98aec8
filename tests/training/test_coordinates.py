"""muP and layer-wise decay: against what their papers and PyTorch's groups say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain
from tests.sampling import others_thorough

WIDTHS, BASE = (32, 512), 32
X = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(16, 1)).astype(np.float32)


def params_of(width: int) -> Any:
    rng = np.random.default_rng(width)

    def normal(n: int, m: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(n, m)) / n**0.5, jnp.float32)

    hidden = [normal(width, width) for _ in range(2)]
    # The head's own numbers are of size 1, and its output is multiplied by 1 / width.
    return {"embed": normal(8, width), "hidden": hidden, "head": normal(width, 1) * width**0.5}


def layers(params: Any, head: float) -> dict[str, jax.Array]:
    h = {"embed": jnp.tanh(X @ params["embed"])}
    for i, w in enumerate(params["hidden"]):
        h[f"hidden/{i}"] = jnp.tanh(list(h.values())[-1] @ w)
    return h | {"out": list(h.values())[-1] @ params["head"] * head}


RATES = {"adam": 2e-3, "sgd": 0.1}


def sizes(width: int, rule: str, *, mup: bool) -> dict[str, float]:
    params = params_of(width)
    factors = optchain.width_factors(params, params_of(BASE), rule)
    make = {"adam": optchain.presets.torch.adam, "sgd": optchain.sgd, "adafactor": optchain.presets.torch.adafactor}[
        rule
    ]
    tx = optchain.chain(make(RATES[rule]), *([optchain.scale_by_path(factors)] if mup else []))
    head = 1 / width if mup else width**-0.5

    def loss(params: Any) -> jax.Array:
        return jnp.mean((layers(params, head)["out"] - Y) ** 2)

    made = optchain.coordinate_sizes(tx, params, loss, lambda p: layers(p, head), steps=3)
    return {name: float(values[-1]) for name, values in made.items()}


def growth(rule: str, *, mup: bool) -> dict[str, float]:
    """How much more the activations move at sixteen times the width."""
    narrow, wide = (sizes(width, rule, mup=mup) for width in WIDTHS)
    return {name: wide[name] / narrow[name] for name in wide}


@pytest.mark.parametrize("rule", others_thorough(RATES, "adam"))
def test_activations_move_alike_at_all_widths_with_mup(rule):
    assert all(0.5 < factor < 2 for factor in growth(rule, mup=True).values())


@pytest.mark.thorough
@pytest.mark.parametrize("rule", RATES)
def test_activations_move_more_in_a_wide_network_without_mup(rule):
    moved = growth(rule, mup=False)
    assert moved["out"] > 3
    assert moved["hidden/0"] > 3


def of_hidden_weights(width: int, rule: str | None) -> float:
    """How far a hidden layer moves by its own weights under Adafactor: those below it move more, at every width."""
    params = params_of(width)
    factors = optchain.width_factors(params, params_of(BASE), rule) if rule else {"": 1.0}
    tx = optchain.chain(optchain.presets.torch.adafactor(1e-2), optchain.scale_by_path(factors))
    below = jnp.tanh(X @ params["embed"])

    def loss(params: Any) -> jax.Array:
        return jnp.mean((layers(params, 1 / width)["out"] - Y) ** 2)

    return float(
        optchain.coordinate_sizes(tx, params, loss, lambda p: {"own": below @ p["hidden"][0]}, steps=3)["own"][-1]
    )


@pytest.mark.parametrize(
    ("rule", "low", "high"),
    [
        ("adafactor", 0.5, 2),
        pytest.param("adam", 0, 0.5, marks=pytest.mark.thorough),
        pytest.param(None, 3, np.inf, marks=pytest.mark.thorough),
    ],
)
def test_of_steps_relative_to_the_weights_the_factor_is_a_root(rule, low, high):
    assert low < of_hidden_weights(WIDTHS[1], rule) / of_hidden_weights(WIDTHS[0], rule) < high


ONE, TWO = (
    {
        "embed": jnp.zeros((8, n)),
        "hidden": [jnp.zeros((n, n))],
        "bias": jnp.zeros(n),
        "head": jnp.zeros((n, 3)),
        "t": 0.0,
    }
    for n in (4, 8)
)


@pytest.mark.parametrize(
    "tx",
    [
        optchain.sgd(0.1),
        optchain.dynamic_loss_scale(optchain.sgd(0.1)),
        optchain.sgd(0.1, loss_scale_factor=8.0),
        optchain.skip_spikes(optchain.sgd(0.1)),
    ],
)
def test_the_loss_is_scaled_as_the_recipe_asks(tx):
    sizes = optchain.coordinate_sizes(tx, jnp.ones(3), lambda p: p.sum(), lambda p: {"out": p}, steps=2)
    np.testing.assert_allclose(sizes["out"], [0.1, 0.2], rtol=1e-5)


def test_the_factors_are_those_of_table_8():
    ones = {"^bias$": 1.0, "^embed$": 1.0, "^head$": 1.0, "^hidden/0$": 1.0, "^t$": 1.0}
    assert optchain.width_factors(TWO, ONE) == ones | {"^hidden/0$": 0.5}
    assert optchain.width_factors(TWO, ONE, "sgd") == ones | {"^bias$": 2.0, "^embed$": 2.0, "^head$": 2.0}
    assert optchain.width_factors(TWO, ONE, "adafactor") == ones | {"^hidden/0$": pytest.approx(0.5**0.5)}
    assert optchain.width_factors(ONE, ONE) == ones  # so that the recipe of the base width is the same chain
    optchain.scale_by_path(optchain.width_factors(ONE, ONE)).init(ONE)


def test_inputs_and_outputs_of_more_than_one_axis_are_told():
    def attention(heads: int) -> Any:
        return {"query": jnp.zeros((4 * heads, heads, 4)), "out": jnp.zeros((heads, 4, 4 * heads))}

    with pytest.raises(
        ValueError, match=r"out has \(2, 4, 8\) in base and \(6, 4, 24\) in params: axis 0 differs, .* matrices="
    ):
        optchain.width_factors(attention(6), attention(2))
    told = {"query": (0, (1, 2)), "out": ((0, 1), 2)}
    factors = optchain.width_factors(attention(6), attention(2), matrices=told)
    assert factors == pytest.approx({"^out$": 1 / 3, "^query$": 1 / 3})


def test_a_bias_of_two_axes_is_no_hidden_weight():
    def attention(heads: int, size: int) -> Any:
        return {"query": {"kernel": jnp.zeros((heads * size, heads, size)), "bias": jnp.zeros((heads, size))}}

    wide, narrow, told = attention(4, 16), attention(2, 8), {"kernel$": (np.int64(0), (1, 2))}
    with pytest.raises(ValueError, match=r"query/bias has \(2, 8\) .*matrices=\{'query/bias': \(\(\), \(0, 1\)\)\}"):
        optchain.width_factors(wide, narrow, matrices=told)
    told["bias$"] = ((), (0, 1))
    assert optchain.width_factors(wide, narrow, matrices=told) == {"^query/bias$": 1.0, "^query/kernel$": 0.25}
    assert optchain.width_factors(wide, narrow, "sgd", matrices=told)["^query/bias$"] == 4.0


@pytest.mark.parametrize(
    ("params", "base", "options", "error", "message"),
    [
        ({"a": jnp.ones(1)}, {"b": jnp.ones(1)}, {}, ValueError, "structure of params"),
        ({"a": jnp.ones(1)}, {"a": jnp.ones((1, 1))}, {}, ValueError, r"as many axes as params: a has \(1, 1\)"),
        ({"a": jnp.ones((0, 1))}, {"a": jnp.ones((1, 1))}, {}, ValueError, "a has no numbers"),
        (TWO, ONE, {"rule": "lion"}, ValueError, "rule must be 'adam', 'sgd' or 'adafactor'; got 'lion'"),
        (TWO, ONE, {"matrices": {"embed": 1}}, TypeError, r"matrices\['embed'\] must be \(axes in, axes out\)"),
        (
            TWO,
            ONE,
            {"matrices": {"bias": (0, 1)}},
            ValueError,
            r"gives bias the axes \(0,\), \(1,\), which are no distinct axes of \(8,\)",
        ),
        (
            TWO,
            ONE,
            {"matrices": {"head": (0, (0, 1))}},
            ValueError,
            r"gives head the axes \(0,\), \(0, 1\), which are no distinct axes of",
        ),
        (
            TWO,
            ONE,
            {"matrices": {"head": ((0, -2), 1)}},
            ValueError,
            r"gives head the axes \(0, -2\), \(1,\), which are no distinct axes of",
        ),
        (
            {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}},
            {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}},
            {},
            ValueError,
            "one leaf a path; got a/b twice",
        ),
        (TWO, ONE, {"matrices": {"tail": (0, 1)}}, ValueError, "'tail' decides for no parameter"),
    ],
)
def test_bad_widths_are_refused(params, base, options, error, message):
    with pytest.raises(error, match=message):
        optchain.width_factors(params, base, **options)


def test_decay_before_the_factors_is_that_of_torchs_groups():
    torch = pytest.importorskip("torch")
    names = ["embed", "block", "head"]
    factors = optchain.depth_factors([f"^{name}$" for name in names], 0.5)
    assert list(factors.values()) == [0.25, 0.5, 1.0]
    tx = optchain.chain(
        optchain.scale_by_adam(epsilon=1e-8, epsilon_hat=False),
        optchain.scale_by_learning_rate(),
        optchain.decay_weights(0.5),
        optchain.scale_by_path(factors),
        learning_rate=0.1,
    )
    leaves = {name: torch.ones(3, requires_grad=True) for name in names}
    groups = [{"params": [leaves[name]], "lr": 0.1 * factors[f"^{name}$"]} for name in names]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.5)
    params = {name: jnp.ones(3) for name in names}
    state, step = tx.init(params), jax.jit(lambda p, s, g: tx.apply(p, s, grads=g))
    rng = np.random.default_rng(0)
    for _ in range(3):
        grads = {name: rng.normal(size=3).astype(np.float32) for name in names}
        for name, leaf in leaves.items():
            leaf.grad = torch.tensor(grads[name])
        optimizer.step()
        params, state = step(params, state, grads)
    for name, leaf in leaves.items():
        np.testing.assert_allclose(params[name], leaf.detach().numpy(), rtol=2e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: optchain.depth_factors("embed", 0.5), TypeError, "layers must be a sequence of patterns; got 'embed'"),
        (lambda: optchain.depth_factors([], 0.5), ValueError, "layers needs at least one pattern"),
        (lambda: optchain.depth_factors(["a", "a"], 0.5), ValueError, "a pattern twice"),
        (lambda: optchain.depth_factors(["a"], 0.0), ValueError, r"decay must be a number in \(0, 1\]; got 0.0"),
    ],
)
def test_bad_layers_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("loss", "activations", "error", "message"),
    [
        (jnp.sum, lambda p: p, TypeError, "activations must return a dict of arrays by name; it returned Shape"),
        (jnp.sum, lambda p: {"a": [p]}, TypeError, "activations must return a dict of arrays"),
        (jnp.sum, lambda p: None, TypeError, "activations must return a dict of arrays by name; it returned None"),
        (jnp.sum, lambda p: {"a": p, "b": p[:0]}, ValueError, r"that have numbers; 'b' has shape \(0,\)"),
        (lambda p: p, lambda p: {"a": p}, TypeError, "loss_fn must return a real scalar"),
        (lambda p: (p.sum(), p), lambda p: {"a": p}, TypeError, "loss_fn must return a real scalar, without auxiliary"),
        (lambda p: 1j * p.sum(), lambda p: {"a": p}, TypeError, "loss_fn must return a real scalar"),
    ],
)
def test_what_is_no_loss_and_no_activation_is_named(loss, activations, error, message):
    with pytest.raises(error, match=message):
        optchain.coordinate_sizes(optchain.sgd(0.1), jnp.ones(2), loss, activations)
