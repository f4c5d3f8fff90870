"""Metrics: that they are what they are called, move the right way, and say what they need."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import scipy.linalg
import torch
from quality_cases import patterned

from unetaccel import SettingError
from unetaccel.demo.labels import load_label_net, read_correctly
from unetaccel.demo.scenes import render, sample_scenes
from unetaccel.quality import sanity, similarity
from unetaccel.quality.distances import frechet_distance, kernel_distance
from unetaccel.quality.features import Features, label_features
from unetaccel.quality.metrics import KINDS, build_metrics
from unetaccel.quality.values import Context, over_seeds


def features(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Correlated normal features (n, d) with a mean far from zero."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(9)) / d**0.5
    return torch.randn(n, d, generator=generator) @ mix + 3 + shift


def pictures(n: int = 6, seed: int = 0, side: int = 32) -> torch.Tensor:
    return (patterned((n, 3, side, side), seed) * 256).byte()


def context(n: int = 6, seeds: int = 3, **given) -> Context:
    return Context(prompts=["a ring"] * n, seeds=torch.arange(n) % seeds, **given)


# Distances


def test_the_frechet_distance_is_scipys_closed_form():
    a, b = features(300, 24, 0).double(), features(200, 24, 1, shift=0.3).double()
    cross = scipy.linalg.sqrtm(a.T.cov().numpy() @ b.T.cov().numpy())
    expected = (a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * cross.real.trace()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-3)
    assert frechet_distance(a.float(), b.float()) == pytest.approx(expected.item(), rel=1e-3)
    assert frechet_distance(a, b + 1) > expected + 1


@pytest.mark.parametrize(("n", "m", "d"), [(40, 40, 64), (12, 30, 96), (2, 2, 16)])
def test_it_is_right_with_fewer_samples_than_features(n, m, d):
    """The trace of the root is then the nuclear norm of the centred sets' product, which no inverse root troubles."""
    a, b = features(n, d, 0).double(), features(m, d, 1, shift=0.1).double()
    x, y = ((s - s.mean(0)) / (len(s) - 1) ** 0.5 for s in (a, b))
    expected = (a.mean(0) - b.mean(0)).square().sum() + x.square().sum() + y.square().sum()
    expected -= 2 * scipy.linalg.svdvals((x @ y.T).numpy()).sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize(("n", "d"), [(300, 24), (20, 64)])
def test_equal_sets_are_at_distance_zero_and_a_constant_feature_does_no_harm(n, d):
    a = features(n, d, 0)
    a[:, 3] = 7
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(a, a + 0.5) == pytest.approx(0.25 * d, rel=1e-3)


def test_the_kernel_distance_is_its_definition():
    a, b = features(50, 8, 0).double(), features(50, 8, 1, shift=0.2).double()

    def kernel(x, y):
        return (x @ y.T / 8 + 1) ** 3

    def between_others(x):
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (50 * 49)

    expected = between_others(a) + between_others(b) - 2 * kernel(a, b).mean()
    mean, sd = kernel_distance(a, b, subsets=3, subset_size=1000)
    assert mean == pytest.approx(expected.item(), rel=1e-9)
    assert sd == pytest.approx(0, abs=1e-9), "a subset of all samples is always the same"


def test_the_kernel_distance_is_a_function_of_its_seed_and_leaves_the_callers_alone():
    a, b = features(60, 8, 0), features(50, 8, 1)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = kernel_distance(a, b, subsets=10, subset_size=20)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert kernel_distance(a, b, subsets=10, subset_size=20) == first
    assert kernel_distance(a, b, subsets=10, subset_size=20, seed=1) != first
    assert first[1] > 0


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
@pytest.mark.parametrize(("real", "fake"), [((5, 4), (5, 3)), ((1, 4), (5, 4)), ((5,), (5,))])
def test_distances_want_two_sets_of_features(distance, real, fake):
    with pytest.raises(SettingError, match="features"):
        distance(torch.zeros(real), torch.zeros(fake))


# Likeness to the plain run


def test_psnr_is_per_image_and_infinite_for_equal_ones():
    plain = torch.full((3, 3, 16, 16), 0.5)
    images = plain + torch.tensor([0.0, 0.1, 0.01])[:, None, None, None]
    assert similarity.psnr(images, plain).tolist() == pytest.approx([math.inf, 20, 40], abs=1e-4)


