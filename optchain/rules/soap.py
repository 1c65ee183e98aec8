"""SOAP's rule: Adam in the eigenbases of Shampoo's preconditioners."""

import functools
import math
from collections.abc import Callable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

from optchain.core import arguments, trees
from optchain.core.branch import run_if
from optchain.core.each_leaf import each_leaf
from optchain.core.hyperparams import Hyperparam, Hyperparams
from optchain.core.masks import Mask, check_mask, resolve_mask
from optchain.core.owners import along_automatic_axes, by_owners, owner_axes
from optchain.core.registry import register
from optchain.core.slot import Slot, declare, stored
from optchain.core.transformation import Transformation
from optchain.core.trees import Tree
from optchain.rules.moments import average, average_of_squares, one_minus_power

Axes = dict[str, jax.Array]
"""`axis_0`, `axis_1`, …: a square matrix for each axis of a leaf that has one, one element for each that has none."""


class ScaleBySoapState(TypedDict):
    count: jax.Array
    """The number of calls, int32; the first of them makes no step."""
    mu: Tree
    """The average of the gradients, in the eigenbases."""
    nu: Tree
    """The average of the squared gradients in the eigenbases, real."""
    gram: Tree
    """For each axis of each leaf the average of `G Gᵀ`."""
    basis: Tree
    """Its eigenvectors as columns, by falling eigenvalue."""


MOMENTS = declare(
    mu=Slot(),
    nu=Slot(real=True, nonnegative=True),
)
MATRICES = declare(
    # Of a matrix that is rounded the eigenvectors turn, and one whose columns are not orthogonal is no rotation.
    gram=Slot(full=False, narrowest="float32"),
    basis=Slot(full=False, narrowest="float32"),
)

_BATCHED = 1024
"""Up to this size matrices are decomposed in one batch. Larger ones fill a device by themselves, and a batch is a copy of them."""


