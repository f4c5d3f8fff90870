"""What is installed, what importing it does, and that the tree keeps its rules."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [p for folder in ("unetaccel", "kernels", "bench", "examples") for p in (ROOT / folder).rglob("*.py")]


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code],
                            capture_output=True, text=True, cwd="/")  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


HEAVY = (
    "unetaccel_kernels.forecast_blend",  # and so triton; but diffusers may load that by itself
    "transformers",
    "diffusers.pipelines.stable_diffusion",
    "torchmetrics",
    "matplotlib",
    "unetaccel.cli",
)


def test_importing_loads_nothing_heavy():
    code = f"import sys, unetaccel; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run_python(code) == "[]"


def test_the_import_check_bites():
    code = f"import sys, unetaccel.cli, transformers; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert "transformers" in run_python(code)


def test_the_name_kernels_is_left_to_its_owner():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    code = "import importlib.util as u; s = u.find_spec('kernels'); print(s and (s.origin or list(s.submodule_search_locations)))"
    assert str(ROOT) not in run_python(code)
    assert run_python("import unetaccel_kernels.reference as r; print(r.__name__)") == "unetaccel_kernels.reference"


def test_the_wheel_holds_two_packages_and_the_demo(tmp_path):
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"unetaccel", "unetaccel_kernels"}
    assert "unetaccel/demo/weights/pipeline/unet/diffusion_pytorch_model.safetensors" in names
    assert {"unetaccel/report/assets/page.html", "unetaccel/report/assets/chart.js"} <= set(names)


def test_the_demo_fits_in_twelve_megabytes():
    files = [p for p in (ROOT / "unetaccel" / "demo" / "weights").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 12e6


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= (80 if path.is_relative_to(ROOT / "examples") else 400)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines()) <= 60, (
                node.name
            )


def test_public_names_are_sorted_and_documented():
    import unetaccel

    assert unetaccel.__all__ == sorted(unetaccel.__all__)
    assert all(getattr(unetaccel, name).__doc__ for name in unetaccel.__all__)
