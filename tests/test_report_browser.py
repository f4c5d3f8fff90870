"""The report in headless Chromium: opened, clicked, and looked at in three ways. Skipped only where no browser is."""

import io
import random
import shutil
from pathlib import Path

import pytest
from PIL import Image
from report_cases import write_result

from unetaccel.report import load, verdicts, write_page

sync_api = pytest.importorskip("playwright.sync_api")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip
SPEED = Path(__file__).parents[1] / "bench" / "results" / "speed-demo-cpu.json"


def chromium(playwright) -> str | None:
    own = playwright.chromium.executable_path
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", own))), None)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        path = chromium(playwright)
        if path is None:
            pytest.skip("no Chromium here")
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("report")
    path = write_result(folder, (2, 3, 5), (0, 1), ("uniform", "quad"), (20, 50))
    write_page(folder / "report.html", [load(path), load(SPEED)])
    return (folder / "report.html").as_uri()


@pytest.fixture
def opened(browser, address, request):
    """The page; the test fails if it said anything to the console or asked for anything but itself."""
    options = getattr(request, "param", {})
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url[:60]))
    page.goto(address)
    yield page
    context.close()
    assert not said
    assert [url for url in asked if not url.startswith("data:")] == [address[:60]]


def values(page, column: int) -> list[float | None]:
    return page.evaluate(
        "i => [...document.querySelectorAll('article.quality tbody tr')].map(r => r.cells[i].dataset.v === undefined ? null : Number(r.cells[i].dataset.v))",
        column,
    )


def test_tables_sort_by_a_press_on_the_heading(opened):
    head = opened.locator("article.quality thead th", has_text="speedup")
    button, column = head.locator("button"), head.evaluate("th => th.cellIndex")
    for order, reverse in (("ascending", False), ("descending", True)):
        button.focus()
        opened.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == order
        found = values(opened, column)
        known = [v for v in found if v is not None]
        assert known == sorted(known, reverse=reverse)
        assert found[: len(known)] == known  # plain runs have no speedup: last both ways
        assert len(known) < len(found)


def test_filtering_leaves_the_rows_that_match(opened):
    opened.locator("[data-filter]").fill("quad interval=3")
    rows = opened.locator("article.quality tbody tr:visible")
    assert rows.count() == 4
    assert "4 of" in opened.locator(".shown").inner_text()


def test_metric_axis_and_steps_are_chosen(opened):
    section = opened.locator(".tradeoff")
    titles = section.locator(".plot .axis")
    assert titles.all_text_contents() == ["speedup over plain 50 steps →", "Fréchet distance (demo label network)"]
    section.get_by_role("combobox").first.select_option("psnr")
    section.get_by_role("button", name="MACs").click()
    assert titles.all_text_contents() == ["MACs per image (M)", "PSNR to the plain run (dB)"]
    assert "Not drawn, for want of a number: plain, 50 steps" in section.locator(".plotnote").inner_text()
    before = section.locator(".plot [data-curve] > :last-child").count()
    section.get_by_role("button", name="all steps").click()
    assert section.locator(".plot [data-curve] > :last-child").count() > before
    assert opened.locator(".against select").first.input_value() == "psnr"
    assert opened.locator(".duel[data-id]").count() == 24
    assert opened.locator(".duel .behind").count() > 0


def test_a_curve_is_hidden_from_the_legend(opened):
    chip = opened.locator(".legend button", has_text="cut 0, quad")
    curves = opened.locator(".plot g[data-curve]")
    before = curves.count()
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    assert curves.count() == before - 1


def test_ceilings_and_spread_are_drawn_when_asked(opened):
    limits, spread = opened.locator(".plot .limit"), opened.locator(".plot .spread")
    assert limits.count() == 0
    assert spread.count() > 0
    opened.get_by_label("ceilings").check()
    opened.get_by_label("spread").uncheck()
    assert limits.count() > 0
    assert spread.count() == 0


