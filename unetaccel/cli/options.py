"""Turning option texts into settings."""

from __future__ import annotations

import inspect
from enum import Enum
from pathlib import Path

import torch

from ..errors import SettingError
from ..methods import DeepCache


class Format(str, Enum):
    """How results are printed."""

    text = "text"
    json = "json"


class Dtype(str, Enum):
    """Floating-point type of the pipeline."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"

    @property
    def torch(self) -> torch.dtype:
        return getattr(torch, self.value)


def deepcache(text: str) -> DeepCache:
    """``"interval=3,cut=1"`` as a ``DeepCache``; an empty text is the default.

    Lists are written with plus signs: ``schedule=0+3+9``. ``cache_interval`` and ``cache_branch_id``, the names of
    DeepCacheSDHelper, are understood.
    """
    names = list(inspect.signature(DeepCache).parameters)
    settings = {}
    for part in filter(None, text.split(",")):
        key, equals, value = (s.strip() for s in part.partition("="))
        key, value = _foreign(key, value)
        if not equals or key not in names:
            raise SettingError(f"--deepcache {text!r}: {part!r} is not NAME=VALUE with one of {', '.join(names)}")
        settings[key] = _value(value)
    return DeepCache(**settings)


def _foreign(key: str, value: str) -> tuple[str, str]:
    if key == "cache_branch_id":
        return "cut", f"helper:{value}"
    return {"cache_interval": "interval"}.get(key, key), value


def _value(text: str):
    if "+" in text:
        return [_value(t) for t in text.split("+")]
    if text in ("true", "True", "false", "False"):
        return text in ("true", "True")
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def seeds(text: str) -> list[int]:
    """``"0"``, ``"0,5,7"`` or ``"0-3"`` (both ends)."""
    found = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise SettingError(f"--seed {text!r}: expected numbers such as 0, 0,5,7 or 0-3")
        found += range(int(first), int(last if dash else first) + 1)
    if not found:
        raise SettingError(f"--seed {text!r}: the range is empty")
    return found


def size(text: str | None) -> tuple[int, int] | None:
    """``"512"`` or ``"512x768"`` (height x width)."""
    if text is None:
        return None
    height, _, width = text.partition("x")
    if not height.isdecimal() or not (width or height).isdecimal() or int(height) < 1:
        raise SettingError(f"--size {text!r}: expected pixels such as 512, or height x width such as 512x768")
    return int(height), int(width or height)


def device(text: str) -> torch.device:
    """A torch device that is there; ``"auto"`` is a GPU if one is, else the CPU."""
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(text)
    except RuntimeError as error:
        raise SettingError(f"--device {text!r} is not a device; examples: cpu, cuda, cuda:1, mps") from error
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(chosen.type, True)
    if not there:
        raise SettingError(f"--device {text!r}: this machine or this build of torch has no {chosen.type} device")
    return chosen


def prompts(given: list[str], file: Path | None) -> list[str]:
    """Prompts from the arguments and from the lines of a file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file else []
    found = [*given, *(line.strip() for line in lines if line.strip())]
    if file and not found:
        raise SettingError(f"{str(file)!r} holds no prompt: write one per line")
    return found
