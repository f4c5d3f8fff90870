"""LoRA scales as tensors: what compiled views run on, here without compiling, so that every bit can be compared."""

import pytest
import torch
from torch import nn

import unetaccel
from unetaccel import DeepCache
from unetaccel.lora import LoraScales

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")


@pytest.fixture
def uncompiled(monkeypatch):
    """``torch.compile`` that compiles nothing."""
    monkeypatch.setattr(torch, "compile", lambda step, **options: step)


@pytest.fixture
def layer(tiny):
    """A U-Net's convolution with one LoRA, and what it is called with."""
    unet = tiny.lora_pipe("a", targets=("conv_in",)).unet
    return unet, tiny.inputs(unet)


def states(pipe):
    """What users do to LoRAs while methods are applied; yields the name of each state."""
    pipe.set_adapters("a", 0.4)
    yield "one"
    pipe.set_adapters(["a", "b"], [0.4, 0.8])
    yield "two"
    pipe.unet.delete_adapters("a")
    yield "deleted"
    pipe.disable_lora()
    yield "disabled"
    pipe.fuse_lora(components=["unet"], lora_scale=0.5)
    pipe.enable_lora()
    yield "fused"
    pipe.unfuse_lora(components=["unet"])
    pipe.set_adapters("b", 0.6)
    yield "unfused"
    pipe.unload_lora_weights()
    yield "unloaded"


def test_what_is_done_to_loras_is_noticed(tiny, uncompiled):
    results = []
    for compile in (False, True):
        pipe = tiny.lora_pipe("a", "b", targets=("to_q", "conv1", "conv_in"))
        with unetaccel.apply(pipe, DeepCache(interval=2, cut=1), compile=compile):
            results.append({state: tiny.call(pipe, steps=6) for state in states(pipe)})
    eager, ours = results
    assert {s: torch.equal(ours[s], eager[s]) for s in eager} == dict.fromkeys(eager, True)
    torch.testing.assert_close(eager["unloaded"], eager["disabled"], rtol=1e-3, atol=1e-3)
    distinct = [eager[s] for s in ("one", "two", "deleted", "disabled", "fused", "unfused")]
    assert not any(torch.equal(a, b) for i, a in enumerate(distinct) for b in distinct[:i])


def test_changes_in_the_middle_of_a_call(tiny, uncompiled):
    """From a callback, between cached evaluations too."""
    results = []
    for compile in (False, True):
        pipe = tiny.lora_pipe("a", "b")
        changes = {1: (["a"], 0.3), 4: (["a", "b"], [0.7, 0.2]), 6: (["b"], 0.9)}

        def callback(pipe, i, t, values, changes=changes):
            if i in changes:
                pipe.set_adapters(*changes[i])
            return values

        with unetaccel.apply(pipe, DeepCache(interval=3, cut=2), compile=compile):
            results.append(tiny.call(pipe, callback_on_step_end=callback))
    assert torch.equal(*results)


def test_a_lora_that_comes_after_apply_gets_tensors(tiny, uncompiled):
    """Otherwise the views would go on with PEFT's numbers, and each new scale would be compiled."""
    from peft import LoraConfig

    pipe = tiny.pipe("one-layer")
    with unetaccel.apply(pipe, DeepCache(interval=2, cut=1), compile=True) as handle:
        tiny.call(pipe, steps=6)
        for name, target in (("a", "to_q"), ("b", "conv2")):  # the second where no LoRA was before
            pipe.unet.add_adapter(LoraConfig(target_modules=[target]), adapter_name=name)
            tiny.call(pipe, steps=6)
            [views] = handle._engine._idle
            scales = {
                k for k, m in views.full.named_modules() if hasattr(m, "scaling") and set(m.scaling.values()) != {1.0}
            }
            assert not scales
            assert any(k.endswith(f"{target}.lora_B.{name}") for k, m in views.full.named_modules())


