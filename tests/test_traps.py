"""The traps that users of today's libraries fall into, one test each: here it is right, or a clear error.

Each docstring quotes the trap.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training import train_state

import optchain as oc

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}
GRADS = {"w": jnp.array([0.1, 0.3]), "b": jnp.array([-0.2])}


def like(tree, value):
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), tree)


def finite(tree):
    return all(np.isfinite(np.asarray(leaf, np.float64)).all() for leaf in jax.tree.leaves(tree))


def update_run(tx, grads, params=PARAMS):
    """Optax's own loop: `(params, state)` after one call for each gradient."""
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


# The fifteen ----------------------------------------------------------------------------------------------------------


def test_01_a_nan_micro_batch_ruins_its_own_window_only():
    """'One NaN micro-batch ruins MultiSteps for good: updates stay NaN even on micro-steps that should emit zeros.'"""
    tx = oc.accumulate(oc.sgd(0.1), 2)
    state = tx.init(PARAMS)
    seen = []
    for g in (like(GRADS, jnp.nan), GRADS, GRADS, GRADS):
        updates, state = tx.update(g, state, PARAMS)
        seen.append(updates)
    assert not seen[0]["w"].any(), "zeros while it accumulates, NaN or not"
    assert np.isnan(seen[1]["w"]).all(), "the window with the NaN does not hide it"
    assert not seen[2]["w"].any()
    np.testing.assert_allclose(seen[3]["w"], -0.1 * GRADS["w"], rtol=1e-6)


@pytest.mark.parametrize("as_array", [False, True])
def test_02_hyperparameters_beside_bfloat16_parameters_stay_float32(as_array):
    """'Hyperparameters are cast to bf16, b2=0.999 becomes 1.0, bias correction divides 0 by 0: NaN at step 1.'"""
    params, grads = ({"w": jnp.ones(3, jnp.bfloat16)} for _ in range(2))
    tx = oc.adam(1e-2, 0.9, jnp.array(0.999) if as_array else 0.999)
    updates, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(np.asarray(updates["w"], np.float32), -0.01, rtol=1e-2)
    assert {value.dtype for value in oc.get_hyperparams(state).values()} == {jnp.dtype("float32")}


def test_03_a_mask_function_is_a_mask_and_never_a_schedule():
    """'The mask function is taken for a schedule, called with the step count, and decay is switched off everywhere.'"""

    def mask(params):
        return jax.tree.map(lambda p: p.ndim > 0, params)

    zeros = like(PARAMS, 0.0)
    tx = oc.adamw(1.0, weight_decay=0.1, exclude_from_weight_decay=lambda params: jax.tree.map(lambda p: False, params))
    np.testing.assert_allclose(tx.update(zeros, tx.init(PARAMS), PARAMS)[0]["w"], -0.1 * PARAMS["w"], rtol=1e-6)
    tx = oc.chain(oc.scale_by_learning_rate(), oc.decay_weights(jnp.array(0.1), mask=mask), learning_rate=lambda: 1.0)
    np.testing.assert_allclose(tx.update(zeros, tx.init(PARAMS), PARAMS)[0]["w"], -0.1 * PARAMS["w"], rtol=1e-6)
    # Optax's own injection guesses by type and calls it with the step: a single bool arrives, which is no mask of ours.
    for injected in (
        optax.inject_hyperparams(oc.decay_weights)(weight_decay=0.1, learning_rate=1.0, mask=mask),
        optax.inject_hyperparams(oc.adamw)(0.1, exclude_from_weight_decay=mask),
    ):
        with pytest.raises(TypeError, match=r"(mask|exclude_from_weight_decay) must be a tree of bools or a callable"):
            injected.init(PARAMS)
    injected = optax.inject_hyperparams(oc.decay_weights, static_args="mask")(0.1, learning_rate=1.0, mask=mask)
    np.testing.assert_allclose(
        injected.update(zeros, injected.init(PARAMS), PARAMS)[0]["w"], -0.1 * PARAMS["w"], rtol=1e-6
    )


def test_04_float16_gradients_do_not_overflow_the_norm():
    """'Global norm overflows to inf, clipping then returns all zeros and training stops.'"""
    grads = {"w": jnp.full(3, 300.0, jnp.float16)}
    for clip in (oc.clip_by_global_norm(1.0), oc.clip_by_norm(1.0)):
        updates, _ = clip.update(grads, clip.init(grads))
        np.testing.assert_allclose(np.asarray(updates["w"], np.float32), 3**-0.5, rtol=1e-3)


