"""Every kernel compiles for three generations of GPUs, without one being there, and spills no register."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="optional: kernels are Triton's")

ROOT = Path(__file__).parents[2]


def run_bench(*arguments: str) -> subprocess.CompletedProcess:
    """In a process of its own: the one of these tests interprets kernels, and can compile none."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(ROOT / "bench" / "kernel_bench.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


def test_ahead_of_time(tmp_path):
    out, readme = tmp_path / "aot.json", tmp_path / "README.md"
    readme.write_text("before\n<!-- aot -->\nold\n<!-- /aot -->\nafter\n")
    result = run_bench("--aot", "--out", str(out), "--readme", str(readme))
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())["kernels"]
    names = {row["kernel"] for row in rows}
    assert {(row["kernel"], row["sm"]) for row in rows} == {(n, a) for n in names for a in (80, 90, 100)}
    for word in ("blend of 4", "concat, gate per pixel, channels last", "moments alone", "statistics", "norm and SiLU"):
        assert any(word in name for name in names), f"{word} is compiled"
    for row in rows:
        assert row["cubin"] > 0
        assert row["spilled"] == 0, row
        blocks = 65536 // (row["registers"] * 32 * row["warps"])
        assert blocks * row["warps"] >= 24, f"enough warps fit a multiprocessor to keep its memory busy: {row}"
        assert row["wide_loads"] > 0 or row["kernel"] == "statistics of groups", f"16 bytes at once: {row}"
    text = readme.read_text()
    assert text.startswith("before\n<!-- aot -->\n| kernel |")
    assert text.endswith("|\n<!-- /aot -->\nafter\n")
    assert "old" not in text


def test_without_a_gpu_nothing_is_timed():
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    result = run_bench()
    assert result.returncode == 1
    assert "no GPU here: kernels can be compiled (--aot)" in result.stderr
