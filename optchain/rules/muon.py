"""Muon's rule: a momentum whose matrices are made orthogonal, and Adam for everything that is no matrix."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

import jax
import jax.numpy as jnp

from optchain.core import arguments, trees
from optchain.core.each_leaf import each_leaf
from optchain.core.factors import near_one
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.masks import Mask, check_mask, resolve_mask
from optchain.core.matrix_axes import Axes, MatrixAxes, axes_by_pattern, form_in_state, forms_of
from optchain.core.owners import along_automatic_axes, by_owners, owner_axes
from optchain.core.registry import register
from optchain.core.slot import Slot, declare, stored
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.rules.moments import average, average_of_squares, one_minus_power

QUINTIC = (3.4445, -4.7750, 2.0315)
"""The coefficients of Jordan et al.: the steepest at 0 of those that stay near 1."""

Triple: TypeAlias = Sequence[float]


def _with_margin(triples: Sequence[Triple]) -> tuple[tuple[float, ...], ...]:
    """Triples for singular values up to 1.01, where rounding puts those of 1; the last, which is for values near 1, as it is."""
    *before, last = triples
    return (*((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in before), tuple(last))


POLAR_EXPRESS = _with_margin(
    [
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        (1.875, -1.25, 0.375),
    ]
)
"""The best polynomial of each step after those before it, for singular values from 1e-3 to 1, where the smallest counts as 0.024 of the
largest at least: Amsel et al., arXiv:2505.16932."""

CANS = _with_margin(
    [
        (8.470328804343765, -25.108074708746635, 18.62927560070658),
        (4.182834183521295, -3.108701110058135, 0.5806066813782554),
        (3.961857279133381, -2.9540637465878765, 0.5629761180024174),
        (3.286586217005922, -2.464720134578801, 0.5073576938820149),
        (2.2737499943238104, -1.644660367803729, 0.41619092748570136),
        (1.8887161973403208, -1.2651572253260488, 0.3765189255563112),
        (1.8750008858325773, -1.2500009842381166, 0.37500009840587023),
        (1.875, -1.25, 0.375),
    ]
)
"""The same where the smallest counts as it is, by Remez's algorithm: Grishina et al., arXiv:2506.10935."""

NAMED = {"classic": (QUINTIC,), "polar_express": POLAR_EXPRESS, "cans": CANS}


class ScaleByMuonState(TypedDict):
    count: jax.Array
    """The number of updates made, int32."""
    mu: Tree
    """The momentum: the decaying sum of a matrix's gradients, the average of any other's."""
    adam_nu: Tree
    """The average of the squared gradients, real; of one element for a matrix that is made orthogonal."""


SLOTS = declare(
    # The momentum of a matrix, the average of any other's gradients. Making it orthogonal makes its small directions as large as
    # any, and the noise of 8 bits with them.
    mu=Slot(narrowest="bfloat16"),
    adam_nu=Slot(
        real=True, nonnegative=True, full=False
    ),  # the average of the squares; of one element for a matrix that is made orthogonal
)


