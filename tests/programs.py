"""Programs that are compiled, for devices that are not there or in a test, for more than one file of tests."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

import optchain
from optchain.cli.bench import ahead, trees

SHAPES = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in (("up", (768, 3072)), ("out", (768, 768)))}


def compact_step(target: str, weights: Any, *, kernel: bool) -> ahead.Counted:
    """A step of AdamW in codes; of narrow parameters with narrow gradients, if they have low bits."""
    tx = optchain.compact(optchain.adamw(1e-3), weights=weights, kernel=kernel)
    here = SingleDeviceSharding(ahead.devices(target)[0])

    def placed(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)

    params = placed(jax.eval_shape(optchain.narrow, SHAPES) if weights else SHAPES)
    state = placed(jax.eval_shape(tx.init, SHAPES))
    step = jax.jit(lambda params, state, grads: tx.apply(params, state, grads=grads), donate_argnums=(0, 1))
    return ahead.counted(step.lower(params, state, params).compile(), trees.size(SHAPES))


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The events of what is compiled within."""
    events: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: events.append(event) if "backend_compile" in event else None
    )
    try:
        yield events
    finally:
        jax.monitoring.clear_event_listeners()
