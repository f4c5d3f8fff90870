"""Overlays: a second module tree that shares everything with the first but a few nodes.

``overlay(unet, {"mid_block": other})`` is a new U-Net object whose ``mid_block`` is ``other`` and
whose remaining children are the *same* modules. Nothing in the original is written, so dropping
the overlay is an exact undo.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from .errors import UnsupportedModelError
from .offload import is_group_offloaded


def overlay(module: nn.Module, replacements: Mapping[str, nn.Module | None]) -> nn.Module:
    """A copy of ``module`` in which the child at each dotted path is replaced.

    Only containers on a replaced path are copied, shallowly; every other child, all parameters,
    buffers and hooks are shared. ``None`` empties the place, as ``module.child = None`` does.

    Raises:
        KeyError: a path that does not exist in ``module``.
    """
    here: dict[str, nn.Module | None] = {}
    deeper: dict[str, dict[str, nn.Module | None]] = {}
    for path, replacement in replacements.items():
        name, _, rest = path.partition(".")
        if name not in module._modules and name not in module.__dict__:
            raise KeyError(
                f"{type(module).__name__} has no child {name!r} (path {path!r}); it has {list(module._modules)}"
            )
        if rest:
            deeper.setdefault(name, {})[rest] = replacement
        else:
            here[name] = replacement
    for name, inner in deeper.items():
        here[name] = overlay(here.get(name) or module._modules[name], inner)
    return _with_children(module, here)


def _with_children(module: nn.Module, children: Mapping[str, nn.Module | None]) -> nn.Module:
    copy = type(module).__new__(type(module))
    copy.__dict__.update({k: v for k, v in module.__dict__.items() if k not in children})
    # Callables bound to the original would run the original's children: what nn.Module.compile() stores, and
    # the class's own `forward` as DeepCacheSDHelper.disable() leaves it behind, or with offloading around it.
    copy.__dict__["_compiled_call_impl"] = None
    if not has_foreign_forward(module) or is_group_offloaded(module):
        copy.__dict__.pop("forward", None)
    copy.__dict__["_modules"] = {**module._modules, **children}
    return copy


def copied_containers(module: nn.Module, paths: list[str]) -> list[nn.Module]:
    """The modules that an overlay of ``module`` at ``paths`` copies, outermost first."""
    found: dict[int, nn.Module] = {id(module): module}
    for path in paths:
        node = module
        for name in path.split(".")[:-1]:
            node = node._modules[name]
            found.setdefault(id(node), node)
    return list(found.values())


class Fingerprint:
    """Remembers the state of some containers and tells whether a copy made of them is stale.

    Compared are each container's children, by identity, and plain attributes: FreeU's factors, a replaced layer
    or a new adapter on ``conv_in`` change it, a new weight inside a shared leaf does not (the copy sees
    that by itself). Costs about a microsecond per container.

    Args:
        containers: what was copied and must not get hooks.
        inner: what was copied, hooks and all.
        deep: compare lists and dicts among the attributes by what is in them: LoRA scales change there.
    """

    def __init__(self, containers: list[nn.Module], inner: Iterable[nn.Module] = (), deep: bool = False):
        self._containers, self._hooks = containers, list(map(_hooks, containers))
        modules = {id(m): m for m in (*containers, *inner)}.values()
        self._live = [d for m in modules for d in (m.__dict__, m._modules)]
        if deep:
            self._live += [v for d in self._live for v in d.values() if isinstance(v, dict | list)]
        self._seen = [dict(v) if isinstance(v, dict) else list(v) for v in self._live]

    def is_current(self) -> bool:
        try:
            same = self._live == self._seen
        except (RuntimeError, ValueError):  # of arrays among the attributes, one replaced by another
            return False
        return same and list(map(_hooks, self._containers)) == self._hooks


def _hooks(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def has_foreign_forward(module: nn.Module) -> bool:
    """Whether calling ``module`` runs anything but a ``forward`` of its own.

    Its own is a method bound to it, or to a face of it (which shares its ``__dict__``): patchers and offload hooks
    leave such a method behind when they undo themselves.
    """
    forward = module.__dict__.get("forward")
    owner = getattr(forward, "__self__", None)
    return forward is not None and getattr(owner, "__dict__", None) is not module.__dict__


def refuse_replaced_forward(containers: list[nn.Module], names: Mapping[int, str]) -> None:
    """Raise if a container that must be copied has a ``forward`` that another tool has put there.

    Such a ``forward`` is bound to the original module, so a truncated copy would silently run the whole original.
    """
    for module in filter(has_foreign_forward, containers):
        if is_group_offloaded(module):
            continue
        name = names.get(id(module), type(module).__name__)
        raise UnsupportedModelError(
            f"{name} ({type(module).__name__}) has a replaced `forward`: another tool has patched this U-Net "
            "(for example DeepCacheSDHelper.enable()). Undo that first (DeepCacheSDHelper.disable(), "
            "pipe.remove_all_hooks()) and call unetaccel.apply again."
        )