@register(ordered=["matrices"])
def scale_by_muon(
    momentum: Hyperparam = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    *,
    coefficients: str | Triple | Sequence[Triple] = QUINTIC,
    rms_rate: Hyperparam | None = 0.2,
    adam_beta_1: Hyperparam = 0.9,
    adam_beta_2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-7,
    adam_lr_ratio: Hyperparam = 1.0,
    mask: Mask | None = None,
    moment_dtype: Any = None,
    matrices: Mapping[str, tuple[Axes, Axes] | None] | None = None,
    width_scale: bool = False,
    iteration_dtype: Any = None,
) -> Transformation:
    """Makes the momentum of each matrix orthogonal, by `ns_steps` steps of a Newton-Schulz iteration:

        mu ← momentum · mu + g
        X = mu, or with `nesterov`: g + momentum · mu
        X ← X / (‖X‖ + 1e-7);   then ns_steps times   X ← a X + (b XXᵀ + c (XXᵀ)²) X
        u = √max(n, m) · rms_rate · X, for a matrix of n · m;   with `width_scale` times √max(1, outputs / inputs)

    The singular values of `X` end up around 1. Parameters that have not two axes, or that the mask leaves out, go by Adam's
    rule (`scale_by_adam`, with ε outside the bias correction), times `adam_lr_ratio`. The learning rate is not in it:
    `scale_by_learning_rate` follows. Matrix products have JAX's default precision: on a GPU or TPU set
    `jax.default_matmul_precision` where float32's digits matter.

    Args:
      momentum: decay of the momentum of matrices, in [0, 1].
      nesterov: whether to look ahead.
      ns_steps: the number of iterations, >= 1.
      coefficients: `a, b, c`, numbers, for all iterations; or a list of such triples, one for each, of which the last goes on
        and those beyond `ns_steps` are left out; or by name, `"classic"` (the default's), `"polar_express"`, `"cans"`.
      rms_rate: the root mean square of an update, >= 0, about that of Adam's by default; None to leave out the scale
        `√max(n, m) · rms_rate`.
      adam_beta_1: decay of Adam's first moment, in [0, 1).
      adam_beta_2: decay of Adam's second moment, in [0, 1).
      epsilon: added to the denominator of Adam's step, >= 0.
      adam_lr_ratio: the factor of Adam's updates, >= 0.
      mask: which matrices are made orthogonal: a tree of bools, or a callable of the parameters that returns one, such as
        `~matching("embedding")`. None for all. It is asked when the state is made.
      moment_dtype: the dtype in which the moments are stored, bfloat16, float32 or float64, or one by name, `{"mu": "bfloat16"}`; float32
        or wider if None. Arithmetic is not done in it.
      matrices: which axes are inputs and which outputs, by a pattern that is searched in the path; the first that is found
        decides: `{"head": None, "layers/": (-2, -1), "query": (0, (1, 2)), "conv": ((0, 1, 2), 3)}`. All other axes count
        matrices, each made orthogonal by itself. What has None, or is found by no pattern, goes by Adam's rule. None for all:
        parameters of two axes are matrices, inputs first.
      width_scale: whether an update is scaled by `√max(1, outputs / inputs)`; with `rms_rate=None` that is the scale of
        Jordan et al.
      iteration_dtype: the dtype of the iteration, bfloat16, float32 or float64; that of the arithmetic if None. Complex
        matrices keep their own.

    Over a mesh in context (`jax.set_mesh`, `make_step(mesh=…)`) equal matrices are dealt out over the devices, each of which
    makes its own orthogonal.

    Returns:
      A transformation with state `count, mu, adam_nu`. `describe` shows which parameter goes by which rule.

    Warns:
      UserWarning: at `init`, parameters of more than two axes that the mask does not leave out, such as the stacked layers of
        a scanned network: they go by Adam's rule; and what of two axes may be vectors that are stacked with them.

    Raises:
      ValueError: a pattern that decides for no parameter, or that names axes which one has not; in an update, a state that was made for
        other matrices. The message names the parameter.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the scale of `rms_rate`: Liu et al.,
    "Muon is Scalable for LLM Training", 2025, arXiv:2502.16982, equation 4; the coefficients `"polar_express"`: Amsel et al.,
    2025, arXiv:2505.16932; `"cans"`: Grishina et al., 2025, arXiv:2506.10935.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_muon(ns_steps=10, coefficients=(1.5, -0.5, 0.0), rms_rate=None)
      >>> grads = {"kernel": jnp.array([[3.0, 0.0], [0.0, -1.0]]), "bias": jnp.array([10.0])}
      >>> updates, state = tx.update(grads, tx.init(grads))
      >>> updates["kernel"].round(3) + 0.0, updates["bias"].round(3)
      (Array([[ 1.,  0.],
             [ 0., -1.]], dtype=float32), Array([1.], dtype=float32))
    """
    scale = {} if rms_rate is None else {"rms_rate": rms_rate}
    hyperparams = Hyperparams(
        momentum=momentum,
        adam_beta_1=adam_beta_1,
        adam_beta_2=adam_beta_2,
        epsilon=epsilon,
        adam_lr_ratio=adam_lr_ratio,
        **scale,
    )
    nesterov = arguments.check_bool("nesterov", nesterov)
    ns_steps = arguments.check_integer("ns_steps", ns_steps, minimum=1)
    slots = stored(SLOTS, moment_dtype)
    triples = each_step(coefficients, ns_steps)
    forms_by_pattern = None if matrices is None else axes_by_pattern(matrices, may_be_none=True)
    width_scale = arguments.check_bool("width_scale", width_scale)
    iterated = arguments.check_storage("iteration_dtype", iteration_dtype)
    if mask is not None:
        check_mask("mask", mask)

    def forms(params: Tree) -> Tree:
        """For each parameter its form as matrices, False for what goes by Adam's rule."""
        return forms_of(forms_by_pattern, params, resolve_mask("mask", mask, params))

    def labels(params: Tree) -> Tree:
        return jax.tree.map(lambda form: "orthogonal" if form else "Adam", forms(params))

    ratio = None if callable(adam_lr_ratio) or arguments.is_traced(adam_lr_ratio) else float(adam_lr_ratio)

    def effects(params: Tree) -> dict[str, Tree]:
        return {} if ratio is None else {"rate": jax.tree.map(lambda form: 1.0 if form else ratio, forms(params))}

    def init(params: Tree) -> ScaleByMuonState:
        chosen = forms(params)
        if matrices is None:
            _warn_of_stacks(params, resolve_mask("mask", mask, params))
        return {
            "count": jnp.zeros((), jnp.int32),
            "mu": slots["mu"].init(params),
            "adam_nu": jax.tree.map(
                lambda nu, form: jnp.zeros((1,), nu.dtype) if form else nu, slots["adam_nu"].init(params), chosen
            ),
        }

    def form_of(path: trees.Path, g: jax.Array, nu: jax.Array) -> MatrixAxes | bool:
        return form_in_state(forms_by_pattern, path, nu.ndim != g.ndim, masked=mask is not None)

    def update(updates: Tree, state: ScaleByMuonState, params: Tree, **extra: Any) -> tuple[Tree, ScaleByMuonState]:
        count = trees.increment(state["count"])
        old = [state["mu"], state["adam_nu"]]
        values = {name: extra[name] for name in hyperparams.names}
        rate = values.pop("rms_rate", None)
        directions, *new = each_leaf(step, updates, *old, outputs=3, t=count, **values)
        found = jax.tree_util.tree_map_with_path(form_of, updates, state["adam_nu"])
        batched = forms_by_pattern is not None or bool(owner_axes())
        directions = _orthogonalized(directions, found, triples, iterated, batched=batched)
        if rate is not None or width_scale:
            directions = each_leaf(scaled, directions, found, rate=1.0 if rate is None else rate)
        mu, nu = (jax.tree.map(slot.store, *pair) for slot, *pair in zip(slots.values(), new, old, strict=True))
        return directions, {"count": count, "mu": mu, "adam_nu": nu}

    def step(
        t: jax.Array,
        momentum: jax.Array,
        adam_beta_1: jax.Array,
        adam_beta_2: jax.Array,
        epsilon: jax.Array,
        adam_lr_ratio: jax.Array,
    ) -> Callable[..., tuple[jax.Array, ...]]:
        one_minus_b1, one_minus_b2 = one_minus_power(adam_beta_1, t), one_minus_power(adam_beta_2, t)
        factor = adam_lr_ratio * jnp.sqrt(one_minus_b2) / one_minus_b1

        def look_ahead(g: jax.Array, mu: jax.Array) -> tuple[jax.Array, jax.Array]:
            mu = momentum * mu + g
            return g + momentum * mu if nesterov else mu, mu

        def adam(g: jax.Array, mu: jax.Array, nu: jax.Array) -> tuple[jax.Array, ...]:
            mu, nu = average(mu, g, adam_beta_1), average_of_squares(nu, g, adam_beta_2)
            return mu * factor / (trees.root(nu) + epsilon), mu, nu

        def leaf(g: jax.Array, mu: jax.Array, nu: jax.Array) -> tuple[jax.Array, ...]:
            is_matrix = nu.ndim != g.ndim  # one that was chosen when the state was made
            return (*look_ahead(g, mu), nu) if is_matrix else adam(g, mu, nu)

        return leaf

    def scaled(rate: jax.Array | float) -> Callable[..., jax.Array]:
        def leaf(u: jax.Array, form: MatrixAxes | bool) -> jax.Array:
            return u * (rate * scale_of(form, u.shape)) if isinstance(form, MatrixAxes) else u

        return leaf

    def scale_of(form: MatrixAxes, shape: tuple[int, ...]) -> float:
        _, inputs, outputs = form.of(shape)[1]
        width = max(1.0, outputs / max(inputs, 1)) if width_scale else 1.0
        return (width if rms_rate is None else width * max(inputs, outputs)) ** 0.5

    return (
        Transformation(
            init,
            update,
            fields=["count"],
            slots=slots,
            hyperparams=hyperparams,
            stage="second_moment",
        )
        .with_labels(labels)
        .with_effects(effects)
    )


