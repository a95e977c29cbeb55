"""The trials of a rule under JAX's transformations, for comparison with autodiff."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from funcnet.check.programs import quick
from funcnet.check.reference import Outputs, cotangents, gradients, pairing, stack
from funcnet.check.subject import Subject

CHECK_VMA = "check_vma"  # not a kind of finding but a warning, because most rules fail there
FEWER = "with fewer"
SHRUNK = 0.875  # scale of a batch's second example: exact, keeps signs, ties, zeros and the domain


class Trial(NamedTuple):
    """One transformation: `program(outputs)(floats, others, dout)` returns the cotangents."""

    kind: str
    label: str
    program: Callable[[Outputs], Callable[[Any, Any, Any], Any]]
    at: tuple[Any, Any, Any]
    axes: Any = None  # in_axes of vmap
    expected: Any = None  # the result of autodiff, if it is known already
    may_point_outside: bool = False  # an integer may be an index past a cut axis, or have an order
    in_usual_size: Any = None  # of a batch size: arguments of the usual size, with equal examples

    def shares_an_output(self, outputs: Outputs) -> bool:
        """Whether, under this vmap, an output depends on no batched argument."""
        floats, others, _ = self.at
        for i in range(len(self.at[2])):
            only = lambda floats, others, i=i: outputs(floats, others)[i]
            try:
                jax.eval_shape(jax.vmap(only, in_axes=self.axes, out_axes=None), floats, others)
            except ValueError:
                continue
            return True
        return False


def all_trials(s: Subject, plain: Outputs, floats: Any, others: Any, dout: Any) -> Iterator[Trial]:
    """All trials below, for the function `s` whose autodiff twin is `plain`."""
    yield from vmap(s, plain, floats, others, dout)
    yield from scan_and_remat(floats, others, dout)
    yield from second_derivative(floats, others, dout)
    yield from batch_sizes(plain, floats, others)
    yield from sharded(plain, floats, others, dout)


def own_trials(s: Subject, floats: Any, others: Any, dout: Any) -> Iterator[Trial]:
    """Trials whose expected result is computed by the rule itself, without the transformation.

    They are for a rule of which autodiff of the plain forward is no reference.
    """
    pull = quick(gradients(s.outputs))
    yield from vmap(s, s.outputs, floats, others, dout)
    scan, remat = scan_and_remat(floats, others, dout)
    steps = []
    for k, factor in enumerate((1.0, 2.0, -1.0)):
        at = tuple(_times(SHRUNK**k, v) for v in floats)
        steps.append([SHRUNK**k * d for d in pull(at, others, tuple(factor * d for d in dout))])
    yield scan._replace(expected=tuple(sum(ds) for ds in zip(*steps, strict=True)))
    yield remat._replace(expected=pull(floats, others, dout))
    for trial in sharded(s.outputs, floats, others, dout):
        if trial.program is gradients:
            yield trial._replace(expected=pull(floats, others, dout))


def scan_and_remat(floats: Any, others: Any, dout: Any) -> Iterator[Trial]:
    """The gradient through a scan of three steps at different arguments, and under remat."""

    def in_scan(outputs: Outputs) -> Any:
        def program(floats: Any, others: Any, dout: Any) -> Any:
            def loop(floats: Any, others: Any) -> Any:
                def step(scale: Any, _: Any) -> Any:
                    at = tuple(v * scale.astype(v.dtype) for v in floats)
                    return SHRUNK * scale, outputs(at, others)

                return jax.lax.scan(step, jnp.ones(()), length=3)[1]

            three = jax.tree.map(lambda d: jnp.stack([d, 2 * d, -d]), dout)
            return gradients(loop)(floats, others, three)

        return program

    def in_remat(outputs: Outputs) -> Any:
        return gradients(jax.checkpoint(outputs))

    yield Trial("scan", "in jax.lax.scan", in_scan, (floats, others, dout))
    yield Trial("remat", "under jax.checkpoint", in_remat, (floats, others, dout))


def vmap(s: Subject, plain: Outputs, floats: Any, others: Any, dout: Any) -> Iterator[Trial]:
    """The gradient of a vmap over subsets of the arguments, and the vmap of a gradient.

    The gradient of a vmap is tried over all subsets if there are at most three arguments. With more
    arguments, and for the vmap of a gradient, each argument alone and all together are tried.
    """
    numbers = sorted(set(s.arguments))
    subsets = [c for n in range(1, len(numbers) + 1) for c in itertools.combinations(numbers, n)]
    if len(numbers) > 3:
        subsets = [*((n,) for n in numbers), tuple(numbers)]
    pull = quick(gradients(plain))
    second = tuple(_times(-0.5, d) for d in dout)
    for subset in subsets:
        axes = [0 if i in subset else None for i in s.arguments]
        of_floats, of_others = tuple(axes[: len(floats)]), tuple(axes[len(floats) :])
        batched = lambda leaves, axes, stacked: tuple(
            stacked(v) if a == 0 else v for v, a in zip(leaves, axes, strict=True)
        )
        at = (
            batched(floats, of_floats, lambda v: _pair(v, _times(SHRUNK, v))),
            batched(others, of_others, lambda v: _pair(v, v)),
            stack([dout, second]),
        )
        shrunk = batched(floats, of_floats, lambda v: _times(SHRUNK, v))
        each = stack([pull(floats, others, dout), pull(shrunk, others, second)])
        summed = tuple(d if a == 0 else d.sum(0) for d, a in zip(each, of_floats, strict=True))
        names = ", ".join(dict.fromkeys(_argument_name(s, n) for n in subset))

        def of_vmap(outputs: Outputs, axes: Any = (of_floats, of_others)) -> Any:
            return gradients(jax.vmap(outputs, in_axes=axes))

        def of_pullback(outputs: Outputs, axes: Any = (of_floats, of_others)) -> Any:
            return jax.vmap(gradients(outputs), in_axes=(*axes, 0))

        what = f"the gradient of jax.vmap over {names}"
        yield Trial("vmap", what, of_vmap, at, (of_floats, of_others), summed)
        if len(subset) in (1, len(numbers)):
            what = f"jax.vmap over {names} of the gradient"
            yield Trial("vmap", what, of_pullback, at, (of_floats, of_others), each)


def _take(leaf: Any, index: np.ndarray) -> Any:
    return (leaf if _is_of_jax(leaf) else np.asarray(leaf))[index]


def _times(scale: float, leaf: Any) -> Any:
    return scale * leaf if _is_of_jax(leaf) else (scale * np.asarray(leaf)).astype(leaf.dtype)


def _pair(a: Any, b: Any) -> Any:
    return (jnp if _is_of_jax(a) else np).stack([a, b])


def _is_of_jax(leaf: Any) -> bool:
    """Whether leaf is a key or was a Python number; all else uses NumPy, which never compiles."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) or getattr(leaf, "weak_type", False)


