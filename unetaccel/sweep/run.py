"""Running a sweep: time, draw, judge. Each stage goes on where it was stopped."""

from __future__ import annotations

import atexit
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch

from ..errors import SettingError, UnetAccelError
from ..quality.moments import is_statistics
from ..sampling import check_size, set_scheduler
from .documents import FILES
from .draw import Store, draw
from .lock import folder_lock
from .prompts import Jobs, read_jobs
from .result import assemble, drawn_rows, judge_rows, real_files, write_result
from .rivals import anchor, rivals
from .rows import Row, expand
from .spec import Sweep, read_sweep
from .timing import Account, Stopwatch
from .warned import Warned, unwarned
from .ways import applied

STAGES = ("time", "draw", "judge")
IDENTITY = (
    "model",
    "prompts",
    "seeds",
    "spacing",
    "scheduler",
    "guidance",
    "size",
    "negative_prompt",
    "dtype",
    "batch",
)
"""What may not change under a folder of pictures; rows and metrics may come and go."""

Say = Callable[[str], None]


def run_sweep(
    sweep: Sweep,
    folder: Path | str,
    out: Path | str | None = None,
    stages: tuple[str, ...] = STAGES,
    device: str | torch.device | None = None,
    say: Say = print,
) -> dict | None:
    """Run a sweep in ``folder``; with several processes (torchrun, accelerate launch) each draws its share.

    Timing is done by the first process while the others wait, so that nothing runs beside it.

    Args:
        folder: pictures and times; run again with the same folder, nothing is done twice.
        out: the result file (JSON) to write, with a strip of pictures per row beside it.
        stages: some of ``time``, ``draw`` and ``judge``.
        device: where to run; by default a CUDA device for each process if there is one, else the CPU.

    Returns:
        The result, or None in processes other than the first and where ``judge`` is not asked for.

    Raises:
        SettingError: the sweep does not fit the model, ``folder`` belongs to a different one, or another run is in it.
    """
    from accelerate import PartialState

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"{str(folder)!r} is a file: name a folder for the sweep's pictures and times")
    with unwarned():
        rows = expand(sweep)
    jobs = read_jobs(sweep.prompts, sweep.seeds)
    ours = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    state = PartialState(cpu=not torch.cuda.is_available() or str(device) == "cpu", timeout=timedelta(days=7))
    if device is not None and torch.device(device).index is not None and state.num_processes > 1:
        raise SettingError(f"device {str(device)!r} is one device, for {state.num_processes} processes: leave it out")
    device = device or state.device
    metrics = _metrics(sweep, device)  # fails before any work
    if not state.is_main_process:
        say = _unsaid
    warned = Warned(say)
    with folder_lock(folder) if state.is_main_process else nullcontext(), unwarned():
        say(f"{sweep.title}: {len(rows)} rows of {len(jobs)} pictures in {folder}")
        pipe = _load(sweep, device)  # before the claim: a sweep that does not fit its model claims no folder
        if state.is_main_process:
            _claim(folder, sweep, jobs, torch.device(device).type if "draw" in stages else None)
        times, store = Times(folder / "times.json"), Store(folder, jobs)
        state.wait_for_everyone()  # nobody loads any more
        if "time" in stages and state.is_main_process:
            measure(pipe, sweep, jobs, rows, times, warned, say)
        state.wait_for_everyone()
        times.load()
        if "draw" in stages:
            _draw(pipe, all_rows(rows, times, sweep), sweep, store, state, warned, say)
            state.wait_for_everyone()
        found = _judge(sweep, rows, times, store, metrics, state, out, say) if "judge" in stages else None
    if ours:
        atexit.register(_leave)
    return found


