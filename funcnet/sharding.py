"""Sharding as data: which axes of a mesh divide the examples and which divide the parameters.

A `Plan` holds a mesh and a few rules. It places parameters, optimizer state and examples on the
mesh, and `training.make_step(…, sharding=plan)` keeps them there:

    plan = sharding.fsdp(jax.make_mesh((8,), ("data",)))
    train_state = plan.create(lambda: TrainState.create(model, optimizer, key, x))
    step = jax.jit(make_step(model, loss, optimizer, sharding=plan), donate_argnums=0)
    train_state, metrics = step(train_state, *plan.examples((x, labels)))

The compiler divides everything else, and inserts the communication. Alone, it may divide the
activations by their features, as the parameters are, and compute every example on all devices.
While a plan is active, `layers.chain`, `layers.residual` and `layers.repeat` therefore hold the
arrays between layers divided by examples.

Reference: Xu et al., GSPMD, 2021, arXiv:2105.04663, for the compiler; Zhao et al., PyTorch FSDP,
2023, arXiv:2304.11277, and Rajbhandari et al., ZeRO, 2020, arXiv:1910.02054, for `fsdp`; Shoeybi et
al., Megatron-LM, 2019, section 3, arXiv:1909.08053, for `tensor_parallel`.
"""

import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from funcnet._arguments import describe
from funcnet._batch import Batch, batch

__all__ = ["TENSOR", "Plan", "data_parallel", "fsdp", "pin", "tensor_parallel"]

Rules = tuple[tuple[str, PartitionSpec], ...]

# The weights of `layers.MultiHeadAttention` and `layers.GatedMLP`: heads and hidden units are
# divided over the axis "model".
TENSOR: Rules = (
    (r"(^|/)(q|k|v|gate|up)/w$", PartitionSpec(None, "model")),
    (r"(^|/)(q|k|v|gate|up)/b$", PartitionSpec("model")),
    (r"(^|/)(out|down)/w$", PartitionSpec("model", None)),
)


class Plan(NamedTuple):
    """How arrays are divided over the devices of a mesh.

    mesh: The mesh, with automatic axes.
    batch: The axes of the mesh that divide the examples.
    rules: Pairs of a regular expression and a `PartitionSpec`. The first expression that is found
      in the path of a parameter, such as "1/0/1/q/w", gives its sharding. The spec is that of its
      last axes, so that it also holds under `layers.repeat`. A mesh axis that does not divide the
      size of an array's axis is left out.
    fsdp: The axes of the mesh that divide each parameter further, along its largest axis that they
      divide and that no rule divides; () to keep a copy on each of these devices.
    """

    mesh: Mesh
    batch: tuple[str, ...]
    rules: Rules = ()
    fsdp: tuple[str, ...] = ()

    def shardings(self, tree: Any) -> Any:
        """The shardings of parameters, an optimizer's state or a whole `training.TrainState`.

        The state of an optimizer has the paths of the parameters behind its own, and so their
        shardings.

        Args:
          tree: A tree of arrays or of `jax.ShapeDtypeStruct`.

        Returns:
          A tree of `jax.sharding.NamedSharding`.
        """
        return jax.tree.map_with_path(
            lambda path, leaf: NamedSharding(self.mesh, self._spec(path, leaf)), tree
        )

    def create(self, f: Callable[..., Any], *args: Any) -> Any:
        """Returns f(*args), computed in divided form: no device holds all of it.

        Args:
          f: A function that returns parameters or a `training.TrainState`.
          *args: Its arguments.
        """
        shardings = self.shardings(jax.eval_shape(f, *args))
        return jax.jit(f, out_shardings=shardings)(*args)

    def place(self, tree: Any) -> Any:
        """Returns a tree of parameters or a `training.TrainState`, divided over the devices."""
        return jax.device_put(tree, self.shardings(tree))

    def examples(self, tree: Any) -> Any:
        """Returns a tree of arrays (n, ...), divided over the devices along the first axis.

        Raises:
          ValueError: If n is not a multiple of the number of devices that divide the examples.
        """
        count = math.prod(self.mesh.shape[a] for a in self.batch)
        for path, leaf in jax.tree.leaves_with_path(tree):
            if not jnp.ndim(leaf) or len(leaf) % count:
                raise ValueError(
                    f"examples: tree{jax.tree_util.keystr(path)} must have a multiple of {count} "
                    f"examples, one part for each device, got {describe(leaf)}"
                )
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec(self.batch)))

    def keep(self, tree: Any) -> Any:
        """Inside a compiled function: constrains a tree to the shardings of `shardings`."""
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def active(self) -> AbstractContextManager:
        """A context manager: functions that are traced inside divide arrays by examples."""
        return batch(Batch(self.mesh, self.batch))

    def _spec(self, path: Any, leaf: Any) -> PartitionSpec:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found = next((spec for pattern, spec in self.rules if re.search(pattern, name)), ())
        shape = jnp.shape(leaf)
        spec: list[Any] = [None] * len(shape)
        for i, axes in zip(range(-1, -len(shape) - 1, -1), reversed(found), strict=False):
            spec[i] = axes if self._divides(axes, shape[i]) else None
        free = [i for i, n in enumerate(shape) if not spec[i] and self._divides(self.fsdp, n)]
        if free:
            spec[max(free, key=lambda i: shape[i])] = self.fsdp
        return PartitionSpec(*spec)

    def _divides(self, axes: Any, n: int) -> bool:
        names = (axes,) if isinstance(axes, str) else axes or ()
        return bool(names) and Batch(self.mesh, names).divides(n)


