"""The hoisted entry: equal to the plain one but for rounding, never from constants that are stale, and else plain by name."""

import pytest
import torch
from hoist_cases import assert_close, both, constants_made, outputs
from torch._dynamo.testing import CompileCounter

import unetaccel
from unetaccel import DeepCache, FreeU, GuidanceReuse, ScaleLong, SkipTuning, ops
from unetaccel import hoist as hoisting
from unetaccel.costs import example_inputs
from unetaccel.execution import Execution
from unetaccel.layouts import layout_of
from unetaccel.methods.skip_method import straddles
from unetaccel.shapes import build_shape
from unetaccel.skips import skip_table
from unetaccel.views import build_views

PRECOMPUTE = Execution(precompute=True)


@pytest.fixture
def made(monkeypatch):
    """The batch size of each feature that constants were made of."""
    return constants_made(monkeypatch)


@torch.no_grad()
def check_cuts(unet, inputs: dict) -> list[int]:
    """Every cut is hoisted and right; gives those where a group of the norm straddles the seam."""
    straddling = []
    for place in layout_of(unet).places(unet):
        b = place.skip.b
        views, plain = build_views(unet, b, how=PRECOMPUTE), build_views(unet, b)
        _, feature = plain.run_full(inputs)
        later = {**inputs, "sample": 2 * inputs["sample"].flip(-1)}
        expected = plain.run_cached(later, feature)[0]
        assert torch.equal(views.run_full(inputs)[1], feature)
        assert torch.equal(views.run_cached(later, feature)[0], expected), "without constants it is the plain view"
        assert views.unhoisted is None
        if straddles(place):
            straddling.append(b)
        assert (views.hoisted.known < place.skip.hidden) == straddles(place)
        ours = views.run_cached(later, feature, constants=views.hoisted.constants(feature))[0]
        assert_close([ours], [expected])
        assert views.port.feature is views.port.constants is views.port.parts is None
    return straddling


@pytest.mark.parametrize(
    ("name", "straddling"),
    [
        ("sd", [2, 3]),
        ("sdxl", [2, 3]),
        ("ddpm", [2, 3]),
        ("ldm", [2, 3]),
        ("simple-cross-attention", [2, 3]),
        ("class-conditioned", [1, 2]),
        ("audioldm2", [2, 3]),
    ],
)
def test_every_cut_also_where_a_group_straddles(tiny, name, straddling):
    unet = tiny.unet(name)
    assert check_cuts(unet, tiny.inputs(unet)) == straddling


@pytest.mark.parametrize("shape", ["sd15", "sdxl"])
def test_real_shapes_scaled_down(shape):
    torch.manual_seed(0)
    unet = build_shape(shape, scale=0.1)
    inputs = {"return_dict": False, "timestep": torch.tensor(300)}
    for name, value in example_inputs(unet, batch=2, size=16, tokens=7):
        nested = isinstance(value[0][0], str)
        inputs[name] = {key: torch.randn(size) for key, (size, *_) in value} if nested else torch.randn(value[0])
    assert check_cuts(unet, inputs)[:2] == [2, 3]


@pytest.mark.parametrize(
    ("hidden", "skip", "groups", "known"),
    [
        (320, 320, 32, 320),  # SD 1.5, cut 0: no group straddles
        (640, 320, 32, 600),  # cut 2, groups of 30: 630 are F's alone, and 330 are no multiple of 8
        (1280, 640, 32, 1260 - 60),  # cut 5, groups of 60: 1260 are, and 660 are no multiple of 8
        (32, 16, 8, 24),
        (33, 16, 7, 28),  # no number of groups of 7 leaves a multiple of 8: all that are F's alone
        (5, 27, 2, 0),
    ],
)
def test_how_many_channels_are_known(hidden, skip, groups, known):
    norm = torch.nn.GroupNorm(groups, hidden + skip)
    assert hoisting.known_channels(norm, hidden) == known


def test_constants_follow_each_full_evaluation(tiny, made):
    ours, plain = both(tiny, tiny.unet())
    assert_close(ours, plain)
    assert made == [2, 2], "once per feature that is read, and not for the last one, which is not"
    cached = [i for i in range(7) if i % 3]
    assert all(torch.equal(ours[i], plain[i]) for i in range(7) if i not in cached), "full evaluations are plain"
    assert not any(torch.equal(ours[i], plain[i]) for i in cached)


def test_stale_constants_would_show(tiny, monkeypatch):
    """What the other tests rest on: constants of another feature are far from right."""
    kept = []
    original = hoisting.constants
    monkeypatch.setattr(hoisting, "constants", lambda *given: kept.append(original(*given)) or kept[0])
    ours, plain = both(tiny, tiny.unet())
    assert torch.allclose(ours[1], plain[1], rtol=1e-4, atol=1e-5)
    assert (ours[4] - plain[4]).norm() > 1e-2 * plain[4].norm()


