"""The command line as a user meets it: files, numbers, and one-line errors."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import unetaccel
from PIL import Image

from unetaccel.cli import app, options
from unetaccel.demo.pipeline import WEIGHTS
from unetaccel.methods import DeepCache, SkipTuning


def test_sample_writes_a_grid_and_prints_the_plan(tmp_path):
    out = tmp_path / "grid.png"
    result = unetaccel(
        "sample", "--deepcache", "interval=3,cut=0", "--steps", 6, "--out", out, "--images", tmp_path / "single"
    )
    assert "F..F.." in result.stdout
    assert "2 full + 4 cached" in result.stdout
    assert Image.open(out).size == (4 * 138 + 10, 2 * (138 + 3 * 14) + 10)  # captions of up to three lines
    assert len(list((tmp_path / "single").glob("*.png"))) == 8
    assert Image.open(tmp_path / "single" / "0000.png").size == (32, 32)


def test_compare_prints_psnr_ratio_and_the_rival_as_json(tmp_path):
    out = tmp_path / "grid.png"
    arguments = [
        "a large red ring on a black background",
        "--deepcache",
        "interval=2,cut=1",
        "--compare",
        "--repeats",
        2,
    ]
    result = unetaccel("sample", *arguments, "--steps", 10, "--out", out, "--format", "json")
    data = json.loads(result.stdout)
    assert data["summary"]["pattern"] == "F.F.F.F.F."
    assert 5 < data["psnr_db"]["min"] <= data["psnr_db"]["median"] < 100
    assert data["speedup"]["min"] <= data["speedup"]["median"] <= data["speedup"]["max"]
    rival = data["equal_macs_plain_run"]
    assert rival["steps"] == round(10 * data["summary"]["macs_share"])
    assert Image.open(out).width == 3 * 128 + 2 * 2 + 2 * 10


def test_prompts_from_a_file_seeds_and_schedulers(tmp_path):
    file, out = tmp_path / "prompts.txt", tmp_path / "grid.png"
    file.write_text("a small blue circle on a white background\n\na large green cross on a gray background\n")
    result = unetaccel(
        "sample",
        "--prompts",
        file,
        "--seed",
        "0-2",
        "--scheduler",
        "heun",
        "--steps",
        3,
        "--out",
        out,
        "--format",
        "json",
    )
    assert json.loads(result.stdout) == {"out": str(out), "images": 6, "summary": None}


def test_the_same_seed_is_the_same_picture_whatever_the_batch(tmp_path):
    for batch in (1, 4):
        unetaccel("sample", "--steps", 2, "--batch", batch, "--out", tmp_path / f"{batch}.png")
    one, four = (Image.open(tmp_path / f"{b}.png").tobytes() for b in (1, 4))
    assert max(abs(a - b) for a, b in zip(one, four, strict=True)) <= 2  # sums run in another order


def test_a_pipeline_folder_and_unconditional_models(tmp_path, tiny):
    from diffusers import DDIMPipeline

    DDIMPipeline(unet=tiny.unet("ddpm"), scheduler=tiny.scheduler("DDIMScheduler")).save_pretrained(tmp_path / "ddpm")
    out = tmp_path / "grid.png"
    result = unetaccel("sample", "--model", tmp_path / "ddpm", "--deepcache", "", "--steps", 6, "--out", out)
    assert "8 images" in result.stdout
    assert "F..F.." in result.stdout


def test_skip_tuning_alone_and_with_a_cache(tmp_path):
    out, options = tmp_path / "grid.png", ["--steps", 6, "--repeats", 1]
    result = unetaccel("sample", "--skip-tuning", "0.8", "--compare", "--out", out, *options)
    assert "FFFFFF  nothing is reused" in result.stdout
    assert "for each prompt: plain, 6 steps; edited, 6 steps" in result.stdout
    assert "does not tell whether they are better" in result.stdout
    assert "skips      SkipTuning times 1, 0.975, 0.95" in result.stdout
    both = ["sample", "--skip-tuning", "rho_bottom=0.8,schedule=increasing", "--deepcache", "", "--compare"]
    result = unetaccel(*both, "--out", out, *options)
    assert "F..F..  cut 0" in result.stdout
    assert "dB to the edited run" in result.stdout
    assert "for each prompt: plain, 6 steps; edited, 6 steps; cached + edited; edited, 3 steps" in result.stdout


def test_inspect_prints_every_skip():
    result = unetaccel("inspect")
    assert "up.2.2" in result.stdout
    assert "GMACs a full step" in result.stdout
    data = json.loads(unetaccel("inspect", "--model", WEIGHTS / "pipeline", "--format", "json", "--batch", 2).stdout)
    assert [row["b"] for row in data["cuts"]] == list(range(9))
    assert data["cuts"][0]["cached_bytes"] == 2 * 64 * 8 * 8 * 4
    assert data["cuts"][0]["ceiling"]["3"] == pytest.approx(3 / (1 + 2 * data["cuts"][0]["cached_share"]), rel=1e-3)


@pytest.mark.parametrize("command", ["sample", "bench quality", "bench latency", "report", "inspect", "doctor", "tune"])
def test_help_tells_every_default(command, monkeypatch):
    """Square brackets would be markup to the help's printer, and vanish."""
    monkeypatch.setenv("COLUMNS", "250")  # in columns that are not broken
    file = {"bench quality": "bench", "bench latency": "latency"}.get(command, command)
    source = Path(app.__file__).with_name(f"{file}.py").read_text()
    told = " ".join(unetaccel(*command.split(), "--help").stdout.replace("\u2502", " ").split())
    defaults = re.findall(r"\[default: ([^\]]+)\]", source)
    assert all(f"[default: {default}]" in told for default in defaults)
    assert len(defaults) == source.count("[default:")