def test_04_one_infinity_turns_every_leaf_to_nan_and_none_silently_to_zero():
    """'With one true Inf in float32: NaN in that leaf element, zeros elsewhere.'"""
    tx = oc.clip_by_global_norm(1.0)
    updates, state = tx.update({"w": jnp.array([1.0, jnp.inf]), "b": jnp.ones(1)}, tx.init(PARAMS))
    assert all(np.isnan(leaf).all() for leaf in updates.values())
    assert np.isinf(oc.metrics(state)["global_norm"])


def test_05_a_schedule_before_adam_and_decay_of_the_wrong_sign_are_errors():
    """'chain(scale_by_schedule(s), scale_by_adam()) -> +0.9999 regardless of s.  ... grows them, unscaled by LR.'"""
    with pytest.raises(ValueError, match="cancels the learning rate"):
        oc.chain(oc.scale_by_learning_rate(lambda step: 0.1), oc.scale_by_adam())
    with pytest.raises(ValueError, match="weights would grow"):
        oc.chain(oc.decay_weights(1e-2), oc.scale_by_learning_rate(), learning_rate=1e-2)
    tx = oc.chain(oc.adam(1e-2), oc.decay_weights(1e-2, learning_rate=1.0))
    updates, _ = tx.update(like(PARAMS, 0.0), tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["w"], -0.01 * PARAMS["w"], rtol=1e-6)


@pytest.mark.parametrize("gate", [oc.skip_nonfinite, oc.dynamic_loss_scale])
def test_07_a_bad_step_is_never_let_through_and_leaves_the_moments_alone(gate):
    """'apply_if_finite(adam, 2): third consecutive NaN is applied; moments stay NaN although later gradients are fine.'"""
    tx = gate(oc.adam(0.1))
    bad = {"w": jnp.array([0.1, jnp.nan]), "b": jnp.array([jnp.inf])}
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(5):
        params, new_state = tx.apply(params, state, grads=bad)
        np.testing.assert_array_equal(params["w"], PARAMS["w"])
        for old, new in zip(jax.tree.leaves(state["inner"]), jax.tree.leaves(new_state["inner"]), strict=True):
            np.testing.assert_array_equal(old, new)
        state = new_state
    params, state = tx.apply(params, state, grads=GRADS)
    assert finite((params, state))
    assert not np.array_equal(params["w"], PARAMS["w"])


def test_08_a_bfloat16_second_moment_does_not_stall():
    """'bf16 second moment with b2=.999 and g=.1 stalls at 0.0039 (true 0.01).'"""
    params = {"w": jnp.ones(1, jnp.bfloat16)}
    grads = {"w": jnp.full(1, 0.1, jnp.bfloat16)}
    tx = oc.scale_by_adam(0.9, 0.999)

    @jax.jit
    def many(state):
        return jax.lax.fori_loop(0, 8000, lambda _, s: tx.update(grads, s, params)[1], state)

    nu = many(tx.init(params))["nu"]["w"]
    assert nu.dtype == jnp.float32
    np.testing.assert_allclose(nu, float(grads["w"][0]) ** 2, rtol=1e-3)


def test_09_a_rate_that_is_set_has_effect_without_a_retrace_and_a_scheduled_one_is_refused():
    """'Writing to a scheduled hyperparameter has no effect; writing a Python float to an unscheduled one retraces.'"""
    with pytest.raises(ValueError, match="learning_rate is scheduled"):
        oc.set_hyperparams(oc.sgd(lambda step: 0.1).init(PARAMS), learning_rate=0.0)
    tx = oc.sgd(0.1)
    step = jax.jit(tx.update)
    state = tx.init(PARAMS)
    step(GRADS, state, PARAMS)
    updates, _ = step(GRADS, oc.set_hyperparams(state, learning_rate=0.0), PARAMS)
    assert not updates["w"].any()
    assert step._cache_size() == 1


def test_09_after_a_checkpoint_the_rate_in_use_is_readable_and_can_be_set():
    """'After restoring a checkpoint the saved LR silently replaces the newly configured one.'"""
    saved = oc.adamw(0.1).init(PARAMS)
    configured = oc.adamw(0.001)
    assert float(oc.get_hyperparams(saved)["learning_rate"]) == pytest.approx(0.1), "not silent: it can be read"
    state = oc.set_hyperparams(saved, oc.get_hyperparams(configured.init(PARAMS)))
    _, state = configured.update(GRADS, state, PARAMS)
    assert float(oc.metrics(state)["learning_rate"]) == pytest.approx(0.001)


