"""Pipelines of other families than Stable Diffusion, with stand-ins for their large encoders. Checked as in test_pipelines."""

from types import SimpleNamespace

import diffusers
import pytest
import torch
from pipeline_cases import CONDITION, PLANNED, STEPS, check, make, normal, sampler, unet_like, vqmodel
from torch import nn

import unetaccel
from unetaccel import DeepCache, UnsupportedModelError

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*deprecated:UserWarning")


class Words(dict):
    """What tokenizers give: names that are attributes too."""

    __getattr__ = dict.__getitem__

    def to(self, device):
        return self


def words(texts, tokens: int) -> Words:
    count = 1 if isinstance(texts, str) else len(texts)
    return Words(
        input_ids=torch.zeros(count, tokens, dtype=torch.int64),
        attention_mask=torch.ones(count, tokens, dtype=torch.int64),
    )


class Encoder(nn.Module):
    """A text encoder: ``outputs(number of texts)``, whatever the texts say."""

    dtype, device = torch.float32, torch.device("cpu")
    config = SimpleNamespace(model_type="t5")

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, input_ids=None, **options):
        return self.outputs(len(input_ids))


# --- Kandinsky 2.1 ---------------------------------------------------------------------------------------------------


def kandinsky(tiny, cls: str):
    encoder = Encoder(lambda n: (normal(n, 32, seed=n), normal(n, 7, 32, seed=n)))
    parts = dict(movq=vqmodel(), text_encoder=encoder, tokenizer=lambda texts, **options: words(texts, 7))
    return make(tiny, cls, unet_like(tiny, "kandinsky-2.1"), **parts)


PICTURE = {"output_type": "np", "prompt": "a"}


def test_kandinsky_2_1(tiny):
    pipe = kandinsky(tiny, "KandinskyPipeline")
    check(tiny, pipe, sampler(pipe, **CONDITION, **PICTURE))


def test_kandinsky_2_1_img2img(tiny):
    pipe = kandinsky(tiny, "KandinskyImg2ImgPipeline")
    image = 2 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 1
    check(tiny, pipe, sampler(pipe, image=image, strength=0.8, **CONDITION, **PICTURE), "F..F.")


def test_kandinsky_with_its_prior_is_refused_with_the_way_out(tiny):
    """The prior is no U-Net; the pipeline of both runs its U-Net inside a decoder pipeline."""
    known = kandinsky(tiny, "KandinskyV22Pipeline").components
    prior = dict.fromkeys(f"prior_{p}" for p in ("prior", "image_encoder", "text_encoder", "tokenizer", "scheduler"))
    pipe = diffusers.KandinskyV22CombinedPipeline(**known, **prior, prior_image_processor=None)
    with pytest.raises(UnsupportedModelError, match=r"apply to that one, pipe\.decoder_pipe"):
        unetaccel.apply(pipe, DeepCache())
    with pytest.raises(UnsupportedModelError, match="expected a diffusers pipeline with a `unet`"):
        unetaccel.apply(pipe.prior_pipe, DeepCache())
    with unetaccel.apply(pipe.decoder_pipe, DeepCache()) as handle:
        assert handle.is_applied


# --- DreamLite -------------------------------------------------------------------------------------------------------

NEWER = pytest.mark.skipif(not hasattr(diffusers, "DreamLitePipeline"), reason="diffusers without DreamLite")


def dreamlite(tiny, cls: str, tokens: int):
    encoder = Encoder(lambda n: SimpleNamespace(hidden_states=[normal(n, tokens, 24, seed=n)]))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    parts = dict(text_encoder=encoder, tokenizer=lambda text, **options: words(text, tokens), scheduler=scheduler)
    parts["processor"] = lambda text, images, **options: words(text, tokens)
    return make(tiny, cls, tiny.unet("dreamlite"), **parts)


@NEWER
def test_dreamlite(tiny):
    pipe = dreamlite(tiny, "DreamLitePipeline", tokens=34 + 7)
    check(tiny, pipe, sampler(pipe, prompt="a"))
    with unetaccel.apply(pipe, DeepCache(interval=3)) as handle:
        assert str(handle.plan(STEPS)) == PLANNED


@NEWER
def test_dreamlite_editing_a_picture(tiny):
    from PIL import Image

    pipe = dreamlite(tiny, "DreamLitePipeline", tokens=64 + 7)
    check(tiny, pipe, sampler(pipe, prompt="a", image=Image.new("RGB", (64, 64), "red")))


@NEWER
def test_dreamlite_mobile(tiny):
    pipe = dreamlite(tiny, "DreamLiteMobilePipeline", tokens=34 + 7)
    check(tiny, pipe, sampler(pipe, prompt="a"))


def test_the_noise_levels_of_flow_matching():
    """Rules see one scale whatever the scheduler: x = x0 + sigma noise, so that (1 - s) x0 + s noise has s / (1 - s)."""
    from unetaccel.timeline import of_steps

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    timesteps, sigmas = of_steps(scheduler, 10).read()
    assert sigmas[0] == float("inf")
    assert sigmas[5] == pytest.approx(timesteps[5] / (1000 - timesteps[5]), rel=1e-4)


# --- sound -----------------------------------------------------------------------------------------------------------


class Vocoder(nn.Module):
    dtype, device = torch.float32, torch.device("cpu")
    config = SimpleNamespace(model_in_dim=64, upsample_rates=[4, 4], sampling_rate=1600)


def test_audioldm_2(tiny):
    pipe = make(
        tiny,
        "AudioLDM2Pipeline",
        tiny.unet("audioldm2"),
        text_encoder=Encoder(None),
        text_encoder_2=Encoder(None),
        language_model=Encoder(None),
        vocoder=Vocoder(),
    )
    conditions = {
        "generated_prompt_embeds": normal(1, 8, 32),
        "negative_generated_prompt_embeds": normal(1, 8, 32, seed=1),
    }
    conditions |= {"prompt_embeds": normal(1, 7, 24), "negative_prompt_embeds": normal(1, 7, 24, seed=1)}
    check(tiny, pipe, sampler(pipe, audio_length_in_s=0.64, **conditions))
