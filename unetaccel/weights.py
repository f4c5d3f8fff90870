"""Learned parts as safetensors: what a method has learned for one architecture, with a header that says so.

A file holds one method's tensors and, as metadata, the method, its settings and the architecture they were made for; the
weights of the U-Net are no part of that, so fine-tunes of one model can share a file. All of it is checked before anything
is applied, and nothing in a file is ever executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .errors import SettingError, WeightsError
from .methods.skip_method import SkipMethod
from .skips import Skip

if TYPE_CHECKING:
    from .handle import Handle

FORMAT, VERSION = "unetaccel learned", "1"
FLOATS = ("F64", "F32", "F16", "BF16")


def save_learned(handle: Handle, path: str | PathLike, method: str | None = None) -> Path:
    """Write what a method of ``handle`` has learned to a safetensors file, whole or not at all.

    Args:
        method: its name in ``handle.learned``; needed where several methods learn.

    Raises:
        SettingError: no method learns, or it is not clear which one is meant.
        WeightsError: the file cannot be written.
    """
    edits, names = handle._engine.edits, list(handle.learned)
    if not names:
        raise SettingError(f"nothing here learns, so there is nothing to save: {', '.join(map(repr, handle.methods))}")
    if method not in names and (method is not None or len(names) > 1):
        raise SettingError(f"save_learned(method={method!r}): method must be one of {', '.join(map(repr, names))}")
    name = method or names[0]
    [owner] = [m for m in edits.methods if learned_name(m) == name]
    header = {
        "format": FORMAT,
        "version": VERSION,
        "method": name,
        "settings": json.dumps(owner.learning_settings()),
        "base": json.dumps(base_of(handle._engine.original, edits.layout.skips)),
    }
    tensors = {k: v.detach().contiguous() for k, v in own_tensors(handle.learned[name]).items()}
    return _write(Path(path).expanduser(), tensors, header)


def load_learned(path: str | PathLike, method: SkipMethod, into: nn.Module, base: Mapping) -> None:
    """Read a file of ``save_learned`` into the modules of ``method``, which nothing has been done to if this fails.

    Args:
        into: what the method learns, as made for this U-Net.
        base: ``base_of`` this U-Net.

    Raises:
        WeightsError: no such file, damaged, of another kind, or made for another method, other settings or another U-Net.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise WeightsError(f"{str(path)!r} is a folder: give the path of a file written by unetaccel.save_learned")
    if not path.is_file():
        raise WeightsError(f"no file {str(path)!r}: give the path of a file written by unetaccel.save_learned")
    own = own_tensors(into)
    try:
        with safe_open(path, framework="pt") as file:
            _check_header(path, file.metadata() or {}, method, base)
            _check_tensors(path, file, own)
            found = {name: file.get_tensor(name) for name in own}
    except WeightsError:
        raise
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{str(path)!r} is truncated or not a safetensors file ({error}); expected one written by unetaccel.save_learned"
        ) from error
    broken = [name for name, value in found.items() if not value.isfinite().all()]
    if broken:
        raise WeightsError(f"{str(path)!r} has NaN or infinite numbers in {_some(broken)}; save it again")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(found[name])


def learned_name(method: SkipMethod) -> str:
    """Under which ``handle.learned`` and files know a method."""
    return type(method).__name__.lower()


def base_of(unet: nn.Module, skips: Sequence[Skip]) -> dict[str, object]:
    """What of a U-Net learned parts depend on: its class, the width of its conditions, and its skips.

    Each skip as [channels, channels of what it is concatenated to, stride], by b.
    """
    return {
        "class": type(unet).__name__,
        "cross_attention_dim": _plain(getattr(unet, "config", {}).get("cross_attention_dim")),
        "skips": [[s.channels, s.hidden, s.stride] for s in skips],
    }


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and kept buffers of ``module``, each once, by the first of its names."""
    first: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    for name, tensor in state.items():
        first.setdefault(id(tensor), name)
    return {name: state[name] for name in first.values()}


def _write(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, str]) -> Path:
    if not path.parent.is_dir():
        raise WeightsError(f"cannot write {str(path)!r}: no folder {str(path.parent)!r}; make it first")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, part, metadata=header)
        part.replace(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"cannot write {str(path)!r}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _check_header(path: Path, header: Mapping[str, str], method: SkipMethod, base: Mapping) -> None:
    if header.get("format") != FORMAT:
        raise WeightsError(
            f"{str(path)!r} was not written by unetaccel.save_learned (its header has no such mark): are these weights of another "
            f"project? {type(method).__name__} expects a file of its own"
        )
    if header.get("version") != VERSION:
        raise WeightsError(
            f"{str(path)!r} has format version {_short(header.get('version'))}, and this release of unetaccel reads version "
            f"{VERSION!r}: use the release that wrote it, or a newer one"
        )
    if header.get("method") != learned_name(method):
        raise WeightsError(
            f"{str(path)!r} holds what {_short(header.get('method'))} has learned, not {learned_name(method)!r}: apply that method"
        )
    settings = _parsed(path, header, "settings")
    _compare(path, settings, _plain(method.learning_settings()), f"{method!r} expects", "Give the same settings")
    own_base = "this U-Net expects", "Apply it to the model that it was trained on, or to a fine-tune of that"
    _compare(path, _parsed(path, header, "base"), _plain(base), *own_base)


def _parsed(path: Path, header: Mapping[str, str], part: str) -> dict:
    try:
        value = json.loads(header.get(part, ""))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"the header of {str(path)!r} is damaged ({part} is not JSON); save it again") from error
    if not isinstance(value, dict):
        raise WeightsError(f"the header of {str(path)!r} is damaged ({part} is not a table); save it again")
    return value


def _compare(path: Path, found: Mapping, own: Mapping, expects: str, advice: str) -> None:
    other = [k for k in {**own, **found} if k not in own or k not in found or found[k] != own[k]]
    if other:
        came = ", ".join(f"{k}={_short(found.get(k))}" for k in other)
        here = ", ".join(f"{k}={_short(own.get(k))}" for k in other)
        raise WeightsError(f"{str(path)!r} was made with {came}, but {expects} {here}. {advice}")


def _check_tensors(path: Path, file, own: Mapping[str, torch.Tensor]) -> None:
    """By the header alone: nothing is read of a file that does not fit."""
    names = set(file.keys())
    missing, strange = sorted(own.keys() - names), sorted(names - own.keys())
    if missing or strange:
        told = ([f"lacks {_some(missing)}"] if missing else []) + ([f"also has {_some(strange)}"] if strange else [])
        raise WeightsError(f"{str(path)!r} {' and '.join(told)}, unlike what its header says; save it again")
    for name, tensor in own.items():
        part = file.get_slice(name)
        if part.get_shape() != list(tensor.shape) or part.get_dtype() not in FLOATS:
            raise WeightsError(
                f"{str(path)!r} has {name} as {part.get_dtype()} of shape {part.get_shape()}; expected floating-point numbers of "
                f"shape {list(tensor.shape)}"
            )


def _plain(value: object) -> object:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _some(names: Sequence[str]) -> str:
    return ", ".join(name[:100] for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
