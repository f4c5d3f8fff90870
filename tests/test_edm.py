"""Skip methods on networks of EDM's structure equal scaling by hand, and leave no trace."""

import copy
import pickle
from contextlib import contextmanager

import pytest
import torch
from edm_networks import NETWORKS, Adm, Precond, Song, build_network
from skip_cases import parts_by_hand
from torch._dynamo.testing import CompileCounter

import unetaccel
from unetaccel import DeepCache, FreeU, SettingError, SkipTuning, UnsupportedModelError
from unetaccel.layouts import layout_of
from unetaccel.methods.skip_method import straddles

pytestmark = pytest.mark.parametrize("name", NETWORKS)
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([3.0])


@contextmanager
def scaled_by_hand(net, rhos: list[float]):
    """Skips multiplied by a hook on each layer that consumes one; found from the network's own rule, at run time."""
    layers = [layer for key, layer in net.model.dec.items() if "aux" not in key]
    before = [None, *layers[:-1]]
    consuming = [now for now, last in zip(layers, before, strict=True) if last and now.in_channels != last.out_channels]
    assert len(consuming) == len(rhos)
    hooks = []
    for layer, rho in zip(consuming, reversed(rhos), strict=True):
        hidden = layers[layers.index(layer) - 1].out_channels

        def pre(_, args, hidden=hidden, rho=rho):
            return torch.cat([args[0][:, :hidden], args[0][:, hidden:] * rho], dim=1), *args[1:]

        hooks.append(layer.register_forward_pre_hook(pre))
    yield
    for hook in hooks:
        hook.remove()


def count(net) -> int:
    return len(layout_of(net).skips)


@torch.no_grad()
def test_it_equals_scaling_by_hand(name):
    net, method = build_network(name), SkipTuning(0.6, 0.9)
    plain = net(X, SIGMA)
    with unetaccel.apply(net, method) as handle:
        ours = handle.unet(X, SIGMA)
        assert torch.equal(handle.unet(x=X, sigma=SIGMA), ours)
        with handle.run(2):
            assert torch.equal(handle.unet(X, sigma=SIGMA), ours)
    with scaled_by_hand(net, method.rhos(count(net))):
        by_hand = net(X, SIGMA)
    assert torch.equal(ours, by_hand)
    assert (ours - plain).norm() > 1e-3 * plain.norm()
    assert torch.equal(net(X, SIGMA), plain)


@torch.no_grad()
@pytest.mark.parametrize("where", ["shortcut", "norm_out"])
def test_parts_and_their_folds_equal_scaling_by_hand(name, where):
    net, method = build_network(name), SkipTuning(0.6, 0.9, where=where)
    plain, before = net(X, SIGMA), {k: (p.data_ptr(), p._version) for k, p in net.named_parameters()}
    with unetaccel.apply(net, method) as handle:
        ours = handle.unet(X, SIGMA)
    with parts_by_hand(net, where, method.rhos(count(net))):
        by_hand = net(X, SIGMA)
    assert torch.equal(ours, by_hand)
    with unetaccel.apply(net, SkipTuning(0.6, 0.9, where=where, backend="fold")) as handle:
        folded = handle.unet(X, SIGMA)
        sites = handle._engine._idle[0].sites
        assert len(sites._folds) == sum(rho != 1 for rho in method.rhos(count(net))), "EDM's own layers are folded"
    assert (folded - ours).norm() < 1e-5 * ours.norm()
    assert (folded - plain).norm() > 1e-3 * plain.norm()
    assert {k: (p.data_ptr(), p._version) for k, p in net.named_parameters()} == before


@torch.no_grad()
def test_the_bare_network_and_labels(name):
    net = build_network(name, labels=4)
    labels = torch.eye(4)[:2]
    plain, inner = net(X, SIGMA, labels), net.model(X, SIGMA.expand(2), labels)
    assert not torch.equal(net(X, SIGMA, labels.flip(0)), plain)
    with unetaccel.apply(net, SkipTuning(0.6)) as handle:
        assert not torch.equal(handle.unet(X, SIGMA, labels), plain)
        outer = handle.unet(X, SIGMA, class_labels=labels)
    with scaled_by_hand(net, SkipTuning(0.6).rhos(count(net))):
        assert torch.equal(net(X, SIGMA, labels), outer)
        expected = net.model(X, SIGMA.expand(2), labels)
    with unetaccel.apply(net.model, SkipTuning(0.6)) as handle:
        assert torch.equal(handle.unet(X, SIGMA.expand(2), labels), expected)
        assert torch.equal(handle.unet(X, noise_labels=SIGMA.expand(2), class_labels=labels), expected)
    assert torch.equal(net.model(X, SIGMA.expand(2), labels), inner)


@torch.no_grad()
def test_neutral_and_removal(name):
    net = build_network(name)
    plain = net(X, SIGMA)
    before = {key: (id(m), tuple(m.__dict__), tuple(map(id, m._modules.values()))) for key, m in net.named_modules()}
    for method in (SkipTuning(1.0), SkipTuning(1.0, where="norm_out", backend="fold"), FreeU(b1=1, b2=1, s1=1, s2=1)):
        with unetaccel.apply(net, method) as handle:
            assert torch.equal(handle.unet(X, SIGMA), plain), method
    with unetaccel.apply(net, SkipTuning(0.999)) as handle:
        assert not torch.equal(handle.unet(X, SIGMA), plain)
    assert torch.equal(handle.unet(X, SIGMA), plain), "a removed handle's network is the plain one"
    after = {key: (id(m), tuple(m.__dict__), tuple(map(id, m._modules.values()))) for key, m in net.named_modules()}
    assert after == before


