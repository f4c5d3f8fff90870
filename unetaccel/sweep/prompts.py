"""Prompts of a sweep: the demo's held-out captions, or a file in one of the public formats."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SettingError
from .spec import DEFAULT_COUNT, PromptSource

if TYPE_CHECKING:
    from ..demo.scenes import Scenes

NOISES_PER_SEED = 10_000_000


@dataclass(frozen=True)
class Jobs:
    """Everything to be sampled for each row: every prompt with every seed, prompts first."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    scenes: Scenes | None = None
    """What the demo's captions describe, one per prompt."""
    source: str = ""

    def __len__(self) -> int:
        return len(self.prompts) * len(self.seeds)

    def __getitem__(self, i: int) -> tuple[str, int]:
        """Prompt and noise seed of job ``i``. The noise depends on the prompt's index and the seed, and on nothing else."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        seed, prompt = divmod(i, len(self.prompts))
        return self.prompts[prompt], self.seeds[seed] * NOISES_PER_SEED + prompt

    def name(self, i: int) -> str:
        """File name of job ``i``'s picture."""
        seed, prompt = divmod(i, len(self.prompts))
        return f"{prompt:05d}-{self.seeds[seed]}.png"

    def batches(self, size: int) -> list[range]:
        """The jobs in parts of ``size``; always the same parts, so that shards give the same pictures."""
        return [range(i, min(i + size, len(self))) for i in range(0, len(self), size)]


def read_jobs(source: PromptSource, seeds: tuple[int, ...]) -> Jobs:
    """The jobs that a sweep's prompts and seeds name.

    Formats of files: ``lines`` (one prompt per line), ``drawbench`` (CSV with a column Prompts), ``coco`` (the captions
    JSON; the first caption of each picture, in the order of their ids) and ``parti`` (TSV with a column Prompt).

    Raises:
        SettingError: the file cannot be read as its format, or has fewer prompts than asked for.
    """
    count = source.count or DEFAULT_COUNT
    if source.source == "none":
        return Jobs(("",) * count, seeds, source="no prompts")
    if source.source == "demo":
        from ..demo.scenes import sample_scenes

        scenes = sample_scenes(count, seed=source.seed or 0, held_out=True)
        return Jobs(tuple(scenes.captions()), seeds, scenes, "held-out captions of the demo")
    path = Path(source.source)
    found = read_prompts(path, source.format)
    if source.seed is not None:
        random.Random(source.seed).shuffle(found)
    if len(found) < (source.count or 0):
        raise SettingError(
            f"prompts: {str(path)!r} has {len(found)} prompts, fewer than count={source.count}: leave count out to take all"
        )
    return Jobs(tuple(found[: source.count]), seeds, source=path.name)


def read_prompts(path: Path, format: str | None = None) -> list[str]:
    """All prompts of a file, in its order."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SettingError(f"prompts: {str(path.absolute())!r} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"prompts: {str(path)!r} is not text: {error}") from error
    format = format or _told_by(path, text)
    if format not in _READERS:
        raise SettingError(f"prompts: unknown format {format!r}; known: {', '.join(_READERS)}")
    try:
        found = [" ".join(prompt.split()) for prompt in _READERS[format](text)]
    except (AttributeError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise SettingError(f"prompts: {str(path)!r} is not of the format {format!r}: {error!r}") from error
    found = [prompt for prompt in found if prompt]
    if not found:
        raise SettingError(f"prompts: {str(path)!r} holds no prompt ({format!r})")
    return found


def _told_by(path: Path, text: str) -> str:
    header = text.partition("\n")[0]
    if path.suffix == ".json":
        return "coco"
    if path.suffix in (".csv", ".tsv") and "Prompts" in header:
        return "drawbench"
    return "parti" if path.suffix == ".tsv" and "Prompt" in header else "lines"


def _table(text: str, column: str, delimiter: str) -> list[str]:
    return [row[column] for row in csv.DictReader(text.splitlines(), delimiter=delimiter, strict=True)]


def _coco(text: str) -> list[str]:
    first: dict[int, str] = {}
    for note in sorted(json.loads(text)["annotations"], key=lambda note: note["id"]):
        first.setdefault(note["image_id"], note["caption"])
    return [first[image] for image in sorted(first)]


_READERS: dict[str, Callable[[str], list[str]]] = {
    "lines": str.splitlines,
    "drawbench": lambda text: _table(text, "Prompts", ","),
    "coco": _coco,
    "parti": lambda text: _table(text, "Prompt", "\t"),
}
