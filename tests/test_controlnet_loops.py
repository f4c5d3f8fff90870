"""ControlNets in loops of your own, and where the U-Net is compiled."""

import functools
import gc
import weakref

import pytest
import torch
from diffusers import ControlNetModel
from graph_cases import Taped
from torch._dynamo.testing import CompileCounter

import unetaccel
from unetaccel import DeepCache, SettingError, SkipTuning, graphs
from unetaccel.controlnet import truncated
from unetaccel.costs import count_macs, cut_costs
from unetaccel.latency.jobs import job_of
from unetaccel.shapes import build_shape


def options(count: int) -> dict:
    """Of a call of a pipeline with so many ControlNets."""
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    return {"image": image if count == 1 else [image, 1 - image]}


class Loop:
    """Six evaluations; the condition gets shorter at those ``at``, which must then be full."""

    def __init__(self, tiny, b=1, short=(), **how):
        self.unet = tiny.unet()
        self.inputs, self.image = tiny.inputs(self.unet), torch.rand(2, 3, 128, 128)
        self.handle = unetaccel.apply(self.unet, DeepCache(interval=3, cut=b), **how)
        self.short = short

    @torch.no_grad()
    def run(self, *nets, change=lambda residual: residual) -> list:
        """Numbers of residuals that each net made, and the output, of every evaluation."""
        found = []
        with self.handle.run(6):
            for i in range(6):
                text = self.inputs["encoder_hidden_states"][:, : 5 if i in self.short else None]
                given = {**self.inputs, "sample": (1 + i) * self.inputs["sample"], "encoder_hidden_states": text}
                made = [net(**given, controlnet_cond=self.image) for net in nets]
                down = [change(sum(residuals)) for residuals in zip(*(down for down, _ in made), strict=False)]
                mid = change(sum(mid for _, mid in made))
                residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
                found.append(([len(down) for down, _ in made], self.handle.unet(**given, **residuals)[0]))
        return found


def assert_same(ours: list, whole: list) -> None:
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(ours, whole, strict=True))


def test_several_nets_in_a_loop(tiny):
    loop = Loop(tiny)
    nets = [tiny.controlnet(loop.unet), tiny.controlnet(loop.unet)]
    nets[1].conv_in.weight.data.mul_(2)
    shortened = loop.run(*map(loop.handle.controlnet, nets))
    assert [made for made, _ in shortened] == [[9, 9], [2, 2], [2, 2]] * 2
    assert_same(shortened, loop.run(*nets))


def test_several_nets_before_an_evaluation_that_must_be_full(tiny):
    loop = Loop(tiny, short=[1])
    nets = [tiny.controlnet(loop.unet), tiny.controlnet(loop.unet)]
    assert_same(loop.run(*map(loop.handle.controlnet, nets)), loop.run(*nets))
    with pytest.raises(SettingError, match=r"of 9 residuals it got 2: those of a ControlNet .*MultiControlNetModel"):
        loop.run(loop.handle.controlnet(nets[0]), nets[1])


def test_residuals_that_are_changed_on_their_way(tiny):
    """Of a cached evaluation all that are read were changed; of one that must be full, others would be missing."""
    loop = Loop(tiny)
    net = tiny.controlnet(loop.unet)
    assert_same(loop.run(loop.handle.controlnet(net), change=lambda r: r / 2), loop.run(net, change=lambda r: r / 2))
    loop.short = [1]
    with pytest.raises(SettingError, match=r"were changed on their way here. Set strengths by conditioning_scale"):
        loop.run(loop.handle.controlnet(net), change=lambda r: r / 2)
    assert_same(loop.run(loop.handle.controlnet(net)), loop.run(net))


def test_residuals_that_are_used_again(tiny):
    loop = Loop(tiny)
    net = loop.handle.controlnet(tiny.controlnet(loop.unet))
    residuals = {}
    with torch.no_grad(), loop.handle.run(6):
        for i in range(4):
            if i != 3:
                down, mid = net(**loop.inputs, controlnet_cond=loop.image)
                residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
                loop.handle.unet(**loop.inputs, **residuals)
                continue
            with pytest.raises(
                SettingError, match=r"of 9 residuals it got 2: .* Call every ControlNet before each evaluation"
            ):
                loop.handle.unet(**loop.inputs, **residuals)


