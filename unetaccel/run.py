"""Run: the state of one sampling call. Which evaluation this is, what it may reuse, what it cost.

A Run counts U-Net evaluations; it never looks at the value of a timestep and never reads a tensor.
Evaluations between two scheduler steps belong to different *streams* (two-pass guidance), each
with its own feature.
"""

from __future__ import annotations

import contextvars
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from .clock import StepClock
from .halves import Halves, conditional
from .inputs import ADAPTER_STATES, MID_RESIDUAL, RESIDUALS
from .methods import ReuseMethod
from .residuals import refuse_changed, refuse_short, summed
from .stream import Stream
from .timeline import Timeline
from .views import Views
from .watching import LAG, Watch

MAX_STREAMS = 8


@dataclass
class Report:
    """What happened in one sampling call; kept after the call, without any feature."""

    timeline: Timeline
    planned: list[bool]
    why_plain: str | None = None
    """Why nothing is reused in this call, where that was not asked for."""
    kinds: list[list[bool]] = field(default_factory=list)
    """Per stream, one flag per evaluation: True for full."""
    halved: list[list[bool]] = field(default_factory=list)
    """Per stream, one flag per evaluation: True where only the conditional half was evaluated."""
    clock: StepClock = field(default_factory=StepClock)
    watch: Watch = field(default_factory=Watch)
    """How far off forecasts are, as far as full evaluations tell."""
    predicted: list[float] | None = None
    """By evaluation, how far off they should be."""
    refreshed: int = 0
    """Evaluations that were made full because of that."""
    cached_bytes: int = 0
    precomputed_bytes: int = 0
    """Size of what was computed beforehand, at the end of the call."""
    left_out: tuple[str, ...] = ()
    """Why not all was computed beforehand, or by kernels, where that was asked for."""
    hoisted: int = 0
    """Cached evaluations that were given what the layer at the cut makes of F."""
    constants: int = 0
    """How often that was made."""
    inputs: object = None
    """Structure of the first evaluation's inputs, see ``structure``."""

    @property
    def plain(self) -> bool:
        """Nothing is reused, so nothing is stored either."""
        return all(self.planned)


