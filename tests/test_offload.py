"""Offloading, for real, with the CPU in both roles: the hooks move weights about exactly as they do for a GPU."""

import accelerate
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from diffusers.hooks import apply_group_offloading
from profile_cases import a_profile

import unetaccel
from unetaccel import DeepCache

CPU = torch.device("cpu")


def model_offload(pipe):
    pipe.enable_model_cpu_offload(device="cpu")  # its hooks go and come back at the end of every call


def leaf_offload(pipe):
    apply_group_offloading(pipe.unet, onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


def layerwise_casting(pipe):
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)


WAYS = [model_offload, leaf_offload, layerwise_casting]


@pytest.mark.parametrize("way", WAYS, ids=lambda w: w.__name__)
@pytest.mark.parametrize("when", ["before", "after"])
def test_repeated_calls_are_right_whatever_came_first(tiny, way, when):
    reference = tiny.pipe()
    if way is layerwise_casting:  # it rounds the weights, which is its business
        way(reference)
    plain = tiny.call(reference)
    with unetaccel.apply(reference, DeepCache(interval=3, cut=2)):
        expected = tiny.call(reference)
    pipe = tiny.pipe()
    original = pipe.unet
    if when == "before":
        way(pipe)
    handle = unetaccel.apply(pipe, DeepCache(interval=3, cut=2))
    if when == "after":
        way(pipe)
    for _ in range(3):
        assert torch.equal(tiny.call(pipe), expected)
        summary = handle.summary()
        assert summary.pattern == "F..F..F..F"
        assert summary.macs_share is not None
    handle.remove()
    assert pipe.unet is original
    assert torch.equal(tiny.call(pipe), plain)


@pytest.mark.parametrize("way", WAYS[:2], ids=lambda w: w.__name__)
def test_forecasts_and_profiles_too(tiny, way):
    """Features stay where they were made; only weights move."""
    profile = a_profile(tiny.pipe(), 10, full=4)
    for method in (DeepCache(interval=3, cut=2, forecast="newton", observe=True), profile):
        reference, pipe = tiny.pipe(), tiny.pipe()
        with unetaccel.apply(reference, method):
            expected = tiny.call(reference)
        with unetaccel.apply(pipe, method) as handle:
            way(pipe)
            assert all(torch.equal(tiny.call(pipe), expected) for _ in range(2))
            assert handle.summary().observed_error > 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_sequential_offload(tiny, when):
    """As ``enable_sequential_cpu_offload`` does to the U-Net: weights live on the meta device between uses."""
    unet = tiny.unet()
    inputs = tiny.inputs(unet)

    def run(handle):
        with torch.no_grad(), handle.run(9):
            return [handle.unet(**{**inputs, "timestep": torch.tensor(t)})[0] for t in range(900, 0, -100)]

    with unetaccel.apply(unet, DeepCache(interval=3, cut=2)) as handle:
        expected = run(handle)
    if when == "before":
        cpu_offload(unet, execution_device=CPU)
    handle = unetaccel.apply(unet, DeepCache(interval=3, cut=2))
    if when == "after":
        cpu_offload(handle.unet, execution_device=CPU)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(run(handle), expected, strict=True))
        assert handle.summary().pattern == "F..F..F.."
    assert unet.conv_in.weight.is_meta
    handle.remove()
    assert torch.equal(unet(**{**inputs, "timestep": torch.tensor(900)})[0], expected[0])


@pytest.fixture
def plain_cpu(monkeypatch):
    """diffusers asks accelerate for the device "cpu:0", which is never that of a CPU tensor; accelerate then mistakes
    each weight for one that it must copy and makes a plain tensor of it, with or without us.
    """
    monkeypatch.setattr(accelerate, "cpu_offload", lambda model, device, **options: cpu_offload(model, CPU, **options))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("controlnets", [0, 1], ids=["alone", "a_controlnet"])
def test_sequential_offload_of_a_pipeline(tiny, plain_cpu, when, controlnets):
    pipe = tiny.controlnet_pipe() if controlnets else tiny.pipe()
    options = {"image": torch.rand(1, 3, 128, 128)} if controlnets else {}

    def call():
        result = tiny.call(pipe, steps=6, **options)
        pipe.maybe_free_model_hooks()
        return result

    plain = call()
    with unetaccel.apply(pipe, DeepCache(cut=2)):
        expected = call()
    if when == "before":
        pipe.enable_sequential_cpu_offload(device="cpu")
        assert torch.equal(call(), plain)
    original = pipe.unet
    handle = unetaccel.apply(pipe, DeepCache(cut=2))
    for _ in range(2):
        if when == "after":
            pipe.enable_sequential_cpu_offload(device="cpu")  # removes the hooks that are there, if any
        assert torch.equal(call(), expected)
        assert handle.summary().pattern == "F..F.."
        assert pipe.unet.conv_in.weight.is_meta
    handle.remove()
    assert pipe.unet is original
    assert torch.equal(call(), plain)
    pipe.remove_all_hooks()
    assert not pipe.unet.conv_in.weight.is_meta
    assert torch.equal(call(), plain)


@pytest.mark.parametrize("when", ["before", "after"])
def test_model_offload_with_a_controlnet(tiny, when):
    """Its hooks make new lists of what passes them, also of residuals that are not all there."""
    pipe = tiny.controlnet_pipe()
    handle = None

    def call():
        def callback(pipe, i, t, values):
            if i == 3 and handle is not None:
                handle._engine.last._streams[0].inputs = "other"  # a full evaluation where a cached one was expected
            return values

        return tiny.call(pipe, image=torch.ones(1, 3, 128, 128), callback_on_step_end=callback)

    handle = unetaccel.apply(pipe, DeepCache(cut=2))
    expected = call()
    assert handle.summary().pattern == "F..FF.F..F"
    handle.remove()
    if when == "before":
        model_offload(pipe)
    handle = unetaccel.apply(pipe, DeepCache(cut=2))
    if when == "after":
        model_offload(pipe)
    for _ in range(2):
        assert torch.equal(call(), expected)


@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_that_are_removed_and_installed_again_after_each_call(tiny, when):
    """The life cycle that breaks the official helper, with a hook that counts."""
    from accelerate.hooks import ModelHook

    class Mover(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    pipe = tiny.pipe()
    plain = tiny.call(pipe)
    with unetaccel.apply(pipe, DeepCache(interval=3)):
        expected = tiny.call(pipe)
    original, hook = pipe.unet, Mover()
    if when == "before":
        add_hook_to_module(pipe.unet, hook)
    handle = unetaccel.apply(pipe, DeepCache(interval=3))
    if when == "after":
        add_hook_to_module(pipe.unet, hook)
    for _ in range(3):
        assert torch.equal(tiny.call(pipe), expected)
        assert handle.summary().pattern == "F..F..F..F"
        remove_hook_from_module(pipe.unet)
        add_hook_to_module(pipe.unet, hook)
    assert hook.calls == 30
    handle.remove()
    assert torch.equal(tiny.call(pipe), plain)
    assert hook.calls == 40
    remove_hook_from_module(pipe.unet)
    assert pipe.unet is original
    assert torch.equal(tiny.call(pipe), plain)