@register
def scale_by_soap(
    beta_1: Hyperparam = 0.95,
    beta_2: Hyperparam = 0.95,
    epsilon: Hyperparam = 1e-8,
    *,
    shampoo_beta: Hyperparam | None = None,
    precondition_frequency: int = 10,
    max_precondition_dim: int = 10000,
    one_sided: bool = False,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    mask: Mask | None = None,
    moment_dtype: Any = None,
) -> Transformation:
    """Adam in the eigenbases of Shampoo's preconditioners; of a matrix `G`, with `t` counting updates from 1:

        G' = Q_Lᵀ G Q_R
        mu ← β₁ · mu + (1 − β₁) · G'
        nu ← β₂ · nu + (1 − β₂) · G'²
        u = Q_L (√(1 − β₂ᵗ) / (1 − β₁ᵗ) · mu / (√nu + ε)) Q_Rᵀ
        L ← β_s · L + (1 − β_s) · G Gᵀ,   R ← β_s · R + (1 − β_s) · Gᵀ G
        every precondition_frequency updates:   Q_L ← QR(L Q_L),  Q_R ← QR(R Q_R),   columns by falling eigenvalue

    Where the bases turn, `mu` turns with them, and `nu` is put into the order of their columns. The first call makes no step: it
    begins `L` and `R`, and their eigenvectors are the first bases. A tensor has a basis for each axis; an axis without one is not
    turned, and what has none at all goes by Adam's rule. Between two refreshes nothing of them is computed. Bases of one size
    are refreshed in one batch, whatever parameters they belong to. Over a mesh in context (`jax.set_mesh`, `make_step(mesh=…)`) they
    are dealt out over the devices.

    Directions in which there was no gradient keep their column: to the product `L Q` is added the rounding error of its largest
    eigenvalue times `Q`. What a rotation leaves of a gradient there is its rounding error, some 1e-7 of the gradient in float32: an ε
    below it makes a step of full size of it, in the authors' code too. A basis whose `L` is not finite stays as it is, and
    after a gradient above 1.8e19 in float32 it is so for good: `skip_nonfinite` keeps such a one out. Derivatives take the bases for
    constants. Rotations have JAX's default precision, a refresh the highest.

    A matrix of n · m keeps 2 n m + 2 n² + 2 m² numbers: for a square one six times its size, where Adam keeps twice. With
    `one_sided` it is 2 n m + 2 min(n, m)².

    Args:
      beta_1: decay of the first moment, in [0, 1).
      beta_2: decay of the second moment, in [0, 1).
      epsilon: added to the denominator, >= 0.
      shampoo_beta: decay of `L` and `R`, in [0, 1); `beta_2` if None.
      precondition_frequency: the number of updates from one refresh of the bases to the next, >= 1.
      max_precondition_dim: the size above which an axis has no basis, >= 1.
      one_sided: whether only the smallest axis of a leaf has a basis, of equal ones the first.
      merge_dims: whether neighbouring axes of a leaf of more than two are taken as one, while their product is at most
        `max_precondition_dim`: a kernel of (3, 3, 64, 128) as a matrix of (576, 128).
      precondition_1d: whether vectors have a basis too.
      mask: which parameters have bases: a tree of bools, or a callable of the parameters that returns one, such as
        `~matching("embedding")`. None for all. It is asked when the state is made.
      moment_dtype: the dtype in which the moments are stored, bfloat16, float32 or float64, or one by name, `{"mu": "bfloat16"}`; float32
        or wider if None. Arithmetic is not done in it.

    Returns:
      A transformation with state `count, mu, nu, gram, basis`. `describe` shows which parameter has which bases.

    Raises:
      ValueError: in an update, a state that was made for other bases; the message names the parameter.

    Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024, arXiv:2409.11321, Algorithm 3 and 4; the
    first call and the bias corrections are those of its authors' code, and of `pytorch_optimizer.SOAP`.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> tx = optchain.scale_by_soap(epsilon=1e-4)
      >>> grads = jnp.array([[3.0, 1.0], [1.0, 3.0]])
      >>> _, state = tx.update(grads, tx.init(grads))
      >>> updates, state = tx.update(grads, state)
      >>> jnp.abs(state["basis"]["axis_0"]).round(3)
      Array([[0.707, 0.707],
             [0.707, 0.707]], dtype=float32)
      >>> updates.round(2) + 0.0  # both eigenvalues of the gradient become 1
      Array([[1., 0.],
             [0., 1.]], dtype=float32)
    """
    own = {} if shampoo_beta is None else {"shampoo_beta": shampoo_beta}
    hyperparams = Hyperparams(beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, **own)
    frequency = arguments.check_integer("precondition_frequency", precondition_frequency, minimum=1)
    slots = {**stored(MOMENTS, moment_dtype), **MATRICES}
    shapes = _Shapes(
        largest=arguments.check_integer("max_precondition_dim", max_precondition_dim, minimum=1),
        one_sided=arguments.check_bool("one_sided", one_sided),
        merge=arguments.check_bool("merge_dims", merge_dims),
        vectors=arguments.check_bool("precondition_1d", precondition_1d),
    )
    if mask is not None:
        check_mask("mask", mask)

    def labels(params: Tree) -> Tree:
        def label(p: Any, flag: Any) -> str:
            sizes = [size for size, has_basis in shapes.axes(jnp.shape(p), flag) if has_basis]
            return f"bases of {' and '.join(map(str, sizes))}" if sizes else "Adam"

        return jax.tree.map(label, params, resolve_mask("mask", mask, params))

    def init(params: Tree) -> ScaleBySoapState:
        chosen = resolve_mask("mask", mask, params)

        def matrices(p: Any, flag: Any, diagonal: float) -> Axes:
            dtype, sharding = trees.wide_dtype(trees.dtype_of(p)), _of_a_sum(p)
            # An axis without a matrix has one element: checkpoints need at least one.
            return {
                f"axis_{i}": lax.full((size, size), 0, dtype, sharding=sharding) + diagonal * jnp.eye(size, dtype=dtype)
                if has_basis
                else lax.full((1,), 0, dtype, sharding=sharding)
                for i, (size, has_basis) in enumerate(shapes.axes(jnp.shape(p), flag))
            }

        return {
            "count": jnp.zeros((), jnp.int32),
            "mu": slots["mu"].init(params),
            "nu": slots["nu"].init(params),
            "gram": jax.tree.map(lambda p, flag: matrices(p, flag, 0), params, chosen),
            "basis": jax.tree.map(lambda p, flag: matrices(p, flag, 1), params, chosen),
        }

    def update(updates: Tree, state: ScaleBySoapState, params: Tree, **extra: Any) -> tuple[Tree, ScaleBySoapState]:
        count = state["count"]
        jax.tree_util.tree_map_with_path(check_bases, updates, state["gram"])
        values = {name: extra[name] for name in hyperparams.names}
        old = [state[name] for name in slots]
        directions, *new = each_leaf(step, updates, *old, outputs=4, t=count, **values)
        moments = zip(new, old, ("mu", "nu"), strict=False)
        mu, nu = (jax.tree.map(slots[name].store, fresh, before) for fresh, before, name in moments)
        gram = trees.cast_tree(new[2], state["gram"])

        def refresh(*old: Tree) -> tuple[Tree, Tree, Tree]:
            return along_automatic_axes(functools.partial(_refreshed, shapes), old, count == 0, gram, *old)

        with jax.numpy_dtype_promotion("standard"):  # a real number becomes complex, no more
            basis, mu, nu = run_if(count % frequency == 0, refresh, state["basis"], mu, nu)
        return directions, {"count": trees.increment(count), "mu": mu, "nu": nu, "gram": gram, "basis": basis}

    def check_bases(path: trees.Path, g: jax.Array, gram: Axes) -> None:
        there = [len(m) for _, m in _in_order(gram) if m.ndim == 2]
        here = [size for size, has_basis in shapes.axes(g.shape, True) if has_basis]
        # A mask may leave a parameter out, and is not asked again.
        if (there or mask is None) and (there != here or len(gram) != len(shapes.merged(g.shape))):
            raise ValueError(
                f"the state was made for other bases: {trees.path_string(path) or 'the array'} has bases of {there} there and of {here} "
                "here; mask, one_sided, merge_dims, precondition_1d and max_precondition_dim stay what they were when it was made"
            )

    def step(
        t: jax.Array, beta_1: jax.Array, beta_2: jax.Array, epsilon: jax.Array, shampoo_beta: Any = None
    ) -> Callable[..., tuple[Any, ...]]:
        beta_s = beta_2 if shampoo_beta is None else shampoo_beta
        begun = t > 0
        t = jnp.maximum(t, 1)
        factor = jnp.sqrt(one_minus_power(beta_2, t)) / one_minus_power(beta_1, t)
        # At the first call, which only begins `gram`, the moments keep all that they have: zeros.
        beta_1, beta_2 = jnp.where(begun, beta_1, 1), jnp.where(begun, beta_2, 1)

        def leaf(g: jax.Array, mu: jax.Array, nu: jax.Array, gram: Axes, basis: Axes) -> tuple[Any, ...]:
            return along_automatic_axes(
                act, (g, mu, nu, gram), g, mu, nu, gram, basis, begun, factor, beta_1, beta_2, epsilon, beta_s
            )

        def act(
            g: jax.Array, mu: jax.Array, nu: jax.Array, gram: Axes, basis: Axes, begun: jax.Array, factor: jax.Array,
            beta_1: jax.Array, beta_2: jax.Array, epsilon: jax.Array, beta_s: jax.Array,
        ) -> tuple[Any, ...]:  # fmt: skip
            shape = shapes.merged(g.shape)
            x = g.reshape(shape)
            turned = _rotated(x, basis).reshape(g.shape)
            mu, nu = average(mu, turned, beta_1), average_of_squares(nu, turned, beta_2)
            u = mu * factor / jnp.where(begun, trees.root(nu) + epsilon, 1)
            u = _rotated(u.reshape(shape), basis, back=True).reshape(g.shape)
            new = {
                name: average(trees.astype(m, g.dtype), _gram(x, axis), beta_s) if m.ndim == 2 else m
                for axis, (name, m) in enumerate(_in_order(gram))
            }
            # In the container of the old ones, which is a dict or what a library made of it.
            return u, mu, nu, jax.tree.structure(gram).unflatten([new[name] for name in sorted(new)])

        return leaf

    return Transformation(
        init,
        update,
        fields=["count"],
        slots=slots,
        hyperparams=hyperparams,
        stage="second_moment",
    ).with_labels(labels)


