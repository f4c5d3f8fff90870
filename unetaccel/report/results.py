"""Result files, read and checked: sweeps of quality (``unetaccel-quality/1``) and tables of ``bench/speed.py``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import SettingError
from .rows import EDITS, Metric, Row, Score

QUALITY = "unetaccel-quality/1"
REMEDY = f"write one with `unetaccel bench quality` (format {QUALITY!r}) or `python bench/speed.py --out FILE`"


@dataclass(frozen=True)
class QualityResult:
    """A sweep of methods, settings and steps, with what each metric's column means."""

    path: Path
    data: dict = field(repr=False)
    metrics: dict[str, Metric]
    rows: tuple[Row, ...] = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_id", {row.id: row for row in self.rows})

    @property
    def title(self) -> str:
        return str(self.data.get("title") or self.path.stem)

    def row(self, id: str | None) -> Row | None:
        return self._by_id.get(id)

    def plain(self, row: Row) -> Row | None:
        """The plain run of as many steps and the same solver."""
        if row.kind == "plain":
            return row
        alike = (r for r in self.rows if r.kind == "plain" and (r.solver, r.steps) == (row.solver, row.steps))
        return next(alike, None)

    def rival(self, row: Row, cost: str) -> Row | None:
        """The plain run of equal ``cost``: ``"equal_macs"`` or ``"equal_time"``."""
        return self.row(row.rivals.get(cost))

    def without_edits(self, row: Row) -> Row | None:
        """The run like this one but for its edits of skips; None for a run without any."""
        kept = {name: settings for name, settings in row.methods.items() if name not in EDITS}
        if len(kept) == len(row.methods):
            return None
        alike = (
            r for r in self.rows if (r.solver, r.steps, r.methods) == (row.solver, row.steps, kept) and r.kind != "peer"
        )
        return next(alike, None)

    @property
    def edits_skips(self) -> bool:
        """Whether it compares edits of skips, which cost as much as the run without them."""
        bases = [self.without_edits(row) for row in self.rows]
        compared = {id(row) for row in (*bases, *(r for r, base in zip(self.rows, bases, strict=True) if base)) if row}
        others = [row for row in self.rows if row.kind != "plain" and id(row) not in compared]
        return any(bases) and not others and not any(row.rivals for row in self.rows)

    def score(self, row: Row, metric: str, base: Row | None) -> Score | None:
        """The row's score beside the rows of ``base``'s steps: a plain run's likeness is that to ``base``."""
        if row.kind != "plain" or base is None or self.metrics[metric].to != "plain":
            return row.scores.get(metric)
        return None if row.id == base.id else row.scores_to.get(base.id, row.scores).get(metric)

    def ordered(self) -> list[Row]:
        """Rows for reading: what methods start from, methods, other packages, then the plain runs of equal cost."""
        starts = {plain.id for row in self.rows if row.kind != "plain" and (plain := self.plain(row))}
        place = {"method": 1, "peer": 2, "plain": 3}
        return sorted(self.rows, key=lambda row: 0 if row.id in starts else place[row.kind])

    def leading(self, name: str | None = None) -> str | None:
        """The metric to show first: the named one if the file has it, else the file's first, if any."""
        return name if name in self.metrics else next(iter(self.metrics), None)


@dataclass(frozen=True)
class SpeedResult:
    """The cases that ``bench/speed.py`` timed: whole calls, without quality."""

    path: Path
    data: dict = field(repr=False)

    @property
    def title(self) -> str:
        return f"Speed: {self.path.stem}"

    @property
    def cases(self) -> list[dict]:
        return self.data["cases"]


def load(path: str | Path) -> QualityResult | SpeedResult:
    """Read a result file. Raises ``SettingError`` if it is missing, no JSON, of another format or empty."""
    path = Path(path)
    data = _read(path)
    if data.get("format") == QUALITY:
        return _quality(path, data)
    if "format" not in data and isinstance(data.get("cases"), list):
        return _speed(path, data)
    found = f"format {data['format']!r}" if "format" in data else "no format"
    raise SettingError(f"{str(path)!r} has {found}, which is not known here: {REMEDY}")


def _read(path: Path) -> dict:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"result file {str(path)!r} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        if path.suffix.lower() in (".yaml", ".yml"):
            raise SettingError(
                f"{str(path)!r} is a sweep, not a result: run it with `unetaccel bench quality {path}`"
            ) from error
        # not UTF-8, not JSON, or nested without end
        raise SettingError(f"{str(path)!r} is not JSON ({error}): {REMEDY}") from error
    if not isinstance(data, dict):
        raise SettingError(f"{str(path)!r} holds a JSON {type(data).__name__}, not a result: {REMEDY}")
    return data


def _quality(path: Path, data: dict) -> QualityResult:
    rows = data.get("rows")
    if not isinstance(rows, list) or not rows:
        raise SettingError(f"{str(path)!r} has no rows: let its sweep finish at least one, then report again")
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise SettingError(f"{str(path)!r}: row {i} is not an object with an 'id' text: write the file again")
    metrics = data.get("metrics")
    metrics = {k: Metric.read(k, v) for k, v in metrics.items()} if isinstance(metrics, dict) else {}
    result = QualityResult(path, data, metrics, tuple(Row.read(row, metrics) for row in rows))
    if len(result._by_id) < len(rows):
        twice = next(row.id for i, row in enumerate(result.rows) if row.id in {r.id for r in result.rows[:i]})
        raise SettingError(f"{str(path)!r} has two rows named {twice!r}: ids must differ, remove one")
    return result


def _speed(path: Path, data: dict) -> SpeedResult:
    if not data["cases"] or not all(isinstance(case, dict) and "speedup" in case for case in data["cases"]):
        raise SettingError(f"{str(path)!r} has no timed cases: {REMEDY}")
    return SpeedResult(path, data)
