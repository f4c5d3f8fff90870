"""Folds: equal to scaling at run time, never stale, and honest about what a straddling group loses."""

import copy

import pytest
import torch
from diffusers import UNet2DModel

import unetaccel
from unetaccel import SettingError, SkipTuning
from unetaccel.folds import can_fold
from unetaccel.layouts import layout_of
from unetaccel.methods.skip_method import straddles
from unetaccel.shapes import build_shape


def both(unet, method, inputs):
    """Outputs of the U-Net as it is and with the method applied."""
    plain = unet(**inputs)[0]
    with unetaccel.apply(unet, method) as handle:
        return plain, handle.unet(**inputs)[0]


@torch.no_grad()
@pytest.mark.parametrize("where", ["shortcut", "norm_out"])
def test_folds_equal_the_runtime_and_leave_the_weights(tiny, architecture, where):
    unet = tiny.unet(architecture)
    inputs = tiny.inputs(unet)
    before = {name: (p.data_ptr(), p._version) for name, p in unet.named_parameters()}
    plain, runtime = both(unet, SkipTuning(0.6, where=where), inputs)
    _, folded = both(unet, SkipTuning(0.6, where=where, backend="fold"), inputs)
    assert (folded - runtime).norm() < 1e-5 * runtime.norm()
    assert (folded - plain).norm() > 1e-3 * plain.norm()
    assert {name: (p.data_ptr(), p._version) for name, p in unet.named_parameters()} == before


