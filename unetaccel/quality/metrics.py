"""Metrics by name, as a sweep asks for them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import torch

from ..demo.labels import load_label_net
from ..errors import SettingError
from . import alignment, clip, distances, inception, lpips, similarity
from .features import Features, in_batches, inception_features, label_features
from .moments import Moments, read_moments
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
    weights: dict[str, Path | str]

    @cached_property
    def label_features(self) -> Features:
        return label_features(self.device)

    @cached_property
    def inception_features(self) -> Features:
        return inception_features(self.weights["inception"], self.device)


@dataclass(frozen=True)
class _Kind:
    """A metric that can be asked for.

    Args:
        columns: ``{column: (label, better, unit)}``.
        to: what it compares with.
        build: shared parts -> ``measure``.
        weights: which of ``WEIGHTS`` it needs, if any.
        demo: it knows the demo's pictures only.
        moments: how many features it compares, where their mean and covariance are all it needs of real pictures.
    """

    columns: dict[str, tuple[str, str, str]]
    to: str
    build: Callable[[_Parts], Measure]
    weights: str | None = None
    demo: bool = False
    torchmetrics: bool = True
    moments: int | None = None

    def describe(self) -> dict[str, dict]:
        return {
            name: {"label": label, "better": better, "unit": unit, "to": self.to}
            for name, (label, better, unit) in self.columns.items()
        }


WEIGHTS = {"inception": inception.WHAT, "clip": clip.WHAT, "alexnet": lpips.WHAT}
"""Local weights that metrics may need, by name. Nothing is downloaded."""


def build_metrics(
    names: Sequence[str], *, model: str, device: torch.device | str = "cpu", **weights: Path | str
) -> list[Metric]:
    """Metrics by name, in the order asked for, with their networks loaded and checked.

    Args:
        names: of ``KINDS``.
        model: "demo", or the folder or hub id of the pipeline that made the images.
        device: where networks run; distances are computed on the CPU.
        weights: paths of local weights, by the names in ``WEIGHTS``: ``inception`` for fid and kid, ``clip`` for clip,
            ``alexnet`` for lpips.

    Raises:
        SettingError: an unknown name, a metric that does not fit the model, weights that it needs and were not given,
            or a missing package.
        WeightsError: weights that are missing, damaged or of another network.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise SettingError(f"metrics must be a list of names, got {names!r}; allowed are {', '.join(KINDS)}")
    for name in weights.keys() - WEIGHTS.keys():
        raise SettingError(f"unknown weights {name!r}; allowed are {', '.join(WEIGHTS)}")
    for name in names:
        _check(name, model, weights)
    parts = _Parts(device, weights)
    return [_Metric(name, KINDS[name].describe(), KINDS[name].build(parts)) for name in dict.fromkeys(names)]


def _check(name: str, model: str, weights: dict[str, Path | str]) -> None:
    if name not in KINDS:
        raise SettingError(f"unknown metric {name!r}; allowed are {', '.join(KINDS)}")
    kind = KINDS[name]
    if kind.demo and model != "demo":
        raise SettingError(
            f"metric {name!r} uses the demo's label network, which knows the demo's pictures only, not those of {model!r}; "
            "take fid, kid or clip, with their weights, or psnr and ssim"
        )
    if kind.weights and weights.get(kind.weights) is None:
        raise SettingError(
            f"metric {name!r} needs local weights, {kind.weights!r} (in a sweep: `weights: {{{kind.weights}: PATH}}`): the path of {WEIGHTS[kind.weights]}"
        )
    if kind.torchmetrics and find_spec("torchmetrics") is None:
        raise SettingError(f'metric {name!r} needs torchmetrics: pip install "unetaccel[metrics]"')


def real_moments(path: Path | str, names: Sequence[str]) -> Moments:
    """The statistics file that stands for the real pictures, where these metrics can do with one.

    Args:
        names: metrics to be measured; those that need no real pictures do not matter.

    Raises:
        SettingError: a metric needs the pictures themselves, or features of another number.
        WeightsError: the file is missing, damaged or of another kind.
    """
    found = read_moments(path)
    for name in names:
        if KINDS[name].to == "real":
            _check_moments(name, found)
    return found


def _check_moments(name: str, found: Moments) -> None:
    width = KINDS[name].moments
    if width is None:
        raise SettingError(
            f"metric {name!r} compares the features of single pictures, of which the statistics file {found.source!r} holds "
            "the mean and covariance only: name a folder of the pictures, or leave it out"
        )
    if found.width != width:
        raise SettingError(
            f"metric {name!r} compares {width} features, but the statistics file {found.source!r} has {found.width}: "
            "it is of another network"
        )


def _distance(name: str, features: Features, distance: Callable[..., float]) -> Measure:
    def measure(images, context):
        if context.real is None:
            raise SettingError(f"metric {name!r} is a distance to real images and got none: give some or leave it out")
        made = features(images)
        if isinstance(context.real, Moments):
            _check_moments(name, context.real)
            to_real = partial(distances.frechet_distance_to, context.real)
        else:
            to_real = partial(distance, features(context.real))
        return over_seeds(context.seeds, lambda chosen: {name: to_real(made[chosen])})

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


def _lpips(parts: _Parts) -> Measure:
    return _likeness("lpips", lpips.LPIPS(parts.weights["alexnet"]).to(parts.device), parts)


def _clip(parts: _Parts) -> Measure:
    score = clip.ClipScore(parts.weights["clip"], parts.device)

    def measure(images, context):
        scores = score(images, context.prompts)
        return over_seeds(context.seeds, lambda chosen: {"clip": scores[chosen].mean().item()})

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
        moments=128,
    ),
    "kernel": _Kind(
        {"kernel": ("Kernel distance (demo label network)", "lower", "")},
        to="real",
        build=lambda parts: _distance("kernel", parts.label_features, _kernel),
        demo=True,
    ),
    "fid": _Kind(
        {"fid": ("FID (Inception-v3)", "lower", "")},
        to="real",
        build=lambda parts: _distance("fid", parts.inception_features, distances.frechet_distance),
        weights="inception",
        moments=2048,
    ),
    "kid": _Kind(
        {"kid": ("KID (Inception-v3)", "lower", "")},
        to="real",
        build=lambda parts: _distance("kid", parts.inception_features, _kernel),
        weights="inception",
    ),
    "clip": _Kind(
        {"clip": ("CLIP score", "higher", "")},
        to="prompts",
        build=_clip,
        weights="clip",
        torchmetrics=False,
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
        {"psnr": ("PSNR to the plain run of as many steps, median", "higher", "dB")},
        to="plain",
        build=lambda parts: _likeness("psnr", similarity.psnr, parts, over=statistics.median),
    ),
    "ssim": _Kind(
        {"ssim": ("SSIM to the plain run of as many steps", "higher", "")},
        to="plain",
        build=lambda parts: _likeness("ssim", similarity.ssim, parts),
    ),
    "lpips": _Kind(
        {"lpips": ("LPIPS (AlexNet) to the plain run of as many steps", "lower", "")},
        to="plain",
        build=_lpips,
        weights="alexnet",
    ),
}
"""What can be asked for."""
