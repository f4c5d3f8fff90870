"""Skip editing by hand, with hooks on the model's own layers: what the methods are compared with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import torch

from unetaccel.layouts import layout_of
from unetaccel.skips import skip_table


@contextmanager
def edited_by_hand(unet, edit: Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]):
    """``edit(b, hidden, skip) -> (hidden, skip)`` on what enters each decoder layer of the user's U-Net."""
    hooks = []
    for skip in skip_table(unet):

        def pre(_, args, kwargs, skip=skip):
            name = None if args else next(iter(kwargs))
            joined = args[0] if args else kwargs[name]
            joined = torch.cat(edit(skip.b, joined[:, : skip.hidden], joined[:, skip.hidden :]), dim=1)
            return ((joined, *args[1:]), kwargs) if args else (args, {**kwargs, name: joined})

        hooks.append(unet.get_submodule(skip.entry).register_forward_pre_hook(pre, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def parts_by_hand(unet, where: str, rhos: list[float]):
    """Scale the skip's channels of the shortcut's input, or of the first norm's output, by hooks on those layers."""
    hooks = []
    for place in layout_of(unet).places(unet):
        start, rho = place.skip.hidden, rhos[place.skip.b]

        def scaled(x, start=start, rho=rho):
            return torch.cat([x[:, :start], x[:, start:] * rho], dim=1)

        if where == "shortcut":
            hook = lambda _, args, scaled=scaled: (scaled(args[0]), *args[1:])  # noqa: E731
            hooks.append(getattr(place.layer, place.shortcut).register_forward_pre_hook(hook))
        else:
            hook = lambda _, args, output, scaled=scaled: scaled(output)  # noqa: E731
            hooks.append(getattr(place.layer, place.norm).register_forward_hook(hook))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
