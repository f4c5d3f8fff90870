"""What kernel_bench times is right: every operation as it builds it, before a GPU is at hand."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kernel_cases import DEVICE

pytest.importorskip("triton", reason="optional: kernels are Triton's")


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "bench")
    return importlib.import_module("kernels_speed")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
def test_every_operation_passes_its_gate(speed, layout, dtype):
    works = speed.works_of((2, 32, 32, 8), dtype, layout, DEVICE)
    assert len({work.name for work in works}) == len(works) == 6
    for work in works:
        speed.gate(work, work.name)
        size = work.kernel().nbytes
        assert size < work.moved <= 5 * size


@torch.no_grad()
def test_a_wrong_one_stops_it(speed):
    work = speed.works_of((1, 32, 32, 4), torch.float32, torch.contiguous_format, DEVICE)[0]
    wrong = replace(work, kernel=lambda: work.kernel() * 1.01)
    with pytest.raises(SystemExit, match=r"blend of 3 is off by .* no speed is reported"):
        speed.gate(wrong, work.name)
