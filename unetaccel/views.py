"""The two views of a U-Net for one cut: everything, and only what a cached step needs.

Both are overlays of the same U-Net and run diffusers' own ``forward``; they share every layer.
The full view hands F, the hidden state entering the decoder layer that consumes skip ``b``, to a
``Tap``; the cached view has no layer below the cut and takes F from the same tap.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from .entry import FusedBlock, fuse
from .errors import UnsupportedModelError
from .execution import EAGER, Execution
from .graphs import GraphedStep
from .hoist import Constants, HoistedBlock, HoistedLayer, hoist
from .inputs import ADAPTER_STATES, MID_RESIDUAL, RESIDUALS, input_names
from .offload import refuse_streams
from .ops import Blend
from .overlay import Fingerprint, copied_containers, overlay, refuse_replaced_forward
from .parts import encoder_through, part
from .sites import NO_SITES, Sites
from .skips import LAYER_LISTS, Skip, skip_table

if TYPE_CHECKING:
    from .precompute import Precomputed


class Port:
    """Where F passes between a view and its caller, for the length of one evaluation."""

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        """Let go of all tensors."""
        self.feature: torch.Tensor | Blend | None = None  # (N, C, H, W)
        self.parts: tuple[torch.Tensor | Blend, torch.Tensor] | None = None
        """Of what enters the layer at the cut, where that is fused: F, and the skip."""
        self.moments: torch.Tensor | None = None
        """For the norm that follows."""
        self.constants: Constants | None = None
        """What the layer at the cut makes of F, where that is hoisted."""


class Neighbour(Protocol):
    """What runs beside views in a sampling call: a ControlNet, whole or shortened."""

    left_out: tuple[str, ...]
    nbytes: int

    def __call__(self, **inputs) -> object: ...

    def forget(self) -> None: ...


class Tap(nn.Module):
    """Stands for the decoder block at the cut: writes its first input to the port, or replaces it from there.

    A tensor is copied either way, because blocks may edit their input in place (FreeU does; those that are fused do not), and
    detached: no gradient flows from one evaluation to another.
    """

    def __init__(self, block: nn.Module, port: Port, reads: bool, fused: bool = False, hoisted: bool = False):
        super().__init__()
        self.block = FusedBlock(block, port) if fused else block
        if hoisted:
            self.block = HoistedBlock(self.block, block, port)
        self.resnets = block.resnets  # diffusers counts a block's skips by these
        self.has_cross_attention = getattr(block, "has_cross_attention", False)
        self.port = port
        self.reads = reads
        self.copies = not fused

    def forward(self, hidden_states, *args, **kwargs):
        if self.reads:
            hidden_states = self.port.feature
            if self.copies and isinstance(hidden_states, Blend):
                hidden_states = hidden_states.tensor()
            elif self.copies and self.port.constants is None:
                hidden_states = hidden_states.clone()
        else:
            self.port.feature = hidden_states.detach().clone() if self.copies else hidden_states.detach()
        return self.block(hidden_states, *args, **kwargs)


class PassThrough(nn.Module):
    """Stands for the mid block of a cached view, whose output nothing reads."""

    def forward(self, hidden_states, *args, **kwargs):
        return hidden_states


class FullStep(nn.Module):
    """A full evaluation as a function of its inputs: keyword inputs of the U-Net -> (its output, F).

    F has shape (N, C, H, W), for video U-Nets (N * frames, C, H, W). Nothing is kept between calls, so this
    can be compiled, captured or exported.
    """

    def __init__(self, view: nn.Module, port: Port):
        super().__init__()
        self.view = view
        self._port = port

    def forward(self, **inputs):
        output = type(self.view).forward(self.view, **inputs)
        feature, self._port.feature = self._port.feature, None
        return output, feature


class CachedStep(nn.Module):
    """A cached evaluation as a function of F and its inputs: (feature, keyword inputs) -> the U-Net's output.

    Where the layer at the cut is hoisted, ``constants`` are what it makes of this F (see ``hoist``), or None.
    """

    def __init__(self, view: nn.Module, port: Port):
        super().__init__()
        self.view = view
        self._port = port

    def forward(self, feature: torch.Tensor | Blend, constants: Constants | None = None, **inputs):
        self._port.feature = feature
        self._port.constants = constants
        output = type(self.view).forward(self.view, **inputs)
        self._port.feature = self._port.constants = None
        return output


class PlainStep(nn.Module):
    """An evaluation in a call that reuses nothing: keyword inputs, by the names that they have here -> the model's output."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet
        self.names = input_names(unet)

    def forward(self, **inputs):
        return type(self.unet).forward(self.unet, **{self.names.get(k, k): v for k, v in inputs.items()})


