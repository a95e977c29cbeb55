"""Correct rules of complex numbers, of host callbacks, of casts and of other algorithms in fwd."""

import jax
import jax.numpy as jnp
import numpy as np
from check.right_entry import WIDE, Right, arrays, sizes, values
from jax import lax


@jax.custom_vjp
def to_float32(x):
    return x.astype(jnp.float32) * 2


def to_float32_fwd(x):
    return to_float32(x), jnp.zeros((0,), x.dtype)  # carries the dtype, and no data


to_float32.defvjp(to_float32_fwd, lambda like, dy: ((2 * dy).astype(like.dtype),))


@jax.custom_vjp
def to_bfloat16(x, w):
    """A narrow output of wide arguments: its cotangents are narrow too, and their sums round."""
    y = x @ w
    return y.astype(jnp.bfloat16), y.argmax(-1)


def to_bfloat16_bwd(res, dout):
    x, w = res
    dy = dout[0].astype(x.dtype)
    return dy @ w.T, x.T @ dy


to_bfloat16.defvjp(lambda x, w: (to_bfloat16(x, w), (x, w)), to_bfloat16_bwd)


@jax.custom_vjp
def complex_product(z, w):
    return z * w


# No conjugate: JAX's cotangents pair without one.
complex_product.defvjp(lambda z, w: (z * w, (z, w)), lambda res, dy: (dy * res[1], dy * res[0]))


@jax.custom_vjp
def squared_modulus(z):
    return z.real**2 + z.imag**2


def squared_modulus_bwd(z, dy):
    return (lax.complex(2 * dy * z.real, -2 * dy * z.imag),)


squared_modulus.defvjp(lambda z: (squared_modulus(z), z), squared_modulus_bwd)


@jax.custom_vjp
def spectrum(x):
    return jnp.fft.fft(x)


spectrum.defvjp(lambda x: (jnp.fft.fft(x), None), lambda _, dy: (jnp.fft.fft(dy).real,))


def softplus_on_host(x):
    return np.logaddexp(np.asarray(x), 0).astype(x.dtype)


@jax.custom_vjp
def host_softplus(x):
    return jax.pure_callback(softplus_on_host, x, x, vmap_method="expand_dims")


host_softplus.defvjp(lambda x: (host_softplus(x), x), lambda x, dy: (dy * jax.nn.sigmoid(x),))


@jax.custom_vjp
def host_log_det(a):
    log_det = lambda m: np.linalg.slogdet(np.asarray(m))[1].astype(m.dtype)
    return jax.pure_callback(
        log_det, jax.ShapeDtypeStruct((), a.dtype), a, vmap_method="sequential"
    )


host_log_det.defvjp(lambda a: (host_log_det(a), a), lambda a, dy: (dy * jnp.linalg.inv(a).T,))


@jax.custom_vjp
def polynomial(coefficients, x):
    """Horner's scheme here, the powers themselves in fwd."""
    return lax.fori_loop(
        1, coefficients.shape[0], lambda k, y: y * x + coefficients[k], coefficients[0] + 0 * x
    )


def polynomial_fwd(coefficients, x):
    n = coefficients.shape[0]
    powers = jnp.stack([x**k for k in range(n - 1, -1, -1)])
    return jnp.tensordot(coefficients, powers, 1), (coefficients, powers)


def polynomial_bwd(residuals, dy):
    c, powers = residuals
    n = c.shape[0]
    slope = sum((n - 1 - k) * c[k] * powers[k + 1] for k in range(n - 1))
    return (powers * dy).sum(tuple(range(1, powers.ndim))), slope * dy + 0 * dy


polynomial.defvjp(polynomial_fwd, polynomial_bwd)


@jax.custom_vjp
def newton_sqrt(a):
    """A loop whose gradient is that of its fixed point."""
    return lax.fori_loop(0, 8, lambda _, y: (y + a / y) / 2, jnp.ones_like(a) * 1.5)


def newton_sqrt_fwd(a):
    y = newton_sqrt(a)
    return y, y


newton_sqrt.defvjp(newton_sqrt_fwd, lambda y, dy: (dy / (2 * y),))


def draw_complex(n):
    def draw(rng, dtype):
        shape = sizes(rng, int(rng.integers(0, 4)))
        part = lambda: values(rng, shape, dtype, "unit ties")
        return tuple(lax.complex(part(), part()) for _ in range(n)), {}

    return draw


def draw_matrix(rng, dtype):
    n = int(rng.integers(1, 5))
    return (values(rng, (n, n), dtype) + 4 * n * jnp.eye(n, dtype=dtype),), {}


def draw_product(rng, dtype):
    n, d, m = sizes(rng, 3)
    return (values(rng, (n, d), dtype), values(rng, (d, m), dtype)), {}


def draw_polynomial(rng, dtype):
    c = values(rng, (int(rng.integers(1, 5)),), dtype)
    return (c, values(rng, sizes(rng, int(rng.integers(0, 3))), dtype, "unit ties")), {}


UNIT = "unit ties"

NUMBERS = [
    Right("float32 out of any dtype", to_float32, arrays()),
    Right("bfloat16 and indices out of float32", to_bfloat16, draw_product, WIDE),
    Right("complex product", complex_product, draw_complex(2), WIDE),
    Right("complex to real", squared_modulus, draw_complex(1), WIDE),
    Right("real to complex", spectrum, arrays(1, (1, 3), UNIT), WIDE),
    Right("softplus by NumPy", host_softplus, arrays(1, (0, 3), "unit ten ties"), WIDE),
    Right("log-determinant by NumPy", host_log_det, draw_matrix, WIDE),
    Right("polynomial, another algorithm in fwd", polynomial, draw_polynomial),
    Right("square root by Newton", newton_sqrt, arrays(1, (0, 3), "positive"), WIDE),
]
