"""`presets.torch.muon` and `sparse_adam` against PyTorch, which take other trees or gradients than the rest."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain
from tests.sampling import others_thorough

from .torch_runs import torch

SHAPES = [(3, 2), (2, 5)]
RECIPES = {
    "defaults": {},
    "plain momentum": {"nesterov": False, "momentum": 0.5, "weight_decay": 0.0},
    "Adam's size": {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3},
    "coefficients": {"ns_coefficients": (1.5, -0.5, 0.0), "ns_steps": 8, "adjust_lr_fn": "original"},
    "norms below eps": {"eps": 100.0},
}
STEPS = 50


def both(arguments: dict[str, Any], dtype: Any, ours: optchain.Transformation, steps: int) -> list[tuple[Any, Any]]:
    """The last parameters of PyTorch's run and of ours, matrix by matrix."""
    rng = np.random.default_rng(0)
    values = [rng.normal(size=shape).astype(dtype) for shape in SHAPES]
    leaves = [torch.tensor(value, requires_grad=True) for value in values]
    optimizer = torch.optim.Muon(leaves, lr=0.01, **arguments)
    params = [jnp.asarray(value) for value in values]
    state, step = ours.init(params), jax.jit(lambda p, s, g: ours.apply(p, s, grads=g))
    for _ in range(steps):
        grads = [rng.normal(size=shape).astype(dtype) for shape in SHAPES]
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = torch.tensor(g)
        optimizer.step()
        params, state = step(params, state, grads)
    return [(leaf.detach().numpy(), np.asarray(p)) for leaf, p in zip(leaves, params, strict=True)]


def wide(arguments: dict[str, Any], dtype: str) -> optchain.Transformation:
    """The chain of the preset, with the iteration in the dtype of the gradient."""
    given = {"momentum": 0.95, "weight_decay": 0.1} | arguments
    decay = given.pop("weight_decay")
    rule = optchain.scale_by_muon_average(**given, output_axis=0, iteration_dtype=dtype)
    links = [rule, optchain.scale_by_learning_rate(), optchain.decay_weights(decay)]
    return optchain.chain(*links, learning_rate=0.01)


@pytest.mark.parametrize("name", others_thorough(RECIPES, "norms below eps"))
def test_muon_equals_torch_in_float64(name, monkeypatch):
    # PyTorch's class as it is, but that its iteration stays in the dtype of the gradient.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    with jax.enable_x64(True):
        for theirs, ours in both(RECIPES[name], np.float64, wide(RECIPES[name], "float64"), STEPS):
            np.testing.assert_allclose(ours, theirs, atol=1e-10)


@pytest.mark.thorough
def test_muon_in_bfloat16_is_as_near_to_torch_as_bfloat16_is_to_float32():
    narrow = both({}, np.float32, optchain.presets.torch.muon(0.01, output_axis=0), 20)
    exact = both({}, np.float32, wide({}, "float32"), 20)
    for (theirs, ours), (_, exactly) in zip(narrow, exact, strict=True):
        rounding = max(np.abs(theirs - exactly).max(), np.abs(ours - exactly).max())
        assert np.abs(theirs - ours).max() <= 2 * rounding
        np.testing.assert_allclose(ours, theirs, atol=1e-3)  # of steps that sum to about 0.2


def test_names_defaults_and_order_are_torchs():
    for preset, kind in (
        (optchain.presets.torch.muon, torch.optim.Muon),
        (optchain.presets.torch.sparse_adam, torch.optim.SparseAdam),
    ):
        theirs = list(inspect.signature(kind).parameters.values())[1:]
        ours = [p for p in inspect.signature(preset).parameters.values() if p.name != "output_axis"]
        assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]


def test_the_axis_of_outputs_says_which_side_of_a_matrix_is_long():
    g = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8)), jnp.float32)
    tall, flat = (
        optchain.scale_by_muon_average(ns_steps=1, output_axis=axis, iteration_dtype="float32") for axis in (0, -1)
    )
    a, b, c = jax.jit(lambda: [tx.update(x, tx.init(x))[0] for tx, x in ((tall, g.T), (flat, g), (tall, g))])()
    np.testing.assert_array_equal(a.T, b)
    np.testing.assert_allclose(b, 2 * c, rtol=1e-6)  # √(8 / 2)


def test_what_is_no_matrix_is_refused_by_its_path():
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    with pytest.raises(ValueError, match=r"have not: dense/bias \(2,\)\. Give them a rule"):
        optchain.presets.torch.muon().init(params)


@pytest.mark.parametrize("maximize", others_thorough([False, True], True))
def test_sparse_adam_equals_torch_step_for_step(maximize):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(6, 3)).astype(np.float32)
    table, ours = torch.tensor(values, requires_grad=True), jnp.asarray(values)
    optimizer = torch.optim.SparseAdam([table], lr=0.01, betas=(0.8, 0.95), eps=1e-3, maximize=maximize)
    tx = optchain.presets.torch.sparse_adam(0.01, (0.8, 0.95), 1e-3, maximize)
    state, step = tx.init(ours), jax.jit(lambda p, s, g: tx.apply(p, s, grads=g))
    for _ in range(20):
        rows, g = rng.integers(6, size=4), rng.normal(size=(4, 3)).astype(np.float32)
        table.grad = torch.sparse_coo_tensor(torch.tensor(rows)[None], torch.tensor(g), (6, 3), check_invariants=True)
        optimizer.step()
        ours, state = step(ours, state, optchain.RowGradient(jnp.asarray(rows), jnp.asarray(g), shape=(6, 3)))
    np.testing.assert_allclose(ours, table.detach().numpy(), atol=2e-5)
