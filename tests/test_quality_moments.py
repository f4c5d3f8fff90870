"""Statistics files in place of real pictures: the same distance, and nothing but numbers read."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from quality_cases import patterned
from sweep_cases import SMALL

from unetaccel.demo.scenes import render, sample_scenes
from unetaccel.errors import SettingError, WeightsError
from unetaccel.quality.distances import frechet_distance, frechet_distance_to
from unetaccel.quality.features import label_features
from unetaccel.quality.metrics import build_metrics, real_moments
from unetaccel.quality.moments import Moments, is_statistics, read_moments
from unetaccel.quality.values import Context
from unetaccel.sweep.run import run_sweep
from unetaccel.sweep.spec import sweep_from


def statistics(features: torch.Tensor) -> dict[str, np.ndarray]:
    """As pytorch-fid writes them."""
    rows = features.double().numpy()
    return {"mu": rows.mean(axis=0), "sigma": np.cov(rows, rowvar=False)}


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(9)) / d**0.5
    return torch.randn(n, d, generator=generator) @ mix + 3 + 0.2 * seed


@pytest.mark.parametrize(("n", "m", "d"), [(300, 200, 24), (40, 30, 64)])  # with fewer samples than features, too
def test_the_distance_to_statistics_is_that_to_the_features(tmp_path, n, m, d):
    real, fake = normal(n, d, 0), normal(m, d, 1)
    pictures = np.zeros((2, 3), np.uint8)
    np.savez(
        tmp_path / "adm.npz", arr_0=pictures, mu_s=np.zeros(3), sigma_s=np.eye(3), **statistics(real)
    )  # as ADM has it
    read = read_moments(tmp_path / "adm.npz")
    assert read.width == d
    assert frechet_distance_to(read, fake) == pytest.approx(frechet_distance(real, fake), rel=1e-6)
    assert frechet_distance_to(read, real) == pytest.approx(0, abs=1e-3)
    for wrong in (fake[:, 1:], fake[:1], fake[0]):
        with pytest.raises(SettingError, match=rf"takes \(N, {d}\) of at least 2 samples"):
            frechet_distance_to(read, wrong)


WRONG = {
    "no sigma": (dict(mu=np.zeros(4)), "lacks mu or sigma"),
    "another d": (dict(mu=np.zeros(4), sigma=np.eye(5)), r"has mu \(4,\) and sigma \(5, 5\)"),
    "swapped": (dict(mu=np.eye(4), sigma=np.zeros(4)), r"has mu \(4, 4\) and sigma \(4,\)"),
    "infinite": (dict(mu=np.full(4, np.inf), sigma=np.eye(4)), "NaN or infinite"),
    "asymmetric": (dict(mu=np.zeros(2), sigma=np.array([[1.0, 0.5], [0, 1]])), "a sigma that is no covariance"),
    "negative": (dict(mu=np.zeros(2), sigma=-np.eye(2)), "a sigma that is no covariance"),
    "texts": (dict(mu=np.array(["a"]), sigma=np.eye(1)), "has mu of <U1"),
    "objects": (dict(mu=np.array([print], object), sigma=np.eye(1)), "damaged or holds more than numbers"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_statistics_are_refused(tmp_path, kind):
    held, message = WRONG[kind]
    np.savez(tmp_path / "real.npz", **held)
    with pytest.raises(WeightsError, match=rf"real\.npz' .*{message}.*; expected a statistics file"):
        read_moments(tmp_path / "real.npz")


def test_damaged_statistics_are_refused(tmp_path):
    file = tmp_path / "real.npz"
    with pytest.raises(WeightsError, match="no file"):
        read_moments(file)
    np.savez_compressed(file, **statistics(normal(20, 64, 0)))
    whole = file.read_bytes()
    array = tmp_path / "array.npy"
    np.save(array, np.zeros(3))
    middle = len(whole) // 2
    damages = (
        b"",
        b"no archive",
        whole[:middle],
        whole[:middle] + b"\0" * 64 + whole[middle + 64 :],
        array.read_bytes(),
    )
    for damaged in damages:
        file.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"real\.npz' is damaged"):
            read_moments(file)


def test_only_an_npz_is_a_statistics_file():
    assert is_statistics("data/FID.NPZ")
    assert not any(map(is_statistics, (None, "data/npz", "data/train")))


def test_metrics_take_statistics_of_their_own_width_only(tmp_path):
    scenes = sample_scenes(20, seed=3, held_out=True)
    real, made = ((render(scenes, seed=seed) * 255).byte() for seed in (0, 1))
    np.savez(tmp_path / "real.npz", **statistics(label_features()(real)))
    context = Context(scenes.captions(), torch.arange(20) // 10, real, scenes=scenes)
    told = replace(context, real=real_moments(tmp_path / "real.npz", ["frechet", "labels", "psnr"]))
    frechet, kernel = build_metrics(["frechet", "kernel"], model="demo")
    expected, found = (frechet.measure(made, each)["frechet"] for each in (context, told))
    assert found["value"] == pytest.approx(expected["value"], rel=1e-4)
    assert found["per_seed"] == pytest.approx(expected["per_seed"], rel=1e-4)
    with pytest.raises(SettingError, match="metric 'kernel' compares the features of single pictures"):
        kernel.measure(made, told)
    with pytest.raises(
        SettingError, match=r"'kid' compares the features of single pictures.*name a folder of the pict"
    ):
        real_moments(tmp_path / "real.npz", ["frechet", "kid"])
    with pytest.raises(SettingError, match=r"'fid' compares 2048 features, but the statistics file .* has 128"):
        real_moments(tmp_path / "real.npz", ["fid"])
    with pytest.raises(SettingError, match=r"'frechet' compares 128 features, but the statistics file .* has 3"):
        frechet.measure(made, replace(context, real=Moments(torch.zeros(3), torch.eye(3))))


def test_a_sweep_is_judged_against_statistics(tmp_path):
    pytest.importorskip("torchmetrics")
    real = (patterned((40, 3, 32, 32), 0) * 256).byte()
    np.savez(tmp_path / "real.npz", **statistics(label_features()(real)))
    small = {**SMALL, "prompts": {"count": 2}, "ways": [], "steps": [2], "metrics": ["frechet"]}
    sweep = sweep_from({**small, "real": str(tmp_path / "real.npz")})
    [row] = run_sweep(sweep, tmp_path / "run", stages=("draw", "judge"), say=str)["rows"]
    assert math.isfinite(row["metrics"]["frechet"]["value"])
    assert (
        row["metrics"]["frechet"]["value"]
        > run_sweep(sweep_from(small), tmp_path / "run", stages=("judge",), say=str)["rows"][0]["metrics"]["frechet"][
            "value"
        ]
    ), "noise is farther than the demo's own pictures"
    with pytest.raises(SettingError, match="'kernel' compares the features of single pictures"):
        run_sweep(replace(sweep, metrics=("frechet", "kernel")), tmp_path / "new", say=str)
    assert not (tmp_path / "new").exists()
