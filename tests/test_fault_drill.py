"""A float16 run on handwritten digits, with faults in a tenth of its micro-batches: it learns as if there were none."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optchain as oc
from tests.sampling import others_for_release

ROWS, MICRO, WINDOW = 64, 1200, 3
"""Rows of a micro-batch, micro-batches of the run, micro-batches of an update."""
INITIAL_SCALE = 2.0**10
HUGE = 6e4  # finite in float16; its square, and what the scale makes of it, are not
ALL_FAULTS = (np.nan, np.inf, HUGE)


@dataclasses.dataclass
class Outcome:
    accuracy: float
    params: Any
    state: Any
    updates: int
    scales: list[float]
    """What the loss was multiplied by at each micro-batch."""
    skipped: list[bool]
    """Whether the scale was halved after each."""


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, ...]:
    x, y = load_digits(return_X_y=True)
    return train_test_split((x / 16).astype(np.float16), y, test_size=0.3, random_state=0, stratify=y)


def logits_of(params: Any, x: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


def loss_fn(params: Any, x: jax.Array, y: jax.Array, fault: jax.Array) -> jax.Array:
    """The cross-entropy, its logits and gradients in float16; `fault` is 1 in a healthy micro-batch."""
    assert params["out"]["kernel"].dtype == jnp.float16
    logits = logits_of(params, x)
    assert logits.dtype == jnp.float16
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), y[:, None], axis=1)
    return -jnp.mean(chosen) * fault


def initial_params() -> Any:
    rng = np.random.default_rng(0)

    def kernel(rows: int, columns: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(rows, columns)) * np.sqrt(2 / rows), jnp.float16)

    return {
        "hidden": {"kernel": kernel(64, 32), "bias": jnp.zeros(32, jnp.float16)},
        "out": {"kernel": kernel(32, 10), "bias": jnp.zeros(10, jnp.float16)},
    }


def micro_batches(x: np.ndarray, y: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    for _ in range(count):
        rows = rng.integers(len(x), size=ROWS)
        yield x[rows], y[rows]


def faults_of(kinds: tuple[float, ...], share: float = 0.1) -> np.ndarray:
    """What each micro-batch's loss is multiplied by: 1 in nine of ten, else one of the kinds."""
    rng = np.random.default_rng(2)
    faults = np.ones(MICRO, np.float32)
    struck = rng.permutation(MICRO)[: int(share * MICRO)]
    faults[struck] = rng.choice(kinds, size=len(struck))
    return faults


def train(digits: tuple[np.ndarray, ...], tx: oc.Transformation, faults: np.ndarray) -> Outcome:
    x_train, x_test, y_train, y_test = digits
    step = oc.make_step(loss_fn, tx)
    params = initial_params()
    state = tx.init(params)
    scales, skipped = [], []
    for (x, y), fault in zip(micro_batches(x_train, y_train, len(faults)), faults, strict=True):
        scale = float(oc.scale_loss(jnp.float32(1.0), state))
        params, state, metrics = step(params, state, x, y, fault)
        scales.append(scale)
        skipped.append(float(metrics.get("loss_scale", scale)) < scale)
        assert np.isfinite(metrics["loss"]) == np.isfinite(fault)
    assert step._cache_size() == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    accuracy = float(np.mean(np.argmax(logits_of(params, x_test), axis=1) == y_test))
    return Outcome(accuracy, params, state, updates_in(state), scales, skipped)


