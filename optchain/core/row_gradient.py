"""`RowGradient`: the gradient of a table, of which only some rows are named."""

import dataclasses
from typing import Any, Self, TypeGuard

import jax
import jax.numpy as jnp


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class RowGradient:
    """The gradient of a table that is zero but in the rows that it names, such as that of an embedding.

        dense()[i] = Σ rows[k]  over all k with indices[k] = i

    It stands where the gradient of the table would stand, as one leaf. `optchain.value_and_grad` makes it, and every
    transformation of optchain takes it, and gives the numbers of the dense gradient; `lazy_rows` touches the named rows only.

    Args:
      indices: int array of shape (n,). An index may come several times; one below 0 or beyond the table names no row, which
        is how a batch is padded to a fixed size.
      rows: array of shape (n, ...), a row for each index.
      shape: the shape of the table; its first axis is that of the rows.

    Raises:
      TypeError: indices that are not integers.
      ValueError: shapes that do not fit.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> grad = optchain.RowGradient(jnp.array([2, 0, 2, -1]), jnp.ones((4, 2)), shape=(3, 2))
      >>> grad.dense()
      Array([[1., 1.],
             [0., 0.],
             [2., 2.]], dtype=float32)
    """

    indices: jax.Array
    rows: jax.Array
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not jnp.issubdtype(self.indices.dtype, jnp.integer):
            raise TypeError(f"indices must be integers; got dtype {self.indices.dtype}")
        if self.indices.ndim != 1 or not self.shape or self.rows.shape != (*self.indices.shape, *self.shape[1:]):
            raise ValueError(
                f"a table of shape {self.shape} needs indices of shape (n,) and rows of shape (n, ...) with the table's other "
                f"axes; got indices of shape {self.indices.shape}, rows of shape {self.rows.shape}"
            )

    def dense(self) -> jax.Array:
        """The gradient as an array of the table's shape."""
        return self.add_to(jnp.zeros(self.shape, self.rows.dtype))

    def add_to(self, table: jax.Array) -> jax.Array:
        """The table plus this gradient, in place where the table is not needed any more."""
        return table.at[self._inside()].add(self.rows, mode="drop")

    def merge(self) -> Self:
        """The same gradient with every row once, the named ones in order and first; the others lie beyond the table, at zero.

        So the size is the same, and a norm of `rows` is the norm of the dense gradient.
        """
        n, height = self.indices.size, self.shape[0]
        if n == 0:
            return self
        indices, place = jnp.unique(self._inside(), return_inverse=True, size=n, fill_value=height)
        named = indices < height
        rows = jnp.zeros_like(self.rows).at[place].add(self.rows)
        mask = named.reshape(n, *[1] * (self.rows.ndim - 1))
        rows = jnp.where(mask, rows, jnp.zeros_like(rows))
        return type(self)(jnp.where(named, indices, height + jnp.arange(n, dtype=jnp.int32)), rows, self.shape)

    def with_rows(self, rows: jax.Array) -> Self:
        """Other rows at the same indices."""
        return type(self)(self.indices, rows, self.shape)

    @property
    def dtype(self) -> Any:
        """The dtype of the rows."""
        return self.rows.dtype

    @property
    def ndim(self) -> int:
        """The number of the table's axes."""
        return len(self.shape)

    def _inside(self) -> jax.Array:
        """The indices in int32, those that name no row at the table's end: JAX would count negative ones from there."""
        indices = self.indices if self.indices.dtype.itemsize >= 4 else self.indices.astype(jnp.int32)
        inside = (indices >= 0) & (indices < self.shape[0])
        return jnp.where(inside, indices.astype(jnp.int32), self.shape[0])

    # As a pytree, of indices and rows: nothing is checked, since JAX puts all sorts of things in their places.

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], tuple[int, ...]]:
        key = jax.tree_util.GetAttrKey
        return ((key("indices"), self.indices), (key("rows"), self.rows)), self.shape

    def tree_flatten(self) -> tuple[tuple[Any, Any], tuple[int, ...]]:
        return (self.indices, self.rows), self.shape

    @classmethod
    def tree_unflatten(cls, shape: tuple[int, ...], children: tuple[Any, Any]) -> Self:
        self = object.__new__(cls)
        for name, value in zip(("indices", "rows", "shape"), (*children, shape), strict=True):
            object.__setattr__(self, name, value)
        return self


def is_rows(x: Any) -> TypeGuard[RowGradient]:
    """Whether a node is a `RowGradient`, to be taken for a leaf."""
    return isinstance(x, RowGradient)


def densified(tree: Any) -> Any:
    """The tree with an array in place of each `RowGradient`."""
    return jax.tree.map(lambda x: x.dense() if is_rows(x) else x, tree, is_leaf=is_rows)


def values(tree: Any) -> Any:
    """The tree with the rows in place of each merged `RowGradient`: what a norm is taken of."""
    return jax.tree.map(lambda x: x.rows if is_rows(x) else x, tree, is_leaf=is_rows)
