"""Distances between two sets of features, in float64, as torchmetrics computes them.

Its metrics add up what all processes hold (``sync_on_compute``). Here each process has features of its own rows.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn

from ..errors import SettingError
from .moments import Moments


class _AsIs(nn.Module):
    """What torchmetrics takes for a feature network when the features are there already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def frechet_distance(real: torch.Tensor, fake: torch.Tensor) -> float:
    """Frechet distance between the normal distributions fitted to two sets of features.

    ``|m_r - m_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2))`` with means m and covariances S (Heusel et al. 2017,
    arXiv 1706.08500, equation 6). It falls with the number of samples: compare only sets of equal size.

    Args:
        real, fake: features (M, d) and (N, d).

    Raises:
        SettingError: fewer than two samples, or sets of different d.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, fake = _checked(real, fake)
    metric = FrechetInceptionDistance(feature=_AsIs(real.shape[1]), sync_on_compute=False)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return max(metric.compute().item(), 0.0)  # rounding leaves equal sets a hair off zero, on either side


def frechet_distance_to(real: Moments, fake: torch.Tensor) -> float:
    """``frechet_distance`` to real pictures of which only the features' mean and covariance are known.

    Args:
        real: of d features.
        fake: features (N, d).

    Raises:
        SettingError: fewer than two samples, or another d.
    """
    if fake.ndim != 2 or fake.shape[1] != real.width or len(fake) < 2:
        raise SettingError(
            f"a distance to statistics of {real.width} features takes (N, {real.width}) of at least 2 samples, "
            f"got {tuple(fake.shape)}"
        )
    fake = fake.detach().double().cpu()
    covariance = fake.T.cov()
    root = torch.linalg.eigvals(real.covariance @ covariance).sqrt().real.sum()
    apart = (real.mean - fake.mean(0)).square().sum()
    return max((apart + real.covariance.trace() + covariance.trace() - 2 * root).item(), 0.0)


def kernel_distance(
    real: torch.Tensor, fake: torch.Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Squared maximum mean discrepancy with the kernel ``(x.y / d + 1)^3``: mean and sd over random subsets.

    Binkowski et al. 2018, arXiv 1801.01401. Unbiased for independent samples, so it may be slightly negative; sets
    that share their captions are not independent, and equally good ones then lie well below zero.

    Args:
        real, fake: features (M, d) and (N, d).
        subsets: how many pairs of subsets are drawn.
        subset_size: samples in each, at most M and N.
        seed: of the draw; the caller's random state is left alone.

    Raises:
        SettingError: fewer than two samples, or sets of different d.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    real, fake = _checked(real, fake)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save")
        metric = KernelInceptionDistance(
            feature=_AsIs(real.shape[1]),
            subsets=subsets,
            subset_size=min(subset_size, len(real), len(fake)),
            sync_on_compute=False,
        )
        metric.update(real, real=True)
        metric.update(fake, real=False)
        torch.random.default_generator.manual_seed(seed)
        mean, sd = metric.compute()
    return mean.item(), sd.item()


def _checked(real: torch.Tensor, fake: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or min(len(real), len(fake)) < 2:
        raise SettingError(
            f"a distance takes features (M, d) and (N, d) of at least 2 samples each, "
            f"got {tuple(real.shape)} and {tuple(fake.shape)}"
        )
    return real.detach().double().cpu(), fake.detach().double().cpu()
