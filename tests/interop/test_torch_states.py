"""What PyTorch's optimizers keep, in and out, and what is refused."""

import inspect
import os
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain
from optchain.interop import torch as interop
from tests.sampling import others_thorough

torch = pytest.importorskip("torch", reason="PyTorch parity tests were left out: pip install torch==2.13.0")

presets = optchain.presets.torch
PATHS = {"dense/kernel": "dense.weight", "dense/bias": "dense.bias"}
PARAMS = {"dense": {"kernel": jnp.zeros((3, 2)), "bias": jnp.ones(2)}}
ORDER = ["dense/kernel", "dense/bias"]

# Each with what makes it keep all that it can.
OPTIMIZERS = {
    "AdamW": {"amsgrad": True, "weight_decay": 0.1},
    "Adam": {"weight_decay": 0.1},
    "NAdam": {"decoupled_weight_decay": True},
    "RAdam": {},
    "Adamax": {"betas": (0.8, 0.9)},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.1},
    "Adadelta": {"rho": 0.8, "weight_decay": 0.1},
    "Adafactor": {"weight_decay": 0.1},
    "ASGD": {"t0": 0, "lambd": 0.1},
    "Rprop": {"etas": (0.6, 1.3)},
    "SGD": {"momentum": 0.9, "dampening": 0.5, "maximize": True},
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def torch_leaves(params: Any = PARAMS) -> list[Any]:
    kernel, bias = params["dense"]["kernel"], params["dense"]["bias"]
    return [
        torch.tensor(np.array(kernel).T.copy(), requires_grad=True),
        torch.tensor(np.array(bias), requires_grad=True),
    ]


def optimizer_of(name: str, steps: int = 2, named: bool = False, **options: Any) -> Any:
    leaves = torch_leaves()
    given = list(zip(PATHS.values(), leaves, strict=True)) if named else leaves
    optimizer = getattr(torch.optim, name)(given, **(OPTIMIZERS[name] | options))
    for number in range(steps):
        for i, leaf in enumerate(leaves):
            leaf.grad = torch.tensor(np.random.default_rng(10 * number + i).normal(size=leaf.shape), dtype=leaf.dtype)
        optimizer.step()
    return optimizer


def assert_same_state_dict(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual["param_groups"] == expected["param_groups"]
    assert [list(group) and set(group) for group in actual["param_groups"]] == [
        set(g) for g in expected["param_groups"]
    ]
    assert actual["state"].keys() == expected["state"].keys()
    for number, slot in expected["state"].items():
        assert actual["state"][number].keys() == slot.keys()
        for field, value in slot.items():
            made = actual["state"][number][field]
            assert made.dtype == value.dtype
            np.testing.assert_array_equal(made.numpy(), value.detach().numpy(), err_msg=field)


@every_optimizer
def test_a_state_dict_comes_back_as_it_went_in(name):
    optimizer = optimizer_of(name)
    tx, there = interop.from_torch(optimizer), optimizer.state_dict()
    assert tx == getattr(presets, name.lower())(**OPTIMIZERS[name])
    state = interop.load_state_dict(tx, PARAMS, there, ORDER)
    back = interop.to_state_dict(tx, PARAMS, state, ORDER, step=2)
    assert_same_state_dict(back, there)
    getattr(torch.optim, name)(torch_leaves()).load_state_dict(back)


@every_optimizer
def test_parameters_share_no_tensor_on_the_way_out(name):
    """PyTorch counts in place, each parameter by itself."""
    tx = interop.from_torch(optimizer_of(name))
    state = interop.load_state_dict(tx, PARAMS, optimizer_of(name).state_dict(), ORDER, step=2)
    slots = interop.to_state_dict(tx, PARAMS, state, ORDER)["state"].values()
    tensors = [value for slot in slots for value in slot.values()]
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)