def test_ssim_is_per_image():
    plain = patterned((3, 3, 32, 32), 0)
    images = torch.stack([plain[0], plain[1].lerp(plain[1].roll(5), 0.2), plain[2].roll(5)])
    found = similarity.ssim(images, plain)
    assert found[0] == pytest.approx(1)
    assert 1 > found[1] > 0.5 > found[2]
    assert similarity.ssim(images[1:2], plain[1:2])[0] == pytest.approx(found[1].item())


def test_likeness_wants_pairs():
    with pytest.raises(SettingError, match=r"\(2, 3, 16, 16\) and \(3, 3, 16, 16\)"):
        similarity.psnr(torch.zeros(2, 3, 16, 16), torch.zeros(3, 3, 16, 16))
    with pytest.raises(SettingError, match="11 pixels"):
        similarity.ssim(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))


# Feature networks


def test_features_of_the_same_images_are_computed_once():
    seen = []

    def network(images):
        seen.append(len(images))
        return images.mean((2, 3))

    extract, real = Features(network, batch=4, keep=2), pictures(10)
    first = extract(real)
    assert seen == [4, 4, 2]
    torch.testing.assert_close(first, real.float().mean((2, 3)) / 255)
    for other in (1, 2, 3):
        extract(pictures(4, seed=other))
        assert extract(real.clone()) is first, "known by content, and kept while in use"
    assert seen == [4, 4, 2, 4, 4, 4]
    real[0] = 0
    assert extract(real)[0].sum() == 0


def test_label_features_are_the_label_networks():
    images = pictures(3)
    torch.testing.assert_close(label_features()(images), load_label_net().features(images.float() / 255))
    with pytest.raises(SettingError, match="reads 32x32 pictures, got"):
        label_features()(pictures(2, side=16))
    with pytest.raises(SettingError, match=r"uint8 images \(N, 3, H, W\), got torch.float32"):
        label_features()(images.float())


# By name


def test_values_are_over_all_and_per_seed():
    seeds = torch.tensor([7, 7, 3, 3])
    [value] = over_seeds(seeds, lambda chosen: {"mean": chosen.double().mean().item()}).values()
    assert value == {"value": 1.5, "per_seed": [0.5, 2.5], "sd": pytest.approx(2**0.5)}
    [value] = over_seeds(seeds[:2], lambda chosen: {"mean": math.inf}).values()
    assert value == {"value": None, "per_seed": [None], "sd": None}


def test_metrics_describe_their_columns_and_never_pretend():
    for name, kind in KINDS.items():
        described = kind.describe()
        assert name in described
        for info in described.values():
            assert set(info) == {"label", "better", "unit", "to"}
            assert info["better"] in ("higher", "lower")
            assert info["to"] in ("real", "plain", "prompts")
            assert ("FID" in info["label"] or "KID" in info["label"]) == (name in ("fid", "kid"))
        assert all("demo" in info["label"] for info in described.values() if kind.demo and info["to"] == "real")