@torch.no_grad()
@pytest.mark.parametrize("schedule", ["increasing", "decreasing", (1.0, 10.0)])
def test_schedules_follow_the_noise_levels(name, schedule):
    net, method, sigmas = build_network(name), SkipTuning(0.5, schedule=schedule), [40.0, 5.0, 0.5]
    strengths = {"increasing": [1 - s / 40 for s in sigmas], "decreasing": [s / 40 for s in sigmas]}
    strengths = strengths.get(schedule, [0.0, 1.0, 0.0])
    with unetaccel.apply(net, method) as handle, handle.run(3, sigmas=sigmas):
        ours = [handle.unet(X, torch.tensor([sigma])) for sigma in sigmas]
    for output, sigma, strength in zip(ours, sigmas, strengths, strict=True):
        with scaled_by_hand(net, [1 + strength * (rho - 1) for rho in method.rhos(count(net))]):
            by_hand = net(X, torch.tensor([sigma]))
        assert torch.allclose(output, by_hand, rtol=1e-4, atol=1e-5)
    with unetaccel.apply(net, method) as handle, pytest.raises(SettingError, match=r"handle\.run\(50"):
        handle.unet(X, SIGMA)


@torch.no_grad()
def test_one_graph_whatever_the_strength(name):
    torch._dynamo.reset()
    net, counter = build_network(name), CompileCounter()
    method, sigmas = SkipTuning(0.5, schedule="decreasing"), [40.0, 5.0, 0.5]
    outputs = []
    for options in (False, {"backend": counter}):
        with unetaccel.apply(net, method, compile=options) as handle, handle.run(3, sigmas=sigmas):
            outputs.append(torch.stack([handle.unet(X, torch.tensor([sigma])) for sigma in sigmas]))
    assert counter.frame_count == 1
    assert torch.allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_freeu_acts_at_the_two_innermost_resolutions(name):
    net = build_network(name)
    plain = net(X, SIGMA)
    with unetaccel.apply(net, FreeU(b1=1.3, b2=1.4, s1=0.9, s2=0.2)) as handle:
        assert not torch.equal(handle.unet(X, SIGMA), plain)
        seen = sorted(path.split(".")[-2] for path in handle._engine._idle[0].sites.paths)
    assert {key.partition("_")[0] for key in seen} == {"4x4", "8x8"}


def test_copies_and_pickles_are_plain(name):
    net = build_network(name)
    plain = net(X, SIGMA)
    with unetaccel.apply(net, SkipTuning(0.6)) as handle:
        assert isinstance(handle.unet, Precond)
        assert handle.unet.round_sigma(2.0) == 2
        assert handle.unet.state_dict().keys() == net.state_dict().keys()
        for other in (copy.deepcopy(handle.unet), pickle.loads(pickle.dumps(handle.unet))):
            assert type(other) is Precond
            assert torch.equal(other(X, SIGMA), plain)


def test_deepcache_is_refused(name):
    with pytest.raises(UnsupportedModelError, match=r"DeepCache is not supported on EDM's networks.*fewer steps"):
        unetaccel.apply(build_network(name), DeepCache())


def test_norms_with_an_activation_inside_have_no_output_of_their_own(name):
    net = build_network(name)
    for place in layout_of(net).places(net):
        place.layer.norm0.fused_act = True
    with pytest.raises(SettingError, match="activation inside: use where='concat'"):
        unetaccel.apply(net, SkipTuning(0.6, where="norm_out"))


def test_what_is_alike_but_not_the_same_is_refused(name):
    net = build_network(name)
    skips = list(layout_of(net).skips)
    net.model.dec[skips[0].entry.split(".")[-1]].in_channels += 4
    with pytest.raises(
        UnsupportedModelError, match=r"dec\.16x16_block\d takes a skip of 20 channels, but skip 0 has 16"
    ):
        unetaccel.apply(net, SkipTuning(0.6))
    net = build_network(name)
    del net.model.dec["8x8_up"].norm0
    with pytest.raises(UnsupportedModelError, match=r"dec\.8x8_up \(Block\) lacks.*EDM2"):
        unetaccel.apply(net, SkipTuning(0.6))
    with pytest.raises(UnsupportedModelError, match="_orig_mod"):
        unetaccel.apply(torch.compile(build_network(name)), SkipTuning(0.6))


KNOWN = {  # constructor's arguments; then skips, straddling blocks, skips as wide as the hidden state
    "adm": (Adm, dict(side=64, widths=(192, 384, 576, 768), blocks=3), (16, 6, 10)),
    "ddpm++": (Song, dict(side=32, widths=(256, 256, 256), blocks=4, first=128), (15, 1, None)),
    "ncsn++": (Song, dict(side=64, widths=(128, 256, 256, 256), blocks=4, pyramid=True), (20, 2, None)),
}


def test_counts_on_the_real_widths(name):
    """The paper counts 16 skips on ADM at 64 pixels, 10 of them as wide as the hidden state."""
    cls, options, (skips, straddling, equal) = KNOWN[name]
    with torch.device("meta"):
        net = Precond(cls(**options, emb=32))
    places = layout_of(net).places(net)
    assert len(places) == skips
    assert [p.skip.b for p in places] == list(range(skips))
    assert sum(map(straddles, places)) == straddling
    assert equal in (None, sum(p.skip.hidden == p.skip.channels for p in places))
    assert (places[0].skip.stride, places[-1].skip.stride) == (1, 2 ** (len(options["widths"]) - 1))
    assert (places[0].order, places[-1].order) == (skips - 1, 0)


def test_what_the_fold_of_concat_loses(name):
    net = build_network(name)
    errors = unetaccel.fold_errors(net, SkipTuning(0.5))
    assert errors.keys() == set(range(1, count(net)))
    for error in errors.values():
        assert error.error < (0.5 if error.straddles else 1e-3) * error.effect
