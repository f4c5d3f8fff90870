"""Overlays share everything but the replaced nodes, and write nothing."""

import pytest
import torch
from torch import nn

from unetaccel.overlay import Fingerprint, overlay


@pytest.fixture
def tree():
    return nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "b": nn.Linear(2, 2)})


def test_only_the_path_is_copied(tree):
    new = nn.Linear(2, 2)
    before = {name: (id(m), dict(m.__dict__), dict(m._modules)) for name, m in tree.named_modules()}
    other = overlay(tree, {"a.1": new})
    assert other["a"][1] is new
    assert other["a"][0] is tree["a"][0]
    assert other["b"] is tree["b"]
    assert other["a"] is not tree["a"]
    assert {name: (id(m), dict(m.__dict__), dict(m._modules)) for name, m in tree.named_modules()} == before


def test_copies_share_parameters_that_are_set_later(tree):
    holder = nn.Linear(2, 2)
    holder.add_module("child", nn.Linear(2, 2))
    other = overlay(holder, {"child": nn.Identity()})
    holder.weight = nn.Parameter(torch.ones(2, 2))
    assert other.weight is holder.weight


def test_none_empties_a_place_and_a_plain_none_can_be_filled(tree):
    assert overlay(tree, {"b": None}).b is None
    block = nn.Linear(2, 2)
    block.upsamplers = None
    filled = overlay(block, {"upsamplers": nn.Identity()})
    assert isinstance(filled.upsamplers, nn.Identity)
    assert block.upsamplers is None


def test_an_unknown_path_is_an_error_that_lists_what_exists(tree):
    with pytest.raises(KeyError, match=r"no child 'c' \(path 'c.d'\); it has \['a', 'b'\]"):
        overlay(tree, {"c.d": nn.Identity()})


def test_a_callable_bound_to_the_original_is_not_inherited(tree):
    tree.forward = tree.forward  # what DeepCacheSDHelper.disable() leaves
    tree.__dict__["_compiled_call_impl"] = lambda *_: "original"
    other = overlay(tree, {"b": nn.Identity()})
    assert other._compiled_call_impl is None
    assert "forward" not in other.__dict__


def test_fingerprint_sees_structure_and_attributes_but_not_weights(tree):
    mark = Fingerprint([tree, tree["a"]])
    with torch.no_grad():
        tree["b"].weight.add_(1)
    assert mark.is_current()
    tree["a"].s1 = 0.5
    assert not mark.is_current()
    mark = Fingerprint([tree, tree["a"]])
    tree["b"] = nn.Linear(2, 2)
    assert not mark.is_current()
