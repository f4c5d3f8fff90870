"""bench/edm.py: its samplers against data whose denoiser and flow are known exactly, and the command on a small network."""

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from edm_networks import build_network
from PIL import Image
from typer.testing import CliRunner

BENCH = Path(__file__).parents[1] / "bench" / "edm.py"
MEAN, STD = torch.linspace(-0.5, 0.5, 4), torch.tensor([0.05, 0.2, 0.5, 1.0])


@pytest.fixture(scope="module")
def edm():
    spec = importlib.util.spec_from_file_location("bench_edm", BENCH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def denoise(x, sigma):
    """Of normal data: the mean of a picture given x, exactly."""
    mean, var = MEAN.view(1, 4, 1, 1).to(x), STD.view(1, 4, 1, 1).to(x) ** 2
    return (x * var + mean * sigma**2) / (var + sigma**2)


def error(edm, solver: str, steps: int, **options) -> torch.Tensor:
    """Of the sampler, to the exact end of the flow: root mean square per channel."""
    noise = torch.randn(64, 4, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = torch.cat([edm.noise_levels(steps), torch.zeros(1, dtype=torch.float64)])
    mean, std = MEAN.view(1, 4, 1, 1).double(), STD.view(1, 4, 1, 1).double()
    exact = mean + (noise * sigmas[0] - mean) * std / (std**2 + sigmas[0] ** 2).sqrt()
    return (edm.sample(denoise, noise, sigmas, solver, **options).double() - exact).square().mean((0, 2, 3)).sqrt()


def test_samplers_converge_and_rank_as_they_should(edm):
    assert (error(edm, "unipc", 10) < 0.8 * error(edm, "euler", 10)).all()
    falls = {"euler": 3.5, "heun": 15, "unipc": 15}  # by four times the steps: orders 1, 2 and 2 in the end
    for solver, factor in falls.items():
        fall = error(edm, solver, 20) / error(edm, solver, 80)
        assert (fall > factor).all(), (solver, fall)
    assert (error(edm, "unipc", 80, order=3) < error(edm, "unipc", 80))[1:].all()


@pytest.mark.parametrize(("solver", "evaluations"), [("unipc", 10), ("euler", 10), ("heun", 19)])
def test_evaluations_are_those_announced(edm, solver, evaluations):
    sigmas, seen = torch.cat([edm.noise_levels(10), torch.zeros(1, dtype=torch.float64)]), []

    def spying(x, sigma):
        seen.append(float(sigma))
        return denoise(x, sigma)

    edm.sample(spying, torch.zeros(1, 4, 1, 1), sigmas, solver)
    assert seen == pytest.approx(edm.evaluated(solver, sigmas))
    assert len(seen) == evaluations
    assert (seen[0], min(seen)) == pytest.approx((80.0, 0.002))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("edm") / "network.pkl"
    path.write_bytes(pickle.dumps({"ema": build_network("adm", labels=4)}))
    return path


def run(edm, network, out, *options):
    import typer

    app = typer.Typer()
    app.command()(edm.main)
    fixed = ["--network", network, "--edm-repo", Path(__file__).parent, "--out", out, "--device", "cpu", "--steps", 3]
    return CliRunner().invoke(app, [str(arg) for arg in [*fixed, *options]], catch_exceptions=False)


def pictures(folder) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def test_the_command_writes_tuned_pictures(edm, network, tmp_path):
    result = run(edm, network, tmp_path / "tuned", "--seeds", "0-2,7", "--batch", 3)
    assert result.exit_code == 0
    assert "runs code as it loads" in result.output
    tuned = pictures(tmp_path / "tuned")
    assert list(tuned) == ["000000.png", "000001.png", "000002.png", "000007.png"]
    assert tuned["000007.png"].shape == (16, 16, 3)
    run(edm, network, tmp_path / "plain", "--seeds", "7", "--rho-bottom", 1)
    plain = pictures(tmp_path / "plain")["000007.png"]
    assert not np.array_equal(tuned["000007.png"], plain)
    net = build_network("adm", labels=4)
    noise, labels = edm.draw(net, [7], "cpu")
    sigmas = torch.cat([edm.noise_levels(3), torch.zeros(1, dtype=torch.float64)])
    with torch.no_grad():
        by_hand = edm.unipc(lambda x, sigma: net(x, sigma, labels), noise, sigmas)
    edm.save(by_hand, [7], tmp_path)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "000007.png")), plain)


def test_what_exists_is_left_and_seeds_do_not_depend_on_the_batch(edm, network, tmp_path):
    run(edm, network, tmp_path, "--seeds", "0-3", "--batch", 4)
    whole = pictures(tmp_path)
    (tmp_path / "000002.png").unlink()
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(tmp_path / "000001.png")
    result = run(edm, network, tmp_path, "--seeds", "0-3")
    assert "1 of 1" in result.output
    again = pictures(tmp_path)
    assert again["000001.png"].shape == (1, 1)
    assert np.abs(again["000002.png"].astype(int) - whole["000002.png"]).max() <= 1


@pytest.mark.parametrize("solver", ["unipc", "heun"])
def test_time_schedules_know_every_evaluation(edm, network, tmp_path, solver):
    result = run(edm, network, tmp_path, "--seeds", "0", "--solver", solver, "--schedule", "decreasing")
    assert result.exit_code == 0
    assert f'"evaluations": {3 if solver == "unipc" else 5}' in (tmp_path / "settings.json").read_text("utf-8")
    assert "schedule='decreasing'" in (tmp_path / "settings.json").read_text("utf-8")


def test_pictures_of_other_settings_are_not_mixed(edm, network, tmp_path):
    run(edm, network, tmp_path, "--seeds", "0")
    result = run(edm, network, tmp_path, "--seeds", "1", "--rho-bottom", "1")
    assert result.exit_code != 0
    assert "other settings" in result.output
    assert list(pictures(tmp_path)) == ["000000.png"]


def test_a_wrong_solver_is_refused(edm, network, tmp_path):
    result = run(edm, network, tmp_path, "--solver", "dpm")
    assert result.exit_code != 0
    assert "choose unipc, heun or euler" in result.output
