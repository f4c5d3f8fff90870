"""Skip-Tuning equals scaling by hand, wherever it scales, on every architecture and in every view."""

from functools import partial

import diffusers
import pytest
import torch
from skip_cases import edited_by_hand, parts_by_hand
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

import unetaccel
from unetaccel import DeepCache, ScaleLong, SettingError, SkipTuning
from unetaccel.skips import skip_table
from unetaccel.timeline import of_scheduler


def both(unet, method, inputs):
    """Outputs of the U-Net as it is and with the method applied."""
    plain = unet(**inputs)[0]
    with unetaccel.apply(unet, method) as handle:
        return plain, handle.unet(**inputs)[0]


@torch.no_grad()
def test_every_architecture_equals_scaling_by_hand(tiny, architecture):
    unet = tiny.unet(architecture)
    inputs, method = tiny.inputs(unet), SkipTuning(0.6, 0.9)
    plain, ours = both(unet, method, inputs)
    rhos = method.rhos(len(skip_table(unet)))
    with edited_by_hand(unet, lambda b, hidden, skip: (hidden, skip * rhos[b])):
        by_hand = unet(**inputs)[0]
    assert torch.equal(ours, by_hand)
    assert not torch.equal(ours, plain)
    assert torch.equal(unet(**inputs)[0], plain)


@torch.no_grad()
@pytest.mark.parametrize("where", ["shortcut", "norm_out"])
def test_parts_of_every_architecture_equal_scaling_by_hand(tiny, architecture, where):
    unet = tiny.unet(architecture)
    inputs = tiny.inputs(unet)
    plain, ours = both(unet, SkipTuning(0.6, 0.9, where=where), inputs)
    with parts_by_hand(unet, where, SkipTuning(0.6, 0.9).rhos(len(skip_table(unet)))):
        by_hand = unet(**inputs)[0]
    assert torch.equal(ours, by_hand)
    assert not torch.equal(ours, plain)


@torch.no_grad()
@pytest.mark.parametrize("name", ["sd", "sdxl", "ddpm", "animatediff", "svd", "text-to-video"])
def test_every_cut_is_exact_with_edited_skips(tiny, name):
    """A cached evaluation on the inputs of a full one equals it bit for bit, and both equal the plain edited run."""
    unet = tiny.unet(name)
    inputs = tiny.inputs(unet)
    with unetaccel.apply(unet, SkipTuning(0.6)) as handle:
        edited = handle.unet(**inputs)[0]
    for b in range(len(skip_table(unet))):
        with unetaccel.apply(unet, DeepCache(interval=2, cut=b), SkipTuning(0.6)) as handle, handle.run(8):
            full, cached = handle.unet(**inputs)[0], handle.unet(**inputs)[0]
        assert handle.summary().pattern == "F."
        assert torch.equal(full, edited)
        assert torch.equal(cached, edited)


def test_profiles():
    assert SkipTuning(0.5).rhos(5) == [1.0, 0.875, 0.75, 0.625, 0.5]
    assert SkipTuning(0.5, 0.9, profile="constant").rhos(3) == [0.5, 0.5, 0.5]
    assert SkipTuning(profile=[1, 0.9, 0.8]).rhos(3) == [1.0, 0.9, 0.8]
    assert SkipTuning(profile=ScaleLong(kappa=0.5).factors(3)).rhos(3) == [1.0, 0.5, 0.25]
    assert SkipTuning(0.7).rhos(1) == [1.0]
    with pytest.raises(SettingError, match="3 factors, but this U-Net has 9 skips"):
        SkipTuning(0.5, profile=[1, 0.9, 0.8]).rhos(9)


@torch.no_grad()
def test_the_first_layer_of_the_decoder_takes_the_innermost_skip(tiny):
    """Order by what runs, not by our table: rho_bottom reaches the layer that runs first, rho_top the last."""
    unet, entered = tiny.unet(), []
    layers = [layer for block in unet.up_blocks for layer in block.resnets]
    hooks = [layer.register_forward_pre_hook(lambda _, args: entered.append(args[0].clone())) for layer in layers]
    unet(**tiny.inputs(unet))
    with unetaccel.apply(unet, SkipTuning(profile=[1.0] * 8 + [0.5])) as handle:
        handle.unet(**tiny.inputs(unet))
    for hook in hooks:
        hook.remove()
    hidden = skip_table(unet)[8].hidden
    assert torch.equal(entered[9][:, hidden:], 0.5 * entered[0][:, hidden:])
    assert torch.equal(entered[9][:, :hidden], entered[0][:, :hidden])


