"""Time embedding for a whole sampling call at once: what every layer adds for each timestep, in one batched computation.

A U-Net embeds the timestep, and each of its resnets projects the embedding to its width: two small products for the one
and one for each of the others, at every evaluation, though all timesteps are known before the first. Here the embedding of all of
them is taken from diffusers' own ``forward``, run on an overlay that ends where the encoder begins, and is projected once per
call: tables of shape (T, n, C), one for each layer. An evaluation then looks its rows up and runs none of those layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from .errors import UnsupportedModelError
from .held import Held, Versions, autocast, spot, touched_on_the_way
from .overlay import overlay
from .skips import check_supported
from .views import PassThrough

CLASSES = (
    "UNet2DModel",
    "UNet2DConditionModel",
    "UNetMotionModel",
    "UNet3DConditionModel",
    "UNetSpatioTemporalConditionModel",
)
LAYERS = ("ResnetBlock2D", "TemporalResnetBlock")
"""Which take from the embedding what their ``time_emb_proj`` makes of it, and nothing else."""
MIDDLES = (
    "UNetMidBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UNetMidBlock2DSimpleCrossAttn",
    "UNetMidBlockCrossAttnMotion",
    "UNetMidBlock3DCrossAttn",
    "UNetMidBlockSpatioTemporal",
)
BEFORE = ("time_proj", "time_embedding", "class_embedding", "add_time_proj", "add_embedding")
"""Parts of a U-Net whose output goes into the embedding alone."""
ADDED = {None: (), "text": (), "text_time": ("text_embeds", "time_ids"), "image": ("image_embeds",)}
"""What of ``added_cond_kwargs`` enters the embedding, by ``addition_embed_type``."""
MAX_TABLES = 4
"""Kept at a time: two-pass guidance alternates between conditions."""


class Projection(Held):
    """Stands for a ``time_emb_proj``: ``value`` is a row (n, C), with n of the batch, or 1 where all of it has the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.value is None:
            return self.layer(x)
        if x.ndim == 3:  # (N, frames, C)
            return self.value[:, None]
        if len(self.value) in (1, len(x)):
            return self.value
        return self.value.repeat_interleave(len(x) // len(self.value), 0)  # (N * frames, C)


@dataclass
class Table:
    """What the layers add at every timestep of a call, under one condition."""

    rows: list[torch.Tensor]
    """(T, n, C) of each layer. Apart, so that a row has no gaps: recorded graphs copy those many at a time."""
    sources: list[torch.Tensor]
    """What it was made of, held so that their memory is not given to others."""
    _nothing: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.rows)

    def nothing(self, n: int) -> torch.Tensor:
        """(n, 1): stands for what nothing reads; not empty, because some U-Nets reshape it to -1 columns."""
        if n not in self._nothing:
            self._nothing[n] = self.rows[0].new_zeros(n, 1)
        return self._nothing[n]


