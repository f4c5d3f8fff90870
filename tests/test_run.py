"""Rules 3, 4 and 5: state belongs to one sampling call."""

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from pipeline_cases import Case, image, learned_variance
from torch.utils._python_dispatch import TorchDispatchMode

import unetaccel
from unetaccel import DeepCache, SettingError
from unetaccel.run import MAX_STREAMS
from unetaccel.timeline import Timeline


def stored(handle):
    """Features alive in the handle's latest run."""
    return [f for s in handle._engine.last._streams for f in s.ring.values()]


def kinds(handle):
    return handle._engine.report().kinds


def test_two_pass_guidance_has_two_streams(tiny):
    """Separate unconditional and conditional calls give what one batched call gives."""
    unet = tiny.unet()
    handle = unetaccel.apply(unet, DeepCache(interval=3, cut=1))
    inputs = tiny.inputs(unet)
    timesteps = range(900, 0, -100)
    with handle.run(9):
        batched = [handle.unet(**{**inputs, "timestep": t})[0] for t in timesteps]
    halves = [
        {
            **inputs,
            "sample": inputs["sample"][i : i + 1],
            "encoder_hidden_states": inputs["encoder_hidden_states"][i : i + 1],
        }
        for i in (0, 1)
    ]
    with handle.run(9, streams=2):
        separate = [torch.cat([handle.unet(**{**half, "timestep": t})[0] for half in halves]) for t in timesteps]
    summary = handle.summary()
    assert summary.patterns == ("F..F..F..", "F..F..F..")
    for one, two in zip(batched, separate, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    feature_bytes = 16 * 16 * 16 * 4  # one F: channels, height, width, float32
    assert summary.cached_bytes == 2 * feature_bytes


def test_pipelines_that_call_twice_per_step_are_noticed(tiny):
    pipe = tiny.pipe()

    class TwoPass(type(pipe)):
        def __call__(self, *args, **kwargs):
            scheduler = self.scheduler
            scheduler.set_timesteps(6)
            x = torch.ones(1, 4, 16, 16)
            for t in scheduler.timesteps:
                conditions = (torch.zeros(1, 7, 32), torch.ones(1, 7, 32))
                negative, positive = (self.unet(x, t, c)[0] for c in conditions)
                x = scheduler.step(positive + 2 * (positive - negative), t, x).prev_sample
            return x

    pipe.__class__ = TwoPass
    with torch.no_grad(), unetaccel.apply(pipe, DeepCache(interval=3)) as handle:
        pipe()
        assert handle.summary().patterns == ("F..F..", "F..F..")
        assert handle.summary().streams == 2


def two_pass(unet, run, plan):
    """Guided steps; ``plan`` says for each step which of the two conditions are called."""
    x = torch.ones(1, 4, 16, 16)
    conditions = {"u": torch.zeros(1, 7, 32), "c": torch.ones(1, 7, 32)}
    outputs = []
    for i, names in enumerate(plan):
        outputs.append([unet(x, torch.tensor(900 - 50 * i), conditions[name], return_dict=False)[0] for name in names])
        run.step()
    return outputs


def test_a_stream_that_stops_does_not_leave_its_feature_to_another(tiny):
    """From step 2 on only the conditional call is made: it must not reuse the unconditional feature."""
    unet = tiny.unet()
    handle = unetaccel.apply(unet, DeepCache(interval=8))
    with handle._engine.run(lambda: Timeline(8)) as run:
        outputs = two_pass(handle.unet, run, ["uc", "uc", "c", "c", "c"])
    expected = unet(torch.ones(1, 4, 16, 16), torch.tensor(800), torch.ones(1, 7, 32), return_dict=False)[0]
    assert torch.equal(outputs[2][0], expected), "a full evaluation, not one on the other stream's feature"
    assert kinds(handle)[0] == [True, False, True, True, False]


def test_pipelines_that_step_several_times_at_one_timestep_run_plain(tiny):
    """As panorama pipelines do, once for each part of the picture."""
    pipe = tiny.pipe()

    class Panorama(type(pipe)):
        def __call__(self):
            self.scheduler.set_timesteps(6)
            x = torch.ones(1, 4, 16, 16)
            for t in self.scheduler.timesteps:
                for view in range(3):
                    noise = self.unet(x + view, t, torch.zeros(1, 7, 32))[0]
                    self.scheduler.step(noise, t, x)

    pipe.__class__ = Panorama
    with torch.no_grad(), unetaccel.apply(pipe, DeepCache(interval=3)) as handle:
        spy = tiny.Spy(handle.unet)
        with pytest.warns(UserWarning, match="several scheduler steps at one timestep"):
            pipe()
        assert spy.stop() == "F" * 18
        assert "several scheduler steps" in handle.summary().plain_because


def test_two_loops_of_one_handle_in_one_thread_are_refused(tiny):
    unet = tiny.unet()
    handle = unetaccel.apply(unet, DeepCache(interval=3))
    with handle.run(6), pytest.raises(SettingError, match="open already in this thread"):
        handle.run(6)
    with handle.run(6):
        handle.unet(**tiny.inputs(unet))


def test_calls_without_a_step_between_them_are_not_streams_for_ever(tiny):
    unet = tiny.unet()
    handle = unetaccel.apply(unet, DeepCache(interval=2))
    inputs = tiny.inputs(unet)
    with handle._engine.run(lambda: Timeline(6)):
        outputs = [handle.unet(**inputs)[0] for _ in range(20)]
        assert len(stored(handle)) == MAX_STREAMS
    assert all(torch.equal(o, outputs[0]) for o in outputs)


def test_what_is_known_of_a_call_before_it_starts(tiny):
    pipe = tiny.pipe()
    image = torch.rand(1, 3, 128, 128)
    img2img = StableDiffusionImg2ImgPipeline(
        **{**pipe.components, "image_encoder": None}, requires_safety_checker=False
    )
    img2img.set_progress_bar_config(disable=True)
    with unetaccel.apply(img2img, DeepCache(interval=4, tail=2)) as handle:
        tiny.call(img2img, steps=20, image=image, strength=0.5, height=None, width=None)
        assert handle.summary().pattern == "F...F...FF", "the tail is that of the ten evaluations that run"
    seen = []

    def rule(i, timestep, sigma, T):
        seen.append(timestep)
        return False

    with unetaccel.apply(img2img, DeepCache(schedule=rule)):
        tiny.call(img2img, steps=20, image=image, strength=0.5, height=None, width=None)
    assert seen == [float(t) for t in img2img.scheduler.timesteps[11:]]


@pytest.mark.parametrize("cls", ["IFImg2ImgPipeline", "IFInpaintingPipeline"])
def test_what_is_known_where_only_the_pipeline_knows(tiny, cls):
    """Neither the scheduler nor ``_num_timesteps`` says how many steps the strength leaves, but ``get_timesteps`` does."""
    picture = {"image": image(size=16)} | ({"mask_image": torch.ones(1, 1, 16, 16)} if "Inpaint" in cls else {})
    case = Case(
        cls,
        "deepfloyd",
        parts=learned_variance,
        call={"output_type": "pt", "num_inference_steps": 20, "strength": 0.5, **picture},
    )
    pipe, call = case.build(tiny)
    with unetaccel.apply(pipe, DeepCache(interval=4, tail=2)) as handle:
        for _ in range(2):
            call()
            assert handle.summary().pattern == "F...F...FF"
    assert "get_timesteps" not in vars(pipe)


def test_memory_is_one_feature_per_stream(tiny):
    pipe = tiny.pipe()
    for cut, (channels, side) in {0: (16, 16), 2: (32, 16), 5: (32, 8)}.items():
        with unetaccel.apply(pipe, DeepCache(cut=cut)) as handle:
            tiny.call(pipe, batch=2)
            assert handle.summary().cached_bytes == 2 * 2 * channels * side * side * 4  # batch, guidance


CHANGES = {
    "batch": lambda i: {k: v[:1] if isinstance(v, torch.Tensor) and v.ndim > 0 else v for k, v in i.items()},
    "size": lambda i: {**i, "sample": torch.cat([i["sample"]] * 2, dim=-1)},
    "dtype": lambda i: {**i, "sample": i["sample"].double()},
    "controlnet": lambda i: {
        **i,
        "mid_block_additional_residual": torch.zeros(()),
        "down_block_additional_residuals": [torch.zeros(())] * 9,
    },
    "context": lambda i: {**i, "encoder_hidden_states": i["encoder_hidden_states"][:, :5]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_within_a_run_force_a_full_evaluation(tiny, change):
    unet = tiny.unet()
    handle = unetaccel.apply(unet, DeepCache(interval=8))
    before, after = tiny.inputs(unet), CHANGES[change](tiny.inputs(unet))
    if change == "dtype":  # the model must follow its input
        before, after, unet = after, before, unet.double()
        before = {
            k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in before.items()
        }
    with handle.run(8):
        for _ in range(3):
            handle.unet(**before)
        if change == "dtype":
            unet.float()
        output = handle.unet(**after)[0]
        handle.unet(**after)
    assert kinds(handle) == [[True, False, False, True, False]]
    assert torch.equal(output, unet(**after)[0])


def test_invalidate_forces_a_full_evaluation(tiny):
    pipe = tiny.pipe()
    handle = unetaccel.apply(pipe, DeepCache(interval=5))

    def callback(pipe, i, t, values):
        if i == 2:
            handle.invalidate()
        return values

    tiny.call(pipe, callback_on_step_end=callback)
    assert handle.summary().pattern == "F..F.F...."


def test_guidance_that_stops_half_way(tiny):
    """``callback_on_step_end`` halves the batch, as diffusers' SDXLCFGCutoffCallback does."""
    pipe = tiny.pipe()

    def cut_off(pipe, i, t, values):
        if i == 3:
            pipe._guidance_scale = 0.0
            values["prompt_embeds"] = values["prompt_embeds"][-1:]
        return values

    with unetaccel.apply(pipe, DeepCache(interval=5)) as handle:
        tiny.call(pipe, callback_on_step_end=cut_off, callback_on_step_end_tensor_inputs=["prompt_embeds"])
        assert handle.summary().pattern == "F...FF...."


def test_more_evaluations_than_planned_are_full(tiny):
    unet = tiny.unet()
    handle = unetaccel.apply(unet, DeepCache(interval=2, force=True))
    inputs = tiny.inputs(unet)
    with handle.run(2):
        for _ in range(4):
            handle.unet(**inputs)
    assert kinds(handle) == [[True, False, True, True]]


def test_runs_nest(tiny):
    pipe = tiny.pipe()
    handle = unetaccel.apply(pipe, DeepCache(interval=3, cut=1))
    alone = [tiny.call(pipe, seed=s) for s in (0, 5)]
    inner = []

    def callback(pipe_, i, t, values):
        if i == 4:
            inner.append(tiny.call(other, seed=5))
        return values

    other = tiny.pipe()
    with unetaccel.apply(other, DeepCache(interval=3, cut=1)):
        assert torch.equal(tiny.call(pipe, callback_on_step_end=callback), alone[0])
    assert torch.equal(inner[0], alone[1])
    handle.remove()


class NoReads(TorchDispatchMode):
    """Fails on every read of a tensor's value by the host: item(), tolist(), bool(), float(), nonzero()."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.equal.default,
        ):
            raise AssertionError(f"host read: {func}")
        return func(*args, **(kwargs or {}))


def test_no_host_read_in_a_run(tiny):
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    handle = unetaccel.apply(unet, DeepCache(interval=3, cut=4))
    with NoReads(), pytest.raises(AssertionError, match="host read"):
        inputs["timestep"].item()  # the check bites
    with NoReads(), handle.run(9):
        for _ in range(9):
            handle.unet(**inputs)
    assert handle.summary().pattern == "F..F..F.."


def test_runs_work_where_no_value_can_be_read(tiny):
    """On the meta device tensors have no values at all."""
    unet = tiny.unet().to("meta")
    inputs = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in tiny.inputs(unet).items()}
    handle = unetaccel.apply(unet, DeepCache(interval=3, cut=4))
    with handle.run(9):
        for _ in range(9):
            handle.unet(**inputs)
    assert handle.summary().pattern == "F..F..F.."


def test_outside_a_run_it_is_plain_and_says_so_once(tiny):
    unet = tiny.unet()
    handle = unetaccel.apply(unet, DeepCache())
    inputs = tiny.inputs(unet)
    with pytest.warns(UserWarning, match="outside a sampling call and runs plain") as caught:
        outputs = [handle.unet(**inputs)[0] for _ in range(3)]
    assert len(caught) == 1
    assert all(torch.equal(o, unet(**inputs)[0]) for o in outputs)
