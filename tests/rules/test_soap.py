"""SOAP: the paper's algorithm in NumPy's float64, and what becomes of gradients that leave directions open."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc
from optchain.verification.keras_peer import precision

STEPS = 100
QUICK = oc.soap(0.1, precondition_frequency=2)
"""What several tests run, so that it is compiled once."""


def random(shape, seed=0, steps=STEPS):
    return np.random.default_rng(seed).normal(size=(steps, *shape))


@functools.partial(jax.jit, static_argnums=0)
def run(tx, params, grads):
    """The parameters and the rule's state after each step."""

    def one(carry, g):
        params, state = tx.apply(*carry, grads=g)
        return (params, state), (params, state.get("scale_by_soap", state))

    return jax.lax.scan(one, (params, tx.init(params)), grads)[1]


class Paper:
    """Algorithms 3 and 4 for one array: the momentum is kept as it is, and turned at each step."""

    def __init__(self, p, bases, *, rate=0.01, beta_1=0.95, beta_2=0.95, beta_s=0.95, eps=1e-8, every=10):
        self.p, self.axes, self.rate, self.every = p, sorted(bases), rate, every
        self.beta_1, self.beta_2, self.beta_s, self.eps = beta_1, beta_2, beta_s, eps
        self.m, self.v, self.t = np.zeros_like(p), np.zeros_like(p), 0
        self.gram = {k: np.zeros((p.shape[k],) * 2) for k in self.axes}
        self.q = bases

    def turn(self, x, back=False):
        for k in self.axes:
            q = self.q[k].T if back else self.q[k]
            x = np.swapaxes(np.swapaxes(x, k, -1) @ q, k, -1)
        return x

    def accumulate(self, g):
        for k in self.axes:
            unfolded = np.moveaxis(g, k, 0).reshape(g.shape[k], -1)
            self.gram[k] = self.beta_s * self.gram[k] + (1 - self.beta_s) * unfolded @ unfolded.T

    def step(self, g):
        if self.t == 0:  # it only measures
            self.accumulate(g)
            for k in self.axes:  # of these are the bases that were given, whatever their order within a null space
                rotated = self.q[k].T @ self.gram[k] @ self.q[k]
                assert np.allclose(rotated, np.diag(np.linalg.eigvalsh(self.gram[k])[::-1]), atol=1e-12)
            self.t = 1
            return self.p
        t, self.t = self.t, self.t + 1
        turned = self.turn(g)
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * g
        self.v = self.beta_2 * self.v + (1 - self.beta_2) * turned**2
        direction = self.turn(self.turn(self.m) / (np.sqrt(self.v) + self.eps), back=True)
        self.p = self.p - self.rate * np.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t) * direction
        self.accumulate(g)
        if t % self.every == 0:
            for k in self.axes:
                s = self.gram[k] @ self.q[k]
                order = np.argsort(-np.sum(self.q[k] * s, axis=0))
                self.v = np.take(self.v, order, axis=k)
                self.q[k] = np.linalg.qr(s[:, order])[0]
        return self.p


def against_the_paper(tx, shapes, merged=None, **options):
    """How far the parameters are apart in a hundred steps. Those of a tensor are compared in the shape to which it is `merged`."""
    with precision("float64"):
        params = {name: jnp.asarray(random(shape, 1, 1)[0]) for name, shape in shapes.items()}
        grads = {name: jnp.asarray(random(shape, seed)) for seed, (name, shape) in enumerate(shapes.items())}
        history, states = run(tx, params, grads)
        worst = 0.0
        for name, shape in shapes.items():
            bases = {int(k[-1]): np.asarray(q[0]) for k, q in states["basis"][name].items() if q.ndim == 3}
            seen = merged or shape
            assert len(bases) == len(seen) * (len(seen) > 1)
            paper = Paper(np.asarray(params[name]).reshape(seen), bases, **options)
            theirs = np.stack([paper.step(g.reshape(seen)) for g in np.asarray(grads[name])])
            assert np.max(np.abs(theirs[-1] - theirs[0])) > 0.005
            worst = max(worst, np.max(np.abs(np.asarray(history[name]).reshape(theirs.shape) - theirs)))
    return worst


def test_a_hundred_steps_are_those_of_the_paper():
    """Two matrices of one size are refreshed in one batch, each as by itself."""
    assert against_the_paper(oc.soap(0.01, weight_decay=None), {"a": (6, 6), "b": (6, 6)}) <= 1e-10


