"""The output layer and its loss as one rule, which never materialises all logits."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Integer

from funcnet._arguments import check_int
from funcnet._arrays import explicit_sharding, wide_dtype, widen
from funcnet._batch import batch
from funcnet.ops._labels import (
    check_class_weights,
    is_class,
    not_ignored,
    place,
    put_by_mask,
)
from funcnet.ops._masks import check_mask, keep
from funcnet.ops._types import AnyArray, Real
from funcnet.ops.softmax_cross_entropy import of_index, of_index_bwd
from funcnet.rule import rule


class _Chunk(NamedTuple):
    """What is computed at once: rows of the batch and, in the backward products, columns of w."""

    logits: int  # at most, unless this means fewer than `rows` rows
    rows: int
    columns: int | None  # None for all


# A CPU's cache holds little; elsewhere only the sum dw, which each chunk reads and writes, counts.
ON_CPU = _Chunk(3 * 2**22, 1, 1024)
ELSEWHERE = _Chunk(2**26, 2048, None)
PARTS = 16  # of dw, summed over the devices one after another: a sum needs a buffer of its size
EVENLY = 256  # devices among which a chunk is shared evenly, if the batch is


HIDDEN = -2  # in place of a label that `where` excludes


@rule(real=("h", "w", "class_weights"))
def linear_cross_entropy(
    h: Real[AnyArray, "*batch d"],
    w: Real[AnyArray, "d V"],
    labels: Integer[ArrayLike, "*batch"],
    where: Bool[ArrayLike, "*batch"] | None = None,
    class_weights: Real[ArrayLike, "V"] | None = None,
    *,
    ignore: int | None = None,
    at_once: int | None = None,
) -> Float[Array, "*batch"]:
    """The cross entropy between softmax(h w) and the labels, for each example.

        L_n = −ω[t_n] log p_n[t_n],   p_n = softmax(h_n w),   ω = 1 without class weights

    The logits h w have V numbers per example; they are computed in chunks of examples and
    discarded. The loss and the gradient are those of `softmax_cross_entropy`: they are accurate
    where p is nearly 1 at the label and where all logits share a large offset.

    The forward pass computes the gradient together with the loss, and the backward pass scales it
    by the cotangent dL of the loss. For h this is always enough. For w it is enough if dL is the
    same for all examples that count, as in a sum or a mean; otherwise, or under `vmap`,
    the logits are computed twice. So exclude examples by `where` or `ignore`, not by a factor of 0,
    and weigh classes by `class_weights`.

    Args:
      h: Inputs of the output layer, shape (..., d); all leading axes are batch axes.
      w: Weights of the output layer, shape (d, V).
      labels: t, class indices from 0 to V − 1, of shape (...) and an integer dtype. Any other index
        except `ignore`, including a negative one, gives nan.
      where: Booleans, shape (...), true for the examples that count. The others have loss 0 and
        no gradient, even if their h or their cotangents are nan or ∞.
      class_weights: ω, shape (V,).
      ignore: A label that excludes its examples in the same way. Static.
      at_once: The number of logits to compute per chunk, at least 1; the V logits of an example are
        never split. It bounds the memory; a small number costs speed. By default 12.6 million on a
        CPU; elsewhere 67 million, or those of 2,048 examples if these are more. Static.

    Returns:
      L, shape (...), with the dtype that h and w promote to.

    Raises:
      TypeError: If where is not boolean.
      ValueError: If the shapes do not fit, labels are not integers, or at_once is below 1.

    Reference: Hsu et al., Liger kernel, 2024, FusedLinearCrossEntropy, arXiv:2410.10989, for the
    gradient in the forward pass; Wijmans et al., Cut your losses in large-vocabulary language
    models, 2024, arXiv:2411.09009, for the problem.

    >>> h, w = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.eye(2)
    >>> linear_cross_entropy(h, 50 * w, jnp.array([0, 7]), ignore=7)[1].item()
    0.0
    """
    labels, ignore = _marked(h, w, labels, where, ignore)
    loss = _by_chunks(h, w, labels, None, ignore, at_once)[0]
    weight = _weight_at(class_weights, labels, h, w, ignore)
    return loss if weight is None else weight.astype(loss.dtype) * loss


def linear_cross_entropy_fwd(h, w, labels, where=None, class_weights=None, *, ignore, at_once):
    """Saves dh and dw of the sum of all losses, which have the sizes of h and w.

    With class weights, saves the loss of each example without its weight too.
    """
    arguments = h, w, labels, where, class_weights
    labels, ignore = _marked(h, w, labels, where, ignore)
    weight = _weight_at(class_weights, labels, h, w, ignore)
    one = jnp.ones(labels.shape, wide_dtype(h.dtype)) if weight is None else weight
    loss, dh, dw = _by_chunks(h, w, labels, one, ignore, at_once)
    if weight is None:
        return loss, (dh, dw, None, arguments)
    return weight.astype(loss.dtype) * loss, (dh, dw, loss, arguments)


def linear_cross_entropy_bwd(residuals, dloss, *, ignore, at_once):
    """The cotangents of h, w and class weights.

    With x_n = h_n w and dx_n = ω[t_n] (p_n − e_t), the gradient of L_n from
    `softmax_cross_entropy`,

        dh_n = dL_n dx_n wᵀ,                                                                  (1)
        dw = Σ_n dL_n h_nᵀ dx_n,   which is c Σ_n h_nᵀ dx_n if dL_n = c for all n.            (2)

    The forward pass has computed dx_n wᵀ and Σ_n h_nᵀ dx_n. An example that does not count has
    dx = 0. Each loss contains one weight, so

        dω_j = Σ_(n: t_n = j) dL_n (−log p_n[j]).                                             (3)

    Reference: Source A 3.3.4 and 3.3.8, by the chain rule.
    """
    dh, dw, loss, (h, w, labels, where, class_weights) = residuals
    labels, ignore = _marked(h, w, labels, where, ignore)
    dl = jnp.where(
        not_ignored(labels, ignore), widen(dloss), jnp.zeros((), wide_dtype(dloss.dtype))
    )
    dh = dl[..., None] * dh  # (1)
    weight = _weight_at(class_weights, labels, h, w, ignore)
    dw = _weigh(ignore, at_once, dl, dw, h, w, labels, weight)  # (2)
    dweights = None
    if weight is not None:
        zero = jnp.zeros_like(class_weights, dl.dtype).at[place(labels, w.shape[1])]
        placed = explicit_sharding(class_weights, labels, dl)
        dweights = zero.add(dl * widen(loss), mode="drop", out_sharding=placed)  # (3)
        dweights = dweights.astype(class_weights.dtype)
    return dh.astype(h.dtype), dw.astype(w.dtype), None, None, dweights


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _weigh(ignore, at_once, dl, dw, h, w, labels, weight):
    """Equation (2), computed from dw = Σ h_nᵀ dx_n if all dL_n are equal."""
    counted = not_ignored(labels, ignore)
    largest = float(jnp.finfo(dl.dtype).max)  # not ∞, which jax_debug_infs rejects
    least = jnp.min(dl, initial=largest, where=counted)
    most = jnp.max(dl, initial=-largest, where=counted)
    c = jnp.where(jnp.any(counted), most, jnp.zeros_like(most))
    differ = least < most
    # If all dL_n are equal, this loops over no chunks. A `cond` would not write over dw in place.
    dw = _by_chunks(h, w, labels, _product(dl, weight), ignore, at_once, (dw, differ))[2]
    return jnp.where(differ, jnp.ones_like(c), c) * dw


@_weigh.defjvp
def _weigh_jvp(ignore, at_once, primals, tangents):
    """Differentiates the full sum (2), because equal dL_n can have different tangents."""
    dl, _, h, w, labels, weight = primals
    dl, ddl = jax.jvp(_product, (dl, weight), (tangents[0], tangents[5]))
    in_full = lambda dl, h, w: _by_chunks(h, w, labels, dl, ignore, at_once)[2]
    along = (ddl, *tangents[2:4])
    return _weigh(ignore, at_once, *primals), jax.jvp(in_full, (dl, h, w), along)[1]


def _product(dl, weight):
    return dl if weight is None else dl * weight


def _marked(h, w, labels, where, ignore):
    """The labels with a common mark for what does not count, and this mark, or None."""
    _check(h, w, labels)
    if where is None:
        return labels, ignore
    f = "linear_cross_entropy"
    check_mask(f, where)
    if where.shape != labels.shape:
        raise ValueError(f"{f}: where must have shape {labels.shape}, got {where.shape}")
    others = jnp.where(is_class(labels, w.shape[1]), labels.astype(jnp.int32), -1)
    return jnp.where(where & not_ignored(labels, ignore), others, HIDDEN), HIDDEN


def _weight_at(weights, labels, h, w, ignore):
    """The weight of each label, and 0 for an example that does not count; None without weights."""
    if weights is None:
        return None
    check_class_weights("linear_cross_entropy", w, weights)
    wide = jnp.asarray(weights, wide_dtype(jnp.result_type(h, w))).at[place(labels, w.shape[1])]
    placed = explicit_sharding(labels, weights)
    found = wide.get(mode="fill", fill_value=jnp.nan, out_sharding=placed)
    return keep(not_ignored(labels, ignore), found)


def _by_chunks(h, w, labels, dl, ignore, at_once, onto=None) -> Any:
    """L, dL_n dx_n wᵀ and Σ dL_n h_nᵀ dx_n, in chunks of examples; only L if `dl` is None.

    `onto` is a pair of an array and a condition. If it is given, the result is only the array or,
    if the condition holds, the last sum, which is written over it.
    """
    if at_once is not None:
        check_int("linear_cross_entropy", "at_once", at_once, at_least=1)
    run = functools.partial(_by_platform, ignore=ignore, at_once=at_once)
    if (over := batch.value) is not None and labels.ndim and over.divides(len(labels)):
        return _by_devices(run, over, h, w, labels, dl, onto)
    explicit = next(filter(None, map(explicit_sharding, (h, w, labels))), None)
    if explicit is None:
        return run(h, w, labels, dl, onto)
    # Rows are distributed over chunks and summed; the compiler chooses the shardings of that.
    like_h, like_w = (explicit.update(spec=jax.typeof(x).sharding.spec) for x in (h, w))
    like_loss = explicit.update(spec=like_h.spec[:-1])
    out = (like_loss, None, None) if dl is None else (like_loss, like_h, like_w)
    out = (None, None, like_w) if onto else out
    return jax.sharding.auto_axes(out_sharding=out)(run)(h, w, labels, dl, onto)


def _by_devices(run, over, h, w, labels, dl, onto):
    """`run` on the examples of each device; dw is summed over the devices once, after all chunks.

    Each device keeps its rows of that sum, if their number allows it. The compiler alone would
    divide the examples of each chunk, and sum dw after each.
    """
    divided, whole = PartitionSpec(over.axes), PartitionSpec()
    of_dw = divided if over.divides(len(w)) else whole

    def total(dw):
        if of_dw is whole:
            return jax.lax.psum(dw, over.axes)
        parts = math.gcd(PARTS, dw.shape[1])
        each = [jax.lax.psum_scatter(p, over.axes, tiled=True) for p in jnp.split(dw, parts, 1)]
        return jnp.concatenate(each, 1)

    def share(h, w, labels, dl, onto):
        own = functools.partial(run, h, w, labels, dl, None)
        if onto is not None:
            dw, really = onto
            return None, None, jax.lax.cond(really, lambda: total(own()[2]), lambda: dw)
        loss, dh, dw = own()
        return loss, dh, None if dl is None else total(dw)

    return jax.shard_map(
        share,
        mesh=over.mesh,
        in_specs=(divided, whole, divided, divided, onto and (of_dw, whole)),
        out_specs=(divided, divided, of_dw),
        axis_names=set(over.axes),
        check_vma=False,
    )(h, w, labels, dl, onto)


def _by_platform(h, w, labels, dl, onto, *, ignore, at_once):
    """`_by_chunks_of` with the chunks that suit the platform for which it is compiled."""

    def run(chunk):
        if at_once is not None:
            chunk = chunk._replace(logits=at_once, rows=1)
        return lambda *args: _by_chunks_of(*args, ignore=ignore, chunk=chunk)

    args = h, w, labels, dl, onto
    return jax.lax.platform_dependent(*args, cpu=run(ON_CPU), default=run(ELSEWHERE))


def _number_of_chunks(n, most):
    """The number of chunks of at most `most` rows, of equal size if possible."""
    least = max(-(-n // most), 1)
    if not isinstance(n, int):
        return least  # n is a symbol of an export
    equal = [k for k in range(least, min(2 * least, n) + 1) if n % k == 0]
    return max(equal, key=lambda k: math.gcd(n // k, EVENLY), default=least)


def _by_chunks_of(h, w, labels, dl, onto, *, ignore, chunk):
    d, classes = w.shape
    n = math.prod(labels.shape)
    dtype = jnp.result_type(h, w)
    wide, w = wide_dtype(dtype), w.astype(dtype)
    chunks = _number_of_chunks(n, max(chunk.logits // classes, chunk.rows))
    size = -(-n // chunks)

    def divide(a):
        # Each chunk takes rows from the whole batch, so that devices that share the batch also
        # share each chunk.
        padded = jnp.pad(a, [(0, size * chunks - n)] + [(0, 0)] * (a.ndim - 1))
        return padded.reshape(size, chunks, *a.shape[1:]).swapaxes(0, 1)

    def unite(a, shape):
        return a.swapaxes(0, 1).reshape(size * chunks, *a.shape[2:])[:n].reshape(shape)

    index = labels.reshape(n)
    counted = not_ignored(index, ignore)
    rows = jnp.where(counted[:, None], h.reshape(n, d).astype(dtype), jnp.zeros((), dtype))
    index = jnp.where(counted, index, jnp.zeros_like(index))

    def losses(rows, index, counted):
        x = jnp.matmul(rows, w, preferred_element_type=wide)
        loss, saved = of_index(x, index, 0.0, put_by_mask)
        return jnp.where(counted, loss, jnp.zeros_like(loss)), saved

    def losses_and_gradients(dw, part, is_first=False):
        rows, index, counted, dl = part
        loss, saved = losses(rows, index, counted)
        dx = of_index_bwd(saved, dl, 0.0, put_by_mask).astype(dtype)
        dw, dh = _add_products(dw, rows, dx, w, is_first, chunk.columns)
        return dw, (loss, dh)

    parts = [divide(a) for a in (rows, index, counted)]
    if dl is None:
        _, loss = jax.lax.scan(lambda _, part: ((), losses(*part)[0]), (), parts)
        return unite(loss, labels.shape).astype(dtype), None, None
    dl = jnp.where(counted, dl.reshape(n), jnp.zeros((), dl.dtype)).astype(wide)
    parts.append(divide(dl))
    if onto is not None:
        part = lambda i: [jax.lax.dynamic_index_in_dim(a, i, keepdims=False) for a in parts]
        add = lambda i, dw: losses_and_gradients(dw, part(i), i == 0)[0]
        dw, really = onto
        return None, None, jax.lax.fori_loop(0, jnp.where(really, chunks, 0), add, dw)
    dw, (loss, dh) = jax.lax.scan(losses_and_gradients, jnp.zeros_like(w, wide), parts)
    return unite(loss, labels.shape).astype(dtype), unite(dh, h.shape), dw


def _add_products(dw, h, dx, w, is_first, columns):
    """The sums dw + hᵀ dx and dx wᵀ, in blocks of `columns` columns that fit a processor's cache.

    Without blocks, the product hᵀ dx would be another array of the size of dw on a CPU. If
    `is_first`, dw counts as 0.
    """
    classes = w.shape[1]
    width = min(classes, columns or classes)
    # The barrier keeps XLA from transposing within each product, which costs as much as the product
    # itself on a CPU, and a sixth of it on a TPU.
    across = jax.lax.optimization_barrier(h.T)

    def products(dw_j, dx_j, w_j):
        start = jnp.where(is_first, jnp.zeros_like(dw_j), dw_j)
        dh_j = jax.lax.dot_general(
            dx_j, w_j, (((1,), (1,)), ((), ())), preferred_element_type=dw.dtype
        )
        return start + jnp.matmul(across, dx_j, preferred_element_type=dw.dtype), dh_j

    if width == classes:
        return products(dw, dx, w)

    def add(sums, start, width):
        dw, dh = sums
        take = lambda a: jax.lax.dynamic_slice_in_dim(a, start, width, axis=1)
        dw_j, dh_j = products(take(dw), take(dx), take(w))
        return jax.lax.dynamic_update_slice_in_dim(dw, dw_j, start, axis=1), dh + dh_j

    sums = dw, jnp.zeros_like(h, dw.dtype)
    sums = jax.lax.fori_loop(0, classes // width, lambda j, sums: add(sums, j * width, width), sums)
    rest = classes % width
    return add(sums, classes - rest, rest) if rest else sums


def _check(h: Array, w: Array, labels: AnyArray) -> None:
    f = "linear_cross_entropy"
    if w.ndim != 2 or w.shape[1] == 0:
        raise ValueError(f"{f}: w must have shape (d, V) with V > 0, got {w.shape}")
    if h.ndim == 0 or h.shape[-1] != w.shape[0]:
        raise ValueError(
            f"{f}: h must have shape (..., {w.shape[0]}) for w {w.shape}, got {h.shape}"
        )
    if labels.shape != h.shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"{f}: labels must have shape {h.shape[:-1]} and an integer dtype, "
            f"got {labels.shape} and {labels.dtype}"
        )


linear_cross_entropy.defvjp(linear_cross_entropy_fwd, linear_cross_entropy_bwd)
