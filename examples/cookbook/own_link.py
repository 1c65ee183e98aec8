import jax
import jax.numpy as jnp

import optchain
from optchain import Slot


@optchain.register
def scale_by_belief(beta_1=0.9, beta_2=0.999, epsilon=1e-8):
    """Divides by how far gradients are from their own average: AdaBelief.

    Source: Zhuang et al., 2020, arXiv:2010.07468.

    mu ← β₁ mu + (1 − β₁) g
    nu ← β₂ nu + (1 − β₂)(g − mu)² + ε
    u  = mu / (1 − β₁ᵗ) / (√(nu / (1 − β₂ᵗ)) + ε)
    """

    def step(t, beta_1, beta_2, epsilon):  # once a call: what all parameters share
        mu_correction, nu_correction = 1 - beta_1**t, 1 - beta_2**t

        def leaf(g, mu, nu):  # once a parameter, in float32
            mu = beta_1 * mu + (1 - beta_1) * g
            nu = beta_2 * nu + (1 - beta_2) * (g - mu) ** 2 + epsilon
            return mu / mu_correction / (jnp.sqrt(nu / nu_correction) + epsilon), {
                "mu": mu,
                "nu": nu,
            }

        return leaf

    slots = {"mu": Slot(decay="beta_1"), "nu": Slot(nonnegative=True)}
    return optchain.rule(
        step,
        slots=slots,
        hyperparams={"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon},
    )


tx = optchain.chain(
    optchain.clip_by_global_norm(1.0),
    scale_by_belief(),
    optchain.scale_by_learning_rate(),
    optchain.decay_weights(0.01),
    learning_rate=1e-2,
)

x = jax.random.normal(jax.random.key(0), (64, 4))
y = x @ jnp.array([1.0, -1.0, 2.0, 0.0])
step = optchain.make_step(
    lambda params, x, y: jnp.mean((x @ params["kernel"] - y) ** 2), tx
)
params = {"kernel": jnp.zeros(4)}
state, losses = tx.init(params), []
for _ in range(300):
    params, state, metrics = step(params, state, x, y)
    losses.append(float(metrics["loss"]))

print(tx)
print(f"loss {losses[0]:.3f} -> {losses[-1]:.5f}")
