"""Halves: evaluations of the conditional half of classifier-free guidance alone, and what stands for the other half."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .methods.guidance import GuidanceReuse


class Halves:
    """The state of guidance reuse in one sampling call.

    Args:
        method: when, and what stands for the unconditional half.
        guided: whether the batch of a call has two halves, as far as its pipeline says; asked at each evaluation.
    """

    def __init__(self, method: GuidanceReuse, guided: Callable[[], bool]):
        self._method, self._guided = method, guided
        self.restart()

    def restart(self) -> None:
        """A new trajectory begins."""
        self._pictures: int | None = None
        """How many the loop makes: half of a batch that has two halves."""
        self._difference: torch.Tensor | None = None
        self._at: int | None = None

    def stepped(self, pictures: int | None) -> None:
        """The scheduler made a step of so many pictures."""
        self._pictures = pictures

    def leaves_out(self, index: int, evaluations: int, inputs: dict) -> bool:
        """Whether evaluation ``index`` needs its conditional half only."""
        if index < self._method.first(evaluations) or not self.guides(inputs):
            return False
        return self._method.mode == "drop" or self._at == index - 1

    def note(self, index: int, evaluations: int, output: object) -> None:
        """What an evaluation of both halves gave: its difference is kept, where it is soon wanted."""
        if self._method.mode == "hold" and index + 1 >= self._method.first(evaluations):
            unconditional, conditional = _tensor(output).chunk(2)
            self._difference, self._at = conditional - unconditional, index

    def completed(self, index: int, output: object) -> object:
        """The output of both halves from that of the conditional one."""
        conditional = _tensor(output)
        other = conditional if self._method.mode == "drop" else conditional - self._difference
        self._at = index
        both = torch.cat([other, conditional])
        if isinstance(output, tuple):
            return (both, *output[1:])
        return type(output)(sample=both)

    def guides(self, inputs: dict) -> bool:
        """Whether the batch holds both halves: the call says that it guides, and the batch is twice what is stepped.

        With perturbed attention or several conditions it is three times as much, or guides otherwise.
        """
        if not self._guided():
            return False
        batch = len(inputs["sample"])
        return batch % 2 == 0 if self._pictures is None else batch == 2 * self._pictures


def conditional(value: object, batch: int) -> object:
    """The second half of every tensor whose first dimension is that of the batch, or a multiple of it as with frames."""
    if isinstance(value, torch.Tensor):
        batched = value.ndim and len(value) and len(value) % batch == 0
        return value[len(value) // 2 :] if batched else value
    if isinstance(value, dict):
        return {name: conditional(part, batch) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(conditional(part, batch) for part in value)
    return value


def _tensor(output: object) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output.sample
