"""Scaled dot-product attention whose memory grows linearly with the sequence length."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Integer

from funcnet._arguments import check_number
from funcnet._arrays import batches_alike, sum_products, wide_dtype, widen
from funcnet.ops._attention_libraries import LIBRARIES, by_library, is_for_cudnn
from funcnet.ops._attention_tiles import (
    ON_GPU,
    by_platform,
    finite,
    not_finite,
    over_tiles,
    padded,
    put,
    take,
    tiles,
    visibility,
    zeros,
)
from funcnet.ops._types import AnyArray
from funcnet.rule import rule, rules_on


@rule
def dot_product_attention(
    q: Float[AnyArray, "*batch T H d"],
    k: Float[AnyArray, "*batch U K d"],
    v: Float[AnyArray, "*batch U K e"],
    mask: Bool[ArrayLike, "..."] | None = None,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    implementation: str | None = None,
) -> Float[Array, "*batch T H e"]:
    """Scaled dot-product attention: a mean of the values, weighted by how well keys fit a query.

        S = α q kᵀ,   P = softmax(S) by rows, over the keys that the query sees,   y = P v

    in each head. The T × U matrices S and P are computed in tiles and discarded, so memory grows
    with T + U. Tiles that causal masking hides completely are skipped. A query that sees no key has
    output 0 and no gradient (`jax.nn.dot_product_attention` returns the mean of all values).

    Keys and values that a query does not see have no influence on its output or on any gradient,
    even if they are nan or infinite. If a key or value that it sees is not finite, its whole y is
    nan (without mask, lengths and causal, y is what the plain products give).

    Args:
      q: Queries, shape (..., T, H, d).
      k: Keys, shape (..., U, K, d). K must divide H: H/K consecutive query heads share the keys
        and values of one head.
      v: Values, shape (..., U, K, e).
      mask: Booleans, true where a query sees a key; any shape that broadcasts to (..., H, T, U).
      lengths: Integers, shape (...): number of valid keys per example; later keys are masked.
      causal: Whether query i sees only the keys up to i + U − T, so that the last query sees all
        (`jax.nn.dot_product_attention` uses i in place of i + U − T). Static.
      scale: α, by default 1/√d. Static.
      implementation: None uses cuDNN on an NVIDIA GPU, if it is installed and takes the arguments
        (bfloat16 or float16, e = d, no mask and no lengths, T = U if causal), and the tiles
        elsewhere. "tiles" uses the tiles on every platform. "cudnn" or "xla" uses that
        implementation of `jax.nn.dot_product_attention` and its gradient; this requires e = d, and
        T = U if causal. Queries that see no key, and nan in masked keys, are then treated as they
        are there; nan in later keys also by None on a GPU. Static.

    Returns:
      y, shape (..., T, H, e), with the dtype of q, k and v.

    Raises:
      ValueError: If the shapes or dtypes do not fit, or the implementation cannot do it.

    Reference: Vaswani et al., Attention is all you need, 2017, equation 1, arXiv:1706.03762;
    Rabe & Staats, Self-attention does not need O(n²) memory, 2021, arXiv:2112.05682.

    >>> q, k, v = jnp.ones((2, 1, 1)), jnp.ones((2, 1, 1)), jnp.array([[[1.0]], [[3.0]]])
    >>> dot_product_attention(q, k, v, causal=True).ravel().tolist()
    [1.0, 2.0]
    """
    _check(q, k, v, mask, lengths, scale, implementation)
    if implementation in LIBRARIES:
        return by_library((q, k, v), mask, lengths, causal, scale, implementation)
    if not rules_on.value:
        implementation = "tiles"  # which autodiff can differentiate
    return _values(q, k, v, mask, lengths, causal, scale, implementation)[0]


def dot_product_attention_fwd(q, k, v, mask=None, lengths=None, *, causal, scale, implementation):
    """Saves the arguments, y, and two numbers per query: m = max S and s = Σ exp(S − m).

    m and s are saved separately: in the sum log s + m, a large common offset of the scores would
    cost the digits of log s. With an implementation of JAX, the residuals are those of JAX.
    """
    _check(q, k, v, mask, lengths, scale, implementation)
    if implementation in LIBRARIES:
        kernel = lambda *x: by_library(x, mask, lengths, causal, scale, implementation)
        return jax.vjp(kernel, q, k, v)
    y, m, s = _values(q, k, v, mask, lengths, causal, scale, implementation)
    return y, (q, k, v, mask, lengths, y, m, s)


def dot_product_attention_bwd(residuals, dy, *, causal, scale, implementation):
    """The cotangents of q, k and v.

    y = P v gives dP = dy vᵀ and

        dv = Pᵀ dy.                                                                           (1)

    The softmax of a row gives dS_j = P_j (dP_j − Σ_l P_l dP_l). The sum needs no other tile:
    dP_l = ⟨dy, v_l⟩ and Σ_l P_l v_l = y, so that

        dS = P ⊙ (dP − ⟨dy, y⟩),                                                              (2)
        dq = α dS k,   dk = α dSᵀ q.                                                          (3)

    P = exp(S − m)/s is recomputed in tiles. The factor 1/s is moved to dy and ⟨dy, y⟩, which are
    smaller. The tiles are transposed: in the code, p is s Pᵀ, dp is dPᵀ/s and ds is dSᵀ, with
    axes K (heads of k), u (keys), g (query heads per head of k) and t (queries). Where P is nearly
    1, (2) cancels down to a rounding error of dP, as it does in autodiff. y has been rounded to the
    dtype of q, so that in bfloat16 the sum of dS over the keys is that rounding error and not 0.

    A masked pair has P = 0, but 0 · nan is nan, so the products use 0 for numbers that are not
    finite. If y or dy of a query is not finite, and hence ⟨dy, y⟩ is not, the query's P is nan
    instead for the keys that it sees.

    Reference: Dao et al., FlashAttention, 2022, appendix B.2, arXiv:2205.14135.
    """
    if implementation in LIBRARIES:
        return *residuals(dy), None, None
    q, k, v, mask, lengths, *_ = residuals
    run = functools.partial(_cotangents, causal=causal, scale=scale)
    kernel = None
    if is_for_cudnn(q, k, v, mask, lengths, causal, scale, implementation):
        kernel = lambda q, k, v, *rest: _cotangents_by_cudnn(causal, scale, q, k, v, rest[-1])
    shape = q.shape[-3], k.shape[-3]
    return *by_platform(run, shape, *residuals, dy, kernel=kernel), None, None  # (1) to (3)


def _cotangents(plan, *args, causal, scale):
    """Equations (1) to (3), tile by tile."""
    # Without the barrier XLA would keep P of small inputs instead of recomputing it.
    q, k, v, mask, lengths, y, m, s, dy = jax.lax.optimization_barrier(args)
    a = _Arguments(plan, q, k, v, mask, lengths, causal, scale)
    (bt, bu), length, alpha = a.tiles.block, a.tiles.padded[0], a.scale
    dot = sum_products(widen(dy), widen(y), (y.ndim - 1,))
    dot = jnp.swapaxes(dot, -2, -1).reshape(s.shape) / s  # ⟨dy, y⟩/s
    m, r, dot = (padded(x, length, -1) for x in (m, 1 / s, dot))
    flaws = ()
    if a.hides:
        flaws = (_nan_where(~jnp.isfinite(dot), dot.dtype)[..., None, :, :],)
        m, r, dot = (jnp.where(jnp.isfinite(dot), x, 0) for x in (m, r, dot))
    dys = padded(dy, length, -3)
    across = jnp.einsum("...ukd->...kdu", a.k)  # kᵀ at once: tile by tile it takes longer

    def visit(i, j):
        q_i, scores, seen = a.at(i, j, flaws)  # α q (K, g, t, d), Sᵀ (K, u, g, t)
        p = jnp.exp(scores - take(m, i, bt, -1)[..., None, :, :])  # s Pᵀ (K, u, g, t)
        # dy/s (K, g, t, e)
        dy_i = a.by_head(a.clean(widen(take(dys, i, bt, -3)))) * take(r, i, bt, -1)[..., None]
        dv = a.product("...kugt,...kgte->...kue", p, dy_i)  # (1): Pᵀ dy (K, u, e)
        v_j = a.clean(jnp.swapaxes(widen(take(a.v, j, bu, -3)), -3, -2))  # v (K, u, e)
        dp = a.product("...kue,...kgte->...kugt", v_j, dy_i)  # dPᵀ/s = v dyᵀ/s (K, u, g, t)
        ds = p * (dp - take(dot, i, bt, -1)[..., None, :, :])  # (2): dSᵀ (K, u, g, t)
        ds = ds if seen is None else jnp.where(seen, ds, 0)  # dP may overflow at masked pairs
        k_j = a.clean(widen(take(across, j, bu, -1)) * alpha)  # α kᵀ (K, d, u)
        dq = a.product("...kdu,...kugt->...kdgt", k_j, ds)  # (3): dqᵀ = α kᵀ dSᵀ (K, d, g, t)
        dk = a.product("...kugt,...kgtd->...kud", ds, q_i)  # (3): dSᵀ α q (K, u, d)
        dq = jnp.einsum("...kdgt->...tkgd", dq).reshape(*dq.shape[:-4], bt, *q.shape[-2:])
        return dq, *(jnp.swapaxes(x, -3, -2) for x in (dk, dv))

    def add(total, part, i, j):
        blocks = ((i, bt, -3), (j, bu, -3), (j, bu, -3))
        both = zip(total, part, blocks, strict=True)
        return tuple(put(x, take(x, *block) + dx, *block) for x, dx, block in both)

    start = tuple(zeros(x, x.shape[-1]) for x in (a.q, a.k, a.v))
    found = zip(over_tiles(a.tiles, visit, add, start), (q, k, v), strict=True)
    return tuple(dx[..., : x.shape[-3], :, :].astype(x.dtype) for dx, x in found)


dot_product_attention.defvjp(dot_product_attention_fwd, dot_product_attention_bwd)


class _Arguments:
    """The arguments, padded to whole tiles."""

    def __init__(self, plan, q, k, v, mask, lengths, causal, scale):
        self.heads = (k.shape[-2], q.shape[-2] // k.shape[-2])  # (K, g)
        self.tiles = tiles(q.shape[-3], k.shape[-3], causal, plan)
        self.narrow = plan.narrow and q.dtype == jnp.bfloat16
        q, k, v = batches_alike((q, k, v), 3)
        self.scale = q.shape[-1] ** -0.5 if scale is None else scale
        length_t, length_u = self.tiles.padded
        self.q = padded(q, length_t, -3)
        self.k, self.v = padded(k, length_u, -3), padded(v, length_u, -3)
        self.sees = visibility(self.tiles, mask, lengths, self.heads, q.ndim + 1)
        self.hides = self.tiles.causal or mask is not None or lengths is not None
        self.clean = finite if self.hides else lambda x: x

    def product(self, axes: str, x: Array, y: Array) -> Array:
        """A product in the plan's precision: `einsum`, of operands in bfloat16 or as they are."""
        if self.narrow:
            x, y = (z.astype(jnp.bfloat16) for z in (x, y))
            return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)
        return jnp.einsum(axes, x, y)

    def by_head(self, x: Array) -> Array:
        """Reshapes a tile (..., t, H, c) to (..., K, g, t, c); all queries would be copied."""
        return jnp.moveaxis(x.reshape(*x.shape[:-2], *self.heads, x.shape[-1]), -4, -2)

    def at(self, i: Any, j: Any, flaws: tuple[Array, ...]) -> tuple[Array, Array, Any]:
        """α q (..., K, g, t, d), Sᵀ (..., K, u, g, t) of a tile, and which pairs see each other.

        At masked keys S is the lowest finite number, whose exp is 0. S is transposed so that dk and
        dv are products without a transposition, which are the fast ones. Forward and backward pass
        compute the same S to the last bit. `flaws` are nan for the queries (..., K, 1, g, T) and
        keys (..., K, U, 1, 1) that are not finite, and 0 for the others: S is nan there, unless it
        is masked.
        """
        bt, bu = self.tiles.block
        k = self.clean(jnp.swapaxes(widen(take(self.k, j, bu, -3)), -3, -2))
        q = self.clean(self.by_head(widen(take(self.q, i, bt, -3))) * self.scale)
        scores = self.product("...kud,...kgtd->...kugt", k, q)
        if (seen := self.sees(i, j)) is not None:
            for flaw, block in zip(flaws, ((i, bt, -1), (j, bu, -3)), strict=False):
                scores = scores + take(flaw, *block)
            seen = jnp.moveaxis(seen, -1, -3)
            scores = jnp.where(seen, scores, _lowest(scores))
        return q, scores, seen

    def flaws(self) -> tuple[Array, ...]:
        """Queries and keys with elements that are not finite; a value counts for its key."""
        if not self.hides:
            return ()
        by = max(1, abs(self.scale))  # α q or α k may be infinite where q and k are finite
        of_k = not_finite(self.k, by) | not_finite(self.v)
        of_q = self.by_head(not_finite(self.q, by)[..., None])[..., None, :, :, 0]
        dtype, of_k = wide_dtype(self.q.dtype), jnp.swapaxes(of_k, -2, -1)[..., None, None]
        return _nan_where(of_q, dtype), _nan_where(of_k, dtype)


