"""Pictures of a result as data URIs, shrunk where they would make the page heavy."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .results import QualityResult

SIDE, HEAVY = 384, 48_000  # pixels and bytes that a picture may have
FORMATS = ("PNG", "JPEG", "WEBP")


def collect(result: QualityResult) -> tuple[dict[str, dict[str, str]], list[str]]:
    """``{row id: {name: data URI}}``, and the pictures that were named but could not be read."""
    found, missing = {}, []
    for row in result.rows:
        for name in row.images:
            uri = _read(result.path.parent / "images", f"{row.id}/{name}")
            if uri is None:
                missing.append(f"{row.id}/{name}")
            else:
                found.setdefault(row.id, {})[name] = uri
    return found, missing


def _read(folder: Path, name: str) -> str | None:
    """A picture inside ``folder``: a result file from elsewhere must not draw other files into the page."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        return None
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if path.stat().st_size <= HEAVY:
                return _uri(picture.format, path.read_bytes())
            return _uri("WEBP", _shrunk(picture))
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return None


def _shrunk(picture: Image.Image) -> bytes:
    picture = picture.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=88)
    return buffer.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
