"""`adam(lazy=True)` is `torch.optim.SparseAdam`."""

import jax
import numpy as np
import pytest

import optchain as oc

from .tables import BATCHES, HEIGHT, batches, named, params

torch = pytest.importorskip("torch", reason="the comparison with SparseAdam was left out: pip install torch==2.13.0")


def test_lazy_adam_equals_sparse_adam_of_torch():
    with jax.enable_x64(True):
        table = torch.nn.Parameter(torch.tensor(params()["table"]))
        optimizer = torch.optim.SparseAdam([table], lr=0.1, betas=(0.8, 0.95), eps=1e-8)
        tx = oc.adam(0.1, 0.8, 0.95, 1e-8, lazy=True)
        ours = {"table": jax.numpy.asarray(params()["table"])}
        state = tx.init(ours)
        step = jax.jit(lambda params, state, grads: tx.apply(params, state, grads=grads))
        # A call that names nothing counts here and not there: PyTorch does not see its bias corrections.
        for batch in [
            b for b, indices in zip(batches(), BATCHES, strict=True) if any(0 <= i < HEIGHT for i in indices)
        ]:
            ours, state = step(ours, state, {"table": named(batch)["table"]})
            inside = (batch[0] >= 0) & (batch[0] < HEIGHT)
            table.grad = torch.sparse_coo_tensor(
                batch[0][inside][None], batch[1][inside], table.shape, check_invariants=True
            )
            optimizer.step()
            np.testing.assert_allclose(ours["table"], table.detach().numpy(), rtol=1e-10, atol=1e-12)
