"""A few steps of a transformation on fixed gradients, and trees compared bit by bit."""

import jax
import numpy as np
import optax


def run_steps(tx, params, grads, form="apply", number=4):
    """Parameters and state after `number` jitted steps in one of the two forms."""

    @jax.jit
    def step(params, state):
        if form == "apply":
            return tx.apply(params, state, grads=grads)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(number):
        params, state = step(params, state)
    return params, state


def as_bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
