"""Faces: the objects that sit in ``pipe.unet`` and ``pipe.controlnet`` while methods are applied.

A face is an instance of a subclass of the model's own class and *shares its ``__dict__``*: parameters,
children, hooks, config and every attribute set later are one and the same, so whatever a user does
to ``pipe.unet`` (LoRA, attention processors, ``to``, offload) happens to their U-Net and stays
after removal. Only calling it differs.
"""

from __future__ import annotations

import copy
import functools
import types
from typing import Protocol

import torch
from torch import nn

from .offload import call_hooked, is_group_offloaded
from .overlay import has_foreign_forward


class Evaluator(Protocol):
    """What a face asks when it is called."""

    original: nn.Module

    def evaluate(self, args: tuple, kwargs: dict) -> object:
        """The outcome of one call."""


class Face:
    """Mixed into a model's class."""

    __slots__ = ()
    _unetaccel: Evaluator

    @property
    def forward(self):
        # A data descriptor, because offload hooks store a `forward` in the shared __dict__.
        if not has_foreign_forward(self._unetaccel.original):
            return types.MethodType(type(self)._evaluate, self)
        if "_hf_hook" in self.__dict__:  # accelerate's wrapper may be bound to the plain U-Net: do what it does
            return types.MethodType(type(self)._evaluate_hooked, self)
        if is_group_offloaded(self._unetaccel.original):  # likewise
            return types.MethodType(type(self)._evaluate_group_offloaded, self)
        return self.__dict__["forward"]

    @forward.setter
    def forward(self, value):
        # accelerate puts back the bound `forward` it found, which is what this class computes anyway.
        self.__dict__["forward"] = value
        if not has_foreign_forward(self._unetaccel.original):
            del self.__dict__["forward"]

    def __eq__(self, other):
        # Group offloading compares a module with the one that leads its group, and may have met either of the two.
        return isinstance(other, nn.Module) and other.__dict__ is self.__dict__

    def __hash__(self):
        return hash(self._unetaccel.original)

    def __deepcopy__(self, memo):
        return copy.deepcopy(self._unetaccel.original, memo)

    def __copy__(self):
        return copy.copy(self._unetaccel.original)

    def __reduce_ex__(self, protocol):
        return _plain, (self._unetaccel.original,)


class AcceleratedUNet(Face):
    """The face of a U-Net; ``isinstance(pipe.unet, AcceleratedUNet)`` tells that methods are applied."""

    __slots__ = ()


def _plain(model: nn.Module) -> nn.Module:
    """What a pickled face is loaded as: the plain model."""
    return model


def faced(module: object) -> object:
    """What a face stands for, or the thing itself."""
    return module._unetaccel.original if isinstance(module, Face) else module


def face(evaluator: Evaluator, kind: type[Face] = AcceleratedUNet) -> nn.Module:
    """A face of ``evaluator.original`` whose calls go to ``evaluator.evaluate``."""
    original = evaluator.original
    cls = _face_class(type(original), kind)
    module = cls.__new__(cls)
    object.__setattr__(module, "__dict__", original.__dict__)
    object.__setattr__(module, "_unetaccel", evaluator)
    return module


@functools.cache
def _face_class(cls: type, kind: type[Face]) -> type:
    """A subclass of the model's class with the same name, so that configs and saved models keep theirs."""

    @functools.wraps(cls.forward)
    def evaluate(self, *args, **kwargs):
        return self._unetaccel.evaluate(args, kwargs)

    @functools.wraps(cls.forward)
    def evaluate_hooked(self, *args, **kwargs):
        hook = self._hf_hook
        args, kwargs = hook.pre_forward(self, *args, **kwargs)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not hook.no_grad):
            output = self._unetaccel.evaluate(args, kwargs)
        return hook.post_forward(self, output)

    @functools.wraps(cls.forward)
    def evaluate_group_offloaded(self, *args, **kwargs):
        return call_hooked(self, lambda *args, **kwargs: self._unetaccel.evaluate(args, kwargs), args, kwargs)

    members = {
        "__slots__": ("_unetaccel",),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "_evaluate": evaluate,
        "_evaluate_hooked": evaluate_hooked,
        "_evaluate_group_offloaded": evaluate_group_offloaded,
    }
    return type(cls.__name__, (kind, cls), members)