def _warn_of_stacks(params: Tree, chosen: Tree) -> None:
    """Says which parameters of more than two axes no mask leaves out: stacked matrices, whose owner may expect otherwise.

    What has two axes and is as long along the first may be vectors that are stacked with them.
    """
    flags = jax.tree.leaves(chosen)
    shapes = {
        trees.path_string(path) or "the array": jnp.shape(p)
        for (path, p), flag in zip(trees.leaves_with_paths(params), flags, strict=True)
        if flag
    }
    lengths = {shape[0] for shape in shapes.values() if len(shape) > 2}
    stacks = [f"{path} {shape}" for path, shape in shapes.items() if len(shape) > 2]
    vectors = [f"{path} {shape}" for path, shape in shapes.items() if len(shape) == 2 and shape[0] in lengths]
    also = f" These are made orthogonal, and may be stacked vectors: {', '.join(vectors)}." if vectors else ""
    if stacks:
        warnings.warn(
            f"Muon makes matrices orthogonal, which have two axes; these have more and are trained by Adam's rule: "
            f"{', '.join(stacks)}.{also} To silence this, exclude them by name: exclude_layers of muon, the mask of scale_by_muon. To "
            f"make them orthogonal, say which axes are inputs and outputs: matrices of muon_adamw, or of scale_by_muon",
            UserWarning,
            stacklevel=2,
        )


