"""The reference of the forecast blend: its rounding, its limits, its errors."""

import pytest
import torch

from unetaccel_kernels.reference import forecast_blend


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [[1.0], [1.4, -0.4], [1.75, -4 / 3, 7 / 12], [0.7, 0.3, 0.15, -0.15]])
def test_one_rounding_from_the_float64_sum(dtype, weights):
    torch.manual_seed(0)
    features = [torch.randn(2, 5, 7, 3).to(dtype) for _ in weights]
    exact = sum(f.double() * w for f, w in zip(features, weights, strict=True))
    found = forecast_blend(features, weights)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6 if dtype != torch.float64 else 1e-15
    )


def test_hold_is_the_feature_itself():
    feature = torch.randn(1, 3, 4, 4).bfloat16()
    assert torch.equal(forecast_blend([feature], [1.0]), feature)


def test_half_precision_history_is_not_summed_in_half_precision():
    features = [torch.full((1,), 40000.0, dtype=torch.float16)] * 2
    assert forecast_blend(features, [1.9, -0.9]).item() == pytest.approx(40000.0)


@pytest.mark.parametrize(("shapes", "weights"), [([], []), ([(2,)], [0.5, 0.5]), ([(2,), (3,)], [0.5, 0.5])])
def test_wrong_arguments(shapes, weights):
    with pytest.raises(ValueError, match=r"expected features with one weight each|must share shape"):
        forecast_blend([torch.zeros(s) for s in shapes], weights)
