"""What the compiler counts: exact, without a clock."""

import dataclasses
import time
from typing import Any

import jax

from optchain.cli.bench import trees
from optchain.cli.bench.contenders.steps import StepFunctions
from optchain.core.trees import Tree


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of one contender, recipe and tree; bytes are per parameter.

    `bytes_accessed` is XLA's estimate, which adds up both branches of a condition.
    """

    state_bytes: float
    state_itemsize: int = 4
    """The bytes of one value of the moments."""
    bytes_accessed: float | None = None
    temporary_bytes: float | None = None
    not_aliased_bytes: float | None = None
    """Of the donated parameters and state, what is not reused for the new ones."""
    trace_seconds: float | None = None
    """Processor time, to trace the step and lower it to StableHLO; all of the process's threads."""
    compile_seconds: float | None = None
    """Processor time, to compile it."""


def compile_step(functions: StepFunctions, params: Tree, state: Any, grads: Tree) -> tuple[Any, Counts]:
    """The compiled step, parameters and state donated, and its counts. Arrays or shape structs will do.

    Clears JAX's caches first, so that no contender profits from the tracing of another.
    """
    jax.clear_caches()
    size = trees.size(params)
    jitted = jax.jit(functions.step, donate_argnums=(0, 1))
    began = time.process_time()
    lowered = jitted.lower(params, state, grads)
    traced = time.process_time()
    compiled = lowered.compile()
    done = time.process_time()
    memory = compiled.memory_analysis()
    assert memory is not None, "every backend of ours has one"
    accessed = (compiled.cost_analysis() or {}).get("bytes accessed")
    donated = nbytes((params, state))
    return compiled, Counts(
        state_bytes=nbytes(state) / size,
        state_itemsize=trees.itemsize(state),
        bytes_accessed=None if accessed is None else accessed / size,
        temporary_bytes=memory.temp_size_in_bytes / size,
        not_aliased_bytes=(donated - memory.alias_size_in_bytes) / size,
        trace_seconds=traced - began,
        compile_seconds=done - traced,
    )


def count(functions: StepFunctions, params: Tree) -> Counts:
    """The counts for a tree of shape structs, whose gradients are like the parameters."""
    return compile_step(functions, params, jax.eval_shape(functions.init, params), params)[1]


def nbytes(tree: Tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
