"""The layer at the cut by kernels: what it computes, in both views; where it does not apply, and that it is then plain."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import unetaccel
from unetaccel import DeepCache, FreeU, ScaleLong, SettingError, SkipTuning, ops
from unetaccel.entry import FusedLayer
from unetaccel.execution import Execution
from unetaccel.sites import NO_SITES
from unetaccel.skips import skip_table
from unetaccel.views import build_views

pytestmark = pytest.mark.skipif(ops._missing() is not None, reason=f"optional: {ops._missing()}")


@pytest.fixture
def joins(monkeypatch):
    """The scale of each fused concatenation."""
    scales = []

    def scale_concat(hidden, skip, scale=1.0, backend="auto"):
        scales.append(scale)
        return ops.scale_concat(hidden, skip, scale, backend)

    monkeypatch.setattr("unetaccel.entry.scale_concat", scale_concat)
    return scales


@torch.no_grad()
def outputs(tiny, unet, *methods, cut=0, kernels="triton", steps=2, **options) -> list:
    """Of full and cached evaluations in turn."""
    inputs = tiny.inputs(unet)
    handle = unetaccel.apply(unet, DeepCache(interval=2, cut=cut, force=True), *methods, kernels=kernels, **options)
    with handle.run(steps):
        return [handle.unet(**{**inputs, "timestep": torch.tensor(900 - 100 * i)})[0] for i in range(steps)]


def assert_close(fused: list, plain: list) -> None:
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert not all(map(torch.equal, fused, plain)), "something else has computed them"


@pytest.mark.parametrize(("name", "cut"), [("sd", 0), ("sd", 4), ("sdxl", 0), ("ddpm", 0)])
def test_both_views_compute_the_same_by_kernels(tiny, joins, name, cut):
    unet = tiny.unet(name)
    plain = outputs(tiny, unet, cut=cut, kernels="torch")
    assert not joins
    assert_close(outputs(tiny, unet, cut=cut), plain)
    assert joins == [1.0] * 2, "a full evaluation and a cached one"


@pytest.mark.parametrize(
    ("method", "gates"),
    [
        (SkipTuning(0.6), False),
        (ScaleLong(kappa=0.9), False),
        (ScaleLong("ls", start="paper"), True),
        (ScaleLong("ls", start="paper", gate="token"), True),
    ],
    ids=["skip-tuning", "constants", "per channel", "per pixel"],
)
def test_what_multiplies_the_skip_is_fused(tiny, joins, method, gates):
    unet = tiny.unet()
    found = []
    for kernels in ("triton", "torch"):
        torch.manual_seed(0)  # of the gates' networks
        found.append(outputs(tiny, unet, method, cut=1, kernels=kernels))
    assert_close(*found)
    assert len(joins) == 2
    assert all(isinstance(scale, torch.Tensor) == gates and (gates or scale < 1) for scale in joins)


@torch.no_grad()
@pytest.mark.parametrize("method", [None, SkipTuning(0.6)])
def test_a_forecast_is_blended_into_the_concatenation(tiny, joins, monkeypatch, method):
    """F is written once, where the layer reads it; the same bits as blended first and concatenated then."""
    unet, wrote = tiny.unet(), []
    original = ops.Blend.tensor
    monkeypatch.setattr(ops.Blend, "tensor", lambda self, out=None: wrote.append(out) or original(self, out))
    methods = [DeepCache(interval=2, cut=2, forecast="linear", force=True), *([method] if method else [])]
    inputs, found = tiny.inputs(unet), []
    for blends in (True, False):
        if not blends:
            join = ops.scale_concat
            monkeypatch.setattr(
                "unetaccel.entry.scale_concat",
                lambda hidden, *args, join=join, **options: join(
                    original(hidden) if isinstance(hidden, ops.Blend) else hidden, *args, **options
                ),
            )
        with unetaccel.apply(unet, *methods, kernels="triton") as handle, handle.run(6):
            found.append([handle.unet(**{**inputs, "sample": (1 + i) * inputs["sample"]})[0] for i in range(6)])
    assert all(map(torch.equal, *found))
    skip = skip_table(unet)[2]
    assert len(wrote) == 3, "every cached evaluation"
    assert all(out.shape[1] == skip.hidden and out._base.shape[1] == skip.hidden + skip.channels for out in wrote)


def why_not(unet, b=0, sites=NO_SITES) -> str | None:
    return build_views(unet, b, sites, Execution(kernels="triton")).unfused


def test_what_is_not_fused_says_why_and_runs_plain(tiny, joins):
    unet = tiny.unet()
    assert why_not(unet) is None
    assert_plain = lambda *methods, cut=0: all(  # noqa: E731
        map(
            torch.equal, outputs(tiny, unet, *methods, cut=cut), outputs(tiny, unet, *methods, cut=cut, kernels="torch")
        )
    )
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert "FreeU is on in its block" in why_not(unet)
    assert assert_plain()
    unet.disable_freeu()
    assert assert_plain(FreeU(s1=0.9, s2=0.2, b1=1.2, b2=1.4), cut=4)
    assert assert_plain(SkipTuning(0.6), ScaleLong(mode="sqrt2"), cut=4)
    hook = unet.up_blocks[-1].resnets[-1].register_forward_hook(lambda *_: None)
    assert "it has hooks" in why_not(unet)
    hook.remove()
    assert not joins
    assert "its block is a CrossAttnUpBlockMotion" in why_not(tiny.unet("animatediff"))


@pytest.mark.parametrize(
    "around", [torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)], ids=["grad", "autocast"]
)
def test_gradients_and_autocast_run_plain(tiny, joins, around):
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    found = []
    for kernels in ("triton", "torch"):
        handle = unetaccel.apply(unet, DeepCache(interval=2, force=True), kernels=kernels)
        with torch.no_grad(), around(), handle.run(2):
            found.append([handle.unet(**inputs)[0] for _ in range(2)])
    assert not joins
    assert all(map(torch.equal, *found))


def test_one_graph_per_view(tiny):
    counter, unet = CompileCounter(), tiny.unet()
    eager = outputs(tiny, unet, steps=4)
    torch._dynamo.reset()
    compiled = outputs(tiny, unet, steps=4, compile={"backend": counter})
    torch._dynamo.reset()
    assert counter.frame_count == 2
    assert all(map(torch.equal, eager, compiled))


def test_a_pipeline_is_put_back_as_it_was(tiny):
    pipe = tiny.pipe("one-layer")
    before, plain = tiny.snapshot(pipe), tiny.call(pipe, steps=6)
    with unetaccel.apply(pipe, DeepCache(interval=2, forecast="linear"), kernels="triton") as handle:
        spy = tiny.Spy(pipe.unet)
        fused = tiny.call(pipe, steps=6)
        assert spy.stop() == "F.F.F."
        [views] = handle._engine._idle
        assert any(isinstance(m, FusedLayer) for m in views.cached.modules())
        assert views.port.parts is views.port.moments is views.port.feature is None
    with unetaccel.apply(pipe, DeepCache(interval=2, forecast="linear"), kernels="torch"):
        torch.testing.assert_close(fused, tiny.call(pipe, steps=6), rtol=1e-3, atol=1e-3)
    after = tiny.snapshot(pipe)
    for what in ("unet", "modules", "tensors", "bytes"):
        assert after[what] == before[what]
    assert torch.equal(tiny.call(pipe, steps=6), plain)


def test_settings(tiny, monkeypatch):
    with pytest.raises(SettingError, match=r"apply\(kernels\)='cuda': expected 'auto', 'torch' or 'triton'"):
        unetaccel.apply(tiny.unet(), DeepCache(), kernels="cuda")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(SettingError, match="'triton' is not possible for this tensor: kernels run on CUDA"):
        outputs(tiny, tiny.unet())