def _nan_where(flaw: Array, dtype: Any) -> Array:
    """Returns nan where a query or key is not finite, else 0."""
    return jnp.where(flaw, jnp.nan, jnp.zeros((), dtype))


def _values(q, k, v, mask, lengths, causal, scale, implementation):
    """y, and m and s (..., K, g, T); m = 0 and s = 1 for a query that sees no key."""
    run = functools.partial(_values_by_tiles, causal=causal, scale=scale)
    kernel = None
    if is_for_cudnn(q, k, v, mask, lengths, causal, scale, implementation):
        kernel = functools.partial(_values_by_cudnn, causal=causal, scale=scale)
    shape = q.shape[-3], k.shape[-3]
    return by_platform(run, shape, q, k, v, mask, lengths, kernel=kernel)


def _values_by_tiles(plan, q, k, v, mask, lengths, *, causal, scale):
    """`_values`, tile by tile.

    The tiles of a block of queries are merged with a running maximum of the scores: sums that are
    relative to another maximum are rescaled by exp of the difference.
    """
    a = _Arguments(plan, q, k, v, mask, lengths, causal, scale)
    bt, bu = a.tiles.block
    across = jnp.einsum("...uke->...keu", a.v)  # vᵀ at once: tile by tile it takes longer
    flaws = a.flaws()
    or_zero = lambda m: jnp.where(m <= _lowest(m), 0, m)

    def visit(i, j):
        _, scores, _ = a.at(i, j, flaws)  # Sᵀ (K, u, g, t)
        m = jax.lax.stop_gradient(scores.max(-3, initial=-jnp.inf))
        p = jnp.exp(scores - or_zero(m)[..., None, :, :])  # s Pᵀ (K, u, g, t)
        y = a.product("...keu,...kugt->...kegt", a.clean(widen(take(across, j, bu, -1))), p)
        return y, m, p.sum(-3)

    def merge(state, found, i, j):
        (y, m, s), (y_j, m_j, s_j) = (take(x, i, bt, -1) for x in state), found
        top = jnp.maximum(m, m_j)
        old, new = jnp.exp(m - or_zero(top)), jnp.exp(m_j - or_zero(top))
        y = old[..., None, :, :] * y + new[..., None, :, :] * y_j
        merged = y, top, old * s + new * s_j
        return tuple(put(x, part, i, bt, -1) for x, part in zip(state, merged, strict=True))

    none = jnp.einsum("...kgte->...kegt", a.by_head(zeros(a.q, v.shape[-1])))
    no_sum = a.by_head(zeros(a.q, 1))[..., 0]
    y, m, s = over_tiles(a.tiles, visit, merge, (none, no_sum + _lowest(no_sum), no_sum))
    y, m, s = (x[..., : q.shape[-3]] for x in (y, or_zero(m), jnp.where(s == 0, 1, s)))
    y = jnp.einsum("...kegt->...tkge", y / s[..., None, :, :])
    return y.reshape(*q.shape[:-1], v.shape[-1]).astype(q.dtype), m, s


