"""Scaled dot-product attention whose memory grows linearly with the sequence length."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Integer, PRNGKeyArray

from funcnet._arrays import sum_products, widen
from funcnet.ops._attention_arguments import LIBRARIES, Arrays, Options, check
from funcnet.ops._attention_libraries import by_library, is_for_cudnn
from funcnet.ops._attention_scores import Scores, lowest, nan_where
from funcnet.ops._attention_tiles import ON_GPU, by_platform, over_tiles, padded, put, take, zeros
from funcnet.ops._types import AnyArray, Number
from funcnet.rule import rule, rules_on

if TYPE_CHECKING:
    Attended = Array  # a type checker lets it be used as one array, and unpacked as two
else:
    Attended = (
        Float[Array, "*batch T H e"]
        | tuple[Float[Array, "*batch T H e"], Float[Array, "*batch T H"]]
    )


@rule
def dot_product_attention(
    q: Float[AnyArray, "*batch T H d"],
    k: Float[AnyArray, "*batch U K d"],
    v: Float[AnyArray, "*batch U K e"],
    mask: Bool[ArrayLike, "..."] | None = None,
    lengths: Integer[ArrayLike, "*batch"] | None = None,
    bias: Float[ArrayLike, "..."] | None = None,
    dropout_key: PRNGKeyArray | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    dropout_rate: Number = 0.0,
    return_lse: bool = False,
    implementation: str | None = None,
) -> Attended:
    """Scaled dot-product attention: a mean of the values, weighted by how well keys fit a query.

        S = α q kᵀ,   P = softmax(S) by rows, over the keys that the query sees,   y = P v

    in each head. With a soft cap c, S is c tanh(α q kᵀ / c); a bias B is added to that. With
    dropout, each element of P is set to 0 with probability p, and the others are divided by 1 − p.
    The T × U matrices S and P are computed in tiles and discarded, so memory grows with T + U.
    Tiles that causal masking or a window hides completely are skipped. A query that sees no key has
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
      bias: B, of a floating dtype; any shape that broadcasts to (..., H, T, U). It has a gradient.
        −∞ hides a key, but not a nan in it.
      dropout_key: A PRNG key, needed if dropout_rate is not 0. The weights that are dropped depend
        on key, shapes and platform alone.
      causal: Whether query i sees only the keys up to i + U − T, so that the last query sees all
        (`jax.nn.dot_product_attention` uses i in place of i + U − T). Static.
      scale: α, by default 1/√d. Static.
      window: A pair of integers (a, b) ≥ 0: query i sees the keys from i + U − T − a to
        i + U − T + b. An integer w means (w, w); with causal, b is 0. Time grows with T (a + b)
        in place of T U. Static.
      softcap: c > 0, the bound of the scores before the bias. Static.
      dropout_rate: p in [0, 1). It may be traced.
      return_lse: Whether to return log Σ_j exp(S_j) as well, by which parts of a softmax over
        different keys can be merged. It has a gradient. Static.
      implementation: None uses cuDNN on an NVIDIA GPU, if it is installed and takes the arguments
        (bfloat16 or float16, e = d, T = U if causal, none of the other options but scale), and the
        tiles elsewhere. "tiles" uses the tiles on every platform. "cudnn" or "xla" uses that
        implementation of `jax.nn.dot_product_attention` and its gradient; this requires e = d, and
        T = U if causal or window, and excludes softcap, dropout and return_lse. Queries that see no
        key, and nan in masked keys, are then treated as they are there; nan in later keys also by
        None on a GPU. Static.

    Returns:
      y, shape (..., T, H, e), with the dtype of q, k and v. With return_lse, the pair of y and the
      log-sum-exp, shape (..., T, H), at least float32; it is −∞ for a query that sees no key.

    Raises:
      ValueError: If the shapes or dtypes do not fit, or the implementation cannot do it.

    Reference: Vaswani et al., Attention is all you need, 2017, equation 1, arXiv:1706.03762;
    Rabe & Staats, Self-attention does not need O(n²) memory, 2021, arXiv:2112.05682; window:
    Beltagy et al., Longformer, 2020, section 3.1, arXiv:2004.05150; soft cap: Gemma 2, 2024,
    section 2, arXiv:2408.00118.

    >>> q, k, v = jnp.ones((2, 1, 1)), jnp.ones((2, 1, 1)), jnp.array([[[1.0]], [[3.0]]])
    >>> dot_product_attention(q, k, v, causal=True).ravel().tolist()
    [1.0, 2.0]
    """
    arrays = Arrays(q, k, v, mask, lengths, bias, dropout_key)
    options = Options(causal, scale, window, softcap, dropout_rate)
    check(arrays, options, implementation, return_lse)
    if implementation in LIBRARIES:
        return by_library(arrays, options, implementation)
    if not rules_on.value:
        implementation = "tiles"  # which autodiff can differentiate
    y, _, _, lse = _values(arrays, options, implementation, return_lse)
    return cast(Attended, (y, lse) if return_lse else y)


def dot_product_attention_fwd(
    q, k, v, mask=None, lengths=None, bias=None, dropout_key=None, *, return_lse, implementation,
    **options,
):  # fmt: skip
    """Saves the arguments, y, and two numbers per query: m = max S and s = Σ exp(S − m).

    m and s are saved separately: in the sum log s + m, a large common offset of the scores would
    cost the digits of log s. With an implementation of JAX, the residuals are those of JAX.
    """
    arrays, options = Arrays(q, k, v, mask, lengths, bias, dropout_key), Options(**options)
    check(arrays, options, implementation, return_lse)
    if implementation in LIBRARIES:
        floats = (q, k, v) if bias is None else (q, k, v, bias)
        kernel = lambda *x: by_library(
            arrays._replace(**dict(zip(("q", "k", "v", "bias"), x, strict=False))),
            options,
            implementation,
        )
        return jax.vjp(kernel, *floats)
    y, m, s, lse = _values(arrays, options, implementation, return_lse)
    return ((y, lse) if return_lse else y), (arrays, y, m, s)


def dot_product_attention_bwd(residuals, dout, *, return_lse, implementation, **options):
    """The cotangents of q, k, v and the bias B.

    y = P v gives dP = dy vᵀ and

        dv = Pᵀ dy.                                                                           (1)

    The softmax of a row gives dS_j = P_j (dP_j − Σ_l P_l dP_l). The sum needs no other tile:
    dP_l = ⟨dy, v_l⟩ and Σ_l P_l v_l = y. The log-sum-exp l has ∂l/∂S_j = P_j, so that

        dS = P ⊙ (dP − (⟨dy, y⟩ − dl)),                                                       (2)
        dq = α dS k,   dk = α dSᵀ q,                                                          (3)

    and dB is dS, summed over the axes along which B was broadcast. With a soft cap c, dS in (3) is
    dS ⊙ (1 − tanh²(α q kᵀ / c)). With dropout, R_ij is 0 where a weight was dropped, else
    1/(1 − p): P in (1) is R ⊙ P, and dP is R ⊙ dy vᵀ, which leaves the sum in (2) at ⟨dy, y⟩. R is
    drawn again from the key.

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
    options = Options(**options)
    if implementation in LIBRARIES:
        dq, dk, dv, *dbias = residuals(dout)
        return dq, dk, dv, None, None, *(dbias or [None]), None
    (arrays, *found), (dy, dlse) = residuals, dout if return_lse else (dout, None)
    run = functools.partial(_cotangents, options=options)
    kernel = None
    if is_for_cudnn(arrays, options, implementation, return_lse):
        kernel = lambda q, k, v, *rest: (*_cotangents_by_cudnn(options, q, k, v, rest[-2]), None)
    args = *arrays, *found, dy, dlse
    dq, dk, dv, dbias = by_platform(run, *args, kernel=kernel)  # (1) to (3)
    return dq, dk, dv, None, None, dbias, None


