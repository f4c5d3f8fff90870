"""Profile: what was measured of F on one model, and what was chosen from it. A YAML file with its Gram matrices beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from .errors import SettingError, WeightsError

FORMAT = "unetaccel-profile/1"
NEAR = 0.51


@dataclass(frozen=True)
class Call:
    """The sampling calls that were measured."""

    scheduler: str
    config: dict = field(repr=False)
    """What of the scheduler's configuration moves its steps: spacing, betas, prediction type."""
    steps: int
    guidance: float | None
    timesteps: tuple[float, ...] = field(repr=False)
    """Of each evaluation."""
    abscissae: tuple[float, ...] = field(repr=False)
    """log(1 + sigma) of each evaluation; the index where noise levels are not known."""


@dataclass(frozen=True)
class Planned:
    """``full`` evaluations, and the root-mean-square relative error of F that is predicted for the others."""

    full: tuple[int, ...]
    error: float


@dataclass(frozen=True, eq=False)
class Profile:
    """A calibration of one model.

    Attributes:
        model: what of the U-Net it depends on: class, width of conditions, skips (see ``weights.base_of``).
        call: the sampling calls that were measured.
        samples: where they came from: number of prompts, seeds.
        grams: by cut, <F_i, F_k> of every sample, float64 (samples, T, T).
        plans: by cut and number of full evaluations, the best plan.
        cut, full, points: what is applied by default: where, how many full evaluations, and from how many features F is
            forecast.
        versions: of the packages that it was made with.
        tuned: what ``unetaccel.tune`` chose by and measured, if it did: budget, score, rival.
    """

    model: dict = field(repr=False)
    call: Call
    samples: dict
    grams: dict[int, np.ndarray] = field(repr=False)
    plans: dict[int, dict[int, Planned]] = field(repr=False)
    cut: int
    full: int
    points: int = 3
    versions: dict = field(default_factory=dict, repr=False)
    tuned: dict = field(default_factory=dict, repr=False)

    @property
    def evaluations(self) -> int:
        return len(self.call.timesteps)

    def check_model(self, base: dict) -> None:
        """Raise ``SettingError`` unless it was made for a U-Net like this one."""
        other = [name for name in base if base[name] != self.model.get(name)]
        if other:
            raise SettingError(
                f"this profile was made for a U-Net with {other[0]}={_short(self.model.get(other[0]))}, and this one has "
                f"{_short(base[other[0]])}: plans do not carry over to other models; make one with unetaccel.calibrate"
            )

    def indices(self, timesteps: Sequence[float]) -> list[int]:
        """Where a call's timesteps lie among the measured ones, in the same order.

        Raises:
            SettingError: one of them was not measured.
        """
        own, near = self.call.timesteps, self._tolerance()
        if len(own) == len(timesteps) and all(abs(a - b) <= near for a, b in zip(own, timesteps, strict=True)):
            return list(range(len(own)))  # also where timesteps repeat, as with second-order solvers
        found: list[int] = []
        for t in timesteps:
            behind = range(found[-1] + 1 if found else 0, len(own))
            place = min(behind, key=lambda i: abs(own[i] - t), default=None)
            if place is None or abs(own[place] - t) > near:
                raise SettingError(
                    f"this profile was measured at the {len(own)} timesteps of {self.call.steps} steps of {self.call.scheduler} "
                    f"({_short([round(x, 3) for x in own])}), and this call has {len(timesteps)}, of which {t:g} is none of them. "
                    "Calibrate for this number of steps, or for a multiple of it"
                )
            found.append(place)
        return found

    def _tolerance(self) -> float:
        """Timesteps this close are the same: schedulers round them in different ways, and some count in other units."""
        gaps = [abs(a - b) for a, b in zip(self.call.timesteps, self.call.timesteps[1:], strict=False) if a != b]
        return min([NEAR, *(gap / 4 for gap in gaps)])


