"""Train the demo's U-Net from nothing with its skips scaled in four ways: ``python examples/train_scalelong.py runs/scalelong``.

As they are, all by 1/sqrt(2), by ScaleLong's constants, and by its learned gates; one process, one thread, no network.
Finished runs are skipped, so a stopped one goes on; a second process can train other seeds in the same folder. Writes
``<variant>-seed<seed>.json`` (loss, gradient norm and feature norm: least, mean, largest of each window), the figure
``curves.png`` (needs matplotlib) and ``table.md``. A run takes about 0.2 CPU seconds a step, and 10 at the end.
"""

import argparse
from pathlib import Path

import torch

from unetaccel.demo.train.scaling import VARIANTS, Budget, read_runs, train_variants
from unetaccel.demo.train.scaling_figure import table, write_figure
from unetaccel.loading import quiet_loading

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the curves, the figure and the table")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quiet_loading()
    budget = Budget(arguments.steps, arguments.batch)
    train_variants(arguments.out, arguments.variants, arguments.seeds, budget)
    runs = read_runs(arguments.out, budget)
    write_figure(arguments.out / "curves.png", runs)
    (arguments.out / "table.md").write_text(table(runs) + "\n")
    print(table(runs))
