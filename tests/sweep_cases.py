"""A small sweep of the demo, for the tests of sweeps."""

from unetaccel.sweep.draw import Store
from unetaccel.sweep.prompts import read_jobs
from unetaccel.sweep.spec import sweep_from

SMALL = dict(
    title="small",
    prompts={"count": 5},
    seeds=[0, 3],
    solvers="ddim",
    steps=[6],
    guidance=3.0,
    batch=4,
    timing={"batch": 2, "repeats": 2},
    ways=[{"deepcache": {"interval": [2, 3], "cut": 0}}],
)


def a_store(folder, **changes):
    sweep = sweep_from({**SMALL, **changes})
    return sweep, Store(folder, read_jobs(sweep.prompts, sweep.seeds))