@every_optimizer
def test_a_state_before_the_first_step_moves_too(name):
    optimizer = optimizer_of(name, steps=0)
    tx = interop.from_torch(optimizer)
    step = 0 if name == "Adagrad" else None  # whose decaying rate has a count
    state = interop.load_state_dict(tx, PARAMS, optimizer.state_dict(), ORDER, step=step)
    fresh = tx.init(PARAMS)
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(fresh), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", others_thorough(OPTIMIZERS, "Adadelta", "Adafactor", "ASGD", "Rprop"))
def test_a_run_goes_on_to_the_same_numbers(name):
    optimizer = optimizer_of(name, steps=3)
    tx, leaves = interop.from_torch(optimizer), optimizer.param_groups[0]["params"]

    def here() -> Any:
        kernel, bias = (jnp.asarray(leaf.detach().numpy().copy()) for leaf in leaves)
        return {"dense": {"kernel": kernel.T, "bias": bias}}

    params = here()
    state = interop.load_state_dict(tx, params, optimizer.state_dict(), ORDER, step=3)
    step = jax.jit(lambda p, s, g: tx.apply(p, s, grads=g))
    for number in range(3, 9):
        for i, leaf in enumerate(leaves):
            noise = np.random.default_rng(10 * number + i).normal(size=leaf.shape)
            leaf.grad = torch.tensor(noise, dtype=leaf.dtype)
        kernel, bias = (jnp.asarray(leaf.grad.numpy()) for leaf in leaves)
        optimizer.step()
        params, state = step(params, state, {"dense": {"kernel": kernel.T, "bias": bias}})
    # PyTorch's bias corrections are in double precision, where 1 − 0.999 of float32 is off by 1.3e-5 of itself.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), params, here())


def matrix_optimizer(steps: int) -> Any:
    leaf = torch.tensor(np.arange(6, dtype=np.float32).reshape(2, 3), requires_grad=True)
    optimizer = torch.optim.Muon([leaf], weight_decay=0.2, momentum=0.8)
    for number in range(steps):
        leaf.grad = torch.tensor(np.random.default_rng(number).normal(size=(2, 3)), dtype=torch.float32)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("steps", [0, 2])
def test_muons_average_comes_back_as_it_went_in(steps):
    params, there = {"kernel": jnp.zeros((3, 2))}, matrix_optimizer(steps).state_dict()
    tx = interop.from_torch(matrix_optimizer(steps))
    assert tx == presets.muon(weight_decay=0.2, momentum=0.8)
    state = interop.load_state_dict(tx, params, there, ["kernel"])
    if steps:
        assert state["scale_by_muon_average"]["mu"]["kernel"].shape == (3, 2)
        assert_same_state_dict(interop.to_state_dict(tx, params, state, ["kernel"]), there)


def test_the_rows_of_sparse_adam_come_back_as_they_went_in():
    table = torch.zeros((4, 2), requires_grad=True)
    optimizer = torch.optim.SparseAdam([table], betas=(0.8, 0.9))
    rows = torch.tensor([[1, 3]])
    table.grad = torch.sparse_coo_tensor(rows, torch.ones(2, 2), (4, 2), check_invariants=True)
    optimizer.step()
    params, there = {"embedding": jnp.zeros((4, 2))}, optimizer.state_dict()
    tx = interop.from_torch(optimizer)
    state = interop.load_state_dict(tx, params, there, ["embedding"])
    back = interop.to_state_dict(tx, params, state, ["embedding"])
    assert back["param_groups"] == there["param_groups"]
    assert back["state"][0]["step"] == there["state"][0]["step"] == 1
    for field in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(back["state"][0][field], there["state"][0][field])


def test_the_factors_of_a_convolution_are_those_of_other_axes():
    params = {"kernel": jnp.zeros((3, 3, 2, 4))}
    tx = presets.adafactor()
    with pytest.raises(ValueError, match="factored over the last two of its own axes"):
        interop.to_state_dict(tx, params, tx.init(params), ["kernel"])