def test_metrics_of_the_demo_measure_a_row():
    scenes = sample_scenes(8, seed=3, held_out=True)
    drawn = (render(scenes, seed=0) * 255).byte()
    images = drawn.clone()
    images[[0, 3]] = 255 - images[[0, 3]]
    row = Context(scenes.captions(), torch.arange(8) // 4, (render(scenes, seed=1) * 255).byte(), drawn, scenes)
    metrics = build_metrics(["frechet", "kernel", "labels", "psnr", "ssim", "psnr"], model="demo")
    assert [m.name for m in metrics] == ["frechet", "kernel", "labels", "psnr", "ssim"]
    found = {k: v for metric in metrics for k, v in metric.measure(images, row).items()}
    assert set(found) == {"frechet", "kernel", "labels", "shape", "colour", "psnr", "ssim"}
    assert json.loads(json.dumps(found)) == found
    expected = read_correctly(load_label_net(), images.float() / 255, scenes)
    assert found["labels"]["value"] == pytest.approx(expected["exact"])
    assert found["shape"]["value"] == pytest.approx(expected["shape"])
    assert found["labels"]["per_seed"][1] == 1
    extract = label_features()
    assert found["frechet"]["value"] == pytest.approx(frechet_distance(extract(row.real), extract(images)))
    assert found["frechet"]["per_seed"][1] == pytest.approx(frechet_distance(extract(row.real), extract(images)[4:]))
    assert found["psnr"] == {"value": None, "per_seed": [None, None], "sd": None}, "more than half are identical"
    assert found["ssim"]["per_seed"][1] == pytest.approx(1, abs=1e-5)


def test_the_psnr_of_a_row_is_the_median():
    [metric] = build_metrics(["psnr"], model="anything")
    plain = torch.full((4, 3, 16, 16), 100, dtype=torch.uint8)
    images = plain + torch.tensor([0, 1, 2, 4], dtype=torch.uint8)[:, None, None, None]
    found = metric.measure(images, context(4, seeds=1, plain=plain))["psnr"]["value"]
    assert found == pytest.approx((20 * math.log10(255) + 20 * math.log10(255 / 2)) / 2, abs=1e-4)
    assert metric.measure(images, context(4)) == {}, "a row without a plain run has no such column"


def test_what_a_row_lacks_is_said():
    frechet, labels = build_metrics(["frechet", "labels"], model="demo")
    with pytest.raises(SettingError, match="metric 'frechet' is a distance to real images and got none"):
        frechet.measure(pictures(), context())
    with pytest.raises(SettingError, match="labels are read against the demo's own captions"):
        labels.measure(pictures(), context())


REFUSED = [
    (
        ["psnr", "fdi"],
        {},
        "unknown metric 'fdi'; allowed are frechet, kernel, fid, kid, clip, labels, psnr, ssim, lpips",
    ),
    ("psnr", {}, "metrics must be a list of names, got 'psnr'; allowed are frechet"),
    ({"fid": "a.pth"}, {}, "metrics must be a list of names"),
    (["fid"], {}, "metric 'fid' needs local weights, 'inception'.*: the path of torch-fidelity's weights-inception"),
    (["kid"], {"clip": "x"}, "metric 'kid' needs local weights, 'inception'"),
    (["clip"], {}, "metric 'clip' needs local weights, 'clip'.*: the path of a folder with a CLIPModel"),
    (["lpips"], {}, "metric 'lpips' needs local weights, 'alexnet'.*: the path of torchvision's AlexNet"),
    (["psnr"], {"vgg": "x"}, "unknown weights 'vgg'; allowed are inception, clip, alexnet"),
    (
        ["labels"],
        {"model": "runwayml/sd"},
        r"metric 'labels' .* the demo's pictures only, not those of 'runwayml/sd'; take",
    ),
    (["frechet"], {"model": "runwayml/sd"}, "metric 'frechet' .* the demo's pictures only"),
]


@pytest.mark.parametrize(("names", "given", "message"), REFUSED)
def test_what_cannot_be_had_is_refused_before_any_work(names, given, message):
    with pytest.raises(SettingError, match=message):
        build_metrics(names, **{"model": "demo", **given})


def test_without_torchmetrics_the_way_out_is_named(monkeypatch):
    from unetaccel.quality import metrics

    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r'pip install "unetaccel\[metrics\]"'):
        build_metrics(["psnr"], model="demo")
    assert build_metrics(["labels"], model="demo")


def test_nothing_is_imported_before_a_metric_is_built():
    code = (
        "import sys, unetaccel; assert 'unetaccel.quality' not in sys.modules; import unetaccel.quality.metrics; "
        "print([m for m in ('torchmetrics', 'transformers', 'scipy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# That each moves the right way


@pytest.fixture(scope="module")
def sane():
    metrics = build_metrics(["frechet", "kernel", "labels", "psnr", "ssim"], model="demo")
    return {row["name"]: row for row in sanity.check(metrics, captions=80)}


@pytest.mark.parametrize("case", sanity.CASES, ids=lambda case: case.name)
def test_each_metric_moves_the_right_way(sane, case):
    row = sane[case.name]
    assert row["held"] == {column: True for column, _ in case.expected}


def test_the_sanity_check_bites(sane):
    """The same rows judged with each expectation turned round hold nowhere."""
    values = {name: row["metrics"] for name, row in sane.items()}
    turned = {"up": "down", "down": "up", "same": "up"}
    for case in sanity.CASES:
        wrong = sanity.Case(case.name, case.damage, case.than, tuple((c, turned[way]) for c, way in case.expected))
        assert not any(sanity._row(wrong, values)["held"].values())


def test_the_committed_sanity_list_holds():
    results = json.loads((Path(__file__).parents[1] / "bench" / "results" / "quality-sanity.json").read_text())
    assert results["images"] >= 2000
    assert results["environment"]["packages"]["torchmetrics"]
    assert [row["name"] for row in results["rows"]] == [case.name for case in sanity.CASES]
    assert all(held for row in results["rows"] for held in row["held"].values())
    expected = {case.name: dict(case.expected) for case in sanity.CASES}
    assert {row["name"]: row["expected"] for row in results["rows"]} == expected
