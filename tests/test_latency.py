"""The latency harness: references, the gate before every time, clocks, ceilings and bars."""

import functools
import math
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from graph_cases import Taped

from unetaccel import graphs, ops
from unetaccel.costs import count_macs, cut_costs
from unetaccel.errors import CheckError, SettingError
from unetaccel.latency import ceilings, jobs, measure, variants
from unetaccel.latency.bars import bars
from unetaccel.latency.ceilings import Rates, works
from unetaccel.latency.gate import SEEDS, References
from unetaccel.latency.jobs import Walk, job_of
from unetaccel.latency.measure import Settings, checked_ways
from unetaccel.latency.runners import Ours, Plain
from unetaccel.latency.variants import VARIANTS, Variant, chosen
from unetaccel.timetable import TimeTable

CPU = torch.device("cpu")
FEW = Settings(intervals=(2,), cuts=(1,), steps=4, repeats=1)
RATES = Rates(macs=1e10, bytes=1e10)


@pytest.fixture(scope="module")
def job(tiny):
    return job_of("tiny", tiny.unet("one-layer"), size=8)


@pytest.fixture(scope="module")
def controlled(tiny):
    unet = tiny.unet("one-layer")
    controlnet = jobs._controlnet(unet)
    jobs._wake(controlnet)
    return job_of("tiny", unet, size=8, controlnet=controlnet)


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


def test_a_controlnet_runs_before_every_evaluation(controlled):
    """Shortened by ours, whole by others: the same latents, which are not those without it."""
    references = References(controlled, [1], [2])
    for variant in ("ours", "ours-precompute", "deepcache"):
        runner = VARIANTS[variant].build(controlled, 1)
        check = references.check((1, 2), references.runs(controlled, lambda r=runner: r.loop(references.walk, 2)))
        assert check.error == 0 or variant == "ours-precompute", variant
        assert check.passed
    uncontrolled = references.runs(controlled, lambda: nullcontext(controlled.unet))
    assert not references.check((None, None), uncontrolled).passed


class HalfControlled(Ours):
    """Leaves the ControlNet out of cached evaluations."""

    def __init__(self, job, cut):
        super().__init__(job, cut)
        whole, calls = self._network, []

        def network(sample, timestep, **inputs):
            calls.append(1)
            return (whole if len(calls) % 2 else self._handle.unet)(sample, timestep, **inputs)

        self._network = network


def test_a_controlnet_that_is_left_out_is_noticed(controlled):
    wrong = Variant("wrong", "the wrong one", "plain", HalfControlled)
    with pytest.raises(CheckError, match=r"the wrong one .* is wrong"):
        measure.measure(controlled, [VARIANTS["plain"], wrong], FEW, RATES)


def test_the_work_of_a_controlnet_is_counted(controlled, job):
    both, bare = works(controlled, [0, 1]), works(job, [0, 1])
    whole = count_macs(
        lambda: controlled.controlnet(
            ceilings._first(controlled), 1, controlnet_cond=controlled.hint, **controlled.condition
        )
    )
    assert both.full.macs - bare.full.macs == whole
    assert both.full.bytes > bare.full.bytes
    extra = [both.cached[b].macs - bare.cached[b].macs for b in (0, 1)]
    assert 0 < extra[0] < extra[1] < whole, "shortened"
    assert all(both.beside_whole[b].macs - bare.cached[b].macs == whole for b in (0, 1))
    found = measure.measure(controlled, chosen(["ours", "deepcache"]), FEW, RATES)
    ceilings_of = {row.variant: row.ceiling for row in found.rows}
    assert ceilings_of["deepcache"] < ceilings_of["ours"], "which runs it whole"


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
        yield lambda *args, **kwargs: (self.network(*args, **kwargs)[0] * math.nan,)


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
        yield lambda *args, **kwargs: (self.network(*args, **kwargs)[0] * factor,)


def test_a_variant_that_changes_while_it_is_timed_is_not_reported(job):
    ages = Variant("plain", "plain, eager", "plain", Ages, caches=False)
    with pytest.raises(CheckError, match="other latents in its last loop than in its first"):
        measure.measure(job, [ages], FEW, RATES)