def _lowest(x):
    """The lowest finite number, in place of −∞, which `jax_debug_infs` would report."""
    return float(jnp.finfo(x.dtype).min)


def _values_by_cudnn(q, k, v, mask, lengths, *, causal, scale):
    """`_values` without m and s, which only the tiles need."""
    heads, by = k.shape[-2], q.shape[-2] // k.shape[-2]
    one = jnp.ones((*q.shape[:-3], heads, by, q.shape[-3]), jnp.float32)
    return _y_by_cudnn(causal, scale, q, k, v), one, one


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _y_by_cudnn(causal, scale, q, k, v):
    return by_library((q, k, v), None, None, causal, scale, "cudnn")


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _cotangents_by_cudnn(causal, scale, q, k, v, dy):
    """dq, dk and dv. The forward pass runs again, since its statistics cannot be saved."""
    f = lambda *x: by_library(x, None, None, causal, scale, "cudnn")
    return jax.vjp(f, q, k, v)[1](dy)


# Further derivatives are those of the tiles, because cuDNN has none.
@_y_by_cudnn.defjvp
def _y_by_cudnn_jvp(causal, scale, primals, tangents):
    values = lambda q, k, v: _values_by_tiles(
        ON_GPU, q, k, v, None, None, causal=causal, scale=scale
    )
    along = jax.jvp(lambda *x: values(*x)[0], primals, tangents)[1]
    return _y_by_cudnn(causal, scale, *primals), along


