"""The page in a real browser."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from browsing import PHONE, WIDE, launched, needs_chromium, opener
from made_evaluations import write_evaluation, write_zoo

from corm_jax.html_report.document import write_report

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = needs_chromium

# What would run, or break the page, if it were not escaped.
EVIL = "</script><script>throw 1</script><img src=x onerror=alert(1)>'\"&$x$"
NAMES = ["cat", EVIL, "otter"]
MODELS = {
    "alpha": "resnet18",
    "beta": "timm:vit_base_patch16_224",
    "gamma": "deit_tiny_patch16_224",
}


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with launched() as running:
        yield running


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page about three models, of which "beta" was measured by one protocol alone."""
    parent = tmp_path_factory.mktemp("evaluations")
    for seed, (label, model) in enumerate(MODELS.items()):
        levels = {"complement": {"clean": 0.8, "core": 0.4 + 0.15 * seed, "spurious": 0.5}}
        if label != "beta":
            shown = {"grey_background": 0.7, "grey_object": 0.2}
            levels["ablations"] = {"swapped_background": 0.7 - 0.15 * seed, **shown}
        write_evaluation(
            parent / label,
            model,
            names=NAMES,
            seed=seed,
            levels=levels,
            curves=label != "beta",
            pictures=3 if label != "beta" else 0,
            per_class=12,
        )
    write_report([parent / label for label in MODELS], parent / "report.html")
    return parent / "report.html"


@pytest.fixture
def new_page(browser: "sync_api.Browser") -> Iterator[Callable[..., "sync_api.Page"]]:
    """Returns a function that opens a file; a complaint or a request of it fails the test."""
    seen: list[str] = []

    with opener(browser) as open_page:

        def opened(path: Path, **options: object) -> "sync_api.Page":
            page = open_page("about:blank", **options)
            page.on("console", lambda message: seen.append(message.text))
            page.on("dialog", lambda dialog: seen.append(dialog.message))
            page.on("request", lambda request: seen.append(request.url))
            page.goto(path.as_uri())
            assert seen.pop(0) == path.as_uri()
            return page

        yield opened
        assert not [text for text in seen if not text.startswith("data:image/")]


@pytest.fixture
def page(new_page: Callable[..., "sync_api.Page"], report: Path) -> "sync_api.Page":
    return new_page(report)


def labels(page: "sync_api.Page") -> list[str]:
    """Returns the models that the table shows, in its order."""
    return page.locator("#ranking tbody tr:visible .label").all_inner_texts()


def head_of(page: "sync_api.Page", title: str) -> "sync_api.Locator":
    """Returns the head of a column that is shown; of none for one that is not."""
    name = re.compile(rf"^{title}( %|$)")
    return page.locator("#ranking").get_by_role("columnheader", name=name)


def values(report: Path, protocol: str, name: str) -> dict[str, float]:
    """Returns a metric of the models that have it, from their files."""
    found = {}
    for label in MODELS:
        results = json.loads((report.parent / label / "results.json").read_text())
        if protocol in results["protocols"]:
            found[label] = results["protocols"][protocol]["metrics"][name]
    return found


def test_the_table_sorts_by_keyboard(page: "sync_api.Page", report: Path) -> None:
    core = values(report, "complement", "core")
    best_first = sorted(core, key=core.get, reverse=True)
    head = head_of(page, "Core")
    assert head.get_attribute("aria-sort") == "descending"  # not all have swapped background
    assert labels(page) == best_first
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert labels(page) == best_first[::-1]
    page.keyboard.press("Tab")  # to swapped background
    page.keyboard.press("Space")
    assert page.locator("#ranking [aria-sort]").inner_text().startswith("Swapped background")
    assert page.locator("#ranking [aria-sort]").count() == 1
    swapped = values(report, "ablations", "swapped_background")
    best_first = sorted(swapped, key=swapped.get, reverse=True)
    assert labels(page) == [*best_first, "beta"]  # what is missing comes last
    page.keyboard.press("Space")
    assert labels(page) == [*best_first[::-1], "beta"]
    grey = head_of(page, "Grey object")
    grey.get_by_role("button").click()
    assert grey.get_attribute("aria-sort") == "ascending"  # lower is better
    head_of(page, "Model").get_by_role("button").click()
    assert labels(page) == list(MODELS)


