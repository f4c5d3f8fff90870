"""Execution: how evaluations are run, as ``apply`` was told."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch

from .errors import SettingError
from .ops import check_backend


@dataclass(frozen=True)
class Execution:
    """Checked settings.

    Attributes:
        inductor: options of ``torch.compile``, or None.
        graphs: capture CUDA graphs.
        kernels: ``"auto"``, ``"torch"`` or ``"triton"``, see ``ops``.
        precompute: compute once what does not change from one evaluation to the next.
    """

    inductor: dict | None = None
    graphs: bool = False
    kernels: str = "auto"
    precompute: bool = False

    @classmethod
    def of(cls, compile: bool | str | dict, kernels: str, precompute: bool) -> Execution:
        """From the arguments of ``apply``.

        Raises:
            SettingError: one of them is not allowed.
        """
        if type(precompute) is not bool:
            raise SettingError(f"apply(precompute)={precompute!r}: expected True or False")
        return cls(_options(compile), compile == "graphs", check_backend("apply(kernels)", kernels), precompute)

    @property
    def compiles(self) -> bool:
        """Whether steps are compiled or recorded."""
        return self.graphs or self.inductor is not None

    @property
    def fused(self) -> bool:
        """Whether the layer at the cut is run by kernels."""
        return self.kernels == "triton"


EAGER = Execution()


def _options(value: bool | str | dict) -> dict | None:
    """``apply(compile=...)`` as keyword arguments of ``torch.compile``; None where it compiles nothing."""
    if isinstance(value, dict):
        return _known(value)
    if value is True or value == "inductor":
        return {}
    if value is False or value == "graphs":
        return None
    raise SettingError(
        f"apply(compile)={value!r}: expected 'graphs', 'inductor' (or True), False, or a dict of torch.compile's options such as "
        "{'mode': 'max-autotune'}"
    )


def _known(options: dict) -> dict:
    """``options``, if ``torch.compile`` takes them: it would say so at the first evaluation only."""
    parameters = inspect.signature(torch.compile).parameters
    known = [name for name in parameters if name != "model"]
    strange = [name for name in options if name not in known]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())  # another tool has wrapped it
    if strange and not takes_any:
        raise SettingError(
            f"apply(compile={options!r}): torch.compile has no {strange[0]!r}; it takes {', '.join(known)}"
        )
    return options
