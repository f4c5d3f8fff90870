"""Measure the demo and write its profiles: ``python examples/calibrate_demo.py unetaccel/demo/profiles``.

For your own model: load your pipeline, name 4 to 16 prompts that it is used for, and calibrate at the steps and guidance
that you use. On a CPU core the demo takes a few seconds a profile. Prints, for each cut, the error that plans predict:

    ddim-50.yaml: cut 0, 17 of 50 full: F to 2.0%; 10 of 50 full: F to 5.9%
"""

import sys
from pathlib import Path

from unetaccel import calibrate, save_profile
from unetaccel.demo.pipeline import GUIDANCE, load_pipeline
from unetaccel.demo.scenes import sample_scenes
from unetaccel.sampling import set_scheduler

KINDS = {"ddim-50": ("ddim", 50), "ddim-20": ("ddim", 20), "dpm++-20": ("dpm++", 20), "unipc-20": ("unipc", 20),
         "euler-a-30": ("euler-a", 30)}  # fmt: skip

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "profiles")
    prompts = sample_scenes(4, seed=100).captions()  # of the training set: none of those that anything is judged by
    for name, (solver, steps) in KINDS.items():
        pipe = load_pipeline()
        pipe.set_progress_bar_config(disable=True)
        set_scheduler(pipe, solver)
        profile = calibrate(pipe, prompts, seeds=range(100, 104), steps=steps, guidance=GUIDANCE)
        path = save_profile(profile, folder / f"{name}.yaml")
        for cut, plans in profile.plans.items():
            shown = [
                min(plans, key=lambda k, share=share: abs(k - share * profile.evaluations)) for share in (0.34, 0.2)
            ]
            told = "; ".join(f"{k} of {profile.evaluations} full: F to {plans[k].error:.1%}" for k in shown)
            print(f"{path.name}: cut {cut}, {told}")
