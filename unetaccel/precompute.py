"""What does not change from one evaluation to the next, computed once in a sampling call.

Two things: what every layer adds for each timestep (``timetable``), and the keys and values of cross attention, which come from
the prompt alone. Views are made of an overlay of the U-Net in which stand-ins hold these; wherever one cannot know its
layer's result it runs the layer. Keys and values are then bit for bit the layer's; time is one large product instead of many
small ones, and equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from .execution import Execution
from .held import Memo, touched_on_the_way
from .overlay import Fingerprint, copied_containers, overlay
from .sites import Sites
from .timetable import TimeTable
from .views import Views, make_views, split_containers

OF_CONTEXT, OF_ADDED_CONTEXT = ("to_k", "to_v", "to_kv"), ("add_k_proj", "add_v_proj")
"""Layers of a cross attention that are given the context; where there are the latter, the former are given the picture."""
REPEAT_CONTEXT = ("UNetSpatioTemporalConditionModel", "UNet3DConditionModel", "I2VGenXLUNet")
"""U-Nets whose ``forward`` copies the context for each frame: no two evaluations give their layers the same tensor."""
KEPT = 4
"""Contexts that a layer remembers: two-pass guidance alternates between some."""


class Precomputed:
    """A U-Net in which stand-ins know what layers will give.

    Args:
        unet: the user's, or an overlay of it.
        inputs_only: of keys and values, only those of a context that is handed to the U-Net as it is. Recorded graphs know whether
            an input was written to, and nothing of what is computed from it.

    Attributes:
        unet: the overlay, or the U-Net itself where there is nothing to stand in for.
        left_out: why not all is computed beforehand, one text for each part that is not.
    """

    def __init__(self, unet: nn.Module, inputs_only: bool = False):
        self._times = TimeTable(unet)
        memos, why_not = _memos(unet, inputs_only)
        self._memos = {id(m): m for m in memos.values()}.values()
        self._stand_ins = {**self._times.stand_ins, **memos}
        self.unet = overlay(unet, self._stand_ins) if self._stand_ins else unet
        because = {"the time embedding": self._times.obstacle, "keys and values": why_not}
        self.left_out = tuple(f"{what}: {why}" for what, why in because.items() if why)

    def containers(self, unet: nn.Module, view: nn.Module | None = None) -> list[nn.Module]:
        """The modules of ``unet``, the user's, that the overlay copies; only those of ``view``."""
        inside = {id(m) for m in (self.unet if view is None else view).modules()}
        return copied_containers(unet, [path for path, m in self._stand_ins.items() if id(m) in inside])

    def set(self, inputs: dict, timesteps: torch.Tensor | None) -> None:
        """Get ready for an evaluation with these ``inputs``, in a call with these ``timesteps`` (see ``TimeTable.set``)."""
        self._times.set(inputs, timesteps)

    def clear(self) -> None:
        """Let go of all tensors."""
        self._times.clear()
        for memo in self._memos:
            memo.clear()

    @property
    def nbytes(self) -> int:
        """Of all that is kept at present."""
        return self._times.nbytes + sum(memo.nbytes for memo in self._memos)


def precomputed_views(unet: nn.Module, b: int | None, sites_of: Callable[[nn.Module], Sites], how: Execution) -> Views:
    """Views of ``unet`` for cut ``b`` that compute once what does not change within a sampling call.

    Args:
        sites_of: the sites of an overlay of ``unet``.

    Raises:
        UnsupportedModelError: as ``make_views``.
    """
    precomputed = Precomputed(unet)
    views = make_views(precomputed.unet, b, sites_of(precomputed.unet), how)
    split = split_containers(unet, views.skip, views.sites)
    views.fingerprint = Fingerprint(split, precomputed.containers(unet))
    views.cached_fingerprint = Fingerprint(split, precomputed.containers(unet, views.cached))
    views.precomputed = precomputed
    return views


def _memos(unet: nn.Module, inputs_only: bool) -> tuple[dict[str, Memo], str | None]:
    """What stands for layers that are given the context alone, by path; and why there is nothing or not all of it."""
    if {c.__name__ for c in type(unet).__mro__} & set(REPEAT_CONTEXT):
        return {}, f"a {type(unet).__name__} copies the context at every evaluation"
    if unet._modules.get("encoder_hid_proj") is not None and unet.config.encoder_hid_dim_type == "text_image_proj":
        return {}, "the context is made of a text and an image at every evaluation"
    memos, why_not, made = {}, None, {}
    for path, why in _layers_of_context(unet):
        if inputs_only and ("encoder_hid_proj." in f"{path}." or "_ip." in path):
            continue
        why = why or touched_on_the_way(unet, path)
        if why:
            why_not = why_not or why
            continue
        layer = unet.get_submodule(path)
        memos[path] = made.setdefault(id(layer), Memo(layer, KEPT))
    return memos, why_not


def _layers_of_context(unet: nn.Module) -> Iterator[tuple[str, str | None]]:
    """Paths of the layers that are given the context, or an image prompt, and nothing else; and why one is left alone."""
    projection = unet._modules.get("encoder_hid_proj")
    several = getattr(projection, "image_projection_layers", None)
    if several is not None:
        yield from ((f"encoder_hid_proj.image_projection_layers.{i}", None) for i in range(len(several)))
    elif projection is not None:
        yield "encoder_hid_proj", None
    for path, module in unet.named_modules(remove_duplicate=False):
        if getattr(module, "is_cross_attention", False):
            why = _unpublished(path, module)
            names = OF_CONTEXT if module._modules.get("add_k_proj") is None else OF_ADDED_CONTEXT
            yield from ((f"{path}.{name}", why) for name in names if module._modules.get(name) is not None)
            yield from ((layer, why) for layer in _of_image_prompts(path, module.processor))


def _of_image_prompts(path: str, processor: object) -> list[str]:
    lists = {name: getattr(processor, name, None) for name in ("to_k_ip", "to_v_ip")}
    return [
        f"{path}.processor.{k}.{i}" for k, v in lists.items() if isinstance(v, nn.ModuleList) for i in range(len(v))
    ]


def _unpublished(path: str, attention: nn.Module) -> str | None:
    """Why the layers of an attention may be given something else than the context; diffusers' own code gives them that."""
    for part in (attention, attention.processor):
        if not type(part).__module__.startswith("diffusers."):
            return f"{path} runs a {type(part).__module__}.{type(part).__name__}"
    return f"{path} norms the context anew" if attention._modules.get("norm_cross") is not None else None
