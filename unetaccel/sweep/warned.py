"""Warnings of our methods, told once for each row that they are about."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .rows import Row

OURS = "unetaccel: "


@contextmanager
def unwarned() -> Iterator[None]:
    """None of our methods' warnings inside the block, but in ``Warned.about``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=OURS)
        yield


class Warned:
    """A sweep makes every row's methods many times over, and a reader wants to know which row a warning means.

    Args:
        say: told ``warning: <row>: <text>``, each once.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say, self._told = say, set()

    @contextmanager
    def about(self, row: Row) -> Iterator[None]:
        """Tell what our methods warn of inside the block; other warnings pass."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", message=OURS)
            try:
                yield
            finally:
                ours = [str(w.message) for w in caught if str(w.message).startswith(OURS)]
                others = [w for w in caught if not str(w.message).startswith(OURS)]
                for text in dict.fromkeys(ours):
                    if (row.id, text) not in self._told:
                        self._told.add((row.id, text))
                        self._say(f"warning: {row.id}: {text.removeprefix(OURS)}")
        for w in others:
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
