"""The kernels of GroupNorm with SiLU against PyTorch's in float64: one part and two, moments given and made."""

import pytest
import torch
from kernel_cases import DTYPES, LAYOUTS, check, normal, unwritten_is_nan
from torch.nn import functional

pytest.importorskip("triton", reason="optional: kernels are Triton's")

from unetaccel_kernels import reference
from unetaccel_kernels.groupnorm_silu import groupnorm_silu
from unetaccel_kernels.scale_concat import scale_concat

EPS = 1e-5


def parts(shape=(2, 5, 7, 3), skip_channels=3, layout="contiguous", dtype=torch.float32) -> tuple:
    N, _, H, W = shape
    skip = normal(N, skip_channels, H, W, dtype=dtype, seed=1, layout=layout) if skip_channels else None
    return normal(*shape, dtype=dtype, layout=layout), skip


def affine(hidden, skip, dtype=torch.float32) -> tuple:
    channels = hidden.shape[1] + (0 if skip is None else skip.shape[1])
    return normal(channels, dtype=dtype, seed=2) + 1, normal(channels, dtype=dtype, seed=3)


def normed(hidden, skip, groups=4, moments=None, dtype=torch.float32) -> torch.Tensor:
    """By the kernels, checked against float64."""
    weight, bias = affine(hidden, skip, dtype)
    with unwritten_is_nan():
        found = groupnorm_silu(hidden, skip, weight, bias, groups, EPS, moments)
    x = (hidden if skip is None else torch.cat([hidden, skip], 1)).double()
    if x.numel():
        exact = functional.silu(functional.group_norm(x, groups, weight.double(), bias.double(), EPS))
        deviation = (x.reshape(len(x), groups, -1).var(2, correction=0).min() + EPS).sqrt()
        check(found, exact, x.abs().max() / deviation * weight.abs().max() + bias.abs().max())
    assert found.shape == x.shape
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("skip_channels", [0, 3])
def test_one_part_and_two(skip_channels, dtype):
    hidden, skip = parts((2, 5 if skip_channels else 8, 7, 3), skip_channels, dtype=dtype)
    assert normed(hidden, skip, dtype=dtype).dtype == dtype
    normed(hidden, skip)  # with float32 weights


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    found = normed(*parts(layout=layout))
    assert found.is_contiguous(
        memory_format=torch.channels_last if layout.startswith("channels_last") else torch.contiguous_format
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("shape", "skip_channels", "groups"),
    [
        ((1, 2, 1, 1), 0, 1),
        ((1, 3, 2, 1), 1, 4),  # groups of one channel
        ((3, 4, 23, 29), 2, 3),  # more pixels than a tile
        ((2, 33, 5, 3), 39, 8),  # more channels than a tile, groups of 9: one straddles the seam
        ((1, 600, 1, 3), 0, 1),  # more channels in a group than moments are read at once
    ],
)
def test_sizes_and_groups_across_the_seam(shape, skip_channels, groups, layout):
    normed(*parts(shape, skip_channels, layout), groups)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_moments_of_the_concatenation_make_the_pass_over_the_parts_needless(layout):
    hidden, skip = parts((2, 5, 23, 29), layout=layout)
    joined, moments = scale_concat(hidden, skip, 0.5)
    assert torch.equal(normed(joined, None, moments=moments), normed(joined, None))
    normed(joined, None, moments=reference.moments_of(joined))
    wrong = moments.clone()
    wrong[..., 1] *= 4
    assert not torch.equal(groupnorm_silu(joined, None, *affine(joined, None), 4, EPS, wrong), normed(joined, None)), (
        "they are what it goes by"
    )


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # a SiLU far below 0
def test_constant_groups_give_the_bias():
    hidden = torch.full_like(normal(1, 4, 5, 5), 7.0)
    weight, bias = affine(hidden, None)
    found = groupnorm_silu(hidden, None, weight, bias, 2, EPS)
    torch.testing.assert_close(found, functional.silu(bias)[None, :, None, None].expand_as(hidden))


@pytest.mark.parametrize("shape", [(0, 5, 7, 3), (2, 5, 0, 3)])
def test_nothing_to_do(shape):
    normed(*parts(shape))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"groups": 3}, "8 channels do not divide into 3 groups"),
        ({"groups": 0}, "do not divide into 0 groups"),
        ({"weight": normal(7)}, r"weight and bias must be \(8,\), got \(7,\) and \(8,\)"),
        ({"moments": normal(2, 5, 1, 2)}, r"moments must be \(2, 8, chunks, 2\), got \(2, 5, 1, 2\)"),
        ({"skip": normal(2, 3, 3, 7)}, "differ in C alone"),
        ({"weight": normal(8).double()}, "kernels take"),
    ],
)
def test_wrong_arguments(changed, message):
    hidden, skip = parts()
    weight, bias = affine(hidden, skip)
    arguments = {"hidden": hidden, "skip": skip, "weight": weight, "bias": bias, "groups": 4, "eps": EPS} | changed
    with pytest.raises(ValueError, match=message):
        groupnorm_silu(**arguments)


def test_the_operator_is_what_it_says():
    hidden, skip = parts(layout="channels_last")
    torch.library.opcheck(groupnorm_silu, (hidden, skip, *affine(hidden, skip), 4, EPS))
