"""The page of the explorer, made with Gradio. It listens only on this machine, and asks for nothing outside of it."""

import functools
import os
import threading
from importlib import resources

import numpy as np

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read by Gradio when it is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import gradio as gr

from alexnet_jax.errors import UsageError
from alexnet_jax.inspection.explore import blocks, figure2, forward, html, neighbours, panels
from alexnet_jax.inspection.explore.forward import WhatIf
from alexnet_jax.inspection.explore.pixels import pixels
from alexnet_jax.inspection.explore.subject import ImageError, Subject, read_image
from alexnet_jax.network.architectures import towers_of

HOST = "127.0.0.1"
LARGEST_UPLOAD = "100mb"
KEPT = 120  # seconds for which an uploaded file is kept

# A click on an element that names what it stands for becomes an event.
_PICK = """
element.addEventListener('click', e => {
  const hit = e.target.closest('[data-pick], [id^="pick-"]');
  if (hit) trigger('click', {pick: hit.dataset.pick ?? hit.id.split('-')[1]});
});"""
# The pixel below the pointer becomes an event. While the page has not answered, only the latest pixel is kept.
_POINT = """
let last = '', next = null, busy = null;
const done = () => { clearTimeout(busy); busy = null; if (next) { const [r, c] = next; next = null; send(r, c); } };
const send = (row, column) => {
  if (busy) { next = [row, column]; return; }
  if (row + ',' + column === last) return;
  last = row + ',' + column;
  busy = setTimeout(done, 3000);
  trigger('select', {row: row, column: column});
};
watch('value', done);
const point = e => {
  const box = e.target.closest('.ex-point');
  if (!box) return;
  const place = box.getBoundingClientRect(), rows = +box.dataset.rows, columns = +box.dataset.columns;
  send(Math.max(0, Math.min(rows - 1, Math.floor((e.clientY - place.top) / place.height * rows))),
       Math.max(0, Math.min(columns - 1, Math.floor((e.clientX - place.left) / place.width * columns))));
};
element.addEventListener('mousemove', point);
element.addEventListener('click', point);
element.addEventListener('keydown', e => {
  const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[e.key];
  const box = element.querySelector('.ex-point');
  if (!step || !box) return;
  e.preventDefault();
  const row = +box.dataset.row + step[0], column = +box.dataset.column + step[1];
  if (row >= 0 && row < +box.dataset.rows && column >= 0 && column < +box.dataset.columns) send(row, column);
});"""
_SETTINGS = ("works", "lrn", "dropout", "colours", "draw", "top", "left")
_FIRST = "Upload or paste an image, or pick a test image."


def serve(subject: Subject, image: np.ndarray | None = None, *, port: int | None = None, show: bool = False) -> None:
    """Serves the page on this machine until it is stopped.

    Args:
      subject: what to show.
      image: (S, S, 3) uint8 to begin with; None for the first test image, if there is one.
      port: number of the port; None for the first free one from 7860 on.
      show: whether to open the page in a browser.

    Raises:
      UsageError: if the port is not free.
    """
    try:
        app = launch(build(subject, image), port)
    except OSError as error:
        raise UsageError(f"no page can be served ({error}). Give another --port, or leave it out.") from error
    print(f"The explorer is at {app.local_url} on this machine. Ctrl-C ends it.", flush=True)
    if show:
        import webbrowser

        webbrowser.open(app.local_url)
    app.block_thread()


def launch(app: gr.Blocks, port: int | None = None) -> gr.Blocks:
    """Starts the server of a page that `build` made, in threads of its own, and returns the page."""
    fonts = ["system-ui", "sans-serif"]
    app.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        quiet=True,
        inbrowser=False,
        prevent_thread_lock=True,
        ssr_mode=False,
        footer_links=[],
        run_history=False,
        max_file_size=LARGEST_UPLOAD,
        theme=gr.themes.Base(primary_hue="blue", font=fonts, font_mono=["ui-monospace", "monospace"]),
        css=resources.files("alexnet_jax.inspection.explore").joinpath("page.css").read_text(),
    )
    return app


def warm_up(subject: Subject) -> None:
    """Compiles the programs of the page, so that the first click does not wait for them.

    Those of the unchanged network are ready when this returns. Those without normalization and with dropout are then
    compiled in a thread.
    """
    image = np.zeros((subject.side, subject.side, 3), np.uint8)
    off = (0,) if towers_of(subject.weights.architecture) > 1 else ()

    def compile_all(lrn=True, dropout=None):
        what_if = WhatIf(towers_off=off, lrn=lrn, dropout=dropout)
        forward.see(subject.weights, image, what_if)
        pixels(subject.weights, image, what_if)

    def compile_the_others():
        for lrn, dropout in ((False, None), (True, 0), (False, 0)):
            compile_all(lrn, dropout)

    compile_all()
    if subject.weights.pca is not None:
        forward.colour_shift(subject.weights, WhatIf(colours=0))
    if subject.found:
        neighbours.nearest(subject.trained, subject.found, image)
    threading.Thread(target=compile_the_others, daemon=True).start()


