"""The account of one sampling call: plan, counts, bytes, work and time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from .costs import CutCost, cut_costs
from .engine import Engine
from .run import Report
from .schedule import pattern


@dataclass(frozen=True)
class Summary:
    """What happened in the latest sampling call. Fields that need a call are None before the first one."""

    methods: tuple[str, ...]
    cut: int | None
    """None if nothing is reused."""
    entry: str | None
    """The decoder layer at which cached evaluations enter."""
    edits: tuple[str, ...] = ()
    """What is done to the skips, one text per method."""
    pattern: str | None = None
    """``F`` and ``.`` for each evaluation of the first stream; ``f`` and ``,`` where it was of the conditional half alone."""
    streams: int = 0
    full: int = 0
    cached: int = 0
    halved: int = 0
    """How many of both were of the conditional half alone."""
    cached_bytes: int = 0
    """Largest size of all stored features at one time."""
    macs_share: float | None = None
    """MACs of the call's evaluations over those of as many full ones."""
    full_macs: int | None = None
    """MACs of one full evaluation, of the whole batch."""
    cached_macs_share: float | None = None
    """MACs of one cached evaluation over those of a full one."""
    seconds_full: float | None = None
    """Median time of a full evaluation (CUDA: device time)."""
    seconds_cached: float | None = None
    predicted_error: float | None = None
    """Relative error of F that the profile predicts for cached evaluations, root mean square over them."""
    observed_error: float | None = None
    """Relative error of forecasts that full evaluations found, root mean square over these and the pictures."""
    expected_error: float | None = None
    """What the profile predicts for the same full evaluations, were they forecast."""
    refreshed: int = 0
    """Evaluations that were made full because forecasts were off."""
    precomputed_bytes: int = 0
    """With ``precompute=True``: size of what was computed once in the call; F's share at the entry is part of ``cached_bytes``."""
    left_out: tuple[str, ...] = ()
    """Why not all was precomputed, or run by kernels, where that was asked for."""
    graphs: str | None = None
    """With ``compile="graphs"``: what was recorded so far, its memory, and why evaluations were eager."""
    plain_because: str | None = None
    """Why nothing was cached, if the call was kept plain."""
    patterns: tuple[str, ...] = field(default=(), repr=False)
    """One pattern per stream."""

    def as_dict(self) -> dict:
        """The same as plain data, ready for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def __repr__(self) -> str:
        lines = [f"unetaccel: {', '.join(self.methods)}"]
        if self.cut is not None:
            lines.append(f"  cut        {self.cut} (enters at {self.entry})")
        lines += [f"  skips      {text}" for text in self.edits]
        if self.pattern is None:
            return "\n".join([*lines, "  no sampling call yet"])
        streams = f", {self.streams} streams" if self.streams > 1 else ""
        lines.append(f"  plan       {self.pattern}")
        halved = f", {self.halved} of the conditional half alone" if self.halved else ""
        lines.append(f"  calls      {self.full} full + {self.cached} cached{streams}{halved}")
        if self.plain_because:
            lines.append(f"  plain      {self.plain_because}")
        if self.cut is not None:
            lines.append(f"  cache      {self.cached_bytes:,} bytes")
        if (self.cut is not None or self.halved) and self.macs_share is not None:
            of = f"; a cached evaluation is {self.cached_macs_share:.1%} of a full one" if self.cut is not None else ""
            lines.append(f"  MACs       {self.macs_share:.1%} of plain{of}")
        lines += self._forecasts()
        lines += [f"  known      {self.precomputed_bytes:,} bytes precomputed"] if self.precomputed_bytes else []
        lines += [f"  left out   {text}" for text in self.left_out]
        lines += [f"  graphs     {self.graphs}"] if self.graphs else []
        times = [("full", self.seconds_full), ("cached", self.seconds_cached)]
        lines.append("  time       " + ", ".join(f"{1000 * s:.2f} ms {kind}" for kind, s in times if s is not None))
        return "\n".join(lines)

    def _forecasts(self) -> list[str]:
        told = []
        if self.predicted_error is not None:
            told.append(f"F to {self.predicted_error:.2%} predicted")
        if self.observed_error is not None:
            beside = "" if self.expected_error is None else f" ({self.expected_error:.2%} predicted there)"
            told.append(f"to {self.observed_error:.2%} as far as full evaluations saw{beside}")
        if self.refreshed:
            told.append(f"{self.refreshed} more full than planned")
        return [f"  forecast   {'; '.join(told)}"] if told else []

    __str__ = __repr__


def summarize(engine: Engine) -> Summary:
    """The summary of the engine's latest run. Counts MACs once per shape of inputs; waits for CUDA timers."""
    base = dict(methods=tuple(map(repr, engine.methods)), cut=engine.cut, entry=engine.skip and engine.skip.entry,
                edits=engine.edits.account, graphs=None if engine.log is None else str(engine.log))  # fmt: skip
    report = engine.report()
    if report is None:
        return Summary(**base)
    flat = [kind for stream in report.kinds for kind in stream]
    halved = [half for stream in report.halved for half in stream]
    cost = _cost(engine, report.inputs)
    full, cached = report.clock.medians()
    patterns = tuple(map(_pattern, report.kinds, report.halved))
    return Summary(
        **base,
        pattern=patterns[0] if patterns else "",
        patterns=patterns,
        streams=len(report.kinds),
        full=sum(flat),
        cached=len(flat) - sum(flat),
        cached_bytes=report.cached_bytes,
        halved=sum(halved),
        macs_share=_share(flat, halved, cost, report) if cost and flat else None,
        full_macs=cost.full_macs if cost else None,
        cached_macs_share=(cost.hoisted_share if report.hoisted else cost.share) if cost else None,
        precomputed_bytes=report.precomputed_bytes,
        left_out=report.left_out,
        seconds_full=full,
        seconds_cached=cached,
        plain_because=report.why_plain,
        refreshed=report.refreshed,
        **_errors(report),
    )


def _pattern(kinds: list[bool], halved: list[bool]) -> str:
    letters = zip(pattern(kinds), halved, strict=True)
    return "".join({"F": "f", ".": ","}[letter] if half else letter for letter, half in letters)


def _share(kinds: list[bool], halved: list[bool], cost: CutCost, report: Report) -> float:
    """Work of these evaluations over that of as many full ones of both halves."""
    work = [(1 if full else cost.share) / (2 if half else 1) for full, half in zip(kinds, halved, strict=True)]
    saved = (report.hoisted - report.constants) * (cost.share - cost.hoisted_share)
    return (sum(work) - saved) / len(work)


def _errors(report: Report) -> dict[str, float | None]:
    """Predicted and observed errors of the forecasts. Waits for the device."""
    observed, predicted = report.watch.errors(), report.predicted
    cached = [i for i, full in enumerate(report.planned) if not full]
    return {
        "observed_error": _rms(observed.values()),
        "predicted_error": predicted and _rms(predicted[i] for i in cached),
        "expected_error": predicted and _rms(predicted[i] for i in observed),
    }


def _rms(errors: Iterable[float]) -> float | None:
    squares = [error * error for error in errors]
    return math.sqrt(sum(squares) / len(squares)) if squares else None


def _cost(engine: Engine, inputs) -> CutCost | None:
    """None where a twin of the model cannot be made or run (inputs that its config does not explain)."""
    if inputs not in engine.costs:
        try:
            engine.costs[inputs] = next(cut_costs(engine.original, inputs, [engine.cut or 0]))
        except Exception:  # whatever a strange model raises, the rest of the summary stands
            engine.costs[inputs] = None
    return engine.costs[inputs]
