"""Result files as something to look at: one HTML page without a network, PNG figures, Markdown tables."""

from .page import write_page
from .results import load


__all__ = ["load", "write_page"]
