"""muP and layer-wise decay: against what their papers and PyTorch's groups say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain

WIDTHS, BASE = (64, 256, 1024), 64
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


def sizes(width: int, *, mup: bool) -> dict[str, float]:
    params = params_of(width)
    factors = optchain.width_factors(params, params_of(BASE))
    scaling = [optchain.scale_by_path(factors)] if mup and factors else []
    tx = optchain.chain(optchain.scale_by_adam(), *scaling, optchain.scale_by_learning_rate(), learning_rate=2e-3)
    head = 1 / width if mup else width**-0.5

    def loss(params: Any) -> jax.Array:
        return jnp.mean((layers(params, head)["out"] - Y) ** 2)

    made = optchain.coordinate_sizes(tx, params, loss, lambda p: layers(p, head), steps=3)
    return {name: float(values[-1]) for name, values in made.items()}


@pytest.mark.parametrize("mup", [True, False])
def test_activations_move_alike_at_all_widths_with_mup_and_grow_without(mup):
    moved = [sizes(width, mup=mup) for width in WIDTHS]
    growth = {name: moved[-1][name] / moved[0][name] for name in moved[0]}
    if mup:
        assert all(0.5 < factor < 2 for factor in growth.values()), growth
    else:  # sixteen times the width; tanh bounds the hidden ones, not the output
        assert growth["out"] > 3, growth
        assert growth["hidden/0"] > 2, growth


def test_only_weights_that_grow_on_both_sides_have_a_factor():
    assert optchain.width_factors(params_of(256), params_of(64)) == {r"^hidden/0$": 0.25, r"^hidden/1$": 0.25}
    assert optchain.width_factors(params_of(64), params_of(64)) == {}
    with pytest.raises(ValueError, match="structure of params"):
        optchain.width_factors({"a": jnp.ones(1)}, {"b": jnp.ones(1)})
    with pytest.raises(ValueError, match="as many axes"):
        optchain.width_factors({"a": jnp.ones(1)}, {"a": jnp.ones((1, 1))})


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
    state, rng = tx.init(params), np.random.default_rng(0)
    for _ in range(3):
        grads = {name: rng.normal(size=3).astype(np.float32) for name in names}
        for name, leaf in leaves.items():
            leaf.grad = torch.tensor(grads[name])
        optimizer.step()
        params, state = tx.apply(params, state, grads=grads)
    for name, leaf in leaves.items():
        np.testing.assert_allclose(params[name], leaf.detach().numpy(), rtol=2e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: optchain.depth_factors("embed", 0.5), TypeError, "layers must be a sequence of patterns; got 'embed'"),
        (lambda: optchain.depth_factors(["a", "a"], 0.5), ValueError, "a pattern twice"),
        (lambda: optchain.depth_factors(["a"], 0.0), ValueError, r"decay must be a number in \(0, 1\]; got 0.0"),
    ],
)
def test_bad_layers_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
