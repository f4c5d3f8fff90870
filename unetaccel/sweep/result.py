"""From pictures and times to the result file: metrics per row, rivals, environment."""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from ..environment import environment
from ..errors import SettingError
from ..quality.moments import Moments, is_statistics, read_moments
from ..quality.values import Context
from .draw import Store, read_picture, stacked
from .rivals import rivals
from .rows import Row
from .spec import Sweep

if TYPE_CHECKING:
    from .run import Times

FORMAT = "unetaccel-quality/1"
REAL_PER_CAPTION = 3
SHOWN, SHOWN_SIDE = 12, 256
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def drawn_rows(sweep: Sweep, rows: list[Row], times: Times, store: Store, say: Callable[[str], None]) -> list[Row]:
    """The rows and rivals of which every picture is there; tells which are not."""
    from .run import all_rows

    wanted, whole = all_rows(rows, times, sweep), [range(len(store.jobs))]
    left_out = [row for row in wanted if store.missing(row, whole)]
    for row in left_out:
        say(f"left out: {row.id}, which is not drawn to its end (stage `draw`)")
    if len(left_out) == len(wanted):
        raise SettingError("no row of this sweep is drawn yet: run the stage `draw` first")
    return [row for row in wanted if row not in left_out]


def judge_rows(
    sweep: Sweep, rows: list[Row], drawn: list[Row], times: Times, store: Store, metrics: list,
    rank: int = 0, world: int = 1, say: Callable[[str], None] = print,
) -> list[dict]:  # fmt: skip
    """The result file's entries of this process's share of the ``drawn`` rows, every ``world``-th."""
    beside = rivals(rows, times.accounts, sweep.rivals)
    starts = dict.fromkeys(row.plain() for row in rows)
    judge = Judge(store, metrics, _real(sweep, store, picture_size(store, drawn)))
    judged = []
    for row in drawn[rank::world]:
        described = _describe(row, sweep, times)
        described["rivals"] = {name: rival.id for name, rival in beside.get(row.id, {}).items()}
        described["metrics"] = judge.metrics(row, _reference(row, drawn))
        if row.kind == "plain":
            bases = [base for base in starts if base.solver == row.solver and base.steps > row.steps and base in drawn]
            described["metrics_to"] = {base.id: judge.to_plain(row, base) for base in bases}
        judged.append(described)
        share = f" of the share of process {rank}" if world > 1 else ""
        say(f"judged {row.id} ({len(judged)} of {len(drawn[rank::world])}{share})")
    return judged


def assemble(
    sweep: Sweep, drawn: list[Row], judged: list[dict], times: Times, store: Store, metrics: list, device
) -> dict:
    """The result file, from the entries of all processes."""
    found = {described["id"]: described for described in judged}
    return {
        **_head(sweep, drawn, times, store, picture_size(store, drawn), device),
        "metrics": {name: info for metric in metrics for name, info in metric.columns.items()},
        "rows": [found[row.id] for row in drawn],
    }


def picture_size(store: Store, drawn: list[Row]) -> tuple[int, int]:
    """Height and width of the pictures."""
    height, width = read_picture(store.path(drawn[0], 0)).shape[1:]
    return height, width


def _head(sweep: Sweep, drawn: list[Row], times: Times, store: Store, size: tuple[int, int], device) -> dict:
    """What was run, on which samples, where and how: all but the rows."""
    jobs, rounds = store.jobs, [len(times.accounts[row.id].ratios) for row in drawn if row.id in times.accounts]
    return {
        "format": FORMAT,
        "title": sweep.title,
        "model": sweep.model,
        "environment": times.environment or environment(device),
        "sweep": json.loads(json.dumps(sweep.as_dict(), default=str)),
        "samples": {
            "prompts": len(jobs.prompts),
            "seeds": list(jobs.seeds),
            "images": len(jobs),
            "source": jobs.source,
            "size": list(size),
            "captions": list(jobs.prompts[:SHOWN]),
        },
        "timing": {
            "batch": times.images,
            "repeats": min(rounds, default=0),  # as measured: a folder may hold more than the sweep asks for
            "threads": sweep.timing.threads,
            "how": "whole calls in one process, each a ratio to the longest plain run shortly before it; "
            "median with the 20th and 80th percentile",
            "bytes": "cached and peak memory are those of one call of `batch` pictures; MACs and seconds are per picture",
        },
    }


class Judge:
    """Applies metrics to the pictures in a store."""

    def __init__(self, store: Store, metrics: list, real: torch.Tensor | Moments | None):
        self.store, self.measures, self.real = store, metrics, real
        jobs = store.jobs
        seeds = torch.tensor(jobs.seeds).repeat_interleave(len(jobs.prompts))
        scenes = jobs.scenes[torch.arange(len(jobs)) % len(jobs.prompts)] if jobs.scenes is not None else None
        self._context = Context(list(jobs.prompts) * len(jobs.seeds), seeds, real, scenes=scenes)
        self._read = functools.lru_cache(maxsize=3)(store.read)
        self._to_plain = functools.cache(self._compare)

    def metrics(self, row: Row, reference: Row | None) -> dict:
        """Every metric of a row; those to the plain run against ``reference``, or left out without one."""
        pictures, found = self._read(row), {} if reference is None else dict(self.to_plain(row, reference))
        for metric in self.measures:
            if metric.info["to"] != "plain":
                found |= metric.measure(pictures, self._context)
        return found

    def to_plain(self, row: Row, reference: Row) -> dict:
        """The metrics that compare each picture with the one of the same prompt and seed in ``reference``."""
        return self._to_plain(row, reference)

    def _compare(self, row: Row, reference: Row) -> dict:
        pictures, context = self._read(row), replace(self._context, plain=self._read(reference))
        compared = [m.measure(pictures, context) for m in self.measures if m.info["to"] == "plain"]
        return {name: value for values in compared for name, value in values.items()}


