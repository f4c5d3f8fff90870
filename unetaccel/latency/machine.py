"""What the GPU says of itself while it is timed: clocks, temperature and power."""

from __future__ import annotations

import shutil
import subprocess

import torch

FIELDS = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "temperature.gpu",
    "power.draw",
    "power.limit",
)
"""Of ``nvidia-smi --query-gpu``; MHz, degrees Celsius and watts."""


def clocks(device: torch.device) -> dict[str, str] | None:
    """``FIELDS`` of the GPU as they are now; None without one, or where nvidia-smi does not answer."""
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        return None
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    which = [f"--id=GPU-{uuid}"] if uuid else []
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits", *which]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return None
    return dict(zip(FIELDS, (value.strip() for value in answer.strip().split(",")), strict=False))
