"""A transformation as a Python object: immutable, static, equal by value, with a name and a kind."""

import copy
import pickle
from typing import Any

import jax
import optax

from optchain.core.transformation import Transformation
from optchain.testing.steps import assert_same, run
from optchain.testing.subject import Subject


def a_pickle_comes_back_equal_and_runs_the_same(subject: Subject) -> None:
    if not subject.has_code:
        return
    tx = subject.make()
    loaded = pickle.loads(pickle.dumps(tx))  # noqa: S301 - what was pickled a moment ago
    if loaded != tx or hash(loaded) != hash(tx):
        raise AssertionError(f"it comes back from a pickle as {loaded!r}")
    assert_same(run(loaded, subject.tree, steps=1), run(tx, subject.tree, steps=1))


def two_built_alike_are_equal_and_hash_alike(subject: Subject) -> None:
    one, other = subject.make(), subject.make()
    if one != other or hash(one) != hash(other):
        raise AssertionError(
            f"two that were built alike are different, so that each would compile anew: {one!r}. Decorate the function "
            "that builds it with optchain.register, and give it arguments that compare by value"
        )


def jax_tree_finds_no_leaves_and_returns_it_whole(subject: Subject) -> None:
    tx = subject.make()
    if jax.tree.leaves(tx):
        raise AssertionError("jax.tree finds leaves in it")
    mapped = jax.tree.map(lambda leaf: leaf, {"tx": tx})
    if mapped["tx"] is not tx or jax.tree.structure({"tx": tx}) != jax.tree.structure({"tx": subject.make()}):
        raise AssertionError("jax.tree.map returns another object, or its structure compares unequal")


def copies_are_itself(subject: Subject) -> None:
    tx = subject.make()
    if copy.copy(tx) is not tx or copy.deepcopy({"tx": [tx]})["tx"][0] is not tx:
        raise AssertionError("a copy is another object")


def it_is_immutable(subject: Subject) -> None:
    tx: Any = subject.make()

    def replace_name() -> None:
        tx.name = None

    def write_config() -> None:
        tx.config["learning_rate"] = 1.0

    for write in (replace_name, write_config, lambda: tx._replace(update=tx.update)):
        try:
            write()
        except (AttributeError, TypeError):
            continue
        raise AssertionError("it can be written to")


def it_knows_its_name_config_links_and_kind(subject: Subject) -> None:
    tx = subject.make()
    if not tx.name.isidentifier():
        raise AssertionError(f"its name is {tx.name!r}, which is no identifier")
    if tx.kind not in ("gradient", "gate", "parameter"):
        raise AssertionError(f"its kind is {tx.kind!r}")
    if not all(isinstance(link, optax.GradientTransformation) for link in tx.links):
        raise AssertionError(f"its links are {tx.links!r}")
    if not isinstance(tx, Transformation) or isinstance(tx.config, dict):
        raise AssertionError("it is no Transformation, or its config can be written to")


CHECKS = (
    a_pickle_comes_back_equal_and_runs_the_same,
    two_built_alike_are_equal_and_hash_alike,
    jax_tree_finds_no_leaves_and_returns_it_whole,
    copies_are_itself,
    it_is_immutable,
    it_knows_its_name_config_links_and_kind,
)