def build(subject: Subject, image: np.ndarray | None = None) -> gr.Blocks:
    """Makes the page; arguments as in serve."""
    start = (image, None, None, html.sentence(_FIRST), None, 1)
    if image is not None or len(subject.tests):
        start = _taken(subject, *((subject.tests[0], subject.labels[0]) if image is None else (image, None)))
    # Uploaded files are read once, and deleted soon.
    with gr.Blocks(title="AlexNet explorer", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as app:
        parts = _layout(subject, *start)
        _wire(subject, parts, app)
    app.queue(default_concurrency_limit=1, api_open=False)
    return app


def _layout(subject, image, label, _, sentence, pixel, number):
    """Places all components, with the values that _taken gives; returns them by name."""
    weights = subject.weights
    p = {name: gr.State(value) for name, value in (("image", image), ("label", label), ("draw", 0), ("pixel", pixel))}
    p["tab"] = gr.State("network")
    gr.HTML(html.title(weights.source, weights.architecture, len(subject.names)), elem_classes="ex-title")
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            p["upload"] = gr.Image(
                label="Upload or paste an image", sources=["upload", "clipboard"], type="filepath", image_mode=None,
                height=150, elem_id="upload",
            )  # fmt: skip
            p["tests"] = gr.HTML(
                html.tests_strip(subject.tests, subject.labels, subject.names), js_on_load=_PICK, elem_id="tests"
            )
        with gr.Column(scale=2, min_width=280):
            p["seen"] = gr.HTML(elem_id="seen")
        with gr.Column(scale=3, min_width=300):
            p["status"] = gr.HTML(sentence, elem_id="status")
            p["problem"] = gr.HTML(elem_id="problem")
            p["bars"] = gr.HTML(elem_id="bars")
    _what_if(subject, p)
    with gr.Tabs(elem_id="tabs"):
        for name, words in _TABS.items():
            with gr.Tab(words, id=name) as p[f"tab_{name}"]:
                _TAB_PARTS[name](subject, p, number)
    return p


_TABS = {
    "network": "The network",
    "lrn": "Normalization",
    "pixels": "Which pixels",
    "views": "The views",
    "nearest": "Nearest images",
}


def _what_if(subject, p):
    count, margin = towers_of(subject.weights.architecture), subject.side - subject.weights.architecture[0].size
    towers = [f"tower {t + 1}" for t in range(count)]
    norms = bool(blocks.norms(subject.weights.architecture))
    dropped = any(type(layer).__name__ == "Dropout" for layer in subject.weights.architecture)
    has_pca, middle = subject.weights.pca is not None, margin // 2
    with gr.Accordion("What if …", open=True, elem_id="what-if"), gr.Row():
        with gr.Column(scale=2, min_width=200, visible=count > 1):
            p["works"] = gr.CheckboxGroup(towers, value=towers, label="Towers that work", elem_id="works")
        with gr.Column(scale=3, min_width=220):
            p["lrn"] = gr.Checkbox(True, label="Normalization (LRN)", visible=norms, elem_id="lrn-on", container=False)
            words = "Dropout, drawn once", "Colours, drawn once"
            p["dropout"] = gr.Checkbox(False, label=words[0], visible=dropped, elem_id="dropout", container=False)
            p["colours"] = gr.Checkbox(False, label=words[1], visible=has_pca, elem_id="colours", container=False)
        with gr.Column(scale=3, min_width=240, visible=margin > 0):
            how = {"minimum": 0, "maximum": max(1, margin), "value": middle, "step": 1}
            p["top"] = gr.Slider(label="Crop: rows from the top", elem_id="top", **how)
            p["left"] = gr.Slider(label="Crop: columns from the left", elem_id="left", **how)
        with gr.Column(scale=2, min_width=160):
            p["again"] = gr.Button("Draw again", visible=dropped or has_pca, elem_id="again", size="sm")
            p["reset"] = gr.Button("Undo all changes", elem_id="reset", size="sm")


def _network_tab(subject, p, number):
    names = [block.name for block in blocks.blocks(subject.weights.architecture)]
    p["figure"] = gr.HTML(js_on_load=_PICK, elem_id="figure2")
    p["layer"] = gr.Radio(names, value=names[0], label="Layer (or click a box above)", elem_id="layer")
    p["maps"] = gr.HTML(elem_id="maps")


def _lrn_tab(subject, p, number):
    norms = blocks.norms(subject.weights.architecture)
    towers = [f"tower {t + 1}" for t in range(towers_of(subject.weights.architecture))]
    with gr.Row():
        p["norm"] = gr.Radio(
            norms, value=norms[0] if norms else None, label="Layer", visible=bool(norms), elem_id="norm"
        )
        p["tower"] = gr.Radio(towers, value=towers[0], label="Tower", visible=len(towers) > 1, elem_id="tower")
        p["number"] = gr.Number(number, label="Map", precision=0, minimum=1, elem_id="number", visible=bool(norms))
    gr.HTML("<p>Point at a pixel of the map (or tap it, or use the arrow keys).</p>")
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            p["point"] = gr.HTML(js_on_load=_POINT, elem_id="point")
        with gr.Column(scale=2, min_width=300):
            p["window"] = gr.HTML(elem_id="window")


def _pixels_tab(subject, p, number):
    p["target"] = gr.Dropdown(
        [("the likeliest class", -1), *((name, k) for k, name in enumerate(subject.names))],
        value=-1, label="Class", elem_id="target",
    )  # fmt: skip
    p["matters"] = gr.HTML(elem_id="matters")


def _views_tab(subject, p, number):
    p["all_views"] = gr.HTML(elem_id="all-views")


def _nearest_tab(subject, p, number):
    p["nearest"] = gr.HTML(elem_id="nearest")


_TAB_PARTS = {
    "network": _network_tab,
    "lrn": _lrn_tab,
    "pixels": _pixels_tab,
    "views": _views_tab,
    "nearest": _nearest_tab,
}


def _wire(subject, p, app):
    """Connects the components with the functions below."""
    inputs = ("image", "label", "tab", *_SETTINGS, "layer", "norm", "tower", "number", "pixel", "target")
    outputs = ("seen", "problem", "bars", "figure", "maps", "point", "window", "matters", "all_views", "nearest")
    how = {"show_progress": "hidden", "api_visibility": "private", "concurrency_id": "network"}
    once = {**how, "trigger_mode": "always_last"}  # while it runs, of several events only the last one waits
    each = {**how, "trigger_mode": "multiple"}  # always_last would lose what was picked
    svg = figure2.svg(subject.weights.architecture)

    def show(*values):
        shown = panels.show(subject, svg, dict(zip(inputs, values, strict=True)))
        return {p[name]: value for name, value in shown.items()}

    def then_show(event):
        event.then(show, ins, outs, **once)

    ins, outs = [p[name] for name in inputs], [p[name] for name in outputs]
    changes = ("works", "lrn", "dropout", "colours", "top", "left", "layer", "norm", "tower", "number", "target")
    gr.on([p[name].input for name in changes], show, ins, outs, **once)
    app.load(show, ins, outs, **once)
    # If the page sends an event just when the server ends the stream of answers, Gradio's client misses the answer. The
    # server keeps it for the next stream, which a tick opens.
    gr.Timer(2).tick(lambda: None, **{**how, "trigger_mode": "multiple", "concurrency_id": "tick"})
    for tab in _TABS:
        event = p[f"tab_{tab}"].select(functools.partial(lambda tab: tab, tab), None, p["tab"], **once)
        then_show(event)

    taken = [p[name] for name in ("image", "label", "upload", "status", "pixel", "number")]
    then_show(p["upload"].upload(functools.partial(_take, subject), p["upload"], taken, preprocess=False, **once))

    def pick(event: gr.EventData):
        n = event.pick if hasattr(event, "pick") else None
        n = int(n) if str(n).isdigit() and int(n) < len(subject.tests) else 0
        return _taken(subject, subject.tests[n], subject.labels[n])

    then_show(p["tests"].click(pick, None, taken, **each))

    names = [block.name for block in blocks.blocks(subject.weights.architecture)]

    def pick_layer(event: gr.EventData):
        return event.pick if hasattr(event, "pick") and event.pick in names else gr.skip()

    then_show(p["figure"].click(pick_layer, None, p["layer"], **each))

    def point(event: gr.EventData):
        return (int(event.row), int(event.column))

    then_show(p["point"].select(point, None, p["pixel"], **each))
    then_show(p["again"].click(lambda draw: draw + 1, p["draw"], p["draw"], **once))
    towers = [f"tower {t + 1}" for t in range(towers_of(subject.weights.architecture))]
    middle = (subject.side - subject.weights.architecture[0].size) // 2
    fresh = [towers, True, False, False, 0, middle, middle]
    then_show(p["reset"].click(lambda: fresh, None, [p[name] for name in _SETTINGS], **once))


def _take(subject, file):
    """Reads an uploaded file."""
    skipped = [gr.skip()] * 2
    if not file:
        return *skipped, None, html.sentence(_FIRST), gr.skip(), gr.skip()
    try:
        image = read_image(file["path"], subject.side)
    except (ImageError, MemoryError) as error:
        name = file.get("orig_name") or "This file"
        words = f"{name} cannot be shown: {error or 'it is too large for the memory'}. Choose another image."
        return *skipped, None, html.sentence(words, error=True), gr.skip(), gr.skip()
    return _taken(subject, image, None)


def _taken(subject, image, label):
    """The values of image, label, upload, status, pixel and number for a new image."""
    number = 1
    if norms := blocks.norms(subject.weights.architecture):
        number = blocks.strongest(forward.look(subject.weights, image), norms[0])[0] + 1
    words = "This image is not from the data set." if label is None else f"A test image of “{subject.names[label]}”."
    return image, label, None, html.sentence(words), None, number
