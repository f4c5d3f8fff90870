"""Adapters, processors and casting on an accelerated pipeline: before apply, after it, and changed meanwhile."""

import pytest
import torch
from pipeline_cases import (
    CASES,
    PLANNED,
    SD,
    XL,
    check,
    make,
    normal,
    sampler,
    spied,
)

import unetaccel
from unetaccel import DeepCache

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*deprecated:UserWarning")


@pytest.mark.parametrize("when", ["before", "after"])
def test_attention_slicing(tiny, when):
    pipe, call = CASES["text2img"].build(tiny)
    plain = call()
    if when == "before":
        pipe.enable_attention_slicing(1)
        sliced = check(tiny, pipe, call)
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=1)):
        pipe.enable_attention_slicing(1)
        kinds = {type(p).__name__ for p in pipe.unet.attn_processors.values()}
        assert kinds == {"SlicedAttnProcessor"}
        found, pattern = spied(tiny, pipe, call)
        assert pattern == PLANNED
    if when == "before":
        assert torch.equal(found, sliced)
    pipe.disable_attention_slicing()
    torch.testing.assert_close(call(), plain, rtol=1e-4, atol=1e-4)


def test_attention_processors_set_after_apply(tiny):
    from diffusers.models.attention_processor import AttnProcessor

    class Louder(AttnProcessor):
        def __call__(self, *args, **kwargs):
            return 1.5 * super().__call__(*args, **kwargs)

    pipe, call = CASES["text2img"].build(tiny)
    plain = call()
    usual = pipe.unet.attn_processors
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=6)):
        cached = call()
        pipe.unet.set_attn_processor(Louder())
        louder, pattern = spied(tiny, pipe, call)
        assert pattern == PLANNED
        assert not torch.equal(louder, cached)
        pipe.unet.set_attn_processor(dict(usual))
        assert torch.equal(call(), cached)
        pipe.unet.set_attn_processor(Louder())
    assert torch.equal(check(tiny, pipe, call, cut=6), louder)
    pipe.unet.set_attn_processor(dict(usual))
    assert torch.equal(call(), plain)


@pytest.mark.parametrize("when", ["before", "after"])
def test_layerwise_casting(tiny, when):
    """Weights rest in 8 bits, so every layer that runs has its own hooks."""
    pipe, call = CASES["text2img"].build(tiny)
    plain = call()
    casting = dict(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    if when == "before":
        pipe.unet.enable_layerwise_casting(**casting)
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=4)):
        if when == "after":
            pipe.unet.enable_layerwise_casting(**casting)
        found, pattern = spied(tiny, pipe, call)
        assert pattern == PLANNED
    assert pipe.unet.down_blocks[0].resnets[0].conv1.weight.dtype == torch.float8_e4m3fn
    assert torch.equal(check(tiny, pipe, call, cut=4), found)
    assert not torch.equal(call(), plain)


# --- adapters of weights ---------------------------------------------------------------------------------------------