def _cotangents(plan, *args, options):
    """Equations (1) to (3), tile by tile."""
    # Without the barrier XLA would keep P of small inputs instead of recomputing it.
    *arrays, y, m, s, dy, dlse = jax.lax.optimization_barrier(args)
    arrays = Arrays(*arrays)
    q, k, v = arrays[:3]
    a = Scores(plan, arrays, options)
    (bt, bu), length, alpha = a.tiles.block, a.tiles.padded[0], a.scale
    dot = sum_products(widen(dy), widen(y), (y.ndim - 1,))
    dot = dot if dlse is None else dot - dlse
    dot = jnp.swapaxes(dot, -2, -1).reshape(s.shape) / s  # (⟨dy, y⟩ − dl)/s
    m, r, dot = (padded(x, length, -1) for x in (m, 1 / s, dot))
    flaws = ()
    if a.hides:
        flaws = (nan_where(~jnp.isfinite(dot), dot.dtype)[..., None, :, :],)
        m, r, dot = (jnp.where(jnp.isfinite(dot), x, 0) for x in (m, r, dot))
    if a.bias is not None:  # padded queries may have large scores
        m = jnp.where(r == 0, -lowest(m), m)
    dys = padded(dy, length, -3)
    across = jnp.einsum("...ukd->...kdu", a.k)  # kᵀ at once: tile by tile it takes longer

    def visit(i, j):
        q_i, scores, seen, slope = a.at(i, j, flaws)  # α q (K, g, t, d), Sᵀ (K, u, g, t)
        p = jnp.exp(scores - take(m, i, bt, -1)[..., None, :, :])  # s Pᵀ (K, u, g, t)
        kept = a.dropout(i, j, p)
        # dy/s (K, g, t, e)
        dy_i = a.by_head(a.clean(widen(take(dys, i, bt, -3)))) * take(r, i, bt, -1)[..., None]
        dy_i = dy_i / (1 - options.dropout_rate) if options.drops else dy_i
        dv = a.product("...kugt,...kgte->...kue", kept(p), dy_i)  # (1): Pᵀ dy (K, u, e)
        v_j = a.clean(jnp.swapaxes(widen(take(a.v, j, bu, -3)), -3, -2))  # v (K, u, e)
        dp = kept(a.product("...kue,...kgte->...kugt", v_j, dy_i))  # dPᵀ/s = v dyᵀ/s (K, u, g, t)
        ds = p * (dp - take(dot, i, bt, -1)[..., None, :, :])  # (2): dSᵀ (K, u, g, t)
        ds = ds if seen is None else jnp.where(seen, ds, 0)  # dP may overflow at masked pairs
        dbias = a.of_bias(ds, i, j)
        ds = ds if slope is None else ds * slope
        k_j = a.clean(widen(take(across, j, bu, -1)) * alpha)  # α kᵀ (K, d, u)
        dq = a.product("...kdu,...kugt->...kdgt", k_j, ds)  # (3): dqᵀ = α kᵀ dSᵀ (K, d, g, t)
        dk = a.product("...kugt,...kgtd->...kud", ds, q_i)  # (3): dSᵀ α q (K, u, d)
        dq = jnp.einsum("...kdgt->...tkgd", dq).reshape(*dq.shape[:-4], bt, *q.shape[-2:])
        return dq, *(jnp.swapaxes(x, -3, -2) for x in (dk, dv)), dbias

    def add(total, part, i, j):
        blocks = ((i, bt, -3), (j, bu, -3), (j, bu, -3))
        both = zip(total[:3], part[:3], blocks, strict=True)
        sums = (put(x, take(x, *block) + dx, *block) for x, dx, block in both)
        return *sums, a.add_of_bias(total[3], part[3], i, j)

    none = None if a.bias is None else jnp.zeros_like(widen(a.bias))
    start = (*(zeros(x, x.shape[-1]) for x in (a.q, a.k, a.v)), none)
    *found, dbias = over_tiles(a.tiles, visit, add, start)
    found = zip(found, (q, k, v), strict=True)
    return *(dx[..., : x.shape[-3], :, :].astype(x.dtype) for dx, x in found), a.as_bias(dbias)


