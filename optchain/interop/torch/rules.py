"""What PyTorch calls the entries of our links' states, and our hyperparameters."""

from collections.abc import Mapping
from typing import Any

from optchain.core.transformation import State
from optchain.interop.links import Place, check_velocity

COUNT = "step"

MOMENTS = {"mu": "exp_avg", "nu": "exp_avg_sq", "count": COUNT}
ENTRIES: dict[str, dict[str, str]] = {
    "scale_by_adam": MOMENTS | {"nu_max": "max_exp_avg_sq"},
    "scale_by_nadam": MOMENTS | {"mu_product": "mu_product"},
    "scale_by_radam": MOMENTS,
    "scale_by_adamax": MOMENTS | {"nu": "exp_inf"},
    "scale_by_rms": {"nu": "square_avg", "mu": "grad_avg", "count": COUNT},
    "scale_by_rss": {"sum_of_squares": "sum"},
    "scale_by_adadelta": {"e_g": "square_avg", "e_x": "acc_delta"},
    "scale_by_rprop": {"previous": "prev", "step_size": "step_size"},
    "scale_by_asgd": {"eta": "eta", "count": COUNT},
    "polyak_average": {"average": "ax", "count": COUNT},
    "scale_by_muon_average": {"mu": "momentum_buffer"},
    "scale_by_factored_rms": {"v_row": "row_var", "v_col": "col_var", "v": "variance", "count": COUNT},
    "scale_by_relative_step": {"count": COUNT},
    "apply_momentum": {"velocity": "momentum_buffer", "count": COUNT},
}
"""By the function that builds the link."""
SCALARS = ("count", "mu_product", "eta")
FACTORS = ("v_row", "v_col", "v")
"""The entries that have not the parameter's shape."""
DERIVED = ("mu",)
"""What PyTorch keeps and we compute: of ASGD, the share of a step in the average."""
OPTIONAL = ("momentum_buffer",)
"""What PyTorch makes in the first step with a gradient, and what is zero for us until then."""

HYPERPARAMS = {
    "learning_rate": "lr",
    "weight_decay": "weight_decay",
    "epsilon": "eps",
    "beta_1": "betas[0]",
    "beta_2": "betas[1]",
    "momentum": "momentum",
    "dampening": "dampening",
    "rho": "alpha",  # of RMSprop; Adadelta has it by our name
    "momentum_decay": "momentum_decay",
    "threshold": "d",
}


def name_in_group(name: str, group: Mapping[str, Any]) -> str | None:
    """What PyTorch's group calls a hyperparameter of ours; None if it has no such number."""
    return next((key for key in (HYPERPARAMS.get(name), name) if key in group), None)


def names_in_torch(place: Place, state: State) -> dict[str, str]:
    """The entries of a link's state that PyTorch has too, with its words for them.

    Raises:
      ValueError: a velocity that has the learning rate in it, as Keras's.
    """
    known = ENTRIES.get(place.rule, {})
    check_velocity(place, "PyTorch's")
    return {entry: known[entry] for entry in place.state_in(state) if entry in known}


def split_betas(group: dict[str, Any]) -> dict[str, Any]:
    """A group of PyTorch's with each of the two betas by itself."""
    betas = group.get("betas")
    return group | ({} if betas is None else {f"betas[{i}]": beta for i, beta in enumerate(betas)})


def join_betas(group: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `split_betas`."""
    betas = {key: group[key] for key in ("betas[0]", "betas[1]") if key in group}
    rest = {key: value for key, value in group.items() if key not in betas}
    return rest | ({"betas": tuple(betas.values())} if betas else {})
