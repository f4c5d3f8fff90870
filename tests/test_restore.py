"""Rule 1: removal is exact, apply is all-or-nothing. Rule 2, in part: the accelerated U-Net is the same kind of thing."""

import copy
import json
import pickle

import pytest
import torch
from DeepCache import DeepCacheSDHelper
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

import unetaccel
from unetaccel import AlreadyAppliedError, DeepCache, SettingError, UnsupportedModelError


def test_removal_restores_everything(tiny):
    pipe = tiny.pipe()
    plain = tiny.call(pipe)
    before = tiny.snapshot(pipe)
    handle = unetaccel.apply(pipe, DeepCache(interval=3, cut=4))
    cached = tiny.call(pipe)
    handle.remove()
    after = tiny.snapshot(pipe)
    assert {k: after[k] == before[k] for k in before} == dict.fromkeys(before, True)
    assert torch.equal(tiny.call(pipe), plain)
    assert not torch.equal(cached, plain)


def test_the_snapshot_bites(tiny):
    """The official helper leaves a ``forward`` on every module it wrapped."""
    pipe = tiny.pipe("sd-4-levels")
    before = tiny.snapshot(pipe)
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3)
    helper.enable()
    assert tiny.snapshot(pipe)["modules"] != before["modules"]
    helper.disable()
    assert tiny.snapshot(pipe)["modules"] != before["modules"]
    pipe.unet.conv_in.weight.add_(0)
    assert tiny.snapshot(pipe)["tensors"] != before["tensors"]


def test_removal_after_an_exception_inside_with(tiny):
    pipe = tiny.pipe()
    before = tiny.snapshot(pipe)
    with pytest.raises(RuntimeError, match="stop"), unetaccel.apply(pipe, DeepCache()):
        raise RuntimeError("stop")
    assert tiny.snapshot(pipe) == before


def test_remove_twice_is_harmless_and_does_not_touch_a_later_apply(tiny):
    pipe = tiny.pipe()
    unet = pipe.unet
    first = unetaccel.apply(pipe, DeepCache())
    first.remove()
    second = unetaccel.apply(pipe, DeepCache(interval=2))
    first.remove()
    assert pipe.unet is second.unet
    assert second.is_applied
    assert not first.is_applied
    second.remove()
    assert pipe.unet is unet


def test_a_second_apply_needs_replace(tiny):
    pipe = tiny.pipe()
    tiny.call(pipe)  # pipelines keep notes of their last call
    before = tiny.snapshot(pipe)
    first = unetaccel.apply(pipe, DeepCache(interval=2))
    with pytest.raises(AlreadyAppliedError, match=r"DeepCache\(interval=2, cut=0\).*replace=True"):
        unetaccel.apply(pipe, DeepCache(interval=5))
    assert first.is_applied
    with pytest.raises(SettingError):
        unetaccel.apply(pipe, DeepCache(cut=99), replace=True)
    assert first.is_applied, "a failed replacement gives nothing up"
    second = unetaccel.apply(pipe, DeepCache(interval=5), replace=True)
    assert not first.is_applied
    tiny.call(pipe)
    assert second.summary().pattern == "F....F...."
    second.remove()
    after = tiny.snapshot(pipe)
    assert (after["unet"], after["modules"], after["pipe"][0]) == (before["unet"], before["modules"], before["pipe"][0])


@pytest.mark.parametrize(
    "methods", [(DeepCache(cut=99),), (DeepCache(), DeepCache()), ("deepcache",), (DeepCache(cut="paper:0"),)]
)
def test_a_failed_apply_leaves_nothing_applied(tiny, methods):
    pipe = tiny.pipe()
    before = tiny.snapshot(pipe)
    with pytest.raises(SettingError):
        unetaccel.apply(pipe, *methods)
    assert tiny.snapshot(pipe) == before


def test_a_model_patched_by_the_official_helper_is_refused(tiny):
    pipe = tiny.pipe("sd-4-levels")
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3)
    helper.enable()
    with pytest.raises(UnsupportedModelError, match=r"replaced `forward`.*DeepCacheSDHelper.disable\(\)"):
        unetaccel.apply(pipe, DeepCache())
    helper.disable()
    with unetaccel.apply(pipe, DeepCache(cut=4)) as handle:
        tiny.call(pipe)
        assert handle.summary().cached == 6


