"""The facade over the kernels: which backend is chosen, what it says, and that both give the same."""

import pytest
import torch
from kernel_cases import DEVICE, normal

from unetaccel import SettingError, ops

triton = pytest.mark.skipif(ops._missing() is not None, reason=f"optional: {ops._missing()}")
CPU = torch.zeros(2, 3, 4, 4)


@pytest.fixture
def uninterpreted(monkeypatch):
    """As users run it: no interpreter."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def without_triton(monkeypatch):
    monkeypatch.setattr(ops, "_missing", lambda: "Triton is not installed")


def test_on_cpu_it_is_pytorch_and_says_why(uninterpreted):
    choice = ops.choose(CPU)
    assert choice.backend == "torch"
    assert choice.because.startswith("kernels run on CUDA, and it is on cpu")
    assert ops.choose(CPU, "torch").because == "it was asked for"


@triton
def test_asking_for_triton_on_cpu_is_an_error_with_the_way_out(uninterpreted):
    with pytest.raises(
        SettingError,
        match=r"'triton' is not possible .* it is on cpu .*TRITON_INTERPRET=1.* Use kernels='auto' or 'torch'",
    ):
        ops.choose(CPU, "triton")


def test_asking_for_triton_without_it_says_how_to_get_it(without_triton):
    with pytest.raises(SettingError, match=r"backend='triton' is not possible: Triton is not installed"):
        ops.choose(CPU, "triton")
    assert ops.choose(CPU).backend == "torch"


def test_no_such_backend():
    with pytest.raises(SettingError, match="backend='cuda': expected 'auto', 'torch' or 'triton'"):
        ops.choose(CPU, "cuda")


class OnCuda:
    """What ``choose`` looks at, where there is no GPU."""

    is_cuda, dtype, device = True, torch.float16, torch.device("cuda")


def test_auto_takes_triton_on_cuda_where_it_is_there(monkeypatch, uninterpreted):
    monkeypatch.setattr(ops, "_missing", lambda: None)
    assert ops.choose(OnCuda()).backend == "triton"
    double = OnCuda()
    double.dtype = torch.float64
    assert ops.choose(double).backend == "torch"
    assert "it is torch.float64" in ops.choose(double).because


def test_auto_takes_pytorch_on_cuda_without_triton(without_triton):
    assert ops.choose(OnCuda()) == ops.Choice("torch", "Triton is not installed")


def test_what_triton_lacks(monkeypatch):
    found = ops._missing.__wrapped__
    monkeypatch.setattr(ops.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'unetaccel[triton]'" in found()
    monkeypatch.setattr(ops.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(ops.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert "neither gcc nor clang was found" in found()
    monkeypatch.setenv("CC", "tcc")
    assert found() is None


@triton
def test_both_backends_give_the_same():
    hidden, skip = normal(2, 5, 7, 3), normal(2, 3, 7, 3, seed=1)
    norm = torch.nn.GroupNorm(4, 8).to(DEVICE)
    table = ops.weight_table([[1.0, 0.0], [1.5, -0.5]], hidden.device)
    ones = hidden, torch.ones_like(hidden)
    results = {}
    for backend in ("torch", "triton"):
        joined, moments = ops.scale_concat(hidden, skip, 0.5, backend)
        gated, _ = ops.scale_concat(hidden, skip, normal(2, 3, 1, 1), backend)
        out = torch.empty_like(hidden)
        assert ops.forecast_blend(ones, table, 1, out, backend) is out
        results[backend] = [
            joined,
            gated,
            out,
            ops.forecast_blend(ones, [1.5, -0.5], backend=backend),
            ops.forecast_blend(ones, table, torch.tensor(1, device=DEVICE), backend=backend),
            ops.groupnorm_silu(joined, None, norm, moments, backend),
            ops.groupnorm_silu(hidden, skip, norm, backend=backend),
        ]
    for one, other in zip(*results.values(), strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(results["torch"][2], results["torch"][4])
