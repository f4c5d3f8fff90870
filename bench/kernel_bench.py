"""The kernels by themselves: ahead of time anywhere, and on a GPU checked and then timed.

    python bench/kernel_bench.py --aot --out bench/results/kernels-aot.json --readme kernels/README.md
    python bench/kernel_bench.py --out bench/results/kernels-h200.json      # on a GPU

``--aot`` compiles every kernel for sm_80, sm_90 and sm_100 and tells registers, shared memory and spills; it needs
Triton, and no GPU. Without it, each operation is first compared with its reference in float64, and where one is wrong nothing
is timed. Then its bandwidth (bytes it must move over time) stands beside the measured copy rate of the same GPU, and its
time beside the reference's in eager PyTorch and compiled.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated

import torch
import typer

from unetaccel.environment import environment

TABLE = re.compile(r"(?<=<!-- aot -->\n).*?(?=<!-- /aot -->)", re.S)


def main(
    aot: Annotated[bool, typer.Option(help="Compile for GPUs that need not be there.")] = False,
    dtype: Annotated[str, typer.Option(help="float16, bfloat16 or float32.")] = "float16",
    repeats: Annotated[int, typer.Option(help="Timed rounds on a GPU.")] = 50,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    readme: Annotated[
        Path | None, typer.Option(help="Markdown file whose table of compiled kernels is renewed.")
    ] = None,
) -> None:
    """Compile, or check and time, all kernels; print tables and write JSON."""
    results = _compiled(dtype, readme) if aot else _measured(dtype, repeats)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")
        print(f"wrote {out}")


def _compiled(dtype: str, readme: Path | None) -> dict:
    os.environ.pop("TRITON_INTERPRET", None)  # of what is interpreted nothing is compiled
    from kernels_aot import ARCHITECTURES, compile_variant, markdown, variants

    rows = [compile_variant(v, architecture) for v in variants(dtype) for architecture in ARCHITECTURES]
    text = markdown(rows)
    print(text)
    if readme:
        readme.write_text(TABLE.sub(lambda _: text + "\n", readme.read_text()))
    return {"environment": environment(), "dtype": dtype, "kernels": rows}


def _measured(dtype: str, repeats: int) -> dict:
    if not torch.cuda.is_available():
        raise SystemExit(
            "no GPU here: kernels can be compiled (--aot), and their numbers are tested in Triton's interpreter "
            "(pytest tests/kernels), but bandwidths need the GPU that they are of"
        )
    from kernels_speed import measure_all

    return {"environment": environment("cuda"), "dtype": dtype, **measure_all(getattr(torch, dtype), repeats)}


if __name__ == "__main__":
    typer.run(main)
