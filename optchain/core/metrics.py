"""Metrics: scalars that links keep in their states under `metrics`, and the learning rates."""

from typing import Any

import jax
import jax.numpy as jnp

from optchain.core.hyperparams import _keyed
from optchain.core.lookup import Field, find_fields

OF_GATES = dict.fromkeys(["consecutive", "max_consecutive", "max_consecutive_spikes"], "skipped_steps")
"""What is read together with the count of a gate's skipped steps, and so is found at the same place."""


def metrics(state: Any) -> dict[str, jax.Array]:
    """The metrics of the last call, as scalars for a logger. Links compute them on the way: no pass over the data is added.

    The learning rates are among them, read from where they stand (`get_hyperparams`): what the last call used, or what was
    set since. Where a link within a chain has a rate of its own, such as that of a decay, the chain's is shown.

    Args:
      state: any pytree with an optchain state in it: Optax's, a Flax `TrainState`, an `nnx.Optimizer`.

    Returns:
      A dict of copies of shape (), keyed by name (`learning_rate`, `global_norm`) where the name is unambiguous, else by
      path (`accumulate/inner/clip_by_global_norm/global_norm`).

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.sgd(0.5, global_clipnorm=1.0)
      >>> params = {"w": jnp.zeros(2)}
      >>> params, state = tx.apply(params, tx.init(params), grads={"w": jnp.array([3.0, 4.0])})
      >>> {name: float(value) for name, value in optchain.metrics(state).items()}
      {'clipped_fraction': 1.0, 'global_norm': 5.0, 'learning_rate': 0.5}
    """
    fields = find_fields(state, "metrics", "hyperparams", "scheduled")
    found = [field for field in fields if field.group == "metrics"] + _learning_rates(fields)
    return {key: jnp.array(field.value, copy=True) for key, field in _keyed(found, beside=OF_GATES).items()}


def _learning_rates(fields: list[Field]) -> list[Field]:
    """The rates among hyperparameters and metrics, without those below a link that has one too."""
    rates = [field for field in fields if field.name == "learning_rate" and field.group != "metrics"]
    owners = {field.owner for field in rates}
    return [field for field in rates if not any(field.owner[:depth] in owners for depth in range(len(field.owner)))]
