"""What the page's script gets: numbers to draw, and the texts beside them, as plain JSON."""

from __future__ import annotations

import json
import math

from . import texts, verdicts
from .axes import axes, places, reference
from .images import collect
from .results import QualityResult
from .rows import Row, Score
from .series import families, moving_name, tag


def payload(result: QualityResult, metric: str | None) -> dict:
    """Everything that plot, verdicts and pictures need. ``metric`` is shown first."""
    pictures, missing = collect(result)
    kinds = families(result)
    bases = {row.solver: reference(result, row.solver) for row in result.rows}
    solvers = list(dict.fromkeys(row.solver for row in result.rows))
    steps = sorted({row.steps for row in result.rows if row.kind != "plain" and row.steps}, reverse=True)
    base = bases[solvers[0]] if len(solvers) == 1 else None
    return {
        "metric": metric,
        "metrics": {
            name: {"label": m.label, "better": m.better, "unit": m.unit, "to": m.to}
            for name, m in result.metrics.items()
        },
        "axes": {name: {"label": a.label, "sign": a.sign} for name, a in axes(base).items()},
        "costs": verdicts.COSTS,
        "solvers": solvers,
        "steps": steps,
        "moving": moving_name(result),
        "families": [{"name": f.name, "kind": f.kind, "colour": f.colour} for f in dict.fromkeys(kinds.values())],
        "rows": [_row(result, row, kinds[row.id].name, bases[row.solver]) for row in result.rows],
        "pictures": pictures,
        "captions": _captions(result),
        "missing": len(missing),
    }


def embed(data: dict) -> str:
    """JSON that may stand inside a script element: no ``</script>`` or comment can begin in it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _row(result: QualityResult, row: Row, family: str, base: Row | None) -> dict:
    plain = result.plain(row)
    return {
        "id": row.id,
        "kind": row.kind,
        "label": row.label,
        "family": family,
        "tag": tag(row),
        "solver": row.solver,
        "steps": row.steps,
        "pattern": row.pattern,
        "edited": row.edits_skips,
        "plain": plain and plain.id,
        "rivals": {cost: rival.id for cost in verdicts.COSTS if (rival := result.rival(row, cost))},
        "x": {name: vars(place) for name, place in places(result, row, base).items()},
        "scores": {name: _score(result, row, name) for name in row.scores},
        "scoresTo": {
            base: {name: _shown(score) for name, score in found.items()} for base, found in row.scores_to.items()
        },
        "facts": _facts(row),
    }


def _score(result: QualityResult, row: Row, name: str) -> dict:
    found = row.scores[name]
    against = {cost: _verdict(result, row, name, cost) for cost in verdicts.COSTS}
    return {**_shown(found), "verdicts": against}


def _shown(score: Score) -> dict:
    return {"value": score.value, "sd": score.sd, "text": texts.score(score)}


def _verdict(result: QualityResult, row: Row, name: str, cost: str) -> dict | None:
    found = verdicts.verdict(result, row, name, cost)
    if found is None:
        return None
    gain = "" if math.isinf(found.gain) else texts.significant(abs(found.gain), 2)
    return {"rival": found.rival.id, "ahead": found.ahead, "gain": gain, "worth": _finite(found.gain)}


def _finite(gain: float) -> float:
    return max(-1e300, min(1e300, gain))


def _facts(row: Row) -> list[list[str]]:
    """Lines of the details: what is known of a row beyond its scores."""
    split = f"{row.full} full + {row.cached} cached" if row.full is not None and row.cached is not None else ""
    guidance = "" if row.guidance is None else f", guidance {row.guidance:g}"
    found = {
        "sampling": f"{row.solver} {row.steps} steps{guidance}".strip(),
        "evaluations": split,
        "time per image": row.seconds and texts.seconds(row.seconds),
        f"speedup over plain {row.steps} steps": row.speedup and texts.times(row.speedup),
        "ceiling by MACs": row.ceiling and f"{row.ceiling:.2f}x",
        "MACs per image": row.macs and texts.scaled(row.macs),
        "cached bytes": row.cached_bytes and texts.size(row.cached_bytes),
        "peak memory": row.peak_memory_bytes and texts.size(row.peak_memory_bytes),
        "published": published(row),
        "id": row.id,
    }
    return [[name, text] for name, text in found.items() if text]


def published(row: Row) -> str:
    """The paper's figures and where they stand: ``frechet 4.35 (arXiv 2312.00858, table 2)``."""
    values = [f"{k} {v}" for k, v in row.published.items() if k != "source"]
    source = row.published.get("source")
    return f"{', '.join(values)} ({source})" if values and source else ", ".join(values)


def _captions(result: QualityResult) -> list[str]:
    """Prompts by number, where the file has them: picture ``3-0.png`` shows prompt 3."""
    samples = result.data.get("samples")
    found = samples.get("captions") if isinstance(samples, dict) else None
    return [str(text) for text in found] if isinstance(found, list) else []
