"""The command line: thin commands over library functions."""

from .app import main

__all__ = ["main"]
