"""Values that no run has are refused by every reader, and a scheduler of PyTorch's is not lost in silence."""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

import optchain
from optchain.core.slot import Slot
from optchain.interop import checks, orbax
from optchain.interop import keras as interop_keras
from optchain.interop.optax import from_optax_state

from .digits import flax_params, keras_model

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

PARAMS = {"w": jnp.ones((2, 2))}
LARGEST = 2**31 - 1
TX = optchain.presets.torch.adam(0.1)
BAD: list[tuple[str, Any]] = [
    *[("step", value) for value in (2**40, -5, 3.7, float("inf"), float("nan"), True)],
    *[("lr", value) for value in (float("nan"), -1.0, float("inf"), 1e39, 10**400, True, None, 1j, "fast")],
    ("step", None),
    *[("nu", value) for value in (-1.0, 1j)],
    *[(moment, value) for moment in ("mu", "nu") for value in (np.nan, np.inf, -np.inf, np.float64(1e60))],
]
Reader = Callable[[str, Any, Path], None]


def moments(value: Any) -> np.ndarray:
    """A second moment of which one number is the given one."""
    made = np.full((2, 2), 0.5, np.result_type(value, np.float32))
    made[1, 0] = value
    return made


THEIRS = {"mu": "exp_avg", "nu": "exp_avg_sq"}


def from_pytorch(what: str, value: Any, folder: Path) -> None:
    from optchain.interop.torch import load_state_dict

    slot: dict[str, Any] = {"step": 3.0, "exp_avg": moments(0.5), "exp_avg_sq": moments(0.5)}
    group: dict[str, Any] = {"lr": 0.1, "params": [0]}
    if what == "lr":
        group["lr"] = value
    else:
        slot |= {"step": value} if what == "step" else {THEIRS[what]: moments(value)}
    load_state_dict(TX, PARAMS, {"state": {0: slot}, "param_groups": [group]}, ["w"], {"w": "embedding"})


def from_optax(what: str, value: Any, folder: Path) -> None:
    state = optax.inject_hyperparams(optax.adam)(0.1).init(PARAMS)
    adam = state.inner_state[0]
    if what == "lr":
        state = state._replace(hyperparams=state.hyperparams | {"learning_rate": value})
    else:
        adam = adam._replace(**({"count": value} if what == "step" else {what: {"w": moments(value)}}))
    from_optax_state(TX, PARAMS, state._replace(inner_state=(adam, *state.inner_state[1:])))


def from_orbax(what: str, value: Any, folder: Path) -> None:
    state = TX.init(PARAMS)
    if what == "lr":
        state["hyperparams"]["learning_rate"] = np.asarray(value)
    else:
        state["scale_by_adam"] |= {"count": np.asarray(value)} if what == "step" else {what: {"w": moments(value)}}
    orbax.save(folder, 1, {"params": PARAMS, "state": state})
    orbax.restore(folder, {"params": PARAMS, "state": TX.init(PARAMS)}, hyperparams="saved")


READERS: list[Reader] = [from_pytorch, from_optax, from_orbax]
ARRAYS_ALONE = (None, "fast", 10**400)
"""Values that no array of numbers has, and so no checkpoint of Orbax's."""


@pytest.mark.parametrize(
    ("reader", "what", "value"),
    [
        pytest.param(reader, what, value, id=f"{reader.__name__}, {what} {str(value)[:9]}")
        for reader in READERS
        for what, value in BAD
        if reader is not from_orbax or str(value) not in map(str, ARRAYS_ALONE)
    ],
)
def test_a_value_that_no_run_has_is_refused(reader: Reader, what: str, value: Any, tmp_path: Path):
    with pytest.raises((ValueError, OSError), match=r"must be|saved (as|are)") as refused:
        reader(what, value, tmp_path / "run")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("what", "value"),
    [("step", LARGEST), ("step", 0), ("lr", 0.0), ("lr", 3e38), ("nu", 0.0), ("nu", 3e38), ("mu", -3e38)],
)
def test_the_ends_of_the_ranges_are_taken(reader: Reader, what: str, value: Any, tmp_path: Path):
    reader(what, value, tmp_path / "run")


