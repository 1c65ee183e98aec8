"""Flax's `TrainState` and `nnx.Optimizer`, in the `apply` form, and its `Embed`, whose gradient names rows."""

import dataclasses
from typing import Any, Self

import flax.linen as nn
import jax
from flax import nnx
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

from optchain.core.optax_link import as_transformation
from optchain.rows.embedding import rows_of


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
          **kwargs: other fields of the state to replace; and what links ask for by name, such as `weight=` of `accumulate` and
            `value=loss`.

        Raises:
          TypeError: a keyword that is no field, and that no link takes.
        """
        transformation = as_transformation(self.tx)
        fields = {field.name for field in dataclasses.fields(self)}
        extra = {name: value for name, value in kwargs.items() if name not in fields}
        takes = transformation.takes | {
            "value",
            "weight",
        }  # every recipe may be told the loss; of a weight `apply` speaks
        if (unknown := extra.keys() - takes) and not transformation.open_ended:
            raise TypeError(
                f"apply_gradients got {', '.join(sorted(unknown))}: no field of {type(self).__name__}, and nothing that "
                f"{transformation.name} takes; it takes {', '.join(sorted(takes))}"
            )
        if OVERWRITE_WITH_GRADIENT in grads:
            params, opt_state = transformation.apply(
                self.params["params"], self.opt_state, grads=grads["params"], **extra
            )
            params = {"params": params, OVERWRITE_WITH_GRADIENT: grads[OVERWRITE_WITH_GRADIENT]}
        else:
            params, opt_state = transformation.apply(self.params, self.opt_state, grads=grads, **extra)
        replaced = {name: value for name, value in kwargs.items() if name in fields}
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state, **replaced)


class Optimizer(nnx.Optimizer):
    """Flax's `nnx.Optimizer`, whose `update` runs the transformation in the `apply` form.

    Flax's `update` returns the updates. In the `apply` form there are none, so this one returns None; where they are
    wanted, use `nnx.Optimizer`, which takes every transformation of optchain.

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
          **kwargs: what links ask for by name, such as `value=loss`, and `weight=` of `accumulate`.

        Returns:
          None, and not the updates that Flax's returns.
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


class ModelAndOptimizer(Optimizer):
    """Flax's `nnx.ModelAndOptimizer`, in the `apply` form: an optimizer that holds the model that it updates.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> from flax import nnx
      >>> from optchain.flax import ModelAndOptimizer
      >>> optimizer = ModelAndOptimizer(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), optchain.adamw(1e-3))
      >>> optimizer.update(nnx.grad(lambda model: model(jnp.ones((1, 2))).sum())(optimizer.model))
      >>> int(optimizer.step[...])
      1
    """

    def __init__(self, model: Any, tx: Any, *, wrt: Any = nnx.Param):
        super().__init__(model, tx, wrt=wrt)
        self.model = model

    def update(self, grads: Any, /, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates the model's parameters, the optimizer's state and its `step` in place; see `Optimizer.update`."""
        super().update(self.model, grads, **kwargs)


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
