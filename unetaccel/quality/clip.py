"""CLIP score from a local folder: how near image and prompt lie in CLIP's space.

Hessel et al. 2021, arXiv 2104.08718, as diffusion papers report it: 100 times the cosine, not clipped. torchmetrics'
own score takes hub names only and cannot read what transformers 5 returns, so the cosine is taken here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import SettingError, WeightsError

WHAT = "a folder with a CLIPModel and its processor, as save_pretrained writes it or the hub's snapshot of one"


class ClipScore:
    """``__call__``: uint8 images (N, 3, H, W) and N prompts -> (N,), between -100 and 100. The hub is never asked.

    Prompts longer than the model's limit are cut.

    Raises:
        WeightsError: no such folder, or it does not hold a whole CLIP.
    """

    def __init__(self, folder: Path | str, device: torch.device | str = "cpu", batch: int = 32):
        self.model, self.processor = _load(Path(folder).expanduser())
        self.model, self.device, self.batch = self.model.to(device), device, batch

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        if len(images) != len(prompts):
            raise SettingError(f"the CLIP score wants one prompt per image, got {len(prompts)} for {len(images)}")
        distinct = list(dict.fromkeys(prompts))
        texts = torch.cat([self._text(distinct[i : i + self.batch]) for i in range(0, len(distinct), self.batch)])
        pictures = torch.cat([self._image(part) for part in images.split(self.batch)])
        index = {prompt: i for i, prompt in enumerate(distinct)}
        return 100 * (pictures * texts[[index[prompt] for prompt in prompts]]).sum(1)

    def _text(self, prompts: list[str]) -> torch.Tensor:
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.processor.tokenizer(
            prompts, padding=True, truncation=True, max_length=limit, return_tensors="pt"
        ).to(self.device)
        return _unit(self.model.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"]))

    def _image(self, images: torch.Tensor) -> torch.Tensor:
        from PIL import Image

        pictures = [Image.fromarray(picture) for picture in images.permute(0, 2, 3, 1).cpu().numpy()]
        pixels = self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        return _unit(self.model.get_image_features(pixels.to(self.device)))


def _unit(features) -> torch.Tensor:
    """Of length one, on the CPU; transformers 5 hands features out inside an output object."""
    features = getattr(features, "pooler_output", features).float().cpu()
    return features / features.norm(dim=1, keepdim=True)


def _load(folder: Path):
    from transformers import CLIPModel, CLIPProcessor

    if not folder.is_dir():
        raise WeightsError(f"no folder {str(folder)!r}: give {WHAT}; nothing is downloaded")
    try:
        model, report = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # loaders raise whatever a damaged file makes them stumble over
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"cannot load CLIP from {str(folder)!r} ({reason}); expected {WHAT}") from error
    if report["missing_keys"]:  # transformers would fill them with random numbers
        raise WeightsError(
            f"{str(folder)!r} lacks {len(report['missing_keys'])} of CLIP's weights, "
            f"such as {min(report['missing_keys'])}; expected {WHAT}"
        )
    return model.float().eval(), processor
