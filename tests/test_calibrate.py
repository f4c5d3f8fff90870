"""Calibration and profiles: nothing is changed by watching, plans carry over to what they fit, and nothing else."""

import numpy as np
import pytest
import torch

import unetaccel
from unetaccel import Calibrated, DeepCache, SettingError, WeightsError, calibrate, load_profile, save_profile
from unetaccel.demo.pipeline import WEIGHTS, load_pipeline
from unetaccel.demo.scenes import sample_scenes
from unetaccel.recording import Record
from unetaccel.sampling import Settings, sample, set_scheduler
from unetaccel.skips import skip_table
from unetaccel.timeline import of_numbers

STEPS = 24
PROFILES = WEIGHTS.parent / "profiles"


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def profile(pipe):
    return calibrate(pipe, sample_scenes(3, seed=100).captions(), steps=STEPS, guidance=3.0, batch=2)


def errors(pipe, *ways, steps: int = STEPS, guidance: float = 3.0) -> list[float]:
    """Root-mean-square error of held-out pictures to the plain run, by what is applied."""
    captions, how = sample_scenes(4, seed=900, held_out=True).captions(), Settings(steps, guidance)
    plain = sample(pipe, captions, range(4), how)
    found = []
    for way in ways:
        with unetaccel.apply(pipe, way):
            found.append(float(np.sqrt(np.square(sample(pipe, captions, range(4), how) - plain).mean())))
    return found


@torch.no_grad()
def test_watching_changes_nothing_and_sees_what_enters_the_cuts(tiny):
    unet = tiny.unet()
    inputs, record = tiny.inputs(unet), Record((0, 3))
    plain, entered = unet(**inputs)[0], {}
    skips = skip_table(unet)
    hooks = [
        unet.get_submodule(skips[b].entry).register_forward_pre_hook(
            lambda m, args, b=b: entered.__setitem__(b, args[0][:, : skips[b].hidden].clone())
        )
        for b in (0, 3)
    ]
    unet(**inputs)
    for hook in hooks:
        hook.remove()
    with unetaccel.apply(unet, record) as handle:
        assert torch.equal(handle.unet(**inputs)[0], plain)
        handle.unet(**inputs)
    grams = record.taken(2)
    for b, gram in grams.items():
        F = entered[b].double().flatten(1).numpy()
        expected = np.einsum("sd,sd->s", F, F)[:, None, None] * np.ones((2, 2))
        np.testing.assert_allclose(gram, expected, rtol=1e-9)
    assert not any(record.seen.values())


def test_a_calibrated_plan_beats_the_uniform_one_of_as_many_full_evaluations(pipe, profile):
    """The issue's bar at 50 steps is a fifth; here at fewer steps, on other prompts than were calibrated with."""
    calibrated, uniform = errors(pipe, Calibrated(profile, full=8), DeepCache(interval=3))
    assert calibrated < uniform / 3
    [held] = errors(pipe, Calibrated(profile, full=8, points=1))
    assert calibrated < held < uniform


def test_a_profile_is_what_it_was_after_a_round_trip(pipe, profile, tmp_path):
    path = save_profile(profile, tmp_path / "demo.yaml")
    found = load_profile(path)
    assert found.call == profile.call
    assert (found.model, found.plans, found.cut, found.full) == (profile.model, _rounded(profile.plans), 0, 8)
    for b, gram in profile.grams.items():
        assert np.array_equal(found.grams[b], gram)
    with unetaccel.apply(pipe, path) as handle:
        sample(pipe, ["a red ring"], [0], Settings(STEPS, 3.0))
        summary = handle.summary()
    assert summary.full == 8
    assert tuple(i for i, kind in enumerate(summary.pattern) if kind == "F") == profile.plans[0][8].full
    assert summary.cached_bytes == 3 * 2 * 64 * 8 * 8 * 4


def _rounded(plans):
    import dataclasses

    return {b: {k: dataclasses.replace(p, error=round(p.error, 6)) for k, p in of.items()} for b, of in plans.items()}


