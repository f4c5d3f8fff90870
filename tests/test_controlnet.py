"""ControlNets do less on cached evaluations, and the result is bit for bit that of running them in full."""

import pytest
import torch
from diffusers import ControlNetModel

import unetaccel
from unetaccel import DeepCache
from unetaccel.controlnet import truncated
from unetaccel.timeline import Timeline


def options(count: int) -> dict:
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    if count == 1:
        return {"image": image, "controlnet_conditioning_scale": 0.7}
    return {"image": [image, 1 - image], "controlnet_conditioning_scale": [0.7, 0.4]}


class Counter:
    """Counts the runs of a module."""

    def __init__(self, module):
        self.count = 0
        self._hook = module.register_forward_hook(self._seen)

    def _seen(self, *_):
        self.count += 1

    def stop(self) -> int:
        self._hook.remove()
        return self.count


def in_full(pipe, call):
    """The same accelerated call with the ControlNet running whole at every evaluation."""
    face = pipe.controlnet
    object.__setattr__(pipe, "controlnet", face._unetaccel.original)
    try:
        return call()
    finally:
        object.__setattr__(pipe, "controlnet", face)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("cut", [0, 1, 3, 5, 8])
def test_equal_to_running_in_full(tiny, count, cut):
    pipe = tiny.controlnet_pipe(count)
    original = pipe.controlnet
    deepest = (original if count == 1 else original.nets[1]).mid_block
    plain = tiny.call(pipe, **options(count))
    handle = unetaccel.apply(pipe, DeepCache(interval=3, cut=cut))
    counter = Counter(deepest)
    ours = tiny.call(pipe, **options(count))
    assert counter.stop() == 4, "the deep half runs at the four full evaluations only"
    assert handle.summary().pattern == "F..F..F..F"
    assert torch.equal(ours, in_full(pipe, lambda: tiny.call(pipe, **options(count))))
    assert not torch.equal(ours, plain)
    assert not torch.equal(
        ours,
        tiny.call(
            pipe, **{**options(count), "controlnet_conditioning_scale": [0.0, 0.0][:count] if count == 2 else 0.0}
        ),
    )
    handle.remove()
    assert pipe.controlnet is original
    assert torch.equal(tiny.call(pipe, **options(count)), plain)


def test_every_cut_of_a_truncated_view(tiny):
    """Residual for residual, the view makes what the whole ControlNet makes."""
    unet = tiny.unet()
    net, inputs = tiny.controlnet(unet), tiny.inputs(unet)
    inputs |= {"controlnet_cond": torch.rand(2, 3, 128, 128), "conditioning_scale": 0.6}
    whole, _ = net(**inputs)
    for b in range(9):
        part, mid = truncated(net, b)(**inputs)
        assert len(part) == b + 1
        assert all(torch.equal(x, y) for x, y in zip(part, whole, strict=False))
        assert mid.ndim == 0


def test_guess_mode_runs_in_full(tiny):
    pipe = tiny.controlnet_pipe()
    with unetaccel.apply(pipe, DeepCache(interval=3)):
        counter = Counter(pipe.controlnet.mid_block)
        ours = tiny.call(pipe, guess_mode=True, **options(1))
        assert counter.stop() == 10
        assert torch.equal(ours, in_full(pipe, lambda: tiny.call(pipe, guess_mode=True, **options(1))))


def test_a_forced_full_evaluation_gets_all_residuals(tiny):
    """The text gets shorter after step 3: the U-Net must run in full though the ControlNet had been shortened."""

    def shorten(pipe, i, t, values):
        if i == 3:
            values["prompt_embeds"] = values["prompt_embeds"][:, :5]
        return values

    extra = {"callback_on_step_end": shorten, "callback_on_step_end_tensor_inputs": ["prompt_embeds"], **options(1)}
    pipe = tiny.controlnet_pipe()
    with unetaccel.apply(pipe, DeepCache(interval=5, cut=1)) as handle:
        ours = tiny.call(pipe, **extra)
        assert handle.summary().pattern == "F...FF...."
        assert torch.equal(ours, in_full(pipe, lambda: tiny.call(pipe, **extra)))


