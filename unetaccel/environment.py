"""The machine and versions behind a measurement, for result files."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch

PACKAGES = ("unetaccel", "torch", "diffusers", "transformers", "accelerate", "torchmetrics", "triton", "DeepCache")


def environment(device: str | torch.device = "cpu") -> dict:
    """Versions, processor, threads and, for CUDA, the GPU's name."""
    device = torch.device(device)
    found = {
        "python": platform.python_version(),
        "packages": {name: v for name in PACKAGES if (v := _version(name))},
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
