"""A run moves from PyTorch to optchain in the middle, or back, and ends where an uninterrupted one does."""

import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import optchain
from optchain.interop import torch as interop

torch = pytest.importorskip("torch", reason="PyTorch parity tests were left out: pip install torch==2.13.0")

STEPS = 30
BOUND = 5e-6
"""Of the largest number of a leaf: a few roundings of float32, which sixty steps add up."""


class Net(nn.Module):
    """The same network as `torch_net`, in Flax."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.Conv(6, (3, 3), padding="VALID", name="conv")(images)
        x = nn.tanh(nn.LayerNorm(epsilon=1e-5, name="norm")(x))
        return nn.Dense(4, name="head")(x.mean((1, 2)))


PATHS = {
    "conv/kernel": "conv.weight",
    "conv/bias": "conv.bias",
    "norm/scale": "norm.weight",
    "norm/bias": "norm.bias",
    "head/kernel": "head.weight",
    "head/bias": "head.bias",
}


class TorchNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3)
        self.norm = torch.nn.LayerNorm(6)
        self.head = torch.nn.Linear(6, 4)

    def forward(self, images: Any) -> Any:
        x = self.conv(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.head(torch.tanh(self.norm(x)).mean((1, 2)))


RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2 * STEPS, 8, 6, 6, 3)).astype(np.float32)
LABELS = RNG.integers(4, size=(2 * STEPS, 8))
BATCHES = list(zip(IMAGES, LABELS, strict=True))


def groups(net: Any) -> list[dict[str, Any]]:
    """Biases and norms in a group of their own, as many recipes have them."""
    named = list(net.named_parameters())
    plain = [(name, p) for name, p in named if "bias" in name or "norm" in name]
    return [
        {"params": [p for name, p in named if not ("bias" in name or "norm" in name)]},
        {"params": [p for _, p in plain], "weight_decay": 0.0, "lr": 0.02},
    ]


# Our paths in the order of those two groups.
ORDER = ["conv/kernel", "head/kernel", "conv/bias", "norm/scale", "norm/bias", "head/bias"]

# PyTorch computes bias corrections in double precision, ours in float32, where 1 − 0.999 is off by 1.3e-5 of itself and
# 1 − 0.99 by 1e-6: a bias that starts at zero is nothing but updates, and shows it.
BETAS = (0.9, 0.99)
OPTIMIZERS = {
    "AdamW": lambda net: torch.optim.AdamW(groups(net), lr=5e-3, betas=BETAS, weight_decay=0.1),
    "AdamW_amsgrad": lambda net: torch.optim.AdamW(groups(net), lr=5e-3, betas=BETAS, amsgrad=True),
    "SGD": lambda net: torch.optim.SGD(groups(net), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
}


def torch_run(net: Any, optimizer: Any, batches: list[Any]) -> None:
    for images, labels in batches:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(torch.tensor(images)), torch.tensor(labels))
        loss.backward()
        optimizer.step()


def loss_fn(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    logits = Net().apply({"params": params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@functools.cache
def step_of(tx: optchain.Transformation) -> Any:
    return optchain.make_step(loss_fn, tx)


def our_run(tx: optchain.Transformation, params: Any, state: Any, batches: list[Any]) -> tuple[Any, Any]:
    for images, labels in batches:
        params, state, _ = step_of(tx)(params, state, images, labels)
    return params, state


def fresh_net() -> Any:
    torch.manual_seed(0)
    return TorchNet()


def empty_params() -> Any:
    return jax.eval_shape(Net().init, jax.random.key(0), IMAGES[0])["params"]


def in_flax(net: Any) -> Any:
    return interop.load_params(empty_params(), net.state_dict(), PATHS)


def error(actual: Any, expected: Any) -> float:
    """The largest difference of a leaf, in units of its largest number."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return max(float(np.abs(a - b).max() / (np.abs(b).max() + 1e-3)) for a, b in pairs)


@pytest.fixture(scope="module", params=OPTIMIZERS, ids=str)
def torch_runs(request: pytest.FixtureRequest) -> Any:
    """A name, what builds the optimizer, and the parameters of an uninterrupted run of PyTorch."""
    build = OPTIMIZERS[request.param]
    net = fresh_net()
    torch_run(net, build(net), BATCHES)
    return request.param, build, in_flax(net)


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_run_of_torch_goes_on_in_flax_as_if_nothing_had_happened(torch_runs, suffix, tmp_path, record_error):
    name, build, expected = torch_runs
    net = fresh_net()
    optimizer = build(net)
    torch_run(net, optimizer, BATCHES[:STEPS])
    tx = interop.from_torch(optimizer, ORDER)
    file = tmp_path / f"halfway{suffix}"
    interop.write(file, net.state_dict(), optimizer.state_dict())

    halfway = interop.read(file)
    params = interop.load_params(empty_params(), halfway.model, PATHS)
    state = interop.load_state_dict(tx, params, halfway.optimizer, ORDER)
    params, _ = our_run(tx, params, state, BATCHES[STEPS:])
    record_error(("PyTorch", f"{name} moved in", "float32", suffix), error(params, expected))
    assert error(params, expected) <= BOUND


def test_a_run_in_flax_goes_on_in_torch_as_if_nothing_had_happened(torch_runs, tmp_path, record_error):
    name, build, expected = torch_runs
    net = fresh_net()
    tx = interop.from_torch(build(net), ORDER)
    params = in_flax(net)
    params, state = our_run(tx, params, tx.init(params), BATCHES[:STEPS])
    file = tmp_path / "halfway.pt"
    interop.write(file, interop.params_to_state_dict(params, PATHS), interop.to_state_dict(tx, params, state, ORDER))

    saved = torch.load(file, weights_only=True)
    net = TorchNet()
    net.load_state_dict(saved["model"])
    optimizer = build(net)
    optimizer.load_state_dict(saved["optimizer"])
    torch_run(net, optimizer, BATCHES[STEPS:])
    record_error(("PyTorch", f"{name} moved out", "float32", ".pt"), error(in_flax(net), expected))
    assert error(in_flax(net), expected) <= BOUND


def test_the_error_of_a_run_whose_state_is_lost_is_not_within_the_bound(torch_runs):
    """The comparison sees a state that starts anew."""
    _, build, expected = torch_runs
    net = fresh_net()
    optimizer = build(net)
    torch_run(net, optimizer, BATCHES[:STEPS])
    tx = interop.from_torch(optimizer, ORDER)
    params = in_flax(net)
    params, _ = our_run(tx, params, tx.init(params), BATCHES[STEPS:])
    assert error(params, expected) > 100 * BOUND
