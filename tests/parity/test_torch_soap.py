"""SOAP against `pytorch_optimizer.SOAP`, live, over 100 steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc

torch = pytest.importorskip("torch", reason="PyTorch parity tests were left out: pip install torch==2.13.0")
SOAP = pytest.importorskip(
    "pytorch_optimizer", reason="SOAP's parity tests were left out: pip install pytorch_optimizer"
).SOAP

STEPS = 100
CASES = {
    "merged axes, and what is too large": ([(2, 3, 8), (6, 12)], {"max_precondition_dim": 8, "merge_dims": True}),
    "three axes, vectors, another frequency and decay": (
        [(3, 4, 3), (4,)],
        {"precondition_1d": True, "precondition_frequency": 3, "shampoo_beta": 0.8},
    ),
}


def worst_error(shapes, options, *, rate=3e-3, decay=0.0):
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    theirs = [torch.tensor(p, requires_grad=True) for p in start]
    peer = SOAP(theirs, rate, weight_decay=decay, **options)
    tx = oc.soap(rate, weight_decay=decay, **options)
    ours = [jnp.asarray(p) for p in start]
    state, step = tx.init(ours), jax.jit(tx.apply)
    worst = 0.0
    for i in range(STEPS):
        grads = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
        for p, g in zip(theirs, grads, strict=True):
            p.grad = torch.tensor(g)
        peer.step()
        ours, state = step(ours, state, grads=[jnp.asarray(g) for g in grads])
        if i == 0:
            begin_alike([peer.state[p] for p in theirs], state["scale_by_soap"]["basis"])
        worst = max(worst, *(np.max(np.abs(p.detach().numpy() - q)) for p, q in zip(theirs, ours, strict=True)))
    assert all(np.max(np.abs(np.asarray(p) - q)) > 10 * rate for p, q in zip(start, ours, strict=True))
    return worst


def begin_alike(theirs, ours):
    """One gradient of rank r says nothing of the directions beyond r: what eigh happened to choose there is given to both.

    That ours are eigenvectors of their matrix is asserted.
    """
    for state, axes in zip(theirs, ours, strict=True):
        for k, (gram, q) in enumerate(zip(state["GG"], state["Q"], strict=True)):
            if len(q):
                basis = torch.tensor(np.asarray(axes[f"axis_{k}"]))
                rotated = basis.T @ gram @ basis
                assert torch.allclose(rotated, torch.diag(torch.diag(rotated)), atol=1e-6)
                state["Q"][k] = basis


def test_soap_equals_pytorch_optimizers(record_error):
    error = worst_error([(6, 6), (4,), (6, 6)], {})
    record_error(("PyTorch", "SOAP", "float32", "apply"), error)
    assert error <= 1e-4


@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_so_it_does_with_each_argument(case, record_error):
    error = worst_error(*case)
    record_error(("PyTorch", "SOAP", "float32", "apply"), error)
    assert error <= 1e-4


@pytest.mark.for_release
def test_with_decay_it_differs_by_no_more_than_the_order_of_step_and_decay():
    """Theirs does not decay at the first call, which ours does, and multiplies the new parameters."""
    assert worst_error([(6, 4)], {}, rate=1e-3, decay=0.01) <= 1e-4
