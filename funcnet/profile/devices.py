"""Accelerators for which XLA compiles on any machine, and what their makers publish of them."""

import functools
import importlib.util
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies


class Device(NamedTuple):
    """An accelerator, as `profile_rule(device=…)` names it."""

    name: str  # "tpu:v5e"
    topology: str  # the smallest that the compiler accepts
    bandwidth: float  # of the memory, bytes per second
    rates: Mapping[str, float]  # dense products, FLOPs per second, by dtype of the operands
    memory: float  # bytes
    link: float  # bytes per second that it receives from the others of its slice or NVLink domain
    clock: float = float("nan")  # of a TPU, cycles per second
    target: str = ""  # of a GPU, the text of XLA's GpuTargetConfig


def _tpu(name: str, topology: str, peak: float, per_cycle: int, **published: Any) -> Device:
    """A TPU whose clock is its published rate divided by what its matrix units do in a cycle."""
    return Device(name, topology, rates={"bf16": peak}, clock=peak / per_cycle, **published)


GPU = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {shared} threads_per_core_limit: 2048 core_count: {cores}
  fpus_per_core: {units} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: {cache}
  clock_rate_ghz: {clock} device_memory_size: {memory} shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} }} registers_per_core_limit: 65536
  registers_per_block_limit: 65536 }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{name}"
"""
_H100 = {"shared": 233472, "cores": 132, "units": 128, "cache": 52428800, "optin": 232448}
_A100 = {"shared": 167936, "cores": 108, "units": 64, "cache": 41943040, "optin": 166912}
# A matrix unit multiplies 128 × 128 numbers in a cycle (v6e: 256 × 256); a v4 has 2 cores with 4
# each, of which a program gets one; v5e 4, v5p 2 × 4, v6e 4.
DEVICES = {
    d.name: d
    for d in (
        _tpu(
            "tpu:v4",
            "v4:2x2x1",
            275e12 / 2,
            2 * 4 * 128**2,
            bandwidth=1228e9 / 2,
            memory=32e9 / 2,
            link=150e9 / 2,
        ),
        _tpu(
            "tpu:v5e",
            "v5e:2x2",
            197e12,
            2 * 4 * 128**2,
            bandwidth=819e9,
            memory=16e9,
            link=200e9,
        ),
        _tpu(
            "tpu:v5p",
            "v5p:2x2x1",
            459e12,
            2 * 8 * 128**2,
            bandwidth=2765e9,
            memory=95e9,
            link=600e9,
        ),
        _tpu(
            "tpu:v6e",
            "v6e:2x2",
            918e12,
            2 * 4 * 256**2,
            bandwidth=1640e9,
            memory=32e9,
            link=400e9,
        ),
        Device(
            "gpu:a100",
            "1x1x1",
            2039e9,
            {"bf16": 312e12, "f16": 312e12, "f32": 156e12, "f32 highest": 19.5e12, "f64": 19.5e12},
            memory=80e9,
            link=300e9,
            target=GPU.format(
                name="NVIDIA A100-SXM4-80GB",
                **_A100,
                clock=1.41,
                bandwidth=2039000000000,
                memory=85899345920,
                major=8,
            ),
        ),
        Device(
            "gpu:h100",
            "1x1x1",
            3352e9,
            {"bf16": 989e12, "f16": 989e12, "f32": 494e12, "f32 highest": 67e12, "f64": 67e12},
            memory=80e9,
            link=450e9,
            target=GPU.format(
                name="NVIDIA H100 80GB HBM3",
                **_H100,
                clock=1.98,
                bandwidth=3352320000000,
                memory=84978434048,
                major=9,
            ),
        ),
    )
}
WHEELS = {
    "tpu": (("libtpu",), "libtpu"),
    "gpu": (("jax_cuda12_plugin", "jax_cuda13_plugin"), "'jax[cuda12]'"),
}
# Without these, libtpu asks the network which TPU this machine has, and locks it.
TPU_SETTINGS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes may compile
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def device_named(caller: str, name: Any) -> Device:
    """The device of this name, if a compiler for it is installed.

    Raises:
      ValueError: If there is none of this name, or the package with its compiler is missing.
    """
    if name not in DEVICES:
        raise ValueError(f"{caller}: device must be one of {', '.join(DEVICES)}, got {name!r}")
    modules, wheel = WHEELS[name.partition(":")[0]]
    if not any(map(importlib.util.find_spec, modules)):
        raise ValueError(f"{caller}: {name} needs its compiler: pip install {wheel}")
    return DEVICES[name]


@functools.cache
def sharding_on(name: str) -> jax.sharding.Sharding:
    """Places an array on one device of this name, which need not exist: compile only."""
    return jax.sharding.SingleDeviceSharding(devices_of(name)[0])


def devices_of(name: str, topology: str = "") -> list[Any]:
    """Devices of this name, which need not exist: compile only.

    Args:
      name: The name of the device, one of `DEVICES`.
      topology: Of TPUs the shape of the slice, such as "16x16"; of GPUs their number, which share
        one NVLink domain. By default the smallest that the compiler accepts.

    Raises:
      ValueError: If the compiler does not know the topology.
    """
    device = DEVICES[name]
    try:
        if name.startswith("tpu"):
            os.environ.update(TPU_SETTINGS)
            full = f"{name.removeprefix('tpu:')}:{topology}" if topology else device.topology
            return topologies.get_topology_desc(platform="tpu", topology_name=full).devices
        full = f"1x1x{topology or 1}"
        return topologies.get_topology_desc(
            platform="cuda", topology_name=full, topology=full, target_config=device.target
        ).devices
    except Exception as e:
        why = str(e).partition("\n")[0]
        raise ValueError(
            f"{name}: topology must be one that XLA knows, got {topology!r}: {why}"
        ) from None


def placed(tree: Any, name: str) -> Any:
    """Shapes and dtypes of a tree of arrays, on one device of this name."""
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_on(name))
    return jax.tree.map(place, tree)