class TimeTable:
    """The tables of one set of views, and the layers that stand in these for what the tables hold.

    Attributes:
        stand_ins: by the path of the layer that each stands for; none if the embedding cannot be computed beforehand.
        obstacle: why not, or None.
    """

    def __init__(self, unet: nn.Module):
        self.obstacle, self.stand_ins = obstacle(unet), {}
        self.clear()
        if self.obstacle is not None:
            return
        resnets, before = dict(_resnets(unet)), _before(unet)
        made = {id(m): Projection(m.time_emb_proj) for m in resnets.values()}
        self._projections = list(made.values())
        self._activations = [_activation(m) for m in {id(m): m for m in resnets.values()}.values()]
        self._before = {name: Held(unet._modules[name]) for name in before}
        self.stand_ins = {**self._before, **{f"{path}.time_emb_proj": made[id(m)] for path, m in resnets.items()}}
        self._leaves = [m for stand_in in self.stand_ins.values() for m in stand_in.layer.modules()]
        self._weights = Versions(self._leaves)
        self._probe, self._labelled = Probe(unet), "class_embedding" in before
        self._added = unet.config.get("addition_embed_type")

    def clear(self) -> None:
        """Let go of all tensors."""
        self._tables: dict[tuple, Table] = {}
        self._places: tuple[tuple, dict[float, int]] | None = None
        self._release()

    def _release(self) -> None:
        for stand_in in self.stand_ins.values():
            stand_in.hold(None)

    @property
    def nbytes(self) -> int:
        """Of all tables: timesteps x batch (1 where nothing but the time enters) x summed widths x bytes of an element, each."""
        return sum(table.nbytes for table in self._tables.values())

    def set(self, inputs: dict, timesteps: torch.Tensor | None) -> None:
        """Make the next evaluation, with these ``inputs``, take its row; or compute as usual where that is not known.

        Args:
            timesteps: of the call, (T,); where ``inputs["timestep"]`` is a view of it, its place tells the row. Nothing
                is read from a device.
        """
        if not self.stand_ins:
            return
        index, sample = None, inputs["sample"]
        if timesteps is not None and not torch.is_grad_enabled() and autocast(sample) is None:
            index = self._index(inputs["timestep"], timesteps)
        table = None if index is None else self._table(inputs, sample, timesteps)
        if table is None:
            return self._release()
        for stand_in, part in zip(self._projections, table.rows, strict=True):
            stand_in.hold(part[index])
        nothing = table.nothing(len(sample))
        for stand_in in self._before.values():
            stand_in.hold(nothing)

    def _index(self, timestep: object, timesteps: torch.Tensor) -> int | None:
        """Which of ``timesteps`` this one is, as far as the host knows."""
        if isinstance(timestep, torch.Tensor):
            place = _place_in(timestep, timesteps)
            if place is not None or timestep.device.type != "cpu" or timestep.numel() != 1:
                return place
            value = timestep.item()
        elif type(timestep) is int or (
            type(timestep) is float and timestep.is_integer()
        ):  # others are cut by some U-Nets
            value = timestep
        else:
            return None
        return self._index_of(value, timesteps)

    def _index_of(self, value: float, timesteps: torch.Tensor) -> int | None:
        place = spot(timesteps)
        if timesteps.device.type != "cpu" or place is None:
            return None
        if self._places is None or self._places[0] != place:
            self._places = place, {t: i for i, t in enumerate(timesteps.tolist())}
        return self._places[1].get(value)

    def _table(self, inputs: dict, sample: torch.Tensor, timesteps: torch.Tensor) -> Table | None:
        """The table for these inputs: made when first asked for, or when what it was made of has changed."""
        if not self._unchanged():
            return None
        given = self._given(inputs)
        sources = [timesteps, *_tensors(given)]
        places = tuple(map(spot, sources))
        if None in places or not all(t.ndim and len(t) == len(sample) for t in sources[1:]):
            return None
        n = len(sample) if given else 1
        key = (n, sample.shape[1:-2], sample.dtype, sample.device, tuple(given), places)
        if key not in self._tables:
            while len(self._tables) >= MAX_TABLES:
                del self._tables[next(iter(self._tables))]
            self._tables[key] = Table(self._made(inputs, given, sample[:n], timesteps), sources)
        return self._tables[key]

    def _unchanged(self) -> bool:
        """Whether the layers are as published: no hooks, weights whose writes are counted. Drops tables of former weights."""
        if not self._weights.are_current():
            self._tables.clear()
            self._weights = Versions(self._leaves)
            if not self._weights.are_current():
                return False
        return not any(m._forward_hooks or m._forward_pre_hooks for m in self._leaves)

    def _given(self, inputs: dict) -> dict:
        """The inputs, besides time, that enter the embedding: each of the batch."""
        names = ["timestep_cond", "added_time_ids", *(["class_labels"] if self._labelled else ())]
        if self._added == "text":
            names.append("encoder_hidden_states")
        given = {name: inputs[name] for name in names if inputs.get(name) is not None}
        added = inputs.get("added_cond_kwargs") or {}
        read = {name: added[name] for name in ADDED[self._added] if name in added}
        return {**given, "added_cond_kwargs": read} if read else given

    def _made(self, inputs: dict, given: dict, sample: torch.Tensor, timesteps: torch.Tensor) -> list[torch.Tensor]:
        """The rows (T, n, C) of each layer."""
        T, n = len(timesteps), len(sample)
        asked = {name: _repeated(value, T) for name, value in given.items()}
        if "encoder_hidden_states" in inputs and "encoder_hidden_states" not in given:  # wanted, and not read
            context = inputs["encoder_hidden_states"]
            asked["encoder_hidden_states"] = None if context is None else context[:1, :1]
        temb = self._probe(
            sample=sample.new_zeros(T * n, *sample.shape[1:-2], 1, 1),
            timestep=timesteps.to(sample.device, torch.float32).repeat_interleave(n),
            **asked,
        )
        temb = temb.unflatten(0, (T, n, -1))[:, :, 0]  # frames have it in common
        return [p.layer(act(temb)) for p, act in zip(self._projections, self._activations, strict=True)]


