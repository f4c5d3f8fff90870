"""The account of one sampling call: plan, counts, bytes, work and time."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from .costs import CutCost, cut_costs
from .engine import Engine
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
    """``F`` and ``.`` for each evaluation of the first stream."""
    streams: int = 0
    full: int = 0
    cached: int = 0
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
        lines.append(f"  calls      {self.full} full + {self.cached} cached{streams}")
        if self.plain_because:
            lines.append(f"  plain      {self.plain_because}")
        if self.cut is not None:
            lines.append(f"  cache      {self.cached_bytes:,} bytes")
        if self.cut is not None and self.macs_share is not None:
            lines.append(
                f"  MACs       {self.macs_share:.1%} of plain; a cached evaluation is {self.cached_macs_share:.1%} of a full one"
            )
        times = [("full", self.seconds_full), ("cached", self.seconds_cached)]
        lines.append("  time       " + ", ".join(f"{1000 * s:.2f} ms {kind}" for kind, s in times if s is not None))
        return "\n".join(lines)

    __str__ = __repr__


def summarize(engine: Engine) -> Summary:
    """The summary of the engine's latest run. Counts MACs once per shape of inputs; waits for CUDA timers."""
    base = dict(methods=tuple(map(repr, engine.methods)), cut=engine.cut, entry=engine.skip and engine.skip.entry,
                edits=engine.edits.account)  # fmt: skip
    report = engine.report()
    if report is None:
        return Summary(**base)
    flat = [kind for stream in report.kinds for kind in stream]
    cost = _cost(engine, report.inputs)
    full, cached = report.clock.medians()
    patterns = tuple(map(pattern, report.kinds))
    return Summary(
        **base,
        pattern=patterns[0] if patterns else "",
        patterns=patterns,
        streams=len(report.kinds),
        full=sum(flat),
        cached=len(flat) - sum(flat),
        cached_bytes=report.cached_bytes,
        macs_share=(sum(flat) + (len(flat) - sum(flat)) * cost.share) / len(flat) if cost and flat else None,
        full_macs=cost.full_macs if cost else None,
        cached_macs_share=cost.share if cost else None,
        seconds_full=full,
        seconds_cached=cached,
        plain_because=report.why_plain,
    )


def _cost(engine: Engine, inputs) -> CutCost | None:
    """None where a twin of the model cannot be made or run (inputs that its config does not explain)."""
    if inputs not in engine.costs:
        try:
            engine.costs[inputs] = next(cut_costs(engine.original, inputs, [engine.cut or 0]))
        except Exception:  # whatever a strange model raises, the rest of the summary stands
            engine.costs[inputs] = None
    return engine.costs[inputs]
