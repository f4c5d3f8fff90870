"""The latency harness: references, the gate before every time, clocks, ceilings and bars."""

import functools
import math
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from graph_cases import Taped

from unetaccel import graphs
from unetaccel.costs import cut_costs
from unetaccel.errors import CheckError, SettingError
from unetaccel.latency import ceilings, jobs, machine, measure, variants
from unetaccel.latency.bars import bars
from unetaccel.latency.ceilings import Rates, works
from unetaccel.latency.gate import SEEDS, References, distance, tolerance
from unetaccel.latency.jobs import Case, Walk, build_job, job_of, read_case
from unetaccel.latency.measure import Settings, checked_ways
from unetaccel.latency.runners import Ours, Plain
from unetaccel.latency.timers import Loop, interleaved, spread
from unetaccel.latency.variants import VARIANTS, Variant, chosen
from unetaccel.timetable import TimeTable

CPU = torch.device("cpu")
FEW = Settings(intervals=(2,), cuts=(1,), steps=4, repeats=1)
RATES = Rates(macs=1e10, bytes=1e10)


@pytest.fixture(scope="module")
def job(tiny):
    return job_of("tiny", tiny.unet("one-layer"), size=8)


def quiet(text):
    pass


@pytest.mark.parametrize("name", ["one-layer", "sdxl", "ddpm", "svd", "animatediff"])
def test_eager_runs_are_the_reference_bit_for_bit(tiny, name):
    job = job_of(name, tiny.unet(name), size=16 if name == "ddpm" else 8, frames=2)
    references = References(job, [1], [2])
    helper = ["deepcache"] if name in ("one-layer", "sdxl") else []
    for variant in ("ours", *helper):
        runner = VARIANTS[variant].build(job, 1)
        check = references.check((1, 2), references.runs(job, lambda r=runner: r.loop(references.walk, 2)))
        assert check.error == 0, variant
        assert check.moved > 2 * check.tolerance, "caching has to show"
    assert not any(module._forward_pre_hooks for module in job.unet.modules())


