"""Reports from result files: the page without a browser, verdicts, Markdown, figures, and what bad files say."""

import base64
import io
import json
import math
import random
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from report_cases import HOSTILE, write_result

from unetaccel.errors import SettingError
from unetaccel.report import load, markdown, page, write_page
from unetaccel.report.axes import places, reference
from unetaccel.report.images import collect
from unetaccel.report.payload import payload
from unetaccel.report.series import families, tag
from unetaccel.report.verdicts import count, front, verdict

RESULTS = Path(__file__).parents[1] / "bench" / "results"
VOID = {"meta", "link", "input", "img", "wbr"}


class Page(HTMLParser):
    """Elements with their attributes, and whether every element that opens is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.elements, self.scripts, self.text = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] == "script" else self.text).append(data)


@pytest.fixture
def result(tmp_path):
    return load(write_result(tmp_path))


def rewrite(path: Path, change) -> Path:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


def test_the_page_is_well_formed_and_fetches_nothing(tmp_path, result):
    write_page(tmp_path / "report.html", [result, load(RESULTS / "speed-demo-cpu.json")])
    found = Page((tmp_path / "report.html").read_text())
    assert not found.open
    for tag_, attributes in found.elements:
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith(("#", "data:")), tag_
        assert not any(name.startswith("on") for name in attributes)
    text = (tmp_path / "report.html").read_text()
    assert not any(word in text for word in ("https://", "@import", "fetch(", "XMLHttpRequest", "import("))
    assert text.count("http://") == text.count("http://www.w3.org/2000/svg")  # a name, not an address
    assert "default-src 'none'" in text


def test_texts_of_the_file_stay_texts(result):
    found = Page(page.page([result]))
    assert [a.get("type") for tag_, a in found.elements if tag_ == "script"] == ["application/json", None]
    assert "b" not in [tag_ for tag_, _ in found.elements]  # the title holds one
    data = json.loads(found.scripts[0])
    assert "alert(" not in "".join(found.scripts[1:])
    assert HOSTILE in [row["label"] for row in data["rows"]]
    assert HOSTILE in "".join(found.text)


def test_the_table_holds_rows_strips_rivals_and_published_figures(result):
    found = Page(page.page([result]))
    assert [a["data-id"] for tag_, a in found.elements if tag_ == "tr" and "data-id" in a] == [
        row.id for row in result.ordered()
    ]
    strips = [a["aria-label"] for tag_, a in found.elements if a.get("class") == "strip"]
    assert "10 full of 20 evaluations: F.F.F.F.F.F.F.F.F.F." in strips
    words = " ".join(found.text)
    assert "frechet 31.5" in words
    assert "arXiv 2312.00858, table 2" in words
    assert "identical" in words
    assert "11 steps" in words


def test_pictures_are_inside_and_only_those_of_the_result(tmp_path, result):
    (tmp_path / "secret.png").write_bytes((tmp_path / "images" / result.rows[0].id / "0-0.png").read_bytes())
    noise = Image.frombytes("RGB", (500, 500), random.Random(0).randbytes(750_000))
    noise.save(tmp_path / "images" / result.rows[0].id / "big.png")

    def add(data):
        data["rows"][0]["images"] += ["../../secret.png", "gone.png", "big.png"]

    pictures, missing = collect(load(rewrite(result.path, add)))
    first = result.rows[0].id
    assert set(pictures[first]) == {"0-0.png", "1-0.png", "big.png"}
    assert missing == [f"{first}/../../secret.png", f"{first}/gone.png"]
    assert pictures[first]["0-0.png"].startswith("data:image/png;base64,")
    assert pictures[first]["big.png"].startswith("data:image/webp;base64,")
    assert len(pictures[first]["big.png"]) < 200_000


def scored(result, **changes):
    """The first method row and its rival, with other scores of the Fréchet distance and the PSNR."""

    def change(data):
        row = next(r for r in data["rows"] if r["kind"] == "method")
        rival = next(r for r in data["rows"] if r["id"] == row["rivals"]["equal_macs"])
        for target, values in ((row, changes["row"]), (rival, changes["rival"])):
            target["metrics"] = {k: {"value": v, "sd": sd, "per_seed": []} for k, (v, sd) in values.items()}

    found = load(rewrite(result.path, change))
    return found, next(row for row in found.rows if row.kind == "method")


@pytest.mark.parametrize(
    ("metric", "row", "rival", "ahead", "gain"),
    [
        ("frechet", (10.0, 0.3), (12.0, 0.4), "row", 2.0),
        ("frechet", (12.0, 0.3), (10.0, 0.4), "plain", -2.0),
        ("frechet", (10.0, 0.3), (10.5, 0.4), "level", 0.5),
        ("psnr", (30.0, 0.1), (29.0, 0.1), "row", 1.0),
        ("psnr", (29.0, 0.1), (30.0, 0.1), "plain", -1.0),
        ("psnr", (None, None), (30.0, 0.1), "row", math.inf),
        ("psnr", (30.0, 0.1), (None, None), "plain", -math.inf),
        ("psnr", (None, None), (None, None), "level", 0.0),
    ],
)
def test_verdicts_know_the_direction_the_spread_and_identity(result, metric, row, rival, ahead, gain):
    result, ours = scored(result, row={metric: row}, rival={metric: rival})
    found = verdict(result, ours, metric)
    assert (found.ahead, found.gain) == (ahead, pytest.approx(gain))
    assert count(result, metric)[ahead] >= 1
    assert payload(result, metric)["rows"]  # infinite gains are JSON too


def test_few_pictures_give_no_verdict(tmp_path):
    result = load(rewrite(write_result(tmp_path), lambda data: data["samples"].update(prompts=6)))
    assert all(verdict(result, row, "frechet") is None for row in result.rows)
    text = page.page([result])
    assert "6 pictures a seed are too few for a verdict" in text
    assert "ahead of" not in Page(text).text[0:5]
    assert "too few for a verdict" in markdown([result])


def test_times_that_say_little_are_marked(tmp_path):
    def change(data):
        first, second, third = (*[row for row in data["rows"] if row["kind"] == "method"][:2], data["rows"][-1])
        first["speedup"] = {"median": 1.2, "p20": None, "p80": None}
        second["speedup"] = {"median": 1.2 * second["speedup_ceiling"], "p20": 1.19, "p80": 1.21}
        third["speedup"] = {"median": 1.2, "p20": 1.19, "p80": 1.21}
        third["speedup_ceiling"] = 1.3

    result = load(rewrite(write_result(tmp_path), change))
    methods = [row for row in result.rows if row.kind == "method"]
    assert [row.noisy for row in (*methods[:2], result.rows[-1])] == [True, True, False]
    assert "1.20x (timed once) ~" in markdown([result])
    assert "~ a noisy time" in markdown([result])


def test_noise_short_runs_and_guidance_are_marked(tmp_path):
    def change(data):
        data["sweep"]["guidance"] = 7.5
        row = next(row for row in data["rows"] if row["kind"] == "method")
        row.update(ran_plain=True, speedup={"median": 1.0, "p20": 0.8, "p80": 1.2})

    text = page.page([load(rewrite(write_result(tmp_path), change))])
    assert "ran plain: too few evaluations to cache" in text
    assert 'class="noisy"' in text
    assert "<li>guidance 7.5</li>" in text


def test_lost_pictures_are_told(tmp_path):
    path = rewrite(
        write_result(tmp_path), lambda data: [row.update(strip=f"x/{row['id']}.png") for row in data["rows"]]
    )
    code = "from unetaccel.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "report", path, "--out", tmp_path / "r.html"], capture_output=True, text=True
    )
    rows = len(load(path).rows)
    assert f"the pictures of {rows} of {rows} rows are not where the file names them" in done.stderr
    assert done.returncode == 0
    assert "which has to move along with it" in (tmp_path / "r.html").read_text()


def test_a_missing_score_gives_no_verdict(result):
    result, ours = scored(result, row={"frechet": (1.0, 0.1)}, rival={"frechet": (None, None)})
    assert verdict(result, ours, "frechet") is None


def test_one_seed_gives_no_verdict(result):
    result, ours = scored(result, row={"frechet": (1.0, None)}, rival={"frechet": (9.0, None)})
    assert verdict(result, ours, "frechet") is None
    assert (
        verdict(*scored(result, row={"frechet": (1.0, 0.1)}, rival={"frechet": (9.0, 0.1)}), "frechet").ahead == "row"
    )
    assert verdict(result, ours, "psnr") is None
    assert verdict(result, result.plain(ours), "frechet") is None


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_the_front_is_what_nothing_beats(signs):
    chance = random.Random(1)
    points = [(chance.randint(0, 9), chance.randint(0, 9)) for _ in range(60)]

    def beaten(p):
        worth = [(signs[0] * x, signs[1] * y) for x, y in points]
        x, y = signs[0] * p[0], signs[1] * p[1]
        return any(a >= x and b >= y and (a, b) != (x, y) for a, b in worth)

    assert {points[i] for i in front(points, *signs)} == {p for p in points if not beaten(p)}


def test_speedups_of_other_lengths_share_one_reference(tmp_path):
    result = load(write_result(tmp_path, steps=(20, 50)))
    base = reference(result, "ddim")
    assert base.steps == 50
    row = next(row for row in result.rows if row.kind == "method" and row.steps == 20)
    found = places(result, row, base)
    assert found["speedup"].x == pytest.approx(
        row.speedup.median * base.seconds.median / result.plain(row).seconds.median
    )
    assert found["speedup"].limit == pytest.approx(2.5 * row.ceiling)
    assert found["seconds"].limit == pytest.approx(base.seconds.median / found["speedup"].limit)
    assert found["macs"].limit is None
    assert places(result, base, base)["speedup"].x == 1


def test_other_packages_share_the_colour_of_equal_settings(tmp_path):
    result = load(write_result(tmp_path, cuts=(0, 1), schedules=("uniform", "quad")))
    found = {(f.name, f.kind): f.colour for f in families(result).values()}
    assert found["deepcache, cut 1, uniform", "method"] == found["DeepCache 0.1.1, cut 1, uniform", "peer"]
    assert found["plain runs", "plain"] is None
    assert len({colour for (_, kind), colour in found.items() if kind == "method"}) == 4
    assert {tag(row) for row in result.rows if row.kind == "method"} == {"2", "5"}


def test_markdown_names_the_rival_and_stays_a_table(result):
    text = markdown([result, load(RESULTS / "speed-shapes-cpu.json")], "frechet")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines[:6]} == {7}
    row = next(line for line in lines if "deepcache(interval=2, cut=0)" in line)
    ours = next(r for r in result.rows if r.kind == "method")
    assert (
        f"{ours.speedup.median:.2f}x ({ours.speedup.low:.2f} to {ours.speedup.high:.2f}) | {ours.ceiling:.2f}x" in row
    )
    assert f"{ours.scores['frechet'].value:.2f} ± 0.70 | ▲ 11 steps: " in row
    assert "<script>" not in text
    assert "| sd15, scale 0.25 | 3, 0 | 2.59x (2.49 to 2.67) | 2.54x | 102% (99% to 109%) |" in text
    assert "behind" in text


def test_strange_files_are_shown_as_far_as_they_go(tmp_path):
    rows = [{"id": "bare"}, {"id": "odd", "metrics": {"fid": {"value": math.nan}, "x": 3}, "seconds": 5, "images": [7]}]
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({"format": "unetaccel-quality/1", "metrics": {"fid": {}}, "rows": rows}))
    result = load(path)
    assert not Page(page.page([result])).open
    assert "| odd | – | – | – | – | – |" in markdown([result])


BAD = {
    "missing": (None, "cannot be read: No such file"),
    "not json": ("{", "is not JSON"),
    "not text": (b"\xff\xfe\x00", "is not JSON"),
    "a list": ("[]", "holds a JSON list"),
    "another format": ('{"format": "other/3", "rows": [1]}', "format 'other/3', which is not known here"),
    "no format": ('{"rows": [1]}', "has no format"),
    "no rows": ('{"format": "unetaccel-quality/1", "rows": []}', "has no rows"),
    "rows of numbers": ('{"format": "unetaccel-quality/1", "rows": [1]}', "row 0 is not an object with an 'id'"),
    "twins": ('{"format": "unetaccel-quality/1", "rows": [{"id": "a"}, {"id": "a"}]}', "two rows named 'a'"),
    "no cases": ('{"cases": []}', "has no timed cases"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_one_clear_error(name, tmp_path):
    content, message = BAD[name]
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingError, match=r"bad\.json") as error:
        load(path)
    assert message in str(error.value)


def command(*arguments):
    """The command in this process."""
    from typer.testing import CliRunner

    from unetaccel.cli import report  # noqa: F401 - it registers itself
    from unetaccel.cli.app import app

    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_the_command_writes_page_figures_and_table(tmp_path):
    pytest.importorskip("matplotlib")
    path, out = write_result(tmp_path), tmp_path / "new" / "report.html"
    arguments = (path, RESULTS / "speed-demo-cpu.json", "--out", out, "--png", tmp_path / "png", "--metric", "psnr")
    found = command(*arguments, "--markdown", tmp_path / "table.md")
    assert found.exit_code == 0, found.exception
    assert found.stdout.count("wrote") == 4
    assert out.read_text().startswith("<!doctype html>")
    assert "PSNR to the plain run, dB" in (tmp_path / "table.md").read_text()
    for name in ("result-psnr-time.png", "result-psnr-macs.png"):
        figure = Image.open(tmp_path / "png" / name)
        assert min(figure.size) > 700
        assert figure.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
        assert len(figure.convert("RGB").getcolors(1_000_000)) > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RESULT", "--metric", "fid"], "--metric 'fid' is in none of these files; they have frechet, psnr"),
        (["RESULT", "--out", "report.pdf"], "must end in .html"),
        (["RESULT", "--markdown", "/proc/none/table.md"], "--markdown '/proc/none/table.md' cannot be written"),
    ],
)
def test_mistakes_at_the_command_are_found_before_anything_is_written(tmp_path, arguments, message, monkeypatch):
    path = write_result(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    found = command(*(path if a == "RESULT" else a for a in arguments))
    assert isinstance(found.exception, SettingError)
    assert message in str(found.exception)
    assert [p.name for p in tmp_path.iterdir()] == ["results"]


def test_mistakes_at_the_command_are_one_line(tmp_path):
    code = "from unetaccel.cli import main; main()"
    run = [sys.executable, "-c", code, "report", "nowhere.json"]
    found = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 1
    assert found.stderr.strip().startswith("error: result file 'nowhere.json' cannot be read")
    assert len(found.stderr.strip().splitlines()) == 1


def test_figures_say_when_matplotlib_is_missing(tmp_path, result, monkeypatch):
    from unetaccel.report.figures import write_figures

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SettingError, match=r"pip install 'unetaccel\[report\]'"):
        write_figures(tmp_path, [result])


def test_a_strip_is_cut_into_its_pictures(tmp_path, result):
    strip = Image.new("RGB", (64, 32), "red")
    strip.paste("blue", (32, 0, 64, 32))
    strip.save(tmp_path / "strip.png")

    def change(data):
        for row, name in zip(data["rows"], ["strip.png", "../strip.png", "gone.png"], strict=False):
            row["strip"], row["images"] = name, ["0-0.png", "1-0.png"]

    pictures, missing = collect(load(rewrite(result.path, change)))
    first, outside, gone = (row.id for row in result.rows[:3])
    assert [_colour(pictures[first][name]) for name in ("0-0.png", "1-0.png")] == [(255, 0, 0), (0, 0, 255)]
    assert outside not in pictures
    assert gone not in pictures
    assert len(missing) == 4


def _colour(uri: str) -> tuple:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).getpixel((5, 5))


def test_a_plain_run_is_judged_by_its_likeness_to_the_run_at_hand(result):
    def change(data):
        data["metrics"]["psnr"] = {"label": "PSNR", "better": "higher", "unit": "dB", "to": "plain"}
        for row in data["rows"]:
            score = {"value": 30.0, "sd": 0.1}
            row["metrics"]["psnr"] = score
            if row["kind"] == "plain" and row["steps"] < 20:
                row["metrics"]["psnr"] = {"value": 10.0, "sd": 0.1}  # to a longer run than the one at hand
                row["metrics_to"] = {"ddim-20-plain": {"psnr": {"value": 40.0, "sd": 0.1}}}

    found = load(rewrite(result.path, change))
    row = next(row for row in found.rows if row.kind == "method")
    assert verdict(found, row, "psnr").ahead == "plain"
    assert verdict(found, row, "psnr").gain == pytest.approx(-10)
    assert found.score(found.plain(row), "psnr", found.plain(row)) is None
    assert "40" in markdown([found], "psnr")


def test_the_plain_run_is_found_where_the_solver_is_the_pipeline_s_own(tmp_path):
    path = write_result(tmp_path)
    path.write_text(path.read_text().replace("ddim-", "own-").replace('"solver": "ddim"', '"solver": null'))
    found = load(path)
    method = next(row for row in found.rows if row.kind == "method")
    assert found.plain(method).id == f"own-{method.steps}-plain"