def test_a_cut_that_this_unet_has_not(job):
    with pytest.raises(SettingError, match="cut=40 is out of range: this U-Net has 6 skips"):
        measure.measure(job, [VARIANTS["plain"]], Settings(cuts=(40,)), RATES)


def test_a_reference_that_is_not_finite_checks_nothing(tiny):
    unet = tiny.unet("one-layer")
    unet.conv_out.bias.data.fill_(math.inf)
    with pytest.raises(CheckError, match="reference is not finite"):
        References(job_of("tiny", unet, size=8), [0], [2])


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
        macs = full * found.works.full.macs + (6 - full) * found.works.cached[row.cut].macs
        assert row.ceiling == pytest.approx(6 * found.works.full.macs / macs)
        assert row.floor["macs"] == pytest.approx(macs / RATES.macs)
        assert row.steps_per_second["median"] == pytest.approx(6 / row.loop["median"], rel=1e-3)
    kept = {row.variant: row.cached_bytes for row in rest if (row.cut, row.interval) == (1, 3)}
    assert 0 < kept["ours"] < kept["deepcache"], "one feature, not every layer's output"
    assert found.clocks == [None, None]


@pytest.mark.parametrize("which", ["job", "controlled"])
def test_every_compiled_variant_traces_and_agrees(which, request, monkeypatch):
    """Without the compiler's back end, which changes nothing in what they compute and takes minutes."""
    job = request.getfixturevalue(which)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(variants.shutil, "which", lambda name: name)
    wanted = ["plain-inductor", "deepcache-blocks", "ours-inductor"]
    found = measure.measure(job, chosen(wanted), Settings((2,), (1,), 4, 1), RATES)
    assert not found.skipped
    assert {row.variant for row in found.rows} == {"plain", *wanted}
    assert all(row.check["error"] == 0 for row in found.rows)
    assert all(row.speedup_in_mode for row in found.rows if row.interval)


@pytest.mark.parametrize("which", ["job", "controlled"])
def test_recorded_variants_pass_the_gate_and_eager_ones_are_not_told_as_recorded(which, request, monkeypatch):
    job = request.getfixturevalue(which)
    monkeypatch.setattr(variants, "VARIANTS", {n: replace(v, why_not=lambda job: None) for n, v in VARIANTS.items()})
    wanted = ["plain-graphs", "ours-graphs"]
    with pytest.warns(UserWarning, match="runs eager here"):
        _, skipped = checked_ways(job, chosen(wanted), FEW, quiet)
    assert skipped == dict.fromkeys(wanted, "not recorded: CUDA graphs need a CUDA device, and this call is on cpu")
    monkeypatch.setattr(graphs, "CudaGraphs", Taped)
    ways, skipped = checked_ways(job, chosen(wanted), FEW, quiet)
    assert not skipped
    assert {way.variant.name: way.check.error for way in ways} == dict.fromkeys(["plain", *wanted], 0)


@pytest.mark.skipif(ops._missing() is not None, reason=f"optional: {ops._missing()}")
def test_everything_at_once_passes_the_gate(controlled, monkeypatch):
    monkeypatch.setattr(variants, "VARIANTS", {n: replace(v, why_not=lambda job: None) for n, v in VARIANTS.items()})
    monkeypatch.setattr(graphs, "CudaGraphs", Taped)
    settings = Settings(intervals=(2, 3), cuts=(1,), steps=4, repeats=1)
    ways, skipped = checked_ways(controlled, chosen(["ours-all"]), settings, quiet)
    assert not skipped
    ours = [way for way in ways if way.variant.name == "ours-all"]
    assert [(way.cut, way.interval) for way in ours] == [(1, 2), (1, 3)]
    assert all(0 < way.check.error <= way.check.tolerance for way in ours), "computed otherwise, and right"


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


def test_work_agrees_with_the_counted_macs(job):
    counted = works(job, [0, 1])
    full, cached = counted.full, counted.cached
    costs = list(cut_costs(job.unet, job.structure, [0, 1]))
    assert full.macs == costs[0].full_macs
    assert [cached[b].macs for b in (0, 1)] == [c.cached_macs for c in costs]
    weights = sum(p.nbytes for p in job.unet.parameters() if p.ndim > 1)
    assert weights < full.bytes
    assert cached[0].bytes < cached[1].bytes < full.bytes


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
