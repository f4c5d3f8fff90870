"""What the tests of hoisted entries share: runs with and without, and how often constants were made."""

import torch

import unetaccel
from unetaccel import DeepCache
from unetaccel import hoist as hoisting


def constants_made(monkeypatch) -> list[int]:
    """The batch size of each feature that constants will be made of."""
    sizes = []
    original = hoisting.constants

    def constants(layer, feature):
        sizes.append(len(feature))
        return original(layer, feature)

    monkeypatch.setattr(hoisting, "constants", constants)
    return sizes


@torch.no_grad()
def outputs(tiny, unet, *methods, cut=0, steps=7, interval=3, between=lambda i: None, more=None, **options) -> list:
    """Of evaluations whose inputs change a lot from one to the next; ``between`` is called before each."""
    inputs = {**tiny.inputs(unet), **(more or {})}
    with unetaccel.apply(unet, DeepCache(interval, cut, force=True), *methods, **options) as handle:
        found = []
        with handle.run(steps):
            for i in range(steps):
                between(i)
                at = {"sample": inputs["sample"].roll(i, -1) * (1 + i), "timestep": torch.tensor(900 - 100 * i)}
                found.append(handle.unet(**{**inputs, **at})[0])
        return found


def both(tiny, unet, *methods, **options) -> tuple[list, list]:
    """With constants, and without."""
    return outputs(tiny, unet, *methods, precompute=True, **options), outputs(tiny, unet, *methods, **options)


def assert_close(ours: list, plain: list) -> None:
    """But for rounding, which leaves a mark: else something else has computed them."""
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not all(map(torch.equal, ours, plain))