@pytest.mark.parametrize(
    ("variable", "value"), [(0, -1), (0, 2**40), (1, np.nan), (1, 1e39), (3, -1.0), (3, 1j), (2, np.nan), (3, np.inf)]
)
def test_keras_files_too(variable: int, value: Any, tmp_path: Path):
    path, model = tmp_path / "run.weights.h5", keras_model(keras.optimizers.Adam())
    model.save_weights(path)
    with h5py.File(path, "a") as file:
        place = file["optimizer/vars"]
        old = place[str(variable)][()]
        del place[str(variable)]
        place[str(variable)] = np.full(np.shape(old), value, np.result_type(old, np.asarray(value)))
    params = flax_params()
    order = [f"{layer}/{name}" for layer in ("conv_1", "conv_2", "logits") for name in ("kernel", "bias")]
    with pytest.raises(ValueError, match=r"must be|must hold numbers"):
        interop_keras.load_state(optchain.adam(0.1), params, path, order)


def test_every_slot_that_is_never_negative_is_looked_at():
    modules = [module for name, module in sys.modules.items() if name.startswith("optchain.")]
    tables = [table for module in modules for table in vars(module).values() if isinstance(table, MappingProxyType)]
    slots = {name: slot for table in tables for name, slot in table.items() if isinstance(slot, Slot)}
    never = {name for name, slot in slots.items() if slot.nonnegative}
    assert {"nu", "v_row", "usual_norm", "step_size"} <= never
    for name in never:
        with pytest.raises(ValueError, match="second must be >= 0; 1 of 2 numbers are negative"):
            checks.moment("second", name, np.array([-1.0, 1.0]), np.float32)


def test_parameters_that_are_called_like_second_moments_may_be_negative(tmp_path: Path):
    params = {"attention": {"q": -jnp.ones(2), "v": -jnp.ones(2)}, "nu": -jnp.ones(2)}
    orbax.save(tmp_path, 0, params)
    restored, _ = orbax.restore(tmp_path, params, hyperparams="saved")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), restored, params))


# Schedulers of PyTorch's ----------------------------------------------------------------------------------------------


def scheduled(steps: int = 5) -> Any:
    torch = pytest.importorskip("torch")
    leaf = torch.ones(2, 2, requires_grad=True)
    optimizer = torch.optim.Adam([leaf], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3)
    for _ in range(steps):
        leaf.grad = torch.full((2, 2), 0.5)
        optimizer.step()
        scheduler.step()
    return optimizer, scheduler, leaf


def test_a_scheduler_is_named_where_the_recipe_drops_it():
    from optchain.interop.torch import from_torch

    optimizer, _, _ = scheduled()
    said = r"a scheduler drove the learning rate \(group 0, from 0.1 to 0.01\).*lr=optchain.schedules"
    with pytest.warns(UserWarning, match=said):
        tx = from_torch(optimizer)
    assert tx == optchain.presets.torch.adam(0.1 * 0.1)


def test_a_schedule_given_for_the_scheduler_goes_on_where_pytorch_stopped():
    from optchain.interop.torch import from_torch, load_state_dict

    optimizer, scheduler, leaf = scheduled()
    tx = from_torch(optimizer, lr=optchain.schedules.StepLR(0.1, step_size=3))
    params = {"w": jnp.array(leaf.detach().numpy())}
    state = load_state_dict(tx, params, optimizer.state_dict(), ["w"], {"w": "embedding"})
    for _ in range(3):
        optimizer.step()
        scheduler.step()
        params, state = tx.apply(params, state, grads={"w": jnp.full((2, 2), 0.5)})
    np.testing.assert_allclose(params["w"], leaf.detach().numpy(), rtol=1e-6)