def test_nothing_is_made_that_is_read_once_or_blended(tiny, made):
    unet = tiny.unet()
    for a, b in zip(*both(tiny, unet, interval=2), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    pipe = tiny.pipe()
    with unetaccel.apply(pipe, DeepCache(interval=3, forecast="linear"), precompute=True):
        ours = tiny.call(pipe, steps=7)
    with unetaccel.apply(pipe, DeepCache(interval=3, forecast="linear")):
        torch.testing.assert_close(ours, tiny.call(pipe, steps=7), rtol=1e-3, atol=1e-3)
    assert not made


@torch.no_grad()
def test_each_stream_has_its_own(tiny, made):
    unet, found = tiny.unet(), []
    inputs = tiny.inputs(unet)
    conditions = [inputs["encoder_hidden_states"], -3 * inputs["encoder_hidden_states"].clone()]
    for options in ({"precompute": True}, {}):
        with unetaccel.apply(unet, DeepCache(4, cut=1), **options) as handle, handle.run(8, streams=2):
            found.append(
                [
                    handle.unet(**{**inputs, "sample": (1 + i) * inputs["sample"], "encoder_hidden_states": condition})[
                        0
                    ]
                    for i in range(8)
                    for condition in conditions
                ]
            )
    assert_close(*found)
    assert len(made) == 4, "two full evaluations in two streams"


@torch.no_grad()
def test_constants_are_cut_to_the_conditional_half(tiny, made):
    unet, found = tiny.unet(), []
    inputs = tiny.inputs(unet)
    for options in ({"precompute": True}, {}):
        with unetaccel.apply(unet, GuidanceReuse(2), DeepCache(4, cut=1), **options) as handle:
            with handle.run(8, guided=True):
                found.append([handle.unet(**{**inputs, "sample": (1 + i) * inputs["sample"]})[0] for i in range(8)])
            assert handle.summary().pattern == "F.,,f,,,"
    assert_close(*found)
    assert made == [2, 1], "those of the first feature were cut, not made anew"


def test_residuals_on_the_skip(tiny, made):
    unet = tiny.unet()
    torch.manual_seed(0)
    residuals = [torch.randn(2, s.channels, 16 // s.stride, 16 // s.stride) for s in skip_table(unet)]
    more = {"down_block_additional_residuals": residuals, "mid_block_additional_residual": torch.randn(2, 32, 4, 4)}
    ours, plain = both(tiny, unet, more=more, cut=1)
    assert_close(ours, plain)
    assert made
    assert not torch.allclose(plain[1], outputs(tiny, unet, cut=1)[1], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "methods",
    [
        [SkipTuning(0.6)],
        [ScaleLong(kappa=0.9)],
        [ScaleLong("ls", start="paper")],
        [ScaleLong("ls", start="paper", gate="token")],
        [SkipTuning(0.6), ScaleLong(mode="sqrt2")],
    ],
    ids=["skip-tuning", "constants", "per channel", "per pixel", "two"],
)
def test_what_multiplies_the_skip(tiny, made, methods):
    unet, found = tiny.unet(), []
    for precompute in (True, False):
        torch.manual_seed(0)  # of the gates' networks
        found.append(outputs(tiny, unet, *methods, cut=1, precompute=precompute))
    assert_close(*found)
    assert made
    assert not torch.allclose(found[1][1], outputs(tiny, unet, cut=1)[1], rtol=1e-3, atol=1e-3)


def test_the_skip_is_edited_in_a_copy(tiny, made):
    """Others may hold it, as hooks on the layer that makes it do."""
    unet, seen = tiny.unet(), []
    unet.get_submodule(skip_table(unet)[1].source).register_forward_hook(
        lambda m, i, x: seen.append((x[0], x[0].clone()))
    )
    outputs(tiny, unet, SkipTuning(0.6), cut=1, precompute=True)
    assert made
    assert all(torch.equal(now, then) for now, then in seen)


def test_a_strength_that_changes_with_time(tiny, made):
    pipe, found = tiny.pipe(), []
    for options in ({"precompute": True}, {}):
        with unetaccel.apply(pipe, SkipTuning(0.6, schedule="increasing"), DeepCache(4, cut=1), **options):
            found.append([tiny.call(pipe, steps=8)])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
    assert len(made) == 2


def why_not(unet, *methods, b=0) -> str | None:
    with unetaccel.apply(unet, DeepCache(cut=b), *methods, precompute=True) as handle:
        [views] = handle._engine._idle
        return views.unhoisted


def test_what_is_not_hoisted_says_why_and_runs_plain(tiny, made):
    unet, freeu = tiny.unet(), {"s1": 0.9, "s2": 0.2, "b1": 1.2, "b2": 1.4}
    assert why_not(unet) is None
    refused = [
        ([FreeU(**freeu)], 4, "up_blocks.1.resnets.1 is not hoisted: "),
        ([SkipTuning(0.6, where="shortcut")], 1, "its conv_shortcut was exchanged (it is a ScaledInput of "),
        ([SkipTuning(0.6, where="norm_out", backend="fold")], 1, "its norm1 was exchanged (it is a Fold of "),
    ]
    for methods, b, why in refused:
        assert why in why_not(unet, *methods, b=b)
        assert all(map(torch.equal, *both(tiny, unet, *methods, cut=b)))
    unet.enable_freeu(**freeu)
    assert "FreeU is on in its block" in why_not(unet)
    unet.disable_freeu()
    last = unet.up_blocks[-1].resnets[-1]
    for hooked, why in ((last, "it has hooks"), (last.conv1, "its conv1 is quantised, hooked or offloaded")):
        hook = hooked.register_forward_hook(lambda *_: None)
        assert why in why_not(unet)
        hook.remove()
    assert "its block is a CrossAttnUpBlockMotion" in why_not(tiny.unet("animatediff"))
    assert not made


@pytest.mark.parametrize(
    "around", [torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)], ids=["grad", "autocast"]
)
def test_gradients_and_autocast_run_plain(tiny, made, around):
    unet = tiny.unet()
    inputs, found = tiny.inputs(unet), []
    for precompute in (True, False):
        handle = unetaccel.apply(unet, DeepCache(3, force=True), precompute=precompute)
        with torch.no_grad(), around(), handle.run(3):
            found.append([handle.unet(**inputs)[0] for _ in range(3)])
    assert all(map(torch.equal, *found))
    assert not made


def test_a_compiled_view_says_what_it_does_not_foresee(tiny, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda step, **options: step)
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    with unetaccel.apply(unet, DeepCache(3, force=True), compile="inductor", precompute=True) as handle:
        with torch.no_grad(), handle.run(3):
            for _ in range(3):
                handle.unet(**inputs)
        assert "left out   keys and values, and the time embedding: compiled graphs compute" in str(handle.summary())


def test_one_graph_per_view(tiny):
    counter, unet = CompileCounter(), tiny.unet()
    eager = outputs(tiny, unet, precompute=True)
    torch._dynamo.reset()
    compiled = outputs(tiny, unet, precompute=True, compile={"backend": counter})
    torch._dynamo.reset()
    assert counter.frame_count == 2
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


needs_kernels = pytest.mark.skipif(ops._missing() is not None, reason=f"optional: {ops._missing()}")


@needs_kernels
@torch.no_grad()
@pytest.mark.parametrize(("cut", "first"), [(0, (16, 0)), (2, (8, 16))])
def test_its_norms_by_kernels(tiny, monkeypatch, cut, first):
    """Of the skip alone; where a group straddles, of the rest of F and of the skip, which nothing concatenates."""
    seen, unet = [], tiny.unet()
    inputs = tiny.inputs(unet)
    later = {**inputs, "sample": 2 * inputs["sample"].flip(-1)}
    views, plain = build_views(unet, cut, how=Execution(kernels="triton", precompute=True)), build_views(unet, cut)
    _, feature = plain.run_full(inputs)
    constants = views.hoisted.constants(feature)

    def groupnorm_silu(hidden, skip, *args, **options):
        seen.append((hidden.shape[1], 0 if skip is None else skip.shape[1]))
        return ops.groupnorm_silu(hidden, skip, *args, **options)

    for module in ("entry", "hoist"):
        monkeypatch.setattr(f"unetaccel.{module}.groupnorm_silu", groupnorm_silu)
    ours = views.run_cached(later, feature, constants=constants)[0]
    assert_close([ours], [plain.run_cached(later, feature)[0]])
    assert seen == [first, (unet.get_submodule(views.skip.entry).out_channels, 0)]
    assert not views.port.moments


@needs_kernels
def test_a_forecast_that_only_ever_holds(tiny, made):
    """F...F: there is room for a second feature, but the second full evaluation is the last, so all cached ones repeat."""
    unet, found = tiny.unet(), []
    for options in ({"kernels": "triton", "precompute": True}, {"kernels": "triton"}, {}):
        handle = unetaccel.apply(unet, DeepCache(4, 2, forecast="linear", force=True), **options)
        inputs = tiny.inputs(unet)
        with torch.no_grad(), handle.run(5):
            found.append([handle.unet(**{**inputs, "sample": (1 + i) * inputs["sample"]})[0] for i in range(5)])
    assert len(made) == 1
    assert_close(found[0], found[2])
    assert_close(found[1], found[2])


@needs_kernels
def test_beside_kernels(tiny, made, monkeypatch):
    """Cached evaluations that are given constants do without the fused entry; the others keep it."""
    joins = []
    original = ops.scale_concat
    monkeypatch.setattr("unetaccel.entry.scale_concat", lambda *a, **k: joins.append(1) or original(*a, **k))
    unet = tiny.unet()
    ours, plain = both(tiny, unet, SkipTuning(0.6), cut=1, kernels="triton", steps=4)
    assert_close(ours, plain)
    assert len(made) == 1
    assert len(joins) == 2 + 4, "two full evaluations, and all four without constants"
    joins.clear()
    outputs(tiny, unet, interval=2, kernels="triton", precompute=True, steps=4)
    assert len(joins) == 4
