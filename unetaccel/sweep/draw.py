"""Drawing a sweep's pictures: sharded over processes, one PNG each, and never one twice."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import WeightsError
from ..sampling import Settings, sample
from .prompts import Jobs
from .rows import Row
from .spec import Sweep
from .ways import applied

IN_MEMORY = 2**31
"""Bytes of pictures that are held in memory."""


@dataclass(frozen=True)
class Store:
    """The pictures of a sweep on disk: ``<folder>/images/<row id>/<prompt>-<seed>.png``, 8 bits."""

    folder: Path
    jobs: Jobs

    def path(self, row: Row, i: int) -> Path:
        return self.folder / "images" / row.id / self.jobs.name(i)

    def there(self, row: Row) -> set[int]:
        """The jobs whose pictures are there."""
        folder = self.folder / "images" / row.id
        names = set(os.listdir(folder)) if folder.is_dir() else set()
        return {i for i in range(len(self.jobs)) if self.jobs.name(i) in names}

    def missing(self, row: Row, batches: Iterable[range]) -> list[range]:
        """The batches of which not every picture is there."""
        there = self.there(row)
        return [batch for batch in batches if not there.issuperset(batch)]

    def write(self, row: Row, batch: range, pictures: np.ndarray) -> None:
        """Store float pictures (N, H, W, 3) in [0, 1]; a picture is either there as a whole or not at all."""
        for i, picture in zip(batch, pictures, strict=True):
            path = self.path(row, i)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")
            Image.fromarray((np.clip(picture, 0, 1) * 255).round().astype(np.uint8)).save(part, format="PNG")
            part.replace(path)

    def read(self, row: Row) -> torch.Tensor:
        """All pictures of a row, uint8 (N, 3, H, W), in the order of the jobs.

        Raises:
            WeightsError: a file is missing or damaged.
        """
        return stacked([self.path(row, i) for i in range(len(self.jobs))], read_picture, self.folder)


def stacked(paths: list[Path], read: Callable[[Path], torch.Tensor], place: Path) -> torch.Tensor:
    """Pictures of one size as one tensor. A large one lies in a nameless file in ``place``: metrics look at a part at a time."""
    first = read(paths[0])
    shape = (len(paths), *first.shape)
    if math.prod(shape) <= IN_MEMORY:
        pictures = torch.empty(shape, dtype=torch.uint8)
    else:
        nameless = tempfile.TemporaryFile(dir=place)  # noqa: SIM115 - lives as long as the tensor
        pictures = torch.from_numpy(np.memmap(nameless, dtype=np.uint8, mode="w+", shape=shape))
    for i, path in enumerate(paths):
        pictures[i] = first if i == 0 else read(path)
    return pictures


def read_picture(path: Path) -> torch.Tensor:
    """One PNG as uint8 (3, H, W)."""
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except OSError as error:
        raise WeightsError(
            f"{str(path)!r} is missing or damaged ({error}): delete it and run the sweep again"
        ) from error


def draw(
    pipe, rows: list[Row], sweep: Sweep, store: Store, rank: int = 0, world: int = 1,
    around: Callable[[Row], AbstractContextManager] = nullcontext,
) -> None:  # fmt: skip
    """Draw what is missing of this shard: batch ``k`` belongs to process ``k % world``.

    A picture depends on its prompt, its seed and its row; batches are cut the same way whatever the shards, so not even
    rounding differs between them. Killed and run again, it goes on where it was.

    Args:
        around: entered with each row of which something is missing, while it is drawn.
    """
    batches = store.jobs.batches(sweep.batch)
    for row in rows:
        mine = store.missing(row, [b for k, b in enumerate(batches) if k % world == rank])
        if not mine:
            continue
        settings = Settings(row.steps, sweep.guidance, sweep.size, sweep.batch, sweep.negative_prompt)
        with around(row), applied(pipe, row, sweep.scheduler):
            for batch in mine:
                prompts, seeds = zip(*(store.jobs[i] for i in batch), strict=True)
                store.write(row, batch, sample(pipe, list(prompts), list(seeds), settings))
