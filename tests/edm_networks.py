"""Small random networks of the structure that EDM's have: written for these tests, with EDM's names and conventions only."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


class Conv2d(nn.Module):
    """A convolution that may double or halve the size first; EDM's is a class of its own too."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, up: bool = False, down: bool = False):
        super().__init__()
        self.in_channels, self.out_channels, self.up, self.down = in_channels, out_channels, up, down
        std = 1 / math.sqrt(in_channels * kernel * kernel)
        self.weight = nn.Parameter(std * torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(0.1 * torch.randn(out_channels))

    def forward(self, x):
        if self.up:
            x = functional.interpolate(x, scale_factor=2.0)
        if self.down:
            x = functional.avg_pool2d(x, 2)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return functional.conv2d(x, weight, bias, padding=self.weight.shape[-1] // 2)


class GroupNorm(nn.Module):
    """Of at most 32 groups, each of 4 channels or more."""

    def __init__(self, channels: int):
        super().__init__()
        self.num_groups, self.eps = min(32, channels // 4), 1e-5
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(channels))
        self.bias = nn.Parameter(0.1 * torch.randn(channels))

    def forward(self, x):
        return functional.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class Block(nn.Module):
    """A residual block; ``scale`` multiplies the sum of both paths."""

    def __init__(self, in_channels, out_channels, emb, up=False, down=False, attention=False, scale=1.0):
        super().__init__()
        self.in_channels, self.out_channels, self.skip_scale = in_channels, out_channels, scale
        self.norm0, self.norm1 = GroupNorm(in_channels), GroupNorm(out_channels)
        self.conv0 = Conv2d(in_channels, out_channels, 3, up, down)
        self.affine = nn.Linear(emb, 2 * out_channels)
        self.conv1 = Conv2d(out_channels, out_channels, 3)
        resized = in_channels != out_channels or up or down
        self.skip = Conv2d(in_channels, out_channels, 1, up, down) if resized else None
        self.attention = nn.MultiheadAttention(out_channels, 1, batch_first=True) if attention else None

    def forward(self, x, emb):
        scale, shift = self.affine(emb)[:, :, None, None].to(x.dtype).chunk(2, dim=1)
        h = self.conv0(functional.silu(self.norm0(x)))
        h = self.conv1(functional.silu(self.norm1(h) * (1 + scale) + shift))
        x = h.add_(x if self.skip is None else self.skip(x)) * self.skip_scale
        if self.attention is not None:
            tokens = x.flatten(2).transpose(1, 2)
            x = x + self.attention(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).unflatten(
                2, x.shape[2:]
            )
        return x


class Network(nn.Module):
    """What both kinds share: flat ``enc`` and ``dec``, and the rule by which the decoder takes skips."""

    def __init__(
        self, side, widths, blocks, emb, attention=(), scale=1.0, channels=3, labels=0, first=None, pyramid=False
    ):
        super().__init__()
        self.pyramid = pyramid
        self.emb, options = emb, {"emb": emb, "scale": scale}
        self.map_noise = nn.Linear(1, emb)
        self.map_label = nn.Linear(labels, emb, bias=False) if labels else None
        self.enc, self.dec, now = nn.ModuleDict(), nn.ModuleDict(), first or widths[0]
        made = []
        for level, width in enumerate(widths):
            size = side >> level
            if level == 0:
                self.enc[f"{size}x{size}_conv"] = Conv2d(channels, now, 3)
            else:
                self.enc[f"{size}x{size}_down"] = Block(now, now, down=True, **options)
                self.encoder_extra(level, size, channels, now)
            made.append(now)
            for i in range(blocks):
                self.enc[f"{size}x{size}_block{i}"] = Block(now, width, attention=size in attention, **options)
                now = width
                made.append(now)
        for level, width in reversed(list(enumerate(widths))):
            size = side >> level
            if level == len(widths) - 1:
                self.dec[f"{size}x{size}_in0"] = Block(now, now, attention=True, **options)
                self.dec[f"{size}x{size}_in1"] = Block(now, now, **options)
            else:
                self.dec[f"{size}x{size}_up"] = Block(now, now, up=True, **options)
            for i in range(blocks + 1):
                here = size in attention
                self.dec[f"{size}x{size}_block{i}"] = Block(now + made.pop(), width, attention=here, **options)
                now = width
            self.decoder_extra(level, size, channels, now, last=len(widths) - 1)
        assert not made

    def encoder_extra(self, level, size, channels, width):
        pass

    def decoder_extra(self, level, size, channels, width, last):
        pass

    def embed(self, noise_labels, class_labels):
        emb = self.map_noise(noise_labels[:, None])
        return functional.silu(emb if self.map_label is None else emb + self.map_label(class_labels)).to(emb.dtype)


class Adm(Network):
    """As EDM builds ADM's network."""

    def __init__(self, side=16, widths=(16, 32, 48), blocks=3, emb=32, **options):
        super().__init__(side, widths, blocks, emb, **options)
        self.out_norm, self.out_conv = GroupNorm(widths[0]), Conv2d(widths[0], 3, 3)

    def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
        emb, skips = self.embed(noise_labels, class_labels).to(x.dtype), []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for layer in self.dec.values():
            if x.shape[1] != layer.in_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = layer(x, emb)
        return self.out_conv(functional.silu(self.out_norm(x)))


class Song(Network):
    """As EDM builds DDPM++ and, with ``pyramid`` (a small picture beside the hidden state, both ways), NCSN++."""

    def __init__(self, side=16, widths=(16, 32, 32), blocks=2, emb=32, **options):
        super().__init__(side, widths, blocks, emb, scale=math.sqrt(0.5), **options)

    def encoder_extra(self, level, size, channels, width):
        if self.pyramid:
            self.enc[f"{size}x{size}_aux_down"] = Conv2d(channels, channels, 1, down=True)
            self.enc[f"{size}x{size}_aux_skip"] = Conv2d(channels, width, 1)

    def decoder_extra(self, level, size, channels, width, last):
        if level == 0 or self.pyramid:
            if self.pyramid and level < last:
                self.dec[f"{size}x{size}_aux_up"] = Conv2d(channels, channels, 1, up=True)
            self.dec[f"{size}x{size}_aux_norm"] = GroupNorm(width)
            self.dec[f"{size}x{size}_aux_conv"] = Conv2d(width, channels, 3)

    def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
        emb, skips, picture = self.embed(noise_labels, class_labels), [], x
        for name, layer in self.enc.items():
            if "aux_down" in name:
                picture = layer(picture)
            elif "aux_skip" in name:
                x = skips[-1] = x + layer(picture)
            else:
                x = layer(x, emb) if isinstance(layer, Block) else layer(x)
                skips.append(x)
        picture = normed = None
        for name, layer in self.dec.items():
            if "aux_up" in name:
                picture = layer(picture)
            elif "aux_norm" in name:
                normed = layer(x)
            elif "aux_conv" in name:
                small = layer(functional.silu(normed))
                picture = small if picture is None else picture + small
            else:
                if x.shape[1] != layer.in_channels:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = layer(x, emb)
        return picture


class Precond(nn.Module):
    """EDM's preconditioner, equations 7 and 8 of its paper: (x, sigma) -> the denoised picture."""

    def __init__(self, model, side=16, labels=0):
        super().__init__()
        self.model, self.sigma_data = model, 0.5
        self.img_resolution, self.img_channels, self.label_dim = side, 3, labels
        self.sigma_min, self.sigma_max = 0.0, math.inf

    def forward(self, x, sigma, class_labels=None, force_fp32=False, **model_kwargs):
        x, sigma = x.to(torch.float32), sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        if self.label_dim and class_labels is None:
            class_labels = torch.zeros(1, self.label_dim, device=x.device)
        total = sigma**2 + self.sigma_data**2
        skipped, noise = self.sigma_data**2 / total * x, sigma.log().flatten() / 4
        inner = self.model(x / total.sqrt(), noise.expand(len(x)), class_labels=class_labels, **model_kwargs)
        return skipped + sigma * self.sigma_data / total.sqrt() * inner

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)


NETWORKS = {
    "adm": lambda **options: Adm(**options),
    "ddpm++": lambda **options: Song(attention=(8,), **options),
    "ncsn++": lambda **options: Song(pyramid=True, **options),
}


def build_network(name: str, labels: int = 0, seed: int = 0) -> Precond:
    torch.manual_seed(seed)
    return Precond(NETWORKS[name](labels=labels), labels=labels).eval().requires_grad_(False)