ERRORS = {
    "interval 0": (["sample", "--deepcache", "interval=0"], "interval must be an int of at least 1"),
    "unknown setting": (["sample", "--deepcache", "intervall=3"], "is not NAME=VALUE with one of interval, cut"),
    "cut out of range": (["sample", "--deepcache", "cut=40"], "cut=40 is out of range: this U-Net has 9 skips"),
    "unknown schedule": (["sample", "--deepcache", "schedule=cosine"], "schedule must be 'uniform', 'quad'"),
    "missing folder": (["sample", "--model", "./nowhere"], "no folder 'nowhere'"),
    "unknown scheduler": (["sample", "--scheduler", "magic"], "unknown scheduler 'magic'; known: ddim"),
    "unknown spacing": (["sample", "--spacing", "wide"], "unknown spacing 'wide'; known: leading"),
    "no device": (["sample", "--device", "warp"], "--device 'warp' cannot be used here"),
    "bad seed": (["sample", "--seed", "one"], "expected numbers such as 0, 0,5,7 or 0-3"),
    "bad size": (["sample", "--size", "big"], "expected a side such as 512"),
    "indivisible size": (["sample", "--size", "33"], "size 33x33: both sides must be divisible by 8"),
    "a setting twice": (["sample", "--deepcache", "interval=2,interval=3"], "names interval twice"),
    "a center without quad": (["sample", "--deepcache", "center=0.3"], "center is read by schedule='quad'"),
    "a file as a folder": (["sample", "--images", __file__], "is a file: name a folder"),
    "bad steps": (["sample", "--steps", "0"], "steps must be an int of at least 1"),
    "no prompts file": (["sample", "--prompts", "nowhere.txt"], "nowhere.txt"),
    "compare with nothing": (["sample", "--compare"], "needs a method to compare with"),
    "a folder as output": (["sample", "--out", "."], "must end in .png"),
    "unwritable folder": (["sample", "--images", "/proc/none"], "--images '/proc/none' cannot be written"),
    "meta device": (["sample", "--device", "meta"], "--device 'meta' cannot be used here"),
    "half a size": (["sample", "--size", "32x0"], "--size '32x0'"),
    "latent size": (["inspect", "--latent", "big"], "--latent 'big'"),
    "impossible latent size": (["inspect", "--model", "ddpm-cifar", "--latent", "30"], "cannot take inputs of shape"),
    "too many seeds": (["sample", "--seed", "0-1000000000"], "at most 100,000 seeds"),
    "force": (["sample", "--deepcache", "force=no"], "force must be True or False"),
    "rho 0": (["sample", "--skip-tuning", "0"], "rho_bottom must be a finite number above 0"),
    "no rho": (
        ["sample", "--skip-tuning", "where=shortcut"],
        "SkipTuning needs rho_bottom, for example SkipTuning(0.8)",
    ),
    "unknown place": (["sample", "--skip-tuning", "0.8,where=mid"], "where must be 'concat', 'shortcut' or 'norm_out'"),
    "half of FreeU": (
        ["sample", "--freeu", "b1=1.5"],
        "--freeu 'b1=1.5' lacks b2: give all, for example --freeu b1=1.3,b2=1.4,s1=0.9,s2=0.2",
    ),
    "no profile": (["sample", "--profile", "gone.yaml"], "profile 'gone.yaml' cannot be read: No such file"),
    "a profile's interval": (
        ["sample", "--profile", "p.yaml,interval=3"],
        "is not NAME=VALUE with one of full, cut, points",
    ),
    "unknown budget": (["tune", "--budget", "fid=3"], "unknown budget 'fid'; allowed are psnr=45 (dB"),
    "not a png": (["sample", "--out", "grid.jpeg"], "must end in .png"),
    "unknown variant": (["bench", "latency", "--variant", "magic"], "unknown variant 'magic'; known: plain, plain-in"),
    "unknown case": (["bench", "latency", "--case", "sd9:2"], "unknown case 'sd9'; known: sd15, sd21"),
    "a case's batch": (["bench", "latency", "--case", "sd15:0"], "the batch after the colon must be a number of at"),
    "latency as a picture": (
        ["bench", "latency", "--out", "a.png"],
        "the result is JSON, so the name must end in .json",
    ),
    "unknown model to inspect": (["inspect", "--model", "sd99"], "neither a hub id nor a known shape (sd15"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_mistakes_are_one_clear_line(name, tmp_path):
    arguments, message = ERRORS[name]
    result = unetaccel(*arguments, ok=False, cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error:")]) == 1
    assert not list(tmp_path.glob("*.png"))


def broken_copy(tmp_path, damage):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(WEIGHTS / "pipeline", folder)
    damage(folder)
    return folder


def test_damaged_models_are_named(tmp_path):
    def truncate(folder):
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:100_000])

    folder = broken_copy(tmp_path / "a", truncate)
    result = unetaccel("sample", "--model", folder, "a ring", ok=False)
    assert "unet/diffusion_pytorch_model.safetensors' is truncated or not a safetensors file" in result.stderr
    folder = broken_copy(tmp_path / "b", lambda f: (f / "model_index.json").unlink())
    result = unetaccel("sample", "--model", folder, "a ring", ok=False)
    assert "has no model_index.json" in result.stderr
    folder = broken_copy(tmp_path / "c", lambda f: (f / "unet" / "config.json").write_text("{"))
    result = unetaccel("sample", "--model", folder, "a ring", ok=False)
    assert "cannot load" in result.stderr

    def empty_index(folder):
        (folder / "model_index.json").write_text("{}")

    result = unetaccel("sample", "--model", broken_copy(tmp_path / "d", empty_index), "a ring", ok=False)
    assert "cannot load" in result.stderr


def test_version_and_doctor():
    command = [sys.executable, "-c", "from unetaccel.cli import main; main()", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "0.1.0"
    assert unetaccel("--version").stdout.strip() == "0.1.0"
    result = unetaccel("doctor", "--steps", 20)
    assert "recommended: DeepCache(interval=2, cut=0, schedule='growing', forecast='auto', warmup=5)" in result.stdout
    assert json.loads(unetaccel("doctor", "--format", "json").stdout)["applies"] is True


def test_option_texts():
    assert options.method("deepcache", "") == DeepCache()
    assert options.method("deepcache", "interval=5, cut=auto, force=true, end=0.9") == DeepCache(
        interval=5, cut="auto", force=True, end=0.9
    )
    assert options.method("deepcache", "cache_interval=5,cache_branch_id=2") == DeepCache(interval=5, cut="helper:2")
    assert options.method("deepcache", "schedule=0+3+9") == DeepCache(schedule=[0, 3, 9])
    assert options.method("skip_tuning", "0.8") == SkipTuning(0.8)
    assert options.method("skip_tuning", "0.8,schedule=0.5+3") == SkipTuning(0.8, schedule=(0.5, 3))
    assert options.seeds("1,4-6") == [1, 4, 5, 6]
    assert options.size("512x768") == (512, 768)
    assert options.size("64") == (64, 64)
