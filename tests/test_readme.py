"""The README's numbers are those of the committed results, and its commands are those of CI."""

import importlib
import json
from pathlib import Path

import pytest

from unetaccel.report import load, markdown
from unetaccel.report.tables import best_tables

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "bench" / "results"


def test_the_speed_table_is_the_committed_measurement():
    rows = json.loads((RESULTS / "speed-demo-cpu.json").read_text())["cases"]
    assert len(rows) >= 6
    for row in rows:
        [line] = [x for x in README.splitlines() if x.startswith(f"| {row['interval']}, {row['cut']} |")]
        for value in (
            row["speedup"]["median"],
            row["ceiling_time"]["median"],
            row["equal_macs_plain_run"]["speedup"]["median"],
        ):
            assert f"{value:.2f}" in line
        assert f"{row['ours_over_official_time']['median']:.3f}" in line


def test_the_quality_table_is_the_committed_measurement():
    table = README.partition("<!-- quality:begin -->\n")[2].partition("<!-- quality:end -->")[0]
    assert table == markdown([load(RESULTS / "quality-demo.json")])


def test_the_table_of_the_best_rho_is_the_committed_measurement():
    table = README.partition("<!-- skips:begin -->\n")[2].partition("<!-- skips:end -->")[0]
    results = [load(RESULTS / f"{name}.json") for name in ("skip-tuning-demo", "skip-tuning-heun-demo")]
    assert table == "".join(best_tables(result, "frechet") for result in results)
    for result in results:
        samples = result.data["samples"]
        assert samples["images"] >= 1000
        assert len(samples["seeds"]) == 3
        assert {row.steps for row in result.rows} == {5, 10, 20, 50}


def test_the_table_of_trainings_is_that_of_the_committed_runs():
    from unetaccel.demo.train.scaling import read_runs
    from unetaccel.demo.train.scaling_figure import table

    shown = README.partition("<!-- scalelong:begin -->\n")[2].partition("<!-- scalelong:end -->")[0]
    runs = read_runs(RESULTS / "scalelong")
    assert shown == table(runs) + "\n"
    assert len(runs) == 4 * 3


def shown(name: str) -> str:
    return README.partition(f"<!-- {name}:begin -->\n")[2].partition(f"<!-- {name}:end -->")[0]


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module("forecast_tables")


def test_the_table_of_calibrated_plans_is_the_committed_measurement(tables):
    names = ("calibrated-demo", *(f"calibrated-{solver}-demo" for solver in ("dpm++", "unipc", "euler-a")))
    results = [load(RESULTS / f"{name}.json") for name in names]
    assert shown("study") == tables.rivals(results)
    for name, result in zip(names, results, strict=True):
        assert result.data["samples"]["images"] >= 3 * 500
        for row in result.rows:
            if "calibrated" in row.methods:
                ours, theirs = (r.scores["frechet"].per_seed for r in (row, result.rival(row, "equal_macs")))
                gains = [b - a for a, b in zip(ours, theirs, strict=True)]
                assert sum(gains) > 0, "ahead of the plain run of equal MACs"
                assert min(gains) > 0 or "euler-a" in name, "with every seed"


def test_the_tables_of_forecasts_are_the_committed_measurements(tables):
    found = json.loads((RESULTS / "forecasts-demo.json").read_text())
    assert shown("bars") == tables.bars(found)
    for name in found["studies"].keys() - {"bars"}:
        assert shown(name) == tables.study(found, name)


def test_the_bars_of_calibrated_plans_hold():
    """Relative error of the final latents, beside the uniform plan of as many full evaluations at the same cut."""
    rows = json.loads((RESULTS / "forecasts-demo.json").read_text())["studies"]["bars"]
    for case, full, bar in (("ddim, 50 steps", 17, 5), ("ddim, 50 steps", 10, 3), ("dpm++, 20 steps", 10, 3)):
        for cut in (0, 1):
            kinds = (f"{kind}, cut {cut}" for kind in ("uniform hold", "calibrated"))
            held, ours = (
                next(r for r in rows if (r["case"], r["full"], r["way"]) == (case, full, kind)) for kind in kinds
            )
            assert held["error"] >= bar * ours["error"]
            assert held["median"] >= bar * ours["median"]


def test_the_table_of_latencies_is_the_committed_measurement(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    result = json.loads((RESULTS / "latency-cpu.json").read_text())
    assert shown("latency") == importlib.import_module("latency_table").markdown(result)
    assert {row["variant"] for case in result["cases"] for row in case["rows"]} >= {
        "plain",
        "deepcache",
        "ours",
        "ours-inductor",
    }
    for name, file in {
        "precompute": "precompute",
        "controlnet": "latency-controlnet",
        "straddling": "latency-sdxl",
    }.items():
        apart = json.loads((RESULTS / f"{file}-cpu.json").read_text())
        assert shown(name) == importlib.import_module("latency_table").markdown(apart), name
    for case in (*result["cases"], *apart["cases"]):
        assert all(row["check"]["error"] <= row["check"]["tolerance"] for row in case["rows"])


def test_files_that_the_readme_names_exist():
    for name in (
        "bench/results/demo-grid.png",
        "examples/train_demo.py",
        "unetaccel/demo/weights/MODEL_CARD.md",
        "bench/speed.py",
    ):
        assert name in README
        assert (ROOT / name).exists()
