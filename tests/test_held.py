"""Memo: it gives what its layer would, and runs it again for whatever has changed."""

import torch
from torch import nn

from unetaccel.held import Memo


def test_memo():
    layer = nn.Linear(3, 3)
    memo, x, y = Memo(layer, keep=2), torch.randn(2, 3), torch.randn(2, 3)
    with torch.no_grad():
        first = memo(x)
        assert memo(x) is memo(x[:]) is first, "the same memory"
        assert memo(y) is not first
        assert memo(x) is first, "it keeps two"
        memo(torch.randn(2, 3)), memo(torch.randn(2, 3))
        assert memo(x) is not first
        first = memo(x)
        x.add_(1)
        assert torch.equal(memo(x), layer(x))
        assert memo(x) is not first
        first = memo(x)
        first.add_(1)
        assert torch.equal(memo(x), layer(x)), "someone wrote to the result"
        layer.weight.mul_(2)
        assert torch.equal(memo(x), layer(x))
        assert torch.equal(memo(x.T.contiguous().T), layer(x))
        layer.register_forward_hook(lambda *_: torch.zeros(1))
        assert torch.equal(memo(x), torch.zeros(1))
    with torch.inference_mode():
        assert Memo(nn.Linear(3, 3))(torch.ones(1, 3)) is not None
