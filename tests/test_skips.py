"""The table of skips, on the real architectures, and the translation of foreign numberings."""

import pytest
import torch
from torch import nn

from unetaccel import SettingError, UnsupportedModelError
from unetaccel.shapes import build_shape
from unetaccel.skips import resolve_cut, skip_table

KNOWN = {  # count of skips; then (entry, channels of F, stride) for the first cuts and the last
    "sd15": (12, {0: ("up_blocks.3.resnets.2", 320, 1), 1: ("up_blocks.3.resnets.1", 320, 1), 2: ("up_blocks.3.resnets.0", 640, 1),
                  3: ("up_blocks.2.resnets.2", 640, 2), 11: ("up_blocks.0.resnets.0", 1280, 8)}),
    "sdxl": (9, {0: ("up_blocks.2.resnets.2", 320, 1), 2: ("up_blocks.2.resnets.0", 640, 1), 3: ("up_blocks.1.resnets.2", 640, 2),
                 8: ("up_blocks.0.resnets.0", 1280, 4)}),
    "ddpm-cifar": (12, {0: ("up_blocks.3.resnets.2", 128, 1), 2: ("up_blocks.3.resnets.0", 256, 1), 3: ("up_blocks.2.resnets.2", 256, 2),
                        11: ("up_blocks.0.resnets.0", 256, 8)}),
    "ddpm-lsun256": (18, {0: ("up_blocks.5.resnets.2", 128, 1), 3: ("up_blocks.4.resnets.2", 128, 2), 17: ("up_blocks.0.resnets.0", 512, 32)}),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_tables_of_known_models(name):
    count, entries = KNOWN[name]
    table = skip_table(build_shape(name, device="meta"))
    assert [s.b for s in table] == list(range(count))
    assert {b: (table[b].entry, table[b].hidden, table[b].stride) for b in entries} == entries


def test_sources_are_modules_that_make_tensors_of_that_shape(tiny, architecture):
    unet, seen = tiny.unet(architecture), {}
    table = skip_table(unet)

    def note(source):
        def hook(module, args, output):
            seen[source] = (output if isinstance(output, torch.Tensor) else output[0]).shape

        return hook

    for skip in table:
        unet.get_submodule(skip.source).register_forward_hook(note(skip.source))
    unet(**tiny.inputs(unet))
    for skip in table:
        assert tuple(seen[skip.source][1:]) == (skip.channels, 16 // skip.stride, 16 // skip.stride), skip


def test_cuts_by_other_names(tiny):
    table = skip_table(tiny.unet("sd-4-levels"))
    assert resolve_cut(4, table) == 4
    assert [resolve_cut(f"paper:{m}", table) for m in (1, 2, 12)] == [0, 1, 11]
    assert [resolve_cut(f"helper:{i}", table) for i in range(12)] == list(range(12))
    assert resolve_cut("up_blocks.3.resnets.0", table) == 2


@pytest.mark.parametrize(
    ("architecture_name", "expected"),
    [
        # one layer per block: ids 0, 1, 2 stay in block 0 (conv_in, layer, downsampler) and id 3 starts block 1
        ("one-layer", {0: 0, 1: 1, 2: 2, 3: 2, 4: 3, 5: 4}),
        # three layers per block: block 1 starts after its downsampler, skip 4; layer 3 of a block has no id
        ("three-layers", {0: 0, 1: 1, 2: 2, 3: 4, 4: 5, 5: 6, 6: 8}),
    ],
)
def test_helper_ids_follow_its_blocks_of_three(tiny, architecture_name, expected):
    table = skip_table(tiny.unet(architecture_name))
    assert {i: resolve_cut(f"helper:{i}", table) for i in expected} == expected


@pytest.mark.parametrize(
    "cut", [9, -1, "paper:0", "paper:10", "helper:9", "deep", "helper:x", 1.5, True, "up_blocks.9.resnets.0"]
)
def test_a_wrong_cut_says_what_is_allowed(tiny, cut):
    with pytest.raises(SettingError, match=r"9 skips|0\.\.8"):
        resolve_cut(cut, skip_table(tiny.unet("sd")))


def test_other_unets_and_blocks_are_refused_by_name(tiny):
    from diffusers import UNet1DModel

    with pytest.raises(
        UnsupportedModelError,
        match=r"UNet1DModel is not supported: it hands one skip.*with fewer steps.*supported U-Nets: UNet2DCondition",
    ):
        skip_table(UNet1DModel())
    unet = tiny.unet("sd")
    unet.up_blocks[1] = nn.Identity()
    with pytest.raises(UnsupportedModelError, match=r"up_blocks\.1 is a Identity"):
        skip_table(unet)


def test_compiled_unets_are_refused_with_the_way_out(tiny):
    unet = tiny.unet("sd")
    with pytest.raises(UnsupportedModelError, match="_orig_mod"):
        skip_table(torch.compile(unet))
    unet.compile()
    with pytest.raises(UnsupportedModelError, match="compiled in place"):
        skip_table(unet)