class Run:
    """One sampling call. ``timeline`` is asked for when the first evaluation comes.

    Args:
        owner: the engine whose calls belong to this run.
        reuse: the reuse method; it turns the timeline into one flag per evaluation.
        borrow: gives the views to run on; asked again whenever these are not current any more.
        timeline: what is known of the call once its timesteps are set.
        streams: evaluations per step, or None if ``step`` is called after each scheduler step.
        strengths: from the timeline, how strongly each skip method acts at each evaluation.
        halves: guidance reuse, or None.
        kernels: what forecasts are blended by, see ``ops``.
    """

    def __init__(
        self,
        owner: object,
        reuse: ReuseMethod,
        borrow: Callable[[], Views],
        timeline: Callable[[], Timeline],
        streams: int | None = None,
        strengths: Callable[[Timeline], list[list[float] | None]] = lambda timeline: [],
        halves: Halves | None = None,
        kernels: str = "auto",
    ):
        self.owner = owner
        self.closed = False
        self.views: Views | None = None
        self.per_step = streams
        self._reuse, self._borrow, self._timeline = reuse, borrow, timeline
        self._strengths_of, self._strengths = strengths, []
        self._halves, self._kernels = halves, kernels
        self.restart()

    def restart(self) -> None:
        """Forget everything: the scheduler's timesteps were set, so a new trajectory begins."""
        self.visits: int | None = None
        """How many of the scheduler's timesteps the loop will visit, where the pipeline has said so since."""
        self._index = self._calls = 0
        self._calls_before: int | None = None
        self._timestep = self._stepped = None
        self._streams: list[Stream] = []
        self._report: Report | None = None
        self._half = False
        if self._halves is not None:
            self._halves.restart()
        self._forget_residuals()

    def step(self, pictures: int | None = None) -> None:
        """The scheduler made a step, of so many pictures: the next evaluation is the next index of the first stream."""
        if self._halves is not None:
            self._halves.stepped(pictures)
        if self._calls_before not in (None, self._calls):
            self.invalidate()  # guidance was switched on or off: streams have moved
        self._calls_before, self._stepped = self._calls, self._timestep
        self._index += 1
        self._calls = 0
        self._forget_residuals()
        self._mend()

    def _mend(self) -> None:
        """Make this evaluation full if the plan turned out too sparse, and forecast from it too from then on."""
        report = self._report
        if report is None or not report.watch.exceeds(self._index - LAG):
            return
        if self._index >= len(report.planned) or report.planned[self._index]:
            return
        report.planned[self._index] = True
        report.refreshed += 1
        self._follow_plan(report)
        for stream in self._streams:
            stream.follow(self._tables)

    def _follow_plan(self, report: Report) -> None:
        """What follows from the plan as it stands."""
        reuse = self._reuse
        self._tables = reuse.tables(report.timeline, report.planned)
        report.predicted = reuse.predicted(report.timeline, report.planned)
        report.watch.limits = reuse.limits(report.timeline, report.planned)

    def invalidate(self) -> None:
        """Make the next evaluation of every stream a full one."""
        for stream in self._streams:
            stream.forget()
        if self.views is not None:
            self.views.forget()

    def close(self) -> None:
        """Free the features; ``report`` stays."""
        self.closed = True
        if self.views is not None and self._report is not None:
            self._report.left_out = self.views.left_out
            self._report.precomputed_bytes = self.views.known_bytes
        self._streams, self._tables = [], None
        self._timestep = self._stepped = None
        self._forget_residuals()

    @property
    def report(self) -> Report | None:
        """What happened since the timesteps were last set; None before the first evaluation."""
        return self._report

    def evaluate(self, inputs: dict, plain: Callable[..., object]) -> object:
        """One evaluation with keyword ``inputs``: full, cached, or ``plain(**inputs)`` in a call that reuses nothing."""
        if self._report is None:
            self._begin(inputs)
        self._notice_repeated_steps(inputs["timestep"])
        stream = self._stream()
        self._unread.clear()
        output = self._evaluate_both(stream, inputs, plain)
        self._calls += 1
        if self._calls == self.per_step:
            self.step()
        return output

    def _evaluate_both(self, stream: Stream | None, inputs: dict, plain: Callable[..., object]) -> object:
        """Of both halves of guidance; or of the conditional one alone, where the other is reused."""
        if stream is None:
            return plain(**self._completed(inputs))
        if self._halves is None or self._calls:
            return self._evaluate(stream, inputs, plain)
        index, T = self._index, len(self._report.planned)
        self._half = self._halves.leaves_out(index, T, inputs)
        if not self._half:
            output = self._evaluate(stream, inputs, plain)
            if self._halves.guides(inputs):
                self._halves.note(index, T, output)
            return output
        half = conditional(inputs, len(inputs["sample"]))
        if stream.inputs == structure(inputs):
            stream.halve(structure(half))
        return self._halves.completed(index, self._evaluate(stream, half, plain))

    def _evaluate(self, stream: Stream, inputs: dict, plain: Callable[..., object]) -> object:
        report, made_for, condition = self._report, structure(inputs), _condition(inputs)
        full = self._is_full(stream, made_for, condition)
        with report.clock.measure(None if self._half else full, inputs["sample"].device):
            if report.plain:
                output = plain(**self._completed(inputs))
            elif full:
                output = self._run_full(stream, inputs, made_for)
            else:
                output = self._run_cached(stream, inputs)
            report.cached_bytes = max(report.cached_bytes, sum(s.nbytes for s in self._streams))
        stream.condition = condition
        report.kinds[self._calls].append(full)
        report.halved[self._calls].append(self._half)
        return output

    def _run_cached(self, stream: Stream, inputs: dict) -> object:
        """A cached evaluation, from what the stream makes of its features."""
        views = self._views_for(inputs, cached=True)
        before, known = stream.made, stream.known(self._index, views.hoisted)
        self._report.hoisted += bool(known)
        self._report.constants += stream.made - before
        return views.run_cached(inputs, stream.forecast(self._index), **known)

    def _run_full(self, stream: Stream, inputs: dict, made_for: object) -> object:
        """A full evaluation, whose feature the stream keeps: beside the last ones, if it was planned and nothing has changed."""
        planned = self._index < len(self._report.planned) and self._report.planned[self._index]
        expected = None
        if not (planned and stream.ring and stream.inputs == made_for):
            stream.restart(self._tables(self._index))
        elif self._reuse.observes:
            expected = stream.expected(self._index)
        with stream.next_slot() as keep:
            output, feature = self._views_for(inputs).run_full(self._completed(inputs))
            if expected is not None:
                self._report.watch.note(self._index, feature, expected)
            keep(feature)
        stream.inputs = made_for
        return output

    def _begin(self, inputs: dict) -> None:
        timeline = self._timeline()
        report = Report(
            timeline, self._reuse.flags(timeline), self._reuse.why_plain(timeline), inputs=structure(inputs)
        )
        self._strengths = self._strengths_of(timeline)
        self._follow_plan(report)
        self._report = report
        if report.why_plain:
            _warn(f"{report.why_plain}. DeepCache(force=True) caches all the same.")

    def _notice_repeated_steps(self, timestep: object) -> None:
        """Panorama-like pipelines step several times at one timestep, each for another part of the picture."""
        self._timestep = timestep
        repeated = self.per_step is None and isinstance(timestep, torch.Tensor) and timestep is self._stepped
        if repeated and not self._report.plain:
            self.invalidate()
            self._report.planned = [True] * len(self._report.planned)
            self._report.why_plain = "the pipeline makes several scheduler steps at one timestep"
            _warn(f"{self._report.why_plain}, so neighbouring evaluations are of different pictures.")

    def _stream(self) -> Stream | None:
        """The stream of this evaluation; None past ``MAX_STREAMS`` calls without a scheduler step."""
        if self._calls >= MAX_STREAMS:
            return None
        if self._calls == len(self._streams):
            self._streams.append(Stream(self._tables(0), self._kernels))
            self._report.kinds.append([])
            self._report.halved.append([])
        return self._streams[self._calls]

    def reuses_next(self, controlnet: object) -> bool:
        """Whether the next evaluation will be a cached one, unless its inputs turn out to be of another structure.

        It may not be, where ``controlnet`` has been called for it already.
        """
        if (
            self._report is None
            or controlnet in self._unread
            or self._calls >= len(self._streams)
            or self._index >= len(self._report.planned)
        ):
            return False
        return not self._report.planned[self._index] and bool(self._streams[self._calls].ring)

    def expect_residuals(self, controlnet: object, complete: Callable[[], tuple[list, torch.Tensor]]) -> None:
        """A ControlNet made only what the next evaluation is to read, and a mid residual of no dimensions.

        ``complete`` makes all residuals. Not kept on them: offload hooks copy what passes them.
        """
        if not self._unread:
            self._residuals = []
        self._residuals.append(complete)
        self._unread.add(controlnet)

    def _forget_residuals(self) -> None:
        self._residuals: list[Callable] = []
        self._unread: set[object] = set()

    def _completed(self, inputs: dict) -> dict:
        """The inputs with all residuals, for an evaluation that must be full though a cached one was expected."""
        mid = inputs.get(MID_RESIDUAL)
        if not isinstance(mid, torch.Tensor) or inputs.get(RESIDUALS) is None:
            return inputs
        if mid.ndim or not self._residuals:  # made in full after all
            refuse_short(inputs[RESIDUALS], len(self.owner.layout.skips))
            return inputs
        down, mid = summed([complete() for complete in self._residuals])
        if self._half:
            down, mid = conditional([down, mid], len(mid))
        refuse_changed(inputs[RESIDUALS], down)
        return {**inputs, RESIDUALS: down, MID_RESIDUAL: mid}

    def _is_full(self, stream: Stream, made_for: object, condition: int | None) -> bool:
        planned = self._report.planned
        beyond = self._index >= len(planned)
        if beyond or planned[self._index] or not stream.ring or stream.inputs != made_for:
            return True
        return condition != stream.condition and any(condition == s.condition for s in self._streams)

    def fresh_views(self, cached: bool = False) -> Views:
        """The views that this run evaluates on, made anew if the model has changed (for ``cached``, in what they read)."""
        if self.views is None or not self.views.are_current(cached):
            self.views = self._borrow()
        return self.views

    def _views_for(self, inputs: dict, cached: bool = False) -> Views:
        """Fresh views, with the skip methods at the strength that they have at this evaluation."""
        views = self.fresh_views(cached)
        if self._strengths:
            at = [None if table is None else table[min(self._index, len(table) - 1)] for table in self._strengths]
            views.sites.set(at, inputs["sample"].device)
        views.foresee(inputs, self._report.timeline.timesteps)
        return views

    def run_plain(self, inputs: dict) -> object:
        """One evaluation of the whole U-Net with its skips edited, for which nothing is kept."""
        return self._views_for(inputs).run_plain(inputs)


