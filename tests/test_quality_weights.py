"""Metrics on other projects' networks: equal to those projects' own, from local files, which may be anything."""

import math
import pickle
from pathlib import Path

import pytest
import torch
from quality_cases import inception_file, inception_layout, inception_tensors, patterned

from unetaccel import SettingError, WeightsError
from unetaccel.quality import lpips
from unetaccel.quality.inception import load_inception
from unetaccel.quality.metrics import build_metrics
from unetaccel.quality.values import Context


def pictures(n: int, seed: int = 0, side: int = 32) -> torch.Tensor:
    return (patterned((n, 3, side, side), seed) * 256).byte()


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory):
    """AlexNet's layout with made-up numbers, classifier and all else left out."""
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    shapes = {name: value.shape for name, value in lpips.trunk().state_dict().items()}
    tensors = {f"features.{name}": (patterned(shape, i) - 0.5) / 4 for i, (name, shape) in enumerate(shapes.items())}
    torch.save(tensors, path)
    return path


def test_lpips_is_torchmetrics_lpips(alexnet_file, monkeypatch):
    from torchmetrics.functional.image import lpips as theirs

    network = lpips.LPIPS(alexnet_file)
    same_trunk = torch.nn.Sequential(*network.trunk, torch.nn.MaxPool2d(3, 2))
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained: same_trunk)
    reference = theirs._NoTrainLpips(net="alex", use_dropout=True)
    a, b = patterned((3, 3, 64, 48), 0), patterned((3, 3, 64, 48), 1)
    b[2] = a[2]
    expected = reference(a, b, normalize=True).flatten()
    assert expected[:2].min() > 1e-4
    torch.testing.assert_close(network(a, b), expected, rtol=1e-5, atol=1e-7)
    assert network(a, b)[2] == 0


INCEPTION_FEATURES = {  # torch-fidelity 0.4.0's, each 256th, with the weights of quality_cases.py
    (32, 32): [0.22159, 4.03061, 3.34334, 0.0, 0.12645, 0.23821, 3.02099, 1.98248],
    (340, 420): [0.35462, 5.56115, 4.61229, 0.0, 0.12535, 0.29761, 4.03064, 2.5932],
}


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    return inception_file(tmp_path_factory.mktemp("weights") / "inception.pth")


@pytest.mark.parametrize("size", INCEPTION_FEATURES)
def test_inception_is_torch_fidelitys(inception_weights, size):
    net = load_inception(inception_weights)
    assert len(net.state_dict()) == 566
    images = (patterned((1, 3, *size), seed=size[0]) * 256).byte()
    found = net(images.float() / 255)
    assert found.shape == (1, 2048)
    assert found[0, ::256].tolist() == pytest.approx(INCEPTION_FEATURES[size], abs=1e-4)


def test_inception_files_may_lack_the_counters_and_be_half_precision(tmp_path):
    tensors = {k: v.half() for k, v in inception_tensors().items() if not k.endswith("num_batches_tracked")}
    torch.save(tensors, tmp_path / "half.pth")
    net = load_inception(tmp_path / "half.pth")
    assert {p.dtype for p in net.parameters()} == {torch.float32}


class Hostile:
    def __reduce__(self):
        return (Path("/nonexistent/executed").touch, ())


