"""Every scheduler of the installed diffusers that can drive an epsilon, v or sample U-Net, found by looking.

A scheduler fits if it takes a ``prediction_type``; one that does not fit, or cannot be used by name, has a reason below.
"""

import inspect

import diffusers
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import unetaccel
from unetaccel import DeepCache

FLOW = "flow matching: drives a velocity transformer"
CONSISTENCY = "consistency models: one or two steps"
TOKENS = "denoises discrete tokens"
REASONS = {
    "AmusedScheduler": TOKENS,
    "BlockRefinementScheduler": TOKENS,
    "CMStochasticIterativeScheduler": CONSISTENCY,
    "CogVideoXDPMScheduler": "its step wants the previous step's prediction: CogVideoX's pipelines only",
    "DDPMWuerstchenScheduler": "Wuerstchen's cascade: timesteps are ratios",
    "DiscreteDDIMScheduler": TOKENS,
    "EntropyBoundScheduler": TOKENS,
    "FlowMapEulerDiscreteScheduler": FLOW,
    "FlowMatchEulerDiscreteScheduler": FLOW,
    "FlowMatchHeunDiscreteScheduler": FLOW,
    "FlowMatchLCMScheduler": FLOW,
    "HeliosDMDScheduler": FLOW,
    "HeliosScheduler": FLOW,
    "KarrasVeScheduler": "its step wants sigmas and a noised sample: Karras et al.'s own pipeline only",
    "LTXEulerAncestralRFScheduler": FLOW,
    "MiniMaxH3Scheduler": FLOW,
    "PiflowScheduler": FLOW,
    "RFD4ProteinaScheduler": "moves atoms of proteins",
    "RePaintScheduler": "its step wants the known image and the mask: RePaint's own pipeline only",
    "SCMScheduler": "TrigFlow consistency models: one or two steps",
    "ScoreSdeVeScheduler": "predictor and corrector instead of a step: the score SDE pipeline only",
    "UnCLIPScheduler": "unCLIP's cascade: its pipelines keep their U-Nets as prior and decoder",
    "VQDiffusionScheduler": TOKENS,
}
WITHOUT_PREDICTION_TYPE = ("IPNDMScheduler",)
"""Fits all the same: it is for epsilon only."""


def scheduler_classes() -> dict[str, type]:
    """Of diffusers' public names; those that want a package that is not here are placeholders with ``_backends``."""
    found = {n: getattr(diffusers, n) for n in dir(diffusers) if n.endswith("Scheduler") and not n.startswith("Flax")}
    return {n: c for n, c in found.items() if inspect.isclass(c)}


def fits(name: str, cls: type) -> bool:
    takes = inspect.signature(cls.__init__).parameters
    return name not in REASONS and ("prediction_type" in takes or name in WITHOUT_PREDICTION_TYPE)


CLASSES = scheduler_classes()
MISSING = sorted(n for n, c in CLASSES.items() if "_backends" in c.__dict__)
FITTING = sorted(n for n, c in CLASSES.items() if n not in MISSING and fits(n, c))
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
SPACED = [(n, o) for n in FITTING for o in SIGMAS if o in inspect.signature(CLASSES[n].__init__).parameters]


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a tensor's value."""

    ops = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal)

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in self.ops
        return func(*args, **(kwargs or {}))


def scheduler(tiny, name: str, **options):
    """Options are given apart from the config, which drops those that were defaults where it came from."""
    made = CLASSES[name].from_config(tiny.scheduler(name).config, **options)
    assert {k: made.config[k] for k in options} == options
    return made


def sampled(tiny, pipe, **options) -> tuple[torch.Tensor, str]:
    """Latents of one call, and the pattern that hooks on the model saw."""
    spy = tiny.Spy(pipe.unet)
    return tiny.call(pipe, size=64, **options), spy.stop()


