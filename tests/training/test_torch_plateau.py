"""PyTorch's `ReduceLROnPlateau`: what it refuses, and where it differs from Keras's. `parity` has its numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import optchain as oc

TORCH = oc.presets.torch
TX = TORCH.sgd(jnp.array(1.0))


def rates(plateau: Any, metrics: list[float]) -> list[float]:
    """The rate after each evaluation."""
    watched, state, found = plateau.init(), TX.init(jnp.zeros(1)), []
    for metric in metrics:
        watched, state = plateau.update(metric, watched, state)
        found.append(float(oc.get_hyperparams(state)["learning_rate"]))
    return found


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_it_waits_one_evaluation_longer_than_kerass(patience: int) -> None:
    metrics = [1.0] * 12
    torchs = rates(TORCH.ReduceLROnPlateau(factor=0.5, patience=patience), metrics)
    kerass = rates(oc.ReduceLROnPlateau(factor=0.5, patience=patience), metrics)
    assert torchs.index(0.5) == kerass.index(0.5) + 1
    assert rates(oc.ReduceLROnPlateau(factor=0.5, patience=patience + 1), metrics) == torchs


def test_its_threshold_is_a_fraction_of_the_best_unless_told_otherwise() -> None:
    metrics = [100.0, 99.5, 99.0]
    assert rates(TORCH.ReduceLROnPlateau(patience=0, factor=0.5, threshold=0.01), metrics)[1] == 0.5
    plateau = TORCH.ReduceLROnPlateau(patience=0, factor=0.5, threshold=0.01, threshold_mode="abs")
    assert rates(plateau, metrics) == [1.0, 1.0, 1.0]


def test_one_program_takes_every_evaluation() -> None:
    plateau = TORCH.ReduceLROnPlateau(factor=0.5, patience=0, cooldown=1)
    carry, shapes = (plateau.init(), TX.init(jnp.zeros(1))), set()
    update = jax.jit(plateau.update)
    for metric in (1.0, 1.0, 0.5, 0.5):
        carry = update(metric, *carry)
        shapes.add(str(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), carry)))
    assert len(shapes) == 1
    assert update._cache_size() == 1


def test_a_rate_that_is_scheduled_is_refused() -> None:
    state = TORCH.sgd(oc.schedules.StepLR(0.1, 10)).init(jnp.zeros(1))
    plateau = TORCH.ReduceLROnPlateau()
    with pytest.raises(ValueError, match="learning_rate is scheduled"):
        plateau.update(1.0, plateau.init(), state)


def test_a_name_that_is_unknown_lists_what_there_is() -> None:
    plateau = TORCH.ReduceLROnPlateau(name="lr")
    with pytest.raises(
        ValueError, match=r"hyperparameter 'lr' is unknown \(did you mean learning_rate\?\); there are: learning_rate"
    ):
        plateau.update(1.0, plateau.init(), TX.init(jnp.zeros(1)))


def test_it_is_frozen_compares_by_value_and_prints_as_code() -> None:
    one, other = TORCH.ReduceLROnPlateau(patience=3), TORCH.ReduceLROnPlateau(patience=4)
    assert one == TORCH.ReduceLROnPlateau(patience=3) != other
    assert hash(one) == hash(TORCH.ReduceLROnPlateau(patience=3))
    with pytest.raises(AttributeError):
        setattr(one, "patience", 3)  # noqa: B010
    assert eval(repr(one), vars(TORCH)) == one


def test_its_arguments_stand_in_pytorchs_order() -> None:
    assert TORCH.ReduceLROnPlateau("max", 0.5, 3, 1e-3, "abs", 2, 1e-5, 1e-7) == TORCH.ReduceLROnPlateau(
        mode="max", factor=0.5, patience=3, threshold=1e-3, threshold_mode="abs", cooldown=2, min_lr=1e-5, eps=1e-7
    )