def _argument_name(s: Subject, number: int) -> str:
    names = [*s.names, *s.other_names]
    leaf = names[s.arguments.index(number)]
    return leaf.split("[")[0].split(".")[0] if s.arguments.count(number) > 1 else leaf


def second_derivative(floats: Any, others: Any, dout: Any) -> Iterator[Trial]:
    """The derivative, by every argument, of the gradient along a random direction."""
    yield Trial(
        "second derivative",
        "the derivative of the gradient",
        lambda outputs: jax.grad(along_gradient(outputs)),
        (floats, others, dout),
    )


def along_gradient(outputs: Outputs) -> Callable[[Any, Any, Any], jax.Array]:
    """(floats, others, dout) -> the gradient along a random direction, a number."""

    def along(floats: Any, others: Any, dout: Any) -> jax.Array:
        random = np.random.default_rng(3)
        direction = tuple(random.standard_normal(v.shape).astype(v.dtype) for v in floats)
        return pairing(direction, gradients(outputs)(floats, others, dout))

    return along


def batch_sizes(plain: Outputs, floats: Any, others: Any) -> Iterator[Trial]:
    """More and fewer examples: other sizes of the first array's leading axis."""
    leaves = (*floats, *others)
    sizes = [leaf.shape[0] for leaf in leaves if leaf.ndim]
    if not sizes:
        return
    size = sizes[0]
    having = [i for i, leaf in enumerate(leaves) if leaf.ndim and leaf.shape[0] == size]
    subsets = [
        c for n in range(min(len(having), 4), 0, -1) for c in itertools.combinations(having, n)
    ]
    if len(having) > 4:
        subsets = [tuple(having)]

    def taken(index: np.ndarray, subset: tuple[int, ...]) -> tuple[Any, Any, Any]:
        cut = [_take(leaf, index) if i in subset else leaf for i, leaf in enumerate(leaves)]
        at = tuple(cut[: len(floats)]), tuple(cut[len(floats) :])
        return (*at, cotangents(plain, *at, 5))

    for new in (2 * size, size - 1):
        if new < 1:
            continue
        for subset in subsets:
            try:  # an axis of this size is not always the batch
                at = taken(np.arange(new) % size, subset)
            except Exception:
                continue
            distinct = new if new < size else (size + 1) // 2
            yield Trial(
                "batch size",
                f"{FEWER if new < size else 'with more'} examples ({new} instead of {size} on the "
                "leading axis)",
                gradients,
                at,
                may_point_outside=_points_between(new, size, others) or _is_ordered(others, size),
                in_usual_size=taken(np.arange(size) % distinct, subset),
            )
            break


