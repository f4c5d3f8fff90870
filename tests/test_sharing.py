"""One U-Net in several pipelines, and pipelines that are saved while accelerated."""

import diffusers
import pytest
import torch
from pipeline_cases import image, normal, spied

import unetaccel
from unetaccel import DeepCache

TEXT, IMAGE = diffusers.StableDiffusionPipeline, diffusers.StableDiffusionImg2ImgPipeline


def pipeline(tiny):
    """Every part is of the class that diffusers expects: ``from_pipe`` and ``from_pretrained`` insist on it."""
    from unetaccel.demo.pipeline import load_pipeline

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, **blocks).eval()
    parts = {"vae": vae, "unet": tiny.unet(), "scheduler": tiny.scheduler("DDIMScheduler")}
    return TEXT(**{**load_pipeline().components, **parts}, requires_safety_checker=False)


def call(pipe) -> torch.Tensor:
    options = {"image": image(), "strength": 0.8} if isinstance(pipe, IMAGE) else {"height": 64, "width": 64}
    options |= {"prompt_embeds": normal(1, 7, 32), "negative_prompt_embeds": normal(1, 7, 32, seed=1)}
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(**options, num_inference_steps=7, output_type="latent", generator=generator).images


def alternately(tiny, pipes, patterns) -> list[torch.Tensor]:
    """Two rounds over the pipelines: the second as the first."""
    rounds = []
    for _ in range(2):
        found = [spied(tiny, pipe, lambda pipe=pipe: call(pipe)) for pipe in pipes]
        assert [pattern for _, pattern in found] == patterns
        rounds.append([result for result, _ in found])
    assert all(map(torch.equal, *rounds))
    return rounds[0]


@pytest.mark.parametrize("kinds", [(TEXT, IMAGE), (IMAGE, TEXT)], ids=["img2img of text2img", "text2img of img2img"])
def test_from_pipe_of_a_plain_pipeline(tiny, kinds):
    """Either of the two may be accelerated, or both and differently; each is as if it were alone."""
    first = kinds[0].from_pipe(pipeline(tiny))
    second = kinds[1].from_pipe(first)
    whole = {TEXT: "F" * 7, IMAGE: "F" * 5}
    plain = alternately(tiny, [first, second], [whole[k] for k in kinds])
    threes, twos = ({TEXT: p, IMAGE: p[:5]} for p in ("F..F..F", "F.F.F.F"))
    with unetaccel.apply(first, DeepCache(interval=3, cut=1)):
        one, other = alternately(tiny, [first, second], [threes[kinds[0]], whole[kinds[1]]])
        assert torch.equal(other, plain[1])
        assert second.unet is not first.unet
        with unetaccel.apply(second, DeepCache(interval=2, cut=3)):
            both = alternately(tiny, [first, second], [threes[kinds[0]], twos[kinds[1]]])
            assert torch.equal(both[0], one)
            assert not torch.equal(both[1], plain[1])
    assert all(map(torch.equal, alternately(tiny, [first, second], [whole[k] for k in kinds]), plain))


@pytest.mark.parametrize("kinds", [(TEXT, IMAGE), (IMAGE, TEXT)], ids=["img2img of text2img", "text2img of img2img"])
def test_from_pipe_of_an_accelerated_pipeline(tiny, kinds):
    """The new pipeline gets the plain U-Net, and is plain until it is accelerated itself; removal comes in any order."""
    first = kinds[0].from_pipe(pipeline(tiny))
    original = first.unet
    plain = [call(first), call(kinds[1].from_pipe(first))]
    handle = unetaccel.apply(first, DeepCache(interval=3, cut=1))
    cached = call(first)
    second = kinds[1].from_pipe(first)
    assert type(second) is kinds[1]
    assert second.unet is original
    assert torch.equal(call(second), plain[1])
    assert torch.equal(call(first), cached)
    other = unetaccel.apply(second, DeepCache(interval=2, cut=3))
    threes, twos = ({TEXT: p, IMAGE: p[:5]} for p in ("F..F..F", "F.F.F.F"))
    both = alternately(tiny, [first, second], [threes[kinds[0]], twos[kinds[1]]])
    assert torch.equal(both[0], cached)
    handle.remove()
    assert torch.equal(call(first), plain[0])
    assert torch.equal(call(second), both[1])
    other.remove()
    assert torch.equal(call(second), plain[1])
    assert first.unet is second.unet is original


def test_auto_pipelines_of_an_accelerated_pipeline(tiny):
    first = pipeline(tiny)
    original = first.unet
    with unetaccel.apply(first, DeepCache(interval=3, cut=1)):
        second = diffusers.AutoPipelineForImage2Image.from_pipe(first)
    assert type(second) is IMAGE
    assert second.unet is original


def test_saved_while_applied_and_loaded_again(tiny, tmp_path):
    """What is saved is the plain pipeline: it loads without this package, and is accelerated like the first."""
    pipe = pipeline(tiny)
    plain = call(pipe)
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=1)):
        cached = call(pipe)
        pipe.save_pretrained(tmp_path)
        assert torch.equal(call(pipe), cached)
    loaded = TEXT.from_pretrained(tmp_path, local_files_only=True)
    assert type(loaded.unet) is diffusers.UNet2DConditionModel
    assert torch.equal(call(loaded), plain)
    with unetaccel.apply(loaded, DeepCache(interval=3, cut=1)):
        assert torch.equal(call(loaded), cached)