def data_parallel(mesh: Mesh) -> Plan:
    """Examples are divided over all devices; each holds all parameters.

    Args:
      mesh: A mesh, as of `jax.make_mesh`.
    """
    return Plan(_automatic("data_parallel", mesh), mesh.axis_names)


def fsdp(mesh: Mesh, *, tensor: str | None = None) -> Plan:
    """Examples and each parameter are divided over the devices (fully sharded data parallelism).

    A layer's parameters are gathered where they are used, and their gradients are summed where they
    are kept.

    Args:
      mesh: A mesh, as of `jax.make_mesh`.
      tensor: An axis of the mesh that divides heads and hidden units, as in `tensor_parallel`; the
        other axes divide the examples.

    Raises:
      ValueError: If the mesh does not have the axis.
    """
    plan = data_parallel(mesh) if tensor is None else tensor_parallel(mesh, axis=tensor)
    return plan._replace(fsdp=plan.batch)


def tensor_parallel(mesh: Mesh, *, axis: str = "model", rules: Rules = TENSOR) -> Plan:
    """Heads and hidden units are divided over one axis of the mesh, examples over the others.

    Args:
      mesh: A mesh, as of `jax.make_mesh`.
      axis: The axis of the mesh that stands for "model" in the rules.
      rules: As in `Plan`; the default divides the parameters of `layers.MultiHeadAttention` and
        `layers.GatedMLP`.

    Raises:
      ValueError: If the mesh does not have the axis.
    """
    mesh = _automatic("tensor_parallel", mesh)
    if axis not in mesh.axis_names:
        raise ValueError(f"tensor_parallel: axis must be one of {mesh.axis_names}, got {axis!r}")
    named = lambda spec: PartitionSpec(*(axis if a == "model" else a for a in spec))
    rest = tuple(a for a in mesh.axis_names if a != axis)
    return Plan(mesh, rest, tuple((pattern, named(spec)) for pattern, spec in rules))


def activated(f: str, plan: Any) -> AbstractContextManager:
    """`plan.active()`, or no change if plan is None; raises the TypeError of the function f."""
    if not (plan is None or isinstance(plan, Plan)):
        raise TypeError(f"{f}: sharding must be a funcnet.sharding.Plan, got {describe(plan)}")
    return nullcontext() if plan is None else plan.active()


def pin(x: jax.Array) -> jax.Array:
    """Divides x (n, ...) over the devices by its n examples, if a plan is active; else returns x.

    It is a layer: `layers.chain(Dense(64), sharding.pin, Dense(10))`.
    """
    over = batch.value
    if over is None or not isinstance(x, jax.Array) or not x.ndim or not over.divides(len(x)):
        return x
    spec = PartitionSpec(over.axes, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, NamedSharding(over.mesh, spec))


def _automatic(f: str, mesh: Any) -> Mesh:
    if not isinstance(mesh, Mesh):
        raise TypeError(f"{f}: mesh must be a jax.sharding.Mesh, got {describe(mesh)}")
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
