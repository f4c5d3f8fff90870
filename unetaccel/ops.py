"""The operations that may have kernels: the only place that imports ``unetaccel_kernels``.

Each takes a ``backend``: ``"torch"``, its reference in plain PyTorch; ``"triton"``, its kernel, or an error that says why not;
``"auto"``, the kernel on CUDA where Triton works, and the reference elsewhere. ``choose`` tells which, and why.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from unetaccel_kernels import reference
from unetaccel_kernels.rules import DTYPES, MOST_FEATURES

from .errors import SettingError

BACKENDS = ("auto", "torch", "triton")


@dataclass(frozen=True)
class Choice:
    """``backend`` is "torch" or "triton"."""

    backend: str
    because: str


def check_backend(name: str, value: object) -> str:
    """``value``, if it is a backend.

    Raises:
        SettingError: it is none; or it is "triton", which is not installed or cannot build its kernels.
    """
    if value not in BACKENDS:
        raise SettingError(f"{name}={value!r}: expected 'auto', 'torch' or 'triton'")
    if value == "triton" and _missing() is not None:
        raise SettingError(f"{name}='triton' is not possible: {_missing()}. Or leave the choice to {name}='auto'")
    return value


def choose(x: torch.Tensor, backend: str = "auto") -> Choice:
    """What operations on ``x`` run on.

    Raises:
        SettingError: ``backend`` is "triton", and that cannot be; or it is none.
    """
    if backend == "triton" and torch.compiler.is_compiling():  # nothing of what follows can be traced
        return Choice("triton", "it was asked for, and a graph is being made")
    if check_backend("backend", backend) == "torch":
        return Choice("torch", "it was asked for")
    obstacle = _obstacle(x)
    if obstacle is None and (backend == "triton" or x.is_cuda):
        return Choice("triton", f"{x.dtype} tensors on {x.device} have kernels")
    if backend == "triton":
        raise SettingError(
            f"kernels='triton' is not possible for this tensor: {obstacle}. Use kernels='auto' or 'torch'"
        )
    return Choice("torch", obstacle or "the interpreter is for tests, and slow")


def _obstacle(x: torch.Tensor) -> str | None:
    """Why no kernel can run on ``x``; None if one can."""
    interpreted = x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if not (x.is_cuda or interpreted):
        return f"kernels run on CUDA, and it is on {x.device} (with TRITON_INTERPRET=1 in the environment they are interpreted on CPU)"
    if x.dtype not in DTYPES:
        return f"kernels take {', '.join(map(str, DTYPES))}, and it is {x.dtype}"
    return _missing()


@functools.cache
def _missing() -> str | None:
    """What Triton lacks on this machine; None if nothing."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install 'unetaccel[triton]', on Linux)"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler to launch its kernels, and neither gcc nor clang was found (CC may name one)"
    return None


def blends_by_kernel(feature: torch.Tensor, count: int, backend: str) -> bool:
    """Whether a forecast from ``count`` features like this one is one kernel, which wants its weights as a table."""
    return backend != "torch" and count <= MOST_FEATURES and choose(feature, backend).backend == "triton"


def weight_table(rows: Sequence[Sequence[float]], device: torch.device) -> torch.Tensor:
    """Rows of numbers as float32 (rows, numbers) on ``device``, without waiting for it."""
    table = torch.tensor(rows, dtype=torch.float32)
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table.to(device)


def forecast_blend(
    features: Sequence[torch.Tensor],
    weights: Sequence[float] | torch.Tensor,
    row: int | torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """``sum_i weights[i] * features[i]`` of tensors of one shape and dtype, rounded once; see ``reference.forecast_blend``.

    Where ``weights`` are numbers and a kernel runs, they are taken to its device each time; a ``weight_table`` is taken once.
    """
    if not features or choose(features[0], backend).backend == "torch":
        return reference.forecast_blend(features, weights, row, out)
    from unetaccel_kernels import forecast_blend as kernel

    if not isinstance(weights, torch.Tensor):
        reference.check_features(features, len(weights))
        weights, row = weight_table([weights], features[0].device), 0
    if not isinstance(row, torch.Tensor):
        weights, row = weights[row : row + 1], None
    if out is None:
        return kernel.forecast_blend(list(features), weights, row)
    kernel.forecast_blend_out(list(features), weights, row, out)
    return out


class Blend(NamedTuple):
    """A forecast that is yet to be blended by a kernel. As inputs of a recorded graph: one then serves every cached evaluation."""

    features: tuple[torch.Tensor, ...]
    weights: torch.Tensor
    """(1, features), float32: a row of a table that lies on the device."""

    @property
    def like(self) -> torch.Tensor:
        """A tensor of the blend's shape, dtype and device."""
        return self.features[0]

    def tensor(self, out: torch.Tensor | None = None) -> torch.Tensor:
        return forecast_blend(self.features, self.weights, 0, out, backend="triton")


def scale_concat(
    hidden: torch.Tensor | Blend, skip: torch.Tensor, scale: float | torch.Tensor = 1.0, backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """``cat([hidden, scale * skip], 1)`` and its moments, for ``groupnorm_silu``; see ``reference.scale_concat``.

    A ``Blend`` is blended where the concatenation has it.
    """
    if not isinstance(hidden, Blend) and choose(hidden, backend).backend == "torch":
        return reference.scale_concat(hidden, skip, scale)
    from unetaccel_kernels import scale_concat as kernel

    number, gate = (1.0, scale) if isinstance(scale, torch.Tensor) else (float(scale), None)
    if not isinstance(hidden, Blend):
        return kernel.scale_concat(hidden, skip, number, gate)
    channels = hidden.like.shape[1]
    joined = kernel.empty_joined(hidden.like, channels + skip.shape[1])
    hidden.tensor(out=joined[:, :channels])
    return joined, kernel.scale_concat_into(joined, skip, number, gate)


def groupnorm_silu(
    hidden: torch.Tensor,
    skip: torch.Tensor | None,
    norm: torch.nn.GroupNorm,
    moments: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """``silu(norm(cat([hidden, skip], 1)))``, rounded once, of parts that need not be concatenated; see ``reference.groupnorm_silu``."""
    arguments = (hidden, skip, norm.weight, norm.bias, norm.num_groups, norm.eps, moments)
    if choose(hidden, backend).backend == "torch":
        return reference.groupnorm_silu(*arguments)
    from unetaccel_kernels import groupnorm_silu as kernel

    return kernel.groupnorm_silu(*arguments)
