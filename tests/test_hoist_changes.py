"""The hoisted entry of a model that changes: constants are never stale, and everything is put back."""

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from hoist_cases import assert_close, constants_made, outputs

import unetaccel
from unetaccel import DeepCache

CPU = torch.device("cpu")


@pytest.fixture
def made(monkeypatch):
    """The batch size of each feature that constants were made of."""
    return constants_made(monkeypatch)


def test_inference_mode_before_and_after(tiny, made):
    """Nothing that is kept with the views was made in inference mode, or it could not be used outside it."""
    unet = tiny.unet()
    inputs, found = tiny.inputs(unet), []
    handle = unetaccel.apply(unet, DeepCache(3, force=True), precompute=True)
    for around in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with around(), handle.run(3):
            found.append([handle.unet(**inputs)[0] for _ in range(3)])
    assert all(map(torch.equal, found[0], found[1]))
    assert len(made) == 3


@pytest.mark.parametrize("part", ["norm1", "conv1", "conv_shortcut"])
def test_weights_that_change_within_a_call_are_followed(tiny, made, part):
    """Between two cached evaluations of one feature: what was made of it is made anew, by the new weights."""
    found = []
    for precompute in (True, False):
        unet = tiny.unet()
        weight = getattr(unet.up_blocks[-1].resnets[-1], part).weight
        found.append(
            outputs(
                tiny, unet, interval=4, precompute=precompute, between=lambda i, w=weight: w.mul_(3) if i == 2 else None
            )
        )
    assert_close(*found)
    assert len(made) == 3, "anew after the change"
    untouched = outputs(tiny, tiny.unet(), interval=4)
    assert not torch.allclose(found[1][2], untouched[2], rtol=1e-2, atol=1e-2)


def test_weights_that_change_between_calls_without_a_mark_are_followed(tiny, made):
    """diffusers' ``EMAModel`` writes through ``.data``: same storage, same version."""
    pipe, other, method = tiny.pipe("one-layer"), tiny.unet("one-layer", seed=1), DeepCache(3, force=True)
    with unetaccel.apply(pipe, method, precompute=True):
        tiny.call(pipe, steps=3)
        for p, new in zip(pipe.unet.parameters(), other.parameters(), strict=True):
            p.data.copy_(new.data)
        ours = tiny.call(pipe, steps=3)
    with unetaccel.apply(pipe, method):
        torch.testing.assert_close(ours, tiny.call(pipe, steps=3), rtol=1e-4, atol=1e-4)
    assert len(made) == 2


def test_an_adapter_that_comes_between_calls_ends_it(tiny, made):
    from peft import LoraConfig

    pipe, method = tiny.pipe("one-layer"), DeepCache(3, force=True)
    with unetaccel.apply(pipe, method, precompute=True) as handle:
        tiny.call(pipe, steps=3)
        torch.manual_seed(0)
        handle._engine.original.add_adapter(LoraConfig(r=2, target_modules=["conv1"], init_lora_weights=False))
        adapted = tiny.call(pipe, steps=3)
        [views] = handle._engine._idle
        assert "its conv1 was exchanged (it is a Conv2d of peft.tuners.lora.layer)" in views.unhoisted
    assert len(made) == 1
    with unetaccel.apply(pipe, method):
        assert torch.equal(adapted, tiny.call(pipe, steps=3))


def _group_offload(kind):
    return lambda pipe: apply_group_offloading(
        pipe.unet, onload_device=CPU, offload_device=CPU, offload_type=kind, num_blocks_per_group=1
    )


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("way", "why"),
    [
        (lambda pipe: pipe.enable_model_cpu_offload(device="cpu"), None),
        (_group_offload("leaf_level"), "its norm1 is quantised, hooked or offloaded"),
        (_group_offload("block_level"), "its block has offload hooks"),
        (
            lambda pipe: pipe.unet.enable_layerwise_casting(torch.float16, torch.float32),
            "its conv1 is quantised, hooked",
        ),
    ],
    ids=["model", "leaves", "blocks", "casting"],
)
def test_weights_that_are_elsewhere_are_left_there(tiny, made, when, way, why):
    found = []
    for precompute in (True, False):
        pipe = tiny.pipe()
        if when == "before":
            way(pipe)
        handle = unetaccel.apply(pipe, DeepCache(3, force=True), precompute=precompute)
        if when == "after":
            way(pipe)
        found += [tiny.call(pipe, steps=4), tiny.call(pipe, steps=4)]
        if precompute:
            [views] = handle._engine._idle
            assert views.unhoisted is None if why is None else why in views.unhoisted
    for ours in found[:2]:
        torch.testing.assert_close(ours, found[-1], rtol=1e-4, atol=1e-4 if why is None else 0)
    assert bool(made) == (why is None)


def test_what_is_kept_is_counted_and_let_go(tiny):
    pipe, kept = tiny.pipe(), []
    for options in ({"precompute": True}, {}):
        with unetaccel.apply(pipe, DeepCache(3, force=True), **options) as handle:
            tiny.call(pipe, steps=4)
            kept.append(handle.summary().cached_bytes)
            assert not handle._engine.last._streams
    feature, constants = (2 * c * 16 * 16 * 4 for c in (16, 2 * 16))
    assert kept == [feature + constants, feature]


def test_a_pipeline_is_put_back_as_it_was(tiny, made):
    pipe = tiny.pipe("one-layer")
    before, plain = tiny.snapshot(pipe), tiny.call(pipe, steps=6)
    with unetaccel.apply(pipe, DeepCache(3), precompute=True) as handle:
        spy = tiny.Spy(pipe.unet)
        ours = tiny.call(pipe, steps=6)
        assert spy.stop() == "F..F.."
        [views] = handle._engine._idle
        assert views.port.parts is views.port.constants is views.port.feature is None
    assert len(made) == 2
    with unetaccel.apply(pipe, DeepCache(3)):
        torch.testing.assert_close(ours, tiny.call(pipe, steps=6), rtol=1e-3, atol=1e-3)
    after = tiny.snapshot(pipe)
    for what in ("unet", "modules", "tensors", "bytes"):
        assert after[what] == before[what]
    assert torch.equal(tiny.call(pipe, steps=6), plain)