def each_step(coefficients: Any, steps: int) -> tuple[Triple, ...]:
    """The coefficients of each iteration, of which the last go on."""
    if isinstance(coefficients, str):
        coefficients = NAMED[arguments.check_choice("coefficients", coefficients, tuple(NAMED))]
    wrong = TypeError(f"coefficients must be three numbers, a list of such, or a name; got {coefficients!r}")
    if not isinstance(coefficients, Sequence) or not coefficients:
        raise wrong
    listed = coefficients if all(isinstance(entry, list | tuple) for entry in coefficients) else [coefficients]
    for triple in listed:
        if not isinstance(triple, list | tuple) or len(triple) != 3:
            raise wrong
        for name, value in zip(("muon_a", "muon_b", "muon_c"), triple, strict=True):
            arguments.check_number(name, value, arguments.RANGES[name])
    return tuple(listed[min(i, len(listed) - 1)] for i in range(steps))


def _orthogonalized(directions: Tree, forms: Tree, triples: Sequence[Triple], dtype: Any, *, batched: bool) -> Tree:
    """The tree with what has a form made orthogonal; `batched` equal matrices together, whatever leaves they come from."""
    leaves, treedef = jax.tree.flatten(directions)
    with jax.numpy_dtype_promotion("standard"):
        groups: dict[Any, list[int]] = {}
        for i, (leaf, form) in enumerate(zip(leaves, jax.tree.leaves(forms), strict=True)):
            if isinstance(form, MatrixAxes):
                key = (form.of(leaf.shape)[1][1:], leaf.dtype) if batched else i
                groups.setdefault(key, []).append(i)
        found = jax.tree.leaves(forms)
        for members in groups.values():
            if not batched:
                (i,) = members
                leaves[i] = orthogonalize(leaves[i], triples, len(triples), dtype=dtype)
                continue
            made = _together([leaves[i] for i in members], [found[i] for i in members], triples, dtype)
            for i, u in zip(members, made, strict=True):
                leaves[i] = u
    return jax.tree.unflatten(treedef, leaves)


