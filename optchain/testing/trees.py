"""Parameter trees of every kind that needs no package but JAX and Optax, filled with fixed numbers."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

Tree: TypeAlias = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Dense:
    kernel: Any
    bias: Any


KERNEL, BIAS = np.zeros((3, 2)), np.zeros(2)

TREES: dict[str, Callable[[], Tree]] = {
    "nested_dict": lambda: {"dense": {"kernel": KERNEL, "bias": BIAS}, "head": {"kernel": BIAS}},
    "list": lambda: [KERNEL, BIAS],
    "tuple": lambda: ({"kernel": KERNEL}, BIAS),
    "dataclass": lambda: Dense(KERNEL, [BIAS]),
    "bare_array": lambda: KERNEL,
    "scalars": lambda: {"a": np.zeros(()), "b": [np.zeros(())]},
    "empty_array": lambda: {"empty": np.zeros((0, 3)), "bias": BIAS},
    "none_inside": lambda: {"kernel": KERNEL, "frozen": None},
    "masked_inside": lambda: {"kernel": KERNEL, "frozen": optax.MaskedNode()},
    "no_leaves": lambda: {"frozen": None},
}

PLAIN = "nested_dict"


def filled(tree: Tree, dtype: Any = jnp.float32, seed: int = 0) -> Tree:
    """The tree with normal numbers in `dtype`, the same at every call."""
    rng = np.random.default_rng(seed)

    def fill(leaf: Any) -> jax.Array:
        values = rng.normal(size=np.shape(leaf))
        if jnp.issubdtype(dtype, jnp.complexfloating):
            values = values + 1j * rng.normal(size=np.shape(leaf))
        return jnp.asarray(values, dtype)

    return jax.tree.map(fill, tree)


def params_of(tree: Any = PLAIN, dtype: Any = jnp.float32) -> Tree:
    """Parameters of a tree, by its name or as it is."""
    return filled(_shapes(tree), dtype, seed=1)


def grads_of(tree: Any = PLAIN, dtype: Any = jnp.float32, step: int = 0) -> Tree:
    """The gradients of a step."""
    return filled(_shapes(tree), dtype, seed=100 + step)


def _shapes(tree: Any) -> Tree:
    return TREES[tree]() if isinstance(tree, str) else tree
