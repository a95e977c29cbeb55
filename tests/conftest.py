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
    """Makes compiling cheaper, which takes most of the default run's time.

    XLA and LLVM optimize little, and compiled programs are kept in pytest's cache, for the other
    workers and the next run: `--cache-clear` forgets them. The slow tests, and any other selection
    (`-m ""`), compile as users do.
    """
    if config.option.markexpr != "not slow":
        return
    options = {"jax_disable_most_optimizations": True}
    if cache := getattr(config, "cache", None):  # None with `-p no:cacheprovider`
        options["jax_compilation_cache_dir"] = str(cache.mkdir("jax"))
        options["jax_persistent_cache_min_compile_time_secs"] = 0
    for name, value in options.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for the programs that tests start
