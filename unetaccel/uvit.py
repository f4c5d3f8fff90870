"""The long skips of UniDiffuser's U-ViT: a transformer whose later blocks each take the tokens that an earlier one gave.

Bao et al.: "All are Worth Words: A ViT Backbone for Diffusion Models", CVPR 2023, arXiv 2209.12152; "One Transformer Fits All
Distributions in Multi-Modal Diffusion at Scale", ICML 2023, arXiv 2303.06555.

A ``SkipBlock`` begins with ``skip_linear(cat[x, skip])`` on the features and no norm before it, so a constant factor on the skip
folds exactly into the second half of that weight's columns. Other transformers with long skips are no U-Nets here, and not
like it: HunyuanDiT takes a LayerNorm over the concatenation, through which a factor neither passes nor folds (all features
share one variance); Stable Cascade's flat levels have one skip a level, which its blocks concatenate after a norm of the
other part; aMUSEd's ``UVit2DModel`` has no long skips in spite of its name.
"""

from __future__ import annotations

from torch import nn

from .skips import Skip

UNCUT = (
    "DeepCache is not supported on UniDiffuserModel: it is a transformer, whose skips join token sequences. Skip methods work; "
    "for caching in transformers see diffusers' enable_cache or cache-dit"
)


def is_uvit(model: nn.Module) -> bool:
    kinds = {c.__name__ for c in type(model).__mro__}
    return "UniDiffuserModel" in kinds and hasattr(model, "transformer")


def length(model: nn.Module) -> int:
    """Tokens in a sequence: time steps, text, CLIP image and patches, and where there is one the type of the data."""
    return model.num_tokens + bool(model.config.use_data_type_embedding)


def uvit_skips(model: nn.Module) -> list[Skip]:
    """Every long skip, ordered by ``b``: input block b makes it, and the b-th output block from the last consumes it.

    ``channels`` and ``hidden`` count features, ``block`` and ``up_block`` blocks.
    """
    n, patch = len(model.transformer.transformer_out_blocks), model.config.patch_size
    made, taken = "transformer.transformer_in_blocks.{}".format, "transformer.transformer_out_blocks.{}.skip".format
    width = model.inner_dim
    return [Skip(b, b, 0, made(b), taken(n - 1 - b), n - 1 - b, 0, width, width, patch) for b in range(n)]
