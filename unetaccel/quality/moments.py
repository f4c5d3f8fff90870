"""Statistics of real pictures' features, as pytorch-fid and ADM's evaluation publish them instead of pictures."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import WeightsError

WHAT = "a statistics file of pytorch-fid or ADM: an .npz with the mean `mu` (d) and the covariance `sigma` (d, d)"


@dataclass(frozen=True)
class Moments:
    """Mean (d) and covariance (d, d) of features, float64, and the file that they are from."""

    mean: torch.Tensor
    covariance: torch.Tensor
    source: str = ""

    @property
    def width(self) -> int:
        """Features per picture, d."""
        return len(self.mean)


def is_statistics(path: Path | str | None) -> bool:
    """Whether ``path`` names a statistics file, not a folder of pictures."""
    return path is not None and Path(path).suffix.lower() == ".npz"


def read_moments(path: Path | str) -> Moments:
    """The mean and covariance in a statistics file; whatever else it holds is not read, and nothing is executed.

    Raises:
        WeightsError: no such file, damaged, without ``mu`` and ``sigma``, or with numbers that are no covariance.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"no file {str(path)!r}: give the path of {WHAT}")
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (np.asarray(file[name]) for name in ("mu", "sigma"))
    except KeyError as error:
        raise WeightsError(f"{str(path)!r} lacks mu or sigma; expected {WHAT}") from error
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        EOFError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise WeightsError(f"{str(path)!r} is damaged or holds more than numbers; expected {WHAT}") from error
    wrong = _why_no_moments(mean, covariance)
    if wrong:
        raise WeightsError(f"{str(path)!r} {wrong}; expected {WHAT}")
    return Moments(*(torch.from_numpy(x.astype(np.float64)) for x in (mean, covariance)), source=str(path))


def _why_no_moments(mean: np.ndarray, covariance: np.ndarray) -> str | None:
    if not all(np.issubdtype(x.dtype, np.floating) for x in (mean, covariance)):
        return f"has mu of {mean.dtype} and sigma of {covariance.dtype}"
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        return f"has mu {mean.shape} and sigma {covariance.shape}"
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        return "has NaN or infinite numbers"
    if (np.diag(covariance) < 0).any() or not np.allclose(
        covariance, covariance.T, atol=1e-3 * np.abs(covariance).max(initial=0)
    ):
        return "has a sigma that is no covariance"
    return None