def _points_between(new: int, old: int, others: Any) -> bool:
    """Whether an integer may be an index that is valid for size `old` but not for size `new`."""
    integers = [np.asarray(v) for v in others if jnp.issubdtype(v.dtype, jnp.integer)]
    return any(bool((((v >= new) & (v < old)) | (v < -new)).any()) for v in integers)


def _is_ordered(others: Any, size: int) -> bool:
    """Whether an integer argument is a permutation, or offsets, which another size would not be."""
    for v in others:
        if v.ndim == 1 and v.size in (size, size + 1) and jnp.issubdtype(v.dtype, jnp.integer):
            v = np.asarray(v)
            is_offsets = v.size > 2 and bool((np.diff(v) > 0).all())
            if is_offsets or np.array_equal(np.sort(v), np.arange(v.size)):
                return True
    return False


def sharded(plain: Outputs, floats: Any, others: Any, dout: Any) -> Iterator[Trial]:
    """Arguments sharded along the leading axis, on two devices or on one.

    All arrays with the leading size of the first array are sharded. A shard has at least two
    examples, because a single example could be broadcast.
    """
    devices = jax.devices()[:2]
    mesh = jax.sharding.Mesh(np.array(devices), ("d",), axis_types=(AxisType.Auto,))
    sizes = [leaf.shape[0] for leaf in (*floats, *others) if leaf.ndim]
    if not sizes or sizes[0] % len(devices) or sizes[0] < 2 * len(devices):
        return
    cut = lambda leaf: P("d") if leaf.ndim and leaf.shape[0] == sizes[0] else P()
    specs = tuple(map(cut, floats)), tuple(map(cut, others))
    at_shards = jax.tree.map(
        lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), (floats, others), specs
    )
    yield Trial(
        "sharding",
        f"with sharded arguments on {len(devices)} devices",
        gradients,
        (*at_shards, dout),
    )

    def mapped(outputs: Outputs, check: bool = False) -> Outputs:
        """`outputs` on each device separately, with its shard of the arguments."""

        def local(floats: Any, others: Any) -> Any:
            return tuple(y[None] for y in outputs(floats, others))

        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("d"), check_vma=check)

    try:  # shards of the arguments may not fit together
        each = cotangents(mapped(plain), floats, others, 6)
    except Exception:
        return
    in_shard_map = lambda check: lambda outputs: gradients(mapped(outputs, check))
    outside = _points_between(sizes[0] // len(devices), sizes[0], others)
    for kind, check in (("sharding", False), (CHECK_VMA, True)):
        yield Trial(
            kind,
            f"in jax.shard_map with check_vma={check} on {len(devices)} devices",
            in_shard_map(check),
            (floats, others, each),
            may_point_outside=outside,
        )