@torch.no_grad()
def test_folds_follow_the_weights(tiny):
    """LoRA loaded and fused, weights written: a fold is made anew, and where weights cannot be folded it runs."""
    unet = tiny.unet("one-layer")
    inputs = tiny.inputs(unet)
    with unetaccel.apply(unet, SkipTuning(0.5, where="shortcut", backend="fold")) as handle:
        handle.unet(**inputs)
        unet.up_blocks[-1].resnets[0].conv_shortcut.weight.mul_(2)
        folded = handle.unet(**inputs)[0]
        _add_lora(unet)
        adapted = handle.unet(**inputs)[0]
    assert torch.allclose(adapted, both(unet, SkipTuning(0.5, where="shortcut"), inputs)[1], rtol=1e-4, atol=1e-5)
    unet.disable_adapters()
    assert torch.allclose(folded, both(unet, SkipTuning(0.5, where="shortcut"), inputs)[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["runtime", "fold"])
def test_a_layer_exchanged_inside_a_video_resnet_is_noticed(tiny, backend):
    unet = tiny.unet("svd")
    inputs, method = tiny.inputs(unet), SkipTuning(0.5, where="shortcut", backend=backend)
    with unetaccel.apply(unet, method) as handle:
        before = handle.unet(**inputs)[0]
        resnet = unet.up_blocks[0].resnets[0].spatial_res_block
        resnet.conv_shortcut = copy.deepcopy(resnet.conv_shortcut)
        resnet.conv_shortcut.weight.mul_(2)
        after = handle.unet(**inputs)[0]
    assert not torch.allclose(after, before, rtol=1e-3, atol=1e-4)
    assert torch.equal(after, both(unet, method, inputs)[1])


@torch.no_grad()
@pytest.mark.parametrize("where", ["shortcut", "norm_out"])
def test_folds_follow_weights_that_change_without_a_mark(tiny, where):
    """diffusers' ``EMAModel`` writes through ``.data``: same storage, same version."""
    pipe, other = tiny.pipe("one-layer"), tiny.unet("one-layer", seed=1)
    method = SkipTuning(0.5, where=where, backend="fold")
    with unetaccel.apply(pipe, method):
        tiny.call(pipe, steps=2)
        versions = [p._version for p in pipe.unet.parameters()]
        for p, new in zip(pipe.unet.parameters(), other.parameters(), strict=True):
            p.data.copy_(new.data)
        assert versions == [p._version for p in pipe.unet.parameters()]
        ours = tiny.call(pipe, steps=2)
    with unetaccel.apply(pipe, method):
        assert torch.equal(ours, tiny.call(pipe, steps=2))


@pytest.mark.parametrize("where", ["shortcut", "norm_out"])
@pytest.mark.parametrize("options", [{}, {"compile": {"backend": "eager"}}], ids=["eager", "compiled"])
def test_folded_weights_are_trained_all_the_same(tiny, where, options):
    torch._dynamo.reset()
    unet = tiny.unet("one-layer").requires_grad_(True)
    inputs, grads = tiny.inputs(unet), []
    for method in (SkipTuning(0.5, where=where), SkipTuning(0.5, where=where, backend="fold")):
        with unetaccel.apply(unet, method, **options) as handle:
            handle.unet(**inputs)[0].square().mean().backward()
        grads.append([p.grad for p in unet.parameters()])
        unet.zero_grad()
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_tensors_that_are_not_what_they_seem_are_not_folded(tiny):
    class Packed(torch.Tensor):
        """Like those of torchao: a plain layer holds it, and its numbers are not its own."""

    layer = tiny.unet("one-layer").up_blocks[0].resnets[0].conv_shortcut
    assert can_fold(layer)
    layer.weight = torch.nn.Parameter(layer.weight.data.as_subclass(Packed), requires_grad=False)
    assert not can_fold(layer)
    assert not can_fold(torch.nn.GroupNorm(2, 4, affine=False))


def _add_lora(unet):
    from peft import LoraConfig

    torch.manual_seed(0)
    unet.add_adapter(LoraConfig(r=2, target_modules=["conv_shortcut"], init_lora_weights=False))


STRADDLING = {
    "sd15": (12, [2, 3, 5, 6]),
    "sdxl": (9, [2, 3, 5, 6]),
    "sdxl-refiner": (12, [2, 3, 5, 6]),
    "ddpm-cifar": (12, [2, 3]),
    "ddpm-lsun256": (18, [5, 6, 11, 12]),
}


@pytest.mark.parametrize("shape", STRADDLING)
def test_straddling_layers_of_real_configurations(shape):
    unet = build_shape(shape, device="meta")
    places = layout_of(unet).places(unet)
    assert (len(places), [p.skip.b for p in places if straddles(p)]) == STRADDLING[shape]


def test_what_folding_the_concat_loses(tiny):
    unet = tiny.unet("sd")
    with pytest.warns(UserWarning, match="loses part of its effect at skips 2, 3"):
        unetaccel.apply(unet, SkipTuning(0.5, backend="fold")).remove()
    errors = unetaccel.fold_errors(unet, SkipTuning(0.5))
    assert sorted(errors) == list(range(1, 9))  # skip 0 has rho 1
    for error in errors.values():
        assert error.effect > 1e-2
        assert (error.error > 1e-3) if error.straddles else (error.error < 1e-4)


def test_what_folding_loses_is_asked_of_folds_that_lose(tiny):
    unet = tiny.unet("one-layer").train()
    assert unetaccel.fold_errors(unet, SkipTuning(0.5)) == unetaccel.fold_errors(unet.eval(), SkipTuning(0.5))
    for method in (SkipTuning(0.5, where="shortcut"), unetaccel.ScaleLong()):
        with pytest.raises(SettingError, match="give a SkipTuning with where='concat'"):
            unetaccel.fold_errors(unet, method)
    with pytest.raises(SettingError, match=r"up_blocks\.\d\.resnets\.\d are offloaded, quantised or adapted"):
        unetaccel.fold_errors(unet.to("meta"), SkipTuning(0.5))


def test_straddling_layers_of_latent_diffusion_on_faces():
    """CompVis/ldm-celebahq-256: widths that no two neighbours share evenly."""
    blocks = {
        "down_block_types": ("DownBlock2D", *["AttnDownBlock2D"] * 3),
        "up_block_types": (*["AttnUpBlock2D"] * 3, "UpBlock2D"),
    }
    with torch.device("meta"):
        unet = UNet2DModel(sample_size=64, block_out_channels=(224, 448, 672, 896), attention_head_dim=32, **blocks)
    places = layout_of(unet).places(unet)
    assert (len(places), [p.skip.b for p in places if straddles(p)]) == (12, [2, 3, 5, 6, 8, 9])
