"""The explorer's page in a browser, driven as a person would; needs Gradio, Playwright and Chromium."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from explorer import NAMES, image_of, subject_of
from PIL import Image

from alexnet_jax.inspection.explore import blocks, forward, html, subject
from alexnet_jax.inspection.explore.forward import WhatIf

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="the extra explore is not installed"),
]
sync_api.expect.set_options(timeout=60_000)  # milliseconds; a busy machine is slow
PROGRAM = Path(__file__).parent / "explorer.py"
TABS = {
    "Normalization": "#window table",
    "Which pixels": "#matters img",
    "The views": "#all-views figure",
    "Nearest images": "#nearest p",
    "The network": "#maps img",
}


@pytest.fixture(scope="module")
def served():
    """The subject of a page, the page's address, and its process."""
    with subprocess.Popen([sys.executable, "-u", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        address = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in process.stdout)), None)
        assert address, "the page did not start"
        yield subject_of(), address[0], process
        process.terminate()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visit:
    """A tab of the browser that notes errors in its console and requests to other machines."""

    def __init__(self, browser, url, width=1280, scheme="light", script=""):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page, self.wrong = self.context.new_page(), []
        self.page.set_default_timeout(60_000)
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        own = (url, "data:", "blob:", url.replace("http", "ws"))
        self.page.on("request", lambda r: None if r.url.startswith(own) else self.wrong.append(f"asks {r.url}"))
        self.page.on("response", lambda r: self.wrong.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        self.page.add_init_script(script)
        self.page.goto(url)
        self.page.wait_for_selector("#maps img")

    def upload(self, path, status):
        """Uploads a file and waits until the page says so."""
        self.page.locator("#upload input[type=file]").set_input_files(path)
        self.page.locator("#status", has_text=status).wait_for()

    def bars(self, expected):
        """Waits until the bars of one view show the five likeliest of (K,) probabilities."""
        for row, k in enumerate(np.argsort(-expected, kind="stable")[:5]):
            line = self.page.locator("#bars .ex-bars").first.locator(".ex-row").nth(row)
            sync_api.expect(line.locator(".ex-number")).to_have_text(html.percent(float(expected[k])))
            sync_api.expect(line.locator(".ex-name")).to_contain_text(NAMES[k])

    def pick(self, name):
        """Clicks a layer of the figure and waits for its maps."""
        self.page.locator(f'[id^="pick-{name}-0"]').first.click()
        self.page.locator("#maps h4", has_text=f"{name}:").wait_for()

    def tab(self, name):
        """Opens a tab of the page; on a narrow screen it may be in a menu."""
        button = self.page.get_by_role("tab", name=name)
        if not button.is_visible():
            self.page.locator("#tabs .overflow-menu > button").click()
            button = self.page.locator("#tabs .overflow-dropdown button", has_text=name)
        button.click()
        self.page.locator(TABS[name]).first.wait_for()


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        *((1280, "light"), (390, "dark")),
        *(pytest.param(*other, marks=pytest.mark.long) for other in ((1280, "dark"), (390, "light"))),
    ],
)
def test_a_person_uploads_clicks_and_changes(served, browser, tmp_path, width, scheme):
    made, url, _ = served
    visit, image = Visit(browser, url, width, scheme), image_of(seed=9)
    visit.bars(forward.look(made.weights, made.tests[0]).probabilities)
    Image.fromarray(image).save(tmp_path / "mine.png")
    visit.upload(tmp_path / "mine.png", "not from the data set")
    visit.bars(forward.look(made.weights, image).probabilities)
    for block in blocks.blocks(made.weights.architecture):
        visit.pick(block.name)
        assert visit.page.locator("#layer input:checked").get_attribute("value") == block.name
    for name in TABS:
        visit.tab(name)
    visit.page.get_by_label("tower 1").first.uncheck()
    visit.bars(forward.look(made.weights, image, WhatIf(towers_off=(0,))).probabilities)
    assert visit.page.locator("#bars .ex-was").count() == 10
    visit.page.get_by_label("Normalization (LRN)").uncheck()
    visit.bars(forward.look(made.weights, image, WhatIf(towers_off=(0,), lrn=False)).probabilities)
    visit.page.locator("#reset").click()
    visit.bars(forward.look(made.weights, image).probabilities)
    visit.page.get_by_label("Dropout, drawn once").check()
    visit.bars(forward.look(made.weights, image, WhatIf(dropout=0)).probabilities)
    visit.page.locator("#again").click()
    visit.bars(forward.look(made.weights, image, WhatIf(dropout=1)).probabilities)
    visit.page.locator("#reset").click()
    visit.bars(forward.look(made.weights, image).probabilities)
    visit.page.locator("#top input[type=number]").fill("0")
    visit.page.locator("#top input[type=number]").press("Enter")
    visit.bars(forward.look(made.weights, image, WhatIf(corner=(0, 2))).probabilities)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    assert visit.wrong == []
    visit.context.close()


