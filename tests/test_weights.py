"""Learned parts in files: there and back, and what is told of a file that does not fit, before anything is applied."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import unetaccel
from unetaccel import DeepCache, ScaleLong, SettingError, WeightsError, save_learned
from unetaccel import weights as module

UNET = "one-layer"


@pytest.fixture
def unet(tiny):
    return tiny.unet(UNET)


def trained(unet, **settings):
    handle = unetaccel.apply(unet, ScaleLong("ls", **settings))
    generator = torch.Generator().manual_seed(0)
    for p in handle.learned.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator)
    return handle


@pytest.fixture
def file(unet, tmp_path):
    return save_learned(trained(unet), tmp_path / "gates.safetensors")


def changed(file: Path, header: dict | None = None, tensors=lambda found: found, drop: str = "") -> Path:
    """The file with another header, or other tensors."""
    with safe_open(file, "pt") as opened:
        metadata = {k: v for k, v in opened.metadata().items() if k != drop}
    save_file(tensors(load_file(file)), file, metadata={**metadata, **(header or {})})
    return file


def edited(file: Path, part: str, **values) -> dict:
    with safe_open(file, "pt") as opened:
        return {part: json.dumps({**json.loads(opened.metadata()[part]), **values})}


@pytest.mark.parametrize("settings", [{}, {"shared": False}, {"gate": "token"}, {"start": "paper", "reduction": 4}])
def test_there_and_back(tiny, unet, tmp_path, settings):
    handle = trained(unet, **settings)
    inputs = tiny.inputs(unet)
    path = save_learned(handle, tmp_path / "gates.safetensors")
    again = unetaccel.apply(unet, ScaleLong("ls", weights=path, **settings))
    with torch.no_grad():
        assert torch.equal(again.unet(**inputs)[0], handle.unet(**inputs)[0])
        assert not torch.equal(again.unet(**inputs)[0], unet(**inputs)[0])
    assert len(load_file(path)) == len(list(handle.learned.parameters())), "what is shared is written once"
    assert all(p.requires_grad for p in again.learned.parameters())


def test_what_is_saved_outlives_removal_and_goes_with_deepcache(tiny, unet, file):
    pipe = tiny.pipe(UNET)
    with unetaccel.apply(pipe, DeepCache(interval=2), ScaleLong("ls", weights=str(file))) as handle:
        first = tiny.call(pipe, steps=6)
    again = save_learned(handle, file.with_name("again.safetensors"), method="scalelong")
    with unetaccel.apply(pipe, DeepCache(interval=2), ScaleLong("ls", weights=again)):
        assert torch.equal(tiny.call(pipe, steps=6), first)


def test_files_of_half_precision_are_read(unet, file):
    wanted = load_file(file)
    changed(file, tensors=lambda found: {k: v.half() for k, v in found.items()})
    learned = unetaccel.apply(unet, ScaleLong("ls", weights=file)).learned["scalelong"]
    for name, tensor in module.own_tensors(learned).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, wanted[name].half().float())


def replaced(name, value):
    return lambda found: {**found, name: value(found[name])}


FIRST = "0.network.0.weight"
BAD = {
    "missing": (lambda f: f.unlink(), "no file .*gates.safetensors.*save_learned"),
    "a folder": (lambda f: (f.unlink(), f.mkdir()), "gates.* is a folder: give the path of a file"),
    "empty": (lambda f: f.write_bytes(b""), "truncated or not a safetensors file"),
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[:-7]), "truncated or not a safetensors file"),
    "text": (lambda f: f.write_text("gates, gates, gates"), "truncated or not a safetensors file"),
    "a header of 2 ** 60 bytes": (
        lambda f: f.write_bytes((2**60).to_bytes(8, "little") + f.read_bytes()[8:]),
        "truncated or not a safetensors file",
    ),
    "foreign": (lambda f: save_file(load_file(f), f), "not written by unetaccel.save_learned"),
    "newer": (
        lambda f: changed(f, {"version": "2"}),
        "format version '2', and this release of unetaccel reads version '1'",
    ),
    "another method": (lambda f: changed(f, {"method": "scedit"}), "what 'scedit' has learned, not 'scalelong'"),
    "no settings": (lambda f: changed(f, drop="settings"), "settings is not JSON"),
    "deep JSON": (lambda f: changed(f, {"base": "[" * 100_000}), "base is not JSON"),
    "a list of settings": (lambda f: changed(f, {"settings": "[]"}), "settings is not a table"),
    "other settings": (
        lambda f: changed(f, edited(f, "settings", gate="token")),
        "made with gate='token', but ScaleLong.* expects gate='channel'. Give the same settings",
    ),
    "a setting from elsewhere": (
        lambda f: changed(f, edited(f, "settings", rank=4)),
        "made with rank=4, but .* rank=None",
    ),
    "another class": (
        lambda f: changed(f, edited(f, "base", **{"class": "UNet2DModel"})),
        "made with class='UNet2DModel', but this U-Net expects class='UNet2DConditionModel'",
    ),
    "other skips": (
        lambda f: changed(f, edited(f, "base", skips=[[320, 320, 1]])),
        r"made with skips=\[\[320, 320, 1\]\]",
    ),
    "a tensor less": (
        lambda f: changed(f, tensors=lambda found: {k: v for k, v in found.items() if k != FIRST}),
        f"lacks {FIRST}",
    ),
    "a tensor more": (lambda f: changed(f, tensors=lambda found: {**found, "x": torch.ones(1)}), "also has x"),
    "another shape": (
        lambda f: changed(f, tensors=replaced(FIRST, lambda v: torch.cat([v, v]))),
        rf"{FIRST} as F32 of shape \[2, 16\]; expected .* \[1, 16\]",
    ),
    "integers": (lambda f: changed(f, tensors=replaced(FIRST, lambda v: v.int())), f"{FIRST} as I32"),
    "not a number": (
        lambda f: changed(f, tensors=replaced(FIRST, lambda v: v.fill_(torch.nan))),
        f"NaN or infinite numbers in {FIRST}",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_do_not_fit_are_told_before_anything_is_applied(tiny, file, case):
    spoil, message = BAD[case]
    spoil(file)
    pipe = tiny.pipe(UNET)
    before = tiny.snapshot(pipe)
    with pytest.raises(WeightsError, match=message) as caught:
        unetaccel.apply(pipe, ScaleLong("ls", weights=file))
    assert str(file) in str(caught.value)
    assert tiny.snapshot(pipe) == before


def test_a_bad_file_leaves_what_was_applied_before(tiny, file):
    pipe = tiny.pipe(UNET)
    handle = unetaccel.apply(pipe, DeepCache())
    file.write_bytes(b"")
    with pytest.raises(WeightsError):
        unetaccel.apply(pipe, ScaleLong("ls", weights=file), replace=True)
    assert handle.is_applied


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_nothing_in_a_file_is_executed(tmp_path, unet, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gates.safetensors").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(WeightsError, match="not a safetensors file"):
        unetaccel.apply(unet, ScaleLong("ls", weights="gates.safetensors"))
    assert not Path("executed").exists()
    pickle.loads(Path("gates.safetensors").read_bytes())
    assert Path("executed").exists(), "the payload would have worked"


def test_another_unet_and_other_settings(tiny, file):
    with pytest.raises(WeightsError, match="skips="):
        unetaccel.apply(tiny.unet("sd"), ScaleLong("ls", weights=file))
    with pytest.raises(WeightsError, match=r"made with shared=True, but .* shared=False"):
        unetaccel.apply(tiny.unet(UNET), ScaleLong("ls", weights=file, shared=False))


def test_a_write_that_fails_leaves_the_old_file(unet, file, monkeypatch):
    old = file.read_bytes()

    def broken(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "save_file", broken)
    with pytest.raises(WeightsError, match=r"cannot write .*no space left"):
        save_learned(trained(unet), file)
    assert file.read_bytes() == old
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_saving_says_what_it_needs(unet, tmp_path):
    with pytest.raises(SettingError, match=r"nothing here learns.*ScaleLong\(mode='cs'\)"):
        save_learned(unetaccel.apply(unet, ScaleLong()), tmp_path / "x.safetensors")
    with pytest.raises(SettingError, match=r"method='scedit'\): method must be one of 'scalelong'"):
        save_learned(trained(unet), tmp_path / "x.safetensors", method="scedit")
    with pytest.raises(WeightsError, match="no folder"):
        save_learned(trained(unet), tmp_path / "none" / "x.safetensors")


def test_fine_tunes_share_files_and_the_header_is_readable(tiny, file):
    other = tiny.unet(UNET, seed=7)
    unetaccel.apply(other, ScaleLong("ls", weights=file))
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    assert (header["format"], header["version"], header["method"]) == ("unetaccel learned", "1", "scalelong")
    assert json.loads(header["settings"])["reduction"] == 16
    assert json.loads(header["base"])["class"] == "UNet2DConditionModel"