def _leave() -> None:
    """Destroy the process group while the interpreter lives: threads of a group that is left behind can abort the process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def read_checked(path: Path | str) -> Sweep:
    """``read_sweep``, with errors of its rows that name the file too.

    Raises:
        SettingError: as ``read_sweep`` and ``rows.expand``.
    """
    sweep = read_sweep(path)
    try:
        with unwarned():
            expand(sweep)
    except SettingError as error:
        raise SettingError(f"{str(path)!r}: {error}") from error
    return sweep


def _judge(
    sweep: Sweep, rows: list[Row], times: Times, store: Store, metrics: list, state, out, say: Say
) -> dict | None:
    """Every process judges its share of the rows; the first puts them together."""
    from accelerate.utils import gather_object

    drawn = drawn_rows(sweep, rows, times, store, say)
    judged = judge_rows(sweep, rows, drawn, times, store, metrics, state.process_index, state.num_processes, say)
    judged = gather_object(judged)
    if not state.is_main_process:
        return None
    result = assemble(sweep, drawn, judged, times, store, metrics, state.device)
    if out is not None:
        write_result(result, drawn, store, Path(out))
    return result


def _unsaid(text: str) -> None:
    pass


class Times:
    """``times.json``: the base's seconds and every row's account, written after each round."""

    def __init__(self, path: Path):
        self.path = path
        self.base: str | None = None
        self.base_seconds: list[float] = []
        self.images = 1
        self.environment: dict = {}
        self.accounts: dict[str, Account] = {}
        self.load()

    def load(self) -> None:
        """What the file holds, if there is one."""
        if self.path.is_file():
            data = _read(self.path)
            accounts = {name: Account(**values) for name, values in data.pop("accounts").items()}
            self.__dict__.update(data, accounts=accounts)

    def save(self) -> None:
        data = {k: getattr(self, k) for k in ("base", "base_seconds", "images", "environment")}
        data["accounts"] = {name: asdict(account) for name, account in self.accounts.items()}
        _write(self.path, data)


def measure(
    pipe, sweep: Sweep, jobs: Jobs, rows: list[Row], times: Times, warned: Warned | None = None, say: Say = print
) -> None:
    """Time every row, then the plain rivals that these times name."""
    from ..environment import environment

    base = max((row for row in rows if row.kind == "plain"), key=lambda row: row.steps)
    if times.base not in (None, base.id):
        raise SettingError(
            f"times.json has ratios to {times.base}, but this sweep's base is {base.id}: delete the file"
        )
    watch = Stopwatch(pipe, sweep, jobs, base)
    _same_conditions(times, len(watch.prompts), here := environment(pipe.unet.device))
    times.base, times.images, times.environment = base.id, len(watch.prompts), here
    warned = warned or Warned(say)
    first = {row.id: row for r in rows for row in (r, anchor(r))}
    _time_rows(watch, list(first.values()), "rows and short plain runs", times, warned, say)
    _time_rows(watch, all_rows(rows, times, sweep), "rows and plain runs of equal cost", times, warned, say)


def _same_conditions(times: Times, images: int, here: dict) -> None:
    """Raise if what is timed already was timed with other images per call or on another machine."""
    if not times.accounts:
        return
    if times.images != images:
        raise SettingError(f"times.json was measured with timing.batch {times.images}, not {images}: delete the file")
    for name in ("cpu", "gpu"):
        if times.environment.get(name) != here.get(name):
            there = times.environment.get(name)
            raise SettingError(
                f"times.json was measured on {name} {there!r}, not {here.get(name)!r}: delete the file to time again here, "
                "or leave the stage `time` out"
            )


def _time_rows(watch: Stopwatch, rows: list[Row], what: str, times: Times, warned: Warned, say: Say) -> None:
    repeats = watch.sweep.timing.repeats
    new = [row for row in rows if row.id not in times.accounts]
    if new:
        say(f"counting the work of {len(new)} {what}, by two calls each")
    for row in new:
        with warned.about(row):
            times.accounts[row.id] = watch.account(row)
        times.save()
    while left := [row for row in rows if len(times.accounts[row.id].ratios) < repeats]:
        seconds, ratios = watch.round(left, turn=len(times.base_seconds))
        times.base_seconds.append(seconds)
        for name, ratio in ratios.items():
            times.accounts[name].ratios.append(ratio)
        times.save()
        done = min(len(times.accounts[row.id].ratios) for row in rows)
        say(f"timed {len(left)} {what}, round {done} of {repeats}")


def all_rows(rows: list[Row], times: Times, sweep: Sweep) -> list[Row]:
    """The rows of the sweep and their rivals, each once: what is drawn and judged."""
    found = rivals(rows, times.accounts, sweep.rivals)
    return list({row.id: row for row in [*rows, *(r for pair in found.values() for r in pair.values())]}.values())


def _draw(pipe, rows: list[Row], sweep: Sweep, store: Store, state, warned: Warned, say: Say) -> None:
    there = {row.id: len(store.there(row)) for row in rows}

    @contextmanager
    def around(row: Row) -> Iterator[None]:
        begun = f"; {there[row.id]} of {len(store.jobs)} pictures were there" if there[row.id] else ""
        say(f"drawing {row.id} ({rows.index(row) + 1} of {len(rows)}{begun})")
        with warned.about(row):
            yield

    draw(pipe, rows, sweep, store, state.process_index, state.num_processes, around)


def _claim(folder: Path, sweep: Sweep, jobs: Jobs, device: str | None) -> None:
    """Write down whose pictures these are, or refuse a folder of other ones.

    Args:
        device: the kind that will draw, which makes its own noise of a seed; None if nothing is drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = hashlib.sha256("\n".join(jobs.prompts).encode()).hexdigest()
    file = folder / "sweep.json"
    own = json.loads(
        json.dumps(sweep.as_dict() | {"device": device, "prompt_texts": texts, "files": _files(sweep)}, default=str)
    )
    if file.is_file():
        there = _read(file)
        own["device"] = device or there.get("device")
        there["device"] = there.get("device") or own["device"]
        there.setdefault("prompt_texts", texts)
        there.setdefault("scheduler", {})
        same_prompts = there["prompt_texts"] == own["prompt_texts"] and "prompts" in there
        named = [name for name in IDENTITY if not (name == "prompts" and same_prompts)]
        changed = [name for name in (*named, "device", "prompt_texts") if there.get(name) != own[name]]
        remade = [path for path, code in own["files"].items() if there.get("files", {}).get(path, code) != code]
        if remade:
            raise SettingError(
                f"{str(folder)!r} holds pictures made with another {remade[0]!r} than is there now: use another folder"
            )
        own["files"] = {**there.get("files", {}), **own["files"]}
        if changed:
            name = changed[0]
            raise SettingError(
                f"{str(folder)!r} holds pictures of a sweep with {name}={there.get(name)!r}, not {own[name]!r}: use another folder"
            )
    _write(file, own)


