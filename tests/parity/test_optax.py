"""Chains of optchain's links against Optax's own optimizers, at a constant learning rate."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optchain

from .helpers import BOUNDS, DTYPES, fewer, precision, random_grads, random_params, run, run_forms, worst_error
from .recipes import floats32, log_uniform

pytestmark = pytest.mark.each_value

SEEDS = st.integers(0, 2**32 - 1)
RATES = log_uniform(-4, -1)
ADAM = {"b1": floats32(0, 0.99), "b2": floats32(0.5, 0.999), "eps": log_uniform(-8, -1)}
MOMENTUM = {"momentum": st.none() | floats32(0, 1), "nesterov": st.booleans()}


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=SEEDS, rate=RATES, decay=floats32(0, 0.5), rule=st.fixed_dictionaries(ADAM))
@fewer
def test_adam_chain_with_decay_equals_optax_adamw(
    dtype: str, seed: int, rate: float, decay: float, rule: dict[str, float], record_error: Callable
) -> None:
    ours = adam_chain(rate, rule, optchain.decay_weights(decay))
    check("adamw", dtype, seed, ours, optax.adamw(rate, **rule, weight_decay=decay), record_error)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=SEEDS, rate=RATES, rule=st.fixed_dictionaries(ADAM))
@fewer
def test_adam_chain_equals_optax_adam(
    dtype: str, seed: int, rate: float, rule: dict[str, float], record_error: Callable
) -> None:
    check("adam", dtype, seed, adam_chain(rate, rule), optax.adam(rate, **rule), record_error)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=SEEDS, rate=RATES, rule=st.fixed_dictionaries(MOMENTUM))
@fewer
def test_sgd_equals_optax_sgd_at_a_constant_rate(
    dtype: str, seed: int, rate: float, rule: dict[str, Any], record_error: Callable
) -> None:
    ours = optchain.sgd(rate, momentum=rule["momentum"] or 0.0, nesterov=rule["nesterov"])
    check("sgd", dtype, seed, ours, optax.sgd(rate, **rule), record_error)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=SEEDS, max_norm=log_uniform(-2, 2))
@fewer
def test_clip_by_global_norm_equals_optax(dtype: str, seed: int, max_norm: float, record_error: Callable) -> None:
    ours = optchain.chain(optchain.clip_by_global_norm(max_norm), optchain.scale_by_learning_rate(0.1))
    theirs = optax.chain(optax.clip_by_global_norm(max_norm), optax.scale_by_learning_rate(0.1))
    check("clip_by_global_norm", dtype, seed, ours, theirs, record_error)


# Links that have the name of one of Optax's: the same, but for epsilon's and the decays' names.
SAME = {
    "scale_by_rms": (lambda: optchain.scale_by_rms(0.9, 1e-3), lambda: optax.scale_by_rms(0.9, 1e-3)),
    "scale_by_rms outside": (
        lambda: optchain.scale_by_rms(0.9, 1e-3, epsilon_in_root=False, bias_correction=True),
        lambda: optax.scale_by_rms(0.9, 1e-3, eps_in_sqrt=False, bias_correction=True),
    ),
    "scale_by_stddev": (
        lambda: optchain.scale_by_rms(0.9, 1e-3, centered=True),
        lambda: optax.scale_by_stddev(0.9, 1e-3),
    ),
    "scale_by_stddev corrected": (
        lambda: optchain.scale_by_rms(0.9, 1e-3, centered=True, bias_correction=True),
        lambda: optax.scale_by_stddev(0.9, 1e-3, bias_correction=True),
    ),
    "scale_by_rss": (lambda: optchain.scale_by_rss(0.1, 1e-3), lambda: optax.scale_by_rss(0.1, 1e-3)),
    "scale_by_adadelta": (lambda: optchain.scale_by_adadelta(0.9, 1e-3), lambda: optax.scale_by_adadelta(0.9, 1e-3)),
    "scale_by_lion": (lambda: optchain.scale_by_lion(0.9, 0.95), lambda: optax.scale_by_lion(0.9, 0.95)),
    "scale_by_trust_ratio": (optchain.scale_by_trust_ratio, optax.scale_by_trust_ratio),
    "clip_by_block_rms": (lambda: optchain.clip_by_block_rms(0.5), lambda: optax.clip_by_block_rms(0.5)),
    "scale_by_param_block_rms": (optchain.scale_by_param_block_rms, optax.scale_by_param_block_rms),
    "scale": (lambda: optchain.scale(-2), lambda: optax.scale(-2)),
}


# The corrected variance of a single gradient is a difference of equals: in float32 it is what rounding leaves.
@pytest.mark.parametrize(
    ("link", "dtype"),
    [(link, dtype) for link in SAME for dtype in DTYPES if (link, dtype) != ("scale_by_stddev corrected", "float32")],
)
def test_a_link_with_the_name_of_one_of_optaxs_equals_it(link: str, dtype: str, record_error: Callable) -> None:
    def descent(rule: optax.GradientTransformation) -> optchain.Transformation:
        return optchain.chain(rule, optchain.scale_by_learning_rate(0.01))

    ours, theirs = (make() for make in SAME[link])
    check(link, dtype, 5, descent(ours), descent(theirs), record_error)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=SEEDS, threshold=log_uniform(-2, 2))
@fewer
def test_clip_by_block_rms_equals_optax(dtype: str, seed: int, threshold: float, record_error: Callable) -> None:
    check_link(dtype, seed, optchain.clip_by_block_rms(threshold), optax.clip_by_block_rms(threshold), record_error)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=SEEDS, clipping=log_uniform(-3, 1), epsilon=log_uniform(-4, 0), axis=st.none() | st.sampled_from([0, -1]))
@fewer
def test_adaptive_grad_clip_equals_optax(
    dtype: str, seed: int, clipping: float, epsilon: float, axis: int | None, record_error: Callable
) -> None:
    ours, theirs = (f(clipping, epsilon, axis=axis) for f in (optchain.adaptive_grad_clip, optax.adaptive_grad_clip))
    check_link(dtype, seed, ours, theirs, record_error)


@pytest.mark.for_release
@pytest.mark.parametrize(
    "shape", [(), (4,), (1, 4), (4, 1, 1), (3, 4), (2, 3, 4), (2, 2, 3, 4), (2, 2, 2, 3, 2), (1, 1, 1, 1, 1, 4)]
)
def test_the_units_of_adaptive_grad_clip_are_those_of_optax_at_every_rank(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    params, grads = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    ours, theirs = (
        f(0.3).update(grads, {}, params)[0] for f in (optchain.adaptive_grad_clip, optax.adaptive_grad_clip)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=SEEDS)
@fewer
def test_centralize_gradients_equals_optax_whose_outputs_are_axis_0(
    dtype: str, seed: int, record_error: Callable
) -> None:
    check_link(dtype, seed, optchain.centralize_gradients(output_axis=0), optax.centralize(), record_error)


def test_centralize_gradients_takes_the_mean_over_all_but_the_last_axis() -> None:
    g = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    ours, _ = optchain.centralize_gradients().update(jnp.asarray(g), {})
    theirs, _ = optax.centralize().update(jnp.asarray(g.transpose(2, 0, 1)), optax.EmptyState())
    np.testing.assert_allclose(ours, np.asarray(theirs).transpose(1, 2, 0), atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=SEEDS, rate=RATES, steps=st.integers(1, 5))
@fewer
def test_accumulate_equals_optax_multi_steps(
    dtype: str, seed: int, rate: float, steps: int, record_error: Callable
) -> None:
    inner = optax.adamw(rate, weight_decay=0.1)
    with precision(dtype):  # MultiSteps asks whether there is a float64 when it is built
        theirs = optax.MultiSteps(inner, steps, accumulator_dtype=dtype).gradient_transformation()
    check("MultiSteps", dtype, seed, optchain.accumulate(inner, steps), theirs, record_error)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=SEEDS, rate=RATES, scale=log_uniform(-1, 5))
@fewer
def test_an_optax_link_sees_unscaled_gradients(
    dtype: str, seed: int, rate: float, scale: float, record_error: Callable
) -> None:
    inner = optax.adamw(rate)
    ours = optchain.chain(optchain.unscale_gradients(scale), inner)
    check("adamw, unscaled", dtype, seed, ours, optax.chain(optax.scale(1 / scale), inner), record_error)


def adam_chain(rate: float, rule: dict[str, float], *links: optchain.Transformation) -> optchain.Transformation:
    adam = optchain.scale_by_adam(rule["b1"], rule["b2"], rule["eps"], epsilon_hat=False)
    return optchain.chain(adam, optchain.scale_by_learning_rate(), *links, learning_rate=rate)


def check_link(
    dtype: str,
    seed: int,
    ours: optchain.Transformation,
    theirs: optax.GradientTransformation,
    record_error: Callable,
) -> None:
    """A link before the learning rate, in a run."""
    rate = 0.1
    check(
        ours.name,
        dtype,
        seed,
        optchain.chain(ours, optchain.scale_by_learning_rate(rate)),
        optax.chain(theirs, optax.scale_by_learning_rate(rate)),
        record_error,
    )


def check(
    name: str,
    dtype: str,
    seed: int,
    ours: optchain.Transformation,
    theirs: optax.GradientTransformation,
    record_error: Callable,
) -> None:
    rng = np.random.default_rng(seed)
    params, grads = random_params(rng, dtype), random_grads(rng, dtype, steps=30)
    with precision(dtype):
        expected = run(theirs, params, grads)
        for form, (history, _) in run_forms(ours, params, grads).items():
            error = worst_error(history, expected)
            record_error(("Optax", name, dtype, form), error)
            assert error <= BOUNDS[dtype], form