def test_nothing_is_left_behind(tiny, uncompiled):
    pipe = tiny.lora_pipe("a", targets=("to_q", "conv1", "conv_in"))
    layers = [m for m in pipe.unet.modules() if hasattr(m, "scaling")]
    pipe.set_adapters("a", 0.7)
    plain, before = tiny.call(pipe, steps=6), tiny.snapshot(pipe)
    handle = unetaccel.apply(pipe, DeepCache(interval=2), compile=True)
    for scale in (0.2, 0.5):
        tiny.call(pipe, steps=6)
        assert [m.scaling for m in layers] == [{"a": 0.7}] * len(layers)
        pipe.set_adapters("a", scale)
        tiny.call(pipe, steps=6)
        assert [m.scaling for m in layers] == [{"a": scale}] * len(layers)
        pipe.set_adapters("a", 0.7)
    handle.remove()
    assert tiny.snapshot(pipe) == before
    assert torch.equal(tiny.call(pipe, steps=6), plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_tensor_scales_as_a_number_does(layer, dtype):
    """0.3 is no number of 16 bits: a scale of the weights' dtype would be another one."""
    unet, inputs = layer
    unet.to(dtype)
    x, conv = inputs["sample"].to(dtype), unet.conv_in
    scales = LoraScales(unet)
    for scale in (0.3, -1.7, 0.0):
        conv.set_scale("a", scale)
        scales.follow({"sample": x})
        assert torch.equal(scales.unet.conv_in(x), conv(x))


def test_moving_to_another_dtype_later(layer):
    unet, inputs = layer
    scales = LoraScales(unet)
    unet.conv_in.set_scale("a", 0.3)
    for dtype in (torch.float32, torch.float64, torch.float32):
        x = inputs["sample"].to(dtype)
        unet.to(dtype)
        scales.follow({"sample": x})
        assert torch.equal(scales.unet.conv_in(x), unet.conv_in(x))


def test_a_tensor_is_written_when_its_value_changes_only(layer):
    unet, inputs = layer
    scales = LoraScales(unet)
    scales.follow(inputs)
    tensor = scales.unet.conv_in.lora_B["a"].scale
    versions = []
    for value in (0.5, 0.5, 0.7, 0.7):
        unet.conv_in.set_scale("a", value)
        scales.follow(inputs)
        versions.append(tensor._version)
    assert versions == [1, 1, 2, 2]
    assert scales.unet.conv_in.lora_B["a"].scale is tensor


def test_made_in_inference_mode_and_used_outside(layer):
    unet, inputs = layer
    with torch.inference_mode():
        scales = LoraScales(unet)
        scales.follow(inputs)
    unet.conv_in.set_scale("a", 0.4)
    scales.follow(inputs)
    assert scales.unet.conv_in.lora_B["a"].scale == torch.tensor(0.4)


def test_the_scale_of_a_call_is_taken_out_of_its_inputs(layer):
    unet, inputs = layer
    scales = LoraScales(unet)
    unet.conv_in.set_scale("a", 0.5)
    tensor = lambda: scales.unet.conv_in.lora_B["a"].scale.item()  # noqa: E731
    rest = scales.follow({**inputs, "cross_attention_kwargs": {"scale": 0.5, "other": 1}})
    assert (rest["cross_attention_kwargs"], tensor()) == ({"other": 1}, 0.25)
    assert scales.follow({**inputs, "cross_attention_kwargs": {"scale": 0}}).keys() == inputs.keys()
    assert tensor() == 0.0
    assert scales.follow({**inputs, "cross_attention_kwargs": None}).keys() == inputs.keys()
    assert tensor() == 0.5


@pytest.mark.parametrize("kind", ["dora", "loha"])
def test_other_layers_keep_their_numbers(tiny, uncompiled, kind):
    from peft import LoHaConfig, LoraConfig

    pipe = tiny.lora_pipe("a")
    torch.manual_seed(0)
    if kind == "dora":
        config = LoraConfig(r=2, target_modules=["to_k"], use_dora=True, init_lora_weights=False)
        pipe.unet.add_adapter(config, adapter_name="other")
    if kind == "loha":
        pipe.unet.add_adapter(LoHaConfig(r=2, target_modules=["to_k"], init_weights=False), adapter_name="other")
    call = {"timestep": 5, "cross_attention_kwargs": {"scale": 0.5}}
    with unetaccel.apply(pipe.unet, DeepCache(interval=2, cut=1), compile=True) as handle, torch.no_grad():
        inputs = {**tiny.inputs(pipe.unet), **call}
        with handle.run(5):
            outputs = [handle.unet(**inputs)[0] for _ in range(5)]
    assert LoraScales(pipe.unet).unet is pipe.unet
    assert torch.equal(outputs[0], pipe.unet(**inputs)[0])
    assert torch.equal(outputs[1], outputs[0])


def test_unets_whose_forward_knows_no_scale_keep_it(tiny):
    unet = tiny.unet("text-to-video")
    inputs = {**tiny.inputs(unet), "cross_attention_kwargs": {"scale": 0.5}}
    assert LoraScales(unet).follow(inputs) == inputs


def test_a_layer_at_two_places_is_one(layer):
    unet, _ = layer
    pair = nn.ModuleDict({"first": unet.conv_in, "second": nn.ModuleList([unet.conv_in])})
    both = LoraScales(pair).unet
    assert both["first"] is both["second"][0] is not unet.conv_in
