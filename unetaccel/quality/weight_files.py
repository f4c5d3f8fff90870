"""Weight files of other projects: tensors only, and exactly the ones that are expected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch

from ..errors import WeightsError


def read_tensors(path: Path | str, shapes: Mapping[str, torch.Size], what: str) -> dict[str, torch.Tensor]:
    """The tensors of a file written by ``torch.save``, by name, in float32. Nothing in the file is executed.

    Args:
        shapes: names and shapes that must be there; names beside them are ignored.
        what: the right file, for messages.

    Raises:
        WeightsError: no such file, damaged, holding more than tensors, or of another network.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"no file {str(path)!r}: give the path of {what}")
    found = _load(path, what)
    if not isinstance(found, Mapping) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise WeightsError(f"{str(path)!r} is not a state dict of tensors; expected {what}")
    missing = [name for name in shapes if name not in found]
    if missing:
        raise WeightsError(f"{str(path)!r} lacks {_some(missing)}; expected {what}")
    wrong = [f"{k} {tuple(found[k].shape)} for {tuple(s)}" for k, s in shapes.items() if found[k].shape != s]
    if wrong:
        raise WeightsError(f"{str(path)!r} has other shapes: {_some(wrong)}; expected {what}")
    broken = [name for name in shapes if not found[name].isfinite().all()]
    if broken:
        raise WeightsError(f"{str(path)!r} has NaN or infinite numbers in {_some(broken)}; download it again")
    return {name: found[name].float() for name in shapes}


def _load(path: Path, what: str) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise WeightsError(
            f"{str(path)!r} is damaged or holds more than tensors, and was not executed; expected {what}"
        ) from error
    except Exception as error:  # readers raise whatever a damaged file makes them stumble over
        raise WeightsError(f"{str(path)!r} is truncated or of another format; expected {what}") from error


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
