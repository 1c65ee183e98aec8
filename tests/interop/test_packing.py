"""A run goes on with its state stored in another way: in codes, wide again, or as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optchain as oc
from optchain.core import storage
from optchain.interop import orbax
from optchain.interop.merging import merge
from optchain.interop.optax import to_optax_state

KEYS = jax.random.split(jax.random.key(0), 3)
PARAMS = {"kernel": jax.random.normal(KEYS[0], (64, 96)), "bias": jnp.zeros(96)}
GRADS = {"kernel": jax.random.normal(KEYS[1], (64, 96)), "bias": jax.random.normal(KEYS[2], (96,))}
WIDE = oc.adamw(1e-2, use_ema=True, ema_momentum=0.9)
STORED = {
    "wide": WIDE,
    "int8": oc.compact(WIDE, average="int8"),
    "bfloat16": oc.compact(WIDE, moments="bfloat16", average="bfloat16"),
    "some": oc.compact(WIDE, moments={"nu": "int8"}),
}


def trained(tx, steps=3):
    params, state = PARAMS, tx.init(PARAMS)
    step = jax.jit(lambda p, s: tx.apply(p, s, grads=GRADS))
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def numbers(state):
    """The moments and the average, loaded."""
    state = state.get("inner", state)
    adam = state["scale_by_adam"]
    return {"mu": storage.load(adam["mu"]), "nu": storage.load(adam["nu"]), "average": oc.averaged_params(state)}


@pytest.mark.parametrize("now", STORED)
@pytest.mark.parametrize("before", STORED)
def test_the_numbers_are_those_that_were_saved(before, now):
    _, saved = trained(STORED[before])
    state, report = merge(saved, STORED[now].init(PARAMS), hyperparams="saved")
    assert (report.new, report.gone) == ([], [])
    assert jax.tree.structure(state) == jax.tree.structure(STORED[now].init(PARAMS))
    found, right = numbers(state), numbers(saved)
    if before == now:
        jax.tree.map(np.testing.assert_array_equal, state, saved)
    for name, tree in found.items():
        for key, x in tree.items():
            largest = float(jnp.abs(right[name][key]).max())
            smallest = {"mu": 0.04, "nu": 2.0**-16, "average": 1 / 127}[name]  # in units of the largest
            code = {"mu": 0.05, "nu": 2.0**-3, "average": 0.0}[name]
            np.testing.assert_allclose(x, right[name][key], rtol=1.01 * code, atol=1.01 * smallest * largest)
    jax.jit(STORED[now].apply)(PARAMS, state, grads=GRADS)


@pytest.mark.parametrize("before", ["int8", "bfloat16"])
def test_a_checkpoint_goes_on_to_the_bit(before, tmp_path):
    tx = STORED[before]
    params, state = trained(tx)
    orbax.save(tmp_path, 3, {"params": params, "state": state})
    restored, _ = orbax.restore(tmp_path, {"params": PARAMS, "state": tx.init(PARAMS)}, hyperparams="saved")
    ends = [tx.apply(*pair, grads=GRADS) for pair in ((params, state), (restored["params"], restored["state"]))]
    jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.parametrize(
    ("entry", "bad"),
    [
        ("scale_by_adam/nu", np.nan),
        ("scale_by_adam/mu", np.inf),
        ("scale_by_adam/mu", -1.0),
        ("scale_by_adam/nu", -1.0),
        ("average_params/average", -1.0),
    ],
)
def test_a_scale_that_no_block_has_is_refused(entry, bad):
    _, saved = trained(STORED["int8"])
    link, name = entry.split("/")
    scales = saved["inner"][link][name]["scales"]
    scales["kernel"] = scales["kernel"].at[1, 2].set(bad)
    with pytest.raises(ValueError, match=f"{entry}/scales/kernel must be"):
        merge(saved, STORED["int8"].init(PARAMS), hyperparams="saved")


def test_an_entry_of_another_model_is_named():
    _, saved = trained(WIDE)
    other = {"kernel": jnp.zeros((32, 256)), "bias": jnp.zeros(96)}
    with pytest.raises(ValueError, match=r"average/kernel: saved with shape \(64, 96\), expected \(32, 256\)"):
        merge(saved, STORED["some"].init(other), hyperparams="saved")


def test_parameters_that_were_saved_without_low_bits_get_none_of_others():
    tx = oc.compact(WIDE, weights=24)
    params, saved = trained(WIDE)
    fresh = {"params": oc.narrow(PARAMS), "state": tx.init(PARAMS)}
    restored, report = merge({"params": params, "state": saved}, fresh, hyperparams="saved")
    assert "state/low/kernel" in report.new
    wide = oc.wide_params(restored["params"], restored["state"])
    jax.tree.map(np.testing.assert_array_equal, wide["kernel"], restored["params"]["kernel"].astype(jnp.float32))


def test_a_state_of_optax_wrappers_is_found_too():
    tx = optax.chain(optax.clip_by_global_norm(1.0), STORED["int8"])
    _, state = jax.jit(lambda: tx.update(GRADS, tx.init(PARAMS), PARAMS))()
    again, _ = merge(state, tx.init(PARAMS), hyperparams="saved")
    jax.tree.map(np.testing.assert_array_equal, again, state)


@pytest.mark.parametrize(("before", "now", "bound"), [(24, 32, 2.0**-15), (32, 24, 2.0**-15), (32, 32, 0.0)])
def test_low_bits_are_read_in_either_width(before, now, bound):
    saved = oc.compact(WIDE, weights=before).init(PARAMS)
    state, report = merge(saved, oc.compact(WIDE, weights=now).init(PARAMS), hyperparams="saved")
    assert (report.new, report.gone) == ([], [])
    wide = oc.wide_params(oc.narrow(PARAMS), state)
    np.testing.assert_allclose(wide["kernel"], PARAMS["kernel"], rtol=bound)


@pytest.mark.parametrize("storage_of", ["int8", "bfloat16"])
def test_what_goes_to_other_libraries_is_in_float32(storage_of):
    torch_adam = oc.presets.torch.adam(1e-2)
    tx = oc.compact(torch_adam, moments=storage_of)
    _, state = trained(tx)
    theirs = to_optax_state(tx, PARAMS, state, optax.adam(1e-2))
    jax.tree.map(np.testing.assert_array_equal, theirs[0].mu, storage.load(state["inner"]["scale_by_adam"]["mu"]))
