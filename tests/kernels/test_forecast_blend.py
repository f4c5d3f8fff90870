"""The kernel of the forecast blend against the float64 sum: types, layouts, sizes, rows on the device, given outputs."""

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, LAYOUTS, check, normal, unwritten_is_nan

pytest.importorskip("triton", reason="optional: kernels are Triton's")

from unetaccel_kernels.forecast_blend import forecast_blend, forecast_blend_out

WEIGHTS = [[1.0], [1.4, -0.4], [1.75, -4 / 3, 7 / 12], [0.7, 0.3, 0.15, -0.15]]


def table(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32, device=DEVICE)


def features(count: int, shape=(2, 5, 7, 3), layout="contiguous", dtype=torch.float32) -> list:
    return [normal(*shape, dtype=dtype, seed=i, layout=layout) for i in range(count)]


def exact(features: list, weights: list) -> tuple:
    """The sum, and the sum of the terms' magnitudes."""
    weights = torch.tensor(weights).double().tolist()  # as float32 holds them
    terms = [f.double() * w for f, w in zip(features, weights, strict=True)]
    return sum(terms), sum(t.abs() for t in terms)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", WEIGHTS, ids=len)
def test_types_and_numbers_of_features(weights, dtype):
    given = features(len(weights), dtype=dtype)
    with unwritten_is_nan():
        found = forecast_blend(given, table(weights))
    assert found.dtype == dtype
    check(found, *exact(given, weights))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("other", ["contiguous", "channels_last"])
def test_layouts_also_mixed(layout, other):
    given = [*features(1, layout=layout), *features(2, layout=other)]
    with unwritten_is_nan():
        check(forecast_blend(given, table(WEIGHTS[2])), *exact(given, WEIGHTS[2]))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 1, 3), (3, 2, 45, 17), (1, 4, 32, 32), (4097,), (0, 5, 7, 3)])
def test_sizes(shape):
    given = features(2, shape)
    with unwritten_is_nan():
        found = forecast_blend(given, table(WEIGHTS[1]))
    assert found.shape == shape
    check(found, *exact(given, WEIGHTS[1]))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("start", [0, 6])
def test_into_a_slice_of_channels(layout, start):
    given = features(3, layout=layout, dtype=torch.float16)
    buffer = normal(2, 11, 7, 3, dtype=torch.float16, layout=layout).fill_(float("nan"))
    out = buffer[:, start : start + 5]
    forecast_blend_out(given, table(WEIGHTS[2]), None, out)
    check(out, *exact(given, WEIGHTS[2]))
    rest = [c for c in range(11) if not start <= c < start + 5]
    assert buffer[:, rest].isnan().all(), "nothing else was written"


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_the_row_lies_on_the_device_and_is_clamped(dtype):
    given = features(2)
    weights = table([1.0, 0.0], [0.25, 0.75], [2.0, -1.0])
    for at, row in [(0, 0), (1, 1), (2, 2), (9, 2), (-1, 0)]:
        found = forecast_blend(given, weights, torch.tensor([at], dtype=dtype, device=DEVICE))
        check(found, *exact(given, weights[row].tolist()))


def test_a_feature_of_weight_zero_is_not_read():
    given = features(2)
    unread = torch.full_like(given[0], float("nan"))
    found = forecast_blend([unread, given[0], unread, given[1]], table([0.0, 1.5, 0.0, -0.5]))
    check(found, *exact(given, [1.5, -0.5]))


def test_it_is_summed_in_float32():
    given = [torch.full((3,), 40000.0, dtype=torch.float16, device=DEVICE)] * 2
    assert forecast_blend(given, table([1.9, -0.9])).tolist() == [40000.0] * 3


@pytest.mark.parametrize(
    ("given", "weights", "row", "message"),
    [
        ([], [[1.0]], None, "expected features with one weight each, got 0"),
        (features(2), [[1.0]], None, "one weight each, got 2 and 1"),
        (features(5), [[0.2] * 5], None, "blends up to 4 features, got 5"),
        ([normal(2, 3), normal(3, 2)], [[1.0, 1.0]], None, "must share shape, dtype and device"),
        ([normal(3).double()], [[1.0]], None, "kernels take torch.float16, torch.bfloat16, torch.float32, got torch.float64"),
        (features(1), [1.0], None, "float32 table"),
        (features(1), [[1.0]], torch.tensor([0.0]), "row must be one int32 or int64"),
        (features(1), [[1.0]], torch.tensor([0, 0]), "row must be one int32 or int64"),
    ],
)  # fmt: skip
def test_wrong_arguments(given, weights, row, message):
    with pytest.raises(ValueError, match=message):
        forecast_blend(given, torch.tensor(weights, device=DEVICE), row if row is None else row.to(DEVICE))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (lambda f: f.new_empty((2, 5, 7, 4)), "out must be"),
        (lambda f: f.new_empty((2, 5, 7, 3), dtype=torch.float16), "out must be"),
        (lambda f: f.new_empty((2, 5, 1, 3)).expand_as(f), "or a slice of a dense tensor"),
    ],
)
def test_wrong_outputs(out, message):
    given = features(1)
    with pytest.raises(ValueError, match=message):
        forecast_blend_out(given, table([1.0]), None, out(given[0]))


def test_the_operator_is_what_it_says():
    given, weights, row = (
        features(2, layout="channels_last"),
        table([1.5, -0.5]),
        torch.zeros(1, dtype=torch.int32, device=DEVICE),
    )
    torch.library.opcheck(forecast_blend, (given, weights, row))
    torch.library.opcheck(forecast_blend_out, (given, weights, row, torch.empty_like(given[0])))