@dataclass(eq=False)
class Views:
    """``full`` and ``cached``: two U-Nets of the original's class, and the port through which F passes."""

    unet: nn.Module
    """What they are views of."""
    full: nn.Module
    cached: nn.Module
    port: Port
    skip: Skip | None
    """Of the cut; None if there is none, and so no full and cached evaluations."""
    whole_blocks: int
    """Down blocks whose last layer the cached view still runs."""
    fingerprint: Fingerprint = field(repr=False)
    sites: Sites = field(repr=False, default=NO_SITES)
    unfused: str | None = None
    """Why the layer at the cut is not run by kernels, where that was asked for."""
    precomputed: Precomputed | None = field(default=None, repr=False)
    """What is known before an evaluation, where that was asked for."""
    unforeseen: str | None = None
    """Why that is nothing."""
    hoisted: HoistedLayer | None = None
    """What stands for the layer at the cut in the cached view, where it may be given what it makes of F."""
    unhoisted: str | None = None
    """Why it may not, where that was asked for."""

    def __post_init__(self):
        self.full_step: Callable = FullStep(self.full, self.port)
        self.cached_step: Callable = CachedStep(self.cached, self.port)
        self.plain_step: Callable = PlainStep(self.unet)
        self._beside: weakref.WeakKeyDictionary[object, list] = weakref.WeakKeyDictionary()
        self.cached_fingerprint = self.fingerprint
        """Of what the cached view was made of."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """What was asked for and is not done, each with the reason."""
        known = () if self.precomputed is None else self.precomputed.left_out
        beside = dict.fromkeys(why for neighbour in self._neighbours() for why in neighbour.left_out)
        return (*known, *(why for why in (self.unforeseen, self.unfused, self.unhoisted) if why), *beside)

    @property
    def known_bytes(self) -> int:
        """Of what is known before evaluations, at present."""
        own = 0 if self.precomputed is None else self.precomputed.nbytes
        return own + sum(neighbour.nbytes for neighbour in self._neighbours())

    def are_current(self, cached: bool = False) -> bool:
        """Whether the model is as it was when they were made; with ``cached``, as far as cached evaluations read it."""
        return (self.cached_fingerprint if cached else self.fingerprint).is_current() and self.sites.are_current()

    def foresee(self, inputs: dict, timesteps: torch.Tensor | None) -> None:
        """Get ready for an evaluation in a call with these ``timesteps``."""
        if self.precomputed is not None:
            self.precomputed.set(inputs, timesteps)

    def forget(self) -> None:
        """Compute anew what is remembered of weights and conditions: they may have changed without a mark."""
        if self.precomputed is not None:
            self.precomputed.clear()
        for step in (self.full_step, self.cached_step, self.plain_step):
            if isinstance(step, GraphedStep):
                step.forget()
        for neighbour in self._neighbours():
            neighbour.forget()

    def beside(self, owner: object, model: nn.Module, made: Callable[[], Neighbour]) -> Neighbour:
        """What runs ``model`` beside these views, ``made`` when first asked for.

        Kept as long as its ``owner``, two of each: a ControlNet is whole or shortened.
        """
        known = self._beside.get(owner, [])
        for of, neighbour in known:
            if of is model:
                return neighbour
        neighbour = made()
        self._beside[owner] = [*known[-1:], (model, neighbour)]
        return neighbour

    def _neighbours(self) -> list[Neighbour]:
        return [neighbour for pairs in self._beside.values() for _, neighbour in pairs]

    def run_full(self, inputs: dict) -> tuple[object, torch.Tensor]:
        """One full evaluation with keyword ``inputs``: the U-Net's output, and F of shape (N, C, H, W)."""
        return self._call(self.full_step, self._ready(inputs))

    def run_cached(self, inputs: dict, feature: torch.Tensor | Blend, **known: Constants) -> object:
        """One cached evaluation from ``feature``, and what else of ``CachedStep`` is known: the U-Net's output."""
        if isinstance(feature, Blend) and not isinstance(self.cached_step, CachedStep | GraphedStep):
            feature = feature.tensor()  # a compiled graph is made for a tensor, of whatever making
        return self._call(self.cached_step, {**self._ready(self.relevant(inputs)), "feature": feature, **known})

    def run_plain(self, inputs: dict) -> object:
        """One evaluation of the whole U-Net, for which nothing is kept."""
        return self.plain_step(**self._ready(inputs))

    def _ready(self, inputs: dict) -> dict:
        if isinstance(inputs.get("sample"), torch.Tensor):
            self.sites.expect(inputs["sample"])
        return self.sites.compensated(inputs)

    def _call(self, step: Callable, inputs: dict) -> object:
        try:
            return step(**inputs)
        except BaseException:
            self.port.clear()  # views outlive the call: nothing of it may stay with them
            raise

    def relevant(self, inputs: dict) -> dict:
        """Drop the residuals that no layer of the cached view reads; keep their presence, which has a meaning."""
        trimmed = dict(inputs)
        if inputs.get(RESIDUALS) is not None and inputs.get(MID_RESIDUAL) is not None:
            residuals = inputs[RESIDUALS]
            trimmed[RESIDUALS] = tuple(residuals[: self.skip.b + 1])
            trimmed[MID_RESIDUAL] = residuals[0].new_zeros(())
        elif inputs.get(RESIDUALS) is not None:  # how T2I-Adapters were passed before they had their own argument
            trimmed[RESIDUALS] = list(inputs[RESIDUALS][: self.whole_blocks])
        if inputs.get(ADAPTER_STATES) is not None:
            trimmed[ADAPTER_STATES] = list(inputs[ADAPTER_STATES][: self.whole_blocks])
        return trimmed


