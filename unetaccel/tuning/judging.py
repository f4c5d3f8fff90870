"""Judging held-out pictures for a budget: one number per picture, more is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import SettingError
from ..sampling import psnr
from .budgets import Budget

Metric = Callable[[np.ndarray, np.ndarray], Sequence[float]]
"""``(images, plain) -> N numbers``, more is better. Both are float32 (N, H, W, 3) in [0, 1]; ``plain`` was sampled without caching."""


@dataclass(frozen=True)
class Score:
    """Of one way to sample: the mean over the held-out pictures, and the worst of them."""

    mean: float
    lowest: float


@dataclass(frozen=True)
class Judge:
    """What pictures are judged by.

    Attributes:
        name, unit: for people.
        measure: see ``Metric``.
    """

    name: str
    unit: str
    measure: Metric

    def score(self, images: np.ndarray, plain: np.ndarray) -> Score:
        """Raise ``SettingError`` where a metric of the user's does not give one finite number per picture."""
        found = np.asarray(self.measure(images, plain), dtype=np.float64)
        if found.shape != (len(images),) or np.isnan(found).any():
            raise SettingError(
                f"the metric must give one number per picture, {len(images)} here, got {found.tolist() if found.size < 20 else found.shape}"
            )
        return Score(float(found.mean()), float(found.min()))

    def text(self, value: float) -> str:
        if math.isinf(value):
            return "equal"
        return f"{value:.2f} {self.unit}" if self.unit else f"{value:.4f}"


def judge_of(budget: Budget, metric: Metric | None, prompts: Sequence[str]) -> Judge:
    """What a budget is judged by; of a ceiling the user's metric, or PSNR.

    Args:
        prompts: of the held-out pictures, which labels are read against.

    Raises:
        SettingError: a metric is missing or would not be read, torchmetrics is not installed, or prompts without labels.
    """
    if metric is not None and not callable(metric):
        raise SettingError(f"metric must be a function (images, plain) -> one number per picture, got {metric!r}")
    if budget.kind == "metric" and metric is None:
        raise SettingError(
            f"budget {budget} needs a metric: unetaccel.tune(..., metric=function), with function(images, plain) -> one number per picture"
        )
    if metric is not None and budget.kind in ("psnr", "ssim", "labels"):
        raise SettingError(
            f"budget {budget} is judged by {budget.kind}, and metric would not be read: ask for metric=..."
        )
    if metric is not None:
        return Judge("metric", "", metric)
    if budget.kind == "ssim":
        return _ssim()
    if budget.kind == "labels":
        return _labels(prompts)
    return Judge("psnr", "dB", psnr)


def _ssim() -> Judge:
    from importlib.util import find_spec

    if find_spec("torchmetrics") is None:
        raise SettingError('budget ssim needs torchmetrics: pip install "unetaccel[metrics]", or take psnr')

    def measure(images, plain):
        from ..quality.similarity import ssim

        return ssim(_channels_first(images), _channels_first(plain)).numpy()

    return Judge("ssim", "", measure)


def _labels(prompts: Sequence[str]) -> Judge:
    from ..demo.captions import read_captions
    from ..demo.labels import load_label_net, right_answers

    scenes, net = read_captions(prompts), load_label_net()

    def measure(images, plain):
        import torch

        if images.shape[1:] != (32, 32, 3):
            raise SettingError(f"labels are read from the demo's pictures of 32x32 pixels, got {images.shape[1:3]}")
        with torch.no_grad():
            right = right_answers(net(_channels_first(images)), scenes)
        return torch.stack(list(right.values())).all(0).double().numpy()

    return Judge("labels", "", measure)


def _channels_first(images: np.ndarray):
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
