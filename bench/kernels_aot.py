"""Every kernel compiled for architectures that need not be there: registers, shared memory and spills, by ptxas."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from unetaccel_kernels.forecast_blend import blend_kernel
from unetaccel_kernels.groupnorm_silu import BLOCK, apply_kernel, combine_kernel
from unetaccel_kernels.scale_concat import CHANNEL, NUMBER, PIXEL, join_kernel
from unetaccel_kernels.tiles import tiling

ARCHITECTURES = (80, 90, 100)
TYPES = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}


@dataclass(frozen=True)
class Variant:
    """A kernel as one kind of call specialises it.

    ``given`` holds, by argument, a pointer's type (taken as aligned to 16 bytes), or a value known when compiling; other arguments are
    integers, divisible by 16 where they are ``even``.
    """

    kernel: object
    name: str
    warps: int
    given: dict[str, object]
    even: tuple[str, ...] = ()


def variants(dtype: str) -> list[Variant]:
    """The calls of SD and SDXL shapes with features of ``dtype``."""
    return [*_blends(TYPES[dtype]), *_joins(TYPES[dtype]), *_norms(TYPES[dtype])]


def _blends(pointer: str) -> list[Variant]:
    found = []
    for count in (1, 2, 3, 4):
        given = dict.fromkeys(("f0", "f1", "f2", "f3", "out"), pointer) | {
            "table": "*fp32",
            "row": "*i32",
            "COUNT": count,
        }
        flat = {"rows": 1, "BLOCK_R": 1, "BLOCK_C": 2048}
        found.append(Variant(blend_kernel, f"blend of {count}", 4, given | flat, ("cols", "stride")))
    into = given | {"BLOCK_R": 32, "BLOCK_C": 64}
    return [*found, Variant(blend_kernel, "blend of 4, into channels", 4, into, ("rows", "cols", "stride"))]


def _tile(last: bool) -> tuple[int, dict[str, object]]:
    """Warps, and what is known of strides and blocks, by whether channels are last."""
    tiles = tiling(2, 640, 4096, last)
    unit = "c" if last else "p"
    return tiles.warps, {"BLOCK_C": tiles.channels, "BLOCK_P": tiles.pixels} | dict.fromkeys(
        (f"{x}{unit}" for x in "hso"), 1
    )


STRIDES = ("C", "CH", "P", "chunks", *(a + b for a in "hso" for b in "ncp"))


def _joins(pointer: str) -> list[Variant]:
    found = []
    for last in (False, True):
        warps, known = _tile(last)
        order = "channels last" if last else "contiguous"
        common = {**known, "hidden": pointer, "skip": pointer, "moments": "*fp32", "factor": "fp32", "THERE": False}
        for kind, name in (
            (None, "number"),
            (NUMBER, "tensor"),
            (CHANNEL, "gate per channel"),
            (PIXEL, "gate per pixel"),
        ):
            gate = {"gate": None if kind is None else "*fp32", "KIND": kind or 0, "out": pointer}
            found.append(Variant(join_kernel, f"concat, {name}, {order}", warps, common | gate, STRIDES))
        number = {"gate": None, "KIND": 0, "out": pointer, "THERE": True}
        found.append(Variant(join_kernel, f"concat behind a blend, {order}", warps, common | number, STRIDES))
        alone = {"gate": None, "KIND": 0, "out": None, "on": 0, "oc": 0, "op": 0}
        found.append(Variant(join_kernel, f"moments alone, {order}", warps, common | alone, STRIDES))
    return found


def _norms(pointer: str) -> list[Variant]:
    combine = {"moments": "*fp32", "statistics": "*fp32", "eps": "fp32", "BLOCK": BLOCK}
    found = [Variant(combine_kernel, "statistics of groups", 4, combine)]
    for last in (False, True):
        warps, known = _tile(last)
        pointers = dict.fromkeys(("hidden", "skip", "weight", "bias", "out"), pointer) | {"statistics": "*fp32"}
        name = f"norm and SiLU, {'channels last' if last else 'contiguous'}"
        found.append(Variant(apply_kernel, name, warps, known | pointers, STRIDES))
    return found


def compile_variant(variant: Variant, architecture: int) -> dict:
    """Registers per thread, shared bytes, spilled bytes and size of one kernel for one architecture."""
    names = variant.kernel.arg_names
    given = variant.given
    pointers = {n for n, v in given.items() if isinstance(v, str)}
    signature = {n: given[n] if n in pointers else "constexpr" if n in given else "i32" for n in names}
    known = {n: v for n, v in given.items() if n not in pointers}
    aligned = [i for i, n in enumerate(names) if signature[n].startswith("*") or (n in variant.even and n not in known)]
    source = ASTSource(
        variant.kernel, signature, constexprs=known, attrs={(i,): [["tt.divisibility", 16]] for i in aligned}
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": variant.warps})
    used = _ptxas(compiled.asm["ptx"], architecture)
    wide = len(re.findall(r"ld\.global\S*\.v(?:4|8)\.", compiled.asm["ptx"]))
    return {
        "kernel": variant.name,
        "sm": architecture,
        "warps": variant.warps,
        **used,
        "shared": compiled.metadata.shared,
        "wide_loads": wide,
        "cubin": len(compiled.asm["cubin"]),
    }


def _ptxas(ptx: str, architecture: int) -> dict:
    """What ptxas says of a kernel: registers, and bytes of spill stores and loads."""
    from triton.backends.nvidia.compiler import get_ptxas

    tool = get_ptxas(architecture)
    path = getattr(tool, "path", tool)
    target = re.search(r"^\.target (\w+)", ptx, re.M)[1]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [str(path), "-v", f"--gpu-name={target}", str(source), "-o", str(Path(folder) / "kernel.cubin")]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    stores, loads = map(int, re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said).groups())
    return {"registers": int(re.search(r"Used (\d+) registers", said)[1]), "spilled": stores + loads}


def markdown(rows: list[dict]) -> str:
    """A line per kernel, a column per architecture: registers / shared bytes / spilled bytes."""
    architectures = sorted({row["sm"] for row in rows})
    lines = [
        "| kernel | warps | " + " | ".join(f"sm_{a}" for a in architectures) + " |",
        "| --- | --- |" + " --- |" * len(architectures),
    ]
    for name in dict.fromkeys(row["kernel"] for row in rows):
        of_name = {row["sm"]: row for row in rows if row["kernel"] == name}
        cells = [f"{r['registers']} / {r['shared']} / {r['spilled']}" for r in map(of_name.get, architectures)]
        lines.append(f"| {name} | {of_name[architectures[0]]['warps']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