@torch.no_grad()
def test_neutral_changes_no_bit_and_the_check_bites(tiny):
    pipe = tiny.pipe()
    plain = tiny.call(pipe)
    neutral = (
        SkipTuning(1.0),
        SkipTuning(1.0, schedule="increasing"),
        SkipTuning(1.0, where="shortcut", backend="fold"),
        SkipTuning(0.5, schedule=(900.0, 1000.0)),  # a window in which no evaluation falls
    )
    for method in neutral:
        with unetaccel.apply(pipe, method) as handle:
            assert torch.equal(tiny.call(pipe), plain), method
        assert handle.summary().pattern == "F" * 10
    with unetaccel.apply(pipe, SkipTuning(0.999)):
        assert not torch.equal(tiny.call(pipe), plain)


@pytest.mark.parametrize("settings", [{}, {"schedule": "increasing"}, {"where": "norm_out", "backend": "fold"}])
def test_removal_is_exact(tiny, settings):
    pipe = tiny.pipe()
    plain = tiny.call(pipe)
    before = tiny.snapshot(pipe)
    with unetaccel.apply(pipe, DeepCache(), SkipTuning(0.5, **settings)):
        assert not torch.equal(tiny.call(pipe), plain)
    assert tiny.snapshot(pipe) == before
    assert torch.equal(tiny.call(pipe), plain)


