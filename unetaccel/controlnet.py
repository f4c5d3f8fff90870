"""ControlNets beside a cached U-Net: on cached evaluations they make only the residuals that are read.

A cached evaluation at cut b reads residuals 0..b. The truncated view of a ControlNet is its condition
embedding, ``conv_in``, its encoder through skip b and the zero convolutions 0..b: an overlay, like the
views of the U-Net, and equal to running it in full. What it makes of its picture is the same in every
evaluation, and with ``precompute`` computed once in a sampling call.
"""

from __future__ import annotations

import functools
import inspect

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from .accelerated import Face
from .compiled import compile_step
from .engine import Engine
from .execution import Execution
from .graphs import GraphedStep, Log, graphed
from .held import Memo, touched_on_the_way
from .lora import LoraScales
from .offload import call_hooked, carry_hook, is_group_offloaded, streamed
from .overlay import Fingerprint, copied_containers, has_foreign_forward, overlay
from .parts import encoder_through, part
from .run import Run, current_run
from .skips import encoder_skips
from .snapshot import hooked
from .views import PassThrough

OF_PICTURE = "controlnet_cond_embedding"
"""Of a ControlNet, the layers that are given its picture alone."""


class AcceleratedControlNet(Face):
    """The face of a ControlNet while methods are applied to its pipeline."""

    __slots__ = ()


class ControlNetEngine:
    """Decides, for each call of a ControlNet, how much of it runs: as much as the next U-Net evaluation reads.

    Args:
        controlnet: a ``ControlNetModel`` or a ``MultiControlNetModel`` of those; never written to.
        engine: that of the U-Net.
    """

    def __init__(self, controlnet: nn.Module, engine: Engine):
        self.original = controlnet
        self.engine = engine
        self._forward = type(controlnet).forward
        self._names = list(inspect.signature(self._forward).parameters)[1:]
        self._refresh()

    def _refresh(self) -> None:
        whole = self.engine.cut is None or why_in_full(self.original) is not None  # patched or offloaded since, perhaps
        self._whole = overlay(self.original, {}) if self.engine.how.precompute else self.original
        self._view = self._whole if whole else truncated(self.original, self.engine.cut)
        self._fingerprint = Fingerprint(_containers(self.original))

    def evaluate(self, args: tuple, kwargs: dict) -> object:
        """One call: ``(residuals, mid residual)``, or diffusers' output object, as the ControlNet itself gives it."""
        inputs = {**dict(zip(self._names, args, strict=False)), **kwargs}
        run = None if self.engine.removed else current_run(self.engine)
        if run is None:
            return self._forward(self.original, **inputs)
        if not self._fingerprint.is_current():
            self._refresh()
        if not run.reuses_next(self) or not _can_shorten(self.original, inputs):
            return self._call(self._whole, run, inputs)
        residuals, mid = self._call(self._view, run, inputs)
        if self._view is not self._whole:
            run.expect_residuals(self, lambda: self._run_whole(inputs))
        return residuals, mid

    def _call(self, view: nn.Module, run: Run, inputs: dict) -> object:
        """``view(**inputs)``; compiled, replayed from a recorded graph, or with what is known of it, where the U-Net is."""
        how = self.engine.how
        if not (how.compiles or how.precompute) or (how.inductor is not None and hooked(view)):
            return self._forward(view, **inputs)
        views = run.fresh_views(cached=view is not self._whole)
        return views.beside(self, view, lambda: ControlCall(view, how, self.engine.log))(**inputs)

    def _run_whole(self, inputs: dict) -> object:
        """As ``original(**inputs)``, whose ``forward`` may lead back here."""
        whole = functools.partial(self._forward, self.original)
        offloaded = is_group_offloaded(self.original)
        return call_hooked(self.original, whole, (), inputs) if offloaded else whole(**inputs)


class ControlCall:
    """A view of a ControlNet, as it is called beside one set of views of the U-Net.

    Args:
        view: of the whole ControlNet, or shortened.
        how: the U-Net is run.
        log: what recordings are told to.

    Attributes:
        left_out: why something is not computed beforehand, where that was asked for.
    """

    def __init__(self, view: nn.Module, how: Execution, log: Log | None):
        memos, self.left_out = _memos(view, how) if how.precompute else ({}, ())
        self._memos = list(memos.values())
        view = overlay(view, memos) if memos else view
        self._step, scales = ControlStep(view), LoraScales(view)
        if how.graphs:
            [self._step] = graphed([self._step], scales, log)
        elif how.inductor is not None:
            self._step = compile_step(self._step, {"fullgraph": False, **how.inductor}, scales)
        self._tensors = how.inductor is not None

    def __call__(self, **inputs) -> object:
        return self._step(**(_with_tensor_strengths(inputs) if self._tensors else inputs))

    def forget(self) -> None:
        """Compute anew what is remembered: weights and pictures may have changed without a mark."""
        for memo in self._memos:
            memo.clear()
        if isinstance(self._step, GraphedStep):
            self._step.forget()

    @property
    def nbytes(self) -> int:
        """Of what is remembered at present."""
        return sum(memo.nbytes for memo in self._memos)


