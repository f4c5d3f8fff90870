"""What a U-Net offers to a cache: its skips, and what a cached step would cost at each of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .costs import CutCost, cut_costs, deepest_cheap, example_inputs
from .errors import UnsupportedModelError, WeightsError
from .loading import local_folder
from .refusals import unet_refusal
from .shapes import SHAPES, build_shape
from .skips import UNETS, Skip, skip_table

INTERVALS = (2, 3, 5)


@dataclass(frozen=True)
class Inspection:
    """A U-Net's skips and the cost of each cut, for one size of input."""

    name: str
    batch: int
    size: tuple[int, int]
    """Height and width of the model's input (latent pixels)."""
    tokens: int
    """Length of the text condition."""
    skips: tuple[Skip, ...]
    costs: tuple[CutCost, ...]

    @property
    def auto(self) -> int:
        """What ``cut="auto"`` would take."""
        return deepest_cheap(self.costs)

    def as_dict(self) -> dict:
        """Plain data, ready for JSON: one entry per skip."""
        return {
            "model": self.name,
            "batch": self.batch,
            "size": list(self.size),
            "tokens": self.tokens,
            "full_macs": self.costs[0].full_macs,
            "auto_cut": self.auto,
            "cuts": [self._row(s, c) for s, c in zip(self.skips, self.costs, strict=True)],
        }

    def _row(self, skip: Skip, cost: CutCost) -> dict:
        return {
            "b": skip.b,
            "source": skip.source,
            "entry": skip.entry,
            "channels": skip.channels,
            "feature_channels": skip.hidden,
            "stride": skip.stride,
            "height": -(-self.size[0] // skip.stride),
            "width": -(-self.size[1] // skip.stride),
            "cached_macs": cost.cached_macs,
            "cached_share": round(cost.share, 4),
            "cached_bytes": cost.feature_bytes,
            "ceiling": {str(n): round(cost.ceiling(n), 3) for n in INTERVALS},
        }


def inspect_unet(
    unet: nn.Module,
    name: str,
    batch: int = 1,
    size: tuple[int, int] | None = None,
    tokens: int = 77,
    on_cut: Callable[[int, int], None] = lambda done, total: None,
) -> Inspection:
    """Count every cut of ``unet``. ``size`` is in latent pixels; ``on_cut(done, total)`` reports progress."""
    table, inputs = skip_table(unet), example_inputs(unet, batch, size, tokens)
    costs = []
    for cost in cut_costs(unet, inputs):
        costs.append(cost)
        on_cut(len(costs), len(table))
    shape = dict(inputs)["sample"][0]
    return Inspection(name, batch, tuple(shape[-2:]), tokens, tuple(table), tuple(costs))


def _made_of(folder: Path) -> str:
    index = folder / "model_index.json"
    parts = [k for k in json.loads(index.read_text()) if not k.startswith("_")] if index.is_file() else []
    return f"; this pipeline is made of {', '.join(parts)}" if parts else ""


def caption_tokens(model: str | Path | None) -> int:
    """Tokens of a caption, from the tokenizer of a local pipeline folder (None: the demo); 77 where it does not say."""
    from .demo.pipeline import WEIGHTS

    folder = WEIGHTS / "pipeline" if model is None else Path(model).expanduser()
    file = folder / "tokenizer" / "tokenizer_config.json"
    return json.loads(file.read_text()).get("model_max_length", 77) if file.is_file() else 77


def unet_without_weights(model: str | Path | None) -> tuple[nn.Module, str]:
    """A U-Net of this architecture on the meta device, and a name for it: only its config is read.

    Args:
        model: a pipeline or U-Net folder, a hub id, one of ``shapes.SHAPES``, or None for the demo.

    Raises:
        WeightsError: nothing of that name, or no config in it.
        UnsupportedModelError: a pipeline without a supported U-Net.
    """
    import diffusers

    from .demo.pipeline import WEIGHTS

    if model in SHAPES:
        return build_shape(model, device="meta"), str(model)
    folder = WEIGHTS / "pipeline" if model is None else local_folder(model)
    if folder is not None and not folder.is_dir():
        raise WeightsError(
            f"no folder {str(model)!r}, and it is neither a hub id nor a known shape ({', '.join(SHAPES)})"
        )
    sub = None if folder is not None and (folder / "config.json").is_file() else "unet"
    if folder is not None and not (folder / (sub or ".") / "config.json").is_file():
        raise UnsupportedModelError(f"{str(folder)!r} has no U-Net config{_made_of(folder)}")
    try:
        config = getattr(diffusers, UNETS[0]).load_config(str(folder or model), subfolder=sub)
    except OSError as error:
        raise WeightsError(
            f"cannot read the U-Net config of {str(model)!r}: {str(error).strip().splitlines()[0]}"
        ) from error
    kind = config.get("_class_name", UNETS[0])
    if kind not in UNETS:
        raise UnsupportedModelError(unet_refusal(kind, UNETS))
    with torch.device("meta"):
        return getattr(diffusers, kind).from_config(config).eval(), "demo" if model is None else str(model)