def _together(
    arrays: list[jax.Array], forms: list[MatrixAxes], triples: Sequence[Triple], dtype: Any
) -> list[jax.Array]:
    """Arrays whose matrices have one shape, made orthogonal in one stack."""
    each = jax.vmap(lambda x: _iterated(x, triples, dtype))

    def stacked(x: jax.Array, form: MatrixAxes) -> jax.Array:
        order, shape = form.of(x.shape)
        return x.transpose(order).reshape(shape)

    def back(u: jax.Array, x: jax.Array, form: MatrixAxes) -> jax.Array:
        order, _ = form.of(x.shape)
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return u.reshape([x.shape[axis] for axis in order]).transpose(inverse)

    def compute(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        made = by_owners(each, [stacked(x, form) for x, form in zip(arrays, forms, strict=True)])
        return tuple(back(u, x, form) for u, x, form in zip(made, arrays, forms, strict=True))

    return list(along_automatic_axes(compute, tuple(arrays), *arrays))


def orthogonalize(
    x: jax.Array,
    coefficients: str | Triple | Sequence[Triple] = QUINTIC,
    steps: int = 5,
    *,
    least_norm: float | None = None,
    dtype: Any = None,
) -> jax.Array:
    """A matrix with all singular values brought near 1, by the Newton-Schulz iteration of :func:`scale_by_muon`.

    With `least_norm` the matrix is divided by its norm, or by that if it is less, in the place of `‖X‖ + 1e-7`. The
    iteration is done in `dtype`, that of `x` if None or if `x` is complex.
    """
    triples = each_step(coefficients, steps)
    return along_automatic_axes(lambda x: _iterated(x, triples, dtype, least_norm), x, x)


def _iterated(x: jax.Array, triples: Sequence[Triple], dtype: Any, least_norm: float | None = None) -> jax.Array:
    """`orthogonalize`, without a thought of meshes."""
    wide, tall = x.dtype, x.shape[0] > x.shape[1]
    x = x.conj().T if tall else x
    x, power = near_one(x)
    epsilon = power.times(jnp.full_like(power.significand, 1e-7 if least_norm is None else least_norm))
    dtype = wide if dtype is None or trees.is_complex(x) else dtype
    if least_norm is None:
        x = (x / (trees.root(trees.sum_of_squares(x)) + epsilon)).astype(dtype)
    else:  # PyTorch divides what is narrow already
        x = x.astype(dtype).astype(wide)
        norm = _at_least(trees.root(trees.sum_of_squares(x)), epsilon)
        norm = norm if dtype == wide else norm.astype(dtype).astype(wide)
        x = (x / norm).astype(dtype)
    for a, b, c in triples:
        x = _iteration(x, a, b, c)
    x = x.astype(wide)
    return x.conj().T if tall else x


def _iteration(x: jax.Array, a: float, b: float, c: float) -> jax.Array:
    """`a x + (b S + c S²) x` of `S = x xᵀ`. In a narrow dtype each sum is rounded once, whose terms are float32."""
    square = x @ x.conj().T
    if jnp.finfo(x.dtype).bits >= 32:
        return a * x + (b * square + c * square @ square) @ x
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    polynomial = b * square.astype(jnp.float32) + c * product(square, square)
    return (a * x.astype(jnp.float32) + product(polynomial.astype(x.dtype), x)).astype(x.dtype)


def _at_least(norm: jax.Array, least: jax.Array) -> jax.Array:
    """The larger of both; 1 where both are 0, so that nothing is divided by 0."""
    larger = jnp.maximum(norm, least)
    return jnp.where(larger == 0, 1.0, larger)
