import jax
import jax.numpy as jnp

import optchain

keys = jax.random.split(jax.random.key(0), 4)
params = {
    "embedding": jax.random.normal(keys[0], (50, 16)) / 4,
    "hidden": {"kernel": jax.random.normal(keys[1], (16, 16)) / 4, "bias": jnp.zeros(16)},
    "head": {"kernel": jax.random.normal(keys[2], (16, 50)) / 4, "bias": jnp.zeros(50)},
}
tokens = jax.random.randint(keys[3], (256,), 0, 50)


def loss_fn(params, tokens):
    """The next token of a fixed permutation."""
    x = params["embedding"][tokens]
    x = x + jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    logits = x @ params["head"]["kernel"] + params["head"]["bias"]
    return -jnp.take_along_axis(
        jax.nn.log_softmax(logits), ((7 * tokens + 3) % 50)[:, None], 1
    ).mean()


# Hidden matrices by Muon; embeddings, the head, norms and biases by AdamW, half as far.
tx = optchain.muon(
    2e-2,
    weight_decay=0.01,
    exclude_layers=["^head/"],
    adam_weight_decay=0.0,
    adam_lr_ratio=0.5,
    global_clipnorm=1.0,
)
print(optchain.describe(tx, params))

step = optchain.make_step(loss_fn, tx)
state, losses = tx.init(params), []
for _ in range(100):
    params, state, metrics = step(params, state, tokens)
    losses.append(float(metrics["loss"]))
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
