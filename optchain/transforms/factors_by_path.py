"""Factors of the learning rate by path, for `scale_by_path`: by width (muP), and by depth."""

import re
from collections.abc import Sequence

import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.trees import Tree


def width_factors(params: Tree, base: Tree) -> dict[str, float]:
    """MuP's factors of the learning rate for rules of Adam's kind, from the shapes of two widths.

        hidden weights, whose last two axes both grow:   base fan-in / fan-in
        all others (input and output weights, biases, norms):   1, and left out

    So that the rate that was best at the base width is best at the other. It is half of muP: the network does the rest.
    Hidden weights begin with variance 1 / fan-in, and the output of the last layer is multiplied by base width / width
    (Table 8), or its weights begin at zero and have this factor too.

    Decoupled decay that stands after `scale_by_path` keeps its strength at every width. Before it, it would shrink with the rate,
    as it does in PyTorch's groups, where muP needs a `weight_decay` that grows with the width.

    Args:
      params: the parameters or their shapes (`jax.eval_shape`); matrices have inputs second to last, outputs last.
      base: those of the base width, a tree of the same structure.

    Returns:
      A factor for each path of a hidden weight, as `scale_by_path` takes them.

    Raises:
      ValueError: trees of another structure or number of axes.

    Source: Yang et al., "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer", 2022,
    arXiv:2203.03466, Table 8.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> def shapes(width):
      ...     return {"embed": jnp.zeros((10, width)), "hidden": jnp.zeros((width, width)), "head": jnp.zeros((width, 10))}
      >>> optchain.width_factors(shapes(64), base=shapes(16))
      {'^hidden$': 0.25}
    """
    ours, theirs = trees.leaves_with_paths(params), trees.leaves_with_paths(base)
    names = [trees.path_string(path) for path, _ in ours]
    if names != [trees.path_string(path) for path, _ in theirs]:
        raise ValueError("base must have the structure of params: the same network at another width")
    factors = {}
    for name, (_, leaf), (_, small) in zip(names, ours, theirs, strict=True):
        shape, other = jnp.shape(leaf), jnp.shape(small)
        if len(shape) != len(other):
            raise ValueError(f"base must have as many axes as params: {name} has {other}, and {shape} in params")
        if len(shape) >= 2 and shape[-2] != other[-2] and shape[-1] != other[-1]:
            factors[f"^{re.escape(name)}$"] = other[-2] / shape[-2]
    return factors


def depth_factors(layers: Sequence[str], decay: float) -> dict[str, float]:
    """Factors of the learning rate that fall from the last layer to the first: `decay^(layers above)`.

    BEiT's and timm's layer-wise decay multiplies the rate of a group, and so its weight decay: for their numbers
    `decay_weights` stands before `scale_by_path`.

    Args:
      layers: a pattern for each layer, as `matching` searches them, from the input to the head.
      decay: the factor from one layer to the one below, in (0, 1].

    Returns:
      A factor for each pattern, as `scale_by_path` takes them.

    Raises:
      TypeError, ValueError: no sequence of patterns, a pattern twice, a number out of range.

    Source: Howard & Ruder, "Universal Language Model Fine-tuning for Text Classification", 2018, arXiv:1801.06146; Bao et al.,
    "BEiT: BERT Pre-Training of Image Transformers", 2022, arXiv:2106.08254.

    Example:
      >>> import optchain
      >>> optchain.depth_factors(["^embed/", "^blocks/0/", "^head/"], decay=0.5)
      {'^embed/': 0.25, '^blocks/0/': 0.5, '^head/': 1.0}
    """
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not all(isinstance(p, str) for p in layers):
        raise TypeError(f"layers must be a sequence of patterns; got {layers!r}")
    if len(set(layers)) < len(layers):
        raise ValueError(f"layers must not have a pattern twice; got {layers!r}")
    arguments.check_number("decay", decay, arguments.Range(0.0, 1.0, low_open=True))
    return {pattern: float(decay) ** (len(layers) - 1 - depth) for depth, pattern in enumerate(layers)}
