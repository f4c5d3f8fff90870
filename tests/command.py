"""The command line in a process of its own that need not import everything again: a fork of the one of the tests."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from pathlib import Path
from subprocess import CompletedProcess


def unetaccel(*arguments: object, ok: bool = True, cwd: Path | None = None) -> CompletedProcess:
    """``unetaccel`` with these arguments, as a terminal would run it; ``ok`` is whether it should succeed."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which wait here
            child = os.fork()
        if child == 0:
            _be_the_command(list(map(str, arguments)), out.fileno(), err.fileno(), cwd)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = [(file.seek(0), file.read())[1] for file in (out, err)]
    result = CompletedProcess(arguments, code, *texts)
    assert (code == 0) == ok, result.stderr
    assert "Traceback" not in result.stderr
    return result


def _be_the_command(arguments: list[str], out: int, err: int, cwd: Path | None) -> None:
    """Never returns: whatever happens, the tests do not go on in this process."""
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = (open(fd, "w", closefd=False) for fd in (1, 2))  # noqa: SIM115
        sys.argv = ["unetaccel", *arguments]
        os.chdir(cwd or os.getcwd())
        warnings.resetwarnings()
        from unetaccel.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
