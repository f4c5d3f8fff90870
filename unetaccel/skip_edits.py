"""SkipEdits: what the skip methods of one ``apply`` do to a U-Net, whatever views of it are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from .errors import SettingError
from .layouts import Layout
from .methods.skip_method import Place, SkipMethod
from .overlay import overlay
from .sites import Sites, Strength
from .timeline import Timeline
from .weights import base_of, learned_name, load_learned


class SkipEdits:
    """The skip methods of one ``apply``, fitted to one U-Net.

    Args:
        methods: in the order given by the user.
        layout: where the U-Net's skips are.
        unet: the user's U-Net.

    Attributes:
        account: for people, one line per method.
        learned: what the methods can learn, by name; the same modules in every view.

    Raises:
        SettingError: settings that do not fit this U-Net.
        WeightsError: a file of learned weights that does not.
    """

    def __init__(self, methods: Sequence[SkipMethod], layout: Layout, unet: nn.Module):
        self.methods, self.layout = tuple(methods), layout
        places = layout.places(unet)
        with torch.inference_mode(False):  # or what they learn could not be trained
            self._edits = [method.edits(places) for method in self.methods]
        self._residuals = [m.residual_factors(places) for m in self.methods]
        self.account = tuple(f"{type(m).__name__} {m.account(places)}" for m in self.methods)
        self.learned = nn.ModuleDict()
        for method, edits in zip(self.methods, self._edits, strict=True):
            self._register(method, edits)
            if method.weights is not None:
                load_learned(method.weights, method, self.learned[learned_name(method)], base_of(unet, layout.skips))

    def _register(self, method: SkipMethod, edits: dict[int, nn.Module]) -> None:
        if not any(True for edit in edits.values() for _ in edit.parameters()):
            return
        name = learned_name(method)
        if name in self.learned:
            raise SettingError(f"two methods learn under the name {name!r}: apply {type(method).__name__} once")
        self.learned[name] = nn.ModuleDict({str(b): edit for b, edit in edits.items()})

    def __bool__(self) -> bool:
        return bool(self.methods)

    def sites(self, unet: nn.Module) -> Sites:
        """Sites for the layers of ``unet``: the user's, or an overlay of it."""
        for method in self.methods:
            method.check_model(unet)
        timed = [Strength() if m.schedule is not None else None for m in self.methods]
        layers = {p.skip.entry: self._site(unet, p, timed) for p in self.layout.places(unet)}
        changed = {path: site for path, site in layers.items() if site is not unet.get_submodule(path)}
        residuals = [(f, s) for f, s in zip(self._residuals, timed, strict=True) if f is not None]
        return Sites(unet, changed, timed, residuals, self.layout.inside)

    def _site(self, unet: nn.Module, place: Place, timed: list) -> nn.Module:
        layer = unet.get_submodule(place.skip.entry)
        for method, strength in zip(self.methods, timed, strict=True):
            parts = method.parts(place, strength)
            if parts:
                layer = overlay(layer, {self.layout.inside + name: part for name, part in parts.items()})
                place = replace(place, layer=self.layout.part_of(layer))
        b = place.skip.b
        edits = [(e[b], s) for e, s in zip(self._edits, timed, strict=True) if b in e]
        if not edits:
            return layer
        return self.layout.site(layer, place.skip.hidden, edits)

    def strengths(self, timeline: Timeline) -> list[list[float] | None]:
        """Per method, its strength at each evaluation of one sampling call."""
        return [m.strengths(timeline) for m in self.methods]

    @property
    def need_timeline(self) -> bool:
        """Whether a method acts differently at different times."""
        return any(m.schedule is not None for m in self.methods)