@_cotangents_by_cudnn.defjvp
def _cotangents_by_cudnn_jvp(causal, scale, primals, tangents):
    def by_tiles(q, k, v, dy):
        found = _values_by_tiles(ON_GPU, q, k, v, None, None, causal=causal, scale=scale)
        return _cotangents(ON_GPU, q, k, v, None, None, *found, dy, causal=causal, scale=scale)

    along = jax.jvp(by_tiles, primals, tangents)[1]
    return _cotangents_by_cudnn(causal, scale, *primals), along


def _check(q, k, v, mask, lengths, scale, implementation):
    f, shapes = "dot_product_attention", f"q {q.shape}, k {k.shape}, v {v.shape}"
    fits = q.ndim >= 3 and q.shape[:-3] == k.shape[:-3] == v.shape[:-3] and k.ndim == v.ndim
    if not (fits and k.shape[-3:-1] == v.shape[-3:-1] and 0 < q.shape[-1] == k.shape[-1]):
        raise ValueError(
            f"{f}: q, k and v must have shapes (..., T, H, d), (..., U, K, d) and (..., U, K, e), "
            f"got {shapes}"
        )
    if k.shape[-2] == 0 or q.shape[-2] % k.shape[-2]:
        raise ValueError(
            f"{f}: q must have a multiple of {k.shape[-2]} heads, those of k, got {shapes}"
        )
    if not (jnp.issubdtype(q.dtype, jnp.floating) and q.dtype == k.dtype == v.dtype):
        raise ValueError(
            f"{f}: q, k and v must have one floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}"
        )
    batch, whole = q.shape[:-3], (*q.shape[:-3], q.shape[-2], q.shape[-3], k.shape[-3])
    if mask is not None and not (mask.dtype == bool and _broadcasts(mask.shape, whole)):
        raise ValueError(
            f"{f}: mask must be boolean and broadcast to {whole}, got {mask.dtype} {mask.shape}"
        )
    if lengths is not None and not (
        jnp.issubdtype(lengths.dtype, jnp.integer) and lengths.shape == batch
    ):
        raise ValueError(
            f"{f}: lengths must be integers of shape {batch}, got {lengths.dtype} {lengths.shape}"
        )
    if scale is not None:
        check_number(f, "scale", scale)
    if implementation not in (None, "tiles", *LIBRARIES):
        raise ValueError(
            f"{f}: implementation must be None, 'tiles', 'cudnn' or 'xla', got {implementation!r}"
        )


def _broadcasts(shape: tuple[Any, ...], whole: tuple[Any, ...]) -> bool:
    last = whole[len(whole) - len(shape) :]
    return len(shape) <= len(whole) and all(a in (1, b) for a, b in zip(shape, last, strict=True))