dot_product_attention.defvjp(dot_product_attention_fwd, dot_product_attention_bwd)


def _values(arrays, options, implementation, return_lse):
    """y; m and s (..., K, g, T), which are 0 and 1 for a query that sees no key; log-sum-exp."""
    run = functools.partial(_values_by_tiles, options=options, return_lse=return_lse)
    kernel = None
    if is_for_cudnn(arrays, options, implementation, return_lse):
        kernel = functools.partial(_values_by_cudnn, options)
    return by_platform(run, *arrays, kernel=kernel)


def _values_by_tiles(plan, *arrays, options, return_lse=False):
    """`_values`, tile by tile.

    The tiles of a block of queries are merged with a running maximum of the scores: sums that are
    relative to another maximum are rescaled by exp of the difference.
    """
    arrays = Arrays(*arrays)
    q, v = arrays.q, arrays.v
    a = Scores(plan, arrays, options)
    bt, bu = a.tiles.block
    across = jnp.einsum("...uke->...keu", a.v)  # vᵀ at once: tile by tile it takes longer
    flaws = a.flaws()
    or_zero = lambda m: jnp.where(m <= lowest(m), 0, m)

    def visit(i, j):
        scores = a.at(i, j, flaws)[1]  # Sᵀ (K, u, g, t)
        m = jax.lax.stop_gradient(scores.max(-3, initial=-jnp.inf))
        p = jnp.exp(scores - or_zero(m)[..., None, :, :])  # s Pᵀ (K, u, g, t)
        v_j, kept = a.clean(widen(take(across, j, bu, -1))), a.dropout(i, j, p)
        return a.product("...keu,...kugt->...kegt", v_j, kept(p)), m, p.sum(-3)

    def merge(state, found, i, j):
        (y, m, s), (y_j, m_j, s_j) = (take(x, i, bt, -1) for x in state), found
        top = jnp.maximum(m, m_j)
        old, new = jnp.exp(m - or_zero(top)), jnp.exp(m_j - or_zero(top))
        y = old[..., None, :, :] * y + new[..., None, :, :] * y_j
        merged = y, top, old * s + new * s_j
        return tuple(put(x, part, i, bt, -1) for x, part in zip(state, merged, strict=True))

    none = jnp.einsum("...kgte->...kegt", a.by_head(zeros(a.q, v.shape[-1])))
    no_sum = a.by_head(zeros(a.q, 1))[..., 0]
    y, m, s = over_tiles(a.tiles, visit, merge, (none, no_sum + lowest(no_sum), no_sum))
    is_blind = s == 0
    y, m, s = (x[..., : q.shape[-3]] for x in (y, or_zero(m), jnp.where(is_blind, 1, s)))
    y = jnp.einsum("...kegt->...tkge", y / s[..., None, :, :])
    y = y / (1 - options.dropout_rate) if options.drops else y
    lse = None
    if return_lse:
        lse = jnp.where(is_blind[..., : q.shape[-3]], -jnp.inf, m + jnp.log(s))
        lse = jnp.einsum("...kgt->...tkg", lse).reshape(q.shape[:-1])
    return y.reshape(*q.shape[:-1], v.shape[-1]).astype(q.dtype), m, s, lse


