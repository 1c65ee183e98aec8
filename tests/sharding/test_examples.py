"""The scripts of `examples/` run on eight devices, learn, and leave their state where they say."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
LEARNED = 0.6
"""What of the loss is left at the end, at most."""


def run(name: str):
    losses, carry = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]()
    assert np.mean(losses[-20:]) < LEARNED * np.mean(losses[:20])
    return carry


def test_every_example_is_tested():
    elsewhere = {"skip_gram", "own_task"}  # tests/rows, tests/race
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"data_parallel_pmap", "sharded_nnx", "fully_sharded_accumulation"} | elsewhere


@pytest.mark.for_release
def test_data_parallel_linen_with_pmap():
    state = run("data_parallel_pmap")
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
        each = np.asarray(leaf)
        np.testing.assert_array_equal(each, np.broadcast_to(each[:1], each.shape))


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "share"), [("sharded_nnx", 1 / 2), ("fully_sharded_accumulation", 1 / 8)])
def test_a_device_holds_its_share_of_the_parameters_and_an_eighth_of_the_state(name, share, capsys):
    params, state = run(name)

    def held(tree):
        leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim]
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves) / sum(leaf.nbytes for leaf in leaves)

    assert held(params) == pytest.approx(share, abs=0.02)
    assert held(state) == pytest.approx(1 / 8, abs=0.02)
    assert "8 devices" in capsys.readouterr().out
