"""The finished parts of a demo under training, and the pipeline they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffusers import AutoencoderTiny, StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from ..labels import LabelNet, load_label_net


@dataclass(frozen=True)
class Parts:
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderTiny
    label_net: LabelNet

    def pipeline(self, unet, scheduler) -> StableDiffusionPipeline:
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def load_parts(out: Path) -> Parts:
    """What the first stages wrote to ``out``, frozen and in float32."""
    return Parts(
        CLIPTokenizer.from_pretrained(out / "tokenizer"),
        CLIPTextModel.from_pretrained(out / "text_encoder").eval().requires_grad_(False),
        AutoencoderTiny.from_pretrained(out / "vae").float().eval().requires_grad_(False),
        load_label_net(out / "label_net.safetensors"),
    )
