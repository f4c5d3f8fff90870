"""Compiled views: two graphs, no recompiles, and exportable steps."""

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils._pytree import tree_flatten, tree_unflatten

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
    with pytest.raises(SettingError, match="expected 'graphs', 'inductor'"):
        unetaccel.apply(pipe, DeepCache(), compile="max-autotune")
    with pytest.raises(SettingError, match=r"torch.compile has no 'modes'; it takes fullgraph, .*backend, mode"):
        unetaccel.apply(pipe, DeepCache(), compile={"modes": "max-autotune"})
    add_hook_to_module(pipe.unet.conv_in, ModelHook())
    with pytest.raises(UnsupportedModelError, match=r"1 have one \(first: conv_in\).*enable_model_cpu_offload"):
        unetaccel.apply(pipe, DeepCache(), compile=True)
    with unetaccel.apply(pipe, DeepCache()):
        tiny.call(pipe)


def wrapped(pipe):
    pipe.unet = torch.compile(pipe.unet)


def wrapped_forward(pipe):
    pipe.unet.forward = torch.compile(pipe.unet.forward)


def in_place(pipe):
    pipe.unet.compile()


def wrapped_block(pipe):
    pipe.unet.up_blocks[1] = torch.compile(pipe.unet.up_blocks[1])


@pytest.mark.parametrize(
    ("compiles", "message", "undo"),
    [
        (wrapped, r"U-Net was wrapped .*unet = pipe.unet._orig_mod", lambda p: setattr(p, "unet", p.unet._orig_mod)),
        (wrapped_forward, r"`forward` wrapped .*del unet.forward", lambda p: delattr(p.unet, "forward")),
        (in_place, r"in place .*_compiled_call_impl = None", lambda p: setattr(p.unet, "_compiled_call_impl", None)),
        (
            wrapped_block,
            r"up_blocks.1 was wrapped",
            lambda p: p.unet.up_blocks.insert(1, p.unet.up_blocks.pop(1)._orig_mod),
        ),
    ],
)
def test_a_compiled_unet_is_refused_with_the_way_out(tiny, compiles, message, undo):
    pipe = tiny.pipe("one-layer")
    compiles(pipe)
    with pytest.raises(UnsupportedModelError, match=message + r".*apply\(..., compile=True\)"):
        unetaccel.apply(pipe, DeepCache())
    undo(pipe)
    with unetaccel.apply(pipe, DeepCache()) as handle:
        tiny.call(pipe, steps=6)
        assert handle.summary().cached == 4


@pytest.mark.parametrize("when", ["before", "after"])
def test_compiled_transformer_blocks_run_in_both_views(tiny, when):
    pipe, counter = tiny.pipe("one-layer"), CompileCounter()
    with unetaccel.apply(pipe, DeepCache(interval=2, cut=1)):
        expected = tiny.call(pipe, steps=6)
    if when == "before":
        pipe.unet.compile_repeated_blocks(fullgraph=True, backend=counter)
    with unetaccel.apply(pipe, DeepCache(interval=2, cut=1)):
        if when == "after":
            pipe.unet.compile_repeated_blocks(fullgraph=True, backend=counter)
        assert torch.equal(tiny.call(pipe, steps=6), expected)
        graphs = counter.frame_count
        assert graphs > 0
        assert torch.equal(tiny.call(pipe, steps=6), expected)
    assert counter.frame_count == graphs


def accelerated(pipe, compile: bool | dict, calls: list) -> list:
    """What each of ``calls``, functions of the pipeline, gives while it is accelerated."""
    with unetaccel.apply(pipe, DeepCache(interval=2, cut=1), compile=compile):
        return [call(pipe) for call in calls]


def all_equal(ours: list, theirs: list) -> bool:
    return all(map(torch.equal, ours, theirs))


def all_differ(results: list) -> bool:
    return not any(torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])


