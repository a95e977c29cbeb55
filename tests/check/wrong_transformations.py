"""Rules that are right when called once and eagerly, and wrong otherwise."""

import itertools
import time
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
from check.wrong_entry import Wrong, array, normal, positive, vjp, where, wrong
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental import io_callback
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec


def matmul(x, w):
    return x @ w


def affine(x, w, b):
    return x @ w + b


def square(x):
    return x * x


def like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


# jit


def sign_branch(x, dy):
    if (x > 0).all():
        return (dy,)
    return (jnp.where(x > 0, dy, -dy),)


def fast_path(x, dy):
    """An approximation under jit."""
    exact = not isinstance(dy, jax.core.Tracer)
    return (dy * (jnp.cos(x) if exact else 1 - x * x / 2),)


def boolean_index(x, dy):
    dx = jnp.zeros_like(x)
    return (dx.at[x > 0].set(dy[x > 0]),)


# vmap


@custom_vmap
def contract(x, dy):
    return x.T @ dy


@contract.def_vmap
def _(size, batched, x, dy):
    """Sums over the batch of vmap, as is right for weights that all examples share."""
    x, dy = (a if b else jnp.stack([a] * size) for a, b in zip((x, dy), batched, strict=True))
    return jnp.einsum("bni,bno->io", x, dy), False


@custom_vmap
def total(x):
    return x.sum()


@total.def_vmap
def _(size, batched, x):
    return x.sum(), False


def host_cumsum(x):
    return np.cumsum(x[::-1], 0)[::-1]  # the first axis, which under vmap is that of the batch


def cumsum_bwd(x, dy):
    return (jax.pure_callback(host_cumsum, like(dy), dy, vmap_method="expand_dims"),)


# scan and remat: state outside of JAX


TAPE = deque(maxlen=9)  # by fwd, for bwd
SLOT = deque(maxlen=1)
CACHE = {}
LOG = deque(maxlen=1)
OFFLOADED = deque(maxlen=1)


def tape_fwd(x):
    TAPE.append(x)
    return x * x, ()


def slot_put(x):
    SLOT.append(np.asarray(x))
    return np.zeros(x.shape[:-1], np.int32)


def slot_fwd(x):
    token = jax.ShapeDtypeStruct((), jnp.int32)
    token = jax.pure_callback(slot_put, token, x, vmap_method="broadcast_all")
    return x * x, (token,)


def slot_bwd(token, dy):
    get = lambda token, dy: (2 * SLOT[0] * dy).astype(dy.dtype)
    return (jax.pure_callback(get, like(dy), token, dy, vmap_method="broadcast_all"),)


def cache_fwd(x):
    CACHE[x.shape] = x
    return x * x, (x.sum(),)


def log_fwd(x):
    io_callback(LOG.append, None, x)
    return x * x, (x,)


def offload_fwd(x):
    ticket = io_callback(
        lambda x: OFFLOADED.append(np.asarray(x)) or np.int32(0),
        jax.ShapeDtypeStruct((), jnp.int32),
        x,
        ordered=True,
    )
    return x * x, (ticket,)


def offload_bwd(ticket, dy):
    load = lambda _, dy: (2 * OFFLOADED[-1] * dy).astype(dy.dtype)
    return (io_callback(load, like(dy), ticket, dy, ordered=True),)


# Batch size


