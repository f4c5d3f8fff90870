"""The shipped demo: what it draws, reads and samples."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import unetaccel
from unetaccel.demo.labels import load_label_net, read_correctly
from unetaccel.demo.pipeline import WEIGHTS, load_pipeline
from unetaccel.demo.scenes import HEADS, render, sample_scenes
from unetaccel.demo.train.evaluate import accuracy


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(scope="module")
def net():
    return load_label_net()


def test_scenes_are_a_function_of_their_seed():
    a, b = sample_scenes(50, seed=3), sample_scenes(50, seed=3)
    assert a.captions() == b.captions() != sample_scenes(50, seed=4).captions()
    assert torch.equal(render(a, seed=1), render(b, seed=1))
    assert not torch.equal(render(a, seed=1), render(a, seed=2))


def test_pictures_are_images_in_range():
    images = render(sample_scenes(20, seed=0), size=64)
    assert images.shape == (20, 3, 64, 64)
    assert images.min() >= 0
    assert images.max() <= 1


def test_training_never_sees_a_held_out_caption():
    training = set(sample_scenes(20_000, seed=0).captions())
    held_out = set(sample_scenes(2_000, seed=0, held_out=True).captions())
    assert len(training) > 8_000
    assert len(held_out) > 600
    assert not training & held_out


def test_captions_say_every_label():
    found = sample_scenes(300, seed=5)
    described = {}
    for caption, *labels in zip(found.captions(), *(found.labels()[k].tolist() for k in HEADS), strict=True):
        assert described.setdefault(caption, labels) == labels
    assert any(c.startswith("an orange") for c in found.captions())
    assert not any(" a orange" in c for c in found.captions())


def test_the_label_network_reads_held_out_drawings_and_knows_when_they_are_wrong(net):
    scenes = sample_scenes(400, seed=11, held_out=True)
    images = render(scenes, seed=11)
    assert read_correctly(net, images, scenes)["exact"] > 0.99
    assert read_correctly(net, images.roll(1, 0), scenes)["exact"] < 0.05
    assert net.features(images[:5]).shape == (5, 128)


def test_the_pipeline_is_a_genuine_stable_diffusion_pipeline(pipe):
    assert type(pipe) is StableDiffusionPipeline
    assert pipe.unet.config.cross_attention_dim == 96
    assert len(unetaccel.skips.skip_table(pipe.unet)) >= 9
    every_word = {w for c in sample_scenes(3000, seed=0).captions() for w in c.split()}
    assert all(len(pipe.tokenizer(w).input_ids) == 3 for w in every_word), "each caption word is one token"
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_loads_as_any_pipeline_does(dtype):
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS / "pipeline", torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.dtype == dtype
    assert pipe("a large red ring on a black background", num_inference_steps=1, output_type="pt").images.shape == (
        1,
        3,
        32,
        32,
    )


def test_samples_show_what_held_out_captions_say(pipe, net):
    """A small sample of the model card's figure, which is over 500 captions."""
    shares, images = accuracy(pipe, net, n=40, steps=20, seed=5, batch=40)
    assert images.shape == (40, 3, 32, 32)
    assert shares["exact"] >= 0.95
    assert shares["colour"] >= 0.98


def test_the_model_card_meets_the_bar_and_matches_its_figures():
    figures = json.loads((WEIGHTS / "figures.json").read_text())
    card = (WEIGHTS / "MODEL_CARD.md").read_text()
    runs = {key: shares for key, shares in figures.items() if key.startswith("steps=")}
    assert len([key for key in runs if key.startswith("steps=20")]) >= 3
    for key, shares in runs.items():
        if key.startswith("steps=20"):
            assert shares["colour"] > 0.99
            assert shares["shape"] > 0.98
            assert shares["exact"] > 0.95
        assert f"{shares['exact']:.3f}" in card
    curve = json.loads((WEIGHTS / "curve.json").read_text())
    assert curve[-1]["images"] > curve[0]["images"]
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert f"{curve[-1]['images']:,}" in card


def test_deepcache_on_the_demo_keeps_its_labels(pipe, net):
    with unetaccel.apply(pipe, unetaccel.DeepCache(interval=3, cut=0)) as handle:
        shares, _ = accuracy(pipe, net, n=24, steps=50, seed=5, batch=24)
        summary = handle.summary()
    assert summary.full == 17
    assert summary.cached == 33
    assert shares["exact"] >= 0.9


def test_one_training_step_of_every_part_runs(tmp_path):
    """The whole recipe, shrunk to seconds: shapes, files and figures, not quality."""
    from unetaccel.demo.train.assemble import assemble
    from unetaccel.demo.train.autoencoder import train_autoencoder
    from unetaccel.demo.train.label_net import train_label_net
    from unetaccel.demo.train.text import train_text_encoder
    from unetaccel.demo.train.unet import train_unet

    train_text_encoder(tmp_path, steps=20)
    train_label_net(tmp_path, steps=20)
    train_autoencoder(tmp_path, steps=2, drawings=1000)
    train_unet(tmp_path, steps=2, batch=2, pool=1000, checks=1)
    folder = assemble(tmp_path, n=2, seeds=(0,), steps=(2,))
    assert isinstance(StableDiffusionPipeline.from_pretrained(folder), StableDiffusionPipeline)
    assert {p.name for p in Path(tmp_path).iterdir()} >= {
        "pipeline",
        "label_net.safetensors",
        "curve.json",
        "figures.json",
    }


def test_training_with_scaled_skips_goes_on_where_it_was_stopped(tmp_path):
    """All four ways, shrunk to seconds: the same data and first weights, files, table, figure."""
    pytest.importorskip("matplotlib")
    from unetaccel.demo.train.scaling import MEASURES, VARIANTS, Budget, read_runs, train_variants
    from unetaccel.demo.train.scaling_figure import table, write_figure

    budget = Budget(steps=2, batch=2, windows=2, drawings=20, samples=2, held_out=48)
    said = []
    train_variants(tmp_path, ["original", "ls"], [0], budget, said.append)
    kept = (tmp_path / "ls-seed0.json").read_bytes()
    (tmp_path / "original-seed0.json").unlink()
    train_variants(tmp_path, list(VARIANTS), [0], budget, said.append)
    assert [text.split(",")[0] for text in said] == ["original", "ls", "original", "sqrt2", "cs"]
    assert (tmp_path / "ls-seed0.json").read_bytes() == kept
    runs = read_runs(tmp_path, budget)
    assert [run["variant"] for run in runs] == list(VARIANTS)
    for run in runs:
        assert [row["step"] for row in run["curve"]] == [1, 2]
        assert all(low <= middle <= high for row in run["curve"] for low, middle, high in map(row.get, MEASURES))
    first = [run["curve"][0]["feature_norm"][1] for run in runs]
    assert len(set(first)) == 4, "four ways"
    assert table(runs).count("\n") == 5
    write_figure(tmp_path / "curves.png", runs)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    with pytest.raises(unetaccel.SettingError, match="choose another folder"):
        train_variants(tmp_path, ["cs"], [1], Budget(steps=3), said.append)