EVERY_CLASS = [*OPTIMIZERS, "Muon", "SparseAdam"]


@pytest.mark.parametrize("name", EVERY_CLASS)
def test_what_chooses_an_implementation_has_no_effect(name):
    kind = getattr(torch.optim, name)
    leaves = torch_leaves()[: 1 if name == "Muon" else 2]
    preset = interop.from_torch(kind(leaves))
    for switch in {"foreach", "fused", "capturable", "differentiable"} & inspect.signature(kind).parameters.keys():
        assert interop.from_torch(kind(leaves, **{switch: True})) == preset, switch


def test_every_optimizer_of_torch_but_lbfgs_has_a_preset():
    classes = {name for name, kind in vars(torch.optim).items() if isinstance(kind, type)} - {"Optimizer", "LBFGS"}
    assert classes == {*EVERY_CLASS}


@pytest.mark.parametrize("axis", [-1, 0])
def test_muon_must_find_the_outputs_where_they_are(axis):
    """As PyTorch's first axis: the last of a kernel, the first of a weight of Equinox's."""
    there = matrix_optimizer(1).state_dict()
    right, wrong = ("kernel", "weight") if axis else ("weight", "kernel")
    shapes = {"kernel": (3, 2), "weight": (2, 3)}
    tx = presets.muon(weight_decay=0.2, momentum=0.8, output_axis=axis)
    params = {right: jnp.zeros(shapes[right])}
    back = interop.to_state_dict(tx, params, interop.load_state_dict(tx, params, there, [right]), [right])
    assert_same_state_dict(back, there)
    params = {wrong: jnp.zeros(shapes[wrong])}
    message = rf"{wrong}: PyTorch's outputs are axis {0 if axis else 1} of it here, and Muon's output_axis is {axis}"
    with pytest.raises(ValueError, match=message):
        interop.load_state_dict(tx, params, there, [wrong])
    with pytest.raises(ValueError, match=message):
        interop.to_state_dict(tx, params, tx.init(params), [wrong])


def test_parameters_are_matched_by_the_names_that_an_optimizer_knows():
    there = optimizer_of("Adam", named=True).state_dict()
    assert there["param_groups"][0]["param_names"] == list(PATHS.values())
    backwards = dict(reversed(PATHS.items()))
    tx = presets.adam(weight_decay=0.1)
    a = interop.load_state_dict(tx, PARAMS, there, backwards)
    b = interop.load_state_dict(tx, PARAMS, there, ORDER)
    np.testing.assert_array_equal(a["scale_by_adam"]["mu"]["dense"]["bias"], b["scale_by_adam"]["mu"]["dense"]["bias"])
    assert interop.to_state_dict(tx, PARAMS, a, PATHS)["param_groups"] == there["param_groups"]


def test_the_rate_of_a_group_is_saved_or_configured_as_chosen():
    there = optimizer_of("Adam", lr=0.25).state_dict()
    tx = presets.adam(0.5, weight_decay=0.1)
    saved = interop.load_state_dict(tx, PARAMS, there, ORDER)
    configured, report = interop.load_with_report(tx, PARAMS, there, ORDER, hyperparams="configured")
    assert "configured  saved 0.25" in str(report)
    assert optchain.get_hyperparams(saved)["learning_rate"] == 0.25
    assert optchain.get_hyperparams(configured)["learning_rate"] == 0.5
    assert configured["scale_by_adam"]["count"] == 2


def test_a_schedule_goes_on_at_the_count_of_torch():
    tx = presets.adam(optchain.schedules.StepLR(0.5, step_size=1), weight_decay=0.1)
    state = interop.load_state_dict(tx, PARAMS, optimizer_of("Adam", steps=3).state_dict(), ORDER)
    assert state["count"] == 3
    assert interop.to_state_dict(tx, PARAMS, state, ORDER)["param_groups"][0]["lr"] == pytest.approx(0.5e-3)


