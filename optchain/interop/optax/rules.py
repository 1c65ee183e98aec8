"""What Optax calls the entries of our links' states, and our hyperparameters."""

from optchain.interop.links import Place, check_velocity

RULES = {
    "adam": "scale_by_adam",
    "trace": "apply_momentum",
    "lion": "scale_by_lion",
    "rms": "scale_by_rms",
    "rss": "scale_by_rss",
    "multi_steps": "accumulate",
}
"""The link for each kind of node that keeps trees."""
TREES = {
    "adam": {"mu": "mu", "nu": "nu"},
    "trace": {"velocity": "trace"},
    "lion": {"mu": "mu"},
    "rms": {"nu": "nu", "mu": "mu"},
    "rss": {"sum_of_squares": "sum_of_squares"},
}
"""Our entries, with Optax's names."""
HYPERPARAMS = {
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "b1": "beta_1",
    "b2": "beta_2",
    "eps": "epsilon",
    "eps_root": "epsilon_root",
    "momentum": "momentum",
}
"""The arguments that `inject_hyperparams` keeps, with our names."""


def names_in_optax(place: Place, kind: str) -> dict[str, str]:
    """The trees in a link's state that a node of a kind has too, with Optax's words for them.

    Raises:
      ValueError: what Optax means something else by: a velocity with the learning rate or a dampening in it, `nu_max`.
    """
    check_velocity(place, "Optax's trace")
    if kind == "trace" and "count" in place.link.fields:
        raise ValueError(f"{place} has dampening, and Optax's trace has none")
    if "nu_max" in place.link.fields:
        raise ValueError(
            f"{place} keeps nu_max, the largest nu as it is; Optax's amsgrad keeps the largest corrected one"
        )
    return {entry: field for entry, field in TREES[kind].items() if entry in place.link.slots}