def test_the_walk_is_that_of_diffusers():
    from diffusers import DDIMScheduler

    walk = Walk(7, CPU)
    scheduler = DDIMScheduler.from_config(walk.scheduler.config)
    scheduler.set_timesteps(7)
    ours = theirs = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    for i, (timestep, (keep, add)) in enumerate(zip(walk.timesteps, walk.factors, strict=True)):
        output = torch.randn(ours.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        ours = keep * ours + add * output
        theirs = scheduler.step(output, timestep, theirs).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_twin_shares_weights_and_nothing_else(job):
    twin = job.twin()
    assert {p.data_ptr() for p in twin.parameters()} == {p.data_ptr() for p in job.unet.parameters()}
    twin.conv_in.forward = None
    assert "forward" not in job.unet.conv_in.__dict__


class NeverCaches(Plain):
    """A variant that claims to cache."""


class OneStepLate(Ours):
    """Refreshes at the wrong evaluations."""

    def _is_full(self, i, timestep, sigma, evaluations):
        return i == 0 or i % self._interval == 1


class NotANumber(Plain):
    @contextmanager
    def loop(self, walk, interval):
        yield lambda *args, **kwargs: (self.unet(*args, **kwargs)[0] * math.nan,)


@pytest.mark.parametrize("wrong", [NeverCaches, NotANumber, OneStepLate])
def test_nothing_is_timed_on_a_red_check(job, wrong, monkeypatch):
    monkeypatch.setattr(measure, "timed", lambda *_: pytest.fail("timed"))
    settings = Settings(intervals=(3,), cuts=(1,), steps=4, repeats=1)
    wrong = Variant("wrong", "the wrong one", "plain", wrong)
    with pytest.raises(CheckError, match=r"tiny: the wrong one \(interval 3, cut 1\) is wrong: .*Nothing was timed"):
        measure.measure(job, [VARIANTS["plain"], wrong], settings, RATES)


class TooLarge(Plain):
    def __init__(self, job, cut):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nand more")


def test_a_variant_that_breaks_down_leaves_the_others(job):
    large = Variant("large", "the large one", "plain", TooLarge)
    found = measure.measure(job, [VARIANTS["plain"], large], FEW, RATES)
    assert found.skipped == {"large": "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"}
    assert [row.variant for row in found.rows] == ["plain"]
    with pytest.raises(torch.OutOfMemoryError):
        measure.measure(job, [replace(VARIANTS["plain"], build=TooLarge)], FEW, RATES)


def test_precomputed_variants_know_the_timesteps(job, monkeypatch):
    made = []
    table = TimeTable._made
    monkeypatch.setattr(TimeTable, "_made", lambda self, *args: made.append(1) or table(self, *args))
    walk = Walk(4, CPU)
    with Ours(job, 0, precompute=True).loop(walk, 2) as unet:
        job.sample(unet, walk)
    assert made == [1]


class Ages(Plain):
    """Right at first, another thing later: what running side by side could do to static buffers."""

    loops = 0

    @contextmanager
    def loop(self, walk, interval):
        self.loops += 1
        factor = 1 + 0.1 * (self.loops > len(SEEDS) + 1)
        yield lambda *args, **kwargs: (self.unet(*args, **kwargs)[0] * factor,)


def test_a_variant_that_changes_while_it_is_timed_is_not_reported(job):
    ages = Variant("plain", "plain, eager", "plain", Ages, caches=False)
    with pytest.raises(CheckError, match="other latents in its last loop than in its first"):
        measure.measure(job, [ages], FEW, RATES)


def test_a_reference_that_is_not_finite_checks_nothing(tiny):
    unet = tiny.unet("one-layer")
    unet.conv_out.bias.data.fill_(math.inf)
    with pytest.raises(CheckError, match="reference is not finite"):
        References(job_of("tiny", unet, size=8), [0], [2])


def test_distances_and_tolerances():
    assert distance(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])) == pytest.approx(4 / 3)
    assert distance(torch.tensor([math.nan]), torch.ones(1)) == math.inf
    assert tolerance(torch.float32, CPU) < tolerance(torch.float16, CPU) < tolerance(torch.bfloat16, CPU)
    if torch.backends.cudnn.allow_tf32:
        assert tolerance(torch.float32, torch.device("cuda")) == tolerance(torch.float16, CPU)


def test_rows_of_eager_variants(job):
    found = measure.measure(job, chosen(["ours", "deepcache"]), Settings((2, 3), (0, 1), 6, 1), RATES)
    assert [(row.variant, row.cut, row.interval) for row in found.rows] == [
        ("plain", None, None),
        *[(name, cut, n) for name in ("deepcache", "ours") for cut in (0, 1) for n in (2, 3)],
    ]
    plain, *rest = found.rows
    assert (plain.pattern, plain.cached, plain.ceiling, plain.speedup_in_mode) == ("FFFFFF", None, 1.0, None)
    for row in rest:
        assert row.pattern == {2: "F.F.F.", 3: "F..F.."}[row.interval]
        assert row.cached["median"] > 0
        assert row.of_ceiling["median"] == pytest.approx(row.speedup_in_mode["median"] / row.ceiling, rel=1e-3)
        full = row.pattern.count("F")
        macs = full * found.full.macs + (6 - full) * found.cached[row.cut].macs
        assert row.ceiling == pytest.approx(6 * found.full.macs / macs)
        assert row.floor["macs"] == pytest.approx(macs / RATES.macs)
        assert row.steps_per_second["median"] == pytest.approx(6 / row.loop["median"], rel=1e-3)
    kept = {row.variant: row.cached_bytes for row in rest if (row.cut, row.interval) == (1, 3)}
    assert 0 < kept["ours"] < kept["deepcache"], "one feature, not every layer's output"
    assert found.clocks == [None, None]


