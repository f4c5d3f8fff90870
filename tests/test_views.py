"""Views are exact: the full one is the original, and the cached one equals it on features of the same inputs."""

import pytest
import torch
from architectures import ARCHITECTURES
from diffusers import UNet2DModel

from unetaccel.skips import skip_table
from unetaccel.views import build_views


def run_both(unet, b, inputs):
    views = build_views(unet, b)
    full, feature = views.run_full(dict(inputs))
    return full[0], views.run_cached(dict(inputs), feature)[0], feature


def test_every_cut_of_every_architecture(tiny, architecture_cut):
    name, b = architecture_cut
    unet = tiny.unet(name)
    inputs = tiny.inputs(unet)
    full, cached, feature = run_both(unet, b, inputs)
    skip = skip_table(unet)[b]
    assert torch.equal(full, unet(**inputs)[0])
    assert torch.equal(cached, full)
    assert feature.shape[1:] == (skip.hidden, 16 // skip.stride, 16 // skip.stride)


def test_a_wrong_feature_changes_the_output(tiny):
    """The identity above can fail: the cached view does read the feature, and nothing deeper."""
    unet = tiny.unet("sd")
    inputs = tiny.inputs(unet)
    for b in range(9):
        views = build_views(unet, b)
        full, feature = views.run_full(inputs)
        assert not torch.equal(views.run_cached(inputs, feature + 0.1)[0], full[0])


def test_cached_views_run_nothing_below_the_cut(tiny):
    unet = tiny.unet("sd")
    table, inputs = skip_table(unet), tiny.inputs(unet)
    for b in range(len(table)):
        views, ran = build_views(unet, b), set()
        named = [(name, m) for name, m in unet.named_modules() if "." in name]
        hooks = [m.register_forward_hook(lambda *_, n=name, ran=ran: ran.add(n)) for name, m in named]
        _, feature = views.run_full(inputs)
        ran.clear()
        views.run_cached(inputs, feature)
        for hook in hooks:
            hook.remove()
        wanted = {s.entry for s in table[: b + 1]} | {s.source for s in table[1 : b + 1]}
        forbidden = {s.entry for s in table[b + 1 :]} | {s.source for s in table[b + 1 :]}
        assert wanted <= ran
        assert not forbidden & ran
        assert not any(name.startswith("mid_block") for name in ran)


ANY_SIZE = [name for name, (cls, _) in ARCHITECTURES.items() if cls is not UNet2DModel]  # which takes no such sizes


@pytest.mark.parametrize(("name", "size"), [*((name, (18, 14)) for name in ANY_SIZE), ("sd", (10, 22))])
def test_sizes_that_do_not_divide(tiny, name, size):
    unet = tiny.unet(name)
    inputs = tiny.inputs(unet, size=size)
    for b in range(len(skip_table(unet))):
        full, cached, _ = run_both(unet, b, inputs)
        assert torch.equal(full, unet(**inputs)[0])
        assert torch.equal(cached, full)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - ANY_SIZE))
def test_unets_that_take_no_other_sizes(tiny, name):
    """Plain or not: diffusers' own error."""
    unet = tiny.unet(name)
    inputs = tiny.inputs(unet, size=(18, 14))
    for run in (lambda: unet(**inputs), lambda: build_views(unet, 1).run_full(inputs)):
        with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            run()


def controlnet_residuals(unet, batch=2, size=16):
    generator = torch.Generator().manual_seed(3)
    shapes = [(batch, s.channels, size // s.stride, size // s.stride) for s in skip_table(unet)]
    down = [torch.randn(shape, generator=generator) for shape in shapes]
    return {
        "down_block_additional_residuals": down,
        "mid_block_additional_residual": torch.randn(shapes[-1], generator=generator),
    }


def test_controlnet_residuals_reach_the_layers_that_run(tiny):
    unet = tiny.unet("sd")
    plain, inputs = tiny.inputs(unet), {**tiny.inputs(unet), **controlnet_residuals(unet)}
    for b in range(9):
        full, cached, _ = run_both(unet, b, inputs)
        assert torch.equal(full, unet(**inputs)[0])
        assert torch.equal(cached, full)
        assert not torch.equal(cached, unet(**plain)[0])


def adapter_states(unet):
    generator = torch.Generator().manual_seed(4)
    sizes = [(16, 16), (32, 8), (32, 4)]  # one per down block, at its last layer
    return [torch.randn(2, c, s, s, generator=generator) for c, s in sizes]


def test_t2i_adapter_states_reach_the_blocks_that_run_whole(tiny):
    unet = tiny.unet("sd")

    def inputs():  # diffusers pops the states it has used
        return {**tiny.inputs(unet), "down_intrablock_additional_residuals": adapter_states(unet)}

    reference = unet(**inputs())[0]
    for b in range(9):
        views = build_views(unet, b)
        full, feature = views.run_full(inputs())
        assert torch.equal(full[0], reference)
        assert torch.equal(views.run_cached(inputs(), feature)[0], reference)


def test_freeu_edits_do_not_reach_the_stored_feature(tiny):
    unet = tiny.unet("sd")
    unet.enable_freeu(s1=0.6, s2=0.4, b1=1.3, b2=1.5)
    inputs = tiny.inputs(unet)
    reference = unet(**inputs)[0]
    for b in range(9):
        views = build_views(unet, b)
        full, feature = views.run_full(inputs)
        assert torch.equal(full[0], reference)
        for _ in range(3):  # FreeU scales in place: each reuse must see the same feature
            assert torch.equal(views.run_cached(inputs, feature)[0], reference)


def test_views_follow_changes_of_the_model(tiny):
    unet = tiny.unet("sd")
    views = build_views(unet, 1)
    assert views.fingerprint.is_current()
    unet.conv_in.weight.add_(0.01)
    assert views.fingerprint.is_current()  # shared leaves need no rebuilding
    unet.enable_freeu(s1=0.6, s2=0.4, b1=1.3, b2=1.5)
    assert not views.fingerprint.is_current()
    views = build_views(unet, 1)
    unet.up_blocks[2].resnets[0] = unet.up_blocks[2].resnets[1]
    assert not views.fingerprint.is_current()
    views = build_views(unet, 1)
    unet.conv_in = torch.nn.Conv2d(4, 16, 3, padding=1)
    assert not views.fingerprint.is_current()
