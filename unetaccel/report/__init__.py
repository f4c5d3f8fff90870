"""Result files as something to look at: one HTML page without a network, PNG figures, Markdown tables."""

from .page import write_page
from .results import load
from .tables import markdown

__all__ = ["load", "markdown", "write_page"]
