"""Metrics by name, as a sweep asks for them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import Protocol

import torch

from ..demo.labels import load_label_net
from ..errors import SettingError
from . import alignment, distances, similarity
from .features import Features, in_batches, label_features
from .values import Context, Value, over_seeds

Measure = Callable[[torch.Tensor, Context], dict[str, Value]]


class Metric(Protocol):
    """``measure`` takes a row's images, uint8 (N, 3, H, W), and gives a ``Value`` per column; a column that a row
    cannot have (likeness to the plain run, where there is none) is left out.

    ``columns`` describes each: ``{"label", "better", "unit", "to"}`` with ``to`` one of "real", "plain",
    "prompts". ``info`` is that of the main column, the one called ``name``.
    """

    name: str
    columns: dict[str, dict]
    info: dict

    def measure(self, images: torch.Tensor, context: Context) -> dict[str, Value]: ...


@dataclass(frozen=True)
class _Metric:
    name: str
    columns: dict[str, dict] = field(repr=False)
    measure: Measure = field(repr=False)

    @property
    def info(self) -> dict:
        return self.columns[self.name]


@dataclass
class _Parts:
    """What metrics of one sweep share: networks are loaded once, when first asked for."""

    device: torch.device | str

    @cached_property
    def label_features(self) -> Features:
        return label_features(self.device)


@dataclass(frozen=True)
class _Kind:
    """A metric that can be asked for.

    Args:
        columns: ``{column: (label, better, unit)}``.
        to: what it compares with.
        build: shared parts -> ``measure``.
        demo: it knows the demo's pictures only.
    """

    columns: dict[str, tuple[str, str, str]]
    to: str
    build: Callable[[_Parts], Measure]
    demo: bool = False
    torchmetrics: bool = True

    def describe(self) -> dict[str, dict]:
        return {
            name: {"label": label, "better": better, "unit": unit, "to": self.to}
            for name, (label, better, unit) in self.columns.items()
        }


def build_metrics(names: Iterable[str], *, model: str, device: torch.device | str = "cpu") -> list[Metric]:
    """Metrics by name, in the order asked for, with their networks loaded and checked.

    Args:
        names: of ``KINDS``.
        model: "demo", or the folder or hub id of the pipeline that made the images.
        device: where networks run; distances are computed on the CPU.

    Raises:
        SettingError: an unknown name, a metric that does not fit the model, or a missing package.
    """
    names = list(names)
    for name in names:
        _check(name, model)
    parts = _Parts(device)
    return [_Metric(name, KINDS[name].describe(), KINDS[name].build(parts)) for name in names]


def _check(name: str, model: str) -> None:
    if name not in KINDS:
        raise SettingError(f"unknown metric {name!r}; allowed are {', '.join(KINDS)}")
    kind = KINDS[name]
    if kind.demo and model != "demo":
        raise SettingError(
            f"metric {name!r} uses the demo's label network, which knows the demo's pictures only, not those of {model!r}"
        )
    if kind.torchmetrics and find_spec("torchmetrics") is None:
        raise SettingError(f'metric {name!r} needs torchmetrics: pip install "unetaccel[metrics]"')


def _distance(name: str, features: Features, distance: Callable[..., float]) -> Measure:
    def measure(images, context):
        if context.real is None:
            raise SettingError(f"metric {name!r} is a distance to real images and got none: give some or leave it out")
        real, fake = features(context.real), features(images)
        return over_seeds(context.seeds, lambda chosen: {name: distance(real, fake[chosen])})

    return measure


def _kernel(real: torch.Tensor, fake: torch.Tensor) -> float:
    return distances.kernel_distance(real, fake)[0]


def _likeness(name: str, compare: Callable, parts: _Parts, over: Callable = statistics.fmean) -> Measure:
    def measure(images, context):
        if context.plain is None:
            return {}
        figures = in_batches(compare, parts.device, images, context.plain)
        return over_seeds(context.seeds, lambda chosen: {name: over(figures[chosen].tolist())})

    return measure


def _labels(parts: _Parts) -> Measure:
    net = load_label_net().to(parts.device)

    def measure(images, context):
        if context.scenes is None:
            raise SettingError("labels are read against the demo's own captions: use those, or leave labels out")
        accuracy = alignment.label_accuracy(net, images, context.scenes, parts.device)
        return over_seeds(context.seeds, accuracy)

    return measure


KINDS = {
    "frechet": _Kind(
        {"frechet": ("Fréchet distance (demo label network)", "lower", "")},
        to="real",
        build=lambda parts: _distance("frechet", parts.label_features, distances.frechet_distance),
        demo=True,
    ),
    "kernel": _Kind(
        {"kernel": ("Kernel distance (demo label network)", "lower", "")},
        to="real",
        build=lambda parts: _distance("kernel", parts.label_features, _kernel),
        demo=True,
    ),
    "labels": _Kind(
        {
            "labels": ("Pictures with every label right", "higher", ""),
            "shape": ("Shapes right", "higher", ""),
            "colour": ("Colours right", "higher", ""),
        },
        to="prompts",
        build=_labels,
        demo=True,
        torchmetrics=False,
    ),
    "psnr": _Kind(
        {"psnr": ("PSNR to the plain run, median", "higher", "dB")},
        to="plain",
        build=lambda parts: _likeness("psnr", similarity.psnr, parts, over=statistics.median),
    ),
    "ssim": _Kind(
        {"ssim": ("SSIM to the plain run", "higher", "")},
        to="plain",
        build=lambda parts: _likeness("ssim", similarity.ssim, parts),
    ),
}
"""What can be asked for."""
