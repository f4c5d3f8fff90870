"""LPIPS from local files: learned perceptual distance of each image to the plain run's.

Zhang et al. 2018, arXiv 1801.03924, version 0.1 on AlexNet. torchmetrics ships the learned weights of the layers but takes
AlexNet from torchvision, and its weights from the network; here a local copy of that file is enough.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from .similarity import check_pair
from .weight_files import read_tensors

WHAT = "torchvision's AlexNet, alexnet-owt-7be5be79.pth"
TAPS = (1, 4, 7, 9, 11)  # the ReLUs
MEAN, SD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]


def trunk() -> nn.Sequential:
    """AlexNet's convolutions, numbered as torchvision does."""
    convolution, relu, pool = nn.Conv2d, nn.ReLU, nn.MaxPool2d
    return nn.Sequential(
        *[convolution(3, 64, 11, stride=4, padding=2), relu(), pool(3, 2)],
        *[convolution(64, 192, 5, padding=2), relu(), pool(3, 2)],
        *[convolution(192, 384, 3, padding=1), relu()],
        *[convolution(384, 256, 3, padding=1), relu()],
        *[convolution(256, 256, 3, padding=1), relu()],
    )


class LPIPS(nn.Module):
    """``forward``: images and plain (N, 3, H, W) in [0, 1], at least 32 pixels on a side -> distances (N,), 0 if equal.

    Raises:
        WeightsError: the file is missing, damaged, holding more than tensors, or of another network.
    """

    def __init__(self, alexnet: Path | str):
        super().__init__()
        self.trunk = trunk()
        shapes = {f"features.{name}": value.shape for name, value in self.trunk.state_dict().items()}
        tensors = read_tensors(alexnet, shapes, WHAT)
        self.trunk.load_state_dict({name.removeprefix("features."): value for name, value in tensors.items()})
        for i, weight in enumerate(_layer_weights(shapes)):
            self.register_buffer(f"weight{i}", weight)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("sd", torch.tensor(SD)[:, None, None])
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
        check_pair(images, plain)
        distance = 0
        for i, (a, b) in enumerate(zip(self._taps(images), self._taps(plain), strict=True)):
            distance += ((a - b).square() * self.get_buffer(f"weight{i}")).sum(1).mean((1, 2))
        return distance

    def _taps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Hidden states after each ReLU, of unit length at every place."""
        hidden, taps = (images * 2 - 1 - self.mean) / self.sd, []
        for i, layer in enumerate(self.trunk):
            hidden = layer(hidden)
            if i in TAPS:
                taps.append(hidden / (hidden.square().sum(1, keepdim=True) + 1e-8).sqrt())
        return taps


def _layer_weights(trunk_shapes: dict[str, torch.Size]) -> list[torch.Tensor]:
    """The learned weights (1, C, 1, 1) of the five layers, from the file in torchmetrics."""
    import torchmetrics

    file = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "alex.pth"
    widths = [shape[0] for name, shape in trunk_shapes.items() if name.endswith("weight")]
    shapes = {f"lin{i}.model.1.weight": torch.Size((1, width, 1, 1)) for i, width in enumerate(widths)}
    return list(read_tensors(file, shapes, "the alex.pth that torchmetrics 1.4 to 1.9 ships").values())
