"""The contract that every transformation of optchain keeps, as checks for those who write their own."""

from collections.abc import Callable

import optax

from optchain.core.optax_link import OptaxLink, as_transformation, is_transformation
from optchain.core.transformation import Transformation
from optchain.core.walk import walk
from optchain.testing import donation, forms, jax_transforms, objects, wrappers
from optchain.testing.subject import Check as Check
from optchain.testing.subject import Subject as Subject
from optchain.testing.trees import PLAIN, Tree

CHECKS: dict[str, Check] = {
    check.__name__: check for module in (forms, jax_transforms, donation, objects, wrappers) for check in module.CHECKS
}
"""Every check by its name, which is the claim."""


def check_transformation(
    tx: optax.GradientTransformation | Callable[[], optax.GradientTransformation],
    *,
    params: Tree = None,
    refuses_complex: bool = False,
    exports: bool = True,
    zero_is_fixed_point: bool = True,
    only: tuple[str, ...] | None = None,
    skip: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Checks that a transformation keeps the contract of this library: what chains, Optax, Flax and JAX rely on.

    The forms agree: `apply` is `update` followed by `optax.apply_updates`, in float32, bfloat16, float16, float64 and complex64. A
    step keeps structure, shapes, dtypes and weak types, so that the state is a `lax.scan` carry and a donated buffer is used
    again. `jit`, `scan`, `vmap` and `jax.export` give the numbers of the eager loop; the gradient through a step is finite
    at zero. The state is nested dicts of arrays that share no buffer. Two that are built alike are equal. It works inside
    Optax's combinators. `optchain.testing.CHECKS` has each of these by its name.

    Use it in a test of your own:

        def test_my_link_keeps_the_contract():
            check_transformation(lambda: my_link(0.1))

    Args:
      tx: a transformation, or better a function of no arguments that builds it: only so can it be built twice and compared.
      params: an example of the parameters, a pytree of arrays whose shapes are used; a small dict if None. Needed by a link
        whose masks look for certain paths.
      refuses_complex: whether complex parameters are an error of it, a `TypeError` at `init` that says so.
      exports: whether `jax.export` takes a step: not with a hyperparameter that is read on the host.
      zero_is_fixed_point: whether zero gradients leave zero parameters at zero: False for a link that adds noise.
      only: the names of the checks to run, all if None.
      skip: the names of checks to leave out.

    Returns:
      The names of the checks that ran.

    Raises:
      AssertionError: the checks that failed, each with what it found.
      ValueError: a name in `only` or `skip` that no check has.

    Example:
      A link of one's own; a test would run all checks, and this example runs two:

      >>> import jax, jax.numpy as jnp, optchain
      >>> from optchain.testing import check_transformation
      >>> @optchain.register
      ... def scale_by_sign():
      ...     def update(updates, state, params):
      ...         return jax.tree.map(jnp.sign, updates), state
      ...     return optchain.Transformation(update=update)
      >>> ran = check_transformation(scale_by_sign, only=("apply_is_update_and_apply_updates", "copies_are_itself"))
      >>> len(ran)
      2
    """
    for name in (*(only or ()), *skip):
        if name not in CHECKS:
            raise ValueError(f"there is no check {name!r}; there are {', '.join(CHECKS)}")
    given = is_transformation(tx)

    def make() -> Transformation:
        return as_transformation(tx if given else tx())  # pyright: ignore[reportCallIssue, reportArgumentType]

    first = make()
    plain = not any(isinstance(node.link, OptaxLink) and not node.link.is_registered for node in walk(first))
    subject = Subject(
        first.name,
        make,
        refuses_complex=refuses_complex,
        has_code=plain and first.is_registered,
        owns_all_state=not any(isinstance(node.link, OptaxLink) for node in walk(first)),
        exports=exports,
        zero_is_fixed_point=zero_is_fixed_point,
        tree=PLAIN if params is None else params,
    )
    chosen = [name for name in only or CHECKS if name not in skip]
    failures: dict[str, Exception] = {}
    for name in chosen:
        try:
            CHECKS[name](subject)
        except Exception as error:
            failures[name] = error
    if failures:
        summaries = "\n".join(f"- {name.replace('_', ' ')}: {_summary(error)}" for name, error in failures.items())
        raise AssertionError(
            f"{first.name} fails {len(failures)} of {len(chosen)} checks of optchain.testing:\n{summaries}"
        ) from next(iter(failures.values()))
    return tuple(chosen)


def _summary(error: Exception) -> str:
    kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:400]
