"""What a program would cost on an accelerator: counts, and estimates of its time."""

import math
from typing import Any, NamedTuple

from funcnet.profile._program import launches
from funcnet.profile.devices import Device


class Estimate(NamedTuple):
    """Of a compiled program on an accelerator; nothing was run.

    cycles: Of a TPU, the sum over the program by XLA's cost model; nan of a GPU. A Pallas kernel
      has no such number and counts with 0.
    milliseconds: Of a TPU, the cycles by the clock. Of a GPU, a roofline: the sum over all launches
      of the longer of the times for moving their bytes and for computing their products at the
      published rates.
    launches: Operations that the device runs one after another.
    moved_bytes: That launches read from the device's memory and write to it.
    products: FLOPs of matrix products and convolutions, by the dtype of their operands.
    exact: Whether the number of passes of each loop is known; if not, it counts as one.
    """

    cycles: float
    milliseconds: float
    launches: int
    moved_bytes: int
    products: dict[str, float]
    exact: bool


def estimate(compiled: Any, device: Device) -> Estimate:
    """The estimate of a program that was compiled for this device."""
    found = list(launches(compiled.as_text()))
    products: dict[str, float] = {}
    cycles = seconds = 0.0
    for one in found:
        for dtype, count in one.products.items():
            products[dtype] = products.get(dtype, 0.0) + count * one.times
        cycles += one.cycles * one.times
        moving = one.moved_bytes / device.bandwidth
        computing = sum(n / device.rates.get(k, math.inf) for k, n in one.products.items())
        seconds += max(moving, computing) * one.times
    is_tpu = not math.isnan(device.clock)
    return Estimate(
        cycles if is_tpu else math.nan,
        1e3 * (cycles / device.clock if is_tpu else seconds),
        sum(one.times for one in found),
        sum(one.moved_bytes * one.times for one in found),
        products,
        all(one.exact for one in found),
    )
