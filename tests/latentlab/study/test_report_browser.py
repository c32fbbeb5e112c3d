"""The report of a study in a real browser: it opens from disk, sorts, filters, switches axes, hovers, and fetches nothing."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from latentlab.report import write_report

from .report_folder import HOSTILE, TARGET, full_folder, hostile_folder

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with chromedriver is installed")

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1400,1000",
)  # fmt: skip
PATIENCE = 120
"""Seconds to wait for the browser on a busy machine."""

# Bokeh draws inside shadow roots, which document.querySelectorAll does not enter.
TOOLS = """
window.model = (name) => Bokeh.documents[0].get_model_by_name(name);
window.view = (name) => Bokeh.index.find_one_by_id(model(name).id);
window.inside = (selector, root = document) => [...root.querySelectorAll("*")].flatMap((element) => [
  ...(element.matches(selector) ? [element] : []), ...(element.shadowRoot ? inside(selector, element.shadowRoot) : [])]);
window.rows = () => [...view("table").shadow_el.querySelectorAll(".slick-row")]
  .sort((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top);
"""

RESET = """
const first = {"explorer-cluster": "", "explorer-generator": "sit", "explorer-guidance scale": "1", "matrix-method": "0",
  "plot1-x": "m_viv", "plot1-y": arguments[0], "plot2-x": "psnr", "plot2-y": arguments[0]};
for (const [name, value] of Object.entries(first)) model(name).value = value;
model("explorer-search").setv({value: "", value_input: ""});
model("rows").selected.indices = [];
window.scrollTo(0, 0);
"""


TITLES = "return inside('.bk-tooltip-content strong').map((one) => one.textContent)"


class Page:
    """A report in the browser."""

    def __init__(self, browser: Any, file: Path) -> None:
        self.browser = browser
        self.file = file
        browser.get(file.as_uri())
        self.until(
            lambda: self.run("return !!window.Bokeh && Bokeh.documents.length > 0 && Bokeh.documents[0].is_idle")
        )
        self.run(TOOLS)

    def run(self, code: str, *arguments: Any) -> Any:
        """Run JavaScript."""
        return self.browser.execute_script(code, *arguments)

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for a condition and return what it gave."""
        deadline = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert time.monotonic() < deadline, "the page did not react"
            time.sleep(0.05)
        return found

    def choose(self, name: str, value: str) -> None:
        """Choose an option of a drop-down as a user does."""
        from selenium.webdriver.support.ui import Select

        Select(self.run("return view(arguments[0]).input_el", name)).select_by_visible_text(value)

    def column(self, name: str) -> list[str]:
        """Return the visible texts of a column of the table, from above."""
        fields = self.run("return model('table').columns.map((column) => column.field)")
        return self.run("return rows().map((row) => row.children[arguments[0]]?.textContent)", fields.index(name))

    def names(self) -> list[str]:
        """Return the tokenizers in the table; the frozen first column has rows of its own."""
        shown = self.run(
            "return rows().filter((row) => row.closest('.grid-canvas-left')).map((row) => row.textContent)"
        )
        return [name for name in shown if name]

    def place(self, plot: str, row: int, x: str, y: str) -> tuple[float, float]:
        """Return where a plot draws a row, in pixels of the window."""
        return tuple(
            self.run(
                """
                const [name, row, x, y] = arguments;
                const data = model("rows").data, plot = view(name), box = plot.canvas_view.el.getBoundingClientRect();
                return [box.left + plot.frame.x_scale.compute(data[x][row]), box.top + plot.frame.y_scale.compute(data[y][row])];
                """,
                plot, row, x, y,
            )
        )  # fmt: skip

    def drawn(self, plot: str) -> str:
        """Return the pixels of a plot, coded."""
        return self.run("return view(arguments[0]).canvas_view.primary.canvas.toDataURL()", plot)

    def point_at(self, plot: str, row: int, x: str, y: str, click: bool = False) -> None:
        """Move the mouse onto a point, and click."""
        from selenium.webdriver.common.actions.action_builder import ActionBuilder

        self.run("view(arguments[0]).el.scrollIntoView({block: 'center'})", plot)
        left, top = self.place(plot, row, x, y)
        actions = ActionBuilder(self.browser)
        actions.pointer_action.move_to_location(round(left) + 40, round(top) + 40).move_to_location(
            round(left), round(top)
        )
        if click:
            actions.pointer_action.click()
        actions.perform()

    def requests(self) -> list[str]:
        """Return what this page has asked for, itself excepted."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
        ours = [one["request"]["url"] for one in sent if one["documentURL"] == self.file.as_uri()]
        return [url for url in ours if not url.startswith(("data:", "blob:")) and url != self.file.as_uri()]

    def complaints(self) -> list[str]:
        """Return errors and warnings of the console; a blocked request is one."""
        return [
            entry["message"] for entry in self.browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
        ]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(full_folder(tmp_path_factory.mktemp("study")))


@pytest.fixture(scope="module")
def opened(browser: Any, file: Path) -> Page:
    return Page(browser, file)


@pytest.fixture
def page(opened: Page) -> Iterator[Page]:
    """The opened report as it was at first; whatever a test does with it, nothing is fetched and nothing complains."""
    opened.run(RESET, TARGET)
    opened.requests()
    yield opened
    assert opened.requests() == []
    assert opened.complaints() == []


def test_opens_without_fetching(opened: Page) -> None:
    """The log holds the page itself, so it would hold what the page fetched."""
    messages = [json.loads(entry["message"])["message"] for entry in opened.browser.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    urls = {one["request"]["url"] for one in sent if one["documentURL"] == opened.file.as_uri()}
    assert opened.file.as_uri() in urls
    assert not [url for url in urls if not url.startswith(("file:", "data:", "blob:"))]
    assert opened.complaints() == []


def test_sorts(page: Page) -> None:
    headings = page.run("return [...view('table').shadow_el.querySelectorAll('.slick-header-column')]")
    next(heading for heading in headings if heading.text == "m_viv").click()
    values = page.run(
        "const data = model('rows').data; return [...data.m_viv].map((value, i) => [value, data.tokenizer[i]])"
    )
    falling = list(dict.fromkeys(name for _, name in sorted(values, reverse=True)))
    page.until(lambda: page.names() == falling)
    next(heading for heading in headings if heading.text == "m_viv").click()
    page.until(lambda: page.names() == falling[::-1])


def test_filters(page: Page) -> None:
    assert len(page.names()) == 8
    page.choose("explorer-cluster", "repa")
    page.until(lambda: page.names() == ["tokenizer-02"])
    page.choose("explorer-generator", "all")
    page.until(lambda: page.names() == ["tokenizer-02"] * 2)
    page.choose("explorer-cluster", "all")
    page.run("return view('explorer-search').input_el").send_keys("Izer-05")
    page.until(lambda: page.names() == ["tokenizer-05"] * 2)
    shown = page.run(
        "return model('plot1').renderers.map((renderer) => [...Bokeh.index.find_one_by_id(renderer.id).all_indices])"
    )
    names = page.run("return model('rows').data.tokenizer")
    assert [names[row] for row in shown[0]] == ["tokenizer-05"] * 2
    assert page.run("return model('explorer-count').text") == "2 of 48 rows"


def test_switches_axes(page: Page) -> None:
    before = page.place("plot1", 3, "m_viv", TARGET)
    drawn = page.drawn("plot1")
    page.choose("plot1-x", "m_cds")
    page.choose("plot1-y", "straightness")
    labels = "const plot = model('plot1'); return [plot.below[0].axis_label, plot.left[0].axis_label]"
    shown = page.until(lambda: page.run(labels))
    assert [label.partition(" (")[0] for label in shown] == ["m_cds", "straightness"]
    assert all(label.endswith("higher is better)") for label in shown)
    ends = "const range = model('plot1').x_range; return [range.start, range.end]"
    low, high = page.run("const shown = model('rows').data.m_cds; return [Math.min(...shown), Math.max(...shown)]")
    page.until(
        lambda: (found := page.run(ends))[0] < low and found[1] > high and found[1] - found[0] < 1.5 * (high - low)
    )
    assert page.place("plot1", 3, "m_cds", "straightness") != before
    page.until(lambda: page.drawn("plot1") != drawn)


def test_hover_shows_name_values_and_pictures(page: Page) -> None:
    row = page.run("return model('rows').data.tokenizer.indexOf('tokenizer-06')")
    page.point_at("plot1", row, "m_viv", TARGET)
    entry = (
        "return inside('.bk-tooltip-content strong').find((one) => one.textContent === 'tokenizer-06')?.parentElement"
    )
    tooltip = page.until(lambda: page.run(entry))
    text = page.run("return arguments[0].innerText", tooltip)
    viv = page.run("return model('rows').data.m_viv[arguments[0]]", row)
    assert f"m_viv: {float(f'{viv:.4g}'):g} [" in text and "no picture" not in text
    shown = page.run("return arguments[0].querySelectorAll('img')", tooltip)
    assert [page.run("return arguments[0].naturalWidth", one) for one in shown] == [128, 128]
    gallery = page.run(
        "return [...document.querySelectorAll('.gallery img')].filter((one) => one.alt.startsWith('tokenizer-06'))"
    )
    assert [one.get_attribute("src") for one in shown] == [one.get_attribute("src") for one in gallery[:2]]


def test_selections_are_linked(page: Page) -> None:
    selected = "return model('rows').selected.indices"
    marked = "return rows().filter((row) => row.querySelector('.selected')).map((row) => row.textContent)"
    numbers = {
        name: page.run("return model('rows').data.tokenizer.indexOf(arguments[0])", name) for name in page.names()
    }
    untouched = page.drawn("plot1")
    page.point_at("plot2", numbers["tokenizer-04"], "psnr", TARGET, click=True)
    page.until(lambda: page.run(selected) == [numbers["tokenizer-04"]])
    page.until(lambda: any("tokenizer-04" in text for text in page.run(marked)))
    page.until(lambda: page.drawn("plot1") != untouched)
    before = page.drawn("plot1"), page.drawn("plot2")
    page.run("return rows().find((row) => row.textContent.includes('tokenizer-07')).children[0]").click()
    page.until(lambda: page.run(selected) == [numbers["tokenizer-07"]])
    page.until(lambda: page.drawn("plot1") != before[0] and page.drawn("plot2") != before[1])


def test_matrix_switches_and_opens_a_pair(page: Page) -> None:
    cell = "return ['first', 'second', 'value'].map((name) => model('matrix-source').data[name][arguments[0]])"
    before = page.run(cell, 2)
    page.choose("matrix-method", "pearson")
    page.until(lambda: page.run(cell, 2)[2] != before[2])
    page.run("model('matrix-source').selected.indices = [2]")
    page.until(lambda: page.run("return [model('plot1-x').value, model('plot1-y').value]") == before[:2])
    page.until(lambda: page.run("return model('plot1').below[0].axis_label").startswith(before[0]))


def test_correlations_are_filtered(page: Page) -> None:
    count = "return model('correlations-count').text"
    assert page.run(count) == "2 of 8 rows"  # raw rank correlations
    page.choose("correlations-method", "all")
    page.until(lambda: page.run(count) == "4 of 8 rows")


@pytest.mark.parametrize("width", [1400, 800])
def test_fits_the_window(page: Page, width: int) -> None:
    page.browser.set_window_size(width, 1000)
    page.until(lambda: page.run("return document.documentElement.scrollWidth <= window.innerWidth"))
    page.until(lambda: page.run("return view('plot1').frame.bbox.width > 300"))


def test_markup_in_files_is_text(browser: Any, tmp_path: Path) -> None:
    page = Page(browser, write_report(hostile_folder(tmp_path)))
    assert page.browser.title == f"</title>{HOSTILE}"
    page.choose("plot1-x", HOSTILE)
    page.point_at("plot1", 5, HOSTILE, TARGET)
    page.until(lambda: f"{HOSTILE}tokenizer-05" in page.run(TITLES))
    assert page.run("return inside('img').filter((one) => one.getAttribute('src') === 'x').length") == 0
    assert page.run("return window.hacked") is None
    headings = page.run(
        "return [...view('table').shadow_el.querySelectorAll('.slick-column-name')].map((one) => one.textContent)"
    )
    assert HOSTILE in headings
    assert page.requests() == [] and page.complaints() == []