def test_10_swapped_trees_are_a_type_error():
    """'tx.update(params, state, grads) with the two trees swapped: no error, since structures match.'"""
    tx = oc.sgd(0.1)
    with pytest.raises(TypeError, match="positional argument"):
        tx.apply(PARAMS, tx.init(PARAMS), GRADS)
    named, _ = tx.apply(params=PARAMS, state=tx.init(PARAMS), grads=GRADS)
    np.testing.assert_allclose(named["w"], PARAMS["w"] - 0.1 * GRADS["w"])


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (3,), ()])
def test_10_a_gradient_that_would_broadcast_is_an_error(shape):
    """'Shape mismatch also broadcasts: grads (1,3) for params (3,3) accepted.'"""
    tx, params, grads = oc.sgd(0.1), {"w": jnp.ones((3, 3))}, {"w": jnp.ones(shape)}
    for call in (
        lambda: tx.update(grads, tx.init(params), params),
        lambda: tx.apply(params, tx.init(params), grads=grads),
    ):
        with pytest.raises(ValueError, match=r"w.*shape \(.*\), params have \(3, 3\)"):
            call()


def test_11_missing_params_name_the_link_and_the_call():
    """'You are using a transformation that requires the current value of parameters ... Does not name the link.'"""
    tx = oc.adamw(1e-3)
    with pytest.raises(ValueError, match=r"decay_weights needs the parameters.*tx\.update\(updates, state, params\)"):
        tx.update(GRADS, tx.init(PARAMS))


def test_12_a_checkpoint_restored_without_a_template_goes_on(tmp_path):
    """'AttributeError: 'dict' object has no attribute 'mu' <- Orbax restore without target, then update.'"""
    tx = oc.adamw(0.1, clipnorm=1.0, use_ema=True, gradient_accumulation_steps=2)
    params, state = update_run(tx, [GRADS] * 3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "state")
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    np.testing.assert_array_equal(
        tx.apply(params, restored, grads=GRADS)[0]["w"], tx.apply(params, state, grads=GRADS)[0]["w"]
    )


def test_12_a_state_of_another_configuration_names_what_is_missing():
    """'... tree structures do not match <- replacing a float LR by a schedule.'"""
    scheduled = oc.adamw(lambda step: 0.1)
    with pytest.raises(ValueError, match=r"the state of adamw has no entry 'count'"):
        scheduled.update(GRADS, oc.adamw(0.1).init(PARAMS), PARAMS)


@pytest.mark.parametrize("use", ["scan", "cond", "accumulate"])
def test_13_float32_gradients_of_bfloat16_parameters_keep_every_type(use):
    """'TypeError: cond branches must have equal output types ... / scan body function carry input and carry output ...'"""
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    grads = {"w": jnp.full(3, 0.1, jnp.float32)}
    tx = oc.adamw(
        0.1, use_ema=True, global_clipnorm=1.0, gradient_accumulation_steps=2 if use == "accumulate" else None
    )
    carry = (params, tx.init(params))

    def step(carry):
        return tx.apply(*carry, grads=grads)

    @jax.jit
    def run(carry):
        if use == "cond":
            return jax.lax.cond(jnp.array(True), step, lambda carry: carry, carry)
        return jax.lax.scan(lambda carry, _: (step(carry), None), carry, length=2)[0]

    after = run(carry)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), carry)


def test_14_an_exclusion_by_pattern_does_not_depend_on_the_container():
    """'ValueError: pytree structure error: different types at key path ... dict ... nnx.State', labels and masks."""
    tx = oc.sgd(1.0, weight_decay=0.5, exclude_from_weight_decay=["bias"])
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    model.bias[...] = jnp.ones(2)
    kernel = np.asarray(model.kernel[...])
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
    np.testing.assert_allclose(model.kernel[...], 0.5 * kernel, rtol=1e-6)
    np.testing.assert_array_equal(model.bias[...], 1.0)


def test_15_no_state_aliases_the_parameters():
    """'Attempt to donate the same buffer twice in Execute() <- state that aliases params (EMA started as ema=params).'"""
    tx = oc.adamw(0.1, use_ema=True)
    params = jax.tree.map(jnp.copy, PARAMS)
    step = jax.jit(lambda p, s, g: tx.apply(p, s, grads=g), donate_argnums=(0, 1))
    carry = (params, tx.init(params))
    for _ in range(3):
        carry = step(*carry, GRADS)
    assert finite(carry)


# Further silent ones --------------------------------------------------------------------------------------------------