def test_the_pixel_under_the_pointer_shows_its_window_of_maps(served, browser):
    made, url, _ = served
    visit = Visit(browser, url)
    visit.tab("Normalization")
    number = int(visit.page.locator("#number input").input_value()) - 1
    look = forward.look(made.weights, made.tests[0])
    rows, columns = look.outputs["lrn1"].shape[1:3]
    for row, column in ((0, 0), (3, 7)):
        place = visit.page.locator(".ex-point").bounding_box()
        x, y = (column + 0.5) / columns * place["width"], (row + 0.5) / rows * place["height"]
        visit.page.locator(".ex-point").hover(position={"x": x, "y": y}, force=True)
        visit.page.locator("#point .ex-caption", has_text=f"row {row}, column {column}").wait_for()
        found = blocks.window(look, "lrn1", 0, number, row, column)
        shown_numbers = visit.page.locator("#window td:last-child").all_inner_texts()
        assert shown_numbers == [f"{b:.4g}" for b in found.b]
    visit.page.locator(".ex-point").focus()
    visit.page.keyboard.press("ArrowLeft")
    visit.page.locator("#point .ex-caption", has_text="row 3, column 6").wait_for()
    assert visit.wrong == []
    visit.context.close()


def test_images_that_are_hard_get_a_sentence(served, browser, tmp_path):
    made, url, _ = served
    visit = Visit(browser, url)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "words.png").write_text("no image")
    Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
    Image.new("L", (10_000, 10_000), 40).save(tmp_path / "huge.png")
    frames = [Image.new("P", (30, 20), k) for k in (3, 90)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    for name in ("broken.png", "empty.jpg", "words.png"):
        visit.upload(tmp_path / name, f"{name} cannot be shown")
        visit.bars(forward.look(made.weights, made.tests[0]).probabilities)  # the page goes on
    for name in ("one.png", "huge.png", "moving.gif"):
        visit.page.locator("#tests button").nth(1).click()
        visit.page.locator("#status", has_text="A test image of").wait_for()
        visit.upload(tmp_path / name, "not from the data set")
        visit.bars(forward.look(made.weights, subject.read_image(tmp_path / name, made.side)).probabilities)
    assert visit.wrong == []
    visit.context.close()


def test_two_tabs_and_a_storm_of_clicks(served, browser):
    made, url, _ = served
    first, second = Visit(browser, url), Visit(browser, url)
    second.page.locator("#tests button").nth(2).click()
    for k in range(15):
        first.page.locator("#works input").nth(k % 2).click()
        second.page.locator("#layer input").nth(k % 4).click()
        first.page.locator("#again").click()
        second.page.locator("#tests button").nth(k % 3).click()
    first.page.locator("#reset").click()
    second.page.locator("#tests button").nth(2).click()
    first.bars(forward.look(made.weights, made.tests[0]).probabilities)
    second.bars(forward.look(made.weights, made.tests[2]).probabilities)
    assert first.wrong == second.wrong == []
    for visit in (first, second):
        visit.context.close()


# The last message of each stream of answers, "close_stream", reaches the page three seconds late. What the page sends
# in between belongs to a stream that the server has ended.
LATE = """
const fetched = window.fetch, last = 'data: {"msg":"close_stream"';
window.fetch = async (...asked) => {
  const answer = await fetched(...asked);
  if (!answer.url.includes('/queue/data')) return answer;
  const late = new TransformStream({async transform(chunk, out) {
    const words = new TextDecoder().decode(chunk), at = words.indexOf(last), bytes = new TextEncoder();
    if (at < 0) { out.enqueue(chunk); return; }
    out.enqueue(bytes.encode(words.slice(0, at)));
    window.lates = (window.lates ?? 0) + 1;
    await new Promise(done => setTimeout(done, 3000));
    out.enqueue(bytes.encode(words.slice(at)));
  }});
  return new Response(answer.body.pipeThrough(late), {status: answer.status, headers: answer.headers});
};"""


def test_a_click_while_the_stream_of_answers_ends_is_answered(served, browser):
    made, url, _ = served
    visit = Visit(browser, url, script=LATE)
    for off in (0, 1):
        late = visit.page.evaluate("window.lates ?? 0")
        visit.page.wait_for_function(f"window.lates > {late}")
        visit.page.locator("#works input").nth(off).click()
        visit.bars(forward.look(made.weights, made.tests[0], WhatIf(towers_off=(off,))).probabilities)
        visit.page.locator("#works input").nth(off).click()
        visit.bars(forward.look(made.weights, made.tests[0]).probabilities)
    assert visit.wrong == []
    visit.context.close()


def resident(pid):
    """The memory of a process in bytes."""
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


@pytest.mark.long
def test_the_memory_stays_bounded_over_200_uploads(served, browser, tmp_path):
    _, url, process = served
    visit, used = Visit(browser, url), []
    side = 1500
    for k in range(200):
        path = tmp_path / f"{k}.bmp"  # 7 MB
        Image.fromarray(np.full((side, side, 3), k, np.uint8)).save(path)
        visit.page.locator("#tests button").nth(k % 3).click()
        visit.page.locator("#status", has_text="A test image of").wait_for()
        visit.upload(path, "not from the data set")
        path.unlink()
        used.append(resident(process.pid))
    # The last 150 uploads have 1 GB together.
    assert max(used[50:]) - max(used[:50]) < 200e6
    assert visit.wrong == []
    visit.context.close()
