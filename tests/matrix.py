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
REFUSED = "the message names it and the way out"

REMOVED = "three calls equal, pattern right, removal exact; real hooks, with the CPU in both roles"
COUNTED = "graphs counted by the compiler's backend; outputs equal eager ones"

RULES = [  # file, test, group, how it is shown; the parts in brackets make the label
    ("test_views", r"test_every_cut_of_every_architecture\[(.+)-\d+\]", "U-Nets", EXACT),
    ("test_pipelines", r"test_pipelines\[(.+)\]", "Pipelines", CYCLE),
    ("test_video", r"test_(.+)", "Video pipelines", CYCLE),
    (
        "test_schedulers",
        r"test_every_scheduler\[(.+?)-\d+\]",
        "Schedulers",
        "8 and 20 steps: planned = evaluations by hooks",
    ),
    ("test_addons", r"test_(.+)", "Add-ons", "same as doing it first and applying afterwards"),
    ("test_controlnet", r"test_(equal_to_running_in_full)\[.+\]", "ControlNet does less", "bit for bit as run in full"),
    ("test_controlnet", r"test_(.+)", "ControlNet does less", "bit for bit as run in full"),
    ("test_group_offload", r"test_(prefetching.+)", "Refused by name", REFUSED),
    ("test_group_offload", r"test_whole_pipelines\[(.+)\]", "Offload and casting", REMOVED),
    ("test_offload", r"test_repeated_calls_.+\[(.+)\]", "Offload and casting", REMOVED),
    ("test_offload", r"test_(sequential_offload_of_a_pipeline)(\[.+\])", "Offload and casting", REMOVED),
    ("test_offload", r"test_(model_offload_with_a_controlnet)(\[.+\])", "Offload and casting", REMOVED),
    ("test_offload", r"test_(sequential_offload|hooks).*(\[.+\])", "Offload and casting", REMOVED),
    ("test_compile", r"test_every_kind_of_unet_is_(one_graph_per_view)(\[.+\])", "Compile and export", COUNTED),
    ("test_compile", r"test_(.*refused.*)", "Refused by name", REFUSED),
    ("test_compile", r"test_(.+)", "Compile and export", COUNTED),
    ("test_pipelines", r"test_(.*(?:refused|plain_and_say).*)", "Refused by name", REFUSED),
    ("test_restore", r"test_(.*refused.*)", "Refused by name", REFUSED),
]


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
                self.rows[group, how][_label("".join(found.groups()))].append(report.passed)
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