class Probe:
    """A U-Net's embedding (N * frames, C) as a function of the U-Net's inputs: diffusers' own ``forward``, up to the encoder."""

    def __init__(self, unet: nn.Module):
        skipped = {name: PassThrough() for name in ("conv_in", "transformer_in") if name in unet._modules}
        if unet._modules.get("encoder_hid_proj") is not None:
            skipped["encoder_hid_proj"] = None
        self._unet = overlay(unet, {**skipped, "down_blocks": nn.ModuleList([_End()])})

    def __call__(self, **inputs) -> torch.Tensor:
        try:
            type(self._unet).forward(self._unet, **inputs)
        except _Reached as end:
            return end.temb
        raise AssertionError("a U-Net without an encoder")


class _Reached(Exception):  # noqa: N818 - nothing is wrong
    """The encoder would begin, with this embedding."""

    def __init__(self, temb: torch.Tensor):
        self.temb = temb


class _End(nn.Module):
    """Stands for the encoder."""

    def forward(self, *args, temb: torch.Tensor, **kwargs):
        raise _Reached(temb)


def _tensors(given: object) -> Iterator[torch.Tensor]:
    for value in given.values():
        yield from _tensors(value) if isinstance(value, dict) else [value]


def _repeated(value: object, times: int) -> object:
    """(N, ...) -> (times * N, ...), the batch within."""
    if isinstance(value, dict):
        return {name: _repeated(part, times) for name, part in value.items()}
    return value.repeat(times, *[1] * (value.ndim - 1))


def _place_in(timestep: torch.Tensor, timesteps: torch.Tensor) -> int | None:
    """The index in ``timesteps`` of which ``timestep`` is a view, one element however often expanded."""
    one = all(stride == 0 or size == 1 for stride, size in zip(timestep.stride(), timestep.shape, strict=True))
    if not one or not timestep.numel() or timestep.dtype != timesteps.dtype or timestep.device != timesteps.device:
        return None
    if timestep.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr():
        return None
    index, between = divmod(timestep.storage_offset() - timesteps.storage_offset(), timesteps.stride(0) or 1)
    return index if not between and 0 <= index < len(timesteps) else None


def _before(unet: nn.Module) -> list[str]:
    return [name for name in BEFORE if unet._modules.get(name) is not None]


def _resnets(unet: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What takes the embedding by a projection of its own, by path."""
    for path, module in unet.named_modules(remove_duplicate=False):
        if hasattr(module, "time_emb_proj"):
            yield path, module


def _activation(resnet: nn.Module) -> nn.Module:
    """What a resnet does to the embedding before it projects it."""
    return nn.Identity() if getattr(resnet, "skip_time_act", False) else resnet.nonlinearity


def obstacle(unet: nn.Module) -> str | None:
    """Why the embedding of this U-Net is computed at every evaluation, or None."""
    if not {c.__name__ for c in type(unet).__mro__} & set(CLASSES):
        return f"what a {type(unet).__name__} does with its time embedding is not known here"
    try:
        check_supported(unet)
    except UnsupportedModelError as error:
        return str(error)
    return _unknown_part(unet) or _unknown_reader(unet) or _changed_layer(unet)


def _unknown_part(unet: nn.Module) -> str | None:
    middle, added = getattr(unet, "mid_block", None), unet.config.get("addition_embed_type")
    if type(unet.time_proj).__name__ != "Timesteps":
        return f"time is embedded by a {type(unet.time_proj).__name__}"
    if added not in ADDED:
        return f"addition_embed_type={added!r} embeds more than is known here"
    if middle is not None and type(middle).__name__ not in MIDDLES:
        return f"its mid block is a {type(middle).__name__}"
    return None


def _unknown_reader(unet: nn.Module) -> str | None:
    """Something that takes the embedding otherwise than by a projection."""
    for path, module in unet.named_modules():
        norm = getattr(module, "time_embedding_norm", "default")
        if norm in ("ada_group", "spatial") or getattr(module, "spatial_norm", None) is not None:
            return f"a norm in {path} reads the time embedding"
    for path, module in _resnets(unet):
        if type(module).__name__ not in LAYERS:
            return f"{path} is a {type(module).__name__}"
        if type(module.time_emb_proj) is not nn.Linear:
            return f"{path}.time_emb_proj is a {type(module.time_emb_proj).__module__}.{type(module.time_emb_proj).__name__}"
    return None


def _changed_layer(unet: nn.Module) -> str | None:
    """A layer that is hooked or patched, itself or on the way to it; or scaled from outside, as LoRAs are."""
    for name in _before(unet):
        for path, module in unet._modules[name].named_modules(prefix=name):
            if "scaling" in vars(module):
                return f"{path} has a LoRA"
            if why := touched_on_the_way(unet, path):
                return why
    return next(filter(None, (touched_on_the_way(unet, f"{path}.time_emb_proj") for path, _ in _resnets(unet))), None)
