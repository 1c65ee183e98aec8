"""The flags with which tests compile that run each of their programs once: `XLA_FLAGS="$(python tests/compiler.py)"`."""

import importlib.metadata

UNOPTIMIZED = "--xla_backend_optimization_level=0"
OLDER_EMITTERS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
"""Most of a run is the compiler's time. XLA's older emitters for a CPU take a third of it, and LLVM without optimizations half of that.
What looks at the programs themselves, or holds to the bit with the present emitters alone, compiles as users do."""


def quick() -> str:
    """The flags; jaxlib has the older emitters no more from 0.12 on."""
    jaxlib = importlib.metadata.version("jaxlib")
    has_older = tuple(map(int, jaxlib.split(".")[:2])) < (0, 12)
    return f"{OLDER_EMITTERS} {UNOPTIMIZED}" if has_older else UNOPTIMIZED


if __name__ == "__main__":
    print(quick())
