"""Block-level group offloading: real hooks of diffusers, and weights that are really gone while they are offloaded."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.hooks import apply_group_offloading, group_offloading
from diffusers.hooks.group_offloading import ModuleGroup

import unetaccel
from unetaccel import DeepCache, SkipTuning, UnsupportedModelError

CPU = torch.device("cpu")


def offload(model, blocks: int = 1):
    apply_group_offloading(
        model, onload_device=CPU, offload_device=CPU, offload_type="block_level", num_blocks_per_group=blocks
    )


def offload_pipe(pipe, blocks: int):
    if hasattr(pipe, "enable_group_offload"):  # diffusers 0.34 has it for single models only
        return pipe.enable_group_offload(CPU, CPU, "block_level", num_blocks_per_group=blocks)
    return [offload(m, blocks) for m in pipe.components.values() if isinstance(m, torch.nn.Module)]


def tensors(group):
    own = [t for m in group.modules for t in (*m.parameters(), *m.buffers())]
    return [t for t in (*own, *group.parameters, *group.buffers) if t.is_floating_point()]


@pytest.fixture
def device(monkeypatch):
    """A device of our own: weights are NaN unless their group is loaded. Lists what is loaded, and at most was."""
    away, state = {}, SimpleNamespace(loaded=[], most=0, moves=0)

    def load(group):
        for tensor in tensors(group):
            tensor.data = away.pop(id(tensor), tensor.data)
        if group not in state.loaded:
            state.loaded.append(group)
        state.most = max(state.most, len(state.loaded))
        state.moves += 1

    def unload(group):
        for tensor in tensors(group):
            if id(tensor) not in away:
                away[id(tensor)] = tensor.data
                tensor.data = torch.full_like(tensor.data, torch.nan)
        state.loaded = [g for g in state.loaded if g is not group]

    monkeypatch.setattr(ModuleGroup, "onload_", load)
    monkeypatch.setattr(ModuleGroup, "offload_", unload)
    monkeypatch.setattr(ModuleGroup, "__eq__", object.__eq__, raising=False)
    return state


def loop(handle, inputs, device=None) -> list[torch.Tensor]:
    outputs = []
    with torch.no_grad(), handle.run(3):  # full, cached, cached
        for t in (600, 500, 400):
            outputs.append(handle.unet(**{**inputs, "timestep": torch.tensor(t)})[0])
            assert device is None or not device.loaded, "everything is sent away after each evaluation"
    return outputs


def test_the_device_bites(tiny, device):
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    expected = unet(**inputs)[0]
    offload(unet)
    assert torch.equal(unet(**inputs)[0], expected)
    assert not torch.isfinite(unet.conv_in(inputs["sample"])).any()
    assert not torch.isfinite(type(unet).forward(unet, **inputs)[0]).any()


def check(tiny, device, architecture, cut, blocks):
    unet = tiny.unet(architecture)
    inputs, method = tiny.inputs(unet), DeepCache(interval=3, cut=cut, force=True)
    expected = loop(unetaccel.apply(unet, method), inputs)
    offload(unet, blocks)
    outputs = loop(unetaccel.apply(unet, method), inputs, device)
    assert all(map(torch.equal, outputs, expected))
    assert not torch.equal(outputs[1], unet(**{**inputs, "timestep": torch.tensor(500)})[0]), "nothing was cached"
    assert device.most == 2, "one group of blocks at a time, beside the layers that belong to none"


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("cut", range(12))
def test_every_cut(tiny, device, cut, blocks):
    check(tiny, device, "sd-4-levels", cut, blocks)


@pytest.mark.parametrize("cut", [1, 3])
def test_every_kind_of_unet(tiny, device, architecture, cut):
    check(tiny, device, architecture, cut, blocks=2)


@pytest.mark.parametrize("where", ["shortcut", "norm_out"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_weights_that_go_away_are_not_folded(tiny, device, when, where):
    """A copy would lie where the weights are between evaluations, not where they are used."""
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    with unetaccel.apply(unet, SkipTuning(0.5, where=where)) as handle:
        expected = handle.unet(**inputs)[0]
    if when == "before":
        offload(unet)
    handle = unetaccel.apply(unet, SkipTuning(0.5, where=where, backend="fold"))
    if when == "after":
        offload(unet)
    assert torch.allclose(handle.unet(**inputs)[0], expected, rtol=1e-4, atol=1e-5)


def options(controlnets: int) -> dict:
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    return {0: {}, 1: {"image": image}, 2: {"image": [image, 1 - image]}}[controlnets]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("controlnets", [0, 1, 2], ids=["alone", "a_controlnet", "two_controlnets"])
@pytest.mark.parametrize("blocks", [1, 2], ids=["group_offload_by_block", "group_offload_by_two_blocks"])
def test_whole_pipelines(tiny, device, when, controlnets, blocks):
    """``pipe.enable_group_offload``, with everything that diffusers does to it between two calls."""
    cut, pipe = 2, tiny.controlnet_pipe(controlnets) if controlnets else tiny.pipe()

    def call():
        result = tiny.call(pipe, steps=6, **options(controlnets))
        pipe.maybe_free_model_hooks()
        assert not device.loaded
        return result

    plain = call()
    with unetaccel.apply(pipe, DeepCache(cut=cut)):
        expected = call()
    if when == "before":
        offload_pipe(pipe, blocks)
        assert torch.equal(call(), plain)
    original = pipe.unet
    handle = unetaccel.apply(pipe, DeepCache(cut=cut))
    if when == "after":
        offload_pipe(pipe, blocks)
    for _ in range(2):
        assert torch.equal(call(), expected)
        assert handle.summary().pattern == "F..F.."
        for model in (pipe.unet, getattr(pipe, "controlnet", pipe.unet)):  # as diffusers does when a LoRA comes or goes
            getattr(group_offloading, "_maybe_remove_and_reapply_group_offloading", lambda _: None)(model)
    assert torch.equal(call(), expected)
    handle.remove()
    assert pipe.unet is original
    assert torch.equal(call(), plain)


def test_hooks_that_go_while_applied(tiny, device):
    pipe = tiny.pipe()
    expected = [tiny.call(pipe)]
    handle = unetaccel.apply(pipe, DeepCache(cut=4))
    expected.append(tiny.call(pipe))
    offload(pipe.unet, 2)
    assert torch.equal(tiny.call(pipe), expected[1])
    for group in {h.hooks["group_offloading"].group for h in map(registry, pipe.unet.modules()) if h}:
        group.onload_()
    pipe.unet._diffusers_hook.remove_hook("group_offloading", recurse=True)
    device.moves = 0
    assert torch.equal(tiny.call(pipe), expected[1])
    handle.remove()
    assert torch.equal(tiny.call(pipe), expected[0])
    assert device.moves == 0


def registry(module):
    return module.__dict__.get("_diffusers_hook")


def test_two_pipelines_on_one_offloaded_unet(tiny, device):
    first, second = tiny.pipe(), tiny.pipe()
    second.unet = first.unet
    settings = {first: DeepCache(interval=2, cut=1), second: DeepCache(interval=5, cut=4)}
    expected = []
    for pipe, method in settings.items():
        with unetaccel.apply(pipe, method):
            expected.append(tiny.call(pipe))
    handles = [unetaccel.apply(pipe, method) for pipe, method in settings.items()]
    offload(first.unet)
    assert all(torch.equal(tiny.call(p), e) for p, e in zip([*settings] * 2, expected * 2, strict=True))
    [h.remove() for h in handles]
    assert first.unet is second.unet


def test_an_exception_leaves_the_next_call_right(tiny, device):
    pipe = tiny.pipe()
    unetaccel.apply(pipe, DeepCache(cut=1))
    offload(pipe.unet)
    expected, count = tiny.call(pipe), [0]

    def fail(*_):
        count[0] += 1
        if count[0] in (4, 6):  # full, then cached in the call after
            raise RuntimeError("stop")

    hook = pipe.unet.up_blocks[-1].resnets[-1].register_forward_hook(fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="stop"):
            tiny.call(pipe)
    hook.remove()
    assert torch.equal(tiny.call(pipe), expected)
    assert not device.loaded


def streamed(model):
    """As ``use_stream=True`` would lay it, which diffusers does on accelerators only."""
    offload(model)
    model.up_blocks[0]._diffusers_hook.hooks["group_offloading"].group.stream = object()


@pytest.mark.parametrize("method", [DeepCache(), SkipTuning(0.8)], ids=["cache", "skips"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_prefetching_is_refused_with_the_way_out(tiny, device, when, method):
    pipe = tiny.pipe()
    plain = tiny.call(pipe)
    handle = unetaccel.apply(pipe, method) if when == "after" else None
    streamed(pipe.unet)
    with pytest.raises(UnsupportedModelError, match=r"up_blocks\.0 is group offloaded with use_stream=True.*=False"):
        tiny.call(pipe) if handle else unetaccel.apply(pipe, method)
    if handle:
        handle.remove()
    pipe.unet.up_blocks[0]._diffusers_hook.hooks["group_offloading"].group.stream = None
    assert torch.equal(tiny.call(pipe), plain)
