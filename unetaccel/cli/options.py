"""Turning option texts into settings."""

from __future__ import annotations

import tempfile
from dataclasses import fields
from enum import Enum
from pathlib import Path

import torch

from ..errors import SettingError
from ..methods import RECOMMENDED, Method
from ..settings import FOREIGN, METHODS, method_from, missing_settings


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


MAX_SEEDS = 100_000


def methods(calibrated: str | None, **texts: str | None) -> tuple[Method, ...]:
    """The methods whose option was given, each by its name; see ``method``, and ``profile`` for ``calibrated``."""
    found = [method(name, text) for name, text in texts.items() if text is not None]
    return (*found, *([] if calibrated is None else [profile(calibrated)]))


def profile(text: str) -> Method:
    """``"demo.yaml"`` or ``"demo.yaml,full=10,cut=1"`` as a calibrated plan."""
    path, _, rest = text.partition(",")
    settings = {"profile": path}
    for part in filter(None, rest.split(",")):
        key, equals, value = (s.strip() for s in part.partition("="))
        if not equals or key not in ("full", "cut", "points"):
            raise SettingError(f"--profile {text!r}: {part!r} is not NAME=VALUE with one of full, cut, points")
        if key in settings:
            raise SettingError(f"--profile {text!r} names {key} twice")
        settings[key] = _value(value)
    return method_from("calibrated", settings)


def method(name: str, text: str) -> Method:
    """``"interval=3,cut=1"`` as the method of this name; an empty text is its default, a bare number its first setting.

    Lists are written with plus signs: ``schedule=0+3+9``. Names are as in ``settings.method_from``.
    """
    if (name, text) == ("deepcache", "recommended"):
        return RECOMMENDED
    option, names = f"--{name.replace('_', '-')}", [f.name for f in fields(METHODS[name])]
    settings = {}
    first, comma, rest = text.partition(",")
    if _is_number(first):
        text = f"{names[0]}={first}{comma}{rest}"
    for part in filter(None, text.split(",")):
        key, equals, value = (s.strip() for s in part.partition("="))
        if not equals or key not in (*names, *FOREIGN):
            raise SettingError(f"{option} {text!r}: {part!r} is not NAME=VALUE with one of {', '.join(names)}")
        if key in settings:
            raise SettingError(f"{option} {text!r} names {key} twice")
        settings[key] = _value(value)
    missing = missing_settings(name, settings)
    if missing:
        example = METHODS[name].example.strip("{}").replace(": ", "=").replace(", ", ",")
        raise SettingError(f"{option} {text!r} lacks {missing[0]}: give all, for example {option} {example}")
    return method_from(name, settings)


def _is_number(text: str) -> bool:
    return isinstance(_value(text), int | float) and not isinstance(_value(text), bool)


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
        low, high = int(first), int(last if dash else first)
        if not low <= high < 2**63 or high - low >= MAX_SEEDS:
            raise SettingError(f"--seed {text!r}: a range goes up, below 2^63, with at most {MAX_SEEDS:,} seeds")
        found += range(low, high + 1)
    return found


def size(text: str | None, option: str = "--size") -> tuple[int, int] | None:
    """``"512"`` or ``"512x768"`` (height x width)."""
    if text is None:
        return None
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise SettingError(f"{option} {text!r}: expected a side such as 512, or height x width such as 512x768")
    return int(sides[0]), int(sides[-1])


def device(text: str) -> torch.device:
    """A torch device that is there; ``"auto"`` is a GPU if one is, else the CPU."""
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(text)
        torch.zeros(1, device=chosen).sum().item()
    except Exception as error:  # a name that torch does not know, or a device that is not here
        raise SettingError(
            f"--device {text!r} cannot be used here ({str(error).splitlines()[0][:100]}); examples: auto, cpu, cuda, cuda:1, mps"
        ) from error
    return chosen


def writable(out: Path, images: Path | None) -> None:
    """Raise before the work rather than after it if the results could not be written."""
    if out.suffix.lower() != ".png":
        raise SettingError(f"--out {str(out)!r}: the grid is a PNG, so the name must end in .png")
    writable_file("--out", out)
    if images is None:
        return
    if images.is_file():
        raise SettingError(f"--images {str(images)!r} is a file: name a folder")
    _try_to_write("--images", images, images)


def writable_file(option: str, path: Path) -> None:
    """Raise before the work rather than after it if a file could not be written; makes its folder."""
    if path.is_dir():
        raise SettingError(f"{option} {str(path)!r} cannot be written: it is a directory")
    _try_to_write(option, path, path.parent)


def _try_to_write(option: str, path: Path, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SettingError(f"{option} {str(path)!r} cannot be written: {error.strerror or error}") from error


def prompts(given: list[str], file: Path | None, option: str = "--prompts") -> list[str]:
    """Prompts from the arguments and from the lines of a file."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file else []
    except OSError as error:
        raise SettingError(f"{option} {str(file)!r} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"{option} {str(file)!r} is not text: {error}") from error
    found = [*given, *(line.strip() for line in lines if line.strip())]
    if file and not found:
        raise SettingError(f"{str(file)!r} holds no prompt: write one per line")
    return found
