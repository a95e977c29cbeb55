"""JAX configuration and command-line options of the tests."""

import collections
import importlib.util
import os
import subprocess
import zlib
from pathlib import Path

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 8)  # for shard_map and sharded jit

from funcnet import RULES  # noqa: E402


@pytest.fixture(autouse=True)
def registry():
    """A rule that a test registers, also in a suite that it runs, is there for that test alone."""
    rules = dict(RULES)
    yield
    if rules != RULES:
        RULES.clear()
        RULES.update(rules)


def pytest_addoption(parser):
    parser.addoption(
        "--mutants",
        type=int,
        default=8,
        help="mutants that test_mutations.py tries per file of ops, evenly spread (0: all)",
    )
    parser.addoption(
        "--sample",
        metavar="COUNT:SEED",
        help="run one in COUNT of the slow tests, chosen by SEED, e.g. a commit's hash",
    )
    parser.addoption(
        "--changed-since",
        metavar="COMMIT",
        help="with --sample: also try the mutants of each file of ops that differs from COMMIT",
    )


@pytest.hookimpl(tryfirst=True)  # before pytest deselects slow tests
def pytest_collection_modifyitems(config, items):
    """Marks slow what `few`, `third` and `by_family` leave out; deselects all but a sample."""
    from cases import FIRST_OF_FAMILY  # its arrays are made after XLA_FLAGS are set

    tried = collections.Counter()
    for item in items:
        test = item.path, getattr(item, "originalname", item.name)
        is_slow = item.get_closest_marker("slow") is not None
        if item.get_closest_marker("by_family"):
            is_slow |= item.callspec.params["name"] not in FIRST_OF_FAMILY
        if not is_slow:
            number = tried[test]  # of the set of parameters
            tried[test] += 1
            is_slow |= item.get_closest_marker("few") is not None and number > 0
            if item.get_closest_marker("third"):
                is_slow |= (number + zlib.crc32(test[1].encode())) % 3 > 0
        if is_slow:
            item.add_marker("slow")
    if not config.option.sample:
        return
    count, seed = config.option.sample.split(":")
    changed = changed_ops(config.option.changed_since)

    def is_chosen(item):
        if item.get_closest_marker("slow") is None:
            return True
        of_changed = item.path.name == "test_mutations.py" and item.callspec.id in changed
        return of_changed or zlib.crc32(f"{seed} {item.nodeid}".encode()) % int(count) == 0

    chosen = {id(item) for item in items if is_chosen(item)}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in chosen])
    items[:] = [item for item in items if id(item) in chosen]


def changed_ops(commit):
    """The names of the files of ops that differ from a commit."""
    if commit is None:
        return set()
    command = ["git", "diff", "--name-only", commit, "--", "funcnet/ops", "funcnet/_arrays.py"]
    here = Path(__file__).parent
    names = subprocess.run(command, cwd=here, check=True, capture_output=True, text=True).stdout
    return {Path(name).stem for name in names.splitlines()}


def pytest_configure(config):
    """Makes compilation cheaper, since it takes most of the time of the default run.

    XLA and LLVM do few optimizations, XLA:CPU generates the code of fusions in its former way,
    which is quicker, and compiled programs are kept in pytest's cache for the other workers and
    the next run; `--cache-clear` deletes them. The slow tests, and any other selection (`-m ""`),
    compile as users do.
    """
    if config.option.markexpr != "not slow":
        return
    if not importlib.util.find_spec(
        "libtpu"
    ):  # which does not know this flag, and ends the process
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
    options = {"jax_disable_most_optimizations": True}
    if cache := getattr(config, "cache", None):  # None with `-p no:cacheprovider`
        options["jax_compilation_cache_dir"] = str(cache.mkdir("jax"))
        options["jax_persistent_cache_min_compile_time_secs"] = 0
    for name, value in options.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for subprocesses of the tests
