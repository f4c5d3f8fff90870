"""A pytest plugin that writes the README's matrix of what works from the outcomes of the tests that show it.

    pytest -p matrix --matrix README.md

What each test shows is in ``matrix_rules``. Nothing gets a place by hand: a row is there because a test of it ran, a
cell that failed says so, and what a refusal says is the message that the test met.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from importlib import metadata
from pathlib import Path

import pytest
from matrix_rules import INTRODUCTIONS, LABELS, RULES, Rule

BEGIN, END = "<!-- matrix:begin -->", "<!-- matrix:end -->"
PACKAGES = ("diffusers", "torch", "transformers", "accelerate", "peft", "torchao", "bitsandbytes")
Cell = dict[str, list[str]]
"""Item -> outcomes of the tests that show it."""


def pytest_addoption(parser):
    parser.addoption("--matrix", metavar="FILE", help="write the matrix of what works into this Markdown file")


def pytest_configure(config):
    if config.getoption("--matrix"):
        config.pluginmanager.register(Matrix(Path(config.getoption("--matrix"))))


class Matrix:
    """Collects outcomes as section -> row -> column -> cell."""

    def __init__(self, file: Path):
        self.file = file
        self.sections: dict[str, dict[str, dict[str, Cell]]] = {title: {} for title in INTRODUCTIONS}
        self.notes: dict[str, str] = {}
        """Of the test that runs: the first pipeline that was accelerated, the first refusal."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        self.notes = {}
        with pytest.MonkeyPatch.context() as patched:
            note_pipelines_and_refusals(patched, self.notes)
            return (yield)

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and not report.failed:
            return
        file, _, test = report.nodeid.rpartition("::")
        for rule in RULES:
            found = re.fullmatch(rule.test, test) if Path(file).stem == rule.file else None
            if found and "bites" not in test:  # checks of the checks show nothing
                self.note(rule, found.groups(), report.outcome)
                return

    def note(self, rule: Rule, parts: tuple[str | None, ...], outcome: str) -> None:
        words = {k: v for k, v in self.notes.items() if v}
        labels = [_label(part or "", rule.labels) for part in parts]
        row, item = (
            text.format(*labels, **{"pipeline": "other", "refusal": "", **words}) for text in (rule.row, rule.item)
        )
        for column in rule.columns:
            cells = self.sections[rule.section].setdefault(row, {})
            cells.setdefault(_label(column.format(*parts), LABELS), defaultdict(list))[item].append(outcome)

    def pytest_sessionfinish(self):
        text = self.file.read_text()
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        self.file.write_text(f"{before}{BEGIN}\n{self.text()}\n{END}{after}")

    def text(self) -> str:
        versions = ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))
        parts = [f"Run with {versions}."]
        for title, rows in self.sections.items():
            if rows:
                parts += [f"### {title}", INTRODUCTIONS[title], table(rows)]
        return "\n\n".join(parts)


def note_pipelines_and_refusals(patched: pytest.MonkeyPatch, notes: dict[str, str]) -> None:
    """Until ``patched`` is undone: write down what ``apply`` is given, and what is refused."""
    import unetaccel

    apply, error = unetaccel.apply, unetaccel.UnsupportedModelError

    @functools.wraps(apply)
    def noting(pipe, *args, **kwargs):
        notes.setdefault("pipeline", f"`{type(pipe).__name__}`")
        return apply(pipe, *args, **kwargs)

    def init(self, *args):
        notes.setdefault("refusal", _shorter(str(args[0])))
        Exception.__init__(self, *args)

    patched.setattr(unetaccel, "apply", noting)
    patched.setattr(error, "__init__", init, raising=False)


def table(rows: dict[str, dict[str, Cell]]) -> str:
    """A Markdown table: one line per row; columns in the order in which they first came."""
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    lines = ["| " + " | ".join(["", *columns]) + " |", "|---" * (len(columns) + 1) + "|"]
    for row, cells in rows.items():
        lines.append("| " + " | ".join([row, *(shown(cells.get(column, {})) for column in columns)]) + " |")
    return "\n".join(lines)


def shown(cell: Cell) -> str:
    """What a cell says; numbers that all passed are counted."""
    if not cell:
        return "not tested"
    passed = [item for item, outcomes in cell.items() if set(outcomes) == {"passed"}]
    numbers = [item for item in passed if item.isdecimal()]
    words = [f"all {len(numbers)}"] if len(numbers) == len(cell) else passed
    failed = [f"**{item or 'it'} FAILED**" for item, outcomes in cell.items() if "failed" in outcomes]
    skipped = [f"{item or 'it'} did not run".strip() for item, outcomes in cell.items() if set(outcomes) == {"skipped"}]
    return "; ".join(word or "yes" for word in [*words, *failed, *skipped])


def _label(part: str, labels: dict[str, str]) -> str:
    """A test's name or parameter in words."""
    return labels.get(part, part.replace("_", " ").strip())


def _shorter(message: str) -> str:
    """A refusal without the lists of what is supported, which the tables above it show."""
    message = re.sub(r"(;| \() ?supported (U-Nets|up blocks|down blocks): [\w, ]+\)?", "", message)
    return message.replace("|", "\\|").replace("\n", " ")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None
