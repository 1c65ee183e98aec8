"""A transformer and its training recipe, as shapes: what is compiled for a pod."""

from typing import Any

import jax
import jax.numpy as jnp

from optchain.cli.bench import trees
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.presets.keras import adamw

HEADS = 16


def shapes(layers: int, width: int, vocabulary: int) -> Tree:
    """The layers of `trees.transformer` between an embedding and a head, in bfloat16."""
    table = jax.ShapeDtypeStruct((vocabulary, width), jnp.bfloat16)
    head = jax.ShapeDtypeStruct((width, vocabulary), jnp.bfloat16)
    return {"embed": table, "head": head, **trees.transformer(layers, width, jnp.bfloat16)}


def recipe() -> Transformation:
    return adamw(1e-3, global_clipnorm=1.0, use_ema=True, gradient_accumulation_steps=4)


def loss_fn(params: Tree, tokens: jax.Array) -> jax.Array:
    """The mean cross-entropy of each next token."""
    x = params["embed"][tokens[:, :-1]]
    for name in sorted(name for name in params if name.startswith("layer_")):
        x = jax.checkpoint(_layer)(x, params[name])
    logits = (x @ params["head"]).astype(jnp.float32)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)
    return -jnp.mean(chosen)


def _layer(x: jax.Array, p: Any) -> jax.Array:
    heads = (*x.shape[:-1], HEADS, x.shape[-1] // HEADS)
    normed = _normed(x) * p["scale"]
    q, k, v = ((normed @ p[name]).reshape(heads) for name in ("query", "key", "value"))
    x = x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape) @ p["out"]
    return x + jax.nn.gelu(_normed(x) @ p["up"] + p["up_bias"]) @ p["down"] + p["down_bias"]


def _normed(x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)
