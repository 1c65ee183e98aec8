"""Our recipes in Optax's words."""

from typing import Any

import optax

from optchain.core.chain import elementary
from optchain.core.optax_link import as_transformation
from optchain.core.transformation import Transformation


def to_optax(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same recipe in Optax: `adamw`, `adam`, `sgd`, in `MultiSteps` where `tx` accumulates.

    Args:
      tx: `presets.optax.adamw`, `adam`, `nadamw`, `nadam` or `sgd`, those of `presets.torch`, or a chain of
        `scale_by_adam(epsilon_hat=False)` or `apply_momentum`, `scale_by_learning_rate` and `decay_weights`; in `accumulate` or not.

    Raises:
      ValueError: a link that Optax's optimizers have no argument for; the message names it.

    Example:
      >>> import jax.numpy as jnp, optchain
      >>> from optchain.interop.optax import to_optax
      >>> to_optax(optchain.presets.torch.sgd(0.1, momentum=0.9)).init(jnp.ones(2))[0]
      TraceState(trace=Array([0., 0.], dtype=float32))
    """
    link = as_transformation(tx, "tx")
    rate = link.config.get("learning_rate", link.config.get("lr"))
    links = list(elementary([link]))
    if len(links) == 1 and links[0].is_registered and links[0].registered_name == "accumulate":
        gate = links[0]
        inner = gate.links[0]
        own = inner.config.get("learning_rate", inner.config.get("lr"))
        if own is None and callable(rate):
            raise ValueError(
                "a schedule around accumulate counts calls, and MultiSteps's counts updates: put it inside"
            )
        made = _optimizer(list(elementary([inner])), rate if own is None else own)
        return optax.MultiSteps(made, gate.config["steps"]).gradient_transformation()
    return _optimizer(links, rate)


def _optimizer(links: list[Transformation], rate: Any) -> optax.GradientTransformation:
    rules = [link.registered_name if link.is_registered else link.name for link in links]
    by_rule = dict(zip(rules, links, strict=True))
    match rules:
        case ["scale_by_adam", "scale_by_learning_rate", *rest] if rest in ([], ["decay_weights"]):
            config = by_rule["scale_by_adam"].config
            if config["epsilon_hat"] or config["amsgrad"]:
                raise ValueError(
                    "Optax's adam has its epsilon inside the bias correction and its amsgrad after it: there is no counterpart"
                )
            rule = {"b1": config["beta_1"], "b2": config["beta_2"], "eps": config["epsilon"]}
            rule |= {"eps_root": config["epsilon_root"], "nesterov": config["nesterov"]}
            if not rest:
                return optax.adam(_rate(by_rule, rate), **rule)
            decay = by_rule["decay_weights"].config
            if decay["learning_rate"] is not None:
                raise ValueError("decay_weights has a learning rate of its own, and Optax's adamw has one for all")
            if decay["cautious"] or decay["max_learning_rate"] is not None:
                raise ValueError(
                    "decay_weights is cautious or has a max_learning_rate, and Optax's adamw decays plainly"
                )
            return optax.adamw(_rate(by_rule, rate), **rule, weight_decay=decay["weight_decay"], mask=decay["mask"])
        case [*rest, "scale_by_learning_rate"] if rest in ([], ["apply_momentum"]):
            config = by_rule["apply_momentum"].config if rest else {}
            if config.get("dampening", 0) != 0:
                raise ValueError("Optax's sgd has no dampening")
            return optax.sgd(_rate(by_rule, rate), config.get("momentum"), nesterov=config.get("nesterov", False))
    raise ValueError(
        f"no optimizer of Optax has these links: {', '.join(rules)}. There are adam, adamw and sgd, of scale_by_adam or "
        "apply_momentum, scale_by_learning_rate, decay_weights"
    )


def _rate(by_rule: dict[str, Transformation], rate: Any) -> Any:
    own = by_rule["scale_by_learning_rate"].config["learning_rate"]
    return rate if own is None else own