@pytest.mark.parametrize("name", ["DDIMScheduler", "HeunDiscreteScheduler", "EDMEulerScheduler"])
@pytest.mark.parametrize("schedule", ["increasing", "decreasing", (0.5, 3.0)])
def test_schedules_follow_the_scheduler(tiny, name, schedule):
    """At each evaluation the factor is the one that its time or noise level asks for, by hooks that know the index."""
    pipe = tiny.pipe(scheduler=tiny.scheduler(name, **({"sigma_max": 40.0} if "EDM" in name else {})))
    method = SkipTuning(0.5, 0.9, schedule=schedule)
    with unetaccel.apply(pipe, method) as handle:
        ours = tiny.call(pipe, steps=6)
    timeline = handle._engine.report().timeline
    timesteps, sigmas = timeline.read()
    if schedule == (0.5, 3.0):
        strengths = [float(0.5 <= s <= 3.0) for s in sigmas]
        assert 0 < sum(strengths) < len(strengths)
    else:
        shares = [s / max(sigmas) for s in sigmas] if "EDM" in name else [t / 999 for t in timesteps]
        strengths = [1 - u if schedule == "increasing" else u for u in shares]
    rhos, calls = method.rhos(9), []

    def edit(b, hidden, skip):
        calls.append(b)
        strength = strengths[(len(calls) - 1) // 9]
        return hidden, skip * torch.tensor(1 + strength * (rhos[b] - 1))

    with edited_by_hand(pipe.unet, edit):
        by_hand = tiny.call(pipe, steps=6)
    assert len(calls) == 9 * timeline.evaluations
    assert torch.allclose(ours, by_hand, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(tiny.call(pipe, steps=6), ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "DDIMScheduler"])
def test_time_is_that_of_the_whole_trajectory(tiny, name):
    """Image to image enters at some noise level, which is not t = T."""
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(10)
    whole = of_scheduler(scheduler).shares()
    assert whole[0] > 0.8
    assert of_scheduler(scheduler, evaluations=4).shares() == whole[6:]


def test_checkpointing_would_use_a_later_strength(tiny):
    unet = tiny.unet("one-layer").requires_grad_(True).train()
    unet.enable_gradient_checkpointing()
    inputs = tiny.inputs(unet)
    with unetaccel.apply(unet, SkipTuning(0.5, schedule="increasing")) as handle, handle.run(2, timesteps=[900, 0]):
        with pytest.raises(SettingError, match=r"unet\.disable_gradient_checkpointing\(\)"):
            handle.unet(**inputs)
        with torch.no_grad():
            handle.unet(**inputs)


@torch.no_grad()
def test_schedules_of_a_loop_of_ones_own(tiny):
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    with unetaccel.apply(unet, SkipTuning(0.5, schedule="decreasing")) as handle:
        with pytest.raises(SettingError, match="belongs to no sampling call"):
            handle.unet(**inputs)
        with handle.run(2), pytest.raises(SettingError, match=r"handle\.run\(50, timesteps=\.\.\., sigmas=\.\.\.\)"):
            handle.unet(**inputs)
        with pytest.raises(SettingError, match=r"run\(timesteps=\.\.\.\) has 1 numbers for 2 evaluations"):
            handle.run(2, timesteps=[5])
        with handle.run(2, timesteps=[999, 0]):
            strong, neutral = handle.unet(**inputs)[0], handle.unet(**inputs)[0]
    with unetaccel.apply(unet, SkipTuning(0.5)) as handle:
        assert torch.allclose(strong, handle.unet(**inputs)[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(neutral, unet(**inputs)[0])


@torch.no_grad()
def test_control_is_not_weakened_when_compensated(tiny):
    """What enters the decoder is rho times the encoder's skip plus the whole residual."""
    unet = tiny.unet()
    b, rho, seen = 8, 0.5, {}
    residuals = [torch.randn(2, s.channels, 16 // s.stride, 16 // s.stride) for s in skip_table(unet)]
    mid = torch.randn(2, unet.mid_block.resnets[-1].out_channels, *residuals[-1].shape[2:])
    inputs = {**tiny.inputs(unet), "down_block_additional_residuals": residuals, "mid_block_additional_residual": mid}
    skip = skip_table(unet)[b]

    def keep(name, index, module, args, kwargs, output=None):
        seen[name] = (args[0][:, skip.hidden :] if output is None else output).clone()

    with unetaccel.apply(unet, SkipTuning(rho, profile="constant", compensate_control=True)) as handle:
        entry, source = unet.get_submodule(skip.entry), unet.get_submodule(skip.source)
        hooks = [
            entry.register_forward_pre_hook(lambda m, args: keep("entered", b, m, args, {})),
            source.register_forward_hook(lambda m, args, output: keep("made", b, m, args, {}, output)),
        ]
        handle.unet(**inputs)
        for hook in hooks:
            hook.remove()
    assert torch.allclose(seen["entered"], rho * seen["made"] + residuals[b], rtol=1e-4, atol=1e-5)


def test_compensation_reaches_truncated_controlnets(tiny):
    def call(pipe, *methods):
        with unetaccel.apply(pipe, *methods):
            return tiny.call(pipe, image=torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1)))

    pipe = tiny.controlnet_pipe()
    cached = DeepCache(interval=2, cut=3)
    weakened, whole = (call(pipe, cached, SkipTuning(0.5, compensate_control=c)) for c in (False, True))
    assert not torch.allclose(weakened, whole)
    neutral, plain = call(pipe, cached, SkipTuning(1.0, compensate_control=True)), call(pipe, cached)
    assert torch.equal(neutral, plain)


@pytest.mark.parametrize(
    "settings", [{}, {"schedule": "increasing"}, {"where": "norm_out"}, {"where": "shortcut", "backend": "fold"}]
)
def test_two_graphs_however_rho_moves(tiny, settings):
    torch._dynamo.reset()
    pipe, methods = tiny.pipe("one-layer"), (DeepCache(interval=3), SkipTuning(0.6, **settings))
    calls = [(10, 0), (7, 1)]
    with unetaccel.apply(pipe, *methods):
        eager = [tiny.call(pipe, steps=s, seed=seed) for s, seed in calls]
    counter = CompileCounter()
    with unetaccel.apply(pipe, *methods, compile={"backend": counter}):
        ours = [tiny.call(pipe, steps=s, seed=seed) for s, seed in calls]
    assert counter.frame_count == 2
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(ours, eager, strict=True))


def test_one_graph_without_a_cache(tiny):
    torch._dynamo.reset()
    pipe, counter = tiny.pipe("one-layer"), CompileCounter()
    with unetaccel.apply(pipe, SkipTuning(0.6, schedule="increasing"), compile={"backend": counter}):
        tiny.call(pipe), tiny.call(pipe, seed=1)
    assert counter.frame_count == 1


@pytest.mark.parametrize("settings", [{"schedule": "increasing"}, {"where": "shortcut", "backend": "fold"}])
def test_views_made_in_inference_mode_serve_outside_it(tiny, settings):
    unet = tiny.unet("one-layer")
    inputs = tiny.inputs(unet)

    def evaluate(handle):
        with handle.run(2, timesteps=[900, 100]):
            return [handle.unet(**inputs)[0] for _ in range(2)]

    with torch.inference_mode():
        handle = unetaccel.apply(unet, SkipTuning(0.5, **settings))
        expected = evaluate(handle)
    with torch.no_grad():
        assert all(map(torch.equal, evaluate(handle), expected))
    inputs["sample"].requires_grad_()
    evaluate(handle)[0].sum().backward()
    assert inputs["sample"].grad.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("where", ["concat", "shortcut", "norm_out"])
def test_a_schedule_does_not_round_what_is_wider_than_its_strength(tiny, where):
    unet = tiny.unet("one-layer").double()
    inputs = {
        k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in tiny.inputs(unet).items()
    }
    method = SkipTuning(0.5, schedule="increasing", where=where)
    with unetaccel.apply(unet, method) as handle, handle.run(1, timesteps=[999]):
        assert torch.equal(handle.unet(**inputs)[0], unet(**inputs)[0])


def test_gradients_are_those_of_scaling_by_hand(tiny):
    unet = tiny.unet("one-layer").requires_grad_(True)
    inputs = {**tiny.inputs(unet), "sample": tiny.inputs(unet)["sample"].requires_grad_()}

    def gradients(module):
        output = module(**inputs)[0].square().mean()
        return torch.autograd.grad(output, [inputs["sample"], unet.conv_in.weight])

    rhos = SkipTuning(0.5).rhos(6)
    with edited_by_hand(unet, lambda b, hidden, skip: (hidden, skip * rhos[b])):
        by_hand = gradients(unet)
    with unetaccel.apply(unet, SkipTuning(0.5)) as handle:
        ours = gradients(handle.unet)
        unet.train().enable_gradient_checkpointing()
        checkpointed = gradients(handle.unet)
        unet.enable_gradient_checkpointing(
            partial(checkpoint, use_reentrant=True)
        )  # whose first pass keeps no gradients
        handle.unet(**inputs)[0].square().mean().backward()
    for grads in (ours, checkpointed, [inputs["sample"].grad, unet.conv_in.weight.grad]):
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(grads, by_hand, strict=True))


def test_settings_are_refused_by_name(tiny):
    bad = [
        ({}, r"SkipTuning needs rho_bottom, for example SkipTuning\(0\.8\), or a profile"),
        ({"rho_bottom": 0}, "rho_bottom must be a finite number above 0"),
        ({"rho_bottom": 0.5, "profile": "cosine"}, "profile must be 'linear', 'constant'"),
        ({"rho_bottom": 0.5, "schedule": (3.0, 1.0)}, "schedule must be None, 'increasing'"),
        ({"rho_bottom": 0.5, "where": "input"}, "where must be 'concat', 'shortcut' or 'norm_out'"),
        ({"rho_bottom": 0.5, "backend": "fold", "schedule": "increasing"}, "is constant"),
        ({"rho_bottom": 0.5, "where": "shortcut", "compensate_control": True}, "works with where='concat'"),
    ]
    for settings, message in bad:
        with pytest.raises(SettingError, match=message):
            SkipTuning(**settings)
    pipe = tiny.pipe()
    before = tiny.snapshot(pipe)
    with pytest.raises(SettingError, match="this U-Net has 9 skips"):
        unetaccel.apply(pipe, SkipTuning(0.5, profile=[0.5, 0.6]))
    assert tiny.snapshot(pipe) == before
    with pytest.warns(UserWarning, match="above 1 the paper reports"):
        SkipTuning(1.2)
