"""Checkpoints of a run, by Orbax: asynchronous, atomic, restored to the same or another mesh.

    with Checkpoints("runs/1/checkpoints") as checkpoints:
        if checkpoints.steps:
            state, data = checkpoints.restore(state)
        ...
        checkpoints.save(step, state, extra=data)  # data: where the input pipeline stands

The folder is Orbax's; other programs read it with `orbax.checkpoint`.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet._arguments import check_int, describe, kind
from funcnet._extras import extra
from funcnet.weights import check_same, flatten

__all__ = ["Checkpoints"]


class Checkpoints:
    """The last checkpoints of a run in a folder; needs the package orbax-checkpoint.

    A checkpoint is there completely or not at all: Orbax writes it under another name and renames
    it. What a killed process left behind is removed when the folder is opened again. Only one run
    may use a folder at a time; all processes of that run make the same calls.

    Args:
      folder: The folder of the checkpoints. It is created if it does not exist.
      keep: How many checkpoints to keep, at least 1. Older ones are removed after a new one is
        complete.

    Raises:
      TypeError: If keep is not an integer.
      ValueError: If keep is less than 1.
      OSError: If the folder cannot be created.
      ModuleNotFoundError: If the package is missing; the extra `checkpoint` has it.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 2):
        keep = check_int("Checkpoints", "keep", keep, at_least=1)
        with extra("Checkpoints", "checkpoint"):
            import orbax.checkpoint as ocp

        self._args = ocp.args
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            cleanup_tmp_directories=True,
        )
        handlers = {
            "tree": ocp.StandardCheckpointHandler(),
            "extra": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(
            os.path.abspath(folder), options=options, item_handlers=handlers
        )

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints in ascending order, one that is being saved included."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, tree: Any, *, extra: Any = None) -> None:
        """Begins to save a tree; when this returns, the buffers of the tree may be donated.

        Other threads write the files. If an earlier save is in progress, this call waits for it.

        Args:
          step: The number of the checkpoint, greater than that of the last one.
          tree: A pytree of arrays and PRNG keys, such as a `TrainState`.
          extra: A JSON value that is saved with it, such as the position in the data.

        Raises:
          TypeError: If a leaf is not an array, or extra is not a JSON value.
          ValueError: If step is not greater than that of the last checkpoint, two leaves have the
            same path, or a leaf has no elements, which Orbax cannot save.
          OSError: If this save or an earlier one failed, as by a full disk. The checkpoints before
            it are complete.
        """
        step = check_int("save", "step", step, at_least=0)
        named = flatten(tree)
        if not named:
            raise ValueError(f"save: tree must have leaves, got {describe(tree)}")
        for name, leaf in named.items():
            if not isinstance(leaf, jax.Array | np.ndarray):
                raise TypeError(f"save: {name!r} must be an array, got {kind(leaf)}")
            if not leaf.size:
                raise ValueError(f"save: {name!r} must have elements, got {describe(leaf)}")
        try:
            extra = json.loads(json.dumps(extra))  # a copy, which the caller cannot change
        except TypeError as e:
            raise TypeError(f"save: extra must be a JSON value: {e}") from None
        self.wait()
        if self.steps and step <= self.steps[-1]:
            raise ValueError(f"save: step must be greater than {self.steps[-1]}, got {step}")
        items = {
            "tree": self._args.StandardSave(tree),
            "extra": self._args.JsonSave({"value": extra}),
        }
        with _writing(self._manager.directory):
            self._manager.save(step, args=self._args.Composite(**items))

    def restore(self, like: Any, *, step: int | None = None) -> tuple[Any, Any]:
        """Restores a checkpoint.

        Args:
          like: A tree of arrays or of `jax.ShapeDtypeStruct`, with the structure, shapes and dtypes
            of the saved one. The result has its shardings, of any mesh; where a leaf has none, or
            is not committed to it, the result is on the default device, not committed either.
          step: Which checkpoint; by default the last.

        Returns:
          The tree and extra, as they were saved.

        Raises:
          TypeError: If a leaf of like is not an array.
          ValueError: If there is no such checkpoint, or like has other leaves, or a leaf of
            another shape, dtype or kind of PRNG key; the message names the leaf.
        """
        step = self._find("restore", step)
        where = f"the checkpoint of step {step}"
        named = flatten(like)
        for name, leaf in named.items():
            if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
                raise TypeError(f"restore: {name!r} of like must be an array, got {kind(leaf)}")
        stored = flatten(self._manager.item_metadata(step)["tree"].tree)
        check_same("restore", stored, {k: _physical(v) for k, v in named.items()}, where)
        items = {
            "tree": self._args.StandardRestore(jax.tree.map(_target, like)),
            "extra": self._args.JsonRestore(),
        }
        restored = self._manager.restore(step, args=self._args.Composite(**items))
        check_same("restore", flatten(restored["tree"]), named, where)  # Orbax may convert keys
        tree = jax.tree.map(lambda a, l: a if _sharding(l) else _free(a), restored["tree"], like)
        return tree, restored["extra"]["value"]

    def extra(self, *, step: int | None = None) -> Any:
        """Reads only what was saved as extra.

        Args:
          step: Which checkpoint; by default the last.

        Raises:
          ValueError: If there is no such checkpoint.
        """
        item = self._args.Composite(extra=self._args.JsonRestore())
        return self._manager.restore(self._find("extra", step), args=item)["extra"]["value"]

    def _find(self, f: str, step: int | None) -> int:
        """The step of the checkpoint that is asked for, when it is complete."""
        self.wait()
        steps = self.steps
        if not steps or (step is not None and step not in steps):
            what = "be saved first" if step is None else f"be one of {steps}, got {step}"
            raise ValueError(f"{f}: step must {what}")
        return steps[-1] if step is None else step

    def wait(self) -> None:
        """Waits until the last save is complete.

        Raises:
          OSError: If it failed.
        """
        with _writing(self._manager.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until the last save is complete, and ends the threads.

        Raises:
          OSError: If the last save failed.
        """
        try:
            self.wait()
        finally:
            with _writing(self._manager.directory):
                self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _writing(folder: os.PathLike) -> Iterator[None]:
    """Raises every error as an OSError that names the folder."""
    try:
        yield
    except Exception as e:
        code = re.search(r"os_error_code='(\d+)'", str(e))  # of TensorStore
        number = int(code[1]) if code else getattr(e, "errno", None)
        if number is None:
            raise OSError(f"save: {folder} cannot be written: {e}") from e
        raise OSError(number, os.strerror(number), str(folder)) from e


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _physical(leaf: Any) -> Any:
    """What is stored of a leaf: keys as their data."""
    return jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf


def _sharding(leaf: Any) -> Any:
    """The sharding to which a leaf is committed, or None."""
    return getattr(leaf, "sharding", None) if getattr(leaf, "committed", True) else None


def _target(leaf: Any) -> jax.ShapeDtypeStruct:
    """What Orbax should make of a leaf."""
    sharding = _sharding(leaf) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _free(leaf: jax.Array) -> jax.Array:
    """The same array, but not committed to a device."""
    if _is_key(leaf):
        data = _free(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jnp.array(np.asarray(leaf))
