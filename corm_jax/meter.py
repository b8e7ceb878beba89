"""What training steps take: time, memory, and their share of what the devices could compute."""

import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

GIB = 2.0**30
# Of a device as JAX counts it, in dense bfloat16 (float16 for the older ones), from the makers'
# data sheets. Of TPU v2 and v3 a device is one of a chip's two cores.
PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "Tesla V100-SXM2-16GB": 125e12,
    "Tesla V100-SXM2-32GB": 125e12,
    "Tesla T4": 65e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


class Reading(NamedTuple):
    """What the steps since the last start took.

    Attributes:
      seconds: in all.
      scalars: `images_per_second`; `data_wait`, the share of the time in which the device was done
        and the next batch was not there; `step_seconds`, the mean, and `step_seconds_p50`, `_p95`
        and `_max`; `mfu`, the model FLOPs utilisation (Chowdhery et al. 2022, arXiv:2204.02311),
        where the device's peak is known; `host_gib`, the process's resident memory, where the
        system tells; `device_gib`, the most that one device has held so far, where it tells.
    """

    seconds: float
    scalars: dict[str, float]


class Meter:
    """Measures training steps; reading costs nothing that steps would notice."""

    def __init__(self, batch_size: int, step_flops: float, devices: np.ndarray) -> None:
        """Starts to measure.

        Args:
          batch_size: images of a step, over all devices.
          step_flops: floating-point operations of a step, over all devices.
          devices: that take the step, those of other processes included.
        """
        self._batch_size, self._flops = batch_size, step_flops
        peak = PEAK_FLOPS.get(devices.flat[0].device_kind)
        self._peak = peak and peak * devices.size
        self.restart()

    def restart(self) -> None:
        """Starts anew, after what is no step."""
        self._start = self._last = time.perf_counter()
        self._steps: list[float] = []
        self._waited = 0.0

    def step(self, waited: float) -> None:
        """Ends a step.

        Args:
          waited: seconds of it that the device had nothing to do for want of data.
        """
        now = time.perf_counter()
        self._steps.append(now - self._last)
        self._last = now
        self._waited += waited

    def read(self) -> Reading:
        """Returns what at least one step since the last start took."""
        seconds, steps = time.perf_counter() - self._start, len(self._steps)
        half, most = np.percentile(self._steps, (50, 95))
        scalars = {
            "images_per_second": steps * self._batch_size / seconds,
            "data_wait": min(1.0, self._waited / seconds),
            "step_seconds": seconds / steps,
            "step_seconds_p50": float(half),
            "step_seconds_p95": float(most),
            "step_seconds_max": max(self._steps),
        }
        if self._peak:
            scalars["mfu"] = steps * self._flops / seconds / self._peak
        return Reading(seconds, scalars | memory())


def memory() -> dict[str, float]:
    """Returns `host_gib` and `device_gib`, see `Reading`, where each is known."""
    found = {}
    status = Path("/proc/self/status")
    if status.exists():  # Linux
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        found["host_gib"] = int(fields["VmRSS"].split()[0]) * 1024 / GIB
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [held["peak_bytes_in_use"] for held in stats if held and "peak_bytes_in_use" in held]
    if peaks:
        found["device_gib"] = max(peaks) / GIB
    return found
