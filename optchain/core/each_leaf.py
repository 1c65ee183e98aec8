"""`each_leaf`: the math of one leaf, over a tree, in the dtype of its arithmetic. For links that keep no slots, or odd ones."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from optchain.core import trees
from optchain.core.trees import Tree


def each_leaf(
    step: Callable[..., Callable[..., Any]], updates: Tree, *beside: Tree, outputs: int | None = None, **values: Any
) -> Any:
    """`step(**values)(g, *beside)` of each leaf `g`, made float32 or wider.

    As in a `rule`, `step` runs once for each dtype in the tree, and gets scalars in that dtype (of complex leaves, their real
    part's), Python numbers as they are. Arrays beside `g` get its dtype, real ones its real part's; anything else is handed
    on: flags of a mask, numbers, tuples.

    Args:
      step: returns a function of leaves.
      updates: the tree whose leaves come first.
      *beside: trees of its structure.
      outputs: how many leaves the function returns, as a tuple; None for one leaf.
      **values: scalars for `step`.

    Returns:
      A tree, or as many as there are outputs.
    """

    @functools.cache
    def leaf(dtype: Any) -> Callable[..., Any]:
        like = jax.ShapeDtypeStruct((), dtype)
        return step(**{name: trees.cast(value, like) for name, value in values.items()})

    def act(g: Any, *others: Any) -> Any:
        g = trees.wide(g)
        real = trees.real_dtype(g.dtype)

        def meeting(x: Any) -> Any:
            if not hasattr(x, "dtype"):
                return x
            return trees.astype(x, g.dtype if trees.is_complex(x) == trees.is_complex(g) else real)

        return leaf(real)(g, *map(meeting, others))

    # All operands have the leaf's dtype, its real part's, or are Python's: a real number becomes complex, no more.
    with jax.numpy_dtype_promotion("standard"):
        if outputs is None:
            return jax.tree.map(act, updates, *beside)
        return trees.map_unzip(act, outputs, updates, *beside)
