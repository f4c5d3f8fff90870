"""Two-graph execution: each view recorded once as a CUDA graph and replayed, with no Python per layer.

A graph repeats the same kernels on the same addresses. What changes between evaluations therefore lies in buffers, which are
written before a replay if their source is another tensor or was written to; what comes out is copied, since the next replay
writes there again. What a graph has fixed (modules, parameters, attributes) is compared with the model before each
replay, and whatever differs is recorded anew. Where nothing can be recorded, evaluations are eager, and ``Log`` says why.
"""

from __future__ import annotations

import itertools
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils._pytree import (  # diffusers registers its outputs there
    TreeSpec,
    tree_flatten,
    tree_leaves,
    tree_map_only,
    tree_unflatten,
)

from .capture import CudaGraphs, Recorder
from .held import Held, Memo, Unchanged, autocast
from .lora import LoraScales
from .snapshot import Snapshot, hooked

COUNTED = ("encoder_hidden_states", "feature", "constants", "controlnet_cond")
"""Inputs that last for several evaluations, and so are copied only where they were exchanged or written to. Others may come from
graphs of other makers, which write to the same tensors again and leave no mark."""
MOST = 8
"""Recordings that one step keeps, of different shapes; the one that was not used for longest goes first."""


@dataclass
class Log:
    """What was recorded for one accelerated U-Net, and why evaluations were eager."""

    recordings: int = 0
    """Ever made."""
    nbytes: int = 0
    """Of those that are there: buffers and what the graphs hold."""
    eager: dict[str, int] = field(default_factory=dict)
    """Evaluations by the reason why they were not replayed."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def note(self, reason: str) -> None:
        with self.lock:
            self.eager[reason] = self.eager.get(reason, 0) + 1
        if self.eager[reason] == 1:
            warnings.warn(f"unetaccel: compile='graphs' runs eager here: {reason}", stacklevel=2)

    def add(self, nbytes: int, recordings: int = 0) -> None:
        with self.lock:
            self.nbytes += nbytes
            self.recordings += recordings

    def __str__(self) -> str:
        told = [f"{self.recordings} CUDA graphs recorded, {self.nbytes:,} bytes"] if self.recordings else []
        told += [f"{count} calls eager so far: {reason}" for reason, count in self.eager.items()]
        return "; ".join(told) or "CUDA graphs, none recorded yet"


class Buffer:
    """A tensor at a fixed address that follows others."""

    @torch.inference_mode(False)  # tensors made in inference mode could not be written outside it
    def __init__(self, source: torch.Tensor):
        self.tensor = torch.empty_like(source)
        self.nbytes = self.tensor.nbytes
        self._source: Callable[[], torch.Tensor | None] = lambda: None
        self._version: int | None = None

    def forget(self) -> None:
        """Take what comes next for another."""
        self._version = None

    def differs(self, source: torch.Tensor) -> bool:
        """Whether ``source`` may hold something else than what was written last."""
        return self._source() is not source or self._version is None or self._version != _version(source)

    def follows(self, source: torch.Tensor) -> None:
        """Remember that this was written from ``source``."""
        self._source, self._version = weakref.ref(source), _version(source)


def _memory(x: torch.Tensor) -> int:
    """Which memory a tensor lies in, all of it or a part."""
    return x.untyped_storage().data_ptr()


def _version(x: torch.Tensor) -> int | None:
    return None if x.is_inference() else x._version


class Kept:
    """What a layer made of a buffer, in memory that a graph reads: made anew when either has changed."""

    def __init__(self, layer: nn.Module, given: torch.Tensor, value: torch.Tensor):
        self.given, self.value = given, value
        self._layer, self._unchanged = layer, Unchanged(layer)

    def refresh(self, stale: bool) -> None:
        """Compute anew if ``stale``, or if the layer is not as it was."""
        if not stale and self._unchanged.is_current():
            return
        self.value.copy_(self._layer(self.given))
        self._unchanged = Unchanged(self._layer)


class Recording:
    """One step for inputs of one structure.

    Args:
        step: called with keyword arguments as they are in ``spec`` and ``others``.
        tensors: inputs of this structure, to record with.
        counted: of each, whether every write to it is counted (see ``COUNTED``).
        helds: stand-ins whose values are inputs too; those that hold nothing are left alone.
        memos: stand-ins whose values are computed here whenever what they are given has changed.
    """

    def __init__(
        self,
        step,
        spec: TreeSpec,
        others: list,
        tensors: list,
        counted: list[bool],
        helds: list[Held],
        memos: list[Memo],
    ):
        self.buffers = [Buffer(t) for t in tensors]
        self._uncounted = [b for b, known in zip(self.buffers, counted, strict=True) if not known]
        self._state: object = None
        self._step, self._spec, self._others, self._helds = step, spec, others, helds
        self._write(tensors)
        self._memos = memos

    @torch.inference_mode(False)  # what is kept is written later, perhaps outside of it
    @torch.no_grad()
    def make(self, recorder: Recorder) -> None:
        """Record. May raise whatever the step raises when it is recorded."""
        values, memos = [h.value for h in self._helds], self._memos
        try:
            for memo in memos:
                memo.clear()
            self._recorded = recorder.record(self._work, [b.tensor for b in self.buffers])
            given = {_memory(b.tensor) for b in self.buffers}
            self._kept = [Kept(m.layer, *pair) for m in memos for pair in m.results if _memory(pair[0]) in given]
        finally:
            for held, value in zip(self._helds, values, strict=True):
                held.value = value
            for memo in memos:
                memo.clear()
        self.nbytes = self._recorded.nbytes + sum(b.nbytes for b in self.buffers)
        self.nbytes += sum(kept.value.nbytes for kept in self._kept)

    def _work(self, *tensors: torch.Tensor) -> object:
        inputs, values = tensors[: len(tensors) - len(self._helds)], tensors[len(tensors) - len(self._helds) :]
        for held, value in zip(self._helds, values, strict=True):
            held.value = value
        given = iter(inputs)
        leaves = [next(given) if leaf is TENSOR else leaf for leaf in self._others]
        return self._step(**tree_unflatten(leaves, self._spec))

    def run(self, tensors: list[torch.Tensor], state: object) -> object:
        """Replay with these inputs; what is remembered of another ``state`` may not be true any more."""
        stale, self._state = state != self._state, state
        for buffer in self.buffers if stale else self._uncounted:
            buffer.forget()
        written = self._write(tensors)
        for kept in self._kept:
            kept.refresh(stale or _memory(kept.given) in written)
        self._recorded.replay()
        return tree_map_only(torch.Tensor, torch.clone, self._recorded.result)

    def _write(self, tensors: list[torch.Tensor]) -> set[int]:
        """Write the buffers whose sources differ; returns where these lie."""
        changed = [(b, t) for b, t in zip(self.buffers, tensors, strict=True) if b.differs(t)]
        for _, group in itertools.groupby(
            changed, key=lambda pair: (pair[0].tensor.device, pair[1].device, pair[1].dtype)
        ):
            buffers, sources = zip(*group, strict=True)
            torch._foreach_copy_([b.tensor for b in buffers], list(sources))
        for buffer, tensor in changed:
            buffer.follows(tensor)
        return {_memory(b.tensor) for b, _ in changed}


TENSOR = object()
"""Stands for a tensor among the leaves of inputs."""


class GraphedStep:
    """Stands for a step of a view: recorded at the first call with inputs of each structure, replayed from then on.

    Args:
        step: ``FullStep``, ``CachedStep`` or ``PlainStep``.
        scales: of the U-Net that the step is of.
        recorder: shared by the steps of one set of views.
        log: to report to.
    """

    def __init__(self, step: nn.Module, scales: LoraScales, recorder: Recorder, log: Log):
        self._step, self._scales, self._recorder, self._log = step, scales, recorder, log
        self._recordings: list[tuple[object, Recording]] = []  # the latest used last
        self._snapshot: Snapshot | None = None
        self._obstacle: str | None = None
        self._helds: list[Held] = []
        self._refused: list[tuple[object, str]] = []
        self._forgotten = 0
        weakref.finalize(self, _forget, log, self._recordings)

    def forget(self) -> None:
        """Compute anew what is remembered of weights and conditions: they may have changed without a mark."""
        self._forgotten += 1

    def __call__(self, **inputs):
        inputs = self._scales.follow(inputs)
        reason = self._why_eager(inputs["sample"])
        if reason is None:
            tensors, counted, key = self._read(inputs)
            recording = self._recording(key, tensors, counted)
            if isinstance(recording, Recording):
                self._recorder.in_turn(inputs["sample"])
                return recording.run(tensors, (self._forgotten, self._scales.changes))
            reason = recording
        self._log.note(reason)
        return self._step(**inputs)

    def _why_eager(self, sample: torch.Tensor) -> str | None:
        if torch.is_grad_enabled():
            return "gradients are asked for (use torch.no_grad)"
        if autocast(sample) is not None:
            return "autocast is on"
        reason = self._recorder.why_not(sample)
        if reason is None and (self._snapshot is None or not self._snapshot.is_current()):
            self._drop()
            self._snapshot, self._obstacle = Snapshot(self._step), _obstacle(self._step)
            self._helds = [m for m in self._step.modules() if isinstance(m, Held)]
        return reason or self._obstacle

    def _read(self, inputs: dict) -> tuple[list[torch.Tensor], list[bool], tuple]:
        """The tensors of an evaluation, whether writes to each are counted, and what else there is of it: recordings of another
        key cannot serve it.
        """
        device = inputs["sample"].device
        lasting = {id(leaf) for name in COUNTED for leaf in tree_leaves(inputs.get(name))}
        if not isinstance(inputs["timestep"], torch.Tensor) or inputs["timestep"].device != device:
            inputs = {**inputs, "timestep": torch.as_tensor(inputs["timestep"], device=device)}
        leaves, spec = tree_flatten(inputs)
        helds = [h for h in self._helds if h.value is not None]
        given = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        tensors, counted = given + [h.value for h in helds], [id(t) in lasting for t in given] + [True] * len(helds)
        others = [TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        return tensors, counted, (spec, others, [(t.shape, t.dtype, t.device) for t in tensors], helds)

    def _recording(self, key: tuple, tensors: list[torch.Tensor], counted: list[bool]) -> Recording | str:
        """The recording for this key, made if there is none; or why it cannot be."""
        for i, (known, recording) in enumerate(self._recordings):
            if known == key:
                self._recordings.append(self._recordings.pop(i))
                return recording
        refused = next((reason for known, reason in self._refused if known == key), None)
        return refused or self._record(key, tensors, counted)

    def _record(self, key: tuple, tensors: list[torch.Tensor], counted: list[bool]) -> Recording | str:
        spec, others, _, helds = key
        memos = [m for m in self._step.modules() if isinstance(m, Memo)]
        recording = Recording(self._step, spec, others, tensors, counted, helds, memos)
        try:
            recording.make(self._recorder)
        except (RuntimeError, NotImplementedError) as error:  # an operation that waits for the device, or no memory
            reason = f"recording failed ({str(error).splitlines()[0]})"
            self._refused.append((key, reason))
            return reason
        while len(self._recordings) >= MOST:
            self._log.add(-self._recordings.pop(0)[1].nbytes)
        self._recordings.append((key, recording))
        self._log.add(recording.nbytes, recordings=1)
        return recording

    def _drop(self) -> None:
        _forget(self._log, self._recordings)
        self._refused.clear()


def _forget(log: Log, recordings: list) -> None:
    log.add(-sum(recording.nbytes for _, recording in recordings))
    recordings.clear()


def _obstacle(step: nn.Module) -> str | None:
    """Why a replay of this step would leave something out."""
    names = hooked(step)
    if names:
        return f"{len(names)} layers have hooks (first: {names[0]}), which no graph would run"
    if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0 for m in step.modules()):
        return "the U-Net is in training mode, and drops out at random (unet.eval())"
    return None


def graphed(
    steps: Iterable[nn.Module], scales: LoraScales, log: Log, recorder: Recorder | None = None
) -> list[GraphedStep]:
    """``steps`` of one set of views, replayed from recordings."""
    recorder = recorder or CudaGraphs()
    return [GraphedStep(step, scales, recorder, log) for step in steps]
