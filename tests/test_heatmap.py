"""Heat maps of a setting against steps: which rows they lay out, what they call best, and that they are drawn."""

import json

import pytest
from PIL import Image
from report_cases import write_map, write_result

from unetaccel.report import load, markdown, page
from unetaccel.report.figures import write_figures
from unetaccel.report.heatmap import best_value, change, moving_settings, panels_of
from unetaccel.report.rows import Metric, Score
from unetaccel.report.verdicts import paired_gain, paired_text


def test_panels_and_their_best_cells(tmp_path):
    result = load(write_map(tmp_path))
    assert moving_settings(result) == [("skip_tuning", "rho_bottom")]
    panels = panels_of(result, "skip_tuning", "rho_bottom")
    assert [p.title for p in panels] == [
        "ddim", "ddim, deepcache interval 2 cut 0", "heun", "heun, deepcache interval 2 cut 0",
    ]  # fmt: skip
    metric = result.metrics["frechet"]
    for panel in panels:
        assert panel.steps == (5, 20)
        assert panel.values == (0.6, 0.8, 0.9, 1.0)
        assert [best_value(panel, metric, steps) for steps in (5, 20)] == [0.8, 0.9]
    assert change(panels[0], metric, (5, 0.8)) == pytest.approx((10 - 8) / 10)
    assert change(panels[1], metric, (5, 0.6)) == pytest.approx((12 - 12) / 12)  # to the cached run without it
    assert change(panels[0], metric, (7, 0.8)) is None


def test_the_run_without_the_method_is_found_among_caching_rows(tmp_path):
    """Its column needs no row of the neutral value."""
    path = write_map(tmp_path)
    data = json.loads(path.read_text())
    for row in data["rows"]:
        if row["methods"].get("skip_tuning", {}).get("rho_bottom") == 1.0:
            del row["methods"]["skip_tuning"]
    path.write_text(json.dumps(data))
    panels = panels_of(load(path), "skip_tuning", "rho_bottom")
    assert [panel.values for panel in panels] == [(0.6, 0.8, 0.9, 1.0)] * 4


def test_gains_are_paired_by_seed():
    frechet = Metric("frechet", "", "lower", "", "real")
    ours, theirs = Score(9.0, 2.0, (8.0, 10.0, 9.0)), Score(9.5, 2.0, (8.4, 10.5, 9.6))
    mean, sd = paired_gain(frechet, ours, theirs)
    assert (mean, sd) == (pytest.approx(0.5), pytest.approx(0.1))
    assert paired_gain(frechet, ours, Score(9.5, 2.0, (8.4, None, 9.6))) is None
    assert paired_gain(frechet, ours, Score(9.5, None, ())) is None


def test_the_map_replaces_the_figures_of_cost(tmp_path):
    pytest.importorskip("matplotlib")
    [path] = write_figures(tmp_path, [load(write_map(tmp_path))])
    assert path.name == "map-frechet-rho_bottom.png"
    figure = Image.open(path).convert("RGB")
    assert min(figure.size) > 300
    assert len(figure.getcolors(1_000_000)) > 100


def test_a_sweep_of_caches_has_no_map(tmp_path):
    assert moving_settings(load(write_result(tmp_path))) == []


def test_edits_are_told_beside_the_run_without_them(tmp_path):
    path = write_map(tmp_path)
    data = json.loads(path.read_text())
    for i, row in enumerate(data["rows"]):
        row["rivals"] = {}
        if row["methods"].get("skip_tuning", {}).get("rho_bottom") == 1.0:
            del row["methods"]["skip_tuning"]
        if "metrics" in row:
            value = row["metrics"]["frechet"]["value"]
            row["metrics"]["frechet"].update(per_seed=[value - 1 + 0.01 * i, value, value + 1], sd=1.0)
    path.write_text(json.dumps(data))
    result = load(path)
    assert result.edits_skips
    text = markdown([result])
    assert "without the edit" in text
    edited = [row for row in result.rows if "skip_tuning" in row.methods]
    assert all(
        result.without_edits(row).methods == {k: v for k, v in row.methods.items() if k != "skip_tuning"}
        for row in edited
    )
    assert "rows with edited skips are better than the run without the edit" in page.page([result])
    assert "2 ± 0" in paired_text(result.metrics["frechet"], Score(9, 1, (8, 9, 10)), Score(7, 1, (6, 7, 8)))