def _values_by_cudnn(options, q, k, v, *_):
    """`_values` without m and s, which only the tiles need."""
    heads, by = k.shape[-2], q.shape[-2] // k.shape[-2]
    one = jnp.ones((*q.shape[:-3], heads, by, q.shape[-3]), jnp.float32)
    return _y_by_cudnn(options, q, k, v), one, one, None


def _plain(q, k, v):
    return Arrays(q, k, v, None, None, None, None)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _y_by_cudnn(options, q, k, v):
    return by_library(_plain(q, k, v), options, "cudnn")


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _cotangents_by_cudnn(options, q, k, v, dy):
    """dq, dk and dv. The forward pass runs again, since its statistics cannot be saved."""
    f = lambda *x: by_library(_plain(*x), options, "cudnn")
    return jax.vjp(f, q, k, v)[1](dy)


# Further derivatives are those of the tiles, because cuDNN has none.
@_y_by_cudnn.defjvp
def _y_by_cudnn_jvp(options, primals, tangents):
    values = lambda *x: _values_by_tiles(ON_GPU, *_plain(*x), options=options)[0]
    along = jax.jvp(values, primals, tangents)[1]
    return _y_by_cudnn(options, *primals), along


@_cotangents_by_cudnn.defjvp
def _cotangents_by_cudnn_jvp(options, primals, tangents):
    def by_tiles(q, k, v, dy):
        arrays = _plain(q, k, v)
        y, m, s, _ = _values_by_tiles(ON_GPU, *arrays, options=options)
        return _cotangents(ON_GPU, *arrays, y, m, s, dy, None, options=options)[:3]

    along = jax.jvp(by_tiles, primals, tangents)[1]
    return _cotangents_by_cudnn(options, *primals), along
