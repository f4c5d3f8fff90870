"""What evaluations cost: multiply-accumulates of each view, counted without computing anything.

Counted are convolutions, matrix products and attention (torch's FLOP counter over two), on a twin of the U-Net
that is made from its config on the meta device: the user's model is not called, so its hooks, quantised layers
and adapters neither disturb the count nor are part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .errors import SettingError, UnsupportedModelError
from .hoist import constants, obstacle
from .overlay import overlay
from .run import GIVEN
from .skips import Skip, skip_table
from .views import build_views

AUTO_SHARE = 0.1
"""``cut="auto"`` takes the deepest cut whose cached evaluation costs at most this share of a full one."""


@dataclass(frozen=True)
class CutCost:
    """MACs of one full and one cached evaluation, and the bytes of one feature F, for some inputs."""

    b: int
    full_macs: int
    cached_macs: int
    feature_bytes: int
    constant_macs: int = 0
    """Of ``cached_macs``, those that depend on F alone: where it is held, ``apply(..., precompute=True)`` spends them once per full
    evaluation. 0 where it cannot (see ``hoist``).
    """

    @property
    def share(self) -> float:
        """A cached evaluation's share of a full one's MACs."""
        return self.cached_macs / self.full_macs

    @property
    def hoisted_share(self) -> float:
        """The same of a cached evaluation for which all that depends on F alone is known."""
        return (self.cached_macs - self.constant_macs) / self.full_macs

    def ceiling(self, interval: int, precompute: bool = False) -> float:
        """The largest speedup that the MACs allow at a uniform ``interval``, in a long run.

        Args:
            precompute: with ``apply(..., precompute=True)`` and a feature that is held.
        """
        if not precompute or interval <= 2:  # a constant that is read once saves nothing
            return interval / (1 + (interval - 1) * self.share)
        once = self.constant_macs / self.full_macs
        return interval / (1 + once + (interval - 1) * self.hoisted_share)


def cut_costs(unet: nn.Module, inputs: object, cuts: Iterable[int] | None = None) -> Iterator[CutCost]:
    """Costs of the given cuts of ``unet`` (default: all), for inputs of this ``structure`` (see ``run.structure``).

    One full pass without data, and one cached pass per cut as it is asked for.
    """
    tensors, shapes = _tensors(inputs), {}
    twin = _twin(unet, tensors["sample"].dtype)
    table = skip_table(twin)
    recorded = overlay(twin, {s.entry: _Recorder(twin.get_submodule(s.entry), s, shapes) for s in table})
    try:
        full = count_macs(lambda: type(recorded).forward(recorded, **tensors))
    except RuntimeError as error:
        shape = tuple(tensors["sample"].shape)
        raise SettingError(f"this U-Net cannot take inputs of shape {shape}: {str(error).splitlines()[0]}") from error
    for b in range(len(table)) if cuts is None else cuts:
        views, feature = build_views(twin, b), torch.empty(shapes[b], dtype=tensors["sample"].dtype, device="meta")
        cached = count_macs(lambda: views.run_cached(tensors, feature))  # noqa: B023 - called at once
        yield CutCost(b, full, cached, feature.nbytes, _constant_macs(twin, table[b], feature))


def _constant_macs(twin: nn.Module, skip: Skip, feature: torch.Tensor) -> int:
    layer = twin.get_submodule(skip.entry)
    return 0 if obstacle(twin, skip, layer) else count_macs(lambda: constants(layer, feature))


def _twin(unet: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A U-Net of the same config without weights. IP-Adapters write a config that no constructor takes back."""
    config = dict(unet.config)
    if config.get("encoder_hid_dim_type") == "ip_image_proj":
        config["encoder_hid_dim_type"] = None
    with torch.device("meta"):
        twin = type(unet).from_config(config).eval()
    return nn.Module.to(twin, device="meta", dtype=dtype)  # some layers make a tensor elsewhere all the same


class _Recorder(nn.Module):
    """Stands for a decoder resnet and notes the shape of F, the part of its input that is not the skip."""

    def __init__(self, resnet: nn.Module, skip: Skip, shapes: dict):
        super().__init__()
        self.resnet, self.skip, self.shapes = resnet, skip, shapes

    def forward(self, *args, **kwargs):
        hidden_states = args[0] if args else kwargs["input_tensor"]  # as AnimateDiff's blocks name it
        n, _, height, width = hidden_states.shape
        self.shapes[self.skip.b] = (n, self.skip.hidden, height, width)
        return self.resnet(*args, **kwargs)


