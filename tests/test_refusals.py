"""Every U-Net and every block in diffusers is supported and tested, or refused with a reason and a way out."""

import inspect
import pkgutil
import typing

import diffusers
import pytest
import torch
from architectures import ARCHITECTURES
from diffusers.models import unets
from diffusers.models.unets import unet_2d_blocks
from pipeline_cases import SD, make

import unetaccel
from unetaccel import DeepCache, UnsupportedModelError, refusals
from unetaccel.skips import BLOCKS, UNETS

NO_UNETS = {"MotionAdapter"}  # models in diffusers' folder of U-Nets that are parts of one
AUTOENCODERS = {"DownEncoderBlock2D", "AttnDownEncoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D"}


def unets_of_diffusers() -> set[str]:
    """Models whose name or module says U-Net, and whatever a pipeline takes as its ``unet``."""
    found = {n for n in dir(diffusers) if "UNet" in n and inspect.isclass(getattr(diffusers, n))}
    for module in pkgutil.iter_modules(unets.__path__):
        for name, cls in vars(__import__(f"{unets.__name__}.{module.name}", fromlist=["*"])).items():
            own = inspect.isclass(cls) and cls.__module__.startswith(unets.__name__)
            if own and issubclass(cls, diffusers.ModelMixin):
                found.add(name)
    for cls in (getattr(diffusers, n) for n in dir(diffusers) if n.endswith("Pipeline")):
        wanted = inspect.signature(cls.__init__).parameters.get("unet")
        kinds = typing.get_args(wanted.annotation) or (wanted.annotation,) if wanted is not None else ()
        found |= {kind.__name__ for kind in kinds if inspect.isclass(kind)}
    return found - NO_UNETS


def test_every_unet_is_tested_or_refused():
    tested = {cls.__name__ for cls, _ in ARCHITECTURES.values()}
    known = unets_of_diffusers()
    assert len(known) >= 12, "the search finds them"
    assert known == (tested & known) | (refusals.UNETS.keys() & known)
    assert tested <= set(UNETS)
    assert not set(UNETS) & refusals.UNETS.keys()


def test_every_block_is_tested_or_refused():
    """Blocks of ``get_down_block`` and ``get_up_block``; those of other files belong to U-Nets that are tested whole."""
    named = (n for n, cls in vars(unet_2d_blocks).items() if inspect.isclass(cls))
    blocks = {n for n in named if n.endswith(("DownBlock2D", "UpBlock2D", "sampleBlock2D"))} - AUTOENCODERS
    tested = set()
    for cls, config in ARCHITECTURES.values():
        with torch.device("meta"):
            unet = cls(**config)
        tested |= {type(block).__name__ for block in (*unet.down_blocks, *unet.up_blocks)}
    assert blocks <= tested | refusals.BLOCKS.keys()
    ours = {*BLOCKS["down"], *BLOCKS["up"]}
    assert tested <= ours
    assert all("DreamLite" in b for b in ours - tested), "DreamLite's blocks are tested where diffusers has them"


@pytest.mark.parametrize("name", sorted(refusals.UNETS))
def test_other_unets_are_refused_by_name(name):
    cls = getattr(diffusers, name)
    unet = cls.__new__(cls)
    torch.nn.Module.__init__(unet)  # the class decides, before anything of the model is read
    why, way_out = refusals.UNETS[name]
    with pytest.raises(UnsupportedModelError) as caught:
        unetaccel.apply(unet, DeepCache())
    assert str(caught.value).startswith(f"{name} is not supported: {why}. {way_out} (")


def latent_upscaler():
    kinds = dict(
        down_block_types=("KDownBlock2D", "KCrossAttnDownBlock2D"), up_block_types=("KCrossAttnUpBlock2D", "KUpBlock2D")
    )
    return diffusers.UNet2DConditionModel(
        in_channels=8,
        block_out_channels=(32, 32),
        cross_attention_dim=32,
        attention_head_dim=8,
        mid_block_type=None,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        conv_in_kernel=1,
        conv_out_kernel=1,
        resnet_skip_time_act=True,
        **kinds,
    )


def test_the_latent_upscaler_is_refused_by_the_name_of_its_blocks(tiny):
    unet = latent_upscaler()
    pipe = make(tiny, SD("LatentUpscale"), unet)
    with pytest.raises(
        UnsupportedModelError, match=r"is a KDownBlock2D, which is not.*Accelerate the pipeline that makes"
    ):
        unetaccel.apply(pipe, DeepCache())
    assert pipe.unet is unet


@pytest.mark.parametrize("attention", ["", "Attn"])
def test_ncsnpp_is_refused_by_the_name_of_its_blocks(attention):
    """The U-Net of score-based models, as in ScoreSdeVePipeline."""
    kinds = dict(
        down_block_types=(f"{attention}SkipDownBlock2D",) * 2, up_block_types=(f"{attention}SkipUpBlock2D",) * 2
    )
    unet = diffusers.UNet2DModel(block_out_channels=(32, 32), **kinds)
    with pytest.raises(UnsupportedModelError, match=r"SkipDownBlock2D, which is not.*with fewer steps"):
        unetaccel.apply(unet, DeepCache())


def test_a_class_that_nobody_knows_is_refused_by_name():
    class StrangeUNet(torch.nn.Module):
        pass

    with pytest.raises(UnsupportedModelError, match=r"^StrangeUNet is not supported yet; supported U-Nets: UNet2DCond"):
        unetaccel.apply(StrangeUNet(), DeepCache())