def _memos(view: nn.Module, how: Execution) -> tuple[dict[str, Memo], tuple[str, ...]]:
    """What stands for the layers that are given the picture alone, by path; and why there is nothing, or not all of it."""
    if how.inductor is not None:
        return {}, ("what a ControlNet makes of its picture: compiled graphs compute it in every evaluation",)
    prefixes = [f"nets.{i}." for i in range(len(view.nets))] if hasattr(view, "nets") else [""]
    why_not = {path: touched_on_the_way(view, path) for path in (f"{prefix}{OF_PICTURE}" for prefix in prefixes)}
    left_out = tuple(f"what a ControlNet makes of its picture: {why}" for why in why_not.values() if why)
    return {path: Memo(view.get_submodule(path)) for path, why in why_not.items() if not why}, left_out


class ControlStep(nn.Module):
    """One call of a ControlNet as a function of its inputs."""

    def __init__(self, view: nn.Module):
        super().__init__()
        self.view = view

    def forward(self, **inputs):
        return type(self.view).forward(self.view, **inputs)


def _with_tensor_strengths(inputs: dict) -> dict:
    """Inputs whose ``conditioning_scale``, a number or a list of numbers, is of tensors: a compiled graph then serves every strength."""
    strengths, sample = inputs.get("conditioning_scale", 1.0), inputs["sample"]
    like = {"dtype": torch.promote_types(sample.dtype, torch.float32), "device": sample.device}
    return {**inputs, "conditioning_scale": tree_map_only((int, float), lambda s: torch.full((), s, **like), strengths)}


def controlnet_engine(controlnet: object, engine: Engine) -> ControlNetEngine | None:
    """The engine for what sits in ``pipe.controlnet``, one for each ControlNet; or None where it runs as it is."""
    known = engine.controlnets.get(id(controlnet))
    if known is not None:
        return known
    if not isinstance(controlnet, nn.Module) or why_in_full(controlnet) is not None:
        return None
    if engine.cut is None:
        fits = engine.how.compiles or engine.how.precompute
    else:
        fits = all(len(encoder_skips(p)) > engine.cut for p in _parts(controlnet))
    if not fits:
        return None
    made = engine.controlnets[id(controlnet)] = ControlNetEngine(controlnet, engine)
    return made


def why_in_full(controlnet: nn.Module) -> str | None:
    """Why a ControlNet cannot be shortened (it then runs in full, which is right but slower), or None."""
    kinds = {type(p).__name__ for p in _parts(controlnet) if "ControlNetModel" not in _class_names(p)}
    if kinds or not _parts(controlnet):
        return f"{', '.join(kinds) or 'an empty MultiControlNetModel'} is not a ControlNetModel"
    if any(has_foreign_forward(m) and not is_group_offloaded(m) for m in _containers(controlnet)[1:]):
        return "another tool has replaced `forward` of one of its blocks"
    if streamed(controlnet) is not None:
        return "group offloading with use_stream=True prefetches its weights in the order of a whole pass"
    return None


def _class_names(module: nn.Module) -> set[str]:
    return {c.__name__ for c in type(module).__mro__}


def truncated(controlnet: nn.Module, b: int) -> nn.Module:
    """A view that makes residuals 0..b; its mid residual is a zero of no dimensions."""
    if hasattr(controlnet, "nets"):
        nets = nn.ModuleList(truncated(net, b) for net in controlnet.nets)
        for view, net in zip(nets, controlnet.nets, strict=True):
            carry_hook(view, net, controlnet.nets)
        return overlay(controlnet, {"nets": nets})
    block, layer = encoder_skips(controlnet)[b][:2]
    zeros = list(controlnet.controlnet_down_blocks[: b + 1])
    return overlay(
        controlnet,
        {
            "down_blocks": nn.ModuleList(encoder_through(controlnet, block, layer)),
            "mid_block": PassThrough(),
            "controlnet_down_blocks": nn.ModuleList([*zeros[:-1], part(zeros[-1], zeros)]),
            "controlnet_mid_block": _Zero(),
        },
    )


class _Zero(nn.Module):
    """Stands for the last zero convolution, whose output no cached evaluation reads."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.new_zeros(())


def _parts(controlnet: nn.Module) -> list[nn.Module]:
    return list(getattr(controlnet, "nets", [controlnet]))


def _containers(controlnet: nn.Module) -> list[nn.Module]:
    """The modules that a truncated view copies."""
    prefixes = [f"nets.{i}." for i in range(len(controlnet.nets))] if hasattr(controlnet, "nets") else [""]
    blocks = [f"down_blocks.{i}.resnets" for i in range(max(len(p.down_blocks) for p in _parts(controlnet)))]
    paths = [f"{prefix}{path}" for prefix in prefixes for path in (*blocks, "controlnet_down_blocks.0")]
    return copied_containers(controlnet, paths)


def _can_shorten(controlnet: nn.Module, inputs: dict) -> bool:
    """Guess mode scales residuals by their number, and pipelines rewrite its lists; pooling wants a real mid residual."""
    pooled = any(p.config.get("global_pool_conditions") for p in _parts(controlnet))
    return inputs.get("return_dict") is False and not inputs.get("guess_mode") and not pooled
