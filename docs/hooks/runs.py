"""Pictures of the guide that no program of the cookbook makes: runs in a few lines."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optchain
import pictures
from optchain.interop.optax import from_optax_state

Loss = Callable[[Any], jax.Array]


def drawn() -> dict[str, str]:
    """The pictures by their names, as SVG."""
    return {"configs": _rate_of_a_config(), "lbfgs": _lbfgs(), "moved": _moved()}


def _rate_of_a_config() -> str:
    calls = np.arange(1200)
    rates = jax.vmap(optchain.schedules.CosineDecay(1e-3, decay_steps=1000))(jnp.asarray(calls))
    return pictures.panels("a recipe's rate", [pictures.Panel("learning rate", "call", {"": (calls, rates)})])


def _lbfgs() -> str:
    """The problem of the page on L-BFGS."""
    x = jax.random.normal(jax.random.key(0), (64, 5))
    y = jnp.where(x @ jnp.arange(5.0) > 0.3, 1.0, 0.0)

    def loss_fn(params: Any) -> jax.Array:
        logits = x @ params["w"] + params["b"]
        return jnp.mean(jnp.logaddexp(0, logits) - y * logits) + 1e-3 * jnp.sum(params["w"] ** 2)

    first: Loss = optax.value_and_grad_from_state(loss_fn)
    methods = {
        "Adam, 0.1": (optchain.adam(0.1), 100, lambda params, state: jax.value_and_grad(loss_fn)(params)),
        "L-BFGS": (optchain.chain(("lbfgs", optax.lbfgs())), 24, lambda params, state: first(params, state=state)),
    }
    losses = {}
    for name, (tx, steps, value_and_grad) in methods.items():

        @jax.jit
        def step(params: Any, state: Any, tx: Any = tx, value_and_grad: Any = value_and_grad) -> Any:
            loss, grads = value_and_grad(params, state)
            extra = {"value": loss, "grad": grads, "value_fn": loss_fn} if "lbfgs" in state else {}
            return (*tx.apply(params, state, grads=grads, **extra), loss)

        params: Any = {"w": jnp.zeros(5), "b": jnp.zeros(())}
        state, losses[name] = tx.init(params), []
        for _ in range(steps):
            params, state, loss = step(params, state)
            losses[name].append(float(loss))
    lowest = min(itertools.chain(*losses.values())) - 1e-6
    lines = {name: (np.arange(len(values)), np.asarray(values) - lowest) for name, values in losses.items()}
    return pictures.panels("L-BFGS and Adam", [pictures.Panel("loss above the lowest", "step", lines, y="log")])


def _moved() -> str:
    """A run that Optax began: Optax alone, and from its state on here."""
    x = jax.random.normal(jax.random.key(0), (64, 8))
    y = jnp.sin(x @ jnp.linspace(-1, 1, 8))

    def loss_fn(params: Any) -> jax.Array:
        return jnp.mean((jnp.tanh(x @ params["w"]) - y) ** 2)

    theirs, ours = optax.adamw(0.03), optchain.presets.optax.adamw(0.03)
    value_and_grad = jax.jit(jax.value_and_grad(loss_fn))
    params: Any = {"w": jnp.zeros(8)}
    state, there, here = theirs.init(params), [], []
    for call in range(60):
        if call == 30:
            moved = params, from_optax_state(ours, params, state)
        if call >= 30:
            loss, grads = value_and_grad(moved[0])
            moved = ours.apply(*moved, grads=grads)
            here.append(float(loss))
        loss, grads = value_and_grad(params)
        updates, state = theirs.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        there.append(float(loss))
    lines = {"Optax": (np.arange(60), there), "from its state on, here": (np.arange(30, 60), here)}
    panel = pictures.Panel("loss", "call", lines, y="log", widths=(4.5, 1.7, 1.7))
    return pictures.panels("a run that moved", [panel])