def test_the_accelerated_unet_is_the_same_kind_of_thing(tiny, tmp_path):
    pipe = tiny.pipe()
    original = pipe.unet
    unetaccel.apply(pipe, DeepCache(cut=2))
    unet = pipe.unet
    assert unet is not original
    assert isinstance(unet, UNet2DConditionModel)
    assert isinstance(pipe, StableDiffusionPipeline)
    assert (type(unet).__name__, type(unet).__module__) == (type(original).__name__, type(original).__module__)
    assert unet.config is original.config
    assert (unet.dtype, unet.device) == (original.dtype, original.device)
    assert list(unet.state_dict()) == list(original.state_dict())
    assert [id(p) for p in unet.parameters()] == [id(p) for p in original.parameters()]
    assert pipe.config["unet"] == ("diffusers", "UNet2DConditionModel")
    unet.save_pretrained(tmp_path / "ours")
    original.save_pretrained(tmp_path / "plain")
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()
    pipe.save_pretrained(tmp_path / "pipe")
    index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]


def test_copies_and_pickles_are_plain(tiny):
    unet = tiny.unet()
    accelerated = unetaccel.apply(unet, DeepCache()).unet
    assert type(copy.deepcopy(accelerated)) is UNet2DConditionModel
    assert type(pickle.loads(pickle.dumps(accelerated))) is UNet2DConditionModel


def test_what_users_do_to_the_accelerated_unet_happens_to_theirs(tiny):
    from diffusers.models.attention_processor import AttnProcessor

    pipe = tiny.pipe()
    original = pipe.unet
    handle = unetaccel.apply(pipe, DeepCache(cut=8))
    first = tiny.call(pipe)
    pipe.enable_freeu(s1=0.6, s2=0.4, b1=1.3, b2=1.5)
    pipe.unet.set_attn_processor(AttnProcessor())
    pipe.unet.note = "mine"
    with_freeu = tiny.call(pipe)
    assert not torch.equal(first, with_freeu), "the views were rebuilt"
    handle.remove()
    assert original.note == "mine"
    assert original.up_blocks[0].s1 == 0.6
    assert all(isinstance(p, AttnProcessor) for p in original.attn_processors.values())


def test_a_lora_loaded_after_apply_works_and_stays(tiny):
    from peft import LoraConfig

    pipe = tiny.pipe()
    handle = unetaccel.apply(pipe, DeepCache(cut=2))
    without = tiny.call(pipe)
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["to_q", "to_v", "conv1", "conv_in"], init_lora_weights=False)
    pipe.unet.add_adapter(config)
    cached = tiny.call(pipe)
    assert not torch.equal(cached, without)
    handle.remove()
    plain = tiny.call(pipe)
    with unetaccel.apply(pipe, DeepCache(interval=1)):
        assert torch.equal(tiny.call(pipe), plain)
    with unetaccel.apply(pipe, DeepCache(cut=2)):
        assert torch.equal(tiny.call(pipe), cached)


def test_a_pipeline_made_from_an_accelerated_one(tiny):
    """Whoever passes on the accelerated U-Net itself gets a pipeline that is plain until it is accelerated too."""
    first = tiny.pipe()
    plain = tiny.call(first)
    handle = unetaccel.apply(first, DeepCache(interval=2))
    cached = tiny.call(first)
    second = StableDiffusionPipeline(
        **{**first.components, "unet": first.unet, "image_encoder": None}, requires_safety_checker=False
    )
    second.set_progress_bar_config(disable=True)
    assert second.unet is first.unet
    with pytest.warns(UserWarning, match="outside a sampling call"):
        assert torch.equal(tiny.call(second), plain)
    with unetaccel.apply(second, DeepCache(interval=5)) as other:
        tiny.call(second)
        assert other.summary().pattern == "F....F...."
        assert torch.equal(tiny.call(first), cached)
        assert handle.summary().pattern == "F.F.F.F.F."
    assert second.unet is first.unet
    handle.remove()
    assert torch.equal(tiny.call(second), plain)


def test_a_unet_that_the_user_put_there_since_is_left_alone(tiny):
    pipe = tiny.pipe()
    handle = unetaccel.apply(pipe, DeepCache())
    mine = tiny.unet(seed=1)
    pipe.unet = mine
    tiny.call(pipe)
    handle.remove()
    assert pipe.unet is mine
    assert type(pipe) is StableDiffusionPipeline


def test_compiling_the_accelerated_unet_is_refused_with_the_way_out(tiny):
    pipe = tiny.pipe()
    handle = unetaccel.apply(pipe, DeepCache())
    pipe.unet = torch.compile(pipe.unet)
    with pytest.raises(UnsupportedModelError, match=r"compile=True"):
        tiny.call(pipe)
    handle.remove()
    assert type(pipe) is StableDiffusionPipeline


