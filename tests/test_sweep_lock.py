"""Sweeps: one run at a time in a folder, and none locked out by one that was killed."""

import subprocess
import sys

import pytest
from sweep_cases import SMALL

from unetaccel.errors import SettingError
from unetaccel.sweep.lock import NAME, folder_lock
from unetaccel.sweep.run import run_sweep
from unetaccel.sweep.spec import sweep_from

HOLD = """
import sys, time
from pathlib import Path
from unetaccel.sweep.lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_until_the_first_ends_or_is_killed(tmp_path):
    pytest.importorskip("fcntl")
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(SettingError) as error:
            run_sweep(sweep_from(SMALL), tmp_path, stages=("draw",), say=str)
        assert str(tmp_path) in str(error.value)
        assert f"in use by another run of a sweep (process {first.pid})" in str(error.value)
        assert "wait for its end, stop it, or name another folder with --folder" in str(error.value)
        assert [file.name for file in tmp_path.iterdir()] == [NAME]  # nothing written under the first one's feet
    finally:
        first.kill()
        first.communicate()
    with folder_lock(tmp_path):
        pass


def test_an_error_inside_gives_the_folder_back(tmp_path):
    with pytest.raises(KeyError), folder_lock(tmp_path / "new"):
        raise KeyError
    with folder_lock(tmp_path / "new"), folder_lock(tmp_path / "other"):
        pass


def test_platforms_without_such_locks_go_without(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with folder_lock(tmp_path), folder_lock(tmp_path):
        pass
