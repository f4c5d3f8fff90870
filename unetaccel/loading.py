"""Loading a diffusers pipeline from a folder or a hub id, with errors that say what is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .errors import WeightsError


def load_pipeline(model: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", cls=None):
    """A diffusers pipeline, ready to be called.

    Args:
        model: a local folder written by ``save_pretrained``, or a hub id ("owner/name").
        dtype: of all components; devices other than CPU usually want float16 or bfloat16.
        cls: the pipeline class, by default what the folder names.

    Raises:
        WeightsError: no such folder or hub model, no ``model_index.json`` in it, or a damaged weight file.
    """
    from diffusers import DiffusionPipeline

    folder = local_folder(model)
    if folder is not None:
        _check_folder(folder)
    try:
        pipe = (cls or DiffusionPipeline).from_pretrained(str(folder or model), torch_dtype=dtype)
    except Exception as error:  # loaders raise whatever a damaged file makes them stumble over
        where = (
            "" if folder is not None else " (no such folder here, and the hub has no such model or cannot be reached)"
        )
        raise WeightsError(
            f"cannot load {str(model)!r}{where}: {type(error).__name__}: {_first_line(error)}"
        ) from error
    pipe = pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def local_folder(model: str | Path) -> Path | None:
    """The folder that ``model`` names, or None if it reads as a hub id ("owner/name") and no such folder is here."""
    folder = Path(model).expanduser()
    is_id = isinstance(model, str) and model.count("/") == 1 and not model.startswith((".", "/", "~"))
    return None if is_id and not folder.exists() else folder


def quiet_loading() -> None:
    """Switch off the progress bars that diffusers and transformers show while they load."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


@contextmanager
def silence() -> Iterator[None]:
    """No progress bars, log lines and warnings of diffusers and transformers inside the block; as it was afterwards."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library._tqdm_active) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
    quiet_loading()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise WeightsError(
            f"no folder {str(folder)!r}: give a pipeline folder written by save_pretrained, or a hub id 'owner/name'"
        )
    if not (folder / "model_index.json").is_file():
        raise WeightsError(
            f"{str(folder)!r} has no model_index.json, so it is not a diffusers pipeline (is it one component of one?)"
        )
    for file in sorted(folder.rglob("*.safetensors")):
        _check_file(file)


def _check_file(file: Path) -> None:
    """Read the header only; safetensors checks it against the file's size."""
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{str(file)!r} is truncated or not a safetensors file ({_first_line(error)}); download it again"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
