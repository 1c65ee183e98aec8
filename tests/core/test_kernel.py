"""Steps of packed state by one kernel a leaf, interpreted on a CPU: the numbers of the step without it.

Both are compiled without fused multiply-adds, which round a product and a sum once, and without XLA's rewriting of arithmetic: what
either does depends on what stands in one loop, and that is what differs here.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain
from optchain.core.gates import Gate
from optchain.core.optax_link import as_transformation
from optchain.core.walk import walk
from tests.contract.table import ROWS
from tests.sampling import others_for_release

UNFUSED = {"xla_cpu_max_isa": "SSE4_2", "xla_disable_hlo_passes": "algsimp", "xla_backend_optimization_level": 3}
ODD = "66 rows, of which 32 numbers are no whole blocks"
SHAPES = {
    "rows": (64, 128),  # blocks down the rows
    "columns": (64, 256),  # blocks along the columns
    "stacked": (2, 64, 128),
    "uneven": (288, 640),  # no multiple of a tile of a TPU
    ODD: (66, 33),
    "vector": (128,),
}
EXACT = ("rows", "columns", "stacked")
PLATFORMS = ("tpu", "cuda")


def has_gate(tx: Any) -> bool:
    return any(isinstance(node.link, Gate) for node in walk(as_transformation(tx, "tx")))


ROWS_BY_NAME = {row.name: row for row in ROWS if not row.name.startswith("compact") and not has_gate(row.make())}
KINDS = ("scale_by_adam", "apply_momentum", "scale_by_adamax_torch", "scale_by_nadam")
"""Rules of one slot and of two, with a root and without; a release takes all."""


def compiled(
    tx: optchain.Transformation, params: Any, state: Any, monkeypatch: pytest.MonkeyPatch, platform: str | None
) -> tuple[Callable[[Any, Any], Any], int]:
    """A step, and how many kernels it has; without a platform it has none."""

    def by_platform(
        default: Any, *operands: Any, cpu: Any, in_kernels: Callable[..., list[Any]] | None = None
    ) -> list[Any]:
        if platform is None or in_kernels is None:
            return default(*operands)
        return in_kernels(platform, *jax.tree.leaves(operands), interpret=True)

    monkeypatch.setattr("optchain.core.leaf_by_leaf.by_platform", by_platform)
    grads = jax.tree.map(lambda p: (0.3 * jnp.cos(37 * p.astype(jnp.float32)) + 0.1).astype(p.dtype), params)
    step = jax.jit(lambda p, s, g: tx.apply(p, s, grads=g, loss=jnp.float32(1.0)), compiler_options=UNFUSED)
    traced = step.trace(params, state, grads)
    run = traced.lower().compile()
    return lambda p, s: run(p, s, grads), str(traced.jaxpr).count("name=optchain_leaf")


def test_on_a_cpu_there_are_none_and_nothing_changes() -> None:
    params = {"kernel": jnp.ones((64, 128))}
    steps = [
        jax.jit(lambda p, s, tx=tx: tx.apply(p, s, grads=p))
        for tx in (optchain.compact(optchain.adam(1e-2), kernel=kernel) for kernel in (True, False))
    ]
    state = optchain.compact(optchain.adam(1e-2)).init(params)
    jax.tree.map(np.testing.assert_array_equal, *(step(params, state) for step in steps))


def results(
    tx: optchain.Transformation, shapes: dict[str, Any], platform: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """What the second step makes of a run without kernels and with, and how many there were."""
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    state = tx.init(params)
    if "weights=" in repr(tx):
        params = optchain.narrow(params)
    plain, _ = compiled(tx, params, state, monkeypatch, None)
    by_kernels, kernels = compiled(tx, params, state, monkeypatch, platform)
    params, state = plain(params, state)
    both = [[np.asarray(x) for x in jax.tree.leaves(step(params, state))] for step in (plain, by_kernels)]
    return list(zip(*both, strict=True)), kernels


def assert_same(
    tx: optchain.Transformation, shapes: dict[str, Any], platform: str, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Requires the same bits, and returns how many kernels there were."""
    found, kernels = results(tx, shapes, platform, monkeypatch)
    for x, y in found:
        np.testing.assert_array_equal(x, y, strict=True)
    return kernels


def assert_same_to_a_rounding(
    tx: optchain.Transformation, shapes: dict[str, Any], platform: str, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Likewise, where XLA's CPU backend divides by a square root otherwise in one loop than in another.

    Of a number that a rounding moves past what was drawn for it, the code is the next one.
    """
    found, kernels = results(tx, shapes, platform, monkeypatch)
    for x, y in found:
        if x.dtype in (np.int8, np.uint8):
            apart = np.abs(x.astype(np.int32) - y.astype(np.int32))
            assert apart.max() <= 1
            assert apart.mean() <= 1e-3
        else:
            np.testing.assert_allclose(x.astype(np.float64), y.astype(np.float64), rtol=1e-6, atol=1e-6)
    return kernels


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_numbers_are_those_of_the_step_without_kernels(platform: str, monkeypatch: Any) -> None:
    tx = optchain.compact(optchain.adamw(1e-2), weights=24, kernel=True)
    assert assert_same(tx, {"columns": SHAPES["columns"], "vector": SHAPES["vector"]}, platform, monkeypatch) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("weights", others_for_release([None, 24, 32, "stochastic"], None, 24))
def test_so_they_are_for_leaves_of_every_shape(platform: str, weights: Any, monkeypatch: Any) -> None:
    tx = optchain.compact(optchain.adamw(1e-2, global_clipnorm=1.0, use_ema=True), weights=weights, kernel=True)
    assert assert_same(tx, {name: SHAPES[name] for name in (*EXACT, "vector", ODD)}, platform, monkeypatch) == len(
        EXACT
    )


@pytest.mark.thorough
@pytest.mark.parametrize("name", others_for_release(ROWS_BY_NAME, *KINDS))
def test_to_a_rounding_so_they_are_for_every_rule(name: str, monkeypatch: Any) -> None:
    tx = optchain.compact(ROWS_BY_NAME[name].make(), kernel=True)
    kernels = assert_same_to_a_rounding(tx, {"bias": SHAPES["vector"], "kernel": SHAPES["rows"]}, "tpu", monkeypatch)
    assert kernels == 1 or name not in KINDS


@pytest.mark.thorough
def test_to_a_rounding_so_they_are_where_no_tile_divides_the_leaf(monkeypatch: Any) -> None:
    tx = optchain.compact(optchain.adamw(1e-2), kernel=True)
    assert assert_same_to_a_rounding(tx, {"uneven": SHAPES["uneven"]}, "tpu", monkeypatch) == 1


def test_a_gate_within_gets_no_kernel_and_is_refused() -> None:
    for inner in (optchain.adamw(1e-2, gradient_accumulation_steps=2), optchain.skip_nonfinite(optchain.adamw(1e-2))):
        with pytest.raises(
            ValueError, match=r"kernel=True has no effect on what .* lets through: put .* around compact"
        ):
            optchain.compact(inner, kernel=True)
    optchain.skip_nonfinite(optchain.compact(optchain.adamw(1e-2), kernel=True))
