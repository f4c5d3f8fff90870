"""LoRA scales as tensors, so that a compiled graph serves every scale.

PEFT keeps an adapter's scale as a number on each LoRA layer, and ``torch.compile`` makes a constant of it: every new
scale would be new graphs. Compiled views are therefore made of an overlay of the U-Net, whose LoRA layers read
their scales from tensors. Before each evaluation those are set to what PEFT holds; nothing of PEFT's is written.
"""

from __future__ import annotations

import torch
from torch import nn

from .overlay import copied_containers, has_foreign_forward, overlay

PLAIN_LORA = ("Linear", "Conv1d", "Conv2d", "Conv3d")
"""Classes of ``peft.tuners.lora.layer`` that compute ``base(x) + lora_B(lora_A(x)) * scaling``."""

KWARGS = "cross_attention_kwargs"


class Scaled(nn.Module):
    """Stands for ``lora_B`` of one adapter: ``scale * lora_B(x)``, rounded once, as a product with a number is."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.layer(x)
        return (output.to(self.scale.dtype) * self.scale).to(output.dtype)


class LoraScales:
    """A U-Net whose LoRA layers take their scales from tensors.

    Layers of other kinds (DoRA, LoHa, quantised ones) and hooked ones need the numbers. Where there is one, all
    stay as they are, and every new scale is compiled anew.

    Attributes:
        unet: the overlay, or the U-Net itself where nothing is to be replaced.
        changes: how often a scale was set to another value.
    """

    def __init__(self, unet: nn.Module):
        layers = {path: m for path, m in unet.named_modules(remove_duplicate=False) if _is_tuner(m)}
        above = _containers(unet, layers)[1:]  # without the U-Net, which is called by its class's forward
        follows = all(map(_is_plain, layers.values())) and not any(map(has_foreign_forward, above))
        scaled = {id(m): m for m in layers.values() if follows and not m.disable_adapters}
        twins = {key: _twin(m) for key, m in scaled.items()}
        replaced = {path: twins[id(m)] for path, m in layers.items() if id(m) in twins}
        self.unet = overlay(unet, replaced) if replaced else unet
        self._original = unet
        self._running = {**layers, **replaced}
        self._scaled = [(m.scaling, name, twins[key].lora_B[name]) for key, m in scaled.items() for name in m.lora_B]
        self._pops = follows and _scales_layers(unet)
        self._values: list[float] = []
        self.changes = 0
        self._placed: tuple | None = None

    def containers(self, view: nn.Module | None = None) -> list[nn.Module]:
        """The modules of the user's U-Net that decide which LoRA layers run, and how; only those of ``view``."""
        inside = {id(m) for m in (self.unet if view is None else view).modules()}
        return _containers(self._original, {path: m for path, m in self._running.items() if id(m) in inside})

    def follow(self, inputs: dict) -> dict:
        """Set the tensors to PEFT's scales, times the one in ``inputs``; the inputs without it.

        An adapter that was deleted since may still stand in layers below the cut, which cached steps do not run.

        A tensor is written where its value has changed, by a kernel that waits for nothing.
        """
        factor, inputs = _without_scale(inputs) if self._pops else (1.0, inputs)
        sample = inputs["sample"]
        placed = sample.device, torch.promote_types(sample.dtype, torch.float32)
        if placed != self._placed:
            self._place(*placed)
        values = [scaling.get(name, 0.0) * factor for scaling, name, _ in self._scaled]
        if values != self._values:
            for (_, _, scaled), new, old in zip(self._scaled, values, self._values, strict=True):
                if new != old:
                    scaled.scale.fill_(new)
            self._values, self.changes = values, self.changes + 1
        return inputs

    @torch.inference_mode(False)  # tensors made in inference mode could not be written outside it
    def _place(self, device: torch.device, dtype: torch.dtype) -> None:
        for _, _, scaled in self._scaled:
            scaled.scale = torch.ones((), device=device, dtype=dtype)
        self._placed, self._values = (device, dtype), [1.0] * len(self._scaled)


def _twin(layer: nn.Module) -> nn.Module:
    """A copy of a LoRA layer that shares its weights; its own scaling is 1, and the scales sit in ``lora_B``."""
    twin = overlay(layer, {f"lora_B.{name}": Scaled(b) for name, b in layer.lora_B.items()})
    twin.scaling = dict.fromkeys(layer.scaling, 1.0)
    return twin


def _containers(unet: nn.Module, layers: dict[str, nn.Module]) -> list[nn.Module]:
    """The modules on the way to each of the tuner layers at these paths, and of the layer what a twin does not share."""
    return copied_containers(
        unet, [f"{path}.lora_B." if hasattr(m, "lora_B") else f"{path}." for path, m in layers.items()]
    )


def _is_tuner(module: nn.Module) -> bool:
    return any(c.__name__ == "BaseTunerLayer" for c in type(module).__mro__)


def _is_plain(layer: nn.Module) -> bool:
    """Whether a tuner layer is LoRA as published, in PEFT's own class, scaled by numbers and not hooked."""
    cls = type(layer)
    known = cls.__module__ == "peft.tuners.lora.layer" and cls.__name__ in PLAIN_LORA
    return known and not (
        getattr(layer, "lora_variant", None)
        or len(layer.lora_magnitude_vector)  # DoRA
        or any(isinstance(scale, torch.Tensor) for scale in layer.scaling.values())  # prepared for hotswapping
        or has_foreign_forward(layer)
    )


def _scales_layers(unet: nn.Module) -> bool:
    """Whether this U-Net's ``forward`` multiplies its LoRA layers' scales by ``cross_attention_kwargs["scale"]``."""
    function = type(unet).forward
    while function is not None:
        if "scale_lora_layers" in function.__code__.co_names:
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _without_scale(inputs: dict) -> tuple[float, dict]:
    """The LoRA scale of one evaluation, and its inputs as they are without one."""
    options = inputs.get(KWARGS) or {}
    rest = {k: v for k, v in options.items() if k != "scale"}
    others = {k: v for k, v in inputs.items() if k != KWARGS}
    scale = options.get("scale")
    return 1.0 if scale is None else float(scale), {**others, KWARGS: rest} if rest else others