WRONG = {
    "too little": (
        lambda: {k: v for k, v in inception_layout().items() if "Mixed_7c" not in k},
        r"lacks Mixed_7c.* and \d+ more; expected torch-fidelity's weights-inception-2015-12-05-6726825d.pth",
    ),
    "torchvision's": (
        lambda: inception_layout(**{"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}),
        r"other shapes: fc.weight \(1000, 2048\) for \(1008, 2048\), fc.bias",
    ),
    "nan": (lambda: inception_layout(**{"fc.bias": torch.full((1008,), math.nan)}), "NaN or infinite .* in fc.bias"),
    "a list": (lambda: [torch.zeros(2)], "not a state dict of tensors"),
    "numbers": (lambda: inception_layout(**{"fc.weight": 3}), "not a state dict of tensors"),
    "hostile": (lambda: inception_layout(more=Hostile()), "damaged or holds more than tensors, and was not executed"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_weight_files_are_refused_by_name(tmp_path, kind):
    content, message = WRONG[kind]
    path = tmp_path / "wrong.pth"
    torch.save(content(), path)
    with pytest.raises(WeightsError, match=message) as caught:
        load_inception(path)
    assert str(path) in str(caught.value)


def test_damaged_weight_files_are_refused(tmp_path, inception_weights):
    path = tmp_path / "damaged.pth"
    path.write_bytes(inception_weights.read_bytes()[:1_000_000])
    with pytest.raises(WeightsError, match="truncated or of another format"):
        load_inception(path)
    path.write_bytes(pickle.dumps(Hostile(), protocol=2))
    with pytest.raises(WeightsError, match="was not executed"):
        load_inception(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsError, match="expected torch-fidelity's"):
        load_inception(path)
    with pytest.raises(WeightsError, match="no file"):
        load_inception(tmp_path / "none.pth")


# CLIP


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    from unetaccel.demo.pipeline import load_pipeline

    tokenizer = load_pipeline().tokenizer
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    text = dict(**shape, vocab_size=len(tokenizer), max_position_embeddings=16, eos_token_id=tokenizer.eos_token_id)
    config = CLIPConfig(text_config=text, vision_config=dict(**shape, image_size=32, patch_size=8), projection_dim=24)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def test_the_clip_score_is_the_models_own_similarity(clip_folder):
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

    from unetaccel.quality.clip import ClipScore

    prompts = ["a large red ring on a black background", "a green cross left of a pink circle on a white background"]
    images = pictures(5, side=40)
    order = [0, 1, 1, 0, 1]
    found = ClipScore(clip_folder, batch=2)(images, [prompts[i] for i in order])
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)
    shown = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    with torch.no_grad():
        out = model(**processor(text=prompts, images=shown, return_tensors="pt", padding=True))
    expected = 100 * (out.logits_per_image / model.logit_scale.exp())[range(5), order]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.std() > 1e-3


def test_long_prompts_are_cut_and_counts_must_agree(clip_folder):
    from unetaccel.quality.clip import ClipScore

    score = ClipScore(clip_folder)
    long = ["red ring " * n for n in (20, 30)]
    a, b = score(pictures(1).expand(2, -1, -1, -1), long)
    assert a == pytest.approx(b.item())
    with pytest.raises(SettingError, match="one prompt per image, got 2 for 3"):
        score(pictures(3), long)


def test_what_is_not_a_clip_is_refused(clip_folder, tmp_path):
    from transformers import CLIPModel

    from unetaccel.demo.pipeline import WEIGHTS
    from unetaccel.quality.clip import ClipScore

    with pytest.raises(WeightsError, match=r"no folder 'openai/clip-vit-base-patch32': .* nothing is downloaded"):
        ClipScore("openai/clip-vit-base-patch32")
    with pytest.raises(WeightsError, match="expected a folder with a CLIPModel and its processor"):
        ClipScore(WEIGHTS / "pipeline" / "text_encoder")
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = CLIPModel.from_pretrained(clip_folder)
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith("vision_model.encoder.layers.1")}
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(WeightsError, match=r"lacks \d+ of CLIP's weights, such as vision_model.encoder.layers.1"):
        ClipScore(tmp_path)


# All by name


def test_metrics_with_weights_measure_a_row(inception_weights, alexnet_file, clip_folder):
    metrics = build_metrics(
        ["fid", "kid", "clip", "lpips"],
        model="owner/name",
        inception=inception_weights,
        clip=clip_folder,
        alexnet=alexnet_file,
    )
    row = Context(
        ["a ring"] * 2, torch.zeros(2, dtype=torch.int64), real=pictures(2, seed=4), plain=pictures(2, seed=5)
    )
    found = {k: v for metric in metrics[1:] for k, v in metric.measure(pictures(2), row).items()}
    assert set(found) == {"kid", "clip", "lpips"}
    assert all(math.isfinite(v["value"]) for v in found.values())
    assert found["lpips"]["value"] > 0
    with pytest.raises(WeightsError, match="no file"):
        build_metrics(["fid"], model="demo", inception="nowhere.pth")
