"""The doctor sees what is there, changes nothing, and its advice can be followed."""

import json

import pytest
import torch
from DeepCache import DeepCacheSDHelper

import unetaccel
from unetaccel.doctor import diagnose


def texts(diagnosis, level):
    return " ".join(f.text for f in diagnosis.findings if f.level == level)


def test_a_plain_pipeline(tiny):
    pipe = tiny.pipe()
    before = tiny.snapshot(pipe)
    found = diagnose(pipe, steps=50)
    assert tiny.snapshot(pipe) == before
    assert found.applies
    assert "cuts 0 to 8" in texts(found, "ok")
    assert [c.b for c in found.costs] == list(range(9))
    assert json.loads(json.dumps(found.as_dict()))["recommended"] == found.recommended
    with unetaccel.apply(pipe, eval(found.recommended, {"DeepCache": unetaccel.DeepCache})) as handle:
        tiny.call(pipe)
        assert handle.summary().cached > 0


@pytest.mark.parametrize(("steps", "recommended"), [(50, "growing"), (20, "growing"), (4, "plain")])
def test_advice_follows_the_steps(tiny, steps, recommended):
    found = diagnose(tiny.pipe(), steps)
    assert recommended in found.recommended
    assert str(steps) in found.because or "too few" in found.because


def test_conflicts_are_named(tiny):
    pipe = tiny.pipe("sd-4-levels")
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3)
    helper.enable()
    found = diagnose(pipe)
    assert not found.applies
    assert "DeepCacheSDHelper has replaced `forward`" in texts(found, "conflict")
    pipe = tiny.pipe()
    pipe.unet = torch.compile(pipe.unet)
    assert "_orig_mod" in texts(diagnose(pipe), "conflict")


def test_add_ons_and_hooks_are_noted(tiny):
    from accelerate.hooks import ModelHook, add_hook_to_module
    from peft import LoraConfig

    pipe = tiny.pipe()
    pipe.enable_freeu(s1=0.6, s2=0.4, b1=1.3, b2=1.5)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="style")
    add_hook_to_module(pipe.unet, ModelHook())
    found = texts(diagnose(pipe), "ok")
    for part in ("adapters style", "FreeU is on", "model offload is on"):
        assert part in found
    add_hook_to_module(pipe.unet.conv_out, ModelHook())
    assert "not with compile=True" in texts(diagnose(pipe), "note")


def test_controlnets_and_schedulers(tiny):
    pipe = tiny.controlnet_pipe()
    assert "ControlNet runs only as far as needed" in texts(diagnose(pipe), "ok")
    pipe.scheduler = tiny.scheduler("LCMScheduler")
    assert "LCMScheduler" in texts(diagnose(pipe, 8), "note")


def test_pipelines_without_a_unet():
    class Other:
        transformer = torch.nn.Linear(1, 1)

    found = diagnose(Other())
    assert not found.applies
    assert found.because == "Other has no U-Net; it runs on Linear"
