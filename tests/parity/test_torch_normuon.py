"""`scale_by_neuron_rms` against the second moment of `pytorch_optimizer.NorMuon`, live."""

import jax.numpy as jnp
import numpy as np
import pytest

import optchain as oc

torch = pytest.importorskip("torch", reason="PyTorch parity tests were left out: pip install torch==2.13.0")
normuon = pytest.importorskip(
    "pytorch_optimizer.optimizer.muon.normuon",
    reason="NorMuon's parity tests were left out: pip install pytorch_optimizer",
)


def test_a_run_ends_where_normuons_does(monkeypatch: pytest.MonkeyPatch):
    """Without the iteration, which is Muon's and has a test of its own: theirs is in bfloat16."""
    monkeypatch.setattr(normuon, "zero_power_via_newton_schulz_5", lambda update, **_: update)
    rng = np.random.default_rng(0)
    start = rng.normal(size=(5, 7)).astype(np.float32)
    theirs = torch.tensor(start, requires_grad=True)
    peer = normuon.NorMuon([{"params": [theirs], "use_muon": True}], 0.1, 0.0, 0.9, nesterov=False, foreach=False)
    tx = oc.chain(
        oc.scale_by_neuron_rms(0.9, 1e-10, matrices={"": (1, 0)}), oc.scale_by_learning_rate(), learning_rate=0.1
    )
    ours, state = jnp.asarray(start), tx.init(jnp.asarray(start))
    for _ in range(30):
        grad = rng.normal(size=(5, 7)).astype(np.float32) * np.logspace(-1, 1, 5, dtype=np.float32)[:, None]
        theirs.grad = torch.tensor(grad)
        peer.step()
        ours, state = tx.apply(ours, state, grads=jnp.asarray(grad))
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(
        state["scale_by_neuron_rms"]["neuron_nu"], peer.state[theirs]["second_momentum_buffer"], rtol=1e-5
    )