def check(tiny, scheduler, steps: int = 8, **options) -> torch.Tensor:
    """What holds for every scheduler; gives the plain latents."""
    pipe = tiny.pipe("one-layer", scheduler)
    plain, pattern = sampled(tiny, pipe, steps=steps, **options)
    evaluations = len(pattern)
    assert pattern == "F" * evaluations
    assert torch.isfinite(plain).all()
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=1, force=True)) as handle:
        first, pattern = sampled(tiny, pipe, steps=steps, **options)
        assert pattern == ("F.." * evaluations)[:evaluations]
        if not options:
            assert str(handle.plan(steps)) == pattern
        second, again = sampled(tiny, pipe, steps=steps, **options)
        assert again == pattern
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()
    assert not torch.equal(first, plain), "caching changed nothing, so it did not happen"
    return plain


def reads(tiny, pipe, **options) -> int:
    with Reads() as counted:
        tiny.call(pipe, size=64, steps=8, **options)
    return counted.count


def test_every_scheduler_is_tested_or_has_a_reason():
    unexplained = sorted(set(CLASSES) - set(FITTING) - set(MISSING) - set(REASONS) - {"SchedulerMixin"})
    assert not unexplained, "new in this diffusers: give a reason, or make it fit"
    assert len(FITTING) > 15
    assert {"DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"} <= set(FITTING)


def test_what_is_missing_says_which_package():
    for name in MISSING:
        with pytest.raises(ImportError, match="requires the"):
            CLASSES[name]()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize("name", FITTING)
def test_every_scheduler(tiny, name, steps):
    check(tiny, scheduler(tiny, name), steps)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FITTING)
def test_no_host_read_is_added(tiny, name):
    pipe = tiny.pipe("one-layer", scheduler(tiny, name))
    plain = reads(tiny, pipe)
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=1, force=True)):
        spy = tiny.Spy(pipe.unet)
        assert reads(tiny, pipe) <= plain
        assert "F..F" in spy.stop()


def test_the_count_of_host_reads_bites(tiny):
    pipe = tiny.pipe("one-layer")

    def read(pipe, i, t, values):
        values["latents"].abs().max().item()
        return values

    assert reads(tiny, pipe, callback_on_step_end=read) == reads(tiny, pipe) + 8


@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_other_predictions(tiny, name, prediction, steps):
    of_epsilon, _ = sampled(tiny, tiny.pipe("one-layer", scheduler(tiny, name)), steps=steps)
    assert not torch.equal(check(tiny, scheduler(tiny, name, prediction_type=prediction), steps), of_epsilon)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "option"), SPACED)
def test_other_noise_levels(tiny, name, option):
    if option == "use_beta_sigmas":
        pytest.importorskip("scipy")
    usual, _ = sampled(tiny, tiny.pipe("one-layer", scheduler(tiny, name)), steps=8)
    assert not torch.equal(check(tiny, scheduler(tiny, name, **{option: True})), usual)


SOLVERS = {
    "first order": ("DPMSolverMultistepScheduler", {"solver_order": 1}),
    "third order": ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
    "dpmsolver": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "without Runge-Kutta": ("PNDMScheduler", {"skip_prk_steps": True}),
    "trailing": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "zero terminal SNR": ("DDIMScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SOLVERS)
def test_other_solvers(tiny, kind):
    name, options = SOLVERS[kind]
    check(tiny, scheduler(tiny, name, **options))


@pytest.mark.parametrize(
    ("name", "custom"),
    [
        ("EulerDiscreteScheduler", {"sigmas": [14.6, 6.5, 3.5, 2.1, 1.3, 0.8, 0.03]}),
        ("DPMSolverMultistepScheduler", {"timesteps": [999, 850, 700, 500, 300, 150, 20]}),
        ("DDPMScheduler", {"timesteps": [999, 700, 500, 300, 100]}),
    ],
)
def test_timesteps_of_ones_own(tiny, name, custom):
    check(tiny, scheduler(tiny, name), 50, **custom)
