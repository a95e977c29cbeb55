"""Tests profiles for accelerators: what is read from a program, and what the rules compile to.

The tests of compiled programs need the compilers, libtpu and jax[cuda12].
"""

import importlib.util
import math

import bench_device
import jax
import jax.numpy as jnp
import pytest
from cases import MEASURED

from funcnet import ops, profile_rule
from funcnet.profile import Estimate
from funcnet.profile._program import launches

S = jax.ShapeDtypeStruct


def needs(*modules):
    found = any(map(importlib.util.find_spec, modules))
    return pytest.mark.skipif(not found, reason=f"needs {modules[0]}")


TPU, GPU = needs("libtpu"), needs("jax_cuda12_plugin", "jax_cuda13_plugin")

# A loop of 8 passes over a program that updates a slice of 4 of 32 rows in place, with a product.
LOOP = """HloModule m

%fused (p0: f32[32,8], p1: bf16[4,16], p2: bf16[16,8], p3: s32[]) -> f32[32,8] {
  %p0 = f32[32,8]{1,0} parameter(0)
  %p1 = bf16[4,16]{1,0} parameter(1)
  %p2 = bf16[16,8]{1,0} parameter(2)
  %p3 = s32[] parameter(3)
  %zero = s32[] constant(0)
  %old = f32[4,8]{1,0} dynamic-slice(%p0, %p3, %zero), dynamic_slice_sizes={4,8}
  %dot = f32[4,8]{1,0} dot(%p1, %p2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %sum = f32[4,8]{1,0} add(%old, %dot)
  ROOT %new = f32[32,8]{1,0} dynamic-update-slice(%p0, %sum, %p3, %zero)
}

%body (s: (s32[], f32[32,8], bf16[4,16], bf16[16,8])) -> (s32[], f32[32,8], bf16[4,16]) {
  %s = (s32[], f32[32,8]{1,0}, bf16[4,16]{1,0}, /*index=3*/bf16[16,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[32,8]{1,0} get-tuple-element(%s), index=1
  %a = bf16[4,16]{1,0} get-tuple-element(%s), index=2
  %b = bf16[16,8]{1,0} get-tuple-element(%s), index=3
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %y = f32[32,8]{1,0} fusion(%x, %a, %b, %i), calls=%fused, config={"estimated_cycles":"100"}
  ROOT %t = (s32[], f32[32,8]{1,0}, bf16[4,16]{1,0}, bf16[16,8]{1,0}) tuple(%next, %y, %a, %b)
}

%cond (s.1: (s32[], f32[32,8], bf16[4,16], bf16[16,8])) -> pred[] {
  %s.1 = (s32[], f32[32,8]{1,0}, bf16[4,16]{1,0}, bf16[16,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %n = s32[] constant(8)
  ROOT %lt = pred[] compare(%i.1, %n), direction=LT
}

ENTRY %main (x0: f32[32,8], a0: bf16[4,16], b0: bf16[16,8]) -> f32[32,8] {
  %x0 = f32[32,8]{1,0} parameter(0)
  %a0 = bf16[4,16]{1,0} parameter(1)
  %b0 = bf16[16,8]{1,0} parameter(2)
  %start = s32[] constant(0)
  %in = (s32[], f32[32,8]{1,0}, bf16[4,16]{1,0}, bf16[16,8]{1,0}) tuple(%start, %x0, %a0, %b0)
  %w = (s32[], f32[32,8]{1,0}, bf16[4,16]{1,0}) while(%in), condition=%cond, body=%body
  ROOT %out = f32[32,8]{1,0} get-tuple-element(%w), index=1
}
"""


def test_a_loop_is_counted_with_its_passes():
    add, fusion = launches(LOOP)
    assert (add.times, fusion.times, fusion.exact) == (8, 8, True)
    assert fusion.cycles == 100
    assert fusion.products == {"bf16": 2 * 4 * 8 * 16}
    read, written = 4 * 8 * 4 + 4 * 16 * 2 + 16 * 8 * 2 + 4, 4 * 8 * 4  # of x only the slice
    assert fusion.moved_bytes == read + written