def test_hooks_added_after_apply_leave_nothing_behind(tiny):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    pipe = tiny.pipe()
    plain = tiny.call(pipe)
    handle = unetaccel.apply(pipe, DeepCache())
    add_hook_to_module(pipe.unet, ModelHook())
    tiny.call(pipe)
    handle.remove()
    remove_hook_from_module(pipe.unet)
    assert torch.equal(tiny.call(pipe), plain)
    with unetaccel.apply(pipe, DeepCache()) as again:
        tiny.call(pipe)
        assert again.summary().cached == 6


def test_schedulers_can_be_copied_and_planned_with_during_a_call(tiny):
    pipe = tiny.pipe()
    found = []

    def callback(pipe, i, t, values):
        found.append((type(copy.deepcopy(pipe.scheduler)), type(copy.copy(pipe.scheduler)), str(handle.plan(6))))
        return values

    handle = unetaccel.apply(pipe, DeepCache())
    kind = type(pipe.scheduler)
    tiny.call(pipe, steps=6, callback_on_step_end=callback)
    assert found == [(kind, kind, "F..F..")] * 6


def test_a_nested_call_of_the_same_pipeline_leaves_the_outer_one_right(tiny):
    pipe = tiny.pipe()
    unetaccel.apply(pipe, DeepCache(cut=1))
    alone = tiny.call(pipe)

    def callback(pipe, i, t, values):
        if i == 4:
            kept = dict(vars(pipe))
            tiny.call(pipe, seed=5)
            vars(pipe).update(kept)  # pipelines keep notes of their latest call
        return values

    assert torch.equal(tiny.call(pipe, callback_on_step_end=callback), alone)


def test_hooks_on_a_block_that_runs_in_parts_are_refused(tiny):
    pipe = tiny.pipe()
    pipe.unet.up_blocks[2].register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedModelError, match=r"up_blocks\.2 has forward hooks, and cut 1"):
        unetaccel.apply(pipe, DeepCache(cut=1))
    with unetaccel.apply(pipe, DeepCache(cut=4)):
        tiny.call(pipe)


def test_layers_replaced_after_apply_are_seen(tiny):
    pipe = tiny.pipe()
    unetaccel.apply(pipe, DeepCache(interval=1, cut=1))
    pipe.unet.up_blocks[2].attentions[1] = tiny.unet(seed=3).up_blocks[2].attentions[1]
    neutral = tiny.call(pipe)
    unetaccel.apply(pipe, DeepCache(schedule=range(9), cut=1), replace=True)  # full but for the last
    callback_outputs = []
    tiny.call(pipe, callback_on_step_end=lambda p, i, t, v: callback_outputs.append(v["latents"].clone()) or v)
    pipe.unet.up_blocks[2].attentions[1] = tiny.unet(seed=4).up_blocks[2].attentions[1]
    changed = []
    tiny.call(pipe, callback_on_step_end=lambda p, i, t, v: changed.append(v["latents"].clone()) or v)
    assert torch.isfinite(neutral).all()
    assert not torch.equal(changed[0], callback_outputs[0]), "the full view runs the new layer"


def test_pipelines_that_cannot_work_are_refused_by_name(tiny):
    pipe = tiny.pipe()

    class StableDiffusionSAGPipeline(type(pipe)):
        pass

    class Combined:
        pass

    class Strange:
        def set_timesteps(self, steps): ...

    pipe.__class__ = StableDiffusionSAGPipeline
    with pytest.raises(
        UnsupportedModelError, match="StableDiffusionSAGPipeline reads the attention maps of deep layers"
    ):
        unetaccel.apply(pipe, DeepCache())
    outer, inner = Combined(), tiny.pipe()
    outer.unet, outer.decoder_pipe = inner.unet, inner
    with pytest.raises(UnsupportedModelError, match=r"apply to that one, pipe\.decoder_pipe"):
        unetaccel.apply(outer, DeepCache())
    pipe = tiny.pipe()
    object.__setattr__(pipe, "scheduler", Strange())
    with pytest.raises(UnsupportedModelError, match="Strange that lacks set_timesteps or step"):
        unetaccel.apply(pipe, DeepCache())


def test_a_bare_unet_is_not_touched(tiny):
    unet = tiny.unet()
    before = {name: (id(m), tuple(m.__dict__)) for name, m in unet.named_modules()}
    inputs = tiny.inputs(unet)
    with unetaccel.apply(unet, DeepCache(interval=2)) as handle, handle.run(6):
        for _ in range(6):
            handle.unet(**inputs)
    assert {name: (id(m), tuple(m.__dict__)) for name, m in unet.named_modules()} == before
