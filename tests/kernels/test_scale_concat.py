"""The kernel that scales and concatenates: the concatenation bit for bit, its moments, any groups of them."""

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, LAYOUTS, check, normal, unwritten_is_nan

pytest.importorskip("triton", reason="optional: kernels are Triton's")

from unetaccel_kernels import reference
from unetaccel_kernels.scale_concat import scale_concat, scale_concat_into


def parts(shape=(2, 5, 7, 3), skip_channels=3, layout="contiguous", dtype=torch.float32) -> tuple:
    N, _, H, W = shape
    return normal(*shape, dtype=dtype, layout=layout), normal(
        N, skip_channels, H, W, dtype=dtype, seed=1, layout=layout
    )


def joined(hidden, skip, scale=1.0) -> tuple:
    number, gate = (1.0, scale) if isinstance(scale, torch.Tensor) else (scale, None)
    with unwritten_is_nan():
        return scale_concat(hidden, skip, number, gate)


def check_moments(moments, x, groups) -> None:
    """Groups of channels have the mean and variance that float64 finds, to the rounding of float32 sums of their numbers."""
    found = reference.group_statistics(moments.double(), groups, x.shape[2] * x.shape[3])
    grouped = x.double().reshape(len(x), groups, -1)
    amplitude = 16 * torch.finfo(torch.float32).eps
    mean, variance = grouped.mean(2), grouped.var(2, correction=0)
    assert not moments.isnan().any(), "a moment was not written"
    assert ((found[0] - mean).abs() <= amplitude * grouped.abs().mean(2)).all()
    assert ((found[1] - variance).abs() <= amplitude * (variance + grouped.abs().mean(2) * variance.sqrt())).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["number", "tensor", "channel", "pixel"])
def test_scales_and_types(kind, dtype):
    hidden, skip = parts(dtype=dtype)
    gates = {"tensor": (), "channel": (2, 3, 1, 1), "pixel": (2, 1, 7, 3)}
    scale = 0.7 if kind == "number" else normal(*gates[kind], seed=2)
    found, moments = joined(hidden, skip, scale)
    assert torch.equal(found[:, :5], hidden)
    exact = skip.double() * (torch.tensor(scale).double() if kind == "number" else scale.double())
    check(found[:, 5:], exact, exact.abs())
    check_moments(moments, found, 4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    hidden, skip = parts(layout=layout)
    found, moments = joined(hidden, skip, 0.5)
    assert torch.equal(found, torch.cat([hidden, 0.5 * skip], 1))
    assert found.is_contiguous(
        memory_format=torch.channels_last if layout.startswith("channels_last") else torch.contiguous_format
    )
    check_moments(moments, found, 2)


@pytest.mark.parametrize("gate", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 1, 7, 3), (2, 3, 1, 1)])
def test_layouts_of_gates(shape, gate):
    hidden, skip = parts()
    scale = normal(*shape, seed=2, layout=gate)
    assert torch.equal(joined(hidden, skip, scale)[0], torch.cat([hidden, scale * skip], 1))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("shape", "skip_channels", "groups"),
    [
        ((1, 1, 1, 1), 1, 1),
        ((3, 4, 23, 29), 2, 3),  # more pixels than a tile
        ((2, 33, 5, 3), 39, 8),  # more channels than a tile, groups of 9: one straddles the seam
        ((1, 3, 1, 17), 5, 2),
        ((1, 3, 17, 1), 5, 2),
    ],
)
def test_sizes_and_groups_across_the_seam(shape, skip_channels, groups, layout):
    hidden, skip = parts(shape, skip_channels, layout)
    found, moments = joined(hidden, skip)
    assert torch.equal(found, torch.cat([hidden, skip], 1))
    check_moments(moments, found, groups)


def test_variance_survives_a_mean_far_larger():
    hidden, skip = (x + 3000 for x in parts((1, 4, 40, 40), 4))
    found, moments = joined(hidden, skip)
    check_moments(moments, found, 2)
    sums = moments[..., 0].sum(2).reshape(1, 2, -1).sum(2)
    of_squares = found.square().reshape(1, 2, -1).sum(2) / 6400 - (sums / 6400).square()
    assert ((of_squares - 1).abs() > 0.1).any(), "sums of squares about zero would not do here"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kind", ["number", "channel"])
@pytest.mark.parametrize(("shape", "skip_channels"), [((2, 5, 7, 3), 3), ((2, 33, 23, 29), 39), ((0, 5, 7, 3), 3)])
def test_into_what_holds_the_hidden_part_already(shape, skip_channels, kind, layout, dtype):
    hidden, skip = parts(shape, skip_channels, layout, dtype)
    scale = 0.7 if kind == "number" else normal(len(skip), skip_channels, 1, 1, seed=2)
    expected, moments = joined(hidden, skip, scale)
    buffer = torch.full_like(expected, float("nan"))
    buffer[:, : hidden.shape[1]] = hidden
    number, gate = (0.7, None) if kind == "number" else (1.0, scale)
    with unwritten_is_nan():
        found = scale_concat_into(buffer, skip, number, gate)
    assert torch.equal(buffer, expected)
    assert torch.equal(found, moments)
    again = torch.full_like(buffer, float("nan"))
    again[:, : hidden.shape[1]] = hidden
    reference.scale_concat_into(again, skip, scale)
    torch.testing.assert_close(again, buffer)


def test_into_something_that_leaves_no_room():
    _, skip = parts()
    for into in (scale_concat_into, reference.scale_concat_into):
        with pytest.raises(ValueError, match="with more channels than the skip"):
            into(skip.clone(), skip)


@pytest.mark.parametrize("shape", [(0, 5, 7, 3), (2, 5, 0, 3)])
def test_nothing_to_do(shape):
    found, moments = joined(*parts(shape))
    assert found.shape == (shape[0], 8, *shape[2:])
    assert moments.shape[:2] == found.shape[:2]
    assert moments.shape[3] == 2


def test_one_tensor_twice():
    hidden, _ = parts()
    assert torch.equal(joined(hidden, hidden, 2.0)[0], torch.cat([hidden, 2 * hidden], 1))


@pytest.mark.parametrize(
    ("hidden", "skip", "gate", "message"),
    [
        (normal(2, 5, 7, 3), normal(2, 3, 7, 4), None, "differ in C alone"),
        (normal(2, 5, 7, 3), normal(2, 3, 7, 3, dtype=torch.float16), None, "differ in C alone"),
        (normal(2, 5), normal(2, 3), None, "differ in C alone"),
        (normal(2, 5, 7, 3).double(), normal(2, 3, 7, 3).double(), None, "kernels take"),
        (normal(2, 5, 7, 3), normal(2, 3, 7, 3), normal(2, 5, 1, 1), "scale must be a number or"),
        (normal(2, 5, 7, 3), normal(2, 3, 7, 3), torch.ones((), dtype=torch.int32, device=DEVICE), "floating-point"),
    ],
)
def test_wrong_arguments(hidden, skip, gate, message):
    with pytest.raises(ValueError, match=message):
        scale_concat(hidden, skip, 1.0, gate)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_operator_is_what_it_says(layout):
    hidden, skip = parts((1, 5, 23, 29), layout=layout)
    torch.library.opcheck(scale_concat, (hidden, skip, 1.0, normal(1, 3, 1, 1)))
    torch.library.opcheck(scale_concat, (hidden, skip, 0.5))
    torch.library.opcheck(scale_concat_into, (torch.cat([hidden, skip], 1), skip, 0.5))
