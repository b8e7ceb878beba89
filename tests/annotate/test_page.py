"""The page in a real browser."""

import base64
import csv
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from annotate_fixtures import Served, plain
from browsing import PHONE, WIDE, launched, needs_chromium, opener

from corm_jax.errors import UserError

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with launched() as running:
        yield running


@pytest.fixture
def new_page(browser: "sync_api.Browser") -> Iterator[Callable[..., "sync_api.Page"]]:
    with opener(browser) as open_page:
        yield open_page


def shown(page: "sync_api.Page", kind: str) -> list[bytes]:
    """Returns the pictures on the page, when all are there."""
    frames = page.locator(f"[data-kind={kind}].made img")
    frames.nth(4).wait_for()
    urls = [frame.get_attribute("src") for frame in frames.all()]
    return [base64.b64decode(url.removeprefix("data:image/png;base64,")) for url in urls]


def at(page: "sync_api.Page", title: str) -> None:
    """Waits until the page shows a pair."""
    sync_api.expect(page).to_have_title(title, timeout=10_000)


def chosen(page: "sync_api.Page") -> list[str]:
    return [box.get_attribute("value") for box in page.locator("input:checked").all()]


@pytest.fixture
def page(new_page: Callable[..., "sync_api.Page"], served: Served) -> "sync_api.Page":
    page = new_page(served.link)
    at(page, "otter, feature 7")
    return page


def test_pair_is_shown_with_its_pictures(page: "sync_api.Page", served: Served) -> None:
    assert page.locator("h1").inner_text() == "otter"
    assert page.locator("#feature").inner_text() == "n01 · feature 7 · rank 1 of 2"
    assert page.locator("#progress-text").inner_text() == "0 of 3 pairs"
    assert "the otter itself" in page.locator(".choice").first.inner_text()
    for kind in ("images", "maps", "attacks"):
        assert shown(page, kind) == [plain(kind, 0, rank) for rank in range(5)]
    assert page.url == f"http://{served.address}/"  # the token is out of sight


def test_keys_alone_answer_all_pairs(page: "sync_api.Page", served: Served) -> None:
    for key in ("1", "2", "w", "Enter"):
        page.keyboard.press(key)
    at(page, "otter, feature 3")
    assert chosen(page) == []
    assert shown(page, "maps") == [plain("maps", 1, rank) for rank in range(5)]
    page.keyboard.press("3")
    page.keyboard.press("t")
    page.keyboard.press("n")
    page.keyboard.type("water, 1 2 q b")
    assert chosen(page) == ["background", "5"]  # typing is no answer
    page.keyboard.press("Enter")
    at(page, "n03, feature 7")
    page.keyboard.press("Numpad1")
    page.keyboard.press("Q")
    page.keyboard.press("Enter")
    at(page, "All pairs are answered")
    assert page.locator("#csv").inner_text() == str(served.csv)
    assert page.locator("#progress-text").inner_text() == "3 of 3 pairs"
    with served.csv.open(newline="") as file:
        rows = [tuple(row)[3:] for row in csv.reader(file)][1:]
    assert rows == [
        ("7", "1", "separate_object", "2", ""),
        ("3", "2", "background", "5", "water, 1 2 q b"),
        ("7", "1", "main_object", "1", ""),
    ]


def test_mouse_answers_and_back_changes_an_answer(page: "sync_api.Page", served: Served) -> None:
    page.get_by_text("Separate object").click()
    page.locator(".scale label").nth(3).click()
    page.get_by_label("Reasons").fill("a hand")
    page.get_by_role("button", name="Save").click()
    at(page, "otter, feature 3")
    page.get_by_role("button", name="Back").click()
    at(page, "otter, feature 7")
    assert chosen(page) == ["separate_object", "4"]
    assert page.get_by_label("Reasons").input_value() == "a hand"
    assert shown(page, "images") == [plain("images", 0, rank) for rank in range(5)]
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    at(page, "otter, feature 3")
    assert page.locator("#progress-text").inner_text() == "1 of 3 pairs"
    [answer] = served.file.answers.values()
    assert (answer.main, answer.confidence, answer.reasons) == ("main_object", 4, "a hand")


def test_tab_and_space_reach_every_control(page: "sync_api.Page", served: Served) -> None:
    for _ in range(4):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "main":
            break
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    assert chosen(page) == ["separate_object"]
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.type("seen")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")  # "Back" is disabled at the first pair: this saves
    at(page, "otter, feature 3")
    [answer] = served.file.answers.values()
    assert (answer.main, answer.confidence, answer.reasons) == ("separate_object", 1, "seen")


def test_incomplete_answer_is_not_saved_and_said_so(page: "sync_api.Page", served: Served) -> None:
    page.keyboard.press("Enter")
    assert page.get_by_role("alert").inner_text() == "Say where it lies: 1, 2 or 3."
    page.keyboard.press("3")
    assert page.get_by_role("alert").inner_text() == ""
    page.keyboard.press("Enter")
    assert page.get_by_role("alert").inner_text() == "Say how sure you are: Q to T."
    assert not served.file.answers


def test_keys_of_the_browser_are_left_alone(page: "sync_api.Page") -> None:
    page.keyboard.press("Control+1")
    page.keyboard.press("Alt+2")
    assert chosen(page) == []


