"""ScaleLong: constants and gates where the skips enter the decoder, in every view, and gone without a trace."""

import copy
import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import unetaccel
from unetaccel import DeepCache, ScaleLong, SettingError
from unetaccel.methods.scalelong import gate_network
from unetaccel.settings import method_from
from unetaccel.skips import skip_table

GATES = [
    {"gate": gate, "shared": shared, "start": start}
    for gate, shared, start in itertools.product(("channel", "token"), (True, False), ("identity", "paper"))
]
NEUTRAL = [
    ScaleLong(kappa=1),
    ScaleLong(innermost=1.0),
    *(ScaleLong("ls", **g) for g in GATES if g["start"] == "identity"),
]
ACTIVE = [ScaleLong(), ScaleLong("sqrt2"), *(ScaleLong("ls", **g) for g in GATES if g["start"] == "paper")]


def once(unet, method, inputs, **options):
    handle = unetaccel.apply(unet, method, **options)
    with torch.no_grad():
        return handle.unet(**inputs)[0]


def scaled_by_hand(unet, inputs, factor):
    """The output with ``factor(b, skip)`` times each skip: another way, by hooks on a copy."""
    unet = copy.deepcopy(unet)
    for s in skip_table(unet):

        def scale(layer, args, s=s):
            hidden, skip = args[0][:, : s.hidden], args[0][:, s.hidden :]
            return (torch.cat([hidden, skip * factor(s.b, skip)], 1), *args[1:])

        unet.get_submodule(s.entry).register_forward_pre_hook(scale)
    with torch.no_grad():
        return unet(**inputs)[0]


def disturb(learned):
    """Gates as they are after some training."""
    generator = torch.Generator().manual_seed(0)
    for p in learned.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)