BLOCKS = {"unet": {"down": 0.2, "mid": 0.6, "up": 0.4}}


@pytest.mark.parametrize("scales", [(1.0, 0.3, 0.7, 0.0, BLOCKS), ([0.3, 0.5], [0.5, 0.3], [1.0, 0.1])])
def test_two_graphs_for_any_lora_scales(tiny, scales):
    adapters = ["a", "b"] if isinstance(scales[0], list) else ["a"]
    pipe, counter = tiny.lora_pipe(*adapters), CompileCounter()

    def at(scale):
        return lambda pipe: (pipe.set_adapters(adapters, scale), tiny.call(pipe, steps=6))[1]

    eager = accelerated(pipe, False, list(map(at, scales)))
    ours = accelerated(pipe, compiled(counter), list(map(at, scales)))
    assert counter.frame_count == 2
    assert all_equal(ours, eager)
    assert all_differ(eager)


def test_two_graphs_for_any_lora_scale_of_a_call(tiny):
    unet, counter = tiny.lora_pipe("a", targets=("conv1",)).unet, CompileCounter()
    inputs, layer = tiny.inputs(unet), unet.mid_block.resnets[0].conv1
    unet.set_adapters("a", 0.9)
    results = []
    for options in (False, compiled(counter)):
        handle = unetaccel.apply(unet, DeepCache(interval=2, cut=1), compile=options)
        for scale in (0.25, 0.5, 2, None):  # powers of two: diffusers multiplies PEFT's number and divides it again
            extra = {} if scale is None else {"cross_attention_kwargs": {"scale": scale}}
            with torch.no_grad(), handle.run(5):
                results.append(torch.stack([handle.unet(**inputs, **extra)[0] for _ in range(5)]))
            assert layer.scaling == {"a": 0.9}
    assert counter.frame_count == 2
    assert all_equal(results[4:], results[:4])
    assert all_differ(results[:4])


def test_plain_runs_are_one_graph_for_any_lora_scale(tiny):
    pipe, counter = tiny.lora_pipe("a", targets=("conv1",)), CompileCounter()
    with unetaccel.apply(pipe, DeepCache(interval=1), compile=compiled(counter)):
        ours = [(pipe.set_adapters("a", s), tiny.call(pipe, steps=6))[1] for s in (0.3, 0.7)]
    assert counter.frame_count == 1
    assert all_equal(ours, [(pipe.set_adapters("a", s), tiny.call(pipe, steps=6))[1] for s in (0.3, 0.7)])


def test_steps_are_of_the_plain_unet_only(tiny):
    with unetaccel.apply(tiny.unet(), DeepCache()) as handle:
        for step in (full_step, cached_step):
            with pytest.raises(SettingError, match=r"this one is accelerated: call handle\.remove\(\)"):
                step(handle.unet, 1)


@pytest.mark.parametrize("asked", [{"mode": "max-autotune"}, {"options": {"triton.cudagraphs": True}}])
def test_results_survive_a_compiler_that_writes_them_to_the_same_memory(tiny, monkeypatch, asked):
    """CUDA graphs of its own: F has to last over calls of the other view."""

    def replayed(step, **options):
        memory = []

        def call(**inputs):
            found, spec = tree_flatten(step(**inputs))
            memory[:] = memory or [torch.empty_like(x) for x in found]
            for there, x in zip(memory, found, strict=True):
                there.copy_(x)
            return tree_unflatten(memory, spec)

        return call

    unet = tiny.unet()
    inputs, found = tiny.inputs(unet), []
    monkeypatch.setattr(torch, "compile", replayed)
    for compile in (False, asked):
        handle = unetaccel.apply(unet, DeepCache(interval=2, forecast="linear"), compile=compile)
        with torch.no_grad(), handle.run(8, timesteps=range(900, 100, -100)):
            found.append([handle.unet(**{**inputs, "sample": inputs["sample"] * i})[0] for i in range(8)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
