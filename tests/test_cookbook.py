"""Each program of the cookbook runs as it stands on its page, and does what the page says."""

import re
import runpy
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc

ROOT = Path(__file__).parents[1]
PROGRAMS = ROOT / "examples" / "cookbook"
PAGES = ROOT / "docs" / "cookbook"


def run(name, *needs):
    for module in needs:
        pytest.importorskip(module)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "__array__ implementation", DeprecationWarning
        )  # Keras's variables and NumPy 2
        return runpy.run_path(str(PROGRAMS / f"{name}.py"), run_name="__main__")


def test_each_program_has_a_page_that_is_on_the_index_and_a_test():
    names = {path.stem for path in PROGRAMS.glob("*.py")}
    pages = {path.stem.replace("-", "_") for path in PAGES.glob("*.md")} - {"index"}
    assert names == pages
    index, here = (PAGES / "index.md").read_text(), Path(__file__).read_text()
    for name in names:
        page = f"{name.replace('_', '-')}.md"
        assert f"({page})" in index
        assert "{{ program }}" in (PAGES / page).read_text()
        assert f'"{name}"' in here


def test_each_picture_has_a_place_on_its_page():
    hook = (ROOT / "docs" / "hooks" / "cookbook.py").read_text()
    drawn = set(re.findall(r'^    "(\w+)": _\w+,$', hook, re.MULTILINE))
    places = {page.stem.replace("-", "_") for page in PAGES.glob("*.md") if "{{ picture }}" in page.read_text()}
    assert drawn == places


def test_layer_rates_and_decay_are_those_of_the_table():
    ran = run("layer_rates")
    rows = {row.path: row for row in ran["table"].per_parameter}
    tx, params = ran["tx"], ran["params"]
    step = jax.jit(lambda params, state, grads: tx.apply(params, state, grads=grads))
    still, _ = step(params, tx.init(params), jax.tree.map(jnp.zeros_like, params))
    moved, _ = step(params, tx.init(params), jax.tree.map(jnp.ones_like, params))
    for layer, factor in {"0": 0.25, "1": 0.5, "2": 1.0}.items():
        old, new, without = (tree["layers"][layer] for tree in (params, moved, still))
        np.testing.assert_allclose(old["bias"] - new["bias"], 1e-3 * factor, rtol=1e-3)
        np.testing.assert_allclose(old["kernel"] - without["kernel"], 1e-4 * old["kernel"], rtol=1e-2)
        np.testing.assert_array_equal(without["norm"]["scale"], old["norm"]["scale"])
    np.testing.assert_allclose(params["head"]["bias"] - moved["head"]["bias"], 1e-2, rtol=1e-3)
    assert [rows[name].decay for name in ("head/kernel", "layers/0/norm/scale")] == [{"weight_decay": 0.1}, {}]
    assert [rows[name].rate_factor for name in ("head/kernel", "layers/0/norm/scale")] == [10.0, 0.25]


def test_a_rule_of_two_moments_trains_and_keeps_the_contract():
    ran = run("own_link")
    assert ran["losses"][-1] < 1e-3 * ran["losses"][0]
    assert ran["state"]["scale_by_belief"].keys() == {"count", "mu", "nu"}
    assert oc.from_config(oc.to_config(ran["tx"])) == ran["tx"]


@pytest.mark.thorough
def test_a_run_is_logged_to_csv():
    ran = run("log_run")
    lines = (Path(ran["folder"]) / "run.csv").read_text().splitlines()
    assert lines[0].startswith("step,")
    assert {"loss", "learning_rate", "global_norm", "update_norm"} <= set(lines[0].split(","))
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "10", "20", "30", "40", "50"]


@pytest.mark.thorough
@pytest.mark.parametrize(("logger", "needs"), [("to_tensorboard", "tensorboardX"), ("to_wandb", "wandb")])
def test_a_run_is_logged_elsewhere(logger, needs, tmp_path):
    pytest.importorskip(needs, reason=f"{needs} is not installed")
    ran = run("log_run")
    ran["train"](ran[logger](str(tmp_path)), steps=11)
    assert any(path.is_file() and path.stat().st_size for path in tmp_path.rglob("*"))


@pytest.mark.thorough
def test_a_recipe_that_changed_is_resumed():
    ran = run("resume", "orbax.checkpoint")
    assert ran["resumed_at"] == 50
    assert any("average_params" in path for path in ran["report"].new)
    assert float(ran["metrics"]["learning_rate"]) == pytest.approx(3e-3)


@pytest.mark.thorough
def test_the_averaged_weights_of_an_nnx_model_are_better_and_the_model_keeps_its_own():
    ran = run("nnx_average", "flax")
    assert np.mean(ran["of_average"][10:]) < np.mean(ran["losses"][10:])
    kernel = ran["model"].hidden.kernel[...]
    assert not np.array_equal(ran["averaged"](ran["model"], ran["optimizer"]).hidden.kernel[...], kernel)
    np.testing.assert_array_equal(ran["model"].hidden.kernel[...], kernel)


