"""Recorded graphs in real pipelines: with what is added to a U-Net, and with what is changed while they are there."""

import pytest
import torch
from graph_cases import Taped, count
from pipeline_cases import CASES, SD, make, normal, sampler
from test_addons import ip_adapter
from test_lora import states

import unetaccel
from unetaccel import DeepCache, graphs

pytestmark = pytest.mark.filterwarnings(
    "ignore:Already found a `peft_config`:UserWarning", "ignore:.*:FutureWarning", "ignore:.*deprecated:UserWarning"
)


@pytest.fixture(autouse=True)
def recorders(monkeypatch):
    made = []
    monkeypatch.setattr(graphs, "CudaGraphs", lambda: made.append(Taped()) or made[-1])
    return made


@pytest.mark.parametrize(
    "name", ["img2img", "controlnet for some steps", "sdxl controlnet", "t2i-adapter", "PAG in the decoder", "ddim"]
)
def test_pipelines(tiny, recorders, name):
    pipe, call = CASES[name].build(tiny)
    found = []
    for compile in (False, "graphs"):
        with unetaccel.apply(pipe, DeepCache(interval=3, cut=1, force=True), compile=compile) as handle:
            found.append(call())
    assert torch.equal(*found)
    assert count(recorders) >= 2
    assert not handle._engine.log.eager


@pytest.mark.parametrize(
    "name", ["controlnet", "two controlnets", "controlnet, guess mode", "controlnet for some steps"]
)
def test_controlnets_are_recorded_too(tiny, recorders, name):
    """Whole, and as far as a cached evaluation reads them."""
    pipe, call = CASES[name].build(tiny)
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=1)):
        eager = call()
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=1), compile="graphs") as handle:
        assert torch.equal(call(), eager)
        [views] = handle._engine._idle
        [steps] = views._beside.values()
        assert len(steps) == (1 if "guess" in name else 2)
        pipe.controlnet.parameters().__next__().data = pipe.controlnet.parameters().__next__().data.clone().mul_(1.5)
        made = count(recorders)
        changed = call()
        assert made < count(recorders) <= made + 2 * len(steps), "of the ControlNet alone, for each of its scales"
        assert not handle._engine.log.eager
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=1)):
        assert torch.equal(call(), changed)
    assert not torch.equal(changed, eager)


def test_what_is_done_to_loras_is_noticed(tiny):
    results = []
    for compile in (False, "graphs"):
        pipe = tiny.lora_pipe("a", "b", targets=("to_q", "conv1", "conv_in"))
        with unetaccel.apply(pipe, DeepCache(interval=2, cut=1), compile=compile):
            results.append({state: tiny.call(pipe, steps=6) for state in states(pipe)})
    eager, ours = results
    assert {s: torch.equal(ours[s], eager[s]) for s in eager} == dict.fromkeys(eager, True)


def test_changes_of_loras_in_the_middle_of_a_call(tiny, recorders):
    """From a callback, between cached evaluations too: scales are tensors, other adapters are other graphs."""
    results = []
    for compile in (False, "graphs"):
        pipe = tiny.lora_pipe("a", "b")
        changes = {1: (["a"], 0.3), 4: (["a", "b"], [0.7, 0.2]), 6: (["b"], 0.9)}

        def callback(pipe, i, t, values, changes=changes):
            if i in changes:
                pipe.set_adapters(*changes[i])
            return values

        with unetaccel.apply(pipe, DeepCache(interval=3, cut=2), compile=compile):
            results.append(tiny.call(pipe, callback_on_step_end=callback))
    assert torch.equal(*results)


@pytest.mark.parametrize("scales", [[0.3, 1.4, 0.8], [[0.2, 0.9], [0.5, 0.1]]], ids=["one", "two"])
def test_two_graphs_for_any_lora_scales(tiny, recorders, scales):
    adapters, results = ["a", "b"] if isinstance(scales[0], list) else ["a"], []
    for compile in (False, "graphs"):
        pipe = tiny.lora_pipe(*adapters)
        with unetaccel.apply(pipe, DeepCache(interval=3, cut=2), compile=compile):
            results.append([(pipe.set_adapters(adapters, s), tiny.call(pipe, steps=6))[1] for s in scales])
    assert all(map(torch.equal, *results))
    assert count(recorders) == 2


def test_attention_processors_set_after_apply(tiny):
    from diffusers.models.attention_processor import AttnProcessor

    class Louder(AttnProcessor):
        factor = 1.5

        def __call__(self, *args, **kwargs):
            return self.factor * super().__call__(*args, **kwargs)

    pipe, call = CASES["text2img"].build(tiny)
    results = []
    for compile in (False, "graphs"):
        usual = pipe.unet.attn_processors
        with unetaccel.apply(pipe, DeepCache(interval=3, cut=6), compile=compile):
            results.append([call()])
            louder = Louder()
            pipe.unet.set_attn_processor(louder)
            results[-1].append(call())
            louder.factor = 0.7
            results[-1].append(call())
            pipe.unet.set_attn_processor(dict(usual))
            results[-1].append(call())
    assert all(map(torch.equal, *results))
    assert not torch.equal(results[0][1], results[0][2])


def test_ip_adapter_whose_scale_changes(tiny, recorders):
    picture = torch.stack([torch.zeros(1, 24), normal(1, 24)])  # unconditional, conditional
    results = []
    for compile in (False, "graphs"):
        pipe = make(tiny, SD(""), tiny.unet("sd"))
        call = sampler(pipe, ip_adapter_image_embeds=[picture])
        with unetaccel.apply(pipe, DeepCache(interval=3, cut=1), compile=compile):
            pipe.load_ip_adapter(ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
            results.append([(pipe.set_ip_adapter_scale(scale), call())[1] for scale in (0.8, 0.3)])
    assert all(map(torch.equal, *results))
    assert not torch.equal(*results[0])