def test_a_pattern_with_a_typo_is_an_error():
    """'A mask pattern with a typo disables decay everywhere.'"""
    with pytest.raises(ValueError, match=r"matches no parameter; the paths are: b, w"):
        oc.adamw(0.1, exclude_from_weight_decay=["biass"]).init(PARAMS)


def test_clipping_before_unscaling_is_an_error_and_the_preset_unscales_first():
    """'Clip before unscaling a 1024x loss gives 1/1024 of the clip.'"""
    with pytest.raises(ValueError, match="still scaled"):
        oc.chain(oc.clip_by_global_norm(1.0), oc.unscale_gradients(1024.0), oc.scale_by_learning_rate(1.0))
    tx = oc.sgd(1.0, global_clipnorm=0.1, loss_scale_factor=1024.0)
    updates, _ = tx.update(jax.tree.map(lambda g: 1024 * g, GRADS), tx.init(PARAMS), PARAMS)
    assert float(optax.tree.norm(updates)) == pytest.approx(0.1, rel=1e-5)


def test_clipping_in_a_preset_acts_on_the_mean():
    """'Clipping inside vs outside MultiSteps differs ([-0.5] vs [0.0]).'"""
    tx = oc.sgd(1.0, clipvalue=1.0, gradient_accumulation_steps=2)
    params = {"w": jnp.zeros(1)}
    after, _ = update_run(tx, [{"w": jnp.array([3.0])}, {"w": jnp.array([-2.0])}], params)
    np.testing.assert_allclose(after["w"], -0.5)


def test_decay_in_a_preset_acts_once_an_update():
    """'Decay chained outside MultiSteps runs every micro-step.'"""
    tx = oc.adamw(0.1, weight_decay=0.5, gradient_accumulation_steps=4)
    after, _ = update_run(tx, [like(PARAMS, 0.0)] * 4)
    np.testing.assert_allclose(after["w"], 0.95 * PARAMS["w"], rtol=1e-6)


def test_the_tail_of_an_epoch_can_be_flushed():
    """'The tail micro-batches of an epoch stay in the accumulator.'"""
    tx = oc.sgd(1.0, gradient_accumulation_steps=4)
    params, state = update_run(tx, [GRADS, GRADS])
    np.testing.assert_array_equal(params["w"], PARAMS["w"])
    params, state = oc.flush(tx, params, state)
    np.testing.assert_allclose(params["w"], PARAMS["w"] - GRADS["w"], rtol=1e-6)
    after, _ = oc.flush(tx, params, state)
    np.testing.assert_array_equal(after["w"], params["w"])


def test_a_new_object_per_call_does_not_retrace():
    """'A new optax.adam() object per call retraces each time (3 of 3, also through TrainState).'"""
    traces = 0

    @jax.jit
    def step(state, grads):
        nonlocal traces
        traces += 1
        return state.apply_gradients(grads=grads)

    for _ in range(3):
        tx = oc.adamw(0.1, exclude_from_weight_decay=["b"], use_ema=True)
        state = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
        step(state, GRADS)
    assert traces == 1


def test_weakly_typed_parameters_cost_one_trace_more_and_no_third():
    """'Weak-typed initial params cost extra traces.' The first step strengthens them; the state is strong from the start."""
    tx = oc.adamw(0.1, use_ema=True)
    params = {"w": jnp.asarray(2.0)}
    state = tx.init(params)
    step = jax.jit(lambda p, s: tx.apply(p, s, grads={"w": jnp.ones(())}))
    for _ in range(3):
        params, state = step(params, state)
        assert not params["w"].weak_type
    assert step._cache_size() == 2


def test_a_function_among_the_leaves_is_named():
    """'zeros_like requires ndarray or scalar arguments, got <class 'jax._src.custom_derivatives.custom_jvp'>'"""
    with pytest.raises(TypeError, match=r"params.*activation.*custom_jvp.*put None or optax\.MaskedNode\(\)"):
        oc.adam(0.1).init({"w": jnp.ones(2), "activation": jax.nn.relu})


def test_a_none_gradient_is_named():
    """'unsupported operand type(s) for *: 'float' and 'NoneType''"""
    with pytest.raises(ValueError, match=r"grads.*b.* is missing, params have an array of shape \(1,\) there"):
        oc.sgd(0.1).apply(PARAMS, oc.sgd(0.1).init(PARAMS), grads={"w": GRADS["w"], "b": None})


