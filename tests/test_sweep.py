"""Sweeps: rows and prompts as named, pictures drawn once and the same whoever draws them, rivals, results."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sweep_cases import SMALL, a_store

from unetaccel.demo.pipeline import load_pipeline
from unetaccel.errors import SettingError, WeightsError
from unetaccel.sampling import sample
from unetaccel.sweep import draw as drawing
from unetaccel.sweep import run as running
from unetaccel.sweep.draw import Store, draw
from unetaccel.sweep.prompts import Jobs, read_jobs, read_prompts
from unetaccel.sweep.rows import Row, expand
from unetaccel.sweep.run import run_sweep
from unetaccel.sweep.spec import PromptSource, read_sweep, sweep_from
from unetaccel.sweep.timing import Account


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(store: Store, row: Row) -> list[bytes]:
    return [store.path(row, i).read_bytes() for i in range(len(store.jobs))]


# -- what a sweep is ---------------------------------------------------------------------------------------------


def test_rows_are_every_combination_plain_first_and_named_by_their_settings():
    ways = [
        {"deepcache": {"interval": [2, 5], "cut": 1, "schedule": ["uniform", "quad"]}},
        {"deepcache": {"schedule": [[0, 4]]}},
        {"official_deepcache": {"interval": 2, "branch": 0}},
    ]
    rows = expand(sweep_from({**SMALL, "steps": [10, 20], "solvers": ["ddim", None], "ways": ways}))
    assert len(rows) == 2 * 2 * (1 + 4 + 1 + 1)
    assert [row.kind for row in rows[:5]] == ["plain"] * 4 + ["method"]
    names = [row.id for row in rows]
    assert len(set(names)) == len(names)
    assert {"ddim-10-plain", "own-20-plain", "ddim-20-deepcache-interval5-cut1-quad"} <= set(names)
    assert "ddim-10-deepcache-schedule0+4" in names
    assert all("/" not in name and " " not in name for name in names)
    peer = next(row for row in rows if row.kind == "peer")
    assert peer.label == "DeepCache 0.1.1 (interval 2, branch 0)"
    assert rows[4].group == {"method": "deepcache", "cut": 1, "schedule": "uniform"}


def test_rows_that_differ_never_share_a_folder():
    settings = [
        *[{"cut": cut} for cut in ("paper:3", "paper_3", "paper/3", "paper 3", "Paper:3", "up_blocks.1", "3", 3, [3])],
        *[{"schedule": value} for value in ("quad", ["quad"], [1, 2], ["1", "2"], ["1+2"], [[1], 2], "quad_real")],
        *[{"schedule": [*range(200), last]} for last in (300, 301)],
    ]
    names = [Row("ddim", 50, {"deepcache": each}).id for each in settings]
    assert len(set(map(str.lower, names))) == len(settings)  # some file systems take a and A for one
    assert max(map(len, names)) == 120
    assert not set("".join(names)) & set(' /:\\"[],')
    assert names[settings.index({"cut": "paper:3"})] == "ddim-50-deepcache-paper_3"
    assert names[settings.index({"schedule": "quad_real"})] == "ddim-50-deepcache-quad_real"
    assert names[settings.index({"cut": "paper/3"})].startswith("ddim-50-deepcache-paper_3-")
    weights = [Row(None, 50, {"maskunet": {"weights": path}}).id for path in ("w/a.safetensors", "w_a.safetensors")]
    assert weights == [f"own-50-maskunet-w_a.safetensors-{code}" for code in ("c2f608a6", "f28d2c07")]


def test_a_family_of_rows_may_have_steps_of_its_own():
    ways = [{"deepcache": {"interval": 2}}, {"steps": 20, "deepcache": {"interval": 3}}, {"steps": [5, 10]}]
    rows = expand(sweep_from({**SMALL, "steps": 10, "ways": ways}))
    assert [row.id for row in rows] == [
        *["ddim-10-plain", "ddim-20-plain", "ddim-5-plain"],
        *["ddim-10-deepcache-interval2", "ddim-20-deepcache-interval3"],
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": [{"steps": 0, "deepcache": {}}]}, "steps must be an int of at least 1"),
        ({"step": [3]}, "a sweep has no 'step'; it has title, ways"),
        ({"ways": [{"deepcache": {"intervall": 2}}]}, "deepcache has no setting 'intervall'; it has interval, cut"),
        ({"ways": [{"deepcache": {"interval": 0}}]}, "interval must be an int of at least 1"),
        ({"ways": [{"deepcash": {}}]}, "unknown method 'deepcash'; known: deepcache"),
        ({"ways": [{"official_deepcache": {"interval": 2}}]}, "wants the settings interval, branch"),
        ({"ways": ["deepcache"]}, "ways must be a list of mappings"),
        ({"ways": [{"deepcache": {"interval": [2, 2]}}]}, "two rows of the sweep are the same: ddim-6-deepcache-interval2"),
        ({"rivals": ["equal_cost"]}, "'equal_cost' is not one of equal_macs, equal_time"),
        ({"seeds": [0, 0]}, "seeds must be different whole numbers"),
        ({"timing": {"rounds": 3}}, "timing has no 'rounds'; it has batch, repeats, threads"),
        ({"dtype": "float8"}, "dtype must be float32, float16, bfloat16, got 'float8'"),
        ({"seeds": []}, "seeds must name at least one"),
        ({"weights": ["w.pth"]}, "weights must be NAME: VALUE pairs, got ['w.pth']"),
        ({"solvers": ["ddim", "eulr"]}, "unknown solver 'eulr'; known: ddim"),
        ({"batch": 0}, "batch must be an int of at least 1"),
        ({"prompts": ["demo"]}, "prompts must be NAME: VALUE pairs, or demo, none or the name of a file with one prompt per line, got ['demo']"),
        ({"guidance": "high"}, "guidance must be a number such as 7.5, got 'high'"),
        ({"size": "large"}, "size must be pixels such as 512, or [height, width], got 'large'"),
        ({"model": 3}, "model must be a text, got 3"),
        ({"seeds": [-1]}, "seeds must be different whole numbers from 0 to 2147483647, got [-1]"),
    ],
)  # fmt: skip
def test_a_wrong_sweep_is_refused_by_name(changes, message):
    with pytest.raises(SettingError) as error:
        expand(sweep_from({**SMALL, **changes}))
    assert message in str(error.value)


def test_yaml_is_read_and_its_errors_name_the_file(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("title: t\nsteps: 20\nsize: 64\nways:\n - deepcache: {interval: [2, 3]}\n")
    sweep = read_sweep(file)
    assert (sweep.steps, sweep.size, len(expand(sweep))) == ((20,), (64, 64), 3)
    for text in ("title: [", "- a", "titel: t"):
        file.write_text(text)
        with pytest.raises(SettingError, match=r"s\.yaml"):
            read_sweep(file)
    with pytest.raises(SettingError, match="cannot be read: No such file"):
        read_sweep(tmp_path / "none.yaml")


def test_yaml_needs_no_title_and_its_rows_are_checked(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("steps: 20\nprompts: none\n")
    sweep = read_sweep(file)
    assert (sweep.title, sweep.prompts.source, len(read_jobs(sweep.prompts, (0,)))) == ("mine", "none", 100)
    file.write_text("ways:\n - deepcash: {}\n")
    with pytest.raises(SettingError, match=r"mine\.yaml.*deepcash"):
        running.read_checked(file)
    file.write_text('{"format": "unetaccel-quality/1", "rows": []}')
    with pytest.raises(SettingError, match="is a result, not a sweep: look at it with `unetaccel report"):
        read_sweep(file)


def test_files_beside_the_sweep_are_found_and_no_key_stands_twice(tmp_path, monkeypatch):
    folder = tmp_path / "sweeps"
    folder.mkdir()
    (folder / "p.txt").write_text("a cat\n")
    file = folder / "s.yaml"
    for prompts in ("p.txt", "{source: p.txt}"):
        file.write_text(f"prompts: {prompts}\nreal: gone\n")
        sweep = read_sweep(file)
        assert Path(sweep.prompts.source) == folder / "p.txt"
        assert sweep.real == "gone"
    monkeypatch.chdir(folder)
    assert read_sweep(file).prompts.source == "p.txt"
    for text, message in {"steps: 4\nsteps: 5": "the key 'steps' stands twice", "": "such as `steps"}.items():
        file.write_text(text)
        with pytest.raises(SettingError, match=message):
            read_sweep(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": [{"deepcache": {"cut": 44}}]}, "row ddim-6-deepcache-cut44: cut=44 is out of range"),
        ({"ways": [{"deepcache": {"schedule": [[40]]}}]}, "schedule lists the full evaluations .40."),
        ({"ways": [{"scalelong": {"mode": "ls", "weights": "gone"}}]}, "row ddim-6-scalelong.*no file 'gone'"),
        ({"size": 33}, "size 33x33: both sides must be divisible by 8"),
        ({"scheduler": {"clip_sample": "maybe"}}, "clip_sample must be like True, got 'maybe'"),
        ({"ways": [{"deepcache": {"interval": []}}]}, "deepcache.interval has no value"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_any_work(pipe, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr("unetaccel.demo.pipeline.load_pipeline", lambda *_: pipe)
    said = []
    with pytest.raises((SettingError, WeightsError), match=message):
        run_sweep(sweep_from({**SMALL, **changes}), tmp_path / "run", say=said.append)
    assert not any("counting" in line for line in said)
    assert not (tmp_path / "run" / "sweep.json").exists()


def test_published_figures_must_belong_to_a_row():
    with pytest.raises(SettingError, match="published names 'ddim-7-plain', which is no row"):
        expand(sweep_from({**SMALL, "published": {"ddim-7-plain": {"fid": 3.0}}}))


# -- prompts -----------------------------------------------------------------------------------------------------

FILES = {
    "lines": ("p.txt", "a cat\n\n  a  dog \n", ["a cat", "a dog"]),
    "drawbench": ("d.csv", 'Prompts,Category\n"a cat, red",Colors\nA dog,Count\n', ["a cat, red", "A dog"]),
    "parti": (
        "PartiPrompts.tsv",
        'Prompt\tCategory\tChallenge\tNote\na "cat\tAnimals\tBasic\t\nbat\tAnimals\tBasic\tx\n',
        ['a "cat', "bat"],
    ),
    "coco": (
        "captions_val2014.json",
        json.dumps(
            {
                "annotations": [
                    {"image_id": 9, "id": 5, "caption": "second of 9"},
                    {"image_id": 9, "id": 1, "caption": "first of 9\n"},
                    {"image_id": 2, "id": 7, "caption": "of 2"},
                ]
            }
        ),
        ["of 2", "first of 9"],
    ),
}


@pytest.mark.parametrize("format", FILES)
def test_prompt_files_in_the_public_formats(tmp_path, format):
    name, text, expected = FILES[format]
    (tmp_path / name).write_text(text)
    assert read_prompts(tmp_path / name) == expected == read_prompts(tmp_path / name, format)


def test_wrong_prompt_files_are_told(tmp_path):
    (tmp_path / "x.json").write_text('{"images": []}')
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "short.tsv").write_text("Category\tPrompt\nAnimals\n")
    (tmp_path / "quoted.tsv").write_text('Prompt\tCategory\n"a" cat\tAnimals\n')
    cases = [("short.tsv", None, "is not of the format 'parti'"), ("quoted.tsv", None, "is not of the format 'parti'"),
             ("x.json", None, "is not of the format 'coco'"), ("empty.txt", None, "holds no prompt"),
             ("empty.txt", "yaml", "unknown format 'yaml'; known: lines"), ("none", None, "cannot be read")]  # fmt: skip
    for name, format, message in cases:
        with pytest.raises(SettingError, match=message):
            read_prompts(tmp_path / name, format)
    (tmp_path / "two.txt").write_text("a\nb")
    with pytest.raises(SettingError, match="has 2 prompts, fewer than count=3"):
        read_jobs(PromptSource(str(tmp_path / "two.txt"), count=3), (0,))


def test_a_job_is_its_prompt_and_its_own_noise():
    jobs = read_jobs(PromptSource(count=4), (0, 7))
    assert len(jobs) == 8
    assert len({jobs[i][1] for i in range(8)}) == 8
    assert jobs[0][0] == jobs[4][0]
    longer = read_jobs(PromptSource(count=6), (7, 0))
    assert longer[2][1] == jobs[6][1]  # whatever else is in the sweep
    assert longer.name(2) == jobs.name(6) == "00002-7.png"
    assert [len(b) for b in jobs.batches(3)] == [3, 3, 2]


# -- drawing -----------------------------------------------------------------------------------------------------


def test_killed_and_resumed_equals_uninterrupted_and_draws_nothing_twice(pipe, tmp_path, monkeypatch):
    sweep, whole = a_store(tmp_path / "whole")
    rows = expand(sweep)
    draw(pipe, rows, sweep, whole)
    _, store = a_store(tmp_path / "killed")

    class Kill(BaseException):
        pass

    done = []

    def killed(*args):
        done.append(args)
        if len(done) == 5:
            raise Kill
        return sample(*args)

    monkeypatch.setattr(drawing, "sample", killed)
    with pytest.raises(Kill):
        draw(pipe, rows, sweep, store)
    monkeypatch.undo()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").rglob("*.png")}
    assert 0 < len(before) < 3 * len(store.jobs)
    draw(pipe, rows, sweep, store)
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    for row in rows:
        assert pictures(store, row) == pictures(whole, row)
    assert pipe.unet.__class__.__name__ == "UNet2DConditionModel"
    assert not list(tmp_path.rglob("*.part"))


def test_a_batch_of_which_a_picture_is_missing_is_drawn_again(pipe, tmp_path):
    sweep, store = a_store(tmp_path)
    row = Row("ddim", 6)
    draw(pipe, [row], sweep, store)
    before = pictures(store, row)
    store.path(row, 5).unlink()
    assert store.missing(row, store.jobs.batches(4)) == [range(4, 8)]
    draw(pipe, [row], sweep, store)
    assert pictures(store, row) == before


def test_another_batch_size_changes_rounding_at_most(pipe, tmp_path):
    row, found = Row("ddim", 6, {"deepcache": {"interval": 2}}), []
    for batch in (4, 3):
        sweep, store = a_store(tmp_path / str(batch), batch=batch)
        draw(pipe, [row], sweep, store)
        found.append(store.read(row).int())
    assert found[0].shape == (10, 3, 32, 32)
    assert (found[0] - found[1]).abs().max() <= 1
    assert (found[0][1] - found[0][6]).abs().max() > 100  # another seed is another picture


def test_rows_of_one_batch_are_what_the_pipeline_gives(pipe, tmp_path):
    sweep, store = a_store(tmp_path)
    draw(pipe, [Row("ddim", 6)], sweep, store)
    prompt, seed = store.jobs[6]
    image = pipe(prompt, num_inference_steps=6, guidance_scale=3.0, generator=torch.Generator().manual_seed(seed),
                 output_type="pt").images[0]  # fmt: skip
    assert ((image * 255).round().int() - store.read(Row("ddim", 6))[6].int()).abs().max() <= 1


def test_many_large_pictures_lie_in_a_file(tmp_path, monkeypatch):
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
    for name in colours:
        Image.new("RGB", (8, 8), name).save(tmp_path / f"{name}.png")
    paths = [tmp_path / f"{name}.png" for name in colours]
    small = drawing.stacked(paths, drawing.read_picture, tmp_path)
    files = []
    monkeypatch.setattr(drawing, "IN_MEMORY", 100)
    monkeypatch.setattr(
        drawing.np, "memmap", lambda file, **how: files.append(file) or np.zeros(how["shape"], np.uint8)
    )
    large = drawing.stacked(paths, drawing.read_picture, tmp_path)
    assert len(files) == 1
    monkeypatch.undo()
    monkeypatch.setattr(drawing, "IN_MEMORY", 100)
    large = drawing.stacked(paths, drawing.read_picture, tmp_path)
    assert torch.equal(large, small)
    assert [tuple(p[:, 0, 0].tolist()) for p in large] == list(colours.values())


def test_a_damaged_picture_is_named(tmp_path):
    _, store = a_store(tmp_path)
    path = store.path(Row("ddim", 6), 0)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no picture")
    with pytest.raises(WeightsError, match=r"00000-0\.png.*delete it"):
        store.read(Row("ddim", 6))


# -- whole runs --------------------------------------------------------------------------------------------------


def test_a_sweep_writes_a_result_with_everything_it_promises(tmp_path):
    pytest.importorskip("torchmetrics")
    sweep = sweep_from({**SMALL, "ways": [*SMALL["ways"], {"official_deepcache": {"interval": 2, "branch": 0}}],
                        "metrics": ["frechet", "labels", "psnr"], "prompts": {"count": 8}})  # fmt: skip
    said = []
    result = run_sweep(sweep, tmp_path / "run", tmp_path / "result.json", say=said.append)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    rows = {row["id"]: row for row in result["rows"]}
    ours, theirs = rows["ddim-6-deepcache-interval2-cut0"], rows["ddim-6-official_deepcache-interval2-branch0"]
    assert ours["pattern"] == theirs["pattern"] == "F.F.F."
    assert ours["macs"] == theirs["macs"]
    assert ours["metrics"] == theirs["metrics"]  # the same pictures, bit for bit
    assert (ours["cached_bytes"], theirs["cached_bytes"]) == (2 * 2 * 64 * 8 * 8 * 4, None)
    assert ours["peak_memory_bytes"] > 17e6
    plain = rows["ddim-6-plain"]
    shorter = rows[ours["rivals"]["equal_macs"]]
    assert plain["macs"] / 6 == pytest.approx(shorter["macs"] / shorter["steps"])
    assert ours["macs_share"] == pytest.approx(ours["macs"] / plain["macs"])
    assert ours["rivals"]["equal_macs"] == f"ddim-{round(6 * ours['macs_share'])}-plain"
    assert set(ours["rivals"].values()) <= set(rows)
    rivals = set(ours["rivals"].values()) - {
        plain["id"]
    }  # where times are noisy, that of equal time may be the plain run
    assert all("psnr" in rows[rival]["metrics_to"][plain["id"]] for rival in rivals)
    assert plain["metrics_to"] == {}
    assert "psnr" not in plain["metrics"]
    assert len(ours["metrics"]["frechet"]["per_seed"]) == 2
    with Image.open(tmp_path / ours["strip"]) as strip:
        assert strip.size == (8 * 32, 32)
    assert ours["images"] == [f"{i}-0.png" for i in range(8)]
    samples = result["samples"]
    assert (samples["prompts"], samples["seeds"], samples["images"], samples["size"]) == (8, [0, 3], 16, [32, 32])
    assert len(samples["captions"]) == 8
    again = []
    assert run_sweep(sweep, tmp_path / "run", say=again.append) == result | {
        "rows": [{k: v for k, v in row.items() if k not in ("images", "strip")} for row in result["rows"]]
    }
    assert not [line for line in again if line.startswith("timed")]


def test_rows_that_are_not_timed_or_not_drawn_are_judged_as_far_as_they_go(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_load", lambda sweep, device: pipe)
    figures, said = {"ddim-6-plain": {"fid": 3.0}}, []
    sweep = sweep_from({**SMALL, "ways": [], "published": figures})
    run_sweep(sweep, tmp_path, stages=("draw",), say=str)
    times = running.Times(tmp_path / "times.json")  # as left by a kill before the first round
    times.accounts["ddim-6-plain"] = Account("FFFFFF", 6, 0, 1.0, 0, None)
    times.save()
    more = replace(sweep, ways=({"deepcache": {"interval": 2}},))
    result = run_sweep(more, tmp_path, stages=("judge",), say=said.append)
    assert [(row["id"], row["published"]) for row in result["rows"]] == list(figures.items())
    assert "left out: ddim-6-deepcache-interval2, which is not drawn to its end (stage `draw`)" in said


def test_a_folder_of_another_sweep_is_refused_and_more_rows_are_not(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_load", lambda sweep, device: pipe)
    sweep = sweep_from({**SMALL, "ways": []})
    run_sweep(sweep, tmp_path, stages=("draw",), say=str)
    run_sweep(replace(sweep, ways=({"deepcache": {"interval": 3}},)), tmp_path, stages=("draw",), say=str)
    assert len(list((tmp_path / "images").iterdir())) == 2
    with pytest.raises(SettingError, match=r"with guidance=3.0, not 4.0: use another folder"):
        run_sweep(replace(sweep, guidance=4.0), tmp_path, stages=("draw",), say=str)
    (tmp_path / "sweep.json").write_text((tmp_path / "sweep.json").read_text().replace('"cpu"', '"cuda"'))
    with pytest.raises(SettingError, match="with device='cuda', not 'cpu': use another folder"):
        run_sweep(sweep, tmp_path, stages=("draw",), device="cpu", say=str)
    run_sweep(sweep, tmp_path, stages=("judge",), device="cpu", say=str)
    prompts = tmp_path / "p.txt"
    prompts.write_text("a cat")
    (tmp_path / "empty").mkdir()
    wrong = [
        (replace(sweep, metrics=("beauty",)), "unknown metric 'beauty'"),
        (replace(sweep, metrics=("frechet",), prompts=PromptSource(str(prompts), count=1)), "name a folder of them"),
        (replace(sweep, metrics=("fid",)), "metric 'fid' needs local weights, 'inception'"),
        (replace(sweep, metrics=("frechet",), real=str(tmp_path / "gone")), "real: .* is no folder"),
        (replace(sweep, metrics=("frechet",), real=str(tmp_path / "empty")), "real: no picture"),
        (
            replace(sweep, metrics=("labels",), prompts=PromptSource(str(prompts))),
            "knows what the demo's own captions say",
        ),
        (replace(sweep, metrics=("fid",), weights={"inception": "none.pth"}), r"no file 'none\.pth'"),
    ]
    for settings, message in wrong:
        with pytest.raises((SettingError, WeightsError), match=message):
            run_sweep(settings, tmp_path / "new", say=str)
    assert not (tmp_path / "new").exists()
    with pytest.raises(SettingError, match=r"p\.txt' is a file: name a folder"):
        run_sweep(sweep, prompts, say=str)


def test_a_file_of_prompts_is_taken_whole(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("a cat\na dog\n")
    assert read_jobs(sweep_from({**SMALL, "prompts": str(file)}).prompts, (0,)).prompts == ("a cat", "a dog")
    with pytest.raises(SettingError, match="has 2 prompts, fewer than count=3: leave count out to take all"):
        read_jobs(PromptSource(str(file), count=3), (0,))


def test_other_texts_in_the_same_prompt_file_are_other_pictures(tmp_path):
    sweep = sweep_from(SMALL)
    for _ in range(2):
        running._claim(tmp_path, sweep, Jobs(("a", "b"), (0,)), "cpu")
    with pytest.raises(SettingError, match="pictures of a sweep with prompt_texts="):
        running._claim(tmp_path, sweep, Jobs(("b", "a"), (0,)), "cpu")
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(SettingError, match=r"sweep\.json' is damaged"):
        running._claim(tmp_path, sweep, Jobs(("a", "b"), (0,)), "cpu")


def test_two_processes_draw_and_judge_what_one_does(tmp_path):
    pytest.importorskip("torchmetrics")
    settings = {**SMALL, "metrics": ["frechet", "kernel", "labels", "psnr"]}
    (tmp_path / "sweep.json").write_text(json.dumps(settings))  # JSON is YAML
    one = run_sweep(sweep_from(settings), tmp_path / "one", tmp_path / "first.json", ("draw", "judge"), say=str)
    script = Path(__file__).parents[1] / "bench" / "quality.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script),
               str(tmp_path / "sweep.json"), "--folder", str(tmp_path / "two"), "--out", str(tmp_path / "second.json"),
               "--stage", "draw", "--stage", "judge"]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=240)
    assert done.returncode == 0, done.stderr
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.png"))
    assert len(files) == 3 * 10
    for file in files:
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    two = json.loads((tmp_path / "second.json").read_text())
    assert [{**row, "strip": ""} for row in two["rows"]] == [{**row, "strip": ""} for row in one["rows"]]
    assert len(one["rows"]) == 3
