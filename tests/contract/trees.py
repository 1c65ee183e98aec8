"""Parameter trees of every kind that users bring: those of `optchain.testing`, and other libraries'."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.core
import jax
import jax.numpy as jnp
from flax import nnx

from optchain.testing.trees import BIAS, KERNEL, TREES
from optchain.testing.trees import PLAIN as PLAIN
from optchain.testing.trees import Dense as Dense
from optchain.testing.trees import Tree as Tree
from optchain.testing.trees import filled as filled
from optchain.testing.trees import grads_of as grads_of
from optchain.testing.trees import params_of as params_of


class Affine(eqx.Module):
    weight: Any
    bias: Any
    activation: Callable = jax.nn.relu


TREES |= {
    "frozen_dict": lambda: flax.core.freeze({"dense": {"kernel": KERNEL, "bias": BIAS}}),
    "nnx_state": lambda: nnx.State(
        {"layers": {0: {"kernel": nnx.Param(jnp.asarray(KERNEL))}, 1: nnx.Param(jnp.asarray(BIAS))}}
    ),
    "equinox": lambda: eqx.filter(Affine(KERNEL, BIAS), eqx.is_inexact_array),
}