@pytest.mark.thorough
def test_frozen_layers_of_an_equinox_model_stand_still():
    ran = run("equinox_frozen", "equinox")
    assert ran["still"] == [True, True, False]
    assert ran["losses"][-1] < 0.5 * ran["losses"][0]
    assert sum(leaf.size for leaf in jax.tree.leaves(ran["state"]) if leaf.ndim) == 2 * 17  # the head's moments


@pytest.mark.thorough
def test_a_stable_run_can_be_brought_down_from_its_checkpoint():
    ran = run("warmup_stable_decay")
    assert ran["rates"][100] == ran["more_rates"][0] == pytest.approx(3e-2)
    assert ran["down_rates"][0] == pytest.approx(3e-2)
    assert ran["down_rates"][-1] < 1e-3
    assert ran["down_losses"][-1] < 0.5 * ran["more_losses"][-1]


@pytest.mark.thorough
def test_a_plateau_lowers_the_rate_and_stops_the_run():
    ran = run("plateau")
    assert len(ran["losses"]) < 40
    assert ran["rates"] == sorted(ran["rates"], reverse=True)
    assert ran["rates"][-1] < ran["rates"][0] / 8
    assert ran["step"]._cache_size() == 1


@pytest.mark.thorough
def test_a_tail_counts_as_a_large_batch_does():
    ran = run("accumulation_tail")
    assert ran["updates"] == [False, False, False, True, False, False]
    assert not np.allclose(ran["before"], ran["expected"])
    np.testing.assert_allclose(ran["params"], ran["expected"], rtol=1e-5)


@pytest.mark.thorough
def test_bfloat16_weights_with_their_other_bits_train_as_float32_ones_do():
    ran = run("bfloat16")
    wide, plain, kept = (np.mean(ran[name][-8:]) for name in ("float32", "plain", "compact"))
    assert abs(kept - wide) < 0.01 * wide
    assert plain > 1.1 * wide
    assert ran["params"]["hidden"].dtype == jnp.bfloat16
    assert ran["whole"]["hidden"].dtype == jnp.float32


@pytest.mark.thorough
def test_float16_steps_are_skipped_until_the_scale_fits():
    ran = run("float16")
    skipped = int(ran["metrics"]["skipped_steps"])
    assert skipped >= 1
    assert ran["losses"][-1] < 0.05 * ran["losses"][0]
    assert int(oc.steps_taken(ran["state"])) == 150 - skipped


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "needs"),
    [pytest.param("keras_run", ("keras", "h5py"), id="keras"), pytest.param("torch_run", ("torch",), id="torch")],
)
def test_a_run_goes_on_with_the_losses_it_would_have_had(name, needs):
    for module in needs:
        pytest.importorskip(module, reason=f"{module} is not installed")
    ran = run(name)
    np.testing.assert_allclose(ran["losses"], ran["theirs"], rtol=2e-5)


@pytest.mark.thorough
def test_a_sweep_has_the_loss_of_the_run_alone():
    ran = run("sweep")
    assert 5 < ran["best"] < 38  # the best is at neither end
    assert ran["step_all"]._cache_size() == 1


@pytest.mark.thorough
def test_zero1_splits_the_moments_each_way():
    ran = run("zero1", "flax")
    for moment in ran["moments"]:
        assert moment.addressable_shards[0].data.size == moment.size // jax.device_count()
    assert ran["params"]["kernel"].sharding.is_fully_replicated
    assert ran["train_state"].params["kernel"].sharding.is_fully_replicated


@pytest.mark.thorough
def test_hidden_matrices_go_by_muon_and_the_rest_by_adamw():
    ran = run("muon_adamw")
    nu = jax.tree.map(jnp.size, ran["state"]["scale_by_muon"]["adam_nu"])
    assert nu["hidden"]["kernel"] == 1
    assert nu["head"]["kernel"] == nu["embedding"] == 800
    assert ran["losses"][-1] < 0.1


@pytest.mark.thorough
def test_a_range_test_falls_and_goes_astray():
    ran = run("range_test")
    assert min(ran["smooth"]) < 0.8 * ran["smooth"][0]
    assert not ran["smooth"][-1] < 4 * min(ran["smooth"])
    assert 1e-3 < ran["lowest"] < 1


@pytest.mark.thorough
def test_a_nan_is_skipped_and_ruins_the_run_without_the_gate():
    ran = run("survive_nan")
    assert int(ran["metrics"]["skipped_steps"]) == 3
    assert ran["losses"][-1] < 0.01 * ran["losses"][0]
    assert np.isnan(ran["without"][-1])
