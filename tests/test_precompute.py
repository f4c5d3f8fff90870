"""What is computed beforehand: that it is what the layers give, that it is computed once, and whatever must make it anew."""

from collections import Counter

import pytest
import torch
from graph_cases import Taped, count
from pipeline_cases import CASES, SD, make, normal, sampler
from test_addons import ip_adapter
from torch import nn

import unetaccel
from unetaccel import DeepCache, GuidanceReuse, SettingError, SkipTuning, graphs
from unetaccel.precompute import Precomputed

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*deprecated:UserWarning")

TIMES = [900, 750, 600, 450, 300, 150]


class Calls(Counter):
    """How often each linear layer has run, by identity; told by the layers' class."""

    def of(self, unet, name: str) -> set[int]:
        """The counts of all layers of this name; of those in attentions, where these are given a context."""
        found = [(p, m) for p in unet.modules() for k, m in p._modules.items() if k == name]
        return {self[id(m)] for p, m in found if getattr(p, "is_cross_attention", True)}


@pytest.fixture
def calls(monkeypatch) -> Calls:
    counted, forward = Calls(), nn.Linear.forward

    def counting(self, input):
        counted[id(self)] += 1
        return forward(self, input)

    monkeypatch.setattr(nn.Linear, "forward", counting)
    return counted


def both(unet, evaluate, *methods, cut=1, timesteps=TIMES, **options) -> tuple[list, list]:
    """Outputs without and with; ``evaluate(handle, i, t)`` makes each."""
    found = []
    for precompute in (False, True):
        handle = unetaccel.apply(
            unet, DeepCache(interval=3, cut=cut, force=True), *methods, precompute=precompute, **options
        )
        with torch.no_grad(), handle.run(len(timesteps), timesteps=timesteps):
            found.append([evaluate(handle, i, t)[0] for i, t in enumerate(timesteps)])
    return tuple(found)


def assert_close(ours: list, plain: list, tolerance: float = 1e-4) -> None:
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance / 10)


@pytest.fixture
def recorders(monkeypatch) -> list[Taped]:
    """What records in place of CUDA graphs, one for each set of views."""
    made = []
    monkeypatch.setattr(graphs, "CudaGraphs", lambda: made.append(Taped()) or made[-1])
    return made


def test_every_architecture_is_the_same_up_to_rounding(tiny, architecture, calls):
    unet = tiny.unet(architecture)
    inputs = tiny.inputs(unet)
    plain, ours = both(unet, lambda handle, i, t: handle.unet(**{**inputs, "timestep": torch.tensor(t)}))
    assert_close(ours, plain)
    left_out, usual = Precomputed(unet).left_out, calls.of(unet, "time_emb_proj")
    calls.clear()
    both(unet, lambda handle, i, t: handle.unet(**{**inputs, "timestep": t}))  # a number is known too
    assert calls.of(unet, "time_emb_proj") == usual
    if any(why.startswith("the time") for why in left_out):
        assert torch.equal(ours[0], plain[0]), "keys and values are bit for bit those of the layers"
        assert architecture in ("kandinsky-2.1", "audioldm2", "dreamlite", "i2vgen-xl")
    else:
        assert usual <= {2 + 1, 6 + 1}, "each ran in the evaluations without, and then once"
    if any(why.startswith("keys") for why in left_out):
        assert architecture in ("svd", "text-to-video", "i2vgen-xl", "deepfloyd", "kandinsky-2.1")
    else:
        keys = calls.of(unet, "add_k_proj") or calls.of(unet, "to_k")
        assert keys <= {2 + 1, 6 + 1}


PIPELINES = [
    "text2img",
    "img2img",
    "upscale",
    "sdxl text2img",
    "sdxl base",
    "controlnet",
    "controlnet, guess mode",
    "kandinsky 2.2",
    "deepfloyd stage 2",
    "ddpm",
    "repaint",
    "PAG",
]


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines(tiny, name, calls):
    case = CASES[name]
    pipe, call = case.build(tiny)
    unet = pipe.unet
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=case.cut)):
        plain = call()
    for precompute in (True, True):  # the second call begins anew
        calls.clear()
        with unetaccel.apply(pipe, DeepCache(interval=3, cut=case.cut), precompute=precompute):
            torch.testing.assert_close(call(), plain, rtol=1e-3, atol=1e-3)
        assert calls.of(unet, "time_emb_proj") == {1}, "one product for all evaluations"
        if not Precomputed(unet).left_out:
            assert (calls.of(unet, "add_k_proj") or calls.of(unet, "to_k")) <= {1}
    assert pipe.unet is unet