def test_recorded_once_however_many_and_let_go(tiny, monkeypatch):
    made = []
    monkeypatch.setattr(graphs, "CudaGraphs", lambda: made.append(Taped()) or made[-1])
    loop = Loop(tiny, compile="graphs")
    nets = [loop.handle.controlnet(tiny.controlnet(loop.unet)) for _ in range(2)]
    counts = []
    for _ in range(3):
        loop.run(*nets)
        counts.append(sum(recorder.graphs for recorder in made))
    assert counts == [6, 6, 6], "the U-Net's two, and each net's two"
    gone = weakref.ref(nets[0]._unetaccel.original)
    del nets
    gc.collect()
    assert gone() is None


@torch.no_grad()
@pytest.mark.parametrize("b", [0, 4])
def test_in_a_loop_of_your_own(tiny, b):
    unet = tiny.unet()
    net, inputs = tiny.controlnet(unet), tiny.inputs(unet)
    image = torch.rand(2, 3, 128, 128)
    handle = unetaccel.apply(unet, DeepCache(interval=3, cut=b))
    ours = handle.controlnet(net)
    assert isinstance(ours, ControlNetModel)
    assert handle.controlnet(ours)._unetaccel is handle.controlnet(net)._unetaccel, "one for each"

    def loop(net) -> list:
        found = []
        for i in range(6):
            given = {**inputs, "sample": (1 + i) * inputs["sample"]}
            down, mid = net(**given, controlnet_cond=image)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            found.append((len(down), handle.unet(**given, **residuals)[0]))
        return found

    with handle.run(6):
        shortened = loop(ours)
    with handle.run(6):
        whole = loop(net)
    assert [count for count, _ in shortened] == [9, b + 1, b + 1] * 2
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(shortened, whole, strict=True))
    assert len(ours(**inputs, controlnet_cond=image)[0]) == 9, "outside a run it is whole"
    handle.remove()
    assert len(ours(**inputs, controlnet_cond=image)[0]) == 9


def test_what_is_no_controlnet(tiny):
    handle = unetaccel.apply(tiny.unet(), DeepCache())
    with pytest.raises(SettingError, match=r"handle.controlnet takes a ControlNet, got str"):
        handle.controlnet("canny")
    for other in (torch.nn.Linear(1, 1), handle.unet):
        with pytest.warns(UserWarning, match="this ControlNet runs as it is: .* is not a ControlNetModel"):
            assert handle.controlnet(other) is other
    handle.remove()
    with pytest.raises(SettingError, match="this handle was removed"):
        handle.controlnet(other)


@pytest.mark.parametrize("count", [1, 2])
def test_compiled_where_the_unet_is(tiny, count):
    """Whole and shortened, each once; other pictures and seeds compile nothing."""
    pipe, counter = tiny.controlnet_pipe(count), CompileCounter()
    call = functools.partial(tiny.call, pipe, steps=6)
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=1)):
        eager = call(**options(count))
    torch._dynamo.reset()
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=1), compile={"backend": counter}):
        assert torch.equal(call(**options(count)), eager)
        assert counter.frame_count == 4, "two of the U-Net, two of the ControlNet"
        assert not torch.equal(call(seed=5, **options(count)), eager)
        for strength in (0.1, 0.2):
            scale = {"controlnet_conditioning_scale": strength if count == 1 else [strength, 1.0]}
            assert not torch.equal(call(**options(count) | scale), eager)
        assert counter.frame_count == 4
        pipe.controlnet.register_forward_hook(lambda *_: None)
        (net,) = [pipe.controlnet] if count == 1 else [pipe.controlnet.nets[0]]
        net.mid_block.register_forward_hook(lambda *_: None)
        assert torch.equal(call(**options(count)), eager)
        assert counter.frame_count == 4, "a hooked one is not compiled"
    torch._dynamo.reset()


def test_compiled_beside_edits_alone(tiny):
    """Where nothing is reused, it is compiled all the same, and never shortened."""
    pipe, counter = tiny.controlnet_pipe(), CompileCounter()
    with unetaccel.apply(pipe, SkipTuning(0.7)):
        eager = tiny.call(pipe, steps=3, **options(1))
    torch._dynamo.reset()
    with unetaccel.apply(pipe, SkipTuning(0.7), precompute=True, compile={"backend": counter}) as handle:
        assert torch.equal(tiny.call(pipe, steps=3, **options(1)), eager)
        assert "what a ControlNet makes of its picture: compiled graphs compute it" in str(handle.summary())
    torch._dynamo.reset()
    assert counter.frame_count == 2