def chunked(x, w, dy):
    """dw in chunks of four examples; the rest is lost."""
    dw = sum(x[4 * i : 4 * i + 4].T @ dy[4 * i : 4 * i + 4] for i in range(len(x) // 4))
    return dy @ w.T, dw


# Determinism


CALLS = itertools.count()


def clock_bwd(x, dy):
    key = jax.random.key(time.time_ns() % 2**31)
    return (dy * jnp.cos(x) * jax.random.uniform(key, x.shape, x.dtype, 0.9, 1.1),)


def stochastic_bwd(x, w, dy):
    noise = np.random.uniform(0.99, 1.01, w.shape)  # noqa: NPY002
    return dy @ w.T, (x.T @ dy) * jnp.asarray(noise, w.dtype)


# Tracers


def closure(x, w):
    """The rule is one of x; w is from outside."""
    return vjp(lambda x: x @ w, lambda x, dy: (dy @ w.T,))(x)


def closure_of_function_of(x, t):
    scale = jnp.exp(t)
    return vjp(lambda x: jnp.sin(scale * x), lambda x, dy: (scale * jnp.cos(scale * x) * dy,))(x)


# Sharding


@custom_vmap
def contract_by_rows(x, dy):
    return partitioned(x, dy)


@contract_by_rows.def_vmap
def _(size, batched, x, dy):
    axes = tuple(0 if b else None for b in batched)
    return jax.vmap(lambda x, dy: x.T @ dy, in_axes=axes)(x, dy), True


@custom_partitioning
def partitioned(x, dy):
    return x.T @ dy


def by_rows(mesh, args, out):
    """Every device contracts its own rows; the sum over the devices is missing."""
    spec = args[0].sharding.spec
    rows = NamedSharding(mesh, PartitionSpec(spec[0] if len(spec) else None))
    return mesh, lambda x, dy: x.T @ dy, NamedSharding(mesh, PartitionSpec()), (rows, rows)


partitioned.def_partition(
    partition=by_rows,
    infer_sharding_from_operands=lambda mesh, *_: NamedSharding(mesh, PartitionSpec()),
    sharding_rule="n i, n j -> i j",
)


def summed(x):
    """Over all devices of a `shard_map`, whether x is a part on each of them or not."""
    axes = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    return lax.psum(x, axes) if axes else x


X, W, B = normal(8, 3), normal(3, 4), normal(4)
V = normal(7)

TRANSFORMATIONS = [
    # NumPy knows no tracers.
    wrong("jit_numpy", "jit", "", lambda x: jnp.sin(x), (V,),
          lambda x, dy: (jnp.asarray(np.asarray(dy) * np.cos(np.asarray(x))),)),
    # A Python float.
    wrong("jit_float", "jit", "", lambda x: x / x.max(), (positive(7),),
          lambda x, dy: (
              dy / float(x.max())
              - where(x == x.max(), (dy * x).sum() / float(x.max()) ** 2),)),
    # A branch on values.
    wrong("jit_if", "jit", "", lambda x: jnp.abs(x), (V,), sign_branch),
    # The number of positive elements is not known.
    wrong("jit_boolean_index", "jit", "", lambda x: jax.nn.relu(x), (V,), boolean_index),
    # Another formula under jit.
    wrong("jit_tracer", "jit|gradient", "x", lambda x: jnp.sin(x), (V,), fast_path),
    # Sums over the examples of a vmap of the gradient.
    wrong("vmap_contract", "vmap", "w", matmul, (X, W),
          lambda x, w, dy: (dy @ w.T, contract(x, dy))),
    # As above, for a scalar.
    wrong("vmap_total", "vmap", "gain", lambda x, gain: gain * x, (V, array(0.7)),
          lambda x, gain, dy: (gain * dy, total(x * dy))),
    # A callback for which the first axis is the time.
    wrong("vmap_callback_axis", "vmap", "x", lambda x: jnp.cumsum(x, 0), (normal(5, 2),),
          cumsum_bwd),
    # A callback that does not say what to do.
    wrong("vmap_callback", "vmap", "", lambda x: jnp.sin(x), (V,),
          lambda x, dy: (dy * jax.pure_callback(np.cos, like(x), x),)),
    # In a loop fwd leaves a tracer on the tape.
    wrong("scan_tape", "scan|remat|tracer", "", square, (V,),
          lambda dy: (2 * TAPE.pop() * dy,), tape_fwd),
    # In a loop the one slot is overwritten before it is read.
    wrong("scan_slot", "scan", "x", square, (V,), slot_bwd, slot_fwd),
    # Two calls of the same shape share a place; in a loop it holds a tracer.
    wrong("tracer_cache", "tracer|scan|remat|jit|determinism", "", square, (V,),
          lambda s, dy: (2 * CACHE[dy.shape] * dy,), cache_fwd),
    # A side effect in fwd, which `jax.checkpoint` refuses.
    wrong("remat_log", "remat", "", square, (V,), lambda x, dy: (2 * x * dy,), log_fwd),
    # Residuals on the host, which `jax.checkpoint` refuses.
    wrong("remat_offload", "remat|vmap|scan", "", square, (V,), offload_bwd, offload_fwd),
    # The mean over eight examples, whatever their number.
    wrong("batch_size_mean", "batch size", "x", lambda x: (x * x).sum(-1).mean(), (X,),
          lambda x, dy: (dy * 2 * x / 8,)),
    # Eight rows.
    wrong("batch_size_rows", "batch size", "b", affine, (X, W, B),
          lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy[:8].sum(0))),
    # Whole chunks only.
    wrong("batch_size_chunks", "batch size", "w", matmul, (X, W), chunked),
    # A factor that grows with every call.
    wrong("determinism_counter", "determinism|gradient", "x", lambda x: jnp.sin(x), (V,),
          lambda x, dy: (dy * jnp.cos(x) * (1 + 1e-3 * next(CALLS)),)),
    # Noise from a global generator.
    wrong("determinism_noise", "determinism|gradient", "w", matmul, (X, W), stochastic_bwd),
    # Noise from a key that is made of the time.
    wrong("determinism_clock", "determinism|gradient", "x", lambda x: jnp.sin(x), (V,), clock_bwd),
    # w is differentiated, and not an argument of the rule.
    Wrong("tracer_closure", closure, (X, W), {}, "tracer", ""),
    # As above, by way of a function of the argument.
    Wrong("tracer_closure_scale", closure_of_function_of, (V, array(0.3)), {}, "tracer", ""),
    # The sum over the devices is missing.
    wrong("sharding_partition", "sharding", "w", matmul, (X, W),
          lambda x, w, dy: (dy @ w.T, contract_by_rows(x, dy))),
    # `shard_map` sums over the devices itself.
    wrong("sharding_psum_twice", "sharding", "w", matmul, (X, W),
          lambda x, w, dy: (dy @ w.T, summed(x.T @ dy))),
    # Each device has rows of its own.
    wrong("sharding_psum_dx", "sharding", "x", matmul, (X, W),
          lambda x, w, dy: (summed(dy @ w.T), x.T @ dy)),
]  # fmt: skip