def test_reload_goes_on_at_the_first_unanswered_pair(page: "sync_api.Page") -> None:
    for key in ("3", "e", "Enter"):
        page.keyboard.press(key)
    at(page, "otter, feature 3")
    page.reload()  # the cookie is the key now
    at(page, "otter, feature 3")
    assert page.locator("#progress-text").inner_text() == "1 of 3 pairs"


def test_answer_that_the_disk_refuses_stays_on_the_page(
    page: "sync_api.Page", served: Served
) -> None:
    kept = served.file._file
    with Path("/dev/full").open("ab", buffering=0) as served.file._file:
        for key in ("3", "e", "Enter"):
            page.keyboard.press(key)
        page.get_by_text("cannot write").wait_for()
        assert page.title() == "otter, feature 7"
        assert chosen(page) == ["background", "3"]
    served.file._file = kept
    page.keyboard.press("Enter")
    at(page, "otter, feature 3")


def test_server_that_is_gone_is_told(
    new_page: Callable[..., "sync_api.Page"], tmp_path: Path
) -> None:
    served = Served(tmp_path)
    try:
        page = new_page(served.link)
        at(page, "otter, feature 7")
        shown(page, "attacks")
    finally:
        served.close()
    for key in ("3", "e", "Enter"):
        page.keyboard.press(key)
    page.get_by_text("The server does not answer. Is the command still running?").wait_for()
    assert chosen(page) == ["background", "3"]


def test_slow_attack_keeps_nobody_waiting_and_a_failed_one_is_told(
    new_page: Callable[..., "sync_api.Page"], tmp_path: Path
) -> None:
    let = threading.Event()

    def attack(number: int) -> list[bytes]:
        assert let.wait(20)
        if number == 1:
            raise UserError("cannot write attacks/1.png: no space left")
        return [plain("attacks", number, rank) for rank in range(5)]

    def quick(kind: str) -> Callable[[int], list[bytes]]:
        return lambda number: [plain(kind, number, rank) for rank in range(5)]

    served = Served(tmp_path, {"images": quick("images"), "maps": quick("maps"), "attacks": attack})
    try:
        page = new_page(served.link)
        assert shown(page, "maps") == [plain("maps", 0, rank) for rank in range(5)]
        for title in ("otter, feature 3", "n03, feature 7"):
            for key in ("3", "e", "Enter"):
                page.keyboard.press(key)
            at(page, title)
        assert shown(page, "images") == [plain("images", 2, rank) for rank in range(5)]
        let.set()
        assert shown(page, "attacks") == [plain("attacks", 2, rank) for rank in range(5)]
        page.keyboard.press("b")
        page.get_by_text("no space left").wait_for()
        assert page.locator("[data-kind=attacks].failed").count() == 5
    finally:
        let.set()
        served.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_page_fits_and_is_readable(
    new_page: Callable[..., "sync_api.Page"],
    served: Served,
    viewport: dict[str, int],
    scheme: str,
) -> None:
    page = new_page(served.link, viewport, color_scheme=scheme)
    shown(page, "attacks")
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollWidth") == viewport["width"]
    if viewport is WIDE:  # everything of a pair at once
        assert page.evaluate(f"{root}.scrollHeight") <= viewport["height"]
    boxes = [box.bounding_box() for box in page.locator(".frame").all()]
    assert min(box["width"] for box in boxes) > 100
    assert all(abs(box["width"] - box["height"]) < 1 for box in boxes)
    # Side by side: an image, its heat map, its attack.
    first, heat, attack = boxes[:3]
    across = "y" if viewport is PHONE else "x"
    assert first[across] == heat[across] == attack[across]
    for selector in ("h1", "small", ".choice b", "#save", "kbd", "#progress-text"):
        ink, paper = page.evaluate(COLORS_OF, selector)
        assert contrast(ink, paper) >= 4.5, (selector, ink, paper)


COLORS_OF = """selector => {
  const element = document.querySelector(selector);
  const paper = node => getComputedStyle(node).backgroundColor;
  let behind = element;
  while (paper(behind) === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  return [getComputedStyle(element).color, paper(behind)].map(
    color => color.match(/[0-9.]+/g).slice(0, 3).map(Number));
}"""


def contrast(one: list[float], other: list[float]) -> float:
    """Returns the contrast ratio of two colours as WCAG 2 defines it."""

    def luminance(color: list[float]) -> float:
        parts = [c / 255 for c in color]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_old_link_says_what_to_do(new_page: Callable[..., "sync_api.Page"], served: Served) -> None:
    page = new_page(f"http://{served.address}/?token=old")
    assert "open the link that the command printed" in page.content()


def test_other_site_cannot_answer(page: "sync_api.Page", served: Served) -> None:
    program = """([url, body]) => fetch(
      url, {method: "POST", credentials: "include", body,
            mode: document.domain === "evil.example" ? "no-cors" : "same-origin",
            headers: {"Content-Type": "application/json"}}).then(() => "sent", () => "refused")"""
    answer = json.dumps({"main": "background", "confidence": 1, "reasons": ""})
    arguments = [f"http://{served.address}/pairs/0/answer", answer]
    page.route("http://evil.example/", lambda route: route.fulfill(body="<p>evil"))
    page.goto("http://evil.example/")
    page.evaluate(program, arguments)
    assert not served.file.answers
    page.goto(served.link)
    assert page.evaluate(program, arguments) == "sent"
    assert len(served.file.answers) == 1
