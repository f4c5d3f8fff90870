"""Tuning: budgets are kept on held-out prompts, rivals stand beside, and the pipeline is left alone."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

import unetaccel
from unetaccel import SettingError, SkipTuning, tune
from unetaccel.accelerated import AcceleratedUNet
from unetaccel.demo.pipeline import load_pipeline
from unetaccel.demo.scenes import sample_scenes
from unetaccel.sampling import Settings, psnr, sample
from unetaccel.tuning.trials import Trials, run

STEPS = 10
OWN, OTHER = sample_scenes(2, seed=100).captions(), sample_scenes(2, seed=900, held_out=True).captions()
OTHER_SEEDS = range(2, 4)


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def modelled_seconds(trials, candidate, steps, edits) -> float:
    """A clock that no other process disturbs: a tenth for the rest of a call, a cached evaluation costs a fifth."""
    plan = candidate.full if candidate else steps
    return 0.1 * STEPS + plan + 0.2 * (steps - plan)


def tuned_for(pipe, budget, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trials, "_seconds", modelled_seconds)
        options = {"held_out": OTHER, "steps": STEPS, "guidance": 3.0, **options}
        return tune(pipe, OWN, budget=budget, **options)


@pytest.fixture(scope="module")
def tuned(pipe):
    return tuned_for(pipe, "psnr=30")


def front_of(tuned, trial):
    [front] = [f for f in tuned.fronts if f[0].cut == trial.candidate.cut and f[0].edits == trial.edits]
    return front


def test_a_floor_is_met_and_the_next_cheaper_plan_fails(tuned):
    chosen = tuned.chosen
    assert chosen.meets
    assert chosen.score.mean >= 30
    front = front_of(tuned, chosen)
    place = front.index(chosen.candidate)
    cheaper = {trial.candidate: trial for trial in tuned.trials}
    assert place == 0 or not cheaper[front[place - 1]].meets
    assert not any(
        trial.meets and trial.macs < chosen.macs and trial.candidate.cut != chosen.candidate.cut
        for trial in tuned.trials
    )
    assert {trial.candidate.cut for trial in tuned.trials} == {0, 1}


def test_plain_runs_of_equal_cost_stand_beside(tuned):
    assert abs(tuned.rival.macs - tuned.chosen.macs) <= 0.5 / STEPS + 1e-9
    assert tuned.fewest.meets
    shorter = [trial for trial in tuned.rivals if trial.steps == tuned.fewest.steps - 1]
    assert not any(trial.meets for trial in shorter)
    assert tuned.plain_is_ahead == (tuned.fewest.macs <= tuned.chosen.macs)
    assert ("So caching does not pay here" in str(tuned)) == tuned.plain_is_ahead


def test_the_profile_holds_what_was_chosen_and_gives_the_score_that_was_told(pipe, tuned, tmp_path):
    path = tuned.save(tmp_path / "tuned.yaml")
    found, chosen = unetaccel.load_profile(path), tuned.chosen.candidate
    assert (found.cut, found.full, found.points) == (chosen.cut, chosen.full, chosen.points)
    assert found.tuned["budget"] == "psnr=30"
    assert found.tuned["rival"]["steps"] == tuned.rival.steps
    how = Settings(STEPS, 3.0, batch=4)
    plain = sample(pipe, OTHER, OTHER_SEEDS, how)
    with unetaccel.apply(pipe, path) as handle:
        images = sample(pipe, OTHER, OTHER_SEEDS, how)
        summary = handle.summary()
    assert np.mean(psnr(images, plain)) == pytest.approx(tuned.chosen.score.mean, abs=1e-3)
    assert summary.full == chosen.full
    assert summary.macs_share == pytest.approx(tuned.chosen.macs)


def test_the_figure_shows_every_line(tuned, tmp_path):
    from unetaccel.report.front import write_front

    path = write_front(tmp_path / "deep" / "front.png", tuned)
    assert min(Image.open(path).size) > 600
    with pytest.raises(unetaccel.WeightsError, match="cannot be written"):
        write_front("/proc/none/front.png", tuned)


@pytest.mark.parametrize("budget", ["macs=0.6", "time=0.6"])
def test_a_ceiling_is_kept_and_the_best_of_the_cuts_wins(pipe, budget):
    found = tuned_for(pipe, budget)
    chosen, kind = found.chosen, budget.partition("=")[0]
    assert getattr(chosen, kind) <= 0.6
    assert chosen.meets
    front = front_of(found, chosen)
    following = front[front.index(chosen.candidate) + 1]
    if kind == "macs":
        assert following.macs > 0.6
        other = [trial for trial in found.trials if trial.meets and trial.candidate.cut != chosen.candidate.cut]
        assert all(trial.score.mean <= chosen.score.mean for trial in other)
    else:
        assert modelled_seconds(None, following, STEPS, ()) / modelled_seconds(None, None, STEPS, ()) > 0.6
        assert found.rival.time == pytest.approx(chosen.time, abs=0.6 / STEPS)
    assert found.plain_is_ahead == (found.rival.score.mean >= chosen.score.mean)


def test_ceilings_below_every_candidate_say_what_is_needed(pipe):
    with pytest.raises(
        SettingError, match=r"macs=0.01: the cheapest candidate, cut 0 with 1 of 10 full, takes 0\.\d+ of the plain"
    ):
        tuned_for(pipe, "macs=0.01", cuts=[0])


def test_a_metric_of_ones_own(pipe):
    def likeness(images, plain):
        assert images.dtype == np.float32
        assert images.shape == plain.shape == (2, 32, 32, 3)
        return 1 - np.abs(images - plain).mean(axis=(1, 2, 3))

    found = tuned_for(pipe, "metric=0.98", metric=likeness, cuts=[0], points=[1])
    assert found.chosen.score.mean >= 0.98
    assert found.profile.points == 1
    for wrong, message in {
        "psnr=30": "judged by psnr, and metric would not be read",
        "metric=1.1": "the run without caching itself reaches 1 on 2 held-out pictures: ask for metric=1 at most",
    }.items():
        with pytest.raises(SettingError, match=message):
            tuned_for(pipe, wrong, metric=likeness, cuts=[0])
    with pytest.raises(SettingError, match="budget metric=1 needs a metric"):
        tuned_for(pipe, "metric=1")
    with pytest.raises(SettingError, match="one number per picture, 2 here"):
        tuned_for(pipe, "metric=1", metric=lambda images, plain: 1.0, cuts=[0])


def test_labels_are_read_from_held_out_captions(pipe):
    found = tuned_for(pipe, "labels=0.5", cuts=[0])
    assert found.chosen.score.mean >= 0.5
    assert found.chosen.score.mean in (0.5, 1.0)
    with pytest.raises(SettingError, match="'an astronaut' is none: take psnr"):
        tuned_for(pipe, "labels=0.5", held_out=["an astronaut", *OTHER])


def test_edits_are_judged_beside_the_edited_run(pipe):
    edit = SkipTuning(0.6, profile="constant")
    found = tuned_for(pipe, "psnr=30", edits=[(edit,)], cuts=[0])
    how = Settings(STEPS, 3.0)
    plain, edited = (run(pipe, methods, (OTHER, list(OTHER_SEEDS)), how) for methods in ((), (edit,)))
    cached = run(pipe, (edit, found.chosen.candidate.method), (OTHER, list(OTHER_SEEDS)), how)
    assert np.mean(psnr(cached, edited)) == pytest.approx(found.chosen.score.mean, abs=1e-3)
    assert np.mean(psnr(cached, plain)) < 30
    assert "apply both, unetaccel.apply(pipe, SkipTuning(rho_bottom=0.6" in str(found)
    assert found.profile.tuned["chosen"]["edits"] == [repr(edit)]
    with pytest.raises(SettingError, match="edits are methods that edit skips"):
        tuned_for(pipe, "psnr=30", edits=[(unetaccel.DeepCache(),)])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_pipeline_is_untouched_by_failures(tiny, pipe, error):
    before = tiny.snapshot(pipe)["modules"]

    def stop(share, text):
        if text == "trying candidates" and share > 0.2:
            raise error

    with pytest.raises(error):
        tuned_for(pipe, "psnr=30", cuts=[0], on_progress=stop)
    assert tiny.snapshot(pipe)["modules"] == before
    assert not isinstance(pipe.unet, AcceleratedUNet)


def test_floors_out_of_reach_and_wrong_settings_are_told(tiny, pipe):
    before = tiny.snapshot(pipe)["modules"]
    message = r"psnr=400: no candidate reaches it on 2 held-out pictures. The best is cut 0, [89] of 10 full.* dB, for \d\d\.\d% of"
    with pytest.raises(SettingError, match=message):
        tuned_for(pipe, "psnr=400", cuts=[0], points=[1])
    for wrong, message in {
        ("points", (7,)): "points must be an int from 1 to 4",
        ("points", ()): "points names no number of features",
        ("cuts", (40,)): r"cuts=\[40\]: this U-Net has the skips 0 to 8",
        ("edits", SkipTuning(0.9)): "edits must be a list of sets",
        ("metric", 3): "metric must be a function",
        ("size", (33, 32)): "both sides must be divisible by 8",
        ("steps", 1): "steps=1 makes one evaluation, and there is nothing to reuse",
    }.items():
        with pytest.raises(SettingError, match=message):
            tuned_for(pipe, "psnr=30", **dict([wrong]))
    assert tiny.snapshot(pipe)["modules"] == before
    assert not isinstance(pipe.unet, AcceleratedUNet)


def test_progress_rises_to_one(pipe):
    seen = []
    tuned_for(pipe, "psnr=20", cuts=[0], on_progress=lambda share, text: seen.append((share, text)))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert seen[-1] == (1.0, "done")
    assert 0.2 < shares[-2] < 1
    assert list(dict.fromkeys(text for _, text in seen)) == [
        "calibrating", "trying candidates", "trying runs of fewer steps", "timing", "done"
    ]  # fmt: skip


def test_numbers_are_plain_data(tuned):
    data = json.loads(json.dumps(tuned.as_dict(), allow_nan=False))
    assert data["chosen"] in data["trials"]
    assert data["rival"] in data["rivals"]
    assert data["budget"] == "psnr=30"
    assert {row["cut"] for row in data["predicted"]} == {0, 1}


def told(*arguments):
    """What the command prints, in this process; errors are raised."""
    from typer.testing import CliRunner

    from unetaccel.cli import tune as _  # noqa: F401 - it registers itself
    from unetaccel.cli.app import app

    result = CliRunner().invoke(app, ["tune", *map(str, arguments)])
    if result.exception:
        raise result.exception
    return result.stdout


@pytest.fixture
def steady(monkeypatch):
    monkeypatch.setattr(Trials, "_seconds", modelled_seconds)


def test_the_command_writes_a_profile_and_a_figure_and_tells_how_to_use_them(steady, tmp_path):
    out, figure = tmp_path / "p.yaml", tmp_path / "front.png"
    text = told(
        *OWN, *OTHER, "--budget", "macs=0.5", "--steps", STEPS, "--scheduler", "ddim", "--out", out, "--figure", figure
    )
    assert "tuned for macs=0.5 (at most), 10 steps, 2 held-out pictures" in text
    assert len([line for line in text.splitlines() if line.startswith(">")]) == 1
    assert "steps cost as much" in text
    assert f"use it: unetaccel sample --scheduler ddim --steps 10 --profile {out} --compare" in text
    assert figure.is_file()
    profile = unetaccel.load_profile(out)
    assert f"{profile.full} of 10 full" in profile_line(text)


def profile_line(text: str) -> str:
    [line] = [line for line in text.splitlines() if line.startswith("chosen (>)")]
    return line


def test_the_command_as_json_with_files_of_prompts_and_skip_tuning(steady, tmp_path):
    own, other, out = tmp_path / "own.txt", tmp_path / "other.txt", tmp_path / "p.yaml"
    own.write_text("\n".join(OWN))
    other.write_text("\n".join(OTHER))
    files = ["--prompts", own, "--held-out", other, "--out", out]
    data = json.loads(
        told(*files, "--budget", "psnr=25", "--steps", 8, "--cut", 0, "--skip-tuning", 0.9, "--format", "json")
    )
    assert data["held_out"] == 2
    assert {tuple(row["edits"]) for row in data["trials"]} == {(), ("SkipTuning(rho_bottom=0.9)",)}
    assert {row["cut"] for row in data["trials"]} == {0}
    assert data["out"] == str(out)
    assert data["chosen"]["mean"] >= 25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "fid=3"], "unknown budget 'fid'; allowed are psnr=45"),
        (["--out", "p.json"], "must end in .yaml"),
        (["--figure", "front.jpg"], "the figure is a PNG, so the name must end in .png"),
        (["--figure", "/proc/none/front.png"], "--figure '/proc/none/front.png' cannot be written"),
        (["--held-out", "nowhere.txt"], "--held-out 'nowhere.txt' cannot be read"),
        (["--skip-tuning", "where=shortcut"], "SkipTuning needs rho_bottom|lacks rho_bottom"),
        (["--budget", "metric=1"], "budget metric=1 needs a metric"),
        (["a small red ring on a black background"], "give at least 3 prompts, better 16"),
        (["an astronaut"] * 4 + ["--budget", "labels=0.9"], "labels are read against the demo's own captions"),
    ],
)
def test_mistakes_are_told_before_the_work(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules[tune.__module__], "fronts", None)
    with pytest.raises(SettingError, match=message):
        told(*arguments)
    assert not list(tmp_path.iterdir())
