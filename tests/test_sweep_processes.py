"""Sweeps of two processes: the first times, both know the rivals that its times name."""

import json
import os
import subprocess
import sys

from sweep_cases import SMALL

from unetaccel.sweep.rows import expand
from unetaccel.sweep.spec import sweep_from

SETTINGS = {**SMALL, "prompts": {"count": 4}, "seeds": [0], "batch": 2, "ways": [{"deepcache": {"interval": 3}}]}

WORKER = """
import atexit, json, os, sys
from pathlib import Path
import torch
from unetaccel.sweep import run
from unetaccel.sweep.spec import read_sweep

folder, draw = Path(sys.argv[1]), run._draw

def last():  # what is registered first is called last
    (folder / f"left-{os.environ['RANK']}.txt").write_text(str(torch.distributed.is_initialized()))

atexit.register(last)

def noting(pipe, rows, *rest):
    (folder / f"rows-{os.environ['RANK']}.json").write_text(json.dumps([row.id for row in rows]))
    draw(pipe, rows, *rest)

run._draw = noting
run.run_sweep(read_sweep(folder / "sweep.yaml"), folder / "run", folder / "result.json")
"""


def test_two_processes_agree_on_rows_and_rivals(tmp_path):
    (tmp_path / "sweep.yaml").write_text(json.dumps(SETTINGS))  # JSON is YAML
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               str(tmp_path / "worker.py"), str(tmp_path)]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=240)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rows-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert [(tmp_path / f"left-{rank}.txt").read_text() for rank in (0, 1)] == ["False"] * 2, (
        "the group is left in order"
    )
    named = [row.id for row in expand(sweep_from(SETTINGS))]
    assert first[: len(named)] == named
    assert len(first) > len(named), "no rival was added"
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["id"] for row in result["rows"]] == first
    assert set(result["rows"][1]["rivals"].values()) <= set(first)
    assert all(row["seconds"]["median"] > 0 for row in result["rows"])
    times = json.loads((tmp_path / "run" / "times.json").read_text())
    assert times["base"] == "ddim-6-plain"
    assert set(first) <= times["accounts"].keys()
    assert {len(account["ratios"]) for account in times["accounts"].values()} == {SETTINGS["timing"]["repeats"]}
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["images", "sweep.json", "sweep.lock", "times.json"]
    assert sum(1 for _ in tmp_path.rglob("run/images/*/*.png")) == len(first) * 4