def lora(tiny, seed: int = 0) -> dict:
    """A state dict as trainers save it, for a U-Net of the usual shape."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = tiny.unet()
    targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets))
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    return {f"unet.{k}": 0.3 * normal(*v.shape, seed=seed + i) for i, (k, v) in enumerate(state.items())}


def test_a_lora_loaded_before_apply(tiny):
    from transformers import CLIPTextConfig, CLIPTextModel

    size = dict(vocab_size=10, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    encoder = CLIPTextModel(CLIPTextConfig(**size))  # diffusers wants one to scale a LoRA
    pipe = make(tiny, SD(""), tiny.unet(), text_encoder=encoder)
    call = sampler(pipe)
    plain = call()
    pipe.load_lora_weights(lora(tiny), adapter_name="a")
    assert not torch.equal(call(), plain), "the LoRA changes the result"
    cached = check(tiny, pipe, call)
    assert not torch.equal(cached, check(tiny, pipe, sampler(pipe, cross_attention_kwargs={"scale": 0.5})))
    pipe.unload_lora_weights()
    assert torch.equal(call(), plain)


def test_loras_loaded_set_fused_and_unloaded_while_applied(tiny):
    """Whatever is done to the accelerated pipeline gives what doing it first and applying afterwards gives."""

    def states(pipe, call):
        pipe.load_lora_weights(lora(tiny), adapter_name="a")
        yield "loaded"
        pipe.load_lora_weights(lora(tiny, seed=50), adapter_name="b")
        pipe.set_adapters(["a", "b"], adapter_weights=[0.4, 0.8])
        yield "two"
        pipe.set_adapters(["b"])
        yield "second"
        pipe.fuse_lora(adapter_names=["b"])
        yield "fused"
        pipe.unfuse_lora()
        yield "unfused"
        pipe.disable_lora()
        yield "disabled"
        pipe.enable_lora()
        yield "enabled"
        pipe.delete_adapters("b")
        pipe.set_adapters("a")
        yield "deleted"
        pipe.load_lora_weights(lora(tiny, seed=50), adapter_name="a", hotswap=True)
        yield "hotswapped"
        pipe.unload_lora_weights()
        yield "unloaded"

    other, call_other = CASES["text2img"].build(tiny)
    expected = {}
    for state in states(other, call_other):
        with unetaccel.apply(other, DeepCache(interval=3, cut=4)):
            expected[state] = call_other()
    pipe, call = CASES["text2img"].build(tiny)
    plain = call()
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=4)):
        cached = call()
        for state in states(pipe, call):
            found, pattern = spied(tiny, pipe, call)
            assert (state, pattern) == (state, PLANNED)
            assert torch.equal(found, expected[state]), state
    distinct = [expected[s] for s in ("loaded", "two", "second", "disabled")]
    assert not any(torch.allclose(a, b, 1e-3, 1e-3) for i, a in enumerate(distinct) for b in distinct[:i])
    assert torch.equal(call(), call_other())
    usual = [(cached, "disabled"), (cached, "unloaded")]  # not bit for bit: diffusers unfuses by subtracting
    usual += [(expected["fused"], "second"), (expected["deleted"], "loaded"), (expected["hotswapped"], "second")]
    for one, state in usual:
        torch.testing.assert_close(one, expected[state], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(call(), plain, rtol=1e-3, atol=1e-3)


def ip_adapter(unet) -> dict:
    """A state dict as IP-Adapter's authors save it: 4 image tokens, keys and values per cross-attention."""
    weights, key = {}, 1
    for name in unet.attn_processors:
        if name.endswith("attn2.processor"):
            width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for part in ("to_k_ip", "to_v_ip"):
                weights[f"{key}.{part}.weight"] = normal(width, 32, seed=key) / 4
            key += 2
    projection = {"proj.weight": normal(4 * 32, 24) / 5, "proj.bias": torch.zeros(4 * 32)}
    norm = {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
    return {"image_proj": projection | norm, "ip_adapter": weights}


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_ip_adapter(tiny, name):
    cls = {"sd": SD(""), "sdxl": XL("")}[name]
    picture = torch.stack([torch.zeros(1, 24), normal(1, 24)])  # unconditional, conditional
    pipe = make(tiny, cls, tiny.unet(name))
    usual = sampler(pipe)()
    pipe.load_ip_adapter(ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.8)
    call = sampler(pipe, ip_adapter_image_embeds=[picture])
    assert not torch.equal(call(), usual), "the picture changes the result"
    before = check(tiny, pipe, call)

    pipe = make(tiny, cls, tiny.unet(name))
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=1)):
        pipe.load_ip_adapter(ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
        pipe.set_ip_adapter_scale(0.8)
        call = sampler(pipe, ip_adapter_image_embeds=[picture])
        found, pattern = spied(tiny, pipe, call)
        assert pattern == PLANNED
        assert torch.equal(found, before)
        pipe.unload_ip_adapter()
        sampler(pipe)()
    assert torch.equal(sampler(pipe)(), usual)