def test_the_recipe_may_be_a_part_of_a_chain_and_what_surrounds_it_starts_anew():
    tx = optchain.chain(
        optchain.clip_by_global_norm(1.0),
        optchain.skip_nonfinite(presets.adam(weight_decay=0.1)),
        optchain.average_params(0.9),
    )
    state, report = interop.load_with_report(tx, PARAMS, optimizer_of("Adam").state_dict(), ORDER)
    assert state["skip_nonfinite"]["inner"]["scale_by_adam"]["count"] == 2
    assert {"average_params/count", "skip_nonfinite/skipped_steps"} <= set(report.new)
    assert "skip_nonfinite/inner/scale_by_adam/mu/dense/kernel" in report.restored
    assert report.gone == []
    with pytest.raises(ValueError, match=r"no place for .*average_params/average.*lossy=True"):
        interop.to_state_dict(tx, PARAMS, state, ORDER)
    back = interop.to_state_dict(tx, PARAMS, state, ORDER, lossy=True)
    assert back["state"][0]["step"] == 2


def test_gradients_that_wait_in_a_window_are_not_left_behind_silently():
    tx = optchain.accumulate(presets.sgd(0.1, momentum=0.9), 2)
    params, state = tx.apply(PARAMS, tx.init(PARAMS), grads=PARAMS)
    with pytest.raises(ValueError, match="accumulate are applied by flush"):
        interop.to_state_dict(tx, params, state, ORDER)
    params, state = optchain.flush(tx, params, state)
    assert interop.to_state_dict(tx, params, state, ORDER)["state"][1]["momentum_buffer"].tolist() == [1.0, 1.0]


def test_groups_of_torch_become_a_multi_optimizer_by_our_paths():
    kernel, bias = torch_leaves()
    optimizer = torch.optim.SGD([{"params": [bias], "lr": 0.5}, {"params": [kernel]}], lr=0.1)
    tx = interop.from_torch(optimizer, ["dense/bias", "dense/kernel"])
    assert tx == optchain.multi_optimizer(
        ("group_0", optchain.matching("^dense/bias$"), presets.sgd(0.5)),
        ("group_1", optchain.matching("^dense/kernel$"), presets.sgd(0.1)),
    )
    with pytest.raises(ValueError, match="2 groups with 2 parameters, and no names were given"):
        interop.from_torch(optimizer)
    three = {"a": jnp.ones(1), "b": jnp.ones(1), "c": jnp.ones(1)}
    split = optchain.multi_optimizer(("b", "b", presets.sgd(0.5)), default=presets.sgd(0.1))
    with pytest.raises(ValueError, match="in the order of PyTorch's groups"):
        interop.to_state_dict(split, three, split.init(three), ["a", "b", "c"])


def test_a_rate_that_is_a_tensor_is_a_number_here():
    optimizer = torch.optim.Adam(torch_leaves(), lr=torch.tensor(0.25), foreach=False)
    tx = interop.from_torch(optimizer)
    assert tx == presets.adam(0.25)
    state = interop.load_state_dict(presets.adam(0.5), PARAMS, optimizer.state_dict(), ORDER)
    assert optchain.get_hyperparams(state)["learning_rate"] == 0.25


def test_an_optimizer_of_another_class_is_refused():
    with pytest.raises(TypeError, match=r"torch\.optim's AdamW, .* got torch\.optim\.lbfgs\.LBFGS"):
        interop.from_torch(torch.optim.LBFGS(torch_leaves()))


