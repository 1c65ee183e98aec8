"""Flax's `TrainState` and `nnx.Optimizer`, in the `apply` form, and its `Embed`, whose gradient names rows."""

from typing import Any, Self

import flax.linen as nn
import jax
from flax import nnx
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

from optchain.core.optax_link import as_transformation
from optchain.embedding import rows_of


class TrainState(train_state.TrainState):
    """Flax's `TrainState`, whose `apply_gradients` runs the transformation in the `apply` form.

    So a call that only accumulates leaves the parameters alone, and an average of the parameters sees them as they become.
    Any Optax transformation works too. Parameters that Flax marks as overwritten by their gradient are handled as there.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, optchain
      >>> from optchain.flax import TrainState
      >>> model = nn.Dense(1)
      >>> variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
      >>> state = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=optchain.adamw(1e-3))
      >>> grads = jax.grad(lambda params: state.apply_fn({"params": params}, jnp.ones((1, 2))).sum())(state.params)
      >>> state = state.apply_gradients(grads=grads)
      >>> int(state.step)
      1
    """

    def apply_gradients(self, *, grads: Any, **kwargs: Any) -> Self:
        """The state after one step: `step`, `params` and `opt_state`, and whatever else `kwargs` replaces.

        Args:
          grads: the gradients, of the structure of `params`.
          **kwargs: other fields of the state to replace.
        """
        transformation = as_transformation(self.tx)
        if OVERWRITE_WITH_GRADIENT in grads:
            params, opt_state = transformation.apply(self.params["params"], self.opt_state, grads=grads["params"])
            params = {"params": params, OVERWRITE_WITH_GRADIENT: grads[OVERWRITE_WITH_GRADIENT]}
        else:
            params, opt_state = transformation.apply(self.params, self.opt_state, grads=grads)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state, **kwargs)


class Optimizer(nnx.Optimizer):
    """Flax's `nnx.Optimizer`, whose `update` runs the transformation in the `apply` form.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> from flax import nnx
      >>> from optchain.flax import Optimizer
      >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
      >>> optimizer = Optimizer(model, optchain.adamw(1e-3), wrt=nnx.Param)
      >>> grads = nnx.grad(lambda model: model(jnp.ones((1, 2))).sum())(model)
      >>> optimizer.update(model, grads)
      >>> int(optimizer.step[...])
      1
    """

    def update(self, model: Any, grads: Any, /, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates the model's parameters, the optimizer's state and its `step` in place.

        Args:
          model: the module that the optimizer was made for.
          grads: the gradients, from `nnx.grad` with respect to the same filter.
          **kwargs: what links ask for by name, such as `value=loss`.
        """
        params, grads, state, extra = (
            nnx.as_pure(tree)
            for tree in (
                nnx.state(model, self.wrt, graph=self.graph),
                nnx.state(grads, self.wrt, graph=self.graph),
                self.opt_state,
                kwargs,
            )
        )
        params, state = as_transformation(self.tx).apply(params, state, grads=grads, **extra)
        nnx.update(model, params)
        nnx.update(self.opt_state, nnx.state(state, graph=self.graph))
        self.step[...] += 1


class Embed(nn.Embed):
    """Flax's `linen.Embed`, whose gradient names rows: it looks up by `rows_of`, and casts what it found.

    An index below 0 or beyond the table gives zeros, and no gradient, where Flax's counts from the end or gives NaN. `attend`
    reads the whole table: a loss that uses it gets a dense gradient.

    Example:
      >>> import jax, jax.numpy as jnp, optchain
      >>> from optchain.flax import Embed
      >>> layer, ids = Embed(num_embeddings=1000, features=4), jnp.array([7, 3, 7, -1])
      >>> params = layer.init(jax.random.key(0), ids)["params"]
      >>> loss, grads = optchain.value_and_grad(lambda p: layer.apply({"params": p}, ids).sum())(params)
      >>> grads["embedding"].indices
      Array([ 7,  3,  7, -1], dtype=int32)
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """The embeddings of the indices, with an axis of features appended."""
        (rows,) = self.promote_dtype(rows_of(self.embedding, inputs), dtype=self.dtype, inexact=False)
        assert rows is not None
        return rows


class NnxEmbed(nnx.Embed):
    """Flax's `nnx.Embed`, whose gradient names rows, as those of `Embed` do.

    `optchain.value_and_grad` takes a function of the parameters: split the module, and merge it in the loss.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> from flax import nnx
      >>> from optchain.flax import NnxEmbed
      >>> graph, params = nnx.split(NnxEmbed(1000, 4, rngs=nnx.Rngs(0)))
      >>> loss_fn = lambda params: nnx.merge(graph, params)(jnp.array([7, 3, 7])).sum()
      >>> loss, grads = optchain.value_and_grad(loss_fn)(nnx.as_pure(params))
      >>> grads["embedding"].indices
      Array([7, 3, 7], dtype=int32)
    """

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """The embeddings of the indices, with an axis of features appended; with an `out_sharding` Flax's own, and dense."""
        if out_sharding is not None:
            return super().__call__(inputs, out_sharding)
        (rows,) = self.promote_dtype((rows_of(self.embedding[...], inputs),), dtype=self.dtype, inexact=False)
        return rows
