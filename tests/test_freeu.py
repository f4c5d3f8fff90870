"""FreeU: equal to diffusers' own, without its Fourier transform and without its edit in place."""

import threading

import pytest
import torch
from diffusers.utils.torch_utils import apply_freeu, fourier_filter
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_cases import CASES, normal
from skip_cases import edited_by_hand
from test_video import animatediff, sampler
from torch._dynamo.testing import CompileCounter

import unetaccel
from unetaccel import DeepCache, FreeU, SettingError
from unetaccel.fourier import low_basis, scale_low_frequencies
from unetaccel.methods.freeu import Bases, Boost
from unetaccel.settings import method_from
from unetaccel.skips import skip_table

VALUES = dict(b1=1.3, b2=1.5, s1=0.6, s2=0.4)
FREEU = FreeU(**VALUES)
OWN = ["sd", "sd-4-levels", "one-layer", "sdxl", "sdxl-refiner", "animatediff", "text-to-video", "i2vgen-xl"]
"""Architectures whose U-Net has an ``enable_freeu`` that its blocks obey."""


def relative(a: torch.Tensor, b: torch.Tensor, to: torch.Tensor | None = None) -> float:
    """The largest difference, relative to the largest value of b or of ``to``."""
    return float((a.double() - b.double()).abs().max() / (b if to is None else to).double().abs().max())


def filtered(x: torch.Tensor, s: float) -> torch.Tensor:
    return scale_low_frequencies(x, s, Bases().of(x))


@pytest.mark.parametrize(
    "size",
    [(8, 8), (16, 16), (64, 64), (96, 64), (7, 9), (33, 5), (2, 2), (3, 3), (2, 9), (1, 1), (1, 8), (8, 1), (1, 7), (2, 1)],
)  # fmt: skip
@pytest.mark.parametrize("s", [0.0, 0.2, 0.9, 1.7])
def test_the_filter_is_diffusers(size, s):
    x = normal(2, 5, *size) + 3
    assert relative(filtered(x, s), fourier_filter(x, threshold=1, scale=s), x) <= 1e-6


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), s=st.floats(0, 2))
def test_the_filter_is_diffusers_on_any_size(height, width, s):
    x = normal(1, 3, height, width)
    assert relative(filtered(x, s), fourier_filter(x, threshold=1, scale=s), x) <= 1e-6


def test_the_filter_keeps_types_and_computes_in_float32():
    x = normal(2, 4, 12, 16) + 3
    for dtype in (torch.bfloat16, torch.float16):
        low = x.to(dtype)
        assert filtered(low, 0.3).dtype == dtype
        assert torch.equal(filtered(low, 0.3), filtered(low.float(), 0.3).to(dtype)), "rounded once, at the end"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(filtered(x, 0.3), filtered(x, 0.3))
        inside = filtered(x, 0.3)
    assert torch.equal(inside, filtered(x, 0.3)), "autocast does not reach the products"
    assert filtered(x.double(), 0.3).dtype == torch.float64
    assert relative(filtered(x.double(), 0.3), fourier_filter(x, 1, 0.3)) <= 1e-6


def test_the_filter_has_a_shape_on_the_meta_device():
    x = torch.empty(2, 4, 12, 16, device="meta", dtype=torch.bfloat16)
    assert (filtered(x, 0.3).shape, filtered(x, 0.3).dtype) == (x.shape, x.dtype)


def test_the_edit_is_that_of_diffusers():
    hidden, skip = normal(2, 6, 8, 8), normal(2, 4, 8, 8, seed=1)
    expected = apply_freeu(0, hidden.clone(), skip.clone(), **VALUES)
    Boost(VALUES["b1"], VALUES["s1"], Bases())(hidden, skip, None)
    assert torch.equal(hidden, expected[0])
    assert relative(skip, expected[1]) <= 1e-6


def test_bases_are_kept_per_size_and_few_of_them():
    bases, x = Bases(), normal(1, 1, 4, 6)
    assert bases.of(x) is bases.of(x + 1)
    assert bases.of(normal(1, 1, 6, 4)) is not bases.of(x)
    with torch.inference_mode():
        made = bases.of(normal(1, 1, 5, 5))
    assert not made.is_inference()
    assert torch.equal(made, low_basis(5, 5, torch.float32))
    for side in range(3, 3 + 3 * Bases.LIMIT):
        bases.of(normal(1, 1, side, 2))
    assert len(bases._kept) <= Bases.LIMIT


