"""What is switched on while applied gives what switching it on first and applying afterwards gives, and goes off again."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from pipeline_cases import CASES, PLANNED, sampler, spied

import unetaccel
from unetaccel import DeepCache

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*deprecated:UserWarning")


@dataclass(frozen=True)
class Switch:
    on: Callable
    off: Callable | None = None
    call: dict = field(default_factory=dict)
    same: bool = False
    """Whether the pictures stay what they were, up to rounding (it saves memory only)."""


DECODED = {"output_type": "pt", "num_images_per_prompt": 2}
SWITCHES = {
    "FreeU": Switch(lambda p: p.enable_freeu(s1=0.6, s2=0.4, b1=1.3, b2=1.5), lambda p: p.disable_freeu()),
    "VAE slicing": Switch(lambda p: p.vae.enable_slicing(), lambda p: p.vae.disable_slicing(), DECODED, same=True),
    "VAE tiling": Switch(lambda p: p.vae.enable_tiling(), lambda p: p.vae.disable_tiling(), DECODED, same=True),
    "fused QKV projections": Switch(
        lambda p: p.unet.fuse_qkv_projections(), lambda p: p.unet.unfuse_qkv_projections(), same=True
    ),
    "channels last": Switch(lambda p: p.unet.to(memory_format=torch.channels_last), same=True),
    "bfloat16": Switch(lambda p: p.to(torch.bfloat16)),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_switched_on_before_or_after_apply(tiny, name):
    switch = SWITCHES[name]
    pipe, _ = CASES["text2img"].build(tiny)
    call = sampler(pipe, **switch.call)
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=4)):
        unchanged = call()
    switch.on(pipe)
    plain = call()
    with unetaccel.apply(pipe, DeepCache(interval=1, cut=4)):
        assert torch.equal(call(), plain)
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=4)):
        expected = call()
    assert not torch.equal(expected, plain)

    pipe, _ = CASES["text2img"].build(tiny)
    call = sampler(pipe, **switch.call)
    before = call()
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=4)):
        assert torch.equal(call(), unchanged)
        switch.on(pipe)
        found, pattern = spied(tiny, pipe, call)
        assert pattern == PLANNED
        assert torch.equal(found, expected)
        assert torch.allclose(found.float(), unchanged, 1e-4, 1e-4) == switch.same
        if switch.off is not None:
            switch.off(pipe)
            torch.testing.assert_close(call(), unchanged, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(call(), before if switch.off else plain, rtol=1e-4, atol=1e-4)


def test_textual_inversion_before_or_after_apply():
    """Loaded by diffusers into a real tokenizer and text encoder: those of the demo."""
    from unetaccel.demo.pipeline import load_pipeline

    def call(pipe, prompt: str = "a large <thing> on a black background") -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(prompt, num_inference_steps=7, output_type="latent", generator=generator).images

    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    width = pipe.text_encoder.config.hidden_size
    learned = {
        "<thing>": torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    }  # two vectors: <thing>_1 too
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=1)):
        unknown = call(pipe)
    pipe.load_textual_inversion(dict(learned), token="<thing>")
    plain = call(pipe)
    with unetaccel.apply(pipe, DeepCache(interval=1, cut=1)):
        assert torch.equal(call(pipe), plain)
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=1)):
        expected = call(pipe)

    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=1)) as handle:
        assert torch.equal(call(pipe), unknown)
        pipe.load_textual_inversion(dict(learned), token="<thing>")
        assert torch.equal(call(pipe), expected)
        assert not torch.equal(expected, unknown), "the learned word changes the picture"
        assert handle.summary().pattern == PLANNED
        pipe.unload_textual_inversion()
        assert torch.equal(call(pipe), unknown)
    assert "<thing>" not in pipe.tokenizer.get_vocab()
