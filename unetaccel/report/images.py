"""Pictures of a result as data URIs, shrunk where they would make the page heavy."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .results import QualityResult
from .rows import Row

SIDE, HEAVY = 384, 48_000  # pixels and bytes that a picture may have
FORMATS = ("PNG", "JPEG", "WEBP")


def collect(result: QualityResult) -> tuple[dict[str, dict[str, str]], list[str]]:
    """``{row id: {name: data URI}}``, and the pictures that were named but could not be read."""
    found, missing = {}, []
    for row in result.rows:
        for name, uri in (_cut(result, row) if row.strip else _single(result, row)).items():
            if uri is None:
                missing.append(f"{row.id}/{name}")
            else:
                found.setdefault(row.id, {})[name] = uri
    return found, missing


def lost_rows(result: QualityResult) -> int:
    """How many rows name pictures that are not there."""
    named = [row.strip for row in result.rows if row.strip]
    return sum((path := _inside(result.path.parent, name)) is None or not path.is_file() for name in named)


def _single(result: QualityResult, row: Row) -> dict[str, str | None]:
    return {name: _read(result.path.parent / "images", f"{row.id}/{name}") for name in row.images}


def _cut(result: QualityResult, row: Row) -> dict[str, str | None]:
    """The pictures of a row from one file that has them side by side, each as wide as the others."""
    path = _inside(result.path.parent, row.strip)
    try:
        with Image.open(path, formats=FORMATS) as strip:
            strip = strip.convert("RGB")
    except (OSError, ValueError, TypeError, AttributeError, UnidentifiedImageError, Image.DecompressionBombError):
        return dict.fromkeys(row.images)
    wide = strip.width // max(len(row.images), 1)
    cells = [strip.crop((i * wide, 0, (i + 1) * wide, strip.height)) for i in range(len(row.images))]
    return {name: _picture(cell) for name, cell in zip(row.images, cells, strict=True)}


def _picture(cell: Image.Image) -> str:
    buffer = io.BytesIO()
    cell.save(buffer, "PNG")
    return _uri("PNG", buffer.getvalue()) if buffer.tell() <= HEAVY else _uri("WEBP", _shrunk(cell))


def _inside(folder: Path, name: str) -> Path | None:
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder.resolve()) else None


def _read(folder: Path, name: str) -> str | None:
    """A picture inside ``folder``: a result file from elsewhere must not draw other files into the page."""
    path = _inside(folder, name)
    if path is None:
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