def make_views(unet: nn.Module, b: int | None, sites: Sites, how: Execution = EAGER) -> Views:
    """``build_views`` for a cut, ``edited_views`` without one."""
    return edited_views(unet, sites) if b is None else build_views(unet, b, sites, how)


def build_views(unet: nn.Module, b: int, sites: Sites = NO_SITES, how: Execution = EAGER) -> Views:
    """Both views of ``unet`` for cut ``b``. Builds a dozen small objects and copies no tensor.

    Args:
        sites: what stands for decoder layers in the views, by default nothing.
        how: with ``fused``, kernels run the layer at the cut, where that can be (see ``entry``); with ``precompute``, the cached
            view may be given what this layer makes of F (see ``hoist``).

    Raises:
        UnsupportedModelError: see ``skips.check_supported``; or a block was patched by another tool.
    """
    skip, port, plain_sites, fused, unfused = skip_table(unet)[b], Port(), sites, how.fused, None
    if fused:
        sites, unfused = fuse(unet, skip, sites, port)
        fused = unfused is None
    full_sites, hoisted, unhoisted = sites, None, None
    if how.precompute:
        hoisted, unhoisted = hoist(unet, skip, plain_sites, sites, port, fused)
        sites = sites.replacing(unet, skip.entry, hoisted) if hoisted else sites
    containers = split_containers(unet, skip, sites)
    refuse_streams(unet)
    refuse_replaced_forward(containers[1:], {id(m): name for name, m in unet.named_modules()})
    _refuse_hooks(_split_blocks(unet, skip), skip)
    up = list(unet.up_blocks)
    entry = up[skip.up_block]
    head = [part(block, up, sites=full_sites) for block in up[: skip.up_block]]
    above = [part(block, up, sites=full_sites) for block in up[skip.up_block + 1 :]]
    if skip.up_layer:
        head.append(part(entry, up, 0, skip.up_layer, "upsamplers", after=False, sites=full_sites))
    tail = part(entry, up, skip.up_layer, before=not skip.up_layer, sites=full_sites)
    full = overlay(unet, {"up_blocks": nn.ModuleList([*head, Tap(tail, port, reads=False, fused=fused), *above])})
    down = encoder_through(unet, skip.block, skip.layer)
    whole = len(down) - (skip.block >= 0 and not _takes_adapter(unet.down_blocks[skip.block], skip.layer))
    running = up[skip.up_block :]
    tail = part(entry, running, skip.up_layer, sites=sites)
    above = [part(block, running, sites=sites) for block in running[1:]]
    cached = overlay(
        unet,
        {
            "down_blocks": nn.ModuleList(down),
            "mid_block": PassThrough(),
            "up_blocks": nn.ModuleList([Tap(tail, port, True, fused, hoisted is not None), *above]),
        },
    )
    edited = overlay(unet, _edited_blocks(unet, plain_sites)) if plain_sites else unet
    return Views(
        edited,
        full,
        cached,
        port,
        skip,
        whole,
        Fingerprint(containers),
        sites,
        unfused,
        hoisted=hoisted,
        unhoisted=unhoisted,
    )


