"""The parts of the latency harness: cases, the sampling loop, clocks, ceilings and bars."""

import math
from types import SimpleNamespace

import pytest
import torch

from unetaccel.errors import SettingError
from unetaccel.latency import ceilings, jobs, machine
from unetaccel.latency.bars import bars
from unetaccel.latency.gate import distance, tolerance
from unetaccel.latency.jobs import Case, Walk, build_job, read_case
from unetaccel.latency.measure import Settings
from unetaccel.latency.timers import Loop, interleaved, spread

CPU = torch.device("cpu")


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


def test_distances_and_tolerances():
    assert distance(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])) == pytest.approx(4 / 3)
    assert distance(torch.tensor([math.nan]), torch.ones(1)) == math.inf
    assert tolerance(torch.float32, CPU) < tolerance(torch.float16, CPU) < tolerance(torch.bfloat16, CPU)
    if torch.backends.cudnn.allow_tf32:
        assert tolerance(torch.float32, torch.device("cuda")) == tolerance(torch.float16, CPU)


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
    assert not any(text.startswith("sdxl:1") for text in found), "it was not run"
    controlled = bars({"settings": settings, "cases": [{**case, "case": "sd15-controlnet:1"}]})
    found_there = {bar.text: bar for bar in controlled if "steps per second" in bar.text}
    assert list(found_there) == ["sd15-controlnet:1: plain steps per second"]
    assert (found_there.popitem()[1].wanted, controlled[-1].found) == (72.6, 110)
    assert sum("of the MACs' ceiling" in text and bar.met for text, bar in found.items()) == 2
    once = bars({"settings": {**settings, "repeats": 1}, "cases": [case]})
    assert [bar.met for bar in once if "of the MACs' ceiling" in bar.text] == [None] * 2
    on_cpu = bars({"settings": {**settings, "device": "cpu"}, "cases": [case]})
    assert all(bar.found is None for bar in on_cpu if "steps per second" in bar.text)


def test_cases_and_settings_are_checked():
    assert read_case("sdxl:4") == Case("sdxl", 4)
    assert str(read_case("svd")) == "svd:1"
    assert read_case("sd15-controlnet:2") == Case("sd15", 2, controlled=True)
    assert str(read_case("sdxl-controlnet")) == "sdxl-controlnet:1"
    for text, message in {
        "sd9": "known: sd15",
        "svd-controlnet": "with a ControlNet: sd15-controlnet, sd21-c",
        "sd15:x": "number of at least 1",
        "sd15:": "at least 1",
    }.items():
        with pytest.raises(SettingError, match=message):
            read_case(text)
    for wrong, message in (
        ({"intervals": (1, 2)}, "intervals must be of at least 2"),
        ({"cuts": ()}, "at least one cut"),
        ({"steps": 0}, "steps must be an int of at least 1"),
    ):
        with pytest.raises(SettingError, match=message):
            Settings(**wrong)


def test_jobs_of_the_real_shapes_have_their_real_sizes(monkeypatch):
    monkeypatch.setattr(jobs, "_wake", lambda unet: None)  # there is nothing to look at on the meta device
    sizes = {"sd15:8": (16, 4, 64, 64), "sdxl:1": (2, 4, 128, 128)}
    sizes |= {"svd:1": (2, 25, 8, 72, 128), "animatediff:1": (2, 4, 16, 64, 64)}
    for text, shape in sizes.items():
        job = build_job(read_case(text), 1.0, "meta", torch.float16)
        assert (job.sample_shape, job.dtype) == (shape, torch.float16)
        assert job.batch == read_case(text).batch
    job = build_job(read_case("sd15-controlnet"), 1.0, "meta", torch.float16)
    assert sum(p.numel() for p in job.controlnet.parameters()) == 361_279_120, "as lllyasviel/sd-controlnet-canny"
    assert (job.hint.shape, job.hint.dtype) == ((2, 3, 512, 512), torch.float16)
