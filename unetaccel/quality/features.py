"""Feature networks for the distances, and their answers for many images."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import SettingError
from .inception import load_inception


class Features:
    """Features of images, batch by batch; the last few answers are kept, so the real images run once per sweep.

    ``__call__``: uint8 images (N, 3, H, W) -> (N, d) on the CPU.

    Args:
        network: images (n, 3, H, W) in [0, 1] on ``device`` -> (n, d).
        batch: images per call of the network.
        keep: answers kept, the least recently used dropped first.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device | str = "cpu",
        batch: int = 64,
        keep: int = 3,
    ):
        self.network, self.device, self.batch, self.keep = network, device, batch, keep
        self._kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        key = _fingerprint(images)
        if key not in self._kept:
            self._kept[key] = in_batches(self.network, self.device, images, batch=self.batch)
        self._kept.move_to_end(key)
        while len(self._kept) > self.keep:
            self._kept.popitem(last=False)
        return self._kept[key]


def _fingerprint(images: torch.Tensor) -> bytes:
    """Of the content: a tensor read again from disk is known again, one written to is not."""
    data = images.detach().cpu().contiguous()
    return hashlib.blake2b(data.numpy(), digest_size=16, salt=str(tuple(data.shape)).encode()[:16]).digest()


@torch.no_grad()
def in_batches(
    work: Callable[..., torch.Tensor], device: torch.device | str, *images: torch.Tensor, batch: int = 64
) -> torch.Tensor:
    """``work`` on uint8 images (N, 3, H, W), handed to it in [0, 1] on ``device``; its answers (N, ...) on the CPU."""
    parts = zip(*(each.split(batch) for each in images), strict=True)
    return torch.cat([work(*(unit(each.to(device)) for each in part)).cpu() for part in parts])


def unit(images: torch.Tensor) -> torch.Tensor:
    """Images of 0..255 as float32 in [0, 1].

    Raises:
        SettingError: not uint8 images (N, 3, H, W).
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise SettingError(f"metrics take uint8 images (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    return images.float() / 255


def label_features(device: torch.device | str = "cpu") -> Features:
    """The demo's label network: 128 features of 32x32 pictures. It knows the demo's pictures only."""
    from ..demo.labels import load_label_net

    net = load_label_net().to(device)

    def network(images: torch.Tensor) -> torch.Tensor:
        if images.shape[-2:] != (32, 32):
            raise SettingError(f"the demo's label network reads 32x32 pictures, got {tuple(images.shape[-2:])}")
        return net.features(images)

    return Features(network, device, batch=250)


def inception_features(weights: Path | str, device: torch.device | str = "cpu") -> Features:
    """FID's Inception: 2048 features of images of any size, from a local weight file; see ``inception``."""
    return Features(load_inception(weights).to(device), device, batch=32)