def _condition(inputs: dict) -> int | None:
    """Where the condition of an evaluation lies in memory; tells streams apart without reading it."""
    tensor = inputs.get("encoder_hidden_states")
    if tensor is None:
        tensor = inputs.get("class_labels")
    return tensor.data_ptr() if type(tensor) is torch.Tensor else None


def _warn(reason: str) -> None:
    warnings.warn(f"unetaccel: caching is off for this call: {reason}", stacklevel=2)


GIVEN = "given"
_BY_PRESENCE = (RESIDUALS, MID_RESIDUAL, ADAPTER_STATES)


def structure(value: object) -> object:
    """What of the inputs must stay the same for a feature to be reusable: shapes, dtypes, devices, presence.

    Values are ignored (timesteps, scales), so nothing is read from a device.
    """
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype, value.device
    if isinstance(value, dict):
        return tuple(
            (k, GIVEN if k in _BY_PRESENCE else structure(v))
            for k, v in value.items()
            if v is not None and k != "timestep"
        )
    if isinstance(value, list | tuple):
        return tuple(map(structure, value))
    return type(value)


_ACTIVE: contextvars.ContextVar[tuple[Run, ...]] = contextvars.ContextVar("unetaccel_runs", default=())


def current_run(owner: object) -> Run | None:
    """The innermost open run of ``owner`` in this thread (or asyncio task)."""
    return next((r for r in reversed(_ACTIVE.get()) if r.owner is owner and not r.closed), None)


@contextmanager
def active(run: Run) -> Iterator[Run]:
    """Make ``run`` the current one of its owner until the block ends or raises.

    No ContextVar token is kept: a generator that is abandoned half-way may be closed in another
    context, where resetting by token is an error. Closed runs are skipped and swept instead.
    """
    _ACTIVE.set((*(r for r in _ACTIVE.get() if not r.closed), run))
    try:
        yield run
    finally:
        run.close()
        _ACTIVE.set(tuple(r for r in _ACTIVE.get() if not r.closed))
