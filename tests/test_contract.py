"""What every method keeps to: neutral settings, exact removal, order of composition, two graphs."""

import pytest
import torch
from conftest import build_pipe
from profile_cases import a_profile
from skip_cases import edited_by_hand
from torch._dynamo.testing import CompileCounter

import unetaccel
from unetaccel import Calibrated, DeepCache, FreeU, GuidanceReuse, ScaleLong, SettingError, SkipTuning
from unetaccel.settings import METHODS

PROFILES = {name: a_profile(build_pipe(name), 6, 3) for name in ("sd", "one-layer")}
NEUTRAL = {
    "calibrated": Calibrated(PROFILES["sd"], full=6),
    "deepcache": DeepCache(interval=1),
    "skip_tuning": SkipTuning(1.0),
    "scalelong": ScaleLong(mode="ls"),
    "freeu": FreeU(b1=1, b2=1, s1=1, s2=1),
    "guidance_reuse": GuidanceReuse(1.0),
}
ACTIVE = {
    "calibrated": Calibrated(PROFILES["sd"]),
    "deepcache": DeepCache(interval=2),
    "skip_tuning": SkipTuning(0.7),
    "scalelong": ScaleLong(mode="ls", start="paper"),
    "freeu": FreeU(b1=1.2, b2=1.3, s1=0.8, s2=0.3),
    "guidance_reuse": GuidanceReuse(0.5),
}
SKIPS = [name for name, method in ACTIVE.items() if method.role == "skips"]


def call(tiny, pipe, *methods, **options):
    torch.manual_seed(0)  # of gates that start at random
    with unetaccel.apply(pipe, *methods, **options):
        return tiny.call(pipe, steps=6)


def test_every_method_is_in_these_tables():
    assert set(NEUTRAL) == set(ACTIVE) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_neutral_changes_no_bit_and_the_check_bites(tiny, name):
    pipe = tiny.pipe()
    plain = tiny.call(pipe, steps=6)
    assert torch.equal(call(tiny, pipe, NEUTRAL[name]), plain)
    assert not torch.equal(call(tiny, pipe, ACTIVE[name]), plain)


@pytest.mark.parametrize("name", METHODS)
def test_removal_is_exact_also_after_an_exception(tiny, name):
    pipe = tiny.pipe()
    plain = tiny.call(pipe, steps=6)
    before = tiny.snapshot(pipe)
    call(tiny, pipe, ACTIVE[name])
    assert tiny.snapshot(pipe) == before

    def stop(pipe, i, t, values):
        if i == 2:
            raise RuntimeError("stop")
        return values

    with pytest.raises(RuntimeError, match="stop"), unetaccel.apply(pipe, ACTIVE[name]) as handle:
        tiny.call(pipe, steps=6, callback_on_step_end=stop)
    assert not handle.is_applied
    assert tiny.snapshot(pipe)["modules"] == before["modules"]
    assert torch.equal(tiny.call(pipe, steps=6), plain)


@pytest.mark.parametrize("name", SKIPS)
def test_reuse_comes_last_whatever_the_order_of_arguments(tiny, name):
    pipe, cache = tiny.pipe(), DeepCache(interval=3, cut=2)
    last, first = call(tiny, pipe, ACTIVE[name], cache), call(tiny, pipe, cache, ACTIVE[name])
    assert torch.equal(last, first)
    assert not torch.equal(last, call(tiny, pipe, cache))


@torch.no_grad()
def test_skips_are_edited_in_the_order_given(tiny):
    """A gate sees what the method before it left of the skip."""
    unet = tiny.unet()
    inputs, rhos, outputs = tiny.inputs(unet), SkipTuning(0.5).rhos(9), []
    for order in ((ACTIVE["scalelong"], SkipTuning(0.5)), (SkipTuning(0.5), ACTIVE["scalelong"])):
        torch.manual_seed(0)
        with unetaccel.apply(unet, *order) as handle:
            ours = handle.unet(**inputs)[0]
            gates = handle.learned["scalelong"]
        scale_first = order[0] == SkipTuning(0.5)

        def edit(b, hidden, skip, gates=gates, scale_first=scale_first):
            scaled = skip * rhos[b]
            return hidden, scaled * gates[str(b)].factor(scaled if scale_first else skip)

        with edited_by_hand(unet, edit):
            assert torch.allclose(ours, unet(**inputs)[0], rtol=1e-4, atol=1e-5)
        outputs.append(ours)
    assert not torch.allclose(*outputs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SKIPS)
def test_two_graphs_with_a_cache_and_one_without(tiny, name):
    for methods, graphs in (((ACTIVE[name], DeepCache(interval=3)), 2), ((ACTIVE[name],), 1)):
        torch._dynamo.reset()
        pipe, counter = tiny.pipe("one-layer"), CompileCounter()
        eager = call(tiny, pipe, *methods)
        compiled = call(tiny, pipe, *methods, compile={"backend": counter})
        assert counter.frame_count == graphs
        assert torch.allclose(compiled, eager, rtol=1e-4, atol=1e-5)


def test_calibrated_plans_are_two_graphs(tiny):
    torch._dynamo.reset()
    pipe, counter = tiny.pipe("one-layer"), CompileCounter()
    method = Calibrated(PROFILES["one-layer"])
    eager = call(tiny, pipe, method)
    assert torch.allclose(call(tiny, pipe, method, compile={"backend": counter}), eager, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 2


def test_two_reuse_methods_are_refused(tiny):
    pipe = tiny.pipe()
    with pytest.raises(SettingError, match="at most one reuse method"):
        unetaccel.apply(pipe, DeepCache(), DeepCache(interval=2))
    assert not hasattr(pipe.unet, "_unetaccel")


def test_all_methods_at_once(tiny):
    pipe = tiny.pipe()
    neutral = call(tiny, pipe, *(method for name, method in NEUTRAL.items() if name != "calibrated"))
    assert torch.equal(neutral, tiny.call(pipe, steps=6))
    for reuse in ("deepcache", "calibrated"):
        with unetaccel.apply(pipe, *(ACTIVE[name] for name in (*SKIPS, reuse))) as handle:
            tiny.call(pipe, steps=6)
            assert handle.summary().full == 3
            assert len(handle.summary().methods) == 4