def count_macs(work: Callable[[], object]) -> int:
    """Multiply-accumulates of the convolutions, matrix products and attention that ``work`` does."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() // 2


def _tensors(inputs: tuple) -> dict:
    """Keyword inputs from their structure: a tuple of (name, structure) pairs."""
    kwargs = {name: _tensor(value) for name, value in inputs if value != GIVEN and name != "cross_attention_kwargs"}
    return {
        **kwargs,
        "timestep": torch.ones((), dtype=torch.int64, device="meta"),
        "return_dict": False,
    }


def _tensor(value: object) -> object:
    if isinstance(value, tuple):
        if len(value) == 3 and isinstance(value[1], torch.dtype):
            shape, dtype, _ = value
            return torch.empty(shape, dtype=dtype, device="meta")
        if value and all(isinstance(v, tuple) and v and isinstance(v[0], str) for v in value):
            return {name: _tensor(v) for name, v in value}
        return [_tensor(v) for v in value]
    return None


def auto_cut(unet: nn.Module) -> int:
    """The deepest cut that stays within ``AUTO_SHARE``; 0 if none does."""
    return deepest_cheap(cut_costs(unet, example_inputs(unet)))


def deepest_cheap(costs: Iterable[CutCost]) -> int:
    """``auto_cut`` from costs that are counted already, or as they are counted."""
    chosen = 0
    for cost in costs:
        if cost.share > AUTO_SHARE:
            break
        chosen = cost.b
    return chosen


def example_inputs(
    unet: nn.Module,
    batch: int = 1,
    size: int | tuple[int, int] | None = None,
    tokens: int = 77,
    frames: int | None = None,
) -> tuple:
    """The structure of typical inputs, from the U-Net's config.

    Args:
        batch: N, counting both halves of classifier-free guidance.
        size: latent height and width (default: the config's ``sample_size``, or 64).
        tokens: length of the text condition.
        frames: of a video U-Net (default: the config's ``num_frames``, or 16).

    Raises:
        UnsupportedModelError: the config asks for conditions that cannot be guessed.
    """
    config = unet.config
    size = size or config.sample_size or 64
    height, width = (size, size) if isinstance(size, int) else size
    like = dict(dtype=unet.dtype, device=unet.device)

    def tensor(*shape, dtype=None):
        return shape, dtype or like["dtype"], like["device"]

    kinds = {c.__name__ for c in type(unet).__mro__}
    frames = frames or config.get("num_frames") or 16
    if "UNetSpatioTemporalConditionModel" in kinds:
        ids = config.projection_class_embeddings_input_dim // config.addition_time_embed_dim
        return (
            ("sample", tensor(batch, frames, config.in_channels, height, width)),
            ("encoder_hidden_states", tensor(batch, 1, _condition_width(config))),
            ("added_time_ids", tensor(batch, ids)),
        )
    in_time = (frames,) if kinds & IN_TIME else ()
    inputs = {"sample": tensor(batch, config.in_channels, *in_time, height, width)}
    if "UNetMotionModel" in kinds:  # AnimateDiff repeats the condition for each frame
        inputs["encoder_hidden_states"] = tensor(batch * frames, tokens, _condition_width(config))
    elif "AudioLDM2UNet2DConditionModel" in kinds:  # two conditions, of widths that its config gives per layer
        own, text = config.cross_attention_dim[0][1], config.cross_attention_dim[0][-1]
        inputs |= {
            "encoder_hidden_states": tensor(batch, 8, own),
            "encoder_hidden_states_1": tensor(batch, tokens, text),
        }
    elif config.get("cross_attention_dim") is not None:
        inputs["encoder_hidden_states"] = tensor(batch, tokens, _condition_width(config))
    if "I2VGenXLUNet" in kinds:
        inputs |= {"fps": tensor(batch, dtype=torch.int64), "image_latents": inputs["sample"]}
        inputs["image_embeddings"] = tensor(batch, config.cross_attention_dim)
    if config.get("class_embed_type") in ("projection", "simple_projection"):
        inputs["class_labels"] = tensor(batch, config.projection_class_embeddings_input_dim)
    elif config.get("num_class_embeds") or config.get("class_embed_type") == "timestep":
        inputs["class_labels"] = tensor(batch, dtype=torch.int64)
    added = {k: tensor(batch, width) for k, width in _added_widths(config).items()}
    if added:
        inputs["added_cond_kwargs"] = tuple(added.items())
    return tuple(inputs.items())


IN_TIME = {"UNetMotionModel", "UNet3DConditionModel", "I2VGenXLUNet"}
"""U-Nets whose sample has a dimension of frames after its channels."""


def _added_widths(config) -> dict[str, int]:
    """The widths of the vectors in ``added_cond_kwargs``, by name."""
    kind = config.get("addition_embed_type")
    if kind in (None, "text"):
        return {}
    if kind == "image":  # Kandinsky 2.2
        return {"image_embeds": config.encoder_hid_dim}
    if kind == "text_image":  # Kandinsky 2.1
        return dict.fromkeys(("text_embeds", "image_embeds"), config.cross_attention_dim)
    if kind == "time":  # DreamLite
        return {"time_ids": config.projection_class_embeddings_input_dim // config.addition_time_embed_dim}
    if kind == "text_time":
        ids = _time_ids(config)
        return {
            "text_embeds": config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim,
            "time_ids": ids,
        }
    raise UnsupportedModelError(
        f"costs of a U-Net with addition_embed_type={kind!r} cannot be counted from its config alone; "
        "run one sampling call and read handle.summary(), or choose the cut by its index"
    )


def _condition_width(config) -> int:
    if config.get("encoder_hid_dim_type") in ("text_proj",) or config.get("encoder_hid_dim"):
        return config.encoder_hid_dim
    dim = config.cross_attention_dim
    return dim if isinstance(dim, int) else max(dim)


def _time_ids(config) -> int:
    """SDXL's base has 6 size numbers and its refiner 5; both leave 1280 for the text."""
    rest = config.projection_class_embeddings_input_dim - 5 * config.addition_time_embed_dim
    return 5 if rest == 1280 else 6
