"""Papers' tables: every configuration is a sweep whose published figures belong to rows, or says why it is none."""

import re
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import yaml

from unetaccel.demo.pipeline import load_pipeline
from unetaccel.errors import SettingError
from unetaccel.quality.metrics import KINDS
from unetaccel.report import load, markdown
from unetaccel.schedule import quad, uniform
from unetaccel.settings import METHODS
from unetaccel.sweep import rows
from unetaccel.sweep.run import IDENTITY, run_sweep
from unetaccel.sweep.spec import PromptSource, TimingPlan, read_sweep
from unetaccel.sweep.ways import applied

PAPERS = Path(__file__).parents[1] / "bench" / "papers"
TODAY = dict(re.findall(r"^\| `([\w-]+\.yaml)` .*\| ([^|]+) \|$", (PAPERS / "README.md").read_text("utf-8"), re.M))
"""What the README's table says of each file: it runs, waits for a method, or holds figures only."""

FIGURES = [name for name, today in TODAY.items() if today == "figures only"]
SWEEPS = [name for name in TODAY if name not in FIGURES]
WAITING = {name: re.findall("`(.+?)`", today) for name, today in TODAY.items() if today.startswith("waits")}
MINIATURES = sorted(path.name for path in (PAPERS / "demo").glob("*.yaml"))


def expanded(name: str, monkeypatch) -> list[rows.Row]:
    """The rows of a sweep; methods that its line in the table waits for are taken on trust."""
    known = rows.method_from

    def trusting(method, settings):
        return None if method in WAITING.get(name, ()) else known(method, settings)

    monkeypatch.setattr(rows, "method_from", trusting)
    return rows.expand(read_sweep(PAPERS / name))


def test_the_table_lists_every_file():
    assert set(TODAY) == {path.name for path in PAPERS.glob("*.yaml")}
    assert all(re.match(r"runs|waits for `|figures only", today) for today in TODAY.values())


@pytest.mark.parametrize("name", SWEEPS)
def test_published_figures_belong_to_rows_and_have_a_source(name, monkeypatch):
    sweep = read_sweep(PAPERS / name)
    expanded(name, monkeypatch)  # refuses a published figure of no row
    assert sweep.published
    for figures in sweep.published.values():
        values = {key: value for key, value in figures.items() if key != "source"}
        assert values
        assert all(isinstance(value, int | float) for value in values.values())
        assert re.match(r"arXiv \d{4}\.\d{5}, ", figures["source"])
        assert values.keys() & set(sweep.metrics), "no figure to stand beside a measured column"


@pytest.mark.parametrize("name", SWEEPS)
def test_metrics_are_known_and_their_weights_named(name):
    sweep = read_sweep(PAPERS / name)
    needed = {KINDS[metric].weights for metric in sweep.metrics} - {None}
    assert needed == sweep.weights.keys()
    assert (sweep.real is not None) == any(KINDS[metric].to == "real" for metric in sweep.metrics)


def test_tables_2_and_12_can_share_a_folder():
    one, other = (read_sweep(PAPERS / f"deepcache-table{table}.yaml") for table in ("2-cifar10", "12"))
    assert one.scheduler == {"clip_sample": False}
    assert all(getattr(one, name) == getattr(other, name) for name in IDENTITY)