def test_the_table_filters_by_keyboard_and_so_do_the_figures(page: "sync_api.Page") -> None:
    page.get_by_label("Filter models").focus()
    page.keyboard.type("VIT 16")
    assert labels(page) == ["beta"]
    assert page.locator("#count").inner_text() == "1 of 3 models"
    shown = page.locator(".figures figure").first.locator(".point:visible")
    assert {point.get_attribute("data-row") for point in shown.all()} == {"1"}
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    chip = page.locator("main > :first-child .chip", has_text="gamma")
    chip.focus()
    page.keyboard.press("Space")
    assert chip.get_attribute("aria-pressed") == "true"
    assert page.locator(".chip[aria-pressed=true]").count() == 2  # the legend of the figures too
    assert labels(page) == ["gamma"]
    page.keyboard.press("Space")
    assert len(labels(page)) == 3


def test_columns_and_intervals_are_chosen_by_keyboard(page: "sync_api.Page") -> None:
    plain = head_of(page, "Clean plain")
    assert not plain.is_visible()
    page.get_by_text("Columns", exact=True).focus()
    page.keyboard.press("Enter")
    box = page.get_by_role("checkbox", name="Clean plain")
    assert "mean over images" in box.locator("xpath=..").inner_text()
    box.focus()
    page.keyboard.press("Space")
    assert plain.is_visible()
    area = page.get_by_role("checkbox", name="Core area")  # of a protocol that the page knows not
    area.check()
    assert head_of(page, "Core area").is_visible()
    cell = page.locator("#ranking tbody tr").first.locator("td[data-value]").first
    images, classes = cell.locator(".images"), cell.locator(".classes")
    assert images.is_visible()
    page.get_by_role("radio", name="images").focus()
    page.keyboard.press("ArrowRight")
    assert classes.is_visible()
    assert not images.is_visible()
    page.keyboard.press("ArrowRight")
    assert not classes.is_visible()


def test_the_skip_link_comes_first_and_focus_shows(page: "sync_api.Page") -> None:
    page.keyboard.press("Tab")
    link = page.locator(".skip")
    assert link.evaluate("e => e === document.activeElement && e.getBoundingClientRect().top >= 0")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "ranking-title"
    page.keyboard.press("Tab")
    focused = "getComputedStyle(document.activeElement)"
    assert page.evaluate("document.activeElement.id") == "filter"
    assert page.evaluate(f"{focused}.outlineStyle") == "solid"
    assert page.evaluate(f"parseFloat({focused}.outlineWidth)") >= 2


def test_a_model_is_marked_in_the_figures(page: "sync_api.Page") -> None:
    figures = page.locator(".figures")
    button = page.locator("#ranking button.label", has_text="alpha")
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    lit = {point.get_attribute("data-row") for point in figures.locator(".point.lit").all()}
    assert lit == {"0"}
    page.keyboard.press("Enter")
    assert figures.locator(".point.lit").count() == 0
    first = figures.locator("figure").first
    first.scroll_into_view_if_needed()
    box = first.locator('.point[data-row="2"] use').bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator("#tip").inner_text()
    assert tip.splitlines()[0] == "gamma"
    assert tip.splitlines()[1].startswith("Clean ")
    assert tip.splitlines()[2].startswith("Core ")
    assert "lit" in page.locator('#ranking tr[data-row="2"]').get_attribute("class")
    page.mouse.move(0, 0)
    assert not page.locator("#tip").is_visible()


