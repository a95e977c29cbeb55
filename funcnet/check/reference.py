"""The gradients that are compared: the rule's, autodiff's, and those by finite differences."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.check.programs import quick
from funcnet.check.subject import is_floating
from funcnet.numerical import gradient

Outputs = Callable[[Any, Any], tuple[Any, ...]]  # (floats, others) -> floating leaves of the output

ELEMENTS = 512  # of each argument, at most, are differentiated by finite differences


@contextlib.contextmanager
def wide_arithmetic() -> Iterator[None]:
    """Enables 64 bits and dtype promotion, so that a rule written for float32 accepts float64."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def array(x: Any, dtype: Any) -> jax.Array:
    """An array of JAX, converted by NumPy, because JAX would compile the conversion."""
    return jax.device_put(np.asarray(x).astype(dtype))


def widened(leaf: Any) -> Any:
    """The same numbers in float64 or complex128."""
    is_complex = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
    return array(leaf, jnp.complex128 if is_complex else jnp.float64)


def narrowed(leaf: Any, dtype: Any) -> Any:
    """The leaf cast to `dtype`; a complex leaf to the complex dtype, at least complex64."""
    if not jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return array(leaf, dtype)
    return array(leaf, jnp.complex128 if dtype == jnp.float64 else jnp.complex64)


def cotangents(outputs: Outputs, floats: Any, others: Any, seed: int) -> tuple[Any, ...]:
    """Independent random cotangents of both signs, in the dtypes of the outputs."""

    def draw(i: int, t: Any) -> jax.Array:
        random = np.random.default_rng([seed, i])
        z = random.standard_normal(t.shape)
        if jnp.issubdtype(t.dtype, jnp.complexfloating):
            z = z + 1j * random.standard_normal(t.shape)
        return array(z, t.dtype)

    return tuple(draw(i, t) for i, t in enumerate(jax.eval_shape(outputs, floats, others)))


def cotangent_like(out: Any) -> Any:
    """Random cotangents in the structure of out; float0 for leaves that have no cotangent."""
    leaves, tree = jax.tree.flatten(out)
    floats = iter(cotangents(lambda *_: tuple(filter(is_floating, leaves)), (), (), 0))
    zero = lambda leaf: np.zeros(np.shape(leaf), jax.dtypes.float0)
    return jax.tree.unflatten(tree, [next(floats) if is_floating(y) else zero(y) for y in leaves])


def pullback(outputs: Outputs) -> Callable[[Any, Any, Any], Any]:
    """(floats, others, dout) -> (outputs, cotangents of the floats)."""

    def pull(floats: Any, others: Any, dout: Any) -> Any:
        out, vjp = jax.vjp(lambda floats: outputs(floats, others), floats)
        return out, vjp(dout)[0]

    return pull


def gradients(outputs: Outputs) -> Callable[[Any, Any, Any], Any]:
    """(floats, others, dout) -> cotangents of the floats."""
    return lambda floats, others, dout: pullback(outputs)(floats, others, dout)[1]