def test_what_is_not_measured_is_said():
    """Figures without a column of ours are those that the README names, or costs that ours stand beside."""
    beside = {"gmacs_per_step", "images_per_second", "speedup", "speedup_to_50_steps", "source"}
    published = {key for name in SWEEPS for figures in read_sweep(PAPERS / name).published.values() for key in figures}
    unmeasured = published - KINDS.keys() - {key for key in published if key.startswith("clip_table")} - beside
    assert unmeasured == {"sfid", "inception_score", "precision", "recall"}
    assert "sFID, Inception score, precision and recall are not measured" in (PAPERS / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_lacks_only_the_announced_method(name, monkeypatch):
    [method] = WAITING[name]
    assert method not in METHODS, f"{method} has arrived: say so in bench/papers/README.md"
    with pytest.raises(SettingError, match=f"unknown method '{method}'"):
        rows.expand(read_sweep(PAPERS / name))
    assert any(method in row.methods for row in expanded(name, monkeypatch))


@pytest.mark.parametrize("name", FIGURES)
def test_files_of_figures_are_no_sweeps_and_have_sources(name):
    data = yaml.safe_load((PAPERS / name).read_text("utf-8"))
    assert data["title"]
    assert data["paper"]["arxiv"]
    for entry in [*data["figures"], *data.get("claims", ())]:
        assert entry["source"]
    with pytest.raises(SettingError, match=r"a sweep has no '(paper|figures)'"):
        read_sweep(PAPERS / name)


@pytest.mark.parametrize("name", [*SWEEPS, *FIGURES])
def test_the_header_says_what_a_reader_needs(name):
    text = (PAPERS / name).read_text("utf-8")
    header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert re.search(r"arXiv \d{4}\.\d{5}", header)
    if name in SWEEPS:
        assert f"unetaccel bench quality bench/papers/{name}" in header
        assert re.search("^# Needs", header, re.M)
        assert "Open" in header


@pytest.mark.parametrize("table", ["parti", "coco"])
def test_table_3_lists_the_schedules_of_50_steps(table):
    [lists] = [way["deepcache"]["schedule"] for way in read_sweep(PAPERS / f"deepcache-table3-{table}.yaml").ways[:1]]
    assert lists == [uniform(50, 5), quad(50, 5, 10, 1.5), quad(50, 5, 15, 1.3)]


def test_table_3_plans_50_steps_though_plms_evaluates_51_times(tiny):
    sweep = read_sweep(PAPERS / "deepcache-table3-coco.yaml")
    cached = [row for row in rows.expand(sweep) if row.kind == "method"]
    assert [row.steps for row in cached] == [50] * 3
    for row in cached:
        plms = tiny.scheduler("PNDMScheduler", skip_prk_steps=True)  # as SD 1.5's own configuration has it
        with applied(tiny.pipe(scheduler=plms), row) as handle:
            plan = handle.plan(50)
        assert (len(plan), sum(plan), plan[-1]) == (51, 10, False)


def test_table_2_runs_on_a_ddpm(tiny, tmp_path):
    pytest.importorskip("torchmetrics")
    pipe = diffusers.DDPMPipeline(tiny.unet("ddpm"), diffusers.DDPMScheduler())
    pipe.save_pretrained(tmp_path / "ddpm")
    small = dict(
        model=str(tmp_path / "ddpm"), steps=(6,), prompts=PromptSource("none", count=2), batch=2, metrics=("psnr",)
    )
    ways = ({"deepcache": {"interval": 2, "cut": "paper:3"}}, {"steps": 3})
    published = {"ddim-6-deepcache-interval2-paper_3": {"fid": 4.35, "source": "arXiv 2312.00858, table 2"}}
    sweep = read_sweep(PAPERS / "deepcache-table2-cifar10.yaml")
    sweep = replace(
        sweep, **small, ways=ways, published=published, weights={}, real=None, rivals=(), timing=TimingPlan(2, 1)
    )
    found = {row["id"]: row for row in run_sweep(sweep, tmp_path / "run", say=str)["rows"]}
    assert list(found) == ["ddim-6-plain", "ddim-3-plain", "ddim-6-deepcache-interval2-paper_3"]
    row = found["ddim-6-deepcache-interval2-paper_3"]
    assert row["pattern"] == "F.F.F."
    assert row["metrics"]["psnr"]["value"] > 10
    assert row["published"] == published[row["id"]]


@pytest.fixture(scope="module")
def demo():
    return load_pipeline()


@pytest.mark.parametrize("name", MINIATURES)
def test_miniatures_are_small_and_fit_the_demo(name, demo):
    sweep = read_sweep(PAPERS / "demo" / name)
    assert any(file.startswith(name.removesuffix(".yaml")) for file in SWEEPS)
    assert sweep.model == "demo"
    assert sweep.prompts.count * len(sweep.seeds) == 600
    assert len(rows.expand(sweep)) <= 8
    for row in rows.expand(sweep):
        with applied(demo, row) as handle:
            assert row.kind == "plain" or "deepcache" not in row.methods or not all(handle.plan(row.steps))
    assert all(KINDS[metric].weights is None for metric in sweep.metrics)
    assert f"unetaccel bench quality bench/papers/demo/{name}" in (PAPERS / "demo" / name).read_text("utf-8")


def test_the_miniatures_tables_are_the_committed_measurements():
    text = (PAPERS / "demo" / "README.md").read_text("utf-8")
    table = text.partition("<!-- tables:begin -->\n")[2].partition("<!-- tables:end -->")[0]
    order = [f"deepcache-table{n}" for n in (1, 2, 3, 12)] + ["skip-tuning-ldm"]
    results = [load(PAPERS.parent / "results" / "papers" / f"{name}.json") for name in order]
    assert {f"{name}.yaml" for name in order} == set(MINIATURES)
    assert table == markdown(results)