def test_two_learning_rates_are_both_readable_by_path():
    """'Found multiple values for 'learning_rate' (optax.tree.get with a schedule, or with two groups)'"""
    tx = optax.multi_transform({"w": oc.sgd(0.1), "b": oc.sgd(lambda step: 0.2)}, {"w": "w", "b": "b"})
    rates = oc.get_hyperparams(tx.init(PARAMS))
    assert sorted(float(rate) for rate in rates.values()) == pytest.approx([0.1, 0.2])


def test_every_donated_buffer_is_usable():
    """'Some donated buffers were not usable (state dtype changed)'"""
    params = {"w": jnp.ones(8, jnp.bfloat16)}
    tx = oc.adamw(0.1, use_ema=True, gradient_accumulation_steps=2, global_clipnorm=1.0)
    step = jax.jit(lambda p, s, g: tx.apply(p, s, grads=g), donate_argnums=(0, 1))
    carry = (params, tx.init(params))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            carry = step(*carry, {"w": jnp.ones(8, jnp.float32)})
    assert finite(carry)


def test_an_average_of_parameters_is_one_of_parameters():
    """'optax.ema averages updates, not parameters; one project adopted it for model EMA.'"""
    tx = oc.sgd(1.0, use_ema=True, ema_momentum=0.5)
    params, state = update_run(tx, [GRADS, GRADS])
    expected = PARAMS["w"] - 1.5 * GRADS["w"]
    np.testing.assert_allclose(oc.averaged_params(state)["w"], expected, rtol=1e-6)
    assert not np.allclose(params["w"], expected)


def test_adam_is_kerass_where_epsilon_matters():
    """'Measured at g=1e-7, lr 1e-3, step 1: Keras Adam -3.07e-5, Optax eps=1e-7 -5.0e-4.'"""
    params, grads = {"w": jnp.zeros(1)}, {"w": jnp.full(1, 1e-7)}
    keras, _ = oc.adam(1e-3).update(grads, oc.adam(1e-3).init(params), params)
    np.testing.assert_allclose(keras["w"], -3.065e-5, rtol=1e-3)
    paper = oc.chain(oc.scale_by_adam(epsilon_hat=False), oc.scale_by_learning_rate(1e-3))
    np.testing.assert_allclose(paper.update(grads, paper.init(params))[0]["w"], -5.0e-4, rtol=1e-3)


def test_the_first_step_sees_step_zero():
    """'count started at 1' and other off-by-one schedules."""
    seen = oc.get_hyperparams(oc.sgd(lambda step: step + 0.0).init(PARAMS))["learning_rate"]
    assert float(seen) == 0.0
    _, state = update_run(oc.sgd(lambda step: step + 0.0), [GRADS])
    assert float(oc.metrics(state)["learning_rate"]) == 0.0


def test_a_link_that_asks_for_the_loss_says_so():
    """'update_fn() missing 1 required keyword-only argument: 'value' (reduce_on_plateau)'"""

    @oc.register(name="test_traps.polyak")
    def polyak():
        def update(updates, state, params, *, value):
            return jax.tree.map(lambda u: u * value, updates), state

        return oc.Transformation(update=update)

    tx = oc.chain(oc.accumulate(oc.chain(polyak(), oc.scale_by_learning_rate(0.1)), 2))
    with pytest.raises(TypeError, match="polyak needs value, and the call did not give it"):
        tx.apply(PARAMS, tx.init(PARAMS), grads=GRADS)


@pytest.mark.parametrize("around", [lambda tx: tx, lambda tx: oc.accumulate(tx, 2), oc.skip_nonfinite])
@pytest.mark.parametrize("alone", [True, False])
def test_an_optax_link_that_asks_for_the_loss_is_named_and_so_is_the_remedy(around, alone):
    plateau = optax.contrib.reduce_on_plateau()
    link = plateau if alone else optax.chain(optax.scale(0.5), plateau)
    tx = around(oc.chain(oc.sgd(0.1), ("plateau", link)))
    state = tx.init(PARAMS)
    words = r"plateau \(Optax's reduce_on_plateau\) needs value, and the call did not give it"
    for step in (tx.apply, jax.jit(tx.apply)):
        with pytest.raises(TypeError, match=rf"{words}: give it to the call, tx\.apply\(…, value=…\)"):
            step(PARAMS, state, grads=GRADS)
    with pytest.raises(TypeError, match=rf"{words}, but valeu, which may be a misspelling"):
        tx.update(GRADS, state, PARAMS, valeu=1.0)
    tx.apply(PARAMS, state, grads=GRADS, value=1.0)
