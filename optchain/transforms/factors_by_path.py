"""Factors of the learning rate by path, for `scale_by_path`: by width (muP), and by depth."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.masks import check_patterns, first_match
from optchain.core.matrix_axes import Axes, MatrixAxes, axes_by_pattern
from optchain.core.trees import Tree

RULES = ("adam", "sgd", "adafactor")
NO_MATRIX = re.compile("bias|scale")
"""What the names of leaves have that are no matrices, however many axes they have."""


def width_factors(
    params: Tree,
    base: Tree,
    rule: Literal["adam", "sgd", "adafactor"] = "adam",
    *,
    matrices: Mapping[str, tuple[Axes, Axes]] | None = None,
) -> dict[str, float]:
    """MuP's factors of the learning rate, from the shapes of two widths.

    `in` and `out` say how much larger the fan-in and the fan-out of a weight are than at the base width.

    | what grows with the width | `"adam"` | `"sgd"` | `"adafactor"` |
    |---|---|---|---|
    | inputs and outputs: hidden weights | 1 / in | 1 | 1 / √in |
    | outputs alone: weights of the inputs, embeddings, biases, norms | 1 | out | 1 |
    | inputs alone: weights of the outputs | 1 | in | 1 |
    | neither | 1 | 1 | 1 |

    So the rate that was best at the base width is best at the other. It is half of muP: the network does the rest. Hidden
    weights begin with variance 1 / fan-in, those of the last layer with one that is the same at every width, and its output is
    multiplied by base width / width.

    `"adam"` is for every rule whose steps do not grow with the gradient: Adam's kin, Lion, RMSprop, Rprop; `"sgd"` for steps in
    proportion to it, with momentum or without; `"adafactor"` for steps that are relative to the size of the weight too, as in
    `presets.torch.adafactor` and Keras's with `relative_step`: hidden weights are of size 1 / √fan-in, and so is half of the factor
    in their steps already.

    Decoupled decay that stands after `scale_by_path` keeps its strength at every width. Before it, it would shrink with the rate,
    as it does in PyTorch's groups, where muP needs a `weight_decay` that grows with the width.

    Args:
      params: the parameters or their shapes (`jax.eval_shape`).
      base: those of the base width, a tree of the same structure.
      rule: whose factors, see above.
      matrices: which axes are inputs and which outputs, by patterns that are searched in the paths: `{"query/kernel$": (0, (1,
        2)), "query/bias$": ((), (0, 1))}`, where a bias has no inputs. Of all others these are the last axis but one, and the last.

    Returns:
      A factor for each path, as `scale_by_path` takes them.

    Raises:
      TypeError, ValueError: trees of another structure or number of axes, two leaves of one path, an axis that a weight does not
        have, or that is both; a weight of which other axes differ than its inputs and outputs, a bias or a scale that grows on
        two axes and is not in `matrices`.

    Source: Yang et al., "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer", 2022,
    arXiv:2203.03466, Table 8; of Adafactor, Everett et al., "Scaling Exponents Across Parameterizations and Optimizers", 2024,
    arXiv:2407.05872.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> def shapes(width):
      ...     return {"embed": jnp.zeros((10, width)), "hidden": jnp.zeros((width, width)), "head": jnp.zeros((width, 10))}
      >>> optchain.width_factors(shapes(64), base=shapes(16))
      {'^embed$': 1.0, '^head$': 1.0, '^hidden$': 0.25}
      >>> optchain.width_factors(shapes(64), base=shapes(16), rule="sgd")
      {'^embed$': 4.0, '^head$': 4.0, '^hidden$': 1.0}
    """
    arguments.check_choice("rule", rule, RULES)
    chosen = jax.tree.map(lambda _: False, params)
    if matrices is not None:
        chosen = first_match("matrices", axes_by_pattern(matrices, may_be_empty=True), False, params)
    ours, theirs = trees.leaves_with_paths(params), trees.leaves_with_paths(base)
    names = [trees.path_string(path) for path, _ in ours]
    if names != [trees.path_string(path) for path, _ in theirs]:
        raise ValueError("base must have the structure of params: the same network at another width")
    if len(set(names)) < len(names):
        raise ValueError(f"params must have one leaf a path; got {next(n for n in names if names.count(n) > 1)} twice")
    factors = {}
    for name, (_, leaf), (_, small), axes in zip(names, ours, theirs, jax.tree.leaves(chosen), strict=True):
        wide, narrow = _growth(name, jnp.shape(leaf), jnp.shape(small), axes or None)
        factors[f"^{re.escape(name)}$"] = _factor(rule, wide, narrow)
    return factors


def _factor(rule: str, fan_in: float, fan_out: float) -> float:
    """Table 8 of the paper, of how much the fans have grown."""
    if fan_in != 1 and fan_out != 1:
        return {"adam": 1 / fan_in, "sgd": 1.0, "adafactor": fan_in**-0.5}[rule]
    return fan_in * fan_out if rule == "sgd" else 1.0


def _growth(name: str, shape: tuple[int, ...], base: tuple[int, ...], told: MatrixAxes | None) -> tuple[float, float]:
    """How much larger the fan-in and the fan-out are than at the base width."""
    name = name or "the array"
    ndim = len(shape)
    if ndim != len(base):
        raise ValueError(f"base must have as many axes as params: {name} has {base}, and {shape} in params")
    if 0 in (*shape, *base):
        raise ValueError(f"{name} has no numbers: {base} in base, {shape} in params")
    axes = told or MatrixAxes(tuple(range(ndim))[-2:-1], tuple(range(ndim))[-1:])
    axes.check(name, shape)
    ins, outs = ({axis % ndim for axis in side} for side in (axes.ins, axes.outs))
    if others := [i for i in range(ndim) if i not in ins | outs and shape[i] != base[i]]:
        raise ValueError(
            f"{name} has {base} in base and {shape} in params: axis {others[0]} differs, which is neither of its inputs nor of its "
            f"outputs. Say which are: matrices={{{name!r}: (axes in, axes out)}}, such as (0, (1, 2))"
        )
    grown = [i for i in range(ndim) if shape[i] != base[i]]
    if told is None and len(grown) > 1 and NO_MATRIX.search(name.split("/")[-1]):
        raise ValueError(
            f"{name} has {base} in base and {shape} in params: by its name it is no matrix, and two axes differ. Say what they are: "
            f"matrices={{{name!r}: ((), {tuple(grown)})}} if all are outputs"
        )
    fan_in, fan_out = (math.prod((shape[i] / base[i] for i in axes), start=1.0) for axes in (ins, outs))
    return fan_in, fan_out


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
      TypeError, ValueError: no sequence of patterns, none or one twice, a number out of range.

    Source: Howard & Ruder, "Universal Language Model Fine-tuning for Text Classification", 2018, arXiv:1801.06146; Bao et al.,
    "BEiT: BERT Pre-Training of Image Transformers", 2022, arXiv:2106.08254.

    Example:
      >>> import optchain
      >>> optchain.depth_factors(["^embed/", "^blocks/0/", "^head/"], decay=0.5)
      {'^embed/': 0.25, '^blocks/0/': 0.5, '^head/': 1.0}
    """
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not all(isinstance(p, str) for p in layers):
        raise TypeError(f"layers must be a sequence of patterns; got {layers!r}")
    check_patterns("layers", dict.fromkeys(layers))
    if len(set(layers)) < len(layers):
        raise ValueError(f"layers must not have a pattern twice; got {layers!r}")
    arguments.check_number("decay", decay, arguments.Range(0.0, 1.0, low_open=True))
    return {pattern: float(decay) ** (len(layers) - 1 - depth) for depth, pattern in enumerate(layers)}