def test_every_compiled_variant_traces_and_agrees(job, monkeypatch):
    """Without the compiler's back end, which changes nothing in what they compute and takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(variants.shutil, "which", lambda name: name)
    wanted = ["plain-inductor", "deepcache-blocks", "ours-inductor"]
    found = measure.measure(job, chosen(wanted), Settings((2,), (1,), 4, 1), RATES)
    assert not found.skipped
    assert {row.variant for row in found.rows} == {"plain", *wanted}
    assert all(row.check["error"] == 0 for row in found.rows)
    assert all(row.speedup_in_mode for row in found.rows if row.interval)


def test_recorded_variants_pass_the_gate_and_eager_ones_are_not_told_as_recorded(job, monkeypatch):
    monkeypatch.setattr(variants, "VARIANTS", {n: replace(v, why_not=lambda job: None) for n, v in VARIANTS.items()})
    wanted = ["plain-graphs", "ours-graphs"]
    with pytest.warns(UserWarning, match="runs eager here"):
        _, skipped = checked_ways(job, chosen(wanted), FEW, quiet)
    assert skipped == dict.fromkeys(wanted, "not recorded: CUDA graphs need a CUDA device, and this call is on cpu")
    monkeypatch.setattr(graphs, "CudaGraphs", Taped)
    ways, skipped = checked_ways(job, chosen(wanted), FEW, quiet)
    assert not skipped
    assert {way.variant.name: way.check.error for way in ways} == dict.fromkeys(["plain", *wanted], 0)


@pytest.mark.skipif(variants._no_inductor(SimpleNamespace(device=CPU)) is not None, reason="no C++ compiler")
def test_views_under_inductor_are_right_and_told_beside_eager_ones(tiny, capsys):
    kind, config = tiny.ARCHITECTURES["one-layer"]
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "block_out_channels": (16, 32)}
    unet = kind(**{**config, **blocks, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}).eval()
    job = job_of("tiny", unet.requires_grad_(False), size=16)
    names = ("plain", "ours", "ours-inductor")
    found = measure.measure(job, [VARIANTS[name] for name in names], Settings((3,), (1,), 6, 3), RATES)
    assert [row.variant for row in found.rows] == [*names]
    assert all(row.check["error"] <= row.check["tolerance"] for row in found.rows)
    told = bars(as_result(found))
    assert [bar.text for bar in told[:2]] == [
        f"tiny, cut 1: {view} view, eager time over inductor's" for view in ("full", "cached")
    ]
    eager, inductor = found.rows[1:]
    for view in ("full", "cached"):  # of the quick ones among the repeats: what else runs here makes others slow
        assert getattr(inductor, view)["p20"] < 1.1 * getattr(eager, view)["p20"], (
            f"the {view} view is not slower under inductor"
        )
    with capsys.disabled():
        print("", *(f"{bar.text}: {bar.found:.2f}" for bar in told[:2]), sep="\n  ")


def as_result(found) -> dict:
    from unetaccel.latency.result import as_dict

    settings = {"device": "cpu", "scale": 1.0, "dtype": "float32", "repeats": 3}
    return {"settings": settings, "cases": [as_dict(found, RATES)]}


def test_what_cannot_run_here_is_skipped_with_its_reason(job, tiny, monkeypatch):
    _, skipped = checked_ways(job, chosen(["ours-graphs"]), FEW, quiet)
    assert skipped == dict.fromkeys(("plain-graphs", "ours-graphs"), "CUDA graphs need a CUDA device")
    monkeypatch.setattr(variants.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    assert "none of g++, clang++ is found" in VARIANTS["ours-inductor"].why_not(job)
    monkeypatch.setenv("CXX", "my-compiler")
    assert "none of my-compiler is found" in VARIANTS["ours-inductor"].why_not(job)
    video = job_of("svd", tiny.unet("svd"), size=8, frames=2)
    assert "compile_repeated_blocks refuses it" in VARIANTS["deepcache-blocks"].why_not(video)
    three = job_of("three", tiny.unet("three-layers"), size=8)
    _, skipped = checked_ways(three, [VARIANTS["deepcache"]], Settings((2,), (3,), 4, 1), quiet)
    assert skipped == {"deepcache": "no cache_branch_id of DeepCacheSDHelper is cut 3 of this U-Net"}


def test_traffic_counts_operands_once():
    linear, conv = torch.nn.Linear(8, 16), torch.nn.Conv2d(4, 8, 3, padding=1)
    x, picture = torch.randn(3, 8), torch.randn(1, 4, 5, 5)
    query = torch.randn(1, 2, 6, 4)
    with torch.no_grad():
        assert ceilings._traffic(lambda: linear(x)) == 4 * (16 + 3 * 8 + 16 * 8 + 3 * 16)
        assert ceilings._traffic(lambda: conv(picture).relu()) == 4 * (100 + 4 * 8 * 9 + 8 + 200)
        attention = ceilings._traffic(
            lambda: torch.nn.functional.scaled_dot_product_attention(query, query[..., :5, :], query[..., :5, :])
        )
    assert attention == 4 * 8 * (6 + 5 + 5 + 6)


def test_work_agrees_with_the_counted_macs(job):
    full, cached = works(job, [0, 1])
    costs = list(cut_costs(job.unet, job.structure, [0, 1]))
    assert full.macs == costs[0].full_macs
    assert [cached[b].macs for b in (0, 1)] == [c.cached_macs for c in costs]
    weights = sum(p.nbytes for p in job.unet.parameters() if p.ndim > 1)
    assert weights < full.bytes
    assert cached[0].bytes < cached[1].bytes < full.bytes


def test_clocks_are_read_from_nvidia_smi(monkeypatch):
    assert machine.clocks(CPU) is None
    monkeypatch.setattr(machine.shutil, "which", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="123"))
    asked = []

    def answer(command, **options):
        asked.append(command)
        return SimpleNamespace(stdout="NVIDIA H200, 550.1, 1980, 3201, 1980, 41, 420.5, 700.0\n")

    monkeypatch.setattr(machine.subprocess, "run", answer)
    found = machine.clocks(torch.device("cuda"))
    assert (found["name"], found["clocks.sm"], found["power.draw"]) == ("NVIDIA H200", "1980", "420.5")
    assert "--id=GPU-123" in asked[0]


def test_loops_from_marks_and_repeats_in_turn():
    marks = SimpleNamespace(seconds=lambda: [0.0, 1.0, 3.0, 4.0, 4.5, 6.0])
    assert Loop.of(marks) == Loop(6.0, (2.0, 0.5))
    order = []
    ways = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    assert interleaved(ways, 2) == {"a": [6, 8], "b": [4, 9], "c": [5, 7]}
    assert "".join(order) == "abcbcacab"
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == {"median": 3.5, "p20": 2.0, "p80": 5.0}
    assert spread([2.0]) == {"median": 2.0, "p20": 2.0, "p80": 2.0}


def speeds(**found) -> list[dict]:
    """Rows of a result that has only what bars read."""
    rows = []
    for name, value in found.items():
        variant, _, interval = name.partition("_at_")
        row = {"variant": variant.replace("_", "-"), "interval": int(interval) if interval else None}
        one = {"median": 1 / value}
        rest = {"cut": 0 if interval else None, "title": variant, "of_ceiling": {"median": 0.95} if interval else None}
        rows.append({**row, **rest, "steps_per_second": {"median": value}, "full": one, "cached": one})
    return rows


def test_bars_are_met_missed_or_not_measured():
    rows = speeds(plain=90.0, plain_graphs=110.0, deepcache_at_3=100.0, ours_at_3=120.0, ours_inductor_at_3=199.0)
    case = {"case": "sd15:1", "rows": rows, "skipped": {}}
    settings = {"device": "cuda", "scale": 1.0, "dtype": "float16", "repeats": 3}
    found = {bar.text: bar for bar in bars({"settings": settings, "cases": [case]})}
    assert found["sd15:1: plain steps per second"].met is True
    assert found["sd15:1: plain steps per second"].found == 110
    assert found["sd15:1: steps per second at interval 3"].met is False
    assert found["sd15:1: ours over deepcache, interval 3"].found == pytest.approx(1.99)
    assert found["sd15:1: ours over deepcache, interval 3"].met is False
    blocks = found["sd15:1: ours over deepcache-blocks, interval 3"]
    assert (blocks.met, blocks.why) == (None, "its variants were not run")
    assert found["sd15:1, cut 0: cached view, eager time over inductor's"].met is True
    assert found["sdxl:1: plain steps per second"].why == "sdxl:1 was not run"
    assert sum("of the MACs' ceiling" in text and bar.met for text, bar in found.items()) == 2
    once = bars({"settings": {**settings, "repeats": 1}, "cases": [case]})
    assert [bar.met for bar in once if "of the MACs' ceiling" in bar.text] == [None] * 2
    on_cpu = bars({"settings": {**settings, "device": "cpu"}, "cases": [case]})
    assert all(bar.found is None for bar in on_cpu if "steps per second" in bar.text)


def test_cases_and_settings_are_checked(job):
    assert read_case("sdxl:4") == Case("sdxl", 4)
    assert str(read_case("svd")) == "svd:1"
    for text, message in {"sd9": "known: sd15", "sd15:x": "number of at least 1", "sd15:": "at least 1"}.items():
        with pytest.raises(SettingError, match=message):
            read_case(text)
    for wrong, message in (
        ({"intervals": (1, 2)}, "intervals must be of at least 2"),
        ({"cuts": ()}, "at least one cut"),
        ({"steps": 0}, "steps must be an int of at least 1"),
    ):
        with pytest.raises(SettingError, match=message):
            Settings(**wrong)
    with pytest.raises(SettingError, match="cut=40 is out of range: this U-Net has 6 skips"):
        measure.measure(job, [VARIANTS["plain"]], Settings(cuts=(40,)), RATES)


def test_jobs_of_the_real_shapes_have_their_real_sizes(monkeypatch):
    monkeypatch.setattr(jobs, "_wake", lambda unet: None)  # there is nothing to look at on the meta device
    sizes = {"sd15:8": (16, 4, 64, 64), "sdxl:1": (2, 4, 128, 128)}
    sizes |= {"svd:1": (2, 25, 8, 72, 128), "animatediff:1": (2, 4, 16, 64, 64)}
    for text, shape in sizes.items():
        job = build_job(read_case(text), 1.0, "meta", torch.float16)
        assert (job.sample_shape, job.dtype) == (shape, torch.float16)
        assert job.batch == read_case(text).batch


def test_the_command_runs_end_to_end_on_a_cpu(tmp_path):
    import csv
    import json

    from typer.testing import CliRunner

    import unetaccel.cli.latency  # noqa: F401 - registers the command
    from unetaccel.cli.app import app

    out = tmp_path / "speed" / "latency.json"
    arguments = "--case sd15 --scale 0.1 --variant ours --variant deepcache --variant ours-graphs --interval 2"
    arguments += f" --steps 4 --repeats 1 --threads 1 --device cpu --out {out}"
    told = CliRunner().invoke(app, ["bench", "latency", *arguments.split()])
    assert told.exit_code == 0, told.output
    assert "skipped ours-graphs: CUDA graphs need a CUDA device" in told.output
    result = json.loads(out.read_text())
    [case] = result["cases"]
    assert [row["variant"] for row in case["rows"]] == ["plain", "deepcache", "ours"]
    assert all(row["check"]["error"] == 0 for row in case["rows"])
    assert result["environment"]["packages"]["torch"]
    assert result["rates"]["macs_per_second"] > 0
    lines = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert [float(line["loop_median"]) for line in lines] == [row["loop"]["median"] for row in case["rows"]]
    alone = "bench latency --case sd15 --scale 0.1 --variant ours-graphs --steps 4 --repeats 1 --threads 1 --device cpu"
    refused = CliRunner().invoke(app, alone.split())
    assert refused.exit_code == 1
    assert "none of the variants asked for ran: ours-graphs (CUDA graphs need a CUDA device)" in str(refused.exception)
    if (tmp_path / "speed" / "latency-sd15-1.png").exists():
        assert (tmp_path / "speed" / "latency-sd15-1.png").stat().st_size > 10_000
    else:
        assert "no figures: PNG figures need matplotlib" in told.output
