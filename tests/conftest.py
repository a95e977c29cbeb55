"""The switches of JAX that the tests run under."""

import os

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 4)  # for shard_map and sharded jit


def pytest_addoption(parser):
    parser.addoption(
        "--mutants",
        type=int,
        default=8,
        help="changes tried of each file of ops by test_mutations.py, evenly spread (0: all)",
    )


def pytest_configure(config):
    """The default run compiles without LLVM's optimizations, which takes most of its time.

    The slow tests, and any other selection (`-m ""`), compile as users do.
    """
    if config.option.markexpr == "not slow":
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0".strip()
