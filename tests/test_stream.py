"""Streams: forecasts by the kernel, whose weights go to the device once, are those by PyTorch."""

import pytest
import torch
from kernel_cases import normal

from unetaccel import ops
from unetaccel.forecast import Newton, table
from unetaccel.stream import Stream

pytestmark = pytest.mark.skipif(ops._missing() is not None, reason=f"optional: {ops._missing()}")

FLAGS = [i % 3 == 0 for i in range(12)]


@pytest.fixture
def blends(monkeypatch):
    """What each forecast is blended of: backend, number of features, weights."""
    seen = []

    def forecast_blend(features, weights, row=None, out=None, backend="auto"):
        seen.append((backend, len(features), weights))
        return original(features, weights, row, out, backend)

    original = ops.forecast_blend
    for module in ("stream", "ops"):
        monkeypatch.setattr(f"unetaccel.{module}.forecast_blend", forecast_blend)
    return seen


def forecasts(kernels: str, feature=normal) -> list:
    """Of a stream that gets the same full features each time."""
    stream = Stream(table(Newton(2), list(range(12)), FLAGS), kernels)
    found = []
    for i, full in enumerate(FLAGS):
        if full:
            if i:
                found.append(stream.expected(i))
            with stream.next_slot() as keep:
                keep(feature(2, 3, 4, 4, seed=i))
        else:
            found.append(forecast(stream, i))
    return found


def forecast(stream: Stream, i: int) -> torch.Tensor:
    found = stream.forecast(i)
    return found.tensor() if isinstance(found, ops.Blend) else found


def test_the_kernel_and_pytorch_forecast_alike(blends):
    by_torch = forecasts("torch")
    assert {backend for backend, *_ in blends} == {"torch"}
    blends.clear()
    by_kernel = forecasts("triton")
    for one, other in zip(by_kernel, by_torch, strict=True):
        torch.testing.assert_close(one, other)
    assert [(backend, count) for backend, count, *_ in blends] == [("triton", 3)] * len(blends), (
        "also with two kept so far"
    )
    tables = {weights.untyped_storage().data_ptr() for *_, weights in blends}
    assert len(tables) == 2, "the rows, and the checks of full evaluations"


def test_a_feature_that_is_kept_but_not_read_may_be_of_another_type(blends):
    def feature(*shape, seed):
        return normal(*shape, seed=seed, dtype=torch.float16 if seed == 0 else torch.float32)

    assert all(map(torch.equal, forecasts("triton", feature)[:5], forecasts("torch", feature)[:5]))


def test_new_tables_are_taken_to_the_device(blends):
    stream = Stream(table(Newton(2), list(range(12)), FLAGS), "triton")
    for i in (0, 3):
        with stream.next_slot() as keep:
            keep(normal(1, 2, 2, 2, seed=i))
    first = forecast(stream, 5)
    stream.follow(lambda start: table(Newton(2), [i * i for i in range(12)], FLAGS, start))
    assert not torch.equal(forecast(stream, 5), first)