def test_classes_come_worst_first(page: "sync_api.Page") -> None:
    table = page.locator("#class-table")

    def column(title: str) -> list[str]:
        heads = table.locator("thead th").all_inner_texts()
        place = next(n for n, head in enumerate(heads) if head.startswith(title))
        return [
            row.locator("th, td").nth(place).inner_text() for row in table.locator("tbody tr").all()
        ]

    page.locator("#class-model").select_option(label="gamma")
    lost = [float(text.replace("\N{MINUS SIGN}", "-")) for text in column("Lost by swap")]
    assert lost == sorted(lost, reverse=True)
    pairs = zip(column("Clean"), column("Swapped"), strict=True)
    assert lost == pytest.approx([float(a) - float(b) for a, b in pairs], abs=0.11)
    assert set(column("Class")) == set(NAMES)
    table.locator("th", has_text="Core").get_by_role("button").press("Enter")
    core = [float(text) for text in column("Core")]
    assert core == sorted(core)
    page.locator("#class-filter").fill("OTT")
    assert column("Class") == ["otter"]
    page.locator("#class-filter").fill("")
    page.locator("#class-model").select_option(label="beta")
    assert column("Swapped") == ["", "", ""]  # not measured, not 0
    assert column("Lost by swap") == ["", "", ""]


def test_panels_show_what_a_model_sees_and_says(page: "sync_api.Page") -> None:
    panels = page.locator(".panel")
    assert panels.count() == 3
    assert panels.locator("h3").all_inner_texts() == NAMES
    options = page.locator("#panel-model option").all_inner_texts()
    assert sorted(options) == ["alpha", "gamma"]  # "beta" has no examples
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert page.evaluate("document.images.length") > 20
    assert page.evaluate(broken) == 0
    captions = panels.first.locator("figcaption").all_inner_texts()
    assert captions[:3] == ["Image", "Core region", "Core: noise outside"]
    assert captions[-1] == "Grad-CAM"
    assert panels.nth(1).get_by_text("no partner of another class").count() == 1
    before = panels.locator(".said").all_inner_texts()
    assert all(text[0] in "✓✗" and "%" in text for text in before)
    other = next(name for name in options if name != options[0])
    page.locator("#panel-model").select_option(label=other)
    assert panels.locator(".said").all_inner_texts() != before


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_the_page_fits_and_is_readable(
    new_page: Callable[..., "sync_api.Page"], report: Path, viewport: dict, scheme: str
) -> None:
    page = new_page(report, viewport=viewport, color_scheme=scheme)
    page.get_by_text("Columns", exact=True).click()
    page.get_by_text("Data, masks, noise").click()
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    box = page.locator(".box").first
    assert box.evaluate("e => e.scrollWidth > e.clientWidth") == (viewport is PHONE)

    def lightness(expression: str) -> float:
        colour = page.evaluate(expression)
        return float(np.mean([int(part) for part in colour.strip("rgb()").split(",")]))

    paper = lightness("getComputedStyle(document.body).backgroundColor")
    assert (paper < 128) == (scheme == "dark")
    for selector, style in {
        "td b": "color",
        ".note": "color",
        "figure text": "fill",
        ".said": "color",
        "#class-table td": "color",
    }.items():
        ink = lightness(f"getComputedStyle(document.querySelector('{selector}')).{style}")
        assert abs(ink - paper) > 90, selector


def test_without_scripts_the_ranking_and_the_figures_are_there(
    new_page: Callable[..., "sync_api.Page"], report: Path
) -> None:
    page = new_page(report, java_script_enabled=False)
    assert len(labels(page)) == 3
    assert page.locator("figure svg").count() == 6


@pytest.mark.slow
def test_42_models_and_1000_classes_stay_usable(
    new_page: Callable[..., "sync_api.Page"], tmp_path: Path
) -> None:
    paths = write_zoo(tmp_path / "zoo", classes=1000, per_class=2, pictures=8, side=160)
    output = tmp_path / "report.html"
    size = write_report(paths, output)
    assert size == output.stat().st_size < 5e6
    page = new_page(output, viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert len(labels(page)) == 42
    assert page.locator("#figures-title + .chips .chip").count() == 14  # families
    page.locator("#figures-title + .chips .chip", has_text="Swin").click()
    assert len(labels(page)) == 3
    page.get_by_role("button", name="Show all 1000").click()
    assert page.locator("#class-table tbody tr").count() == 1000