def edited_views(unet: nn.Module, sites: Sites) -> Views:
    """Views where nothing is reused: only plain evaluations, with sites in place of decoder layers.

    Raises:
        UnsupportedModelError: a block was patched by another tool.
    """
    containers = split_containers(unet, None, sites)
    refuse_streams(unet)
    refuse_replaced_forward(containers[1:], {id(m): name for name, m in unet.named_modules()})
    edited = overlay(unet, _edited_blocks(unet, sites) if _has_blocks(unet) else sites.layers)
    return Views(edited, edited, edited, Port(), None, 0, Fingerprint(containers), sites)


def _edited_blocks(unet: nn.Module, sites: Sites) -> dict[str, nn.Module]:
    up = list(unet.up_blocks)
    return {"up_blocks": nn.ModuleList(part(block, up, sites=sites) for block in up)}


def _has_blocks(unet: nn.Module) -> bool:
    """Whether the decoder is a list of blocks, as diffusers' U-Nets have it."""
    return hasattr(unet, "up_blocks")


def split_containers(unet: nn.Module, skip: Skip | None, sites: Sites) -> list[nn.Module]:
    """The modules of ``unet`` that its views for the cut at ``skip``, with these sites, copy."""
    blocks = _split_blocks(unet, skip).items() if skip is not None else ()
    lists = [f"{path}.{name}.0" for path, block in blocks for name in LAYER_LISTS if getattr(block, name, None)]
    ends = ["down_blocks.0", "up_blocks.0"] if _has_blocks(unet) else []
    return copied_containers(unet, [*ends, *lists, *sites.paths])


def _split_blocks(unet: nn.Module, skip: Skip) -> dict[str, nn.Module]:
    """The blocks that this cut may run in parts, by path."""
    blocks = {f"up_blocks.{skip.up_block}": unet.up_blocks[skip.up_block]}
    if skip.block >= 0:
        blocks[f"down_blocks.{skip.block}"] = unet.down_blocks[skip.block]
    return blocks


def _takes_adapter(block: nn.Module, layer: int) -> bool:
    """Whether a T2I-Adapter's state still enters a block that stops after ``layer``.

    diffusers adds it to the last layer where there is cross attention, and else to what leaves the whole block.
    """
    after_last_layer = getattr(block, "has_cross_attention", False) or block.downsamplers is None
    return layer >= len(block.resnets) - (1 if after_last_layer else 0)


def _refuse_hooks(split: dict[str, nn.Module], skip: Skip) -> None:
    """A block that runs in two parts would run its hooks twice, each time on half of what they expect."""
    for path, block in split.items():
        if block._forward_hooks or block._forward_pre_hooks:
            raise UnsupportedModelError(
                f"{path} has forward hooks, and cut {skip.b} may run this block in parts. Remove the hooks, "
                "put them on the block's layers, or choose a cut in another block"
            )