def _of_a_sum(p: Any) -> Any:
    """On a mesh of explicit axes where a matrix lies that is whole on every device; else None."""
    sharding = jax.eval_shape(jnp.sum, p).sharding
    if sharding is not None and not arguments.is_traced(
        p
    ):  # its mesh is abstract; outside of `jit` the devices must be known
        sharding = NamedSharding(p.sharding.mesh, sharding.spec)
    return sharding


class _Shapes:
    """The shape in which a leaf is looked at, and which of its axes have a basis."""

    def __init__(self, *, largest: int, one_sided: bool, merge: bool, vectors: bool):
        self._largest, self._one_sided, self._merge, self._vectors = largest, one_sided, merge, vectors

    def merged(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not self._merge or len(shape) <= 2:
            return shape
        merged = [shape[0]]
        for size in shape[1:]:
            if merged[-1] * size <= self._largest:
                merged[-1] *= size
            else:
                merged.append(size)
        return tuple(merged)

    def axes(self, shape: tuple[int, ...], chosen: Any) -> list[tuple[int, bool]]:
        """The size of each axis, and whether it has a basis."""
        sizes = self.merged(shape)
        allowed = bool(chosen) and math.prod(shape) > 0 and (len(shape) >= 2 or self._vectors)
        able = [i for i, size in enumerate(sizes) if allowed and 1 < size <= self._largest]
        if self._one_sided and able:
            able = [min(able, key=sizes.__getitem__)]
        return [(size, i in able) for i, size in enumerate(sizes)]


def _in_order(axes: Axes) -> list[tuple[str, jax.Array]]:
    """The matrices of a leaf by axis: `jax.tree` sorts keys as strings, and `axis_10` before `axis_2`."""
    return [(f"axis_{i}", axes[f"axis_{i}"]) for i in range(len(axes))]


def _rotated(x: jax.Array, basis: Axes, *, back: bool = False, precision: Any = None) -> jax.Array:
    """A leaf in the coordinates of its bases, or from there `back`."""
    for axis, (_, q) in enumerate(_in_order(basis)):
        if q.ndim != 2:
            continue
        q, along = trees.astype(q if back else q.conj(), x.dtype), int(back)
        if axis == 0:  # in this order the product of matrices is not transposed
            x = jnp.tensordot(q, x, (along, 0), precision=precision)
        else:
            x = jnp.moveaxis(jnp.tensordot(x, q, (axis, along), precision=precision), -1, axis)
    return x


def _gram(x: jax.Array, axis: int) -> jax.Array:
    """The products of all slices across an axis with each other."""
    others = [i for i in range(x.ndim) if i != axis]
    return jnp.tensordot(x, x.conj(), (others, others))


def _refreshed(
    shapes: _Shapes, first: jax.Array, gram: Tree, basis: Tree, mu: Tree, nu: Tree
) -> tuple[Tree, Tree, Tree]:
    """New bases, and the moments in them."""
    grams, bases = jax.tree.leaves(gram), jax.tree.leaves(basis)
    groups: dict[Any, list[int]] = {}
    for i, q in enumerate(bases):
        if q.ndim == 2:
            by_itself = len(q) > _BATCHED and not owner_axes()
            groups.setdefault((q.dtype, len(q), i if by_itself else None), []).append(i)
    turned, orders = [*bases], [jnp.arange(len(q)) for q in bases]
    for group in groups.values():
        each = by_owners(functools.partial(_next_basis, first), [(grams[i][None], bases[i][None]) for i in group])
        for i, (new, order) in zip(group, each, strict=True):
            turned[i], orders[i] = new[0], order[0]
    structure = jax.tree.structure(basis)
    new, order = structure.unflatten(turned), structure.unflatten(orders)

    def moments(mu: jax.Array, nu: jax.Array, old: Axes, new: Axes, order: Axes) -> tuple[jax.Array, jax.Array]:
        shape = shapes.merged(mu.shape)
        exact = lax.Precision.HIGHEST
        m = trees.wide(mu).reshape(shape)
        m = _rotated(_rotated(m, old, back=True, precision=exact), new, precision=exact).reshape(mu.shape)
        places = [
            order[name] if q.ndim == 2 else jnp.arange(size)
            for (name, q), size in zip(_in_order(new), shape, strict=True)
        ]
        v = nu.reshape(shape)[jnp.ix_(*places)] if places else nu
        return trees.astype(m, mu.dtype), v.reshape(nu.shape)

    return new, *trees.map_unzip(moments, 2, mu, nu, basis, new, order)


def _next_basis(first: jax.Array, matrices: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """For stacks of `gram` and of bases the next bases, and the places that their columns had in the old ones."""
    gram, basis = lax.stop_gradient(matrices)
    peak = jnp.max(jnp.abs(gram), axis=(-2, -1), keepdims=True)
    # At most 1: neither the product nor the squares of its columns leave the range of floats.
    gram = gram / jnp.where(peak > 0, peak, 1)
    unchanged = jnp.broadcast_to(jnp.arange(gram.shape[-1]), gram.shape[:-1])

    def eigenvectors() -> tuple[jax.Array, jax.Array]:
        return _eigenvectors(gram), unchanged

    def power_iteration() -> tuple[jax.Array, jax.Array]:
        product = jnp.matmul(gram, basis, precision=lax.Precision.HIGHEST)
        eigenvalues = jnp.sum((basis.conj() * product).real, axis=-2)
        order = jnp.argsort(-eigenvalues, axis=-1)
        # A column without a gradient would be rounding errors, and its next direction one at random.
        shift = 4 * jnp.finfo(gram.dtype).eps * jnp.max(eigenvalues, axis=-1)[..., None, None]
        shifted = product + jnp.where(peak > 0, shift, 1) * basis
        return jnp.linalg.qr(jnp.take_along_axis(shifted, order[..., None, :], axis=-1))[0], order

    new, order = lax.cond(first, eigenvectors, power_iteration)
    usable = jnp.all(jnp.isfinite(new), axis=(-2, -1))
    return jnp.where(usable[..., None, None], new, basis), jnp.where(usable[..., None], order, unchanged)


def _eigenvectors(gram: jax.Array) -> jax.Array:
    """The eigenvectors by falling eigenvalue, the same ones whatever rounding errors there are.

    One gradient leaves most directions of the long axis of a matrix open: any basis of that space is one of eigenvectors, and
    rounding errors would choose, others on eight devices than on one. There the axes of an ellipsoid that is fixed choose.
    """
    values, vectors = jnp.linalg.eigh(gram)
    values, vectors = values[..., ::-1], vectors[..., ::-1]
    size = gram.shape[-1]
    is_open = values <= 8 * size * jnp.finfo(values.dtype).eps * jnp.max(values, axis=-1, keepdims=True)
    numbers = jnp.arange(size, 0, -1, dtype=values.dtype)[None]
    exact = lax.Precision.HIGHEST
    ellipsoid = jnp.matmul(jnp.swapaxes(vectors, -2, -1).conj() * numbers[:, None], vectors, precision=exact)
    within = jnp.where(is_open[..., :, None] & is_open[..., None, :], ellipsoid, 0)
    # What is not open keeps its place: before all that is.
    ahead = jnp.where(is_open, 0, 2 * size + numbers)[..., None] * jnp.eye(size, dtype=gram.dtype)[None]
    return jnp.matmul(vectors, jnp.linalg.eigh(within + ahead)[1][..., ::-1], precision=exact)
