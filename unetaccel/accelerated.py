"""AcceleratedUNet: the object that sits in ``pipe.unet``. A second face of the user's U-Net.

It is an instance of a subclass of the U-Net's own class and *shares its ``__dict__``*: parameters,
children, hooks, config and every attribute set later are one and the same, so whatever a user does
to ``pipe.unet`` (LoRA, attention processors, ``to``, offload) happens to their U-Net and stays
after removal. Only calling it differs.
"""

from __future__ import annotations

import copy
import functools
import types

import torch
from torch import nn

from .engine import Engine
from .overlay import has_foreign_forward


class AcceleratedUNet:
    """Mixed into the U-Net's class; ``isinstance(pipe.unet, AcceleratedUNet)`` tells that it is applied."""

    __slots__ = ()
    _unetaccel: Engine

    @property
    def forward(self):
        # A data descriptor, because offload hooks store a `forward` in the shared __dict__.
        if not has_foreign_forward(self._unetaccel.unet):
            return types.MethodType(type(self)._evaluate, self)
        if "_hf_hook" in self.__dict__:  # accelerate's wrapper may be bound to the plain U-Net: do what it does
            return types.MethodType(type(self)._evaluate_hooked, self)
        return self.__dict__["forward"]

    @forward.setter
    def forward(self, value):
        # accelerate puts back the bound `forward` it found, which is what this class computes anyway.
        if getattr(value, "__self__", None) in (self, self._unetaccel.unet):
            self.__dict__.pop("forward", None)
        else:
            self.__dict__["forward"] = value

    def __deepcopy__(self, memo):
        return copy.deepcopy(self._unetaccel.unet, memo)

    def __copy__(self):
        return copy.copy(self._unetaccel.unet)

    def __reduce_ex__(self, protocol):
        return _plain, (self._unetaccel.unet,)


def _plain(unet: nn.Module) -> nn.Module:
    """What a pickled accelerated U-Net is loaded as: the plain one."""
    return unet


def face(engine: Engine) -> nn.Module:
    """The accelerated face of ``engine.unet``."""
    original = engine.unet
    cls = _face_class(type(original))
    module = cls.__new__(cls)
    object.__setattr__(module, "__dict__", original.__dict__)
    object.__setattr__(module, "_unetaccel", engine)
    return module


@functools.cache
def _face_class(cls: type) -> type:
    """A subclass of the U-Net's class with the same name, so that configs and saved models keep theirs."""

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

    members = {
        "__slots__": ("_unetaccel",),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "_evaluate": evaluate,
        "_evaluate_hooked": evaluate_hooked,
    }
    return type(cls.__name__, (AcceleratedUNet, cls), members)