def _files(sweep: Sweep) -> dict[str, str]:
    """The files that rows name, with hashes of what is in them."""
    named = {str(v) for row in expand(sweep) for s in row.methods.values() for k, v in s.items() if k in FILES}
    return {name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in sorted(named) if Path(name).is_file()}


def _read(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise SettingError(f"{str(file)!r} is damaged ({error}): delete it and run the sweep again") from error


def _write(file: Path, data: dict) -> None:
    """JSON, as a whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(data, indent=1))
    part.replace(file)


def _metrics(sweep: Sweep, device: str | torch.device) -> list:
    """The sweep's metrics, with their networks loaded; raises for what they will lack."""
    if not sweep.metrics:
        return []
    from ..quality.metrics import build_metrics, real_moments

    if "labels" in sweep.metrics and sweep.prompts.source != "demo":
        raise SettingError(
            "metric 'labels' knows what the demo's own captions say: use those (prompts: demo), or leave it out"
        )
    metrics = build_metrics(list(sweep.metrics), model=sweep.model, device=device, **sweep.weights)
    to_real = [m.name for m in metrics if m.info["to"] == "real"]
    if to_real and sweep.real is None and sweep.prompts.source != "demo":
        raise SettingError(f"metric {to_real[0]!r} is a distance to real pictures: name a folder of them with `real:`")
    if to_real and is_statistics(sweep.real):
        real_moments(sweep.real, to_real)
    elif to_real and sweep.real is not None:
        real_files(sweep.real)
    return metrics


def _load(sweep: Sweep, device):
    from ..demo.pipeline import load_pipeline as load_demo
    from ..loading import load_pipeline, quiet_loading

    quiet_loading()
    dtype = getattr(torch, sweep.dtype)
    pipe = load_demo(dtype, device) if sweep.model == "demo" else load_pipeline(sweep.model, dtype, device)
    pipe.set_progress_bar_config(disable=True)
    if sweep.spacing is not None:
        set_scheduler(pipe, None, sweep.spacing)
    _check_rows(pipe, sweep)
    return pipe


def _check_rows(pipe, sweep: Sweep) -> None:
    """Raise for what does not fit this model, before anything is timed or drawn."""
    check_size(pipe, sweep.size)
    for row in expand(sweep):
        try:
            with applied(pipe, row, sweep.scheduler) as handle:
                if handle is not None:
                    handle.plan(row.steps)
        except UnetAccelError as error:
            raise type(error)(f"row {row.id}: {error}") from error