@pytest.mark.parametrize("scheduler", ["HeunDiscreteScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_schedulers(tiny, scheduler, calls):
    pipe = tiny.pipe("one-layer", tiny.scheduler(scheduler))
    with unetaccel.apply(pipe, DeepCache(interval=2)):
        plain = tiny.call(pipe)
    calls.clear()
    with unetaccel.apply(pipe, DeepCache(interval=2), precompute=True):
        torch.testing.assert_close(tiny.call(pipe), plain, rtol=1e-3, atol=1e-3)
    assert calls.of(pipe.unet, "time_emb_proj") == {1}


@pytest.mark.parametrize("method", [SkipTuning(0.7), GuidanceReuse(0.5)], ids=["skips", "halves"])
def test_other_methods(tiny, method, calls):
    pipe = tiny.pipe("one-layer")
    with unetaccel.apply(pipe, DeepCache(interval=2), method):
        plain = tiny.call(pipe)
    calls.clear()
    with unetaccel.apply(pipe, DeepCache(interval=2), method, precompute=True):
        torch.testing.assert_close(tiny.call(pipe), plain, rtol=1e-3, atol=1e-3)
    assert calls.of(pipe.unet, "time_emb_proj") == {1}
    assert calls.of(pipe.unet, "to_k") == ({2} if isinstance(method, GuidanceReuse) else {1})


def test_plain_runs_and_skip_edits_alone(tiny, calls):
    pipe = tiny.pipe("one-layer")
    for methods in ([DeepCache(interval=1)], [SkipTuning(0.7)]):
        with unetaccel.apply(pipe, *methods):
            plain = tiny.call(pipe)
        calls.clear()
        with unetaccel.apply(pipe, *methods, precompute=True):
            torch.testing.assert_close(tiny.call(pipe), plain, rtol=1e-3, atol=1e-3)
        assert calls.of(pipe.unet, "time_emb_proj") == {1}


def test_streams_with_conditions_of_their_own(tiny, calls):
    unet = tiny.unet("sdxl")
    inputs = [tiny.inputs(unet, seed=seed) for seed in range(2)]
    found = []
    for precompute in (False, True):
        calls.clear()
        handle = unetaccel.apply(unet, DeepCache(interval=3, cut=1), precompute=precompute)
        with torch.no_grad(), handle.run(6, streams=2, timesteps=TIMES):
            found.append([handle.unet(**{**i, "timestep": torch.tensor(t)})[0] for t in TIMES for i in inputs])
    assert_close(*found)
    assert not torch.equal(found[1][0], found[1][1])
    assert calls.of(unet, "time_emb_proj") == calls.of(unet, "to_k") == {2}


def test_what_changes_in_a_call_is_computed_anew(tiny):
    """The prompt, added conditions and weights, written in place or replaced, and the batch: no one calls invalidate."""
    unet = tiny.unet("sdxl")
    inputs = tiny.inputs(unet)
    added, resnet, attention = (
        inputs["added_cond_kwargs"],
        unet.up_blocks[-1].resnets[-1],
        unet.up_blocks[1].attentions[0],
    )
    kept = {k: v.clone() for k, v in unet.state_dict().items()}
    text = {k: v.clone() for k, v in added.items()}
    prompt = inputs["encoder_hidden_states"].clone()

    def evaluate(handle, i, t):
        if i == 0:
            unet.load_state_dict(kept)
            inputs.update(tiny.inputs(unet), encoder_hidden_states=prompt.clone(), added_cond_kwargs=dict(text))
        if i == 1:
            inputs["encoder_hidden_states"] *= 2
            inputs["added_cond_kwargs"]["text_embeds"] = text["text_embeds"] * 2
        if i == 2:
            resnet.time_emb_proj.weight *= 3
        if i == 3:
            attention.transformer_blocks[0].attn2.to_v.weight *= 3
            unet.time_embedding.linear_2.bias += 1
        if i == 4:
            attention.transformer_blocks[0].attn2.to_k.weight = nn.Parameter(torch.ones(32, 32), requires_grad=False)
        last = i == 5
        batch = {k: v[:1] for k, v in inputs.items() if isinstance(v, torch.Tensor) and v.ndim} if last else {}
        batch |= {"added_cond_kwargs": {k: v[:1] for k, v in inputs["added_cond_kwargs"].items()}} if last else {}
        return handle.unet(**{**inputs, **batch, "timestep": torch.tensor(t)})

    plain, ours = both(unet, evaluate)
    assert_close(ours, plain)


def test_lora_scales_in_a_call(tiny):
    """PEFT writes a scale into a dict of the layer, and takes it back after the evaluation."""
    unet = tiny.lora_pipe("a", "b", targets=("to_k", "to_v")).unet
    inputs = tiny.inputs(unet)

    def evaluate(handle, i, t):
        if i == 0:
            unet.set_adapters(["a", "b"], [1.0, 1.0])
        if i == 4:
            unet.set_adapters(["a", "b"], [0.3, 0.8])
        if i == 5:
            unet.set_adapters(["b"])
        scale = {"scale": 1.0 if i < 2 else 0.25}
        return handle.unet(**{**inputs, "timestep": torch.tensor(t)}, cross_attention_kwargs=scale)

    plain, ours = both(unet, evaluate)
    assert_close(ours, plain)
    assert not Precomputed(unet).left_out
    fixed, _ = both(unet, lambda handle, i, t: handle.unet(**{**inputs, "timestep": torch.tensor(t)}))
    assert not torch.allclose(fixed[3], plain[3]), "the scale matters"


def test_fused_projections(tiny, calls):
    unet = tiny.unet("one-layer")
    unet.fuse_qkv_projections()
    inputs = tiny.inputs(unet)
    plain, ours = both(unet, lambda handle, i, t: handle.unet(**{**inputs, "timestep": torch.tensor(t)}))
    assert_close(ours, plain)
    assert calls.of(unet, "to_kv") <= {2 + 1, 6 + 1}


@pytest.mark.parametrize("compile", [False, "graphs"])
def test_image_prompts(tiny, calls, recorders, compile):
    pipe = make(tiny, SD(""), tiny.unet("one-layer"))
    picture = torch.stack([torch.zeros(1, 24), normal(1, 24)])
    pipe.load_ip_adapter(ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
    samplers = [sampler(pipe, ip_adapter_image_embeds=[p]) for p in (picture, 2 * picture)]
    with unetaccel.apply(pipe, DeepCache(interval=3)):
        plain = [call() for call in samplers]
    calls.clear()
    with unetaccel.apply(pipe, DeepCache(interval=3), precompute=True, compile=compile):
        assert_close([call() for call in samplers], plain, 1e-3)
    assert not torch.allclose(*plain)
    if not compile:
        layers = [m.to_k_ip[0] for m in pipe.unet.modules() if hasattr(m, "to_k_ip")]
        layers.append(pipe.unet.encoder_hid_proj.image_projection_layers[0].image_embeds)
        assert {calls[id(m)] for m in layers} == {2}, "once a call"


@pytest.mark.parametrize("name", ["sd", "sdxl", "kandinsky", "deepfloyd", "audioldm2", "animatediff", "svd", "ddpm"])
def test_recorded_graphs_compute_the_same(tiny, name, recorders):
    unet, found = tiny.unet(name), []
    for compile in (False, "graphs"):
        handle = unetaccel.apply(unet, DeepCache(interval=3, cut=1), precompute=True, compile=compile)
        for seed in range(2):
            inputs = tiny.inputs(unet, seed=seed)
            with torch.no_grad(), handle.run(6, timesteps=TIMES):
                found.append([handle.unet(**{**inputs, "timestep": torch.tensor(t)})[0] for t in TIMES])
        assert not any(reason for log in [handle._engine.log] if log for reason in log.eager)
    assert count(recorders) == 2
    assert all(map(torch.equal, found[0] + found[1], found[2] + found[3]))
    assert not torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("moved", [True, False], ids=["moved", "written"])
def test_weights_that_change_in_recorded_graphs(tiny, recorders, moved):
    """Stand-ins run the layer where the table does not know the timestep; then the graph holds that layer's weights. What it reads of
    keys and values is made anew.
    """
    unet = tiny.unet("one-layer")
    inputs = tiny.inputs(unet)

    kept, found = {k: v.clone() for k, v in unet.state_dict().items()}, []

    def evaluate(handle, i):
        if i == 2:
            for p in unet.parameters():
                if moved:
                    p.data = p.data * 1.5
                else:
                    p.mul_(1.5)
        return handle.unet(**{**inputs, "timestep": torch.tensor(7)})[0]

    for compile in (False, "graphs"):
        unet.load_state_dict(kept)
        handle = unetaccel.apply(unet, DeepCache(interval=1), precompute=True, compile=compile)
        with torch.no_grad(), handle.run(4, timesteps=TIMES[:4]):
            found.append([evaluate(handle, i) for i in range(4)])
    assert not torch.equal(found[0][1], found[0][2])
    assert all(map(torch.equal, *found))


def test_left_alone(tiny, calls):
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Processor:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            return attn.to_out[0](attn.to_v(context).mean(1, keepdim=True).expand_as(hidden_states))

    assert not Precomputed(tiny.unet("one-layer")).left_out
    unet = tiny.unet("one-layer")
    add_hook_to_module(unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k, ModelHook())
    [why] = Precomputed(unet).left_out
    assert "keys and values: mid_block.attentions.0.transformer_blocks.0.attn2.to_k has hooks" in why
    unet = tiny.unet("one-layer")
    unet.set_attn_processor(Processor())
    [why] = Precomputed(unet).left_out
    assert "attn2 runs a " in why
    unet = tiny.unet("one-layer")
    unet.down_blocks[0].resnets[0].time_emb_proj.register_forward_hook(lambda *_: None)
    [why] = Precomputed(unet).left_out
    assert "the time embedding: down_blocks.0.resnets.0.time_emb_proj has hooks" in why
    assert Precomputed(tiny.lora_pipe("a", targets=("time_emb_proj",)).unet).left_out
    assert Precomputed(tiny.lora_pipe("a", targets=("linear_1",)).unet).left_out


def test_hooks_added_after_apply_see_every_evaluation(tiny):
    pipe, seen = tiny.pipe("one-layer"), []
    with unetaccel.apply(pipe, DeepCache(interval=2), precompute=True):
        tiny.call(pipe)
        layers = (pipe.unet.conv_in, pipe.unet.up_blocks[-1].resnets[-1].time_emb_proj)
        for layer in layers:
            layer.register_forward_hook(lambda module, *_: seen.append(module))
        tiny.call(pipe)
    assert [sum(m is layer for m in seen) for layer in layers] == [10, 10]


@pytest.mark.parametrize(
    "around", [torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)], ids=["grad", "autocast"]
)
def test_gradients_and_autocast_compute_as_usual(tiny, around, calls):
    unet = tiny.unet("one-layer")
    inputs = tiny.inputs(unet)

    def evaluate(handle, i, t):
        with around():
            return handle.unet(**{**inputs, "timestep": torch.tensor(t)})

    plain, ours = both(unet, evaluate)
    assert all(map(torch.equal, plain, ours))
    assert calls.of(unet, "time_emb_proj") == {12, 4}


def test_timesteps_that_the_host_does_not_know_compute_as_usual(tiny, calls):
    unet = tiny.unet("one-layer")
    inputs = tiny.inputs(unet)
    plain, ours = both(unet, lambda handle, i, t: handle.unet(**{**inputs, "timestep": torch.tensor([t, t - 3])}))
    assert all(map(torch.equal, plain[::3], ours[::3])), "full evaluations: others are hoisted"
    calls.clear()
    plain, ours = both(unet, lambda handle, i, t: handle.unet(**{**inputs, "timestep": torch.tensor(t + 7)}))
    assert all(map(torch.equal, plain[::3], ours[::3])), "not in the table"
    assert calls.of(unet, "time_emb_proj") == {12, 4}


def test_tensors_are_let_go_at_the_end_and_told(tiny):
    pipe = tiny.pipe("one-layer")
    before = tiny.snapshot(pipe)
    with unetaccel.apply(pipe, DeepCache(interval=2), precompute=True) as handle:
        tiny.call(pipe)
        [views] = handle._engine._idle
        assert views.precomputed.nbytes == 0
        assert handle._engine.report().precomputed_bytes > 10_000
    after = tiny.snapshot(pipe)
    for what in ("unet", "modules", "tensors", "bytes"):
        assert after[what] == before[what]


def test_invalidate_forgets(tiny, calls):
    unet = tiny.unet("one-layer")
    inputs = tiny.inputs(unet)
    handle = unetaccel.apply(unet, DeepCache(interval=3), precompute=True)
    with torch.no_grad(), handle.run(6, timesteps=TIMES):
        for i, t in enumerate(TIMES):
            if i == 4:
                handle.invalidate()
            handle.unet(**{**inputs, "timestep": t})
    assert calls.of(unet, "time_emb_proj") == {2}


def test_settings(tiny):
    with pytest.raises(SettingError, match=r"apply\(precompute\)='all': expected True or False"):
        unetaccel.apply(tiny.unet(), DeepCache(), precompute="all")