def test_a_call_that_turns_plain_gets_all_residuals(tiny):
    """The ControlNet was shortened before the U-Net noticed that the pipeline steps twice at one timestep."""
    pipe = tiny.controlnet_pipe()
    unet, net = pipe.unet, pipe.controlnet
    t, text, image = torch.tensor(500), torch.ones(1, 7, 32), torch.rand(1, 3, 128, 128)

    def evaluate(unet, net, x):
        down, mid = net(x, t, text, controlnet_cond=image, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return len(down), unet(x, t, text, **residuals, return_dict=False)[0]

    handle = unetaccel.apply(pipe, DeepCache(interval=3, cut=1))
    with handle._engine.run(lambda: Timeline(6)) as run:
        evaluate(pipe.unet, pipe.controlnet, torch.ones(1, 4, 16, 16))
        run.step()
        with pytest.warns(UserWarning, match="several scheduler steps"):
            shortened, ours = evaluate(pipe.unet, pipe.controlnet, torch.zeros(1, 4, 16, 16))
    whole, expected = evaluate(unet, net, torch.zeros(1, 4, 16, 16))
    assert (shortened, whole) == (2, 9)
    assert torch.equal(ours, expected)


def test_residuals_made_in_full_are_left_alone(tiny):
    """At the deepest cut a shortened ControlNet makes as many residuals as a whole one."""
    pipe, deepest = tiny.controlnet_pipe(), 8
    unet, net = pipe.unet, pipe.controlnet
    text, image = torch.ones(1, 7, 32), torch.rand(1, 3, 128, 128)

    def evaluate(unet, net, x, t):
        t = torch.tensor(t)
        down, mid = net(x, t, text, controlnet_cond=image, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return unet(x, t, text, **residuals, return_dict=False)[0]

    other = torch.full((1, 4, 16, 16), 0.3)
    handle = unetaccel.apply(pipe, DeepCache(interval=3, cut=deepest))
    with handle._engine.run(lambda: Timeline(6)) as run:
        evaluate(pipe.unet, pipe.controlnet, torch.ones(1, 4, 16, 16), 500)
        run.step()
        evaluate(pipe.unet, pipe.controlnet, torch.zeros(1, 4, 16, 16), 400)  # cached, beside a shortened ControlNet
        ours = evaluate(pipe.unet, net, other, 400)  # a second stream begins, with a ControlNet that ran whole
    assert handle._engine.report().kinds == [[True, False], [True]]
    assert torch.equal(ours, evaluate(unet, net, other, 400))


def test_control_that_starts_and_stops(tiny):
    pipe = tiny.controlnet_pipe()
    window = {"control_guidance_start": 0.2, "control_guidance_end": 0.6, **options(1)}
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=2)):
        assert torch.equal(tiny.call(pipe, **window), in_full(pipe, lambda: tiny.call(pipe, **window)))


def test_the_face_is_a_controlnet_and_changes_show(tiny, tmp_path):
    pipe = tiny.controlnet_pipe()
    original = pipe.controlnet
    with unetaccel.apply(pipe, DeepCache(cut=1)):
        assert isinstance(pipe.controlnet, ControlNetModel)
        assert pipe.config["controlnet"] == ("diffusers", "ControlNetModel")
        first = tiny.call(pipe, **options(1))
        pipe.controlnet.conv_in = torch.nn.Conv2d(4, 16, 3, padding=1).requires_grad_(False)
        second = tiny.call(pipe, **options(1))
        assert not torch.equal(first, second)
        assert torch.equal(second, in_full(pipe, lambda: tiny.call(pipe, **options(1))))
    assert pipe.controlnet is original


def test_replacing_restores_the_first_originals(tiny):
    pipe = tiny.controlnet_pipe()
    originals = pipe.unet, pipe.controlnet
    unetaccel.apply(pipe, DeepCache(interval=2))
    second = unetaccel.apply(pipe, DeepCache(interval=5, cut=3), replace=True)
    tiny.call(pipe, **options(1))
    assert second.summary().pattern == "F....F...."
    second.remove()
    assert (pipe.unet, pipe.controlnet) == originals
