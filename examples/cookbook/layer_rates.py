import jax.numpy as jnp

import optchain


def block(size):
    return {
        "kernel": jnp.ones((size, size)) / size,
        "bias": jnp.zeros(size),
        "norm": {"scale": jnp.ones(size)},
    }


params = {
    "layers": {str(i): block(8) for i in range(3)},
    "head": {"kernel": jnp.ones((8, 2)), "bias": jnp.zeros(2)},
}

tx = optchain.chain(
    optchain.clip_by_global_norm(1.0),
    optchain.scale_by_adam(),
    # Each layer half the rate of the one above it, the head ten times the rate.
    optchain.scale_by_path(
        {"^layers/0/": 0.25, "^layers/1/": 0.5, "^layers/2/": 1.0, "^head/": 10.0}
    ),
    optchain.scale_by_learning_rate(),
    # Kernels decay; norms and biases do not.
    optchain.masked(optchain.decay_weights(0.1), optchain.matching("kernel$")),
    learning_rate=1e-3,
)
table = optchain.describe(tx, params)
print(table)
