"""Compiled views: two graphs, no recompiles, and exportable steps."""

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import unetaccel
from unetaccel import DeepCache, SettingError, UnsupportedModelError
from unetaccel.compiled import cached_step, full_step


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(counter) -> dict:
    return {"backend": counter}


def test_two_graphs_for_any_number_of_steps_seeds_and_prompts(tiny):
    pipe = tiny.pipe()
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=4)):
        eager = [tiny.call(pipe, steps=s, seed=seed) for s, seed in ((10, 0), (7, 1), (20, 2))]
    counter = CompileCounter()
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=4), compile=compiled(counter)) as handle:
        ours = [tiny.call(pipe, steps=s, seed=seed) for s, seed in ((10, 0), (7, 1), (20, 2))]
        assert handle.summary().cached == 13
    assert counter.frame_count == 2
    assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True)), "the eager backend changes no bit"


@pytest.mark.parametrize(
    "scheduler", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_two_graphs_with_other_schedulers(tiny, scheduler):
    pipe, counter = tiny.pipe(scheduler=tiny.scheduler(scheduler)), CompileCounter()
    with unetaccel.apply(pipe, DeepCache(interval=3), compile=compiled(counter)):
        tiny.call(pipe), tiny.call(pipe, seed=1)
    assert counter.frame_count == 2


def test_another_shape_is_two_more_graphs(tiny):
    pipe, counter = tiny.pipe(), CompileCounter()
    with unetaccel.apply(pipe, DeepCache(interval=3), compile=compiled(counter)):
        tiny.call(pipe), tiny.call(pipe, size=64), tiny.call(pipe), tiny.call(pipe, size=64)
    assert counter.frame_count == 4


@pytest.mark.parametrize(
    "name", ["sd", "sdxl", "ddpm", "ldm", "animatediff", "svd", "text-to-video", "simple-cross-attention"]
)
def test_every_kind_of_unet_is_one_graph_per_view(tiny, name):
    unet, counter = tiny.unet(name), CompileCounter()
    inputs = tiny.inputs(unet)
    handle = unetaccel.apply(unet, DeepCache(interval=3, cut=1), compile=compiled(counter))
    with torch.no_grad(), handle.run(6):
        outputs = [handle.unet(**{**inputs, "timestep": torch.tensor(t)})[0] for t in range(900, 300, -100)]
    assert counter.frame_count == 2
    assert torch.equal(outputs[0], unet(**{**inputs, "timestep": torch.tensor(900)})[0])


def test_numbers_as_timesteps_do_not_recompile(tiny):
    unet, counter = tiny.unet(), CompileCounter()
    handle = unetaccel.apply(unet, DeepCache(interval=3), compile=compiled(counter))
    inputs = tiny.inputs(unet)
    with torch.no_grad(), handle.run(9):
        for t in range(900, 0, -100):
            handle.unet(**{**inputs, "timestep": t})
    assert counter.frame_count == 2


@pytest.mark.skipif(shutil.which("g++") is None, reason="optional: inductor needs a C++ compiler")
def test_inductor_agrees_with_eager(tiny):
    unet = tiny.unet("one-layer")
    inputs = tiny.inputs(unet)
    results = []
    for options in (False, True):
        handle = unetaccel.apply(unet, DeepCache(interval=3, cut=1), compile=options)
        with torch.no_grad(), handle.run(6):
            results.append([handle.unet(**{**inputs, "timestep": torch.tensor(t)})[0] for t in range(900, 300, -100)])
    for eager, inductor in zip(*results, strict=True):
        torch.testing.assert_close(inductor, eager, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["one-layer", "ddpm"])
def test_steps_export_reload_and_agree(tiny, name, tmp_path):
    unet = tiny.unet(name)
    inputs = tiny.inputs(unet)
    full, cached = full_step(unet, 1), cached_step(unet, 1)
    with torch.no_grad():
        (output, *_), feature = full(**inputs)
        torch.export.save(torch.export.export(full, (), inputs), tmp_path / "full.pt2")
        torch.export.save(torch.export.export(cached, (), {"feature": feature, **inputs}), tmp_path / "cached.pt2")
        (again, *_), again_feature = torch.export.load(tmp_path / "full.pt2").module()(**inputs)
        [from_feature] = torch.export.load(tmp_path / "cached.pt2").module()(feature=feature, **inputs)
    assert torch.equal(again, output)
    assert torch.equal(again_feature, feature)
    assert torch.equal(from_feature, output)


def test_plain_runs_are_compiled_too(tiny):
    pipe, counter = tiny.pipe(), CompileCounter()
    plain = tiny.call(pipe)
    with unetaccel.apply(pipe, DeepCache(interval=1), compile=compiled(counter)):
        assert torch.equal(tiny.call(pipe), plain)
    assert counter.frame_count == 1


def test_what_cannot_be_compiled_is_refused(tiny):
    from accelerate.hooks import ModelHook, add_hook_to_module

    pipe = tiny.pipe()
    with pytest.raises(SettingError, match="expected True, False, or a dict"):
        unetaccel.apply(pipe, DeepCache(), compile="max-autotune")
    add_hook_to_module(pipe.unet.conv_in, ModelHook())
    with pytest.raises(UnsupportedModelError, match=r"1 have one \(first: conv_in\).*enable_model_cpu_offload"):
        unetaccel.apply(pipe, DeepCache(), compile=True)
    with unetaccel.apply(pipe, DeepCache()):
        tiny.call(pipe)
