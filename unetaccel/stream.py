"""Stream: the full features that one condition of a sampling call keeps, and the forecast from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from .forecast import Row, Table
from .hoist import Constants, HoistedLayer
from .ops import Blend, blends_by_kernel, forecast_blend, weight_table

Rows = tuple[Row | None, ...]


@dataclass
class Stream:
    """What is kept between the evaluations of one condition. Pure bookkeeping: ``table`` says what to do with it."""

    table: Table
    kernels: str = "auto"
    """What forecasts are blended by, see ``ops``."""
    ring: dict[int, torch.Tensor] = field(default_factory=dict)
    """Features (N, C, H, W) by slot: one to hold, more to forecast from."""
    constants: dict[int, tuple[HoistedLayer, Constants]] = field(default_factory=dict)
    """By slot, what the layer at the cut made of the feature there, and the layer that made it."""
    made: int = 0
    """How often constants were."""
    kept: int = 0
    """Full features since the table begins."""
    inputs: object = None
    """Structure of the inputs that they were made for."""
    condition: int | None = None
    _weights: dict[str, tuple[Rows, torch.Tensor]] = field(default_factory=dict, repr=False)
    """Of the table's rows and of its checks, where they lie on the device."""
    _repeating: tuple[Rows | None, bool] = field(default=(None, False), repr=False)

    @property
    def nbytes(self) -> int:
        constants = [tensor for _, pair in self.constants.values() for tensor in pair]
        return sum(tensor.nbytes for tensor in (*self.ring.values(), *constants))

    def forget(self) -> None:
        """Make the next evaluation full."""
        self.ring.clear()
        self.constants.clear()

    def restart(self, table: Table) -> None:
        """Forget all features: what comes has nothing to do with them, and a slope across the change would be wrong."""
        self.forget()
        self.table, self.kept = table, 0

    def halve(self, inputs: object) -> None:
        """Keep of all features the second half, that of the condition; ``inputs`` is the structure of what will follow."""
        self.ring = {slot: _second_half(feature) for slot, feature in self.ring.items()}
        self.constants = {slot: (by, tuple(map(_second_half, pair))) for slot, (by, pair) in self.constants.items()}
        self.inputs = inputs

    def follow(self, tables: Callable[[int], Table]) -> None:
        """Go on by new tables that agree with the present one so far, and keep all features."""
        self.table = tables(self.table.first)

    @contextmanager
    def next_slot(self) -> Iterator[Callable[[torch.Tensor], None]]:
        """Free the slot of the next feature, so that old and new never live side by side; yields what keeps it.

        Where the block fails, nothing is kept: a ring with a hole could not be read.
        """
        slot = self.kept % self.table.slots
        self.ring.pop(slot, None)
        self.constants.pop(slot, None)
        try:
            yield lambda feature: self.ring.__setitem__(slot, feature)
            self.kept += 1
        except BaseException:
            self.forget()
            raise

    def forecast(self, index: int) -> torch.Tensor | Blend:
        """F at the cached evaluation ``index``, (N, C, H, W); where a kernel blends it, what that is to blend."""
        return self._blend("rows", index)

    def expected(self, index: int) -> torch.Tensor:
        """F at the full evaluation ``index`` as it would have been forecast, before that is made."""
        blend = self._blend("checks", index)
        return blend.tensor() if isinstance(blend, Blend) else blend

    def known(self, index: int, layer: HoistedLayer | None) -> dict[str, Constants]:
        """What is known of the cached evaluation ``index`` beside F: ``constants`` of ``layer``, where these repeat.

        They are made at the first evaluation that wants them. Where F is blended anew each time, none are.
        """
        if layer is None or not self._repeats():
            return {}
        [(slot, _)] = self.table.rows[index]
        if not layer.takes(self.ring[slot]):
            return {}
        if slot not in self.constants or self.constants[slot][0] is not layer:
            self.constants[slot] = layer, layer.constants(self.ring[slot])
            self.made += 1
        return {"constants": self.constants[slot][1]}

    def _repeats(self) -> bool:
        """Whether all cached evaluations hold a feature, and some hold the one before's. Asked of the table as a whole, so that
        the cached view is compiled for one kind of evaluation.
        """
        rows = self.table.rows
        if self._repeating[0] is not rows:
            held = all(len(row) == 1 and row[0][1] == 1 for row in rows if row is not None)
            self._repeating = rows, held and any(a is not None and a == b for a, b in pairwise(rows))
        return self._repeating[1]

    def _blend(self, kind: str, index: int) -> torch.Tensor | Blend:
        row, slots = getattr(self.table, kind)[index], self.table.slots
        if row and (slots == 1 or (kind == "rows" and self._repeats())) and row[0][1] == 1:
            return self.ring[row[0][0]]
        features = [self.ring[slot] for slot, _ in row]
        latest = features[-1]
        if any(
            (f.dtype, f.shape) != (latest.dtype, latest.shape) for f in features
        ):  # autocast was switched in between
            return latest
        if not blends_by_kernel(latest, slots, self.kernels):
            held = len(row) == 1 and row[0][1] == 1
            return latest if held else forecast_blend(features, [weight for _, weight in row], backend="torch")
        read = {slot for slot, _ in row}
        features = [self.ring[slot] if slot in read else latest for slot in range(slots)]
        return Blend(tuple(features), self._on_device(kind, latest.device)[index : index + 1])

    def _on_device(self, kind: str, device: torch.device) -> torch.Tensor:
        """The weights of all evaluations by slot, (evaluations, slots), there since the first that wanted them."""
        rows = getattr(self.table, kind)
        known, weights = self._weights.get(kind, (None, None))
        if known is not rows or weights.device != device:
            by_slot = [[dict(row or ()).get(slot, 0.0) for slot in range(self.table.slots)] for row in rows]
            weights = weight_table(by_slot, device)
            self._weights[kind] = rows, weights
        return weights


def _second_half(x: torch.Tensor) -> torch.Tensor:
    return x[len(x) // 2 :].clone()
