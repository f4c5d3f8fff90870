"""Small random models of the real architectures, in the real pipeline classes. Nothing touches the network."""

from __future__ import annotations

import os

import torch

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton: its kernels then run on CPU tensors

import copy
import hashlib
from types import SimpleNamespace

import diffusers
import pytest
from architectures import ARCHITECTURES, CONTEXT, unet_inputs
from diffusers import (
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    MultiControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)

torch.set_num_threads(1)


def build_unet(name: str = "sd", seed: int = 0):
    torch.manual_seed(seed)
    cls, config = ARCHITECTURES[name]
    unet = cls(**config).eval().requires_grad_(False)
    for module in unet.modules():  # temporal layers start as the identity: give them something to do
        for silent in (getattr(module, "proj_out", None), getattr(module, "conv4", None)):
            if silent is not None:
                for p in silent.parameters():
                    torch.nn.init.normal_(p, std=0.1)
    return unet


def build_pipe(name: str = "sd", scheduler=None, seed: int = 0) -> StableDiffusionPipeline:
    torch.manual_seed(seed)
    vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).eval()
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=build_unet(name, seed),
        scheduler=scheduler or build_scheduler("DDIMScheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_lora_pipe(*adapters: str, targets: tuple[str, ...] = ("to_q", "conv1")) -> StableDiffusionPipeline:
    """A small pipeline whose U-Net has these LoRAs, random ones, active all of them."""
    from peft import LoraConfig

    pipe = build_pipe("one-layer")
    for seed, name in enumerate(adapters):
        torch.manual_seed(seed)
        config = LoraConfig(r=2, lora_alpha=2, target_modules=list(targets), init_lora_weights=False)
        pipe.unet.add_adapter(config, adapter_name=name)
    pipe.unet.set_adapters(list(adapters))
    return pipe


def build_controlnet(unet, seed: int = 0) -> ControlNetModel:
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 32, 32)).eval()
    zeros = [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]
    for module in zeros:  # untrained ControlNets add nothing
        torch.nn.init.normal_(module.weight, std=0.2)
    return net.requires_grad_(False)


def build_controlnet_pipe(count: int = 1) -> StableDiffusionControlNetPipeline:
    base = build_pipe()
    nets = [build_controlnet(base.unet, seed) for seed in range(count)]
    controlnet = nets[0] if count == 1 else MultiControlNetModel(nets)
    parts = {**base.components, "image_encoder": None, "controlnet": controlnet}
    pipe = StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_scheduler(name: str, **options):
    base = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    )
    return getattr(diffusers, name).from_config(base.config, **options)


def call_pipe(pipe, steps: int = 10, seed: int = 0, batch: int = 1, size: int = 128, **options) -> torch.Tensor:
    """Latents of one call; equal for equal arguments."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(2, batch, 7, CONTEXT, generator=torch.Generator().manual_seed(100 + seed))
    defaults = dict(height=size, width=size, output_type="latent", num_inference_steps=steps)
    guidance = {"prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1]}
    return pipe(**{**defaults, **guidance, "generator": generator, **options}).images


class Spy:
    """Counts whole-U-Net work by hooks on shared leaves: evidence that does not come from the code under test."""

    def __init__(self, unet):
        self.evaluations = self.full = 0
        self.pattern = ""
        deepest = unet.down_blocks[-1].resnets[0]
        self._hooks = [unet.conv_in.register_forward_hook(self._started), deepest.register_forward_hook(self._deep)]

    def _started(self, *_):
        self.evaluations += 1
        self.pattern += "."

    def _deep(self, *_):
        self.full += 1
        self.pattern = self.pattern[:-1] + "F"

    def stop(self) -> str:
        for hook in self._hooks:
            hook.remove()
        return self.pattern


def snapshot(pipe) -> dict:
    """Everything that removal must leave as it was."""
    unet = pipe.unet
    modules = {
        name: (
            id(m),
            type(m),
            tuple(m.__dict__),
            tuple(map(id, m._modules.values())),
            len(m._forward_hooks),
            len(m._forward_pre_hooks),
        )
        for name, m in unet.named_modules()
    }
    tensors = {name: (id(p), p.data_ptr(), p._version) for name, p in [*unet.named_parameters(), *unet.named_buffers()]}
    digest = hashlib.sha256()
    for name, value in unet.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return {
        "unet": (id(unet), type(unet)),
        "modules": modules,
        "tensors": tensors,
        "bytes": digest.hexdigest(),
        "pipe": (type(pipe), {k: id(v) for k, v in pipe.__dict__.items()}, copy.deepcopy(dict(pipe.config))),
        "scheduler": (type(pipe.scheduler), {k: repr(v) for k, v in pipe.scheduler.__dict__.items()}),
    }


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The builders of this file, for tests in any folder."""
    return SimpleNamespace(
        ARCHITECTURES=ARCHITECTURES,
        unet=build_unet,
        inputs=unet_inputs,
        pipe=build_pipe,
        lora_pipe=build_lora_pipe,
        scheduler=build_scheduler,
        controlnet=build_controlnet,
        controlnet_pipe=build_controlnet_pipe,
        call=call_pipe,
        Spy=Spy,
        snapshot=snapshot,
    )


def pytest_generate_tests(metafunc):
    """``architecture`` runs over every architecture, and ``architecture_cut`` over every cut of each."""
    if "architecture" in metafunc.fixturenames:
        metafunc.parametrize("architecture", ARCHITECTURES)
    if "architecture_cut" in metafunc.fixturenames:
        counts = {name: sum(len(b.resnets) for b in build_unet(name).up_blocks) for name in ARCHITECTURES}
        pairs = [(name, b) for name, n in counts.items() for b in range(n)]
        metafunc.parametrize("architecture_cut", pairs, ids=[f"{name}-{b}" for name, b in pairs])
