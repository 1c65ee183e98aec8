"""Optax: the state of its optimizers, in and out, and its recipes for ours."""

from optchain.interop.optax.export import to_optax_state as to_optax_state
from optchain.interop.optax.recipes import to_optax as to_optax
from optchain.interop.optax.state import from_optax_state as from_optax_state
from optchain.interop.optax.state import from_optax_with_report as from_optax_with_report
