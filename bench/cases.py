"""Pipelines to time: the trained demo, and random weights in well-known shapes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from unetaccel.demo.pipeline import load_pipeline
from unetaccel.demo.scenes import sample_scenes
from unetaccel.shapes import build_shape


@dataclass
class Job:
    """A pipeline, the arguments of its calls, and how to wait for its device."""

    pipe: object
    arguments: dict
    batch: int

    def call(self, steps: int) -> torch.Tensor:
        """One sampling call, always of the same seed; the result as a tensor."""
        device = self.pipe.unet.device
        generator = [torch.Generator(device).manual_seed(i) for i in range(self.batch)]
        return self.pipe(num_inference_steps=steps, generator=generator, **self.arguments).images

    def timed(self, steps: int) -> float:
        return self.seconds(lambda: self.call(steps))

    def seconds(self, work: Callable[[], object]) -> float:
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.pipe.unet.device.type == "cuda":
            torch.cuda.synchronize(self.pipe.unet.device)

    def step_inputs(self) -> dict:
        """The keyword inputs of the first U-Net evaluation of a real call."""
        kept = {}

        def note(module, args, kwargs):
            kept.setdefault("inputs", {**dict(zip(("sample", "timestep"), args, strict=False)), **kwargs})

        hook = self.pipe.unet.register_forward_pre_hook(note, with_kwargs=True)
        try:
            self.call(1)
        finally:
            hook.remove()
        return kept["inputs"]


def build(name: str, scale: float, device: str, dtype: torch.dtype, batch: int) -> Job:
    """The demo, or a pipeline of a known shape with random weights; outputs are images or latents as tensors."""
    if name == "demo":
        pipe = load_pipeline(dtype, device)
        captions = sample_scenes(batch, seed=7, held_out=True).captions()
        return Job(pipe, {"prompt": captions, "guidance_scale": 3.0, "output_type": "pt"}, batch)
    torch.manual_seed(0)
    unet = build_shape(name, scale, device, dtype).requires_grad_(False)
    vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).to(device, dtype)
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    )
    parts = dict(vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler)
    width = unet.config.cross_attention_dim
    embeds = {
        k: torch.randn(batch, 77, width, device=device, dtype=dtype)
        for k in ("prompt_embeds", "negative_prompt_embeds")
    }
    if name == "sdxl":
        pipe = StableDiffusionXLPipeline(**parts, text_encoder_2=None, tokenizer_2=None, add_watermarker=False)
        pooled = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        embeds |= {k: torch.randn(batch, 1280, device=device, dtype=dtype) for k in pooled}
    else:
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    side = 8 * unet.config.sample_size
    return Job(pipe, {**embeds, "height": side, "width": side, "output_type": "latent"}, batch)
