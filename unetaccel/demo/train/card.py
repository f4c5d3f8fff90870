"""The demo's model card, written from the figures of the run that made the weights."""

from __future__ import annotations

CARD = """# Model card: the unetaccel demo

A text-to-image pipeline for 32x32 pictures of captioned shapes, trained from nothing by unetaccel on pictures that it
draws itself. It exists so that caching and skip editing can be tried and measured on a *really trained* diffusers
pipeline without a model hub. It draws nothing else.

| part | what | parameters |
|---|---|---|
| unet | `UNet2DConditionModel`, 9 skips, cross attention, 8x8x12 latents, v-prediction | 4.24M |
| text_encoder, tokenizer | `CLIPTextModel` (2 layers, width 96), own vocabulary, 16 tokens | 0.29M |
| vae | `AutoencoderTiny`: linear encoder (space to depth, principal components), trained decoder | 0.13M |
| scheduler | `DDIMScheduler`, cosine betas, trailing timesteps | |
| label_net.safetensors | reads the labels back; its 128 features serve distances | 0.41M |

**Captions**: "a large red ring on a black background", "a green cross left of a pink circle on a white background".
Shapes: circle, square, triangle, cross, ring. Colours: red, orange, yellow, green, cyan, blue, purple, pink. Backgrounds:
black, white, gray, brown. Single shapes are small or large; pairs are left of, right of, above or below. One caption in
eight, by a hash of its labels, is held out: never drawn in training, and the only ones used for the figures below.

**Intended settings**: 20 DDIM steps, guidance 3. Heun and KDPM2 ancestral need `timestep_spacing="leading"`
(`unetaccel sample --scheduler heun --spacing leading`): with trailing timesteps their first step starts at sigma 20,000,
from which a second-order step does not come back.

## Figures

{n} held-out captions per seed, guidance 3; shares of samples in which the label network reads the caption's labels.

| run | shape | colour | every label |
|---|---|---|---|
{rows}

Autoencoder: {psnr:.1f} dB on held-out drawings. Label network: every label right in {reading:.1%} of 1000 held-out drawings.
A distance on the label network's features is not FID and says nothing about other pictures.

## Training curve

96 held-out captions, 12 steps, guidance 3, averaged weights.

| images | seconds | loss | shape | colour | every label |
|---|---|---|---|---|---|
{curve}

Two processes with one thread each on two shared CPU cores. Reproduce all of it, weights and figures, with
`python examples/train_demo.py runs/demo`. Licence: Apache-2.0, like the code; the training pictures are drawn by it.
"""


def model_card(curve: list[dict], figures: dict[str, dict], n: int = 500) -> str:
    """Markdown from the training curve and the final figures (see ``assemble``)."""
    runs = {k: v for k, v in figures.items() if k.startswith("steps=")}
    rows = [f"| {k} | {v['shape']:.3f} | {v['colour']:.3f} | {v['exact']:.3f} |" for k, v in runs.items()]
    points = [
        f"| {c['images']:,} | {c['seconds']} | {c['loss']:.3f} | {c['shape']:.3f} | {c['colour']:.3f} | {c['exact']:.3f} |"
        for c in curve
    ]
    return CARD.format(
        n=n,
        rows="\n".join(rows),
        curve="\n".join(points),
        psnr=figures["autoencoder"]["psnr_db"],
        reading=figures["label_net"]["exact_on_drawings"],
    )
