"""The README's numbers are those of the committed results, and its commands are those of CI."""

import json
from pathlib import Path

from unetaccel.report import load, markdown
from unetaccel.report.tables import best_tables
from unetaccel.report.verdicts import paired_gain

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


def test_the_table_of_calibrated_plans_is_the_committed_measurement():
    table = README.partition("<!-- calibrated:begin -->\n")[2].partition("<!-- calibrated:end -->")[0]
    result = load(RESULTS / "calibrated-demo.json")
    assert table == markdown([result])
    for row in result.rows:
        if "calibrated" in row.methods:
            mean, sd = paired_gain(
                result.metrics["frechet"], *(r.scores["frechet"] for r in (row, result.rival(row, "equal_macs")))
            )
            assert mean > sd
            assert f"by {mean:.2f} ± {sd:.2f}" in README


def test_files_that_the_readme_names_exist():
    for name in (
        "bench/results/demo-grid.png",
        "examples/train_demo.py",
        "unetaccel/demo/weights/MODEL_CARD.md",
        "bench/speed.py",
    ):
        assert name in README
        assert (ROOT / name).exists()
