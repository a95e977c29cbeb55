"""The gradients that are compared: the rule's, autodiff's, and those by finite differences."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.check.subject import is_floating
from funcnet.numerical import gradient

Outputs = Callable[[Any, Any], tuple[Any, ...]]  # (floats, others) -> floating leaves of the output

ELEMENTS = 512  # of each argument, at most, are differentiated by finite differences


@contextlib.contextmanager
def wide_arithmetic() -> Iterator[None]:
    """Enables 64 bits and dtype promotion, so that a rule written for float32 accepts float64."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def widened(leaf: Any) -> Any:
    """The same numbers in float64 or complex128."""
    is_complex = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
    return jnp.asarray(np.asarray(leaf), jnp.complex128 if is_complex else jnp.float64)


def narrowed(leaf: Any, dtype: Any) -> Any:
    """The leaf cast to `dtype`; a complex leaf to the complex dtype, at least complex64."""
    if not jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return jnp.asarray(leaf, dtype)
    return jnp.asarray(leaf, jnp.complex128 if dtype == jnp.float64 else jnp.complex64)


def cotangents(outputs: Outputs, floats: Any, others: Any, seed: int) -> tuple[Any, ...]:
    """Independent random cotangents of both signs, in the dtypes of the outputs."""

    def draw(i: int, t: Any) -> jax.Array:
        random = np.random.default_rng([seed, i])
        z = random.standard_normal(t.shape)
        if jnp.issubdtype(t.dtype, jnp.complexfloating):
            z = z + 1j * random.standard_normal(t.shape)
        return jnp.asarray(z.astype(t.dtype))

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


class Along(NamedTuple):
    """Derivatives of ⟨dout, f⟩ along one random direction per argument."""

    directions: tuple[Any, ...]
    values: np.ndarray


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

    zeros = jnp.zeros(len(floats), jnp.result_type(*(v.real.dtype for v in floats)))
    return Along(directions, np.asarray(gradient(f, zeros, method="five_point", batch_size=1)))


class Differences(NamedTuple):
    """Cotangents by finite differences; nan for elements that were left out."""

    cotangents: tuple[np.ndarray, ...]
    uncertainty: tuple[np.ndarray, ...]


def by_differences(
    outputs: Outputs, floats: Any, others: Any, dout: Any, noise: float
) -> Differences:
    """The gradient of ⟨dout, f⟩ by finite differences, for up to `ELEMENTS` of each argument.

    `noise` is the relative noise of f. The step is its fifth root, which balances the noise with
    the error of the formula. The uncertainty is the change of the result when the step is halved,
    plus the error that remains at this balance.
    """
    found, uncertain = [], []
    for i, v in enumerate(floats):
        number = np.arange(v.size)
        if v.size > ELEMENTS:
            number = np.sort(np.random.default_rng(2).choice(v.size, ELEMENTS, replace=False))
        scale = np.maximum(1, np.abs(np.asarray(v).ravel()[number]))

        def f(s: jax.Array, i: int = i, number: Any = number, scale: Any = scale) -> jax.Array:
            moved = floats[i].ravel().at[number].add(s * scale).reshape(floats[i].shape)
            return pairing(dout, outputs((*floats[:i], moved, *floats[i + 1 :]), others))

        zeros = jnp.zeros(len(number), v.dtype)
        noise = max(noise, float(jnp.finfo(v.dtype).eps))
        step = noise ** (1 / 5)
        coarse, fine = (
            np.asarray(gradient(f, zeros, method="five_point", step=h, batch_size=1)) / scale
            for h in (step, step / 2)
        )
        d, u = np.full(v.size, np.nan), np.zeros(v.size)
        d[number] = coarse
        least = (noise**0.5 + noise**0.8) * np.abs(coarse).max(initial=0.0)
        u[number] = np.abs(coarse - fine) + least
        found.append(d.reshape(v.shape))
        uncertain.append(u.reshape(v.shape))
    return Differences(tuple(found), tuple(uncertain))