@pytest.mark.parametrize("name", OWN)
def test_it_equals_diffusers_freeu(tiny, name):
    unet = tiny.unet(name)
    inputs = tiny.inputs(unet)
    plain = unet(**inputs)[0]
    handle = unetaccel.apply(unet, FREEU)
    ours = handle.unet(**inputs)[0]
    handle.remove()
    assert torch.equal(unet(**inputs)[0], plain)
    unet.enable_freeu(**VALUES)
    theirs = unet(**inputs)[0]
    assert relative(theirs, plain) > 1e-3, "FreeU changes the output, so equality says something"
    assert relative(ours, theirs) <= 1e-5


def video(tiny):
    pipe = animatediff(tiny)
    return pipe, sampler(pipe)


@pytest.mark.parametrize(
    "build", [CASES["text2img"].build, CASES["sdxl text2img"].build, video], ids=["sd", "sdxl", "animatediff"]
)
def test_it_equals_diffusers_freeu_through_the_pipeline(tiny, build):
    pipe, sample = build(tiny)
    plain = sample()
    with unetaccel.apply(pipe, FREEU):
        ours = sample()
    assert torch.equal(sample(), plain)
    pipe.enable_freeu(**VALUES)
    theirs = sample()
    pipe.disable_freeu()
    assert relative(theirs, plain) > 1e-3
    assert relative(ours, theirs) <= 1e-5
    assert torch.equal(sample(), plain)


@pytest.mark.parametrize("name", ["ddpm", "ldm", "svd", "deepfloyd", "kandinsky"])
def test_it_acts_where_diffusers_has_none(tiny, name):
    """On every layer of the first two up blocks, and no other: shown by hand with hooks on these layers."""
    unet = tiny.unet(name)
    inputs = tiny.inputs(unet)
    plain = unet(**inputs)[0]
    ours = unetaccel.apply(unet, FREEU).unet(**inputs)[0]
    stage = {s.b: s.up_block for s in skip_table(unet)}
    with edited_by_hand(unet, lambda b, hidden, skip: apply_freeu(stage[b], hidden.clone(), skip, **VALUES)):
        theirs = unet(**inputs)[0]
    assert relative(theirs, plain) > 1e-3
    assert relative(ours, theirs) <= 1e-5


def test_it_runs_in_bfloat16(tiny):
    unet = tiny.unet("sd").bfloat16()
    inputs = {k: v.bfloat16() if k in ("sample", "encoder_hidden_states") else v for k, v in tiny.inputs(unet).items()}
    ours = unetaccel.apply(unet, FREEU).unet(**inputs)[0]
    unet.enable_freeu(**VALUES)
    assert ours.dtype == torch.bfloat16
    assert relative(ours, unet(**inputs)[0]) < 0.05


def test_neutral_values_change_no_bit(tiny, architecture):
    unet = tiny.unet(architecture)
    inputs = tiny.inputs(unet)
    plain = unet(**inputs)[0]
    assert torch.equal(unetaccel.apply(unet, FreeU(b1=1, b2=1, s1=1, s2=1)).unet(**inputs)[0], plain)
    if len(unet.up_blocks) > 1:
        assert not torch.equal(unetaccel.apply(unet, FreeU(b1=1, b2=1, s1=1, s2=0.5)).unet(**inputs)[0], plain)


def test_it_is_removed_without_a_trace(tiny):
    pipe = tiny.pipe()
    plain = tiny.call(pipe)
    before = tiny.snapshot(pipe)
    handle = unetaccel.apply(pipe, FREEU)
    assert not torch.equal(tiny.call(pipe), plain)
    handle.remove()
    assert tiny.snapshot(pipe) == before
    assert torch.equal(tiny.call(pipe), plain)