def test_runs_that_visit_a_subset_of_the_timesteps_have_plans_of_their_own(pipe, profile):
    calibrated, uniform = errors(pipe, Calibrated(profile, full=0.5), DeepCache(interval=2), steps=STEPS // 2)
    assert calibrated < uniform / 2
    with unetaccel.apply(pipe, Calibrated(profile, full=0.5)) as handle:
        assert sum(handle.plan(STEPS // 2)) == STEPS // 4


def test_calls_that_begin_later_have_full_evaluations_first(pipe, profile):
    """As from a picture, whose first F was not measured."""
    later = of_numbers(STEPS - 6, profile.call.timesteps[6:], None)
    patterns = {
        full: "".join(".F"[flag] for flag in Calibrated(profile, full=full).flags(later)) for full in (0.2, 0.4, 0.7)
    }
    few, some, most = (text.index(".") for text in patterns.values())
    assert (few, some) == (1, 2)
    assert most >= 4
    assert [text.count("F") for text in patterns.values()] == [4, 7, 13]


def test_what_a_profile_is_not_for_is_refused(pipe, profile, tiny):
    with (
        unetaccel.apply(pipe, profile),
        pytest.raises(SettingError, match=r"measured at the 24 timesteps.*is none of them"),
    ):
        sample(pipe, ["a red ring"], [0], Settings(7, 3.0))
    with pytest.raises(SettingError, match="was made for a U-Net with cross_attention_dim=96, and this one has"):
        unetaccel.apply(tiny.pipe(), profile)
    for wrong, message in [
        ({"cut": 4}, "cut must be a skip index that the profile was measured at"),
        ({"full": 30}, "full must be an int from 1 to the profile's number"),
        ({"points": 5}, "points must be an int from 1 to 4"),
    ]:
        with pytest.raises(SettingError, match=message):
            Calibrated(profile, **wrong)
    other = load_pipeline()
    other.set_progress_bar_config(disable=True)
    set_scheduler(other, "heun")
    with unetaccel.apply(other, profile), pytest.raises(SettingError, match="is none of them"):
        sample(other, ["a red ring"], [0], Settings(12, 3.0))


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_the_shipped_profiles_fit_the_demo(name):
    profile = load_profile(PROFILES / f"{name}.yaml")
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    solver, _, steps = name.rpartition("-")
    set_scheduler(pipe, solver)
    with unetaccel.apply(pipe, profile) as handle:
        assert sum(handle.plan(int(steps))) == profile.full
    assert set(profile.grams) == {0, 1}
    if solver == "euler-a":  # it adds noise at each step, of which nothing can be foreseen
        return
    [calibrated, uniform] = errors(pipe, Calibrated(profile), DeepCache(interval=3), steps=int(steps))
    assert calibrated < uniform / 3


def test_wrong_calibrations_are_told(pipe):
    with pytest.raises(SettingError, match="needs prompts and a seed for each, got 0 prompts"):
        calibrate(pipe, [])
    for wrong, message in {
        "full": "full must be an int from 1 to the 24",
        "points": "points must be an int from 1 to 4",
    }.items():
        with pytest.raises(SettingError, match=message):
            calibrate(pipe, ["a"], steps=STEPS, **{wrong: 0})
    with pytest.raises(SettingError, match="steps=1 makes one evaluation, and there is nothing to reuse"):
        calibrate(pipe, ["a"], steps=1)
    with pytest.raises(SettingError, match="plans are made for 200 at most"):
        calibrate(pipe, ["a"], steps=300)
    with pytest.raises(SettingError, match=r"cuts=\[12\]: this U-Net has the skips 0 to 8"):
        calibrate(pipe, ["a"], cuts=[12])


@pytest.mark.parametrize("solver", ["pndm", "heun"])
def test_solvers_that_visit_timesteps_twice_take_their_own_profiles(solver):
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    set_scheduler(pipe, solver, "leading")
    profile = calibrate(pipe, ["a red ring"], steps=12, guidance=3.0, cuts=[0])
    with unetaccel.apply(pipe, profile) as handle:
        sample(pipe, ["a red ring"], [0], Settings(12, 3.0))
        assert handle.summary().full == profile.full < profile.evaluations


def test_noise_levels_as_timesteps_are_told_apart(profile):
    """EDM's schedulers count in logarithms of sigma, where half a step is a whole call."""
    import dataclasses

    small = dataclasses.replace(profile.call, timesteps=tuple(t / 1000 for t in profile.call.timesteps))
    other = dataclasses.replace(profile, call=small)
    assert other.indices(list(small.timesteps[::2])) == list(range(0, STEPS, 2))
    with pytest.raises(SettingError, match="is none of them"):
        other.indices([t + 0.02 for t in small.timesteps])


@pytest.mark.parametrize(
    "damage", ["gram", "shape", "plan", "format", "yaml", "missing", "other", "words", "model", "deep"]
)
def test_damaged_profiles_are_named(profile, tmp_path, damage):
    path = save_profile(profile, tmp_path / "p.yaml")
    text, grams = path.read_text(), path.with_name("p.grams.safetensors")
    if damage == "gram":
        grams.write_bytes(grams.read_bytes()[:100])
    elif damage == "shape":
        path.write_text(text.replace("timesteps: [999.0, ", "timesteps: ["))
    elif damage == "plan":
        path.write_text(text.replace("full: [0, ", "full: [3, 0, ", 1))
    elif damage == "format":
        path.write_text(text.replace("unetaccel-profile/1", "unetaccel-profile/9"))
    elif damage == "yaml":
        path.write_text("[")
    elif damage == "deep":
        path.write_text("[" * 5000)
    elif damage == "other":
        path.write_text(text.replace("grams_sha256: ", "grams_sha256: 0"))
    elif damage == "words":
        path.write_text(text.replace("timesteps: [999.0", "timesteps: [noon"))
    elif damage == "model":
        path.write_text(text.replace("model:\n  class: UNet2DConditionModel", "model: 5\nx:\n  class: a"))
    else:
        grams.unlink()
    with pytest.raises(WeightsError, match=r"p\.(yaml|safetensors)"):
        Calibrated(path)
    with pytest.raises(SettingError, match=r"must end in \.yaml"):
        save_profile(profile, tmp_path / "p.txt")


def test_a_profile_is_a_profile_or_a_path():
    for wrong in (3, None, ["a.yaml"]):
        with pytest.raises(SettingError, match="expected a profile, or the path of one"):
            Calibrated(wrong)