def updates_in(state: Any) -> int:
    """How often Adam ran."""
    counts = [
        int(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if jax.tree_util.keystr(path[-2:]) == "['scale_by_adam']['count']"
    ]
    (count,) = counts
    return count


def rule() -> oc.Transformation:
    return oc.adamw(oc.schedules.CosineDecay(0.01, MICRO // WINDOW), 1e-3)


# With a fault in every tenth call the scale finds a size only if it grows faster than faults halve it.
GROWTH = 5


def outside() -> oc.Transformation:
    return oc.dynamic_loss_scale(oc.accumulate(rule(), WINDOW), INITIAL_SCALE, GROWTH)


@pytest.fixture(scope="module")
def clean(digits: tuple[np.ndarray, ...]) -> Outcome:
    return train(digits, outside(), np.ones(MICRO, np.float32))


@pytest.mark.thorough
def test_the_clean_run_learns(clean: Outcome) -> None:
    assert clean.accuracy > 0.95
    assert clean.updates == (MICRO - sum(clean.skipped)) // WINDOW


@pytest.mark.thorough
@pytest.mark.parametrize(
    "kinds", others_for_release([(np.nan,), (np.inf, -np.inf), (HUGE,), ALL_FAULTS], ALL_FAULTS), ids=str
)
def test_faults_in_a_tenth_of_the_micro_batches_cost_no_point_of_accuracy(
    digits: tuple[np.ndarray, ...], clean: Outcome, kinds: tuple[float, ...]
) -> None:
    faults = faults_of(kinds)
    struck = faults != 1
    assert struck.sum() == MICRO // 10
    outcome = train(digits, outside(), faults)
    assert outcome.accuracy >= clean.accuracy - 0.01
    # Not one fault was let through, and not one good call was lost but to the scale's own growth.
    assert all(np.array(outcome.skipped)[struck])
    assert outcome.updates == (MICRO - sum(outcome.skipped)) // WINDOW
    assert int(outcome.state["inner"]["count"]) == (MICRO - sum(outcome.skipped)) % WINDOW


@pytest.mark.thorough
def test_the_scale_moved_exactly_as_the_skipped_calls_say(digits: tuple[np.ndarray, ...]) -> None:
    outcome = train(digits, outside(), faults_of(ALL_FAULTS))
    scale, good, expected = INITIAL_SCALE, 0, []
    for bad in outcome.skipped:
        expected.append(scale)
        good = 0 if bad else good + 1
        scale = scale / 2 if bad else scale
        if good == GROWTH:
            scale, good = scale * 2, 0
    assert outcome.scales == expected
    assert int(outcome.state["good_steps"]) == good
    assert min(expected) < INITIAL_SCALE


@pytest.mark.thorough
def test_with_skip_nonfinite_the_faults_are_counted_exactly(digits: tuple[np.ndarray, ...], clean: Outcome) -> None:
    # The counts around a static scale: a fault is skipped, and nothing else is.
    x_train, x_test, y_train, y_test = digits
    inner = oc.chain(oc.unscale_gradients(INITIAL_SCALE), oc.accumulate(rule(), WINDOW))
    tx = oc.skip_nonfinite(inner, max_consecutive=10)
    step = oc.make_step(loss_fn, tx)
    params = initial_params()
    state, faults = tx.init(params), faults_of(ALL_FAULTS)
    run_length = skipped = 0
    for (x, y), fault in zip(micro_batches(x_train, y_train, MICRO), faults, strict=True):
        params, state, metrics = step(params, state, x, y, fault)
        run_length = 0 if fault == 1 else run_length + 1
        skipped += fault != 1
        assert (int(metrics["skipped_steps"]), int(metrics["consecutive"])) == (skipped, run_length)
        oc.raise_if_nonfinite(metrics)
    assert skipped == MICRO // 10
    assert updates_in(state) == (MICRO - skipped) // WINDOW
    accuracy = float(np.mean(np.argmax(logits_of(params, x_test), axis=1) == y_test))
    assert accuracy >= clean.accuracy - 0.01


@pytest.mark.thorough
def test_inside_accumulate_each_window_with_a_fault_is_dropped_whole(digits: tuple[np.ndarray, ...]) -> None:
    tx = oc.chain(oc.unscale_gradients(INITIAL_SCALE), oc.accumulate(oc.skip_nonfinite(rule()), WINDOW))
    faults = faults_of((np.nan, np.inf))
    outcome = train(digits, tx, faults)
    dropped = int((faults.reshape(-1, WINDOW) != 1).any(axis=1).sum())
    assert int(oc.metrics(outcome.state)["skipped_steps"]) == dropped
    assert outcome.updates == MICRO // WINDOW - dropped
    assert outcome.accuracy > 0.9
