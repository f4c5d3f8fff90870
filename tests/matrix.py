"""A pytest plugin that writes the README's table of what works from the outcomes of the tests that show it.

    pytest -p matrix --matrix README.md

Every row names the check behind it. A row whose tests did not all pass in this very run says so.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

BEGIN, END = "<!-- matrix:begin -->", "<!-- matrix:end -->"
EXACT = "every cut: full view = original, cached step on the same inputs = full step, bit for bit"
CYCLE = "interval 1 = plain bits; planned pattern counted by hooks; removal exact"
REFUSED = "refused by name, with the reason"

RULES = [  # file, test, group, how it is shown; {} is the test's parameter
    ("test_views", r"test_every_cut_of_every_architecture\[(.+)-\d+\]", "U-Nets", EXACT),
    ("test_pipelines", r"test_pipelines\[(.+)\]", "Pipelines", CYCLE),
    ("test_video", r"test_(.+)", "Pipelines", CYCLE),
    ("test_schedulers", r"test_every_scheduler\[(.+?)-\d+\]", "Schedulers", "pattern = evaluations counted by hooks at 8 and 20 steps; two calls identical"),
    ("test_addons", r"test_(.+)", "Add-ons", "same as doing it first and applying afterwards"),
    ("test_controlnet", r"test_(.+)", "ControlNet does less", "bit for bit as run in full"),
    ("test_offload", r"test_(?!group)(.+)", "Offload and casting", "three calls equal, pattern right, removal exact; CPU in both roles"),
    ("test_offload", r"test_(group.+)", "Offload and casting", REFUSED),
    ("test_compile", r"test_(.+)", "Compile and export", "graphs counted by the backend"),
    ("test_pipelines", r"test_(.*(?:refused|plain_and_say).*)", "Refused, or plain with a warning", REFUSED),
    ("test_restore", r"test_(.*refused.*)", "Refused, or plain with a warning", REFUSED),
]  # fmt: skip


def pytest_addoption(parser):
    parser.addoption("--matrix", metavar="FILE", help="write the table of what works into this Markdown file")


def pytest_configure(config):
    if config.getoption("--matrix"):
        config.pluginmanager.register(Matrix(Path(config.getoption("--matrix"))))


class Matrix:
    """Collects outcomes by group, check and label."""

    def __init__(self, file: Path):
        self.file = file
        self.rows: dict[tuple[str, str], dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and not report.failed:
            return
        file, _, test = report.nodeid.rpartition("::")
        for where, pattern, group, how in RULES:
            found = re.fullmatch(pattern, test) if Path(file).stem == where else None
            if found and "bites" not in test:  # checks of the checks are no cells
                self.rows[group, how][_label(found.group(1))].append(report.passed)
                return

    def pytest_sessionfinish(self):
        text = self.file.read_text()
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        self.file.write_text(f"{before}{BEGIN}\n{self.table()}\n{END}{after}")

    def table(self) -> str:
        """One line per group and check: what passed, and what did not."""
        lines = ["| | verified in this run | how |", "|---|---|---|"]
        for (group, how), labels in sorted(self.rows.items()):
            cells = [label if all(passed) else f"**{label}: FAILED**" for label, passed in sorted(labels.items())]
            lines.append(f"| {group} ({len(cells)}) | {'; '.join(cells)} | {how} |")
        return "\n".join(lines)


def _label(name: str) -> str:
    return re.sub(r"\s+", " ", name.replace("_", " ").replace("[", ": ").replace("]", "")).strip()