@pytest.fixture
def embedded(monkeypatch):
    """The numbers of pictures that a ControlNet's first layers were given."""
    from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding

    seen, original = [], ControlNetConditioningEmbedding.forward
    monkeypatch.setattr(
        ControlNetConditioningEmbedding,
        "forward",
        lambda self, x: seen.append(len(x)) or original(self, x),
    )
    return seen


@pytest.mark.parametrize("compile", [False, "graphs"])
@pytest.mark.parametrize("count", [1, 2])
def test_what_it_makes_of_its_picture_is_made_once_a_call(tiny, monkeypatch, embedded, count, compile):
    monkeypatch.setattr(graphs, "CudaGraphs", Taped)
    pipe, pictures = tiny.controlnet_pipe(count), options(count)
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=1)):
        expected = tiny.call(pipe, **pictures)
    assert len(embedded) == 10 * count
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=1), precompute=True, compile=compile) as handle:
        torch.testing.assert_close(tiny.call(pipe, **pictures), expected, rtol=1e-3, atol=1e-3)
        embedded.clear()
        torch.testing.assert_close(tiny.call(pipe, **pictures), expected, rtol=1e-3, atol=1e-3)
        assert len(embedded) == 2 * count, "for the whole one, and for the shortened one"
        assert handle._engine.report().precomputed_bytes > 2 * 2 * 16 * 16 * 16 * (0 if compile else 4)
        [views] = handle._engine._idle
        assert not any(neighbour.nbytes for neighbour in views._neighbours()), "let go"


@pytest.mark.parametrize("compile", [False, "graphs"])
def test_residuals_from_a_known_picture_are_bit_for_bit(tiny, monkeypatch, compile):
    """Also of pictures that are written to, or exchanged, in the middle of a call; and of weights that change."""
    monkeypatch.setattr(graphs, "CudaGraphs", Taped)
    loop = Loop(tiny, precompute=True, compile=compile)
    net = tiny.controlnet(loop.unet)
    ours, picture = loop.handle.controlnet(net), torch.rand(2, 3, 128, 128)
    with torch.no_grad(), loop.handle.run(6):
        for i in range(6):
            if i == 2:
                picture.mul_(0.5)
            if i == 4:
                picture = torch.rand(2, 3, 128, 128)
            if i == 5:
                net.controlnet_cond_embedding.conv_in.weight.mul_(2)
            made = ours(**loop.inputs, controlnet_cond=picture)[0]
            whole = net(**loop.inputs, controlnet_cond=picture)[0]
            assert len(made) == (9 if i % 3 == 0 else 2)
            assert all(torch.equal(x, y) for x, y in zip(made, whole, strict=False)), i
            loop.handle.unet(**loop.inputs)
    net.controlnet_cond_embedding = torch.nn.Conv2d(3, 16, 8, 8).requires_grad_(False)
    with torch.no_grad(), loop.handle.run(6):
        made, whole = (n(**loop.inputs, controlnet_cond=picture)[0] for n in (ours, net))
        assert all(map(torch.equal, made, whole)), "another layer"


def test_pictures_that_are_not_remembered_say_why(tiny):
    pipe = tiny.controlnet_pipe()
    pipe.controlnet.controlnet_cond_embedding.register_forward_hook(lambda *_: None)
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=1), precompute=True) as handle:
        tiny.call(pipe, **options(1))
        told = "left out   what a ControlNet makes of its picture: controlnet_cond_embedding has hooks"
        assert told in str(handle.summary())


@pytest.mark.parametrize(("shape", "share"), [("sd15", 0.187), ("sdxl", 0.366)])
def test_the_share_of_the_picture_in_a_cached_evaluation(shape, share):
    """At cut 0, of the multiply-accumulates of U-Net and shortened ControlNet."""
    unet = build_shape(shape, device="meta")
    with torch.device("meta"):
        net = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    job = job_of(shape, unet, controlnet=net)
    [cost] = cut_costs(unet, job.structure, [0])
    inputs = {"sample": torch.empty(job.sample_shape, device="meta"), "timestep": 1, **job.condition}
    shortened = count_macs(lambda: truncated(net, 0)(**inputs, controlnet_cond=job.hint, return_dict=False))
    picture = count_macs(lambda: net.controlnet_cond_embedding(job.hint))
    assert picture / (cost.cached_macs + shortened) == pytest.approx(share, abs=0.001)
