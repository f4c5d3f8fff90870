"""Handle: what ``apply`` returns. Looks into an accelerated pipeline, and takes it back."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager

from torch import nn

from .accelerated import face, faced
from .controlnet import AcceleratedControlNet, controlnet_engine, why_in_full
from .engine import Engine
from .errors import SettingError, check_count
from .run import Run, current_run
from .schedule import pattern
from .summary import Summary, summarize
from .timeline import of_numbers


class Plan(tuple):
    """One flag per evaluation, True where it is full; prints as ``F..F..``."""

    def __str__(self) -> str:
        return pattern(self)

    def __repr__(self) -> str:
        return f"Plan({pattern(self)}, {sum(self)} full of {len(self)})"


class Handle(AbstractContextManager):
    """An applied set of methods.

    Attributes:
        unet: the accelerated U-Net (in a pipeline also ``pipe.unet``).
        pipe: the pipeline, or None for a bare U-Net.
        cut: the skip index in use, after ``"auto"`` and foreign numberings were resolved; None if nothing is reused.
        learned: what the methods can learn, by method and skip index: modules whose parameters are trained and saved. The
            U-Net does not hold them.
    """

    def __init__(self, pipe, unet: nn.Module, engine: Engine):
        self.pipe = pipe
        self.unet = unet
        self.cut = engine.cut
        self.learned = engine.edits.learned
        self._engine = engine

    @property
    def methods(self) -> tuple:
        return self._engine.methods

    @property
    def is_applied(self) -> bool:
        return not self._engine.removed

    def remove(self) -> None:
        """Put the original U-Net back. Calling it again does nothing."""
        self._engine.remove()

    def __exit__(self, *exception) -> None:
        self.remove()

    def run(
        self,
        evaluations: int,
        streams: int = 1,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        guided: bool = False,
    ) -> AbstractContextManager[Run]:
        """One sampling call of a loop of your own: ``with handle.run(50): ... handle.unet(x, t, ...)``.

        Args:
            evaluations: how many U-Net evaluations each stream will make.
            streams: calls per step that see different conditions, such as 2 for separate conditional and
                unconditional passes; they are expected in the same order at every step.
            timesteps, sigmas: one per evaluation, for schedules and forecasts that want them. Give the tensor whose elements the loop
                hands to the U-Net, and ``precompute`` finds its rows on any device (of numbers it does only on the CPU).
            guided: each batch holds an unconditional half and then a conditional one, for ``GuidanceReuse``.

        Raises:
            SettingError: either is not an int of at least 1, a run of this handle is open in this thread, or it was removed.
        """
        check_count("run(evaluations)", evaluations)
        check_count("run(streams)", streams)
        self._refuse_removed()
        timeline = of_numbers(evaluations, timesteps, sigmas)
        open_run = current_run(self._engine)
        if open_run is not None and open_run.per_step is not None:
            raise SettingError(
                "a run of this handle is open already in this thread, and evaluations could not be told apart. "
                "Finish it first, or apply the methods to the U-Net a second time for the other loop"
            )
        if self._engine.guidance and not guided:
            warnings.warn(
                "unetaccel: GuidanceReuse does nothing in this run, which does not say that its batches hold both halves of guidance: "
                "handle.run(..., guided=True)",
                stacklevel=2,
            )
        return self._engine.run(lambda: timeline, streams, lambda: guided)

    def _refuse_removed(self) -> None:
        if not self.is_applied:
            raise SettingError("this handle was removed, and its U-Net runs plain: apply the methods anew")

    def controlnet(self, model: nn.Module) -> nn.Module:
        """``model``, to be called before ``handle.unet`` in a loop of your own: a ControlNet that on cached evaluations makes only the
        residuals that are read, and is compiled or recorded where the U-Net is.

        In a pipeline that is done for ``pipe.controlnet``. Keep what you get as long as you sample, and call it before every evaluation.
        What cannot be shortened comes back as it is, with a warning; calls outside a run, in guess mode, or without
        ``return_dict=False`` make all residuals. Hand these on as they are: strengths are for ``conditioning_scale``, several
        ControlNets for one ``MultiControlNetModel``.

        >>> net = handle.controlnet(net)
        >>> with handle.run(50):
        ...     for t in timesteps:
        ...         down, mid = net(x, t, text, controlnet_cond=image, return_dict=False)
        ...         handle.unet(x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=mid)

        Raises:
            SettingError: it is no module, or the handle was removed.
        """
        if not isinstance(model, nn.Module):
            raise SettingError(f"handle.controlnet takes a ControlNet, got {type(model).__name__}")
        self._refuse_removed()
        why_not = why_in_full(faced(model))
        if why_not:
            warnings.warn(f"unetaccel: this ControlNet runs as it is: {why_not}", stacklevel=2)
        evaluator = controlnet_engine(faced(model), self._engine)
        return model if evaluator is None else face(evaluator, AcceleratedControlNet)

    def plan(self, steps: int) -> Plan:
        """Which evaluations would be full in a call of ``steps`` inference steps with the pipeline's scheduler.

        Second-order schedulers make more evaluations than steps. For a bare U-Net ``steps`` are evaluations.

        Raises:
            SettingError: ``steps`` is not an int of at least 1, or the schedule does not fit.
        """
        return Plan(self._engine.plan(steps, getattr(self.pipe, "scheduler", None)))

    def kept(self, steps: int) -> int:
        """How many features each stream would keep in a call of ``steps`` inference steps.

        Raises:
            SettingError: as ``plan``.
        """
        return self._engine.kept(steps, getattr(self.pipe, "scheduler", None))

    def invalidate(self) -> None:
        """Make the next evaluation full: call it from a callback that changes prompts, adapters or scales.

        It concerns the sampling call that runs in this thread. Between calls it does nothing: each begins with a full
        evaluation.
        """
        run = current_run(self._engine) or self._engine.last
        if run is not None:
            run.invalidate()

    def summary(self) -> Summary:
        """What the latest sampling call did; before any call, only the settings."""
        return summarize(self._engine)

    def __repr__(self) -> str:
        target = type(self.pipe or self.unet).__name__
        state = "applied to" if self.is_applied else "removed from"
        cut = "" if self.cut is None else f", cut {self.cut}"
        return f"<unetaccel {', '.join(map(repr, self.methods))} {state} {target}{cut}>"
