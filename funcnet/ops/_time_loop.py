"""Loops over time: axis order, masking by sequence length, and sums over all steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from funcnet._arrays import batch_like, explicit_sharding, wide_dtype
from funcnet.ops.activations import bell


def check_sequence(
    f: str, x: jax.Array, h0: jax.Array, lengths: jax.Array | None, **others: jax.Array
) -> None:
    """Checks that x (..., T, I), h0 (..., H) and lengths (...) have the same batch axes."""
    _check_real(f, x=x, h0=h0, **others)
    if x.ndim < 2:
        raise ValueError(f"{f}: x must have shape (..., T, I), got {x.shape}")
    batch = x.shape[:-2]
    if h0.ndim != x.ndim - 1 or h0.shape[:-1] != batch:
        raise ValueError(
            f"{f}: h0 must have shape (..., H) with the batch axes {batch} of x {x.shape}, "
            f"got {h0.shape}"
        )
    for name, other in others.items():
        if other.shape != h0.shape:
            raise ValueError(f"{f}: {name} must have the shape {h0.shape} of h0, got {other.shape}")
    if lengths is None:
        return
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"{f}: lengths must be integers, got {lengths.dtype}")
    if lengths.shape != batch:
        raise ValueError(
            f"{f}: lengths must have shape {batch} for x {x.shape}, got {lengths.shape}"
        )


def check_weights(
    f: str,
    gates: int,
    x: jax.Array,
    h0: jax.Array,
    w_x: jax.Array,
    w_h: jax.Array,
    **biases: jax.Array | None,
) -> None:
    """Checks the shapes for g concatenated gates: w_x (I, gH), w_h (H, gH), biases (gH,)."""
    arrays = {"w_x": w_x, "w_h": w_h} | {k: b for k, b in biases.items() if b is not None}
    _check_real(f, **arrays)
    rows, columns = h0.shape[-1], gates * h0.shape[-1]
    expected = {"w_x": (x.shape[-1], columns), "w_h": (rows, columns)}
    for name, array in arrays.items():
        shape = expected.get(name, (columns,))
        if array.shape != shape:
            raise ValueError(
                f"{f}: {name} must have shape {shape} for x {x.shape} and h0 {h0.shape}, "
                f"got {array.shape}"
            )


def _check_real(f: str, **arrays: jax.Array) -> None:
    for name, array in arrays.items():
        if jnp.iscomplexobj(array):
            raise TypeError(f"{f}: {name} must be real, got {array.dtype}")


def widen_alike(*arrays: Any) -> tuple[Any, list[Any]]:
    """The floating dtype all arrays promote to, and the arrays cast to it, at least to float32.

    An array may be None, a bias that is not there.
    """
    dtype = jnp.result_type(*(a for a in arrays if a is not None))
    if not jnp.issubdtype(dtype, jnp.inexact):
        dtype = jnp.result_type(float)
    return dtype, [None if a is None else a.astype(wide_dtype(dtype)) for a in arrays]


def valid_steps(x: jax.Array, lengths: jax.Array | None) -> jax.Array | None:
    """Mask of the steps within each sequence's length, shape (T, ..., 1); None without lengths."""
    if lengths is None:
        return None
    dtype = jnp.int32 if lengths.dtype.itemsize < 4 else lengths.dtype  # wide enough for T
    steps = jnp.arange(x.shape[-2], dtype=dtype).reshape(-1, *[1] * lengths.ndim)
    return (steps < lengths.astype(dtype)[None])[..., None]


def zero_unless(valid: jax.Array | None, x: jax.Array) -> jax.Array:
    """Replaces x by 0 where it is not valid."""
    return x if valid is None else jnp.where(valid, x, jnp.zeros_like(x))


def time_first(x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Moves axes (..., T, n) to (T, ..., n), for `scan_time`; masked steps become 0."""
    return zero_unless(valid, jnp.moveaxis(x, -2, 0))


def as_row(b: jax.Array | None, h0: jax.Array) -> jax.Array | None:
    """Reshapes a bias (n,) to the number of axes of a state (..., H)."""
    return None if b is None else jnp.expand_dims(b, tuple(range(h0.ndim - 1)))


def plus(a: jax.Array, b: jax.Array | None) -> jax.Array:
    """Adds a bias, if there is one."""
    return a if b is None else a + b


def time_last(x: jax.Array) -> jax.Array:
    """Moves axes (T, ..., n) to (..., T, n)."""
    return jnp.moveaxis(x, 0, -2)


def scan_time(
    step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    inputs: Any,
    valid: jax.Array | None,
    *,
    reverse: bool,
) -> tuple[Any, Any]:
    """Masked `jax.lax.scan`: a sequence's state is frozen past its length.

    At steps that are not valid the state does not change, and the outputs are 0.
    """

    def masked(state: Any, slices: Any) -> tuple[Any, Any]:
        now, inputs = slices
        new, outputs = step(state, inputs)
        if now is None:
            return new, outputs
        new = jax.tree.map(lambda a, b: jnp.where(now, a, b), new, state)
        return new, jax.tree.map(lambda y: zero_unless(now, y), outputs)

    return lax.scan(masked, state, (valid, inputs), reverse=reverse)


def states_before(
    hs: jax.Array, h0: jax.Array, valid: jax.Array | None, *, reverse: bool
) -> jax.Array:
    """The states before each step (T, ..., H), starting with h0, from those after (..., T, H).

    In reverse, a sequence starts at its last valid step, and the state before it is read from the
    next step, which is masked. So h0 is put at all masked steps.
    """
    first, hs = batch_like(h0, hs)[None], time_first(hs)
    if valid is not None:
        hs = jnp.where(valid, hs, first)
    if hs.shape[0] == 0:
        return hs
    return jnp.concatenate([hs[1:], first] if reverse else [first, hs[:-1]])


def sum_of_products(left: jax.Array, right: jax.Array, like: jax.Array) -> jax.Array:
    """Σ left_i right_j over time and batch as one matrix product, sharded like `like`.

    In a product that contracts more than one axis, XLA:CPU adds all terms one by one, so it rounds
    more than autodiff's sum of the products of each step. Merging time and batch into one axis
    would avoid this, but devices that share the batch would have to gather all of it.
    """
    axes = tuple(range(left.ndim - 1))
    return lax.dot_general(
        left,
        right,
        ((axes, axes), ((), ())),
        out_sharding=explicit_sharding(like, left, right),
    )


def sum_of_steps(x: jax.Array) -> jax.Array:
    """Sums over time and batch; the result has shape (n,)."""
    return x.sum(tuple(range(x.ndim - 1)))


def sigmoid_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sigmoid y = s(x) and y′ = s(x) s(−x), because y(1 − y) would round to 0 in the tail."""
    return lax.logistic(x), bell(x)


def tanh_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tanh t = 2 s(2x) − 1 and t′ = 4 s(2x) s(−2x), because 1 − t² would round to 0."""
    return jnp.tanh(x), 4 * bell(2 * x)