def test_a_loop_of_unknown_length_is_counted_once_and_says_so():
    unknown = LOOP.replace("%n = s32[] constant(8)", "%n = s32[] negate(%i.1)")
    assert {(one.times, one.exact) for one in launches(unknown)} == {(1, False)}


def test_memory_on_the_chip_is_not_counted():
    text = LOOP.replace("%y = f32[32,8]{1,0}", "%y = f32[32,8]{1,0:T(8,128)S(1)}")
    assert list(launches(text))[1].moved_bytes == list(launches(LOOP))[1].moved_bytes - 4 * 8 * 4


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("tpu:v7", "profile_rule: device must be one of tpu:v4, tpu:v5e, .*, got 'tpu:v7'"),
        (3, "profile_rule: device must be one of .*, got 3"),
    ],
)
def test_an_unknown_device(device, message):
    with pytest.raises(ValueError, match=message):
        profile_rule(ops.gelu, jnp.ones(3), device=device)


def test_a_missing_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"tpu:v5e needs its compiler: pip install libtpu"):
        profile_rule(ops.gelu, jnp.ones(3), device="tpu:v5e")


def both(device, name, dtype="bf16"):
    """The rule and the usual code, compiled at the sizes for accelerators."""
    case = MEASURED[name]
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        args = bench_device.shapes(case, case.large, bench_device.DTYPES[dtype])
        functions = {"hand": bench_device.rule_of(name, case), "usual": case.usual}
        found = bench_device.compiled(
            functions, args, bench_device.differentiated(case, args), device
        )
    return found["hand"], found["usual"]


QUICK = {"gelu", "layer_norm", "max_pool", "depthwise_conv", "dropout", "linear_cross_entropy"}
NAMES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in MEASURED]


@TPU
@pytest.mark.parametrize("name", NAMES)
def test_on_a_v5e(name):
    """No rule costs more estimated cycles than the usual code, unless its case says how much."""
    hand, usual = both("tpu:v5e", name)
    assert hand.estimate.cycles <= MEASURED[name].tpu.time * usual.estimate.cycles


@GPU
@pytest.mark.parametrize("name", NAMES)
def test_on_an_h100(name):
    """No rule moves more bytes than the usual code, unless its case says how much."""
    hand, usual = (program.estimate for program in both("gpu:h100", name))
    assert hand.moved_bytes <= MEASURED[name].gpu.time * usual.moved_bytes
    assert hand.launches <= 10 or not name.startswith("dot_product_attention")
    if name in ("dot_product_attention", "linear_cross_entropy", "affine", "conv"):
        assert set(hand.products) == {"bf16"}


@TPU
def test_a_profile_for_a_tpu():
    p = profile_rule(
        ops.gelu, S((1024, 512), "bfloat16"), device="tpu:v5e", against={"nn": jax.nn.gelu}
    )
    for cost in p.columns.values():
        assert isinstance(cost.estimate, Estimate)
        assert cost.estimate.cycles > 0
        assert cost.estimate.moved_bytes >= 4 * 1024 * 512 * 2
        assert math.isnan(cost.microseconds[1])
    assert "estimated cycles" in str(p)
    assert p.to_dict()["hand"]["estimate"]["launches"] == p.hand.estimate.launches


@TPU
def test_a_pallas_kernel_for_a_tpu():
    """A kernel has bytes and launches, and no estimated cycles."""
    pallas = pytest.importorskip("jax.experimental.pallas")

    def double(x_ref, y_ref):
        y_ref[...] = 2 * x_ref[...]

    kernel = lambda x: pallas.pallas_call(double, out_shape=S(x.shape, x.dtype))(x)
    f = jax.custom_vjp(kernel)
    f.defvjp(lambda x: (kernel(x), None), lambda _, dy: (kernel(dy),))
    with jax.enable_x64(False):
        args = (S((256, 512), "float32"),)
        found = bench_device.compiled({"hand": f, "usual": lambda x: 2 * x}, args, [0], "tpu:v5e")
    assert found["hand"].estimate.launches >= 2
    assert found["usual"].estimate.cycles > 0