WRONG = {
    "mode": ["ns", None],
    "kappa": [0, -0.5, 1.5, "half", True],
    "innermost": [0.0, 2],
    "gate": ["pixel"],
    "shared": [1],
    "reduction": [0, 2.5],
    "start": ["zero"],
    "weights": [3, ""],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_settings_say_what_came_and_what_is_allowed(name, value):
    with pytest.raises(SettingError) as caught:
        ScaleLong(**{name: value})
    start = f"ScaleLong({name}={value!r}): {name} must be "
    assert str(caught.value).startswith(start)
    assert len(str(caught.value)) > len(start) + 10


def test_settings_that_exclude_each_other():
    with pytest.raises(SettingError, match="kappa or innermost"):
        ScaleLong(kappa=0.7, innermost=0.2)
    with pytest.raises(SettingError, match="ScaleLong\\(mode='cs'\\) has no reduction, which is for mode='ls'"):
        ScaleLong(reduction=8)
    with pytest.raises(SettingError, match="mode='sqrt2'\\) has no kappa, which is for mode='cs'"):
        ScaleLong("sqrt2", kappa=0.5)


def test_constants_of_the_paper():
    assert ScaleLong(kappa=0.5).factors(6) == [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]
    assert ScaleLong(kappa=0.7).factors(6)[-1] == pytest.approx(0.168, abs=1e-4)
    assert ScaleLong().factors(6) == pytest.approx(ScaleLong(kappa=0.7).factors(6))
    assert ScaleLong("sqrt2").factors(3) == [2**-0.5] * 3


@pytest.mark.parametrize("count", [2, 9, 12])
def test_the_innermost_factor_does_not_depend_on_the_number_of_skips(count):
    factors = ScaleLong(innermost=0.17).factors(count)
    assert (factors[0], factors[-1]) == (1, pytest.approx(0.17))
    ratios = [b / a for a, b in itertools.pairwise(factors)]
    assert ratios == pytest.approx([0.17 ** (1 / (count - 1))] * (count - 1))
    assert ScaleLong().factors(1) == [1]


def test_gates_have_the_size_of_the_papers():
    assert sum(p.numel() for p in gate_network(257, 16, False).parameters()) == 8_497
    assert gate_network(9, 16, False)[0].out_features == 1


def test_networks_are_shared_by_width_or_size(tiny):
    unet = tiny.unet()
    table = skip_table(unet)

    def networks(**settings):
        return len(
            {id(g.network) for g in unetaccel.apply(unet, ScaleLong("ls", **settings)).learned["scalelong"].values()}
        )

    assert networks() == len({s.channels for s in table}) == 2
    assert networks(gate="token") == len({s.stride for s in table}) == 3
    assert networks(shared=False) == networks(shared=False, gate="token") == len(table) == 9


@pytest.mark.parametrize("method", NEUTRAL, ids=repr)
def test_neutral_is_bit_equal_and_the_check_bites(tiny, method):
    pipe = tiny.pipe()
    plain = tiny.call(pipe, steps=4)
    with unetaccel.apply(pipe, method) as handle:
        assert torch.equal(tiny.call(pipe, steps=4), plain)
        disturb(handle.learned)
        assert torch.equal(tiny.call(pipe, steps=4), plain) == (not handle.learned)
    with unetaccel.apply(pipe, ScaleLong(kappa=0.99)):
        assert not torch.equal(tiny.call(pipe, steps=4), plain)


def test_gates_begin_as_the_identity_in_every_architecture(tiny, architecture):
    unet = tiny.unet(architecture)
    inputs = tiny.inputs(unet)
    with torch.no_grad():
        plain = unet(**inputs)[0]
    assert torch.equal(once(unet, ScaleLong("ls"), inputs), plain)
    assert not torch.equal(once(unet, ScaleLong("ls", start="paper"), inputs), plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gate", ["channel", "token"])
def test_gates_begin_as_the_identity_in_every_type(tiny, dtype, gate):
    unet = tiny.unet("one-layer").to(dtype)
    inputs = {
        k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in tiny.inputs(unet).items()
    }
    with torch.no_grad():
        plain = unet(**inputs)[0]
    output = once(unet, ScaleLong("ls", gate=gate), inputs)
    assert output.dtype == dtype
    assert torch.equal(output, plain)


@pytest.mark.parametrize("method", [ScaleLong(kappa=0.6), ScaleLong("sqrt2")], ids=repr)
def test_constants_scale_what_the_decoder_is_given(tiny, method):
    unet = tiny.unet()
    inputs, factors = tiny.inputs(unet), method.factors(9)
    assert torch.equal(once(unet, method, inputs), scaled_by_hand(unet, inputs, lambda b, skip: factors[b]))


@pytest.mark.parametrize("start", ["identity", "paper"])
@pytest.mark.parametrize("gate", ["channel", "token"])
def test_gates_are_the_papers_formula(tiny, gate, start):
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    handle = unetaccel.apply(unet, ScaleLong("ls", gate=gate, start=start))
    disturb(handle.learned)

    def factor(b, skip):
        (w1, b1), (w2, b2) = ((m.weight, m.bias) for m in handle.learned["scalelong"][str(b)].network[::2])
        pooled = skip.mean((2, 3)) if gate == "channel" else skip.mean(1).flatten(1)
        values = torch.sigmoid((pooled @ w1.T + b1).relu() @ w2.T + b2) * (2 if start == "identity" else 1)
        return values[..., None, None] if gate == "channel" else values.view(-1, 1, *skip.shape[2:])

    with torch.no_grad():
        torch.testing.assert_close(handle.unet(**inputs)[0], scaled_by_hand(unet, inputs, factor))


def test_the_papers_start_is_near_a_half(tiny):
    unet = tiny.unet()
    gates = unetaccel.apply(unet, ScaleLong("ls", start="paper")).learned["scalelong"]
    skip = torch.randn(2, gates["0"].network[0].in_features, 8, 8)
    assert gates["0"].factor(skip).shape == (2, skip.shape[1], 1, 1)
    assert (gates["0"].factor(skip) - 0.5).abs().max() < 0.25


def test_apply_leaves_the_random_numbers_that_follow_as_they_were(tiny):
    unet = tiny.unet()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first = unetaccel.apply(unet, ScaleLong("ls", start="paper")).learned.state_dict()
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(3)
    second = unetaccel.apply(unet, ScaleLong("ls", start="paper")).learned.state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first), "but a seed fixes the gates"


@pytest.mark.parametrize("method", ACTIVE, ids=repr)
def test_cached_evaluations_equal_full_ones_at_every_cut(tiny, method):
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    for cut in range(9):
        handle = unetaccel.apply(unet, DeepCache(interval=2, cut=cut), method)
        with torch.no_grad(), handle.run(6):
            full, cached = handle.unet(**inputs)[0], handle.unet(**inputs)[0]
        assert handle.summary().cached == 1
        assert torch.equal(full, cached)


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("gate", ["channel", "token"])
def test_one_graph_a_view(tiny, gate):
    pipe, counter = tiny.pipe("one-layer"), CompileCounter()
    methods = DeepCache(interval=2, cut=2), ScaleLong("ls", gate=gate)
    with unetaccel.apply(pipe, *methods, compile={"backend": counter}) as handle:
        disturb(handle.learned)
        weights = copy.deepcopy(handle.learned.state_dict())
        compiled = [tiny.call(pipe, steps=s) for s in (6, 8)]
    assert counter.frame_count == 2
    with unetaccel.apply(pipe, *methods) as handle:
        handle.learned.load_state_dict(weights)
        assert all(torch.equal(tiny.call(pipe, steps=s), c) for s, c in zip((6, 8), compiled, strict=True))


@pytest.mark.parametrize("method", [ScaleLong(), ScaleLong("ls", gate="token", start="paper")], ids=repr)
def test_removal_is_exact(tiny, method):
    pipe = tiny.pipe()
    plain, before = tiny.call(pipe, steps=4), tiny.snapshot(pipe)
    with unetaccel.apply(pipe, method):
        assert not torch.equal(tiny.call(pipe, steps=4), plain)
    assert tiny.snapshot(pipe) == before
    assert torch.equal(tiny.call(pipe, steps=4), plain)


def test_the_unet_does_not_hold_the_gates(tiny):
    unet = tiny.unet()
    handle = unetaccel.apply(unet, ScaleLong("ls"))
    assert sorted(handle.unet.state_dict()) == sorted(unet.state_dict())
    assert list(handle.learned) == ["scalelong"]
    assert all(p.requires_grad and p.dtype == torch.float32 for p in handle.learned.parameters())


def test_another_size_is_refused_by_token_gates_only(tiny):
    unet = tiny.unet()
    inputs = tiny.inputs(unet, size=(24, 16))
    for options in ({}, {"compile": {"backend": "eager"}}):
        with pytest.raises(SettingError, match=r"skips of 16x16 pixels at stride 1.*have 24x16\. .*gate='channel'"):
            once(unet, ScaleLong("ls", gate="token"), inputs, **options)
    with torch.no_grad():
        assert torch.equal(once(unet, ScaleLong("ls"), inputs), unet(**inputs)[0])
    unet.register_to_config(sample_size=None)
    with pytest.raises(SettingError, match="no sample_size"):
        unetaccel.apply(unet, ScaleLong("ls", gate="token"))


def test_a_config_with_two_sides(tiny):
    unet = tiny.unet()
    unet.register_to_config(sample_size=(24, 16))
    inputs = tiny.inputs(unet, size=(24, 16))
    with torch.no_grad():
        assert torch.equal(once(unet, ScaleLong("ls", gate="token"), inputs), unet(**inputs)[0])


def test_two_sets_of_gates_are_refused(tiny):
    with pytest.raises(SettingError, match="apply ScaleLong once"):
        unetaccel.apply(tiny.unet(), ScaleLong("ls"), ScaleLong("ls", gate="token"))


def test_profiles_know_it():
    method = method_from("scalelong", {"mode": "cs", "kappa": 0.9})
    assert method == ScaleLong(kappa=0.9)
    assert repr(method) == "ScaleLong(mode='cs', kappa=0.9)"


def loss_of(model, inputs):
    return model(**inputs)[0].square().mean()


def trainable(tiny, gate="channel"):
    """A U-Net of float64 that is being trained together with its gates."""
    unet = tiny.unet("one-layer").double().requires_grad_(True).train()
    inputs = {
        k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in tiny.inputs(unet).items()
    }
    handle = unetaccel.apply(unet, ScaleLong("ls", gate=gate))
    handle.learned.double()
    disturb(handle.learned)
    return unet, inputs, handle


@pytest.mark.parametrize("gate", ["channel", "token"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_gates_and_unet_and_are_right(tiny, gate, checkpointing):
    unet, inputs, handle = trainable(tiny, gate)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    generator = torch.Generator().manual_seed(1)
    for parameters in (list(handle.learned.parameters()), list(unet.parameters())):
        unet.zero_grad()
        handle.learned.zero_grad()
        loss_of(handle.unet, inputs).backward()
        used = [p for p in parameters if p.grad is not None]
        along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in used]
        exact = sum((p.grad * d).sum() for p, d in zip(used, along, strict=True))
        losses = []
        with torch.no_grad():
            for step in (1e-6, -2e-6, 1e-6):
                for p, d in zip(used, along, strict=True):
                    p += step * d
                losses.append(loss_of(handle.unet, inputs))
        torch.testing.assert_close((losses[0] - losses[1]) / 2e-6, exact, rtol=1e-4, atol=1e-8)
        assert exact.abs() > 1e-6


def test_gates_train_on_a_frozen_unet(tiny):
    unet = tiny.unet("one-layer")
    inputs = tiny.inputs(unet)
    before = copy.deepcopy(unet.state_dict())
    handle = unetaccel.apply(unet, ScaleLong("ls"))
    optimizer = torch.optim.Adam(handle.learned.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = loss_of(handle.unet, inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(before[k], v) for k, v in unet.state_dict().items())


def test_gates_stay_float32_under_autocast(tiny):
    unet = tiny.unet("one-layer")
    gate = unetaccel.apply(unet, ScaleLong("ls", start="paper")).learned["scalelong"]["0"]
    skip = torch.randn(1, 16, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gate.factor(skip), gate.factor(skip.clone()))
        assert gate.factor(skip).dtype == torch.float32
    assert gate.factor(skip.bfloat16()).dtype == torch.float32


def test_gates_go_where_the_evaluation_runs(tiny):
    """On this machine there is one device that computes, so the move is watched from the one that does not."""
    unet = tiny.unet("one-layer")
    handle = unetaccel.apply(unet, ScaleLong("ls"))
    inputs = {k: v.to("meta") if torch.is_tensor(v) else v for k, v in tiny.inputs(unet).items()}
    with torch.inference_mode():
        handle.unet.to("meta")(**inputs)
    assert {p.device.type for p in handle.learned.parameters()} == {"meta"}
    assert not any(p.is_inference() for p in handle.learned.parameters())
