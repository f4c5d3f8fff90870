"""What a sweep is: the YAML file as checked, frozen settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ..errors import SettingError, check_count

DTYPES = ("float32", "float16", "bfloat16")
RIVALS = ("equal_macs", "equal_time")
DEFAULT_COUNT = 100
HINTS = {
    "a sweep": " such as `steps: [20]` and `ways:`, see the README",
    "prompts": ", or demo, none or the name of a file with one prompt per line",
}
MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class PromptSource:
    """Where the prompts come from; see ``prompts.read_prompts``."""

    source: str = "demo"
    """``demo`` (its held-out captions), ``none`` (an unconditional model), or a file."""
    format: str | None = None
    """Of a file: ``lines``, ``drawbench``, ``coco`` or ``parti``; by default told by its name and header."""
    count: int | None = None
    """How many; by default ``DEFAULT_COUNT``, and of a file all."""
    seed: int | None = None
    """Of the demo's captions, or of a shuffle of the file; None takes a file in its own order."""


@dataclass(frozen=True)
class TimingPlan:
    """How the rows are timed: whole calls of ``batch`` images, interleaved, ``repeats`` rounds."""

    batch: int = 4
    repeats: int = 7
    threads: int | None = None
    """CPU threads while timing; None leaves torch's."""


@dataclass(frozen=True)
class Sweep:
    """A sweep over methods x settings x steps x solvers, every row sampled with the same prompts and seeds.

    Attributes:
        model: ``demo``, a pipeline folder, or a hub id.
        ways: one mapping ``{method: {setting: value or list of values}}`` per family of rows; several methods
            in one mapping are applied together. ``official_deepcache`` (interval, branch) is the package DeepCache 0.1.1.
            A family with a key ``steps`` has those counts instead of the sweep's; with nothing else it is plain.
        seeds: each prompt is sampled once with each.
        scheduler: what every solver's configuration has in place of the model's, by diffusers' names: ``{clip_sample: false}``.
        rivals: plain runs added for every row, of as many MACs and of as much time.
        metrics: names, see ``quality.metrics.KINDS``.
        weights: local files that metrics need: ``{"inception": file, "clip": folder, "alexnet": file}``.
        real: folder of real pictures for metrics that want them, or an ``.npz`` with the ``mu`` and ``sigma`` of their
            features (pytorch-fid, ADM), which is enough for Frechet distances; the demo draws its own.
        published: ``{row id: {metric: figure, "source": where}}``, shown beside what is measured.

    Raises:
        SettingError: a value that is not allowed.
    """

    title: str
    ways: tuple[dict, ...] = ()
    model: str = "demo"
    prompts: PromptSource = field(default_factory=PromptSource)
    seeds: tuple[int, ...] = (0,)
    solvers: tuple[str | None, ...] = (None,)
    """Names as ``sampling.SCHEDULERS`` has them; None is the pipeline's own."""
    spacing: str | None = None
    scheduler: dict = field(default_factory=dict)
    steps: tuple[int, ...] = (50,)
    guidance: float | None = None
    size: tuple[int, int] | None = None
    negative_prompt: str | None = None
    dtype: str = "float32"
    batch: int = 32
    rivals: tuple[str, ...] = RIVALS
    metrics: tuple[str, ...] = ()
    weights: dict = field(default_factory=dict)
    real: str | None = None
    timing: TimingPlan = field(default_factory=TimingPlan)
    published: dict = field(default_factory=dict)

    def __post_init__(self):
        check_count("batch", self.batch)
        for name in ("seeds", "solvers", "steps"):
            if not getattr(self, name):
                raise SettingError(f"{name} must name at least one")
        for steps in (*self.steps, *(n for way in self.ways if isinstance(way, dict) for n in self.steps_of(way))):
            check_count("steps", steps)
        if self.prompts.count is not None:
            check_count("prompts.count", self.prompts.count)
        for name in ("batch", "repeats"):
            check_count(f"timing.{name}", getattr(self.timing, name))
        if self.dtype not in DTYPES:
            raise SettingError(f"dtype must be {', '.join(DTYPES)}, got {self.dtype!r}")
        for name in ("scheduler", "weights", "published"):
            _mapping(getattr(self, name), name)
        self._check_kinds()
        if self.spacing is not None and "timestep_spacing" in self.scheduler:
            raise SettingError("spacing and scheduler.timestep_spacing are the same setting: give one of them")
        unknown = [r for r in self.rivals if r not in RIVALS]
        if unknown:
            raise SettingError(f"rivals: {unknown[0]!r} is not one of {', '.join(RIVALS)}")
        if len(set(self.seeds)) != len(self.seeds) or not all(
            isinstance(s, int) and 0 <= s <= MAX_SEED for s in self.seeds
        ):
            raise SettingError(f"seeds must be different whole numbers from 0 to {MAX_SEED}, got {list(self.seeds)}")
        if not all(isinstance(way, dict) and way for way in self.ways):
            raise SettingError("ways must be a list of mappings such as {deepcache: {interval: [2, 3], cut: 0}}")

    def _check_kinds(self) -> None:
        """What YAML may give as another kind of value, and a pipeline would stumble over late."""
        for name in ("title", "model", "negative_prompt", "real"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name in ("negative_prompt", "real")):
                raise SettingError(f"{name} must be a text, got {value!r}")
        if not isinstance(self.guidance, int | float | None) or isinstance(self.guidance, bool):
            raise SettingError(f"guidance must be a number such as 7.5, got {self.guidance!r}")
        sides = self.size if isinstance(self.size, tuple) else ()
        if self.size is not None and (len(sides) != 2 or not all(type(s) is int and s > 0 for s in sides)):
            raise SettingError(f"size must be pixels such as 512, or [height, width], got {self.size!r}")

    def steps_of(self, way: Mapping) -> tuple[int, ...]:
        """The step counts of one family of rows: its own, or the sweep's."""
        return _tuple(way["steps"]) if "steps" in way else self.steps

    def as_dict(self) -> dict:
        """Plain data, ready for JSON."""
        return asdict(self)