@pytest.mark.thorough
def test_those_of_other_shapes_are_too():
    shapes = {"cube": (3, 4, 3), "tall": (4, 3), "vector": (4,), "scalar": ()}
    assert against_the_paper(oc.soap(0.01, weight_decay=None), shapes) <= 1e-10


@pytest.mark.thorough
def test_merged_axes_are_trained_as_the_reshaped_parameter():
    tx = oc.soap(0.01, weight_decay=None, merge_dims=True, max_precondition_dim=12)
    assert against_the_paper(tx, {"cube": (2, 6, 4)}, merged=(12, 4)) <= 1e-10


@pytest.mark.thorough
def test_other_decays_and_another_frequency_are_those_of_the_paper():
    options = {"beta_1": 0.8, "beta_2": 0.99}
    tx = oc.soap(0.01, **options, epsilon=1e-3, shampoo_beta=0.7, precondition_frequency=3, weight_decay=None)
    assert against_the_paper(tx, {"a": (5, 5)}, **options, eps=1e-3, beta_s=0.7, every=3) <= 1e-10


# Which axes -----------------------------------------------------------------------------------------------------------

KERNELS = {"conv": (3, 3, 4, 8), "wide": (4, 100), "vector": (5,), "scalar": (), "line": (1, 6), "empty": (0, 3)}


def labels(**options):
    tx = oc.scale_by_soap(**options)
    params = {name: jnp.zeros(shape) for name, shape in KERNELS.items()}
    shown = tx.labels(params)
    state = jax.eval_shape(tx.init, params)
    matrices = {name: [len(q) for q in axes.values() if q.ndim == 2] for name, axes in state["basis"].items()}
    assert shown == {n: f"bases of {' and '.join(map(str, m))}" if m else "Adam" for n, m in matrices.items()}
    return {name: sizes for name, sizes in matrices.items() if sizes}


def test_which_axes_have_bases_stands_in_describe_and_in_the_state():
    assert labels() == {"conv": [3, 3, 4, 8], "wide": [4, 100], "line": [6]}
    assert labels(max_precondition_dim=36) == {"conv": [3, 3, 4, 8], "wide": [4], "line": [6]}
    assert labels(max_precondition_dim=36, merge_dims=True) == {"conv": [36, 8], "wide": [4], "line": [6]}
    assert labels(one_sided=True) == {"conv": [3], "wide": [4], "line": [6]}
    assert labels(precondition_1d=True)["vector"] == [5]
    assert labels(mask=~oc.matching("conv")) == {"wide": [4, 100], "line": [6]}
    rows = oc.describe(oc.soap(0.1), {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}).per_parameter
    assert {row.path: row.group for row in rows} == {"bias": "Adam", "kernel": "bases of 4 and 3"}


# What the refresh survives --------------------------------------------------------------------------------------------


def outer(i, n=6, m=4):
    return np.outer(np.arange(n) == 1, np.random.default_rng(i).normal(size=m))


GRADS = {
    "none at all": lambda i: np.zeros((6, 4)),
    "none at first": lambda i: random((6, 4), i, 1)[0] * (i > 12),
    "none from then on": lambda i: random((6, 4), i, 1)[0] * (i < 3),
    "of rank one": outer,
    "all equal": lambda i: np.ones((6, 4)),
    "tiny": lambda i: random((6, 4), i, 1)[0] * 1e-30,
    "of squares beyond float32": lambda i: random((6, 4), i, 1)[0] * 1e25,
    "once of squares beyond float32": lambda i: random((6, 4), i, 1)[0] * (1e25 if i == 5 else 1),
}


@pytest.mark.parametrize("grads", GRADS.values(), ids=GRADS)
def test_bases_stay_orthogonal_and_steps_finite(grads):
    history, states = run(QUICK, jnp.zeros((6, 4)), jnp.asarray(np.stack([grads(i) for i in range(24)]), jnp.float32))
    assert np.all(np.isfinite(history))
    for q in map(np.asarray, states["basis"].values()):
        assert np.max(np.abs(np.swapaxes(q, 1, 2) @ q - np.eye(q.shape[-1]))) <= 1e-5


def test_a_direction_without_a_gradient_keeps_its_column():
    """Rounding errors would choose another at each refresh, of which `nu` knows nothing."""
    grads = random((6, 4), steps=24) * (np.arange(6) < 4)[:, None]
    _, states = run(QUICK, jnp.zeros((6, 4)), jnp.asarray(grads, jnp.float32))
    bases = np.abs(states["basis"]["axis_0"])[:, :, 4:]
    assert np.max(np.abs(bases[-1] - bases[0])) <= 1e-5


