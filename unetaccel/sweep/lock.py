"""One run at a time in a sweep's folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import SettingError

NAME = "sweep.lock"


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep other runs out of ``folder``, which is made if need be, until the block ends or the process dies.

    The operating system holds the lock on an open file, so a killed run leaves none behind; the file itself stays. Where
    there are no such locks (Windows, some network folders) nothing is locked.

    Raises:
        SettingError: another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / NAME, "a+", encoding="utf-8") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise SettingError(
                f"{str(folder)!r} is in use by another run of a sweep (process {file.read().strip() or 'unknown'}): "
                "wait for its end, stop it, or name another folder with --folder"
            ) from error
        except (ImportError, OSError):
            pass
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