def read_sweep(path: Path | str) -> Sweep:
    """The sweep that a YAML file describes.

    Raises:
        SettingError: not readable, not YAML, or an unknown key.
    """
    import yaml

    from .documents import SafeLoader, beside

    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8"), SafeLoader)
    except OSError as error:
        raise SettingError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingError(f"{str(path)!r} is not YAML: {error}") from error
    if isinstance(data, Mapping) and "rows" in data and "format" in data:
        raise SettingError(
            f"{str(path)!r} is a result, not a sweep: look at it with `unetaccel report {path}`; "
            "what was swept stands under its key 'sweep'"
        )
    if isinstance(data, Mapping):
        data = beside(Path(path).parent, {"title": Path(path).stem, **data})
    try:
        return sweep_from(data)
    except SettingError as error:
        raise SettingError(f"{str(path)!r}: {error}") from error


def sweep_from(data: object) -> Sweep:
    """A sweep from plain data; lists may be given as single values."""
    values = dict(_mapping(data, "a sweep"))
    if "title" not in values:
        raise SettingError("a sweep needs a title")
    prompts = values.get("prompts", {})
    values["prompts"] = _part(PromptSource, {"source": prompts} if isinstance(prompts, str) else prompts, "prompts")
    values["timing"] = _part(TimingPlan, values.get("timing", {}), "timing")
    for name in ("ways", "seeds", "solvers", "steps", "rivals", "metrics"):
        if name in values:
            values[name] = _tuple(values[name])
    if isinstance(values.get("size"), int):
        values["size"] = (values["size"], values["size"])
    if isinstance(values.get("size"), list):
        values["size"] = tuple(values["size"])
    return _part(Sweep, values, "a sweep")


def _part(cls: type, data: object, where: str):
    known = [f.name for f in fields(cls)]
    values = _mapping(data, where)
    strange = [key for key in values if key not in known]
    if strange:
        raise SettingError(f"{where} has no {strange[0]!r}; it has {', '.join(known)}")
    try:
        return cls(**values)
    except TypeError as error:
        raise SettingError(f"{where}: {error}") from error


def _mapping(data: object, where: str) -> Mapping:
    if not isinstance(data, Mapping):
        hint = HINTS.get(where, "")
        raise SettingError(f"{where} must be NAME: VALUE pairs{hint}, got {data!r}")
    return data


def _tuple(value: object) -> tuple:
    return tuple(value) if isinstance(value, list | tuple) else (value,)