def test_rounding_errors_do_not_choose_the_bases():
    """A gradient of 6 × 4 leaves two directions open."""
    grads = jnp.asarray(random((6, 4), steps=24), jnp.float32)
    history, _ = run(QUICK, jnp.zeros((6, 4)), grads)
    nearly, _ = run(QUICK, jnp.zeros((6, 4)), grads * (1 + 2e-7 * jnp.asarray(random((6, 4), 1, 1), jnp.float32)))
    assert np.max(np.abs(history - nearly)) <= 1e-4


@pytest.mark.for_release
def test_derivatives_through_steps_take_the_bases_for_constants():
    tx = oc.scale_by_soap(epsilon=1e-3, precondition_frequency=1)
    grads = jnp.asarray(random((3, 3), 0, 4), jnp.float32)
    state = jax.tree.map(lambda x: x[-1], run(tx, grads[0], grads[:3])[1])

    @jax.jit
    @jax.value_and_grad
    def along(g):
        return jnp.sum(tx.update(g, state)[0] * grads[2])

    at, size = grads[3], 1e-2
    for place in ((0, 0), (1, 2)):
        there = [along(at.at[place].add(d))[0] for d in (size, -size)]
        assert abs((there[0] - there[1]) / (2 * size) - along(at)[1][place]) <= 1e-3


# What it costs --------------------------------------------------------------------------------------------------------


def test_the_state_has_the_bytes_that_the_docstring_says():
    def bytes_of(n, m, **options):
        state = jax.eval_shape(oc.scale_by_soap(**options).init, jnp.zeros((n, m)))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) - 4

    n, m = 64, 32
    assert bytes_of(n, m) == 4 * (2 * n * m + 2 * n * n + 2 * m * m)
    assert bytes_of(n, n) == 6 * 4 * n * n
    assert bytes_of(n, m, one_sided=True) == 4 * (
        2 * n * m + 2 * m * m + 2
    )  # and an element for each axis without a basis


OTHER_BASES = [
    {"one_sided": True}, {"max_precondition_dim": 4}, {"precondition_1d": True}, {"merge_dims": True, "max_precondition_dim": 12},
]  # fmt: skip


@pytest.mark.parametrize("options", OTHER_BASES, ids=str)
def test_a_state_of_other_bases_is_refused_by_name(options):
    params = {"conv": jnp.ones((2, 3, 5)), "bias": jnp.ones(5)}
    plain, other = oc.scale_by_soap(), oc.scale_by_soap(**options)
    for made, used in [(plain, other), (other, plain)]:
        with pytest.raises(ValueError, match=r"the state was made for other bases: (conv|bias) has bases of"):
            jax.eval_shape(used.update, params, made.init(params))


def test_what_a_mask_left_out_stays_out_and_a_state_without_it_is_refused():
    params = {"w": jnp.ones((3, 2))}
    masked = oc.scale_by_soap(mask={"w": False})
    jax.eval_shape(masked.update, params, masked.init(params))
    with pytest.raises(ValueError, match=r"the state was made for other bases: w has bases of .* there"):
        jax.eval_shape(oc.scale_by_soap().update, params, masked.init(params))


def test_between_refreshes_no_matrix_is_decomposed():
    """In the program there is one branch, and all decompositions are in it."""
    tx = oc.soap(0.1)
    params = {"a": jnp.zeros((5, 5)), "b": jnp.zeros((5, 5)), "c": jnp.zeros((5, 3))}
    closed = jax.make_jaxpr(lambda params, state: tx.apply(params, state, grads=params))(
        params, jax.eval_shape(tx.init, params)
    )
    outside = {str(eqn.primitive) for eqn in closed.eqns}
    assert not outside & {"qr", "geqrf", "householder_product", "eigh", "sort"}
    assert [str(eqn.primitive) for eqn in closed.eqns].count("by_platform") == 1


def test_compact_stores_the_moments_in_bytes_and_the_bases_wide():
    state = jax.eval_shape(oc.compact(QUICK).init, {"kernel": jnp.zeros((64, 64))})["inner"]["scale_by_soap"]
    assert {name: str(state[name]["codes"]["kernel"].dtype) for name in ("mu", "nu")} == {"mu": "int8", "nu": "uint8"}
    assert {leaf.dtype for leaf in jax.tree.leaves((state["gram"], state["basis"]))} == {jnp.dtype("float32")}
