"""SkipSite: the decoder layer that consumes a skip, with edits of what enters it.

A block of diffusers concatenates its hidden state and a skip and hands the result to a layer; nothing else reads it.
So a site edits the two parts of that tensor where they lie, and then calls the layer. Views are built with sites in
place of the layers; the user's U-Net has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .errors import SettingError
from .folds import Fold
from .inputs import MID_RESIDUAL, RESIDUALS
from .methods.skip_method import SkipEdit, at_strength


class Strength(nn.Module):
    """How strongly a method with a time schedule acts at this evaluation: a tensor, so that no value is compiled in."""

    def __init__(self):
        super().__init__()
        with torch.inference_mode(False):  # tensors made in inference mode could not be written outside it
            self.register_buffer("value", torch.ones(()), persistent=False)
        self._set = 1.0

    def set(self, value: float, device: torch.device) -> None:
        """Write the tensor where it has changed, by a kernel that waits for nothing."""
        if self.value.device != device:
            with torch.inference_mode(False):
                self.value, self._set = torch.ones((), device=device), 1.0
        if value != self._set:
            self.value.fill_(value)
            self._set = value


class SkipSite(nn.Module):
    """Stands for a decoder layer whose first argument is the concatenation (N, hidden + skip, H, W).

    Args:
        layer: the layer itself.
        hidden: channels of the backbone's part.
        edits: in the order in which they act, each with its strength or None.
    """

    def __init__(self, layer: nn.Module, hidden: int, edits: Sequence[tuple[SkipEdit, Strength | None]]):
        super().__init__()
        self.layer, self.hidden = layer, hidden
        self.edits = nn.ModuleList(edit for edit, _ in edits)
        self.strengths = [strength for _, strength in edits]
        for name in ("in_channels", "out_channels"):  # by which EDM's networks know where a skip is consumed
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def forward(self, *args, **kwargs):
        name = None if args else next(iter(kwargs))  # AnimateDiff's blocks name it
        joined = args[0] if args else kwargs[name]
        if torch.is_grad_enabled() or joined.requires_grad:
            joined = joined.clone()  # checkpointing hands it over twice, perhaps without gradients at first
        self.edit(joined[:, : self.hidden], joined[:, self.hidden :])
        return self.layer(joined, *args[1:], **kwargs) if args else self.layer(**{**kwargs, name: joined})

    def edit(self, hidden: torch.Tensor, skip: torch.Tensor) -> None:
        """All edits, in place."""
        for edit, strength in zip(self.edits, self.strengths, strict=True):
            edit(hidden, skip, None if strength is None else strength.value)


class TokenSite(SkipSite):
    """Stands for a layer that takes the backbone's tokens (N, L, C) and the skip's apart, and concatenates them itself."""

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x, skip = x.clone(), skip.clone()  # here others may still read them
        self.edit(x.transpose(1, 2).unsqueeze(3), skip.transpose(1, 2).unsqueeze(3))
        return self.layer(x, skip)


class Sites:
    """The sites of one set of views.

    Args:
        unet: what they were made for.
        layers: by path of the layer that each stands for.
        strengths: one or None per method.
        residuals: what a ControlNet's residuals are divided by (per skip index), with its strength or None.
        inside: path, with its dot, from each layer to the part of it whose children may have been exchanged.
    """

    def __init__(
        self, unet: nn.Module, layers: dict[str, nn.Module], strengths: list, residuals: list, inside: str = ""
    ):
        self.layers = layers
        self._unet, self._inside = unet, inside
        self.paths = [f"{path}.{inside}" for path in layers]
        """Of what may have been copied of the layers, each with a dot, as ``overlay.copied_containers`` takes them."""
        self._by_id = {id(unet.get_submodule(path)): site for path, site in layers.items()}
        self._strengths, self._residuals = strengths, residuals
        self._learned = [
            m
            for site in layers.values()
            for m in site.modules()
            if isinstance(m, SkipEdit) and any(True for _ in m.parameters())
        ]
        self._folds = [m for site in layers.values() for m in site.modules() if isinstance(m, Fold)]

    def replacing(self, unet: nn.Module, path: str, layer: nn.Module) -> Sites:
        """These sites of ``unet``, with ``layer`` at ``path``."""
        return Sites(unet, {**self.layers, path: layer}, self._strengths, self._residuals, self._inside)

    def __bool__(self) -> bool:
        return bool(self.paths)

    def of(self, layer: nn.Module) -> nn.Module:
        """What stands for ``layer`` in a view: its site, or itself."""
        return self._by_id.get(id(layer), layer)

    def any_of(self, layers: Sequence[nn.Module]) -> bool:
        """Whether one of ``layers`` has a site."""
        return any(id(layer) in self._by_id for layer in layers)

    def are_current(self) -> bool:
        """Whether the weights that were folded are still the model's."""
        return all(fold.is_current() for fold in self._folds)

    def refresh(self) -> None:
        """Fold the weights again, for the sampling call that now begins."""
        for fold in self._folds:
            fold.refresh()

    def set(self, values: Sequence[float | None], device: torch.device) -> None:
        """Set the strengths for the next evaluation.

        Raises:
            SettingError: the U-Net computes layers a second time for the gradient, when the strengths have moved on.
        """
        if torch.is_grad_enabled() and any(self._strengths) and _is_checkpointing(self._unet):
            raise SettingError(
                "gradient checkpointing computes layers anew when the time of a method's schedule has moved on, and gradients would be "
                "wrong: unet.disable_gradient_checkpointing(), or leave the schedule out"
            )
        for strength, value in zip(self._strengths, values, strict=True):
            if strength is not None:
                strength.set(1.0 if value is None else value, device)

    def expect(self, sample: torch.Tensor) -> None:
        """Check what the edits have learned against the next evaluation's ``sample``, and take it to where that lies."""
        for edit in self._learned:
            edit.check(sample)
            if next(edit.parameters()).device != sample.device:
                with torch.inference_mode(False):  # tensors made in inference mode could not be trained outside it
                    edit.to(sample.device)

    def compensated(self, inputs: dict) -> dict:
        """The inputs with a ControlNet's residuals enlarged by what the sites will take from them."""
        if not self._residuals or inputs.get(RESIDUALS) is None or inputs.get(MID_RESIDUAL) is None:
            return inputs
        residuals = inputs[RESIDUALS]
        for factors, strength in self._residuals:
            now = None if strength is None else strength.value
            residuals = [r / at_strength(f, now) for r, f in zip(residuals, factors, strict=False)]
        return {**inputs, RESIDUALS: tuple(residuals)}


def _is_checkpointing(unet: nn.Module) -> bool:
    return any(getattr(m, "gradient_checkpointing", False) for m in unet.modules())


NO_SITES = Sites(nn.Module(), {}, [], [])