# Weights in PyTorch's layout -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "ours", "theirs"),
    [
        ("kernel", (3, 2), (2, 3)),
        ("kernel", (5, 3, 2), (2, 3, 5)),
        ("kernel", (5, 6, 3, 2), (2, 3, 5, 6)),
        ("embedding", (3, 2), (3, 2)),
        ("scale", (3,), (3,)),
        ("weight", (3, 2), (3, 2)),
    ],
)
def test_weights_are_laid_out_by_the_kind_of_layer(kind, ours, theirs):
    values = np.arange(np.prod(theirs), dtype=np.float32).reshape(theirs)
    there = {"w": torch.tensor(values)}
    names = {f"layer/{kind}": "w"}
    params = interop.load_params({"layer": {kind: jnp.zeros(ours)}}, there, names)
    assert params["layer"][kind].shape == ours
    assert params["layer"][kind].sum() == values.sum()
    np.testing.assert_array_equal(interop.params_to_state_dict(params, names)["w"].numpy(), values)


def test_a_weight_whose_name_does_not_tell_its_layout_needs_to_be_told():
    there, names = {"w": torch.arange(4.0).reshape(2, 2)}, {"w": "w"}
    params = {"w": jnp.zeros((2, 2))}
    with pytest.raises(ValueError, match=r"w: its name does not tell how PyTorch lays it out: give transforms"):
        interop.load_params(params, there, names)
    for told, first_row in [({"^w$": "linear"}, [0, 2]), ({"^w$": "embedding"}, [0, 1]), ({"^w$": (1, 0)}, [0, 2])]:
        assert interop.load_params(params, there, names, told)["w"][0].tolist() == first_row
    with pytest.raises(ValueError, match="w has 2 axes and cannot be 'conv'; there are: 'linear'"):
        interop.load_params(params, there, names, {"w": "conv"})
    with pytest.raises(ValueError, match=r"pattern 'kernel' decides for no parameter"):
        interop.load_params(params, there, names, {"kernel": "conv"})


def test_a_linear_layer_computes_the_same_in_both():
    layer, x = torch.nn.Linear(3, 2), np.ones((4, 3), np.float32)
    params = interop.load_params(PARAMS["dense"], layer.state_dict(), {"kernel": "weight", "bias": "bias"})
    np.testing.assert_allclose(x @ params["kernel"] + params["bias"], layer(torch.tensor(x)).detach(), rtol=1e-6)


def test_bfloat16_weights_move():
    layer = torch.nn.Linear(3, 2).to(torch.bfloat16)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS["dense"])
    names = {"kernel": "weight", "bias": "bias"}
    moved = interop.load_params(params, layer.state_dict(), names)
    assert moved["kernel"].dtype == jnp.bfloat16
    back = interop.params_to_state_dict(moved, names)
    torch.testing.assert_close(back["weight"].to(torch.bfloat16), layer.weight.detach())


# What is refused -----------------------------------------------------------------------------------------------------


def adam_state(**changes: Any) -> dict[str, Any]:
    return optimizer_of("Adam").state_dict() | changes


def adam_state_of(params: list[int], more: dict[int, Any] | None = None, **group: Any) -> dict[str, Any]:
    there = adam_state()
    (own,) = there["param_groups"]
    return {"state": there["state"] | (more or {}), "param_groups": [own | {"params": params} | group]}


def other_shape() -> dict[str, Any]:
    there = adam_state()
    there["state"][0]["exp_avg"] = torch.zeros(2, 4)
    return there


def other_steps() -> dict[str, Any]:
    there = adam_state()
    there["state"][1]["step"] = torch.tensor(7.0)
    return there


def no_moment() -> dict[str, Any]:
    there = adam_state()
    del there["state"][1]["exp_avg_sq"]
    return there


