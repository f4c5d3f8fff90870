"""How a result was measured, as lists: samples, timing, machine, versions, and the sweep as it was read."""

from __future__ import annotations

import json
from html import escape

from .results import QualityResult, SpeedResult


def facts(result: QualityResult | SpeedResult) -> str:
    """The few things to know before reading a number, as list items."""
    data = result.data
    samples, machine = _table(data.get("samples")), _table(data.get("environment"))
    seeds, sweep = samples.get("seeds"), _table(data.get("sweep"))
    found = [
        data.get("model") and f"model {data['model']}",
        samples.get("images") and f"{samples['images']} image{'s' * (samples['images'] != 1)} a row",
        sweep.get("guidance") is not None and f"guidance {sweep['guidance']}",
        isinstance(seeds, list) and f"{len(seeds)} seed{'s' * (len(seeds) != 1)}",
        data.get("steps") and f"{data['steps']} steps",
        data.get("batch") and f"batch {data['batch']}",
        machine.get("gpu") or machine.get("cpu"),
        *(f"{name} {v}" for name, v in _table(machine.get("packages")).items() if name in ("torch", "diffusers")),
    ]
    return "".join(f"<li>{escape(str(text))}</li>" for text in found if text)


def conditions(result: QualityResult | SpeedResult) -> str:
    """Samples, metrics, timing and environment as definition lists, and the sweep's settings."""
    data = result.data
    named = {
        "Samples": {k: v for k, v in _table(data.get("samples")).items() if k != "captions"},  # they stand under the pictures
        "Timing": _table(data.get("timing")) or {k: data[k] for k in ("steps", "batch", "dtype", "repeats") if k in data},
        "Environment": _table(data.get("environment")),
        "Metrics": {name: _metric(m) for name, m in result.metrics.items()} if isinstance(result, QualityResult) else {},
    }  # fmt: skip
    lists = "".join(f"<div><h3>{name}</h3>{_definitions(found)}</div>" for name, found in named.items() if found)
    sweep = data.get("sweep")
    if not sweep:
        return f'<div class="conditions">{lists}</div>'
    text = escape(json.dumps(sweep, indent=2, ensure_ascii=False))
    return f'<div class="conditions">{lists}</div><details><summary>Sweep settings</summary><pre tabindex="0">{text}</pre></details>'


def _metric(metric) -> str:
    parts = (metric.label, metric.unit, metric.better and f"{metric.better} is better", metric.to and f"to {metric.to}")
    return ", ".join(part for part in parts if part)


def _definitions(found: dict) -> str:
    return f"<dl>{''.join(f'<dt>{escape(str(k))}</dt><dd>{escape(_text(v))}</dd>' for k, v in found.items())}</dl>"


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value[:20])) + (f" and {len(value) - 20} more" if len(value) > 20 else "")
    return str(value)


def _table(value: object) -> dict:
    return value if isinstance(value, dict) else {}
