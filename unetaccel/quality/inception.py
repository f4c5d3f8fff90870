"""Inception-v3 as FID uses it, from a local weight file.

The network of 2015-12-05 that Heusel et al. 2017 (arXiv 1706.08500) took from TensorFlow, not torchvision's: its average
pools leave padding out, its last block pools by maximum, and pictures are resized as TensorFlow 1 did. Parameters
carry the names of torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth``, so that file is all that is needed:
torch-fidelity itself cannot be imported without torchvision.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, max_pool2d, relu

from .weight_files import read_tensors

SIDE = 299
WHAT = (
    "torch-fidelity's weights-inception-2015-12-05-6726825d.pth (Inception-v3 with 1008 classes; torchvision's, with 1000, "
    "is another network)"
)

POOLS = {
    None: lambda x: x,
    "average": lambda x: avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
    "max": lambda x: max_pool2d(x, 3, stride=1, padding=1),
    "halve": lambda x: max_pool2d(x, 3, stride=2),
}


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU. ``padding`` keeps the size unless given."""

    def __init__(self, channels: int, width: int, kernel: int | tuple[int, int], stride: int = 1, padding=None):
        super().__init__()
        height, breadth = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, breadth // 2) if padding is None else padding
        self.conv = nn.Conv2d(channels, width, (height, breadth), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side, joined along channels.

    Args:
        branches: (pool, chain) each; a link of a chain is ``(name, width, kernel[, stride])``, where a stride of 2
            goes without padding, or a list of such, run side by side on the same input.
    """

    def __init__(self, channels: int, branches: list[tuple[str | None, list]]):
        super().__init__()
        self.plan, self.width = [], 0
        for pool, chain in branches:
            width, steps = channels, []
            for link in chain:
                links = link if isinstance(link, list) else [link]
                for name, out, kernel, *stride in links:
                    padding = 0 if stride else None
                    self.add_module(f"branch{name}", Convolution(width, out, kernel, *stride, padding=padding))
                steps.append([f"branch{name}" for name, *_ in links])
                width = sum(out for _, out, *_ in links)
            self.plan.append((POOLS[pool], steps))
            self.width += width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = []
        for pool, steps in self.plan:
            hidden = pool(x)
            for names in steps:
                hidden = torch.cat([self.get_submodule(name)(hidden) for name in names], 1)
            branches.append(hidden)
        return torch.cat(branches, 1)


def _wide(pooled: int) -> list:
    return [
        (None, [("1x1", 64, 1)]),
        (None, [("5x5_1", 48, 1), ("5x5_2", 64, 5)]),
        (None, [("3x3dbl_1", 64, 1), ("3x3dbl_2", 96, 3), ("3x3dbl_3", 96, 3)]),
        ("average", [("_pool", pooled, 1)]),
    ]


def _long(c: int) -> list:
    row, column = (1, 7), (7, 1)
    return [
        (None, [("1x1", 192, 1)]),
        (None, [("7x7_1", c, 1), ("7x7_2", c, row), ("7x7_3", 192, column)]),
        (
            None,
            [
                ("7x7dbl_1", c, 1),
                *[("7x7dbl_2", c, column), ("7x7dbl_3", c, row), ("7x7dbl_4", c, column), ("7x7dbl_5", 192, row)],
            ],
        ),
        ("average", [("_pool", 192, 1)]),
    ]


def _forked(pool: str) -> list:
    row, column = (1, 3), (3, 1)
    return [
        (None, [("1x1", 320, 1)]),
        (None, [("3x3_1", 384, 1), [("3x3_2a", 384, row), ("3x3_2b", 384, column)]]),
        (
            None,
            [("3x3dbl_1", 448, 1), ("3x3dbl_2", 384, 3), [("3x3dbl_3a", 384, row), ("3x3dbl_3b", 384, column)]],
        ),
        (pool, [("_pool", 192, 1)]),
    ]


BLOCKS = {
    "Mixed_5b": _wide(32),
    "Mixed_5c": _wide(64),
    "Mixed_5d": _wide(64),
    "Mixed_6a": [
        (None, [("3x3", 384, 3, 2)]),
        (None, [("3x3dbl_1", 64, 1), ("3x3dbl_2", 96, 3), ("3x3dbl_3", 96, 3, 2)]),
        ("halve", []),
    ],
    "Mixed_6b": _long(128),
    "Mixed_6c": _long(160),
    "Mixed_6d": _long(160),
    "Mixed_6e": _long(192),
    "Mixed_7a": [
        (None, [("3x3_1", 192, 1), ("3x3_2", 320, 3, 2)]),
        (None, [("7x7x3_1", 192, 1), ("7x7x3_2", 192, (1, 7)), ("7x7x3_3", 192, (7, 1)), ("7x7x3_4", 192, 3, 2)]),
        ("halve", []),
    ],
    "Mixed_7b": _forked("average"),
    "Mixed_7c": _forked("max"),
}


class Inception(nn.Module):
    """``forward``: images (N, 3, H, W) in [0, 1] -> the 2048 features of FID, (N, 2048)."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2, padding=0)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, padding=0)
        width = 192
        for name, branches in BLOCKS.items():
            block = Mixed(width, branches)
            self.add_module(name, block)
            width = block.width
        self.fc = nn.Linear(width, 1008)  # not run: its shape tells the right weight file from others

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = (resize(images * 255) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(POOLS["halve"](x)))
        x = POOLS["halve"](x)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


def resize(images: torch.Tensor, side: int = SIDE) -> torch.Tensor:
    """Bilinear resize of (N, 3, H, W) to (N, 3, side, side) as TensorFlow 1 did it, on which FIDs depend.

    Pixel i reads from ``i H / side``, with neither half-pixel centres nor smoothing before shrinking.
    """
    return _stretch(_stretch(images, 3, side), 2, side)


def _stretch(x: torch.Tensor, dim: int, side: int) -> torch.Tensor:
    n = x.shape[dim]
    place = torch.arange(side, device=x.device, dtype=torch.float32) * (n / side)
    low = place.long()
    share = (place - low).reshape([-1] + [1] * (3 - dim)).to(x.dtype)
    return torch.lerp(x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=n - 1)), share)


def load_inception(path: Path | str) -> Inception:
    """The network in float32, ready for evaluation.

    Raises:
        WeightsError: no such file, damaged, holding more than tensors, or of another network.
    """
    with torch.device("meta"):
        net = Inception()
    shapes = {k: v.shape for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    tensors = read_tensors(path, shapes, WHAT)
    for name in net.state_dict().keys() - shapes.keys():  # counts of training batches, which evaluation never reads
        tensors[name] = torch.tensor(0)
    net.load_state_dict(tensors, assign=True)
    return net.eval().requires_grad_(False)