@pytest.mark.parametrize(
    ("make", "names", "said"),
    [
        (
            lambda: {"dense.weight": torch.zeros(2, 3)},
            ORDER,
            "expected is what optimizer.state_dict.. returns, with 'state'",
        ),
        (lambda: adam_state(state={0: 1}), ORDER, "a dict by parameter, and a list of groups"),
        (lambda: optimizer_of("SGD").state_dict(), ORDER, "needs exp_avg of dense/bias, .* has momentum_buffer"),
        (lambda: optimizer_of("AdamW").state_dict(), ORDER, "has max_exp_avg_sq of .*it is another recipe's state"),
        (lambda: adam_state(), ["dense/kernel"], r"missing: \['dense/bias'\]"),
        (lambda: adam_state(), {"dense/kernel": "w", "dense/bias": "b", "more": "c"}, "which params do not have"),
        (lambda: adam_state(), ORDER[::-1], r"exp_avg of parameter 0 has shape \(2, 3\) in PyTorch, and dense/bias"),
        (
            other_shape,
            ORDER,
            r"has shape \(2, 4\) in PyTorch, and dense/kernel, of shape \(3, 2\), needs \(2, 3\) there",
        ),
        (other_steps, ORDER, "different numbers of steps: dense/bias 7, dense/kernel 2|dense/kernel 2, dense/bias 7"),
        (lambda: adam_state_of([0, 5]), ORDER, "state has 1, which no group names; param_groups name 0, 5"),
        (lambda: adam_state_of([0, 1], {7: {}}), ORDER, "state has 7, which no group names; param_groups name 0, 1"),
        (lambda: adam_state_of([0, 0]), ORDER, "param_groups name 0 more than once"),
        (lambda: adam_state_of([0, 1], param_names=["w"]), ORDER, "a list of groups with 'params'"),
        (lambda: adam_state_of([0, 1], betas=(0.9,)), ORDER, r"betas of group 0 must be two numbers; .* \(0\.9,\)"),
        (lambda: adam_state_of([0, 1], betas=(0.9, 0.99, 0.5)), ORDER, "betas of group 0 must be two numbers"),
        (lambda: adam_state_of([0, 1], betas=(0.9, "0.99")), ORDER, "betas of group 0 must be two numbers"),
        (lambda: adam_state_of([0, 1], lr=(0.1, 0.2)), ORDER, "lr of the group of parameter . must be"),
        (no_moment, ORDER, "needs exp_avg_sq of dense/bias, .* has step, exp_avg"),
        (
            lambda: optimizer_of("Adam", betas=(0.5, 0.999)).state_dict(),
            ORDER,
            r"saved betas\[0\] 0.5, configured 0.9\. Build it with the saved ones, or choose hyperparams=\"configured\"",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_says_what_was_expected(make, names, said):
    choice = "saved" if "saved" in said else "configured"
    with pytest.raises(ValueError, match=said):
        interop.load_state_dict(presets.adam(weight_decay=0.1), PARAMS, make(), names, hyperparams=choice)


# Another value of every argument that is not the learning rate, whatever its type.
OTHERS: dict[str, Any] = {
    "etas": (0.4, 1.3),
    "step_sizes": (1e-5, 1.0),
    "betas": (0.85, 0.95),
    "ns_coefficients": (2.0, -1.5, 0.5),
    "adjust_lr_fn": "match_rms_adamw",
    "beta2_decay": -0.5,
    "d": 3.0,
    "t0": 5.0,
    "ns_steps": 4,
}
EMBEDDING, TABLE = {"embedding": jnp.ones((2, 2))}, ["embedding"]


def fresh_group(name: str, **options: Any) -> dict[str, Any]:
    return getattr(torch.optim, name)([torch.ones(2, 2, requires_grad=True)], **options).state_dict()


def preset_of(name: str, **options: Any) -> Any:
    preset = getattr(presets, {"SparseAdam": "sparse_adam"}.get(name, name.lower()))
    return preset(**options | ({"output_axis": 0} if name == "Muon" else {}))


@pytest.mark.parametrize("name", EVERY_CLASS)
def test_every_argument_of_a_recipe_must_be_the_saved_one(name):
    own = {"lr": 0.1, "momentum": 0.5} if name == "SGD" else {}
    for argument, default in preset_of(name, **own).config.items():
        if argument in ("lr", "output_axis"):
            continue
        pair = (1e-3, 0.2) if isinstance(default, tuple) else 0.25
        other = not default if isinstance(default, bool) else OTHERS.get(argument, pair)
        with pytest.raises(ValueError, match=rf"saved .*{argument}.*configured .*hyperparams=\"configured\""):
            interop.load_state_dict(
                preset_of(name, **own | {argument: other}), EMBEDDING, fresh_group(name, **own), TABLE
            )


def test_none_is_what_torch_takes_it_for():
    least = float(np.finfo(np.float32).eps)
    for name, options in {"Adafactor": {"eps": (least, 1e-3)}, "Muon": {"adjust_lr_fn": "original"}}.items():
        interop.load_state_dict(preset_of(name, **options), EMBEDDING, fresh_group(name), TABLE)
        interop.load_state_dict(preset_of(name), EMBEDDING, fresh_group(name, **options), TABLE)


def test_an_argument_that_the_class_does_not_have_must_be_off():
    with pytest.raises(ValueError, match=r"saved weight_decay 0.5, configured none"):
        interop.load_state_dict(
            presets.sparse_adam(), EMBEDDING, fresh_group("Adam", weight_decay=0.5, eps=1e-8), TABLE, step=0
        )
    interop.load_state_dict(presets.sparse_adam(), EMBEDDING, fresh_group("Adam"), TABLE)


@pytest.mark.parametrize(
    "make", [np.float32, jnp.float32, lambda x: lambda: x, lambda x: lambda step: x], ids=["numpy", "array", "()", "t"]
)
def test_a_group_has_the_numbers_of_the_recipe_whatever_they_are_made_of(make):
    recipes = {"Adadelta": "rho", "RMSprop": "alpha", "Adafactor": "d", "NAdam": "momentum_decay"}
    for name, argument in recipes.items():
        tx = preset_of(name, **{argument: make({"d": 2.0}.get(argument, 0.5))})
        (group,) = interop.to_state_dict(tx, EMBEDDING, tx.init(EMBEDDING), TABLE)["param_groups"]
        assert type(group[argument]) is float
        assert group[argument] == {"d": 2.0}.get(argument, 0.5)
    tx = presets.adadelta(rho=jnp.float32(0.5))
    assert (
        interop.load_state_dict(tx, EMBEDDING, fresh_group("Adadelta", rho=0.25), TABLE)["scale_by_adadelta"][
            "hyperparams"
        ]["rho"]
        == 0.25
    )


@pytest.mark.parametrize(("name", "field"), [("ASGD", "eta"), ("NAdam", "mu_product")])
def test_a_number_that_all_parameters_share_must_be_there_and_the_same(name, field):
    optimizer = optimizer_of(name)
    tx, there = interop.from_torch(optimizer), optimizer.state_dict()
    there["state"][1][field] = torch.tensor(0.5)
    with pytest.raises(ValueError, match=rf"has one {field} for its parameters, .*: dense/.* 0\.5.*multi_optimizer"):
        interop.load_state_dict(tx, PARAMS, there, ORDER)
    for missing in ([0], [1], [0, 1]):
        slots = {n: {k: v for k, v in s.items() if n not in missing or k != field} for n, s in there["state"].items()}
        with pytest.raises(ValueError, match=rf"needs {field} of dense/.*, and PyTorch's state of parameter"):
            interop.load_state_dict(tx, PARAMS, there | {"state": slots}, ORDER)


@pytest.mark.parametrize("size", [-1.0, torch.tensor(-1 + 1j), torch.tensor(1 - 1j)])
def test_a_step_size_is_never_negative(size):
    leaf = torch.ones(2, requires_grad=True, dtype=torch.as_tensor(size).dtype)
    optimizer = torch.optim.Rprop([leaf], lr=0.1)
    leaf.grad = torch.ones_like(leaf)
    optimizer.step()
    there, params = optimizer.state_dict(), {"bias": jnp.asarray(leaf.detach().numpy())}
    interop.load_state_dict(presets.rprop(0.1), params, there, ["bias"])
    there["state"][0]["step_size"][0] = size
    with pytest.raises(ValueError, match="step_size of parameter 0 must be >= 0; 1 of 2 numbers are negative"):
        interop.load_state_dict(presets.rprop(0.1), params, there, ["bias"])


def test_a_velocity_with_the_rate_in_it_is_refused_both_ways():
    tx = optchain.sgd(0.1, momentum=0.9)
    with pytest.raises(ValueError, match="apply_momentum comes after the learning rate"):
        interop.load_state_dict(tx, PARAMS, optimizer_of("SGD").state_dict(), ORDER)


def test_sgd_does_not_count_steps_so_that_a_schedule_asks_for_them():
    there = optimizer_of("SGD").state_dict()
    tx = presets.sgd(optchain.schedules.StepLR(0.5, 10), **OPTIMIZERS["SGD"])
    with pytest.raises(ValueError, match=r"sgd has a schedule that counts calls, .* give step="):
        interop.load_state_dict(tx, PARAMS, there, ORDER)
    assert interop.load_state_dict(tx, PARAMS, there, ORDER, step=20)["count"] == 20


# Files ---------------------------------------------------------------------------------------------------------------


class Malice:
    """Runs code when it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def truncated(path: Any) -> None:
    torch.save({"optimizer": adam_state()}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncated, "expected a checkpoint of torch.save, and it is damaged or none"),
        (lambda path: path.write_bytes(b""), "expected a checkpoint of torch.save"),
        (lambda path: path.write_text("hello"), "expected a checkpoint of torch.save"),
        (
            lambda path: torch.save([1, 2], path),
            "the state_dict of a model, of an optimizer, .* it holds 0 and 0 of them: list",
        ),
        (lambda path: torch.save({"epoch": 3}, path), "holds 0 and 0 of them: epoch"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(spoil, said, tmp_path):
    file = tmp_path / "checkpoint.pt"
    spoil(file)
    with pytest.raises(ValueError, match=said) as refused:
        interop.read(file)
    assert str(file) in str(refused.value)


@pytest.mark.parametrize("how", ["torch.save", "pickle.dump"])
def test_a_pickle_dressed_as_a_checkpoint_runs_no_code(how, tmp_path):
    file, mark = tmp_path / "checkpoint.pt", tmp_path / "was_here"
    data = {"state": Malice(str(mark)), "param_groups": []}
    if how == "torch.save":
        torch.save(data, file)
    else:
        file.write_bytes(pickle.dumps(data))
    with pytest.raises(
        ValueError, match=r"expected a checkpoint of torch\.save(,| with tensors, numbers and names alone)"
    ):
        interop.read(file)
    assert not mark.exists()


def test_the_parts_of_a_checkpoint_are_found_under_any_names(tmp_path):
    file, model = tmp_path / "last.pt", torch.nn.Linear(3, 2).state_dict()
    torch.save({"epoch": 3, "state_dict": model, "optimizer_states": [adam_state()], "lr_schedulers": []}, file)
    found = interop.read(file)
    assert found.model is not None
    assert found.model.keys() == model.keys()
    assert found.optimizer is not None
    assert found.optimizer["state"].keys() == {0, 1}


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(pickle.dumps(Malice(str(tmp_path / "was_here"))))
    with pytest.raises(
        ValueError, match=r"expected a \.safetensors file of numbers that NumPy has, and it is damaged or none"
    ):
        interop.read(file)
    assert not (tmp_path / "was_here").exists()
    interop.write(file, None, adam_state())
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(
        ValueError, match=r"expected a \.safetensors file of numbers that NumPy has, and it is damaged or none"
    ):
        interop.read(file)
    with pytest.raises(ValueError, match="expected a file of PyTorch"):
        interop.read(__file__)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        interop.read(tmp_path / "nowhere.pt")