def test_a_state_that_a_scheduler_drove_says_so_in_the_report_and_by_a_warning():
    from optchain.interop.torch import load_state_dict, load_with_report

    optimizer, _, _ = scheduled()
    given = (TX, PARAMS, optimizer.state_dict(), ["w"], {"w": "embedding"})
    _, report = load_with_report(*given)
    assert "a scheduler drove it in PyTorch, from 0.1" in str(report)
    with pytest.warns(UserWarning, match="hyperparams/learning_rate: a scheduler drove it"):
        load_state_dict(*given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_state_dict(*given, hyperparams="configured")


def test_one_rate_for_each_group_or_one_for_all():
    torch = pytest.importorskip("torch")
    from optchain.interop.torch import from_torch

    leaves = [torch.ones(1, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [leaf], "lr": 0.1} for leaf in leaves])
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    tx = from_torch(optimizer, ["a", "b"], lr=[0.5, 0.25])
    assert [tx.config["groups"][i][2].config["lr"] for i in range(2)] == [0.5, 0.25]
    with pytest.raises(ValueError, match="one for each of the optimizer's 2 groups; got 3"):
        from_torch(optimizer, ["a", "b"], lr=[0.5, 0.25, 0.1])


def test_a_scheduler_shows_in_what_convert_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from optchain.cli import main
    from optchain.interop import torch as interop

    monkeypatch.chdir(tmp_path)
    optimizer, _, leaf = scheduled()
    interop.write("run.pt", {"w": leaf.detach()}, optimizer.state_dict())
    Path("recipe.json").write_text(json.dumps(optchain.to_config(TX)))
    Path("names.json").write_text(json.dumps({"embedding": "w"}))
    command = ["convert", "run.pt", "--to", "orbax", "--out", "out", "--recipe", "recipe.json", "--names", "names.json"]
    assert main(command) == 0
    shown = capsys.readouterr().out.replace("│", " ")  # a cell runs over several lines
    assert "a scheduler drove it in PyTorch, from 0.1" in " ".join(shown.split())


def test_moments_that_are_not_finite_are_named_and_nothing_else_is_said(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            ValueError, match=r"exp_avg_sq of parameter 0 must be finite, in float32; 1 of 4 numbers are not"
        ):
            from_pytorch("nu", np.float64(1e60), tmp_path)
        with pytest.raises(ValueError, match=r"scale_by_adam/mu/w must be finite, in float32; 1 of 4 numbers are not"):
            from_optax("mu", np.nan, tmp_path)


def test_a_step_of_none_is_named_whatever_the_others_are():
    from optchain.interop.torch import load_state_dict

    params, tx = {"a": jnp.ones(2), "b": jnp.ones(2)}, optchain.presets.torch.adam(0.1)
    slot = {"exp_avg": np.ones(2, np.float32), "exp_avg_sq": np.ones(2, np.float32)}
    group = {"lr": 0.1, "params": [0, 1]}
    for steps in ((None, None), (None, 7.0), (7.0, None)):
        state = {number: slot | {"step": step} for number, step in enumerate(steps)}
        with pytest.raises(ValueError, match=r"step of parameter [01] must be an integer .*; it is None"):
            load_state_dict(tx, params, {"state": state, "param_groups": [group]}, ["a", "b"])


def test_moments_of_a_narrow_parameter_keep_the_digits_that_the_state_has():
    from optchain.interop.torch import load_state_dict

    params, tx = {"w": jnp.ones(2, jnp.bfloat16)}, optchain.presets.torch.adam(0.1)
    slot = {"step": 1.0, "exp_avg": np.full(2, 0.1234567, np.float32), "exp_avg_sq": np.full(2, 1e-3, np.float32)}
    state = load_state_dict(tx, params, {"state": {0: slot}, "param_groups": [{"lr": 0.1, "params": [0]}]}, ["w"])
    np.testing.assert_array_equal(state["scale_by_adam"]["mu"]["w"], slot["exp_avg"])


def test_the_state_of_a_sweep_comes_back_and_each_member_is_looked_at(tmp_path: Path):
    rates = jnp.array([0.1, 0.2])
    states, _ = optchain.sweep(TX.init(PARAMS), learning_rate=rates)
    saved = {"params": PARAMS, "state": states}
    orbax.save(tmp_path, 1, saved)
    restored, _ = orbax.restore(tmp_path, saved, hyperparams="saved")
    np.testing.assert_array_equal(restored["state"]["hyperparams"]["learning_rate"], rates)
    states["hyperparams"]["learning_rate"] = jnp.array([0.1, jnp.nan])
    orbax.save(tmp_path, 2, saved)
    with pytest.raises(ValueError, match=r"state/hyperparams/learning_rate\[1\] must be .* it is nan"):
        orbax.restore(tmp_path, saved, hyperparams="saved")