def save_profile(profile: Profile, path: str | Path) -> Path:
    """Write ``path`` (YAML) and the Gram matrices, float64, to ``<name>.grams.safetensors`` beside it.

    Raises:
        SettingError: the name does not end in .yaml or .yml.
        WeightsError: it cannot be written.
    """
    import yaml

    path = Path(path).expanduser()
    grams = grams_of(path)
    tensors = save({f"cut{b}": np.ascontiguousarray(gram, dtype=np.float64) for b, gram in profile.grams.items()})
    data = {"format": FORMAT, **{k: v for k, v in asdict(profile).items() if k != "grams"}}
    data["call"] = {k: list(v) if isinstance(v, tuple) else v for k, v in data["call"].items()}
    data["plans"] = {
        b: {k: {"error": round(plan.error, 6), "full": list(plan.full)} for k, plan in plans.items()}
        for b, plans in profile.plans.items()
    }
    data["grams_sha256"] = hashlib.sha256(tensors).hexdigest()
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=120)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, content in ((grams, tensors), (path, text.encode())):
            part = file.with_name(file.name + ".part")
            part.write_bytes(content)
            part.replace(file)
    except OSError as error:
        raise WeightsError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
    return path


def grams_of(path: Path) -> Path:
    """The file of Gram matrices that belongs to a profile's.

    Raises:
        SettingError: a profile has no such name.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise SettingError(f"a profile is YAML, so its name must end in .yaml, got {str(path)!r}")
    return path.with_suffix(".grams.safetensors")


def load_profile(path: str | Path) -> Profile:
    """Read what ``save_profile`` wrote.

    Raises:
        WeightsError: a file is missing, damaged or of another kind.
        SettingError: the name is not that of a profile.
    """
    import yaml

    path = Path(path).expanduser()
    grams = grams_of(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"profile {str(path)!r} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise WeightsError(f"profile {str(path)!r} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise WeightsError(f"{str(path)!r} is no profile (format {FORMAT!r}): make one with unetaccel.calibrate")
    try:
        content = grams.read_bytes()
        tensors = load(content)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{str(grams)!r}, the Gram matrices of {str(path)!r}, is missing or damaged ({error}): keep both files together"
        ) from error
    if data.pop("grams_sha256", None) != hashlib.sha256(content).hexdigest():
        raise WeightsError(
            f"{str(grams)!r} holds other Gram matrices than {str(path)!r} was written with: make it again"
        )
    try:
        profile = _profile(data, tensors)
        _check(profile)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"profile {str(path)!r} is damaged ({error}): make it again") from error
    return profile


def _profile(data: dict, tensors: dict[str, np.ndarray]) -> Profile:
    plans = {
        int(b): {int(k): Planned(tuple(plan["full"]), float(plan["error"])) for k, plan in found.items()}
        for b, found in data.pop("plans").items()
    }
    call = {k: tuple(map(float, v)) if isinstance(v, list) else v for k, v in data.pop("call").items()}
    return Profile(
        call=Call(**call), plans=plans, grams={int(name[3:]): gram for name, gram in tensors.items()}, **data
    )


def _check(profile: Profile) -> None:
    T, call = profile.evaluations, profile.call
    if T < 1 or len(call.abscissae) != T or not np.isfinite([*call.timesteps, *call.abscissae]).all():
        raise ValueError(f"{len(call.abscissae)} abscissae for {T} timesteps, or numbers that are none")
    for name in ("model", "tuned"):
        if not isinstance(getattr(profile, name), dict):
            raise ValueError(f"{name} is {getattr(profile, name)!r}")
    for b, gram in profile.grams.items():
        sound = gram.ndim == 3 and gram.dtype == np.float64 and len(gram) and gram.shape[1:] == (T, T)
        if not sound or not np.isfinite(gram).all() or not (np.einsum("sii->si", gram) > 0).all():
            raise ValueError(f"the Gram matrix of cut {b}, of shape {gram.shape} for {T} evaluations, cannot be one")
    if profile.grams.keys() != profile.plans.keys():
        raise ValueError("plans and Gram matrices are of other cuts")
    for plan in (plan for plans in profile.plans.values() for plan in plans.values()):
        if list(plan.full) != sorted({0, *plan.full} & set(range(T))):
            raise ValueError(f"a plan names {list(plan.full)} of {T} evaluations")
    if profile.cut not in profile.grams or profile.full not in profile.plans[profile.cut]:
        raise ValueError(f"cut {profile.cut} or {profile.full} full evaluations were not measured")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."
