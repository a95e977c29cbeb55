"""Tests of the FLOP counter, which counts all passes of loops and the bodies of calls."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from marks import slow

from funcnet import autodiff, ops
from funcnet.profile._flops import flops

X = jax.ShapeDtypeStruct((8, 4), jnp.float32)
W = jax.ShapeDtypeStruct((4, 4), jnp.float32)
PRODUCT = 2 * 8 * 4 * 4


def loop(times):
    return lambda x, w: lax.scan(lambda x, _: (x @ w, None), x, length=times)[0]


@pytest.mark.parametrize(
    ("f", "total"),
    [
        (lambda x, w: x @ w, PRODUCT),
        (lambda x, w: jax.jit(jnp.matmul)(x, w), PRODUCT),
        (lambda x, w: jax.checkpoint(jnp.matmul)(x, w), PRODUCT),
        (lambda x, w: ops.affine(x, w), PRODUCT),
        (loop(7), 7 * PRODUCT),
        (lambda x, w: loop(3)(loop(7)(x, w), w), 10 * PRODUCT),
        (lambda x, w: lax.fori_loop(0, 5, lambda i, x: loop(7)(x, w), x), 35 * PRODUCT),
        (lambda x, w: lax.cond(True, lambda: x, lambda: x @ w), PRODUCT),
        (lambda x, w: (x, jnp.sin(x @ w))[0], 0),  # dead code
        (lambda x, w: jnp.arange(100) * 2, 0),  # no floating-point numbers
        (lambda x, w: x.at[jnp.zeros(3, jnp.int32)].add(jnp.ones((3, 4), jnp.float32)), 12),
        (lambda x, w: lax.reduce_window(x, 0.0, lax.add, (2, 1), (2, 1), "VALID"), 4 * 4 * 2),
        (
            jax.shard_map(
                jnp.matmul,
                mesh=jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,)),
                in_specs=(P("d"), P()),
                out_specs=P("d"),
            ),
            PRODUCT,
        ),
    ],
)
def test_what_counts(f, total):
    assert flops(f, X, W) == (total, True)


def test_a_loop_of_unknown_length_is_not_exact():
    unknown = lambda x, w, n: lax.fori_loop(0, n, lambda i, x: x @ w, x)
    assert flops(unknown, X, W, 3) == (PRODUCT, False)
    assert flops(lambda x, w, n: loop(7)(unknown(x, w, n), w), X, W, 3) == (8 * PRODUCT, False)
    integers = lambda n: lax.while_loop(lambda n: n > 1, lambda n: n // 2, n)
    assert flops(integers, 3) == (0, True)


@pytest.mark.parametrize("cell", [ops.lstm, *slow(ops.rnn)])
@pytest.mark.parametrize("switch", [lambda f: f, autodiff], ids=["hand", "autodiff"])
def test_a_recurrent_gradient_is_proportional_to_the_time(cell, switch):
    c, h = 3, 4
    gates = 4 if cell is ops.lstm else 1

    def total(time):
        starts = [jnp.zeros((2, h))] * (2 if cell is ops.lstm else 1)
        sizes = [(c, gates * h), (h, gates * h), (gates * h,)]
        args = [jnp.ones((2, time, c)), *starts, *map(jnp.ones, sizes)]
        loss = lambda *args: cell(*args)[0].sum()
        return flops(jax.grad(switch(loss), tuple(range(len(args)))), *args).total

    assert 9 <= total(80) / total(8) <= 11