def many(pull: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """`pull` mapped sequentially over stacked floats and cotangents, in one program."""
    return lambda floats, others, dout: jax.lax.map(
        lambda fd: pull(fd[0], others, fd[1]), (floats, dout)
    )


def stack(trees: list[Any]) -> Any:
    """Stacks the leaves of trees of the same structure, by NumPy, which compiles nothing."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def pairing(dout: Any, out: Any) -> jax.Array:
    """Re Σ dout · out, the product by which JAX defines cotangents."""
    return sum((jnp.real(jnp.sum(d * y)) for d, y in zip(dout, out, strict=True)), jnp.zeros(()))


DOUBT = 0.01  # the largest uncertainty of differences that decide, relative to the largest of them
NOISES = 8  # the noise counts this many times in `criterion.algebra`
STEPS = {64: (1e-2, 1e-3, 1e-4), 32: (1e-1, 3e-2, 1e-2)}  # by the bits of the dtype


class Along(NamedTuple):
    """Derivatives of ⟨dout, f⟩ along one random direction per argument."""

    directions: tuple[Any, ...]
    values: np.ndarray  # nan where finite differences are not certain
    noise: np.ndarray


def along_directions(outputs: Outputs, floats: Any, others: Any, dout: Any) -> Along:
    """Computes `Along` by finite differences, which need only the values of f."""
    random = np.random.default_rng(1)
    unit = lambda v: (random.standard_normal(v.shape) * np.maximum(1, np.abs(v))).astype(v.dtype)
    directions = tuple(unit(v) for v in floats)

    def f(s: jax.Array) -> jax.Array:
        moved = tuple(
            v + s[i].astype(v.real.dtype) * u
            for i, (v, u) in enumerate(zip(floats, directions, strict=True))
        )
        return pairing(dout, outputs(moved, others))

    zeros = np.zeros(len(floats), jnp.result_type(*(v.real.dtype for v in floats)))
    return Along(directions, *_certain_gradient(f, zeros))


def _certain_gradient(f: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of f by finite differences, nan where it is not certain; and its noise.

    Each element takes the step, of several, from which the next smaller one differs least. The
    difference is its uncertainty, which may be 1 % of the gradient, or a millionth of f, at most.
    At a corner, where the one-sided differences disagree, every slope between them is right.
    """
    info = jnp.finfo(x.dtype)
    steps = np.asarray(STEPS[64 if info.bits == 64 else 32], x.dtype)
    slope = lambda method, h: gradient(f, x, method=method, step=h, batch_size=1)

    def run() -> Any:
        central = jax.lax.map(lambda h: slope("five_point", h), steps)
        return central, slope("forward", steps[-1]), slope("backward", steps[-1]), f(x)

    central, forward, backward, here = (np.asarray(d, np.float64) for d in quick(run)())
    changes = np.abs(np.diff(central, axis=0))
    best = np.argmin(np.where(np.isnan(changes), np.inf, changes), 0)[None]
    value = np.take_along_axis(central, best + 1, 0)[0]
    doubt = np.take_along_axis(changes, best, 0)[0]
    jump = np.abs(forward - backward)
    sizes = np.maximum(np.abs(value), jump)
    largest = sizes[np.isfinite(sizes)].max(initial=0.0)
    is_certain = doubt <= np.maximum(DOUBT * largest, 1e-6 * np.nan_to_num(np.abs(here)))
    noise = doubt + float(info.eps) ** 0.8 * largest
    is_corner = jump > 0.02 * np.maximum(np.abs(forward), np.abs(backward))
    noise = np.where(is_corner, noise + jump / 2 / NOISES, noise)
    return np.where(is_certain, value, np.nan), noise


class Differences(NamedTuple):
    """Cotangents by finite differences; nan for elements that were left out or are not certain."""

    cotangents: tuple[np.ndarray, ...]
    noise: tuple[np.ndarray, ...]


def by_differences(
    outputs: Outputs, floats: Any, others: Any, dout: Any, masks: Any = None
) -> Differences:
    """The gradient of ⟨dout, f⟩ by finite differences, for up to `ELEMENTS` of each argument.

    Args:
      outputs: The function f.
      floats: Its floating arguments.
      others: Its other arguments.
      dout: The cotangents of the outputs.
      masks: Which elements of each argument are wanted; by default all.
    """
    found, uncertain = [], []
    for i, v in enumerate(floats):
        number = np.arange(v.size) if masks is None else np.flatnonzero(masks[i])
        if number.size > ELEMENTS:
            number = np.sort(np.random.default_rng(2).choice(number, ELEMENTS, replace=False))
        scale = np.maximum(1, np.abs(np.asarray(v).ravel()[number]))
        scale = np.where(np.isfinite(scale), scale, 1)

        def along(unit: complex, i: int = i, number: Any = number, scale: Any = scale) -> Any:
            def f(s: jax.Array) -> jax.Array:
                step = (unit * (s * scale)).astype(floats[i].dtype)
                moved = floats[i].ravel().at[number].add(step).reshape(floats[i].shape)
                return pairing(dout, outputs((*floats[:i], moved, *floats[i + 1 :]), others))

            slope, doubt = _certain_gradient(f, np.zeros(len(number), floats[i].real.dtype))
            return slope / scale, doubt / scale

        d, u = np.full(v.size, np.nan), np.zeros(v.size)
        if number.size:
            d[number], u[number] = along(1)
        if number.size and jnp.iscomplexobj(v):  # JAX's cotangent is ∂/∂Re − i ∂/∂Im
            slope, doubt = along(1j)
            d, u = d.astype(np.complex128), u + 0
            d[number] -= 1j * slope
            u[number] += doubt
        found.append(d.reshape(v.shape))
        uncertain.append(u.reshape(v.shape))
    return Differences(tuple(found), tuple(uncertain))
