"""Quantised layers are leaves like others: both views share them, whoever replaced them and whenever."""

from collections.abc import Callable

import diffusers
import pytest
import torch
from pipeline_cases import CASES, PLANNED, SD, check, make, sampler, spied
from torch import nn

import unetaccel
from unetaccel import DeepCache

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


def swap_linears(module: nn.Module, quantised: Callable[[nn.Linear], nn.Module]) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, quantised(child))
        else:
            swap_linears(child, quantised)


def torchao_int8(unet) -> None:
    torchao = pytest.importorskip("torchao.quantization", exc_type=ImportError)
    torchao.quantize_(unet, torchao.Int8WeightOnlyConfig())


def bitsandbytes(unet, four_bits: bool) -> None:
    bnb = pytest.importorskip("bitsandbytes").nn

    def quantised(linear: nn.Linear) -> nn.Module:
        sizes = dict(
            input_features=linear.in_features, output_features=linear.out_features, bias=linear.bias is not None
        )
        if four_bits:
            layer = bnb.Linear4bit(**sizes, compute_dtype=torch.float32, quant_type="nf4")
            layer.weight = bnb.Params4bit(linear.weight.data.clone(), False, quant_type="nf4", module=layer)
        else:
            layer = bnb.Linear8bitLt(**sizes, has_fp16_weights=False)
            layer.weight = bnb.Int8Params(linear.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
        layer.bias = linear.bias
        return layer.to("cpu")

    swap_linears(unet, quantised)


class Rounded(nn.Module):
    """A linear layer with weights in 8 bits and one scale per output: y = (x q^T) s + b."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        scale = linear.weight.abs().amax(1).clamp_min(1e-8) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight / scale[:, None]).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x):
        y = (x @ self.weight.to(x.dtype).T) * self.scale
        return y if self.bias is None else y + self.bias


KINDS = {
    "torch": lambda unet: torch.ao.quantization.quantize_dynamic(unet, {nn.Linear}, inplace=True),
    "by hand": lambda unet: swap_linears(unet, Rounded),
    "torchao": torchao_int8,
    "bitsandbytes, 8 bits": lambda unet: bitsandbytes(unet, four_bits=False),
    "bitsandbytes, 4 bits": lambda unet: bitsandbytes(unet, four_bits=True),
}


@pytest.mark.parametrize("name", KINDS)
def test_quantised_before_or_after_apply(tiny, name):
    pipe, call = CASES["text2img"].build(tiny)
    unquantised = call()
    KINDS[name](pipe.unet)
    assert not torch.equal(call(), unquantised), "quantising changes the result"
    expected = check(tiny, pipe, call, cut=4)
    pipe, call = CASES["text2img"].build(tiny)
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=4)) as handle:
        call()
        KINDS[name](pipe.unet)
        found, pattern = spied(tiny, pipe, call)
        assert pattern == PLANNED
        assert torch.equal(found, expected)
        assert 0 < handle.summary().cached_macs_share < 1, "costs are counted on a twin without the quantised layers"


def test_a_quantised_model_as_diffusers_loads_it(tiny, tmp_path):
    torchao = pytest.importorskip("torchao.quantization", exc_type=ImportError)
    tiny.unet().save_pretrained(tmp_path)
    config = diffusers.TorchAoConfig(torchao.Int8WeightOnlyConfig())
    unet = diffusers.UNet2DConditionModel.from_pretrained(
        tmp_path, quantization_config=config, torch_dtype=torch.float32
    )
    assert "Int8" in type(unet.time_embedding.linear_1.weight).__name__
    pipe = make(tiny, SD(""), unet)
    check(tiny, pipe, sampler(pipe))