@pytest.mark.parametrize("cut", range(9))
def test_cached_steps_see_the_same_freeu(tiny, cut):
    """With equal inputs a cached evaluation equals a full one bit for bit: F is kept from before the edit."""
    unet = tiny.unet("sd")
    inputs = tiny.inputs(unet)
    expected = unetaccel.apply(unet, FREEU).unet(**inputs)[0]
    handle = unetaccel.apply(unet, FREEU, DeepCache(interval=5, cut=cut, force=True))
    with handle.run(5) as run:
        outputs = [handle.unet(**inputs)[0] for _ in range(5)]
    assert run.report.kinds == [[True, False, False, False, False]]
    assert all(torch.equal(output, expected) for output in outputs)


def test_one_graph_per_view(tiny):
    torch._dynamo.reset()
    unet = tiny.unet("sd")
    inputs = tiny.inputs(unet)
    expected = unetaccel.apply(unet, FREEU).unet(**inputs)[0]
    counter = CompileCounter()
    handle = unetaccel.apply(unet, FREEU, DeepCache(interval=2, cut=7, force=True), compile={"backend": counter})
    with handle.run(6):
        outputs = [handle.unet(**inputs)[0] for _ in range(6)]
    assert counter.frame_count == 2
    assert all(relative(output, expected) <= 1e-5 for output in outputs)


def test_a_compiled_edit_computes_the_same():
    torch._dynamo.reset()
    x, edit = normal(2, 4, 12, 10), Boost(1.3, 0.4, Bases())

    def edited(hidden, skip):
        hidden, skip = hidden.clone(), skip.clone()
        edit(hidden, skip, None)
        return hidden, skip

    expected = edited(x, x + 1)
    compiled = torch.compile(edited, fullgraph=True, backend="aot_eager")(x, x + 1)
    assert all(relative(ours, theirs) <= 1e-6 for ours, theirs in zip(compiled, expected, strict=True))


def test_threads_share_one_freeu(tiny):
    unet = tiny.unet("one-layer")
    handle = unetaccel.apply(unet, FREEU)
    cases = [tiny.inputs(unet, size=(16, 16 + 4 * (i % 3)), seed=i) for i in range(6)]
    expected, found = [handle.unet(**case)[0] for case in cases], [None] * len(cases)
    handle = unetaccel.apply(unet, FREEU)  # whose bases are not made yet

    def work(i):
        found[i] = handle.unet(**cases[i])[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_gradients_pass_after_inference(tiny):
    unet = tiny.unet("one-layer")
    handle, inputs = unetaccel.apply(unet, FREEU), tiny.inputs(unet)
    with torch.inference_mode():
        handle.unet(**inputs)
    inputs["sample"].requires_grad_()
    handle.unet(**inputs)[0].sum().backward()
    assert inputs["sample"].grad.isfinite().all()


def test_twice_is_refused(tiny):
    pipe = tiny.pipe()
    pipe.enable_freeu(**VALUES)
    with pytest.raises(SettingError, match=r"own FreeU switched on.*pipe\.disable_freeu\(\)"):
        unetaccel.apply(pipe, FREEU)
    pipe.disable_freeu()
    handle = unetaccel.apply(pipe, FREEU)
    expected = tiny.call(pipe)
    pipe.enable_freeu(**VALUES)
    with pytest.raises(SettingError, match=r"own FreeU switched on.*handle\.remove\(\)"):
        tiny.call(pipe)
    pipe.disable_freeu()
    assert torch.equal(tiny.call(pipe), expected)
    handle.remove()


@pytest.mark.parametrize(
    "wrong", [{"b1": 0}, {"b2": -1.0}, {"s1": -0.1}, {"s2": "0.2"}, {"b1": True}, {"s1": float("nan")}]
)
def test_wrong_values_are_refused_by_name(wrong):
    [name] = wrong
    with pytest.raises(SettingError, match=rf"FreeU\({name}=.*{name} must be a finite number"):
        FreeU(**{**VALUES, **wrong})


def test_values_are_given_by_name():
    with pytest.raises(TypeError):
        FreeU(1.3, 1.4, 0.9, 0.2)
    assert repr(FREEU) == "FreeU(b1=1.3, b2=1.5, s1=0.6, s2=0.4)"
    assert method_from("freeu", VALUES) == FREEU
    with pytest.raises(SettingError, match=r"freeu needs s2, for example freeu: \{b1: 1.3"):
        method_from("freeu", {"b1": 1, "b2": 1, "s1": 1})