def _reference(row: Row, rows: list[Row]) -> Row | None:
    """The plain run to compare with: of as many steps, for a plain row the longest one of its solver."""
    plain = row.plain() if row.kind != "plain" else row.plain(max(r.steps for r in rows if r.solver == row.solver))
    return plain if plain != row and plain in rows else None


def _describe(row: Row, sweep: Sweep, times: Times) -> dict:
    found = {
        "id": row.id, "kind": row.kind, "label": row.label, "methods": row.methods, "group": row.group,
        "solver": row.solver, "steps": row.steps, "guidance": sweep.guidance,
    }  # fmt: skip
    if row.id in sweep.published:
        found["published"] = sweep.published[row.id]
    account, whole = times.accounts.get(row.id), times.accounts.get(row.plain().id)
    if account is None or not times.base_seconds:  # not timed, or stopped before the first round
        return found
    base = statistics.median(times.base_seconds) / times.images
    found |= {
        "pattern": account.pattern,
        "full": account.full,
        "cached": account.cached,
        "macs": account.macs,
        "cached_bytes": None if row.kind == "peer" else account.cached_bytes,
        "peak_memory_bytes": account.peak_memory_bytes,
        "seconds": _spread([base * ratio for ratio in account.ratios]),
    }
    if row.kind == "method" and "deepcache" in row.methods and not account.cached:
        found["ran_plain"] = True
    if whole is not None:
        share = account.macs / whole.macs if account.macs and whole.macs else None
        found |= {"macs_share": share, "speedup_ceiling": share and 1 / share}
        found["speedup"] = _spread([a / b for a, b in zip(whole.ratios, account.ratios, strict=False)])
    return found


def _spread(values: list[float]) -> dict | None:
    if not values:
        return None
    if len(values) == 1:
        return {"median": _round(values[0]), "p20": None, "p80": None}
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return {"median": _round(statistics.median(values)), "p20": _round(cuts[0]), "p80": _round(cuts[-1])}


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def _real(sweep: Sweep, store: Store, size: tuple[int, int]) -> torch.Tensor | Moments | None:
    """The real pictures, uint8 (M, 3, H, W): three renderings of each of the demo's captions, or those of a folder; or
    the statistics of their features.
    """
    if store.jobs.scenes is not None and sweep.real is None:
        from ..demo.scenes import render

        drawn = [render(store.jobs.scenes, size[0], seed=10_000 + k) for k in range(REAL_PER_CAPTION)]
        return (torch.cat(drawn) * 255).round().to(torch.uint8)
    if sweep.real is None:
        return None
    if is_statistics(sweep.real):
        return read_moments(sweep.real)
    return stacked(real_files(sweep.real), lambda path: _cropped(read_picture(path), size), store.folder)


def real_files(folder: str) -> list[Path]:
    """The pictures in a folder and its subfolders.

    Raises:
        SettingError: there is no such folder, or no picture in it.
    """
    if not Path(folder).is_dir():
        raise SettingError(f"real: {folder!r} is no folder (nor an .npz of statistics)")
    files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in PICTURES)
    if not files:
        raise SettingError(f"real: no picture ({', '.join(PICTURES)}) in {folder!r}")
    return files


def _cropped(picture: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Scaled (bicubic, antialiased) and cut to ``size`` around its middle."""
    height, width = size
    scale = max(height / picture.shape[1], width / picture.shape[2])
    shape = [math.ceil(side * scale - 1e-6) for side in picture.shape[1:]]
    image = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize(shape[::-1], Image.Resampling.BICUBIC)
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[:, top : top + height, left : left + width]


def write_result(result: dict, rows: list[Row], store: Store, out: Path) -> None:
    """The JSON file, and beside it ``<name>/<row id>.png``: the first pictures of each row in one strip."""
    folder = out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for row, described in zip(rows, result["rows"], strict=True):
        shown = [read_picture(store.path(row, i)) for i in range(min(SHOWN, len(store.jobs.prompts)))]
        strip = Image.fromarray(torch.cat(shown, dim=2).permute(1, 2, 0).numpy())
        if strip.height > SHOWN_SIDE:
            strip = strip.resize((strip.width * SHOWN_SIDE // strip.height, SHOWN_SIDE), Image.Resampling.LANCZOS)
        strip.save(folder / f"{row.id}.png", optimize=True)
        described["strip"] = f"{folder.name}/{row.id}.png"
        described["images"] = [f"{i}-{store.jobs.seeds[0]}.png" for i in range(len(shown))]
    out.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
