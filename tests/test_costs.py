"""MAC counts agree with those counted independently for the real architectures."""

from itertools import pairwise

import pytest
import torch

import unetaccel
from unetaccel import DeepCache, UnsupportedModelError
from unetaccel.costs import count_macs, cut_costs, example_inputs
from unetaccel.execution import Execution
from unetaccel.inspection import inspect_unet
from unetaccel.run import structure
from unetaccel.shapes import SHAPES, build_shape
from unetaccel.skips import skip_table
from unetaccel.views import build_views

COUNTED = {  # GMACs of a full step, then shares of cached steps in % for cuts 0..3
    "sd15": (401.6, [7.9, 22.4, 38.0, 47.0]),
    "sdxl": (3380.6, [1.5, 3.8, 6.6, 12.9]),
    "ddpm-cifar": (6.22, [7.9, 20.6, 36.0, 54.4]),
    "ddpm-lsun256": (248.5, [12.7, 33.0, 53.3, 61.3]),
}
CEILINGS = {"sd15": {2: 1.85, 3: 2.59, 5: 3.80, 10: 5.85}, "sdxl": {2: 1.97, 3: 2.92, 5: 4.73, 10: 8.85}}
PAPER_AVERAGE = [1.60, 2.24, 3.01, 3.89, 4.58, 5.31]  # GMACs at interval 5, table 12, branches 1 to 6


@pytest.mark.parametrize("name", COUNTED)
def test_shares_and_ceilings_of_known_models(name):
    unet = build_shape(name, device="meta")
    full, shares = COUNTED[name]
    costs = list(cut_costs(unet, example_inputs(unet), range(4)))
    assert costs[0].full_macs / 1e9 == pytest.approx(full, rel=2e-3)
    assert [100 * c.share for c in costs] == pytest.approx(shares, abs=0.06)
    for interval, ceiling in CEILINGS.get(name, {}).items():
        assert costs[0].ceiling(interval) == pytest.approx(ceiling, abs=0.006)


def test_paper_table_12():
    unet = build_shape("ddpm-cifar", device="meta")
    costs = cut_costs(unet, example_inputs(unet), range(6))
    average = [(c.full_macs + 4 * c.cached_macs) / 5 / 1e9 for c in costs]
    assert average == pytest.approx(PAPER_AVERAGE, rel=0.035)  # the paper leaves the products of attention out


def test_deeper_cuts_cost_more(tiny, architecture):
    unet = tiny.unet(architecture)
    cuts = range(len(skip_table(unet))) if architecture == "sd" else (0, 1, 3, 5)
    costs = list(cut_costs(unet, example_inputs(unet, batch=2), cuts))
    assert all(0 < a.share < b.share <= 1 for a, b in pairwise(costs))  # 1: no mid block to skip
    if architecture == "sd":
        twice = list(cut_costs(unet, example_inputs(unet, batch=4), range(4)))
        assert twice[3].feature_bytes == 2 * costs[3].feature_bytes
        assert twice[3].share == pytest.approx(costs[3].share, rel=0.01)


def test_counting_neither_calls_nor_changes_the_model(tiny):
    unet, called = tiny.unet(), []
    unet.conv_in.register_forward_hook(lambda *_: called.append(1))
    before = {name: (id(p), p.data_ptr(), p._version) for name, p in unet.named_parameters()}
    dicts = {name: tuple(m.__dict__) for name, m in unet.named_modules()}
    list(cut_costs(unet, example_inputs(unet)))
    assert {name: (id(p), p.data_ptr(), p._version) for name, p in unet.named_parameters()} == before
    assert {name: tuple(m.__dict__) for name, m in unet.named_modules()} == dicts
    assert not called
    assert torch.is_grad_enabled()


def test_summary_counts_the_call_that_ran(tiny):
    pipe = tiny.pipe()
    with unetaccel.apply(pipe, DeepCache(interval=3, cut=1)) as handle:
        tiny.call(pipe, batch=3, size=64)
        summary = handle.summary()
    unet = pipe.unet
    context = tuple((k, v if k != "encoder_hidden_states" else ((6, 7, 32), torch.float32, torch.device("cpu")))
                    for k, v in example_inputs(unet, batch=6, size=8))  # fmt: skip
    [cost] = cut_costs(unet, context, [1])
    assert summary.cached_macs_share == pytest.approx(cost.share)
    assert summary.macs_share == pytest.approx((4 + 6 * cost.share) / 10)


def test_conditions_that_cannot_be_guessed_are_named(tiny):
    unet = tiny.unet()
    unet.register_to_config(addition_embed_type="image_hint")
    with pytest.raises(UnsupportedModelError, match="addition_embed_type='image_hint'"):
        example_inputs(unet)


def test_inspection_of_every_shape_lists_every_skip():
    for name in SHAPES:
        if not name.startswith("ddpm"):
            continue  # every cut of the others takes seconds
        found = inspect_unet(build_shape(name, device="meta"), name).as_dict()
        assert [row["b"] for row in found["cuts"]] == list(range(len(found["cuts"])))


@pytest.mark.parametrize("name", SHAPES)
def test_scaled_shapes_run(name):
    unet = build_shape(name, scale=0.1)
    inputs = dict(example_inputs(unet, size=64, frames=2))
    sample = torch.zeros(inputs["sample"][0])
    plain = {"encoder_hidden_states", "added_time_ids"} & inputs.keys()
    condition = {name: torch.zeros(inputs[name][0]) for name in plain}
    if "added_cond_kwargs" in inputs:
        condition["added_cond_kwargs"] = {k: torch.zeros(v[0]) for k, v in inputs["added_cond_kwargs"]}
    with torch.no_grad():
        output = unet(sample, 1, **condition).sample
    channels = 2 if name == "svd" else 1  # SVD's U-Net is given as many again as it makes
    assert output.shape[channels] == unet.config.out_channels
    assert output.numel() * unet.config.in_channels == sample.numel() * unet.config.out_channels


OF_THE_FEATURE = {
    "sd15": [13.3, 4.7, 5.2],
    "sdxl": [34.2, 13.1, 14.2],
}  # of a cached evaluation's MACs, in %, at cuts 0 to 2


@pytest.mark.parametrize("shape", OF_THE_FEATURE)
def test_the_share_that_depends_on_the_feature_alone(shape):
    unet = build_shape(shape, device="meta")
    costs = list(cut_costs(unet, example_inputs(unet), range(3)))
    assert [100 * c.constant_macs / c.cached_macs for c in costs] == pytest.approx(OF_THE_FEATURE[shape], abs=0.05)
    first = costs[0]
    assert first.ceiling(10, precompute=True) > first.ceiling(10) * 1.03
    assert first.ceiling(2, precompute=True) == first.ceiling(2)
    assert all(c.hoisted_share < c.share for c in costs)


@torch.no_grad()
def test_counted_macs_are_those_of_the_evaluations(tiny):
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    [cost] = cut_costs(unet, structure(inputs), [1])
    views = build_views(unet, 1, how=Execution(precompute=True))
    _, feature = views.run_full(inputs)
    constants = views.hoisted.constants(feature)
    once = count_macs(lambda: views.hoisted.constants(feature))
    plain = count_macs(lambda: views.run_cached(inputs, feature))
    hoisted = count_macs(lambda: views.run_cached(inputs, feature, constants=constants))
    assert cost.constant_macs == once == plain - hoisted > 0
