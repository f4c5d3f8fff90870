"""Likeness of each image to the plain run's image of the same prompt and seed."""

from __future__ import annotations

import torch

from ..errors import SettingError


def psnr(images: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image in dB, (N,); infinite where it equals its reference.

    Args:
        images, plain: (N, 3, H, W) in [0, 1].

    Raises:
        SettingError: the shapes differ.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    check_pair(images, plain)
    return peak_signal_noise_ratio(images.double(), plain.double(), data_range=1.0, reduction="none", dim=(1, 2, 3))


def ssim(images: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image, (N,), at most 1; Gaussian window of 11 pixels, sd 1.5.

    Wang et al. 2004, doi 10.1109/TIP.2003.819861.

    Args:
        images, plain: (N, 3, H, W) in [0, 1], at least 11 pixels on a side.

    Raises:
        SettingError: the shapes differ, or the images are smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    check_pair(images, plain)
    if min(images.shape[-2:]) < 11:
        raise SettingError(f"ssim looks through a window of 11 pixels, got images of {tuple(images.shape[-2:])}")
    return structural_similarity_index_measure(images, plain, data_range=1.0, reduction="none").reshape(len(images))


def check_pair(images: torch.Tensor, plain: torch.Tensor) -> None:
    """Raise ``SettingError`` unless both are (N, 3, H, W) of one shape."""
    if images.ndim != 4 or images.shape != plain.shape:
        raise SettingError(
            "images are compared one by one with the plain run's of the same prompts, seeds and size, "
            f"got {tuple(images.shape)} and {tuple(plain.shape)}"
        )