def test_points_speak_and_are_chosen_by_mouse_and_keyboard(opened):
    plot, tip = opened.locator(".plot svg"), opened.locator(".tip")
    point = opened.locator(".plot g[data-curve*='quad'] path:not(.curve), .plot g[data-curve*='quad'] circle").first
    point.hover()
    assert "quad" in opened.locator("tr[data-id]", has_text="quad").first.inner_text()
    assert "Fréchet distance" in tip.inner_text()
    point.click()
    chosen = opened.locator("tr.selected")
    assert chosen.count() == 1
    assert "quad" in chosen.get_attribute("data-id")
    assert opened.locator(".pictures select").first.input_value() == chosen.get_attribute("data-id")
    plot.focus()
    opened.keyboard.press("Escape")
    assert not tip.is_visible()
    opened.keyboard.press("ArrowLeft")
    assert tip.is_visible()
    opened.keyboard.press("Enter")
    assert opened.locator(".details b").inner_text() == tip.locator("b").inner_text()


def test_the_slider_parts_the_pictures(opened):
    tiles, slider = opened.locator(".tiles"), opened.locator("[data-split]")
    assert opened.locator(".tiles img").count() == 4
    assert opened.evaluate("[...document.images].every(i => i.complete && i.naturalWidth === 32)")

    def split() -> str:
        return tiles.evaluate("t => t.style.getPropertyValue('--split')")

    slider.focus()
    opened.keyboard.press("Home")
    assert split() == "0%"
    tiles.scroll_into_view_if_needed()
    box = tiles.locator(".pair").first.bounding_box()
    opened.mouse.move(box["x"] + 5, box["y"] + 20)
    opened.mouse.down()
    opened.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 30)
    opened.mouse.up()
    assert split() == slider.input_value() + "%" == "75%"
    opened.locator(".pictures select").nth(1).select_option("equal_macs")
    assert opened.locator(".slider .left").inner_text() != "plain, 50 steps"


def test_the_script_finds_the_front_that_python_finds(opened):
    chance = random.Random(2)
    points = [(chance.randint(0, 20), chance.randint(0, 20)) for _ in range(80)]
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        found = opened.evaluate("([p, a, b]) => front(p.map(([px, py]) => ({px, py})), a, b)", [points, *signs])
        assert [points[i] for i in found] == [points[i] for i in verdicts.front(points, *signs)]


LOOKS = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "dark phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}


@pytest.mark.parametrize(("opened", "name"), [(LOOKS[n], n) for n in LOOKS], indirect=["opened"], ids=list(LOOKS))
def test_it_fits_and_is_readable(opened, name):
    opened.get_by_label("ceilings").check()
    opened.locator("summary").first.click()
    assert opened.evaluate("document.documentElement.scrollWidth") == opened.viewport_size["width"]
    cut_off = """[...document.querySelectorAll("main *")].filter(e => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1)
        .map(e => e.className || e.tagName)"""
    assert opened.evaluate(cut_off) == []
    picture = Image.open(io.BytesIO(opened.screenshot(full_page=True))).convert("RGB")
    assert len(picture.getcolors(10_000_000)) > 200  # text, curves and pictures, not one blank sheet
    assert (sum(picture.getpixel((2, 2))) < 200) == ("dark" in name)
    assert opened.evaluate(CONTRAST) >= 4.5


# The least contrast (WCAG) of visible text with what it stands on, outside of plots and of marks that are switched off.
CONTRAST = """() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length && c[3] !== 0) return c; } return [255, 255, 255]; };
  let least = 99;
  for (const e of document.querySelectorAll("main :is(p, li, button, label, td, th, small, dt, dd, span, h2, figcaption)")) {
    if (!e.checkVisibility() || ![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const back = ground(e);
    if (getComputedStyle(e).backgroundColor.startsWith("color(") || e.closest(".selected")) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(back)];
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least;
}"""
