"""The network as the paper's Figure 2: a box for each layer, one row for each tower."""

import io
import math

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from alexnet_jax.inspection.explore.blocks import Block, blocks
from alexnet_jax.network.architectures import LRN, Architecture, AveragePool, Conv, Dropout, Local, MaxPool, towers_of

# Colours that the page replaces by those of its light or dark theme.
INK, FAINT, FACE, TOP, SIDE = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
LIGHT = {INK: "#1d232b", FAINT: "#8a939e", FACE: "#cfe0f1", TOP: "#e6f0fa", SIDE: "#a9c6e3"}
_ROW = 3.4  # from one tower to the next
_GAP, _DEPTH = 1.45, 0.22  # between two boxes; of a box, as a share of its height


def draw(figure: Figure, architecture: Architecture, colours: dict[str, str] = LIGHT) -> None:
    """Draws a network into a matplotlib figure, one box for each layer with weights and each tower.

    A box is as high as its maps are large, and as wide as they are many (both by their roots); for neurons, it is as
    high as they are many. Lines that cross are the places where a layer sees the maps of all towers. In an SVG,
    the ids of a box's sides begin with pick-LAYER-TOWER.

    Args:
      figure: where to draw.
      architecture: tuple of layers.
      colours: a colour for each of INK, FAINT, FACE, TOP and SIDE.

    Source: paper, section 3.5, Figure 2.
    """
    figure.set_layout_engine("none")
    axis = figure.add_axes((0.005, 0.005, 0.99, 0.99))
    axis.set_axis_off()
    axis.set_aspect("equal")
    towers, shown = towers_of(architecture), blocks(architecture)
    rows = [-_ROW * t for t in range(towers)]
    first = architecture[0]
    height = _height(first.size)
    middle = sum(rows) / towers
    right = _box(axis, colours, "input", 0, 0.12, height, middle, f"{first.channels}")
    _words(axis, colours, 0.3, rows[-1], "input", f"{first.size} × {first.size}")
    if towers > 1:
        for t, y in enumerate(rows):
            axis.text(
                -0.35, y + (-0.6 if t else 0.9), f"tower {t + 1}", fontsize=9, fontstyle="italic", color=colours[INK]
            )
    ends = [(right, middle)] * towers
    left = right + _GAP
    for block in shown:
        each, width, height = _box_of(block, towers)
        sees = getattr(block.steps[0].layer, "sees", "own")
        for t, y in enumerate(rows):
            for other, (x, from_y) in enumerate(ends):
                if other == t or sees == "all":
                    colour = colours[INK if other == t else FAINT]
                    axis.plot((x, left), (from_y, y), color=colour, lw=1.1, zorder=0)
        ends = [(_box(axis, colours, block.name, t, width, height, y, f"{each}", left), y) for t, y in enumerate(rows)]
        _words(axis, colours, left + width / 2, rows[-1], block.name, *_sizes(block))
        left = ends[0][0] + _GAP
    axis.set_xlim(-0.5, left - _GAP + 0.4)
    axis.set_ylim(*_limits(architecture))


def size(architecture: Architecture) -> tuple[float, float]:
    """The width and the height of a figure that the drawing fills, in inches."""
    bottom, top = _limits(architecture)
    boxes = [_box_of(block, towers_of(architecture)) for block in blocks(architecture)]
    width = 1.8 + sum(width + _DEPTH * height + _GAP for _, width, height in boxes)
    return 0.66 * width, 0.66 * (top - bottom)


def svg(architecture: Architecture) -> str:
    """The drawing as SVG, with the placeholder colours INK, FAINT, FACE, TOP and SIDE."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "alexnet_jax", "font.size": 9}):
        figure = Figure(size(architecture))
        draw(figure, architecture, {colour: colour for colour in LIGHT})
        content = io.StringIO()
        figure.savefig(content, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    return content.getvalue()[content.getvalue().index("<svg") :]


def _limits(architecture):
    """The lower and the upper end of the drawing."""
    towers, lines = towers_of(architecture), max(len(_sizes(block)) for block in blocks(architecture))
    return -_ROW * (towers - 1) - 1.95 - 0.24 * lines, 1.45 if towers > 1 else 1.75


def _box_of(block, towers):
    """The number of maps or neurons in a tower, and the width and height of their box."""
    *sides, count = block.steps[0].row.shape
    each = -(-count // towers)
    if not sides:
        return each, 0.3, 0.5 + math.sqrt(each) / 36
    return each, 0.1 + math.sqrt(each) / 22, _height(sides[0])


def _height(side):
    return 0.35 + 2.0 * math.sqrt(side / 224) if side > 64 else 0.35 + 1.45 * math.sqrt(side / 56)


def _box(axis, colours, name, tower, width, height, y, words, left=0.0):
    """Draws a box; returns where its right side ends."""
    depth = _DEPTH * height
    bottom, top = y - height / 2, y + height / 2
    corners = {
        FACE: [(left, bottom), (left + width, bottom), (left + width, top), (left, top)],
        TOP: [(left, top), (left + width, top), (left + width + depth, top + depth), (left + depth, top + depth)],
        SIDE: [
            (left + width, bottom),
            (left + width + depth, bottom + depth),
            (left + width + depth, top + depth),
            (left + width, top),
        ],
    }
    for part, points in corners.items():
        patch = Polygon(points, facecolor=colours[part], edgecolor=colours[INK], lw=0.8, joinstyle="round")
        patch.set_gid(f"pick-{name}-{tower}-{part[1:3]}")
        axis.add_patch(patch)
    axis.text(left + width / 2, bottom - 0.08, words, ha="center", va="top", fontsize=7.5, color=colours[INK])
    return left + width + depth


def _words(axis, colours, x, y, name, *lines):
    axis.text(x, y - 1.42, name, ha="center", va="top", fontsize=10, fontweight="bold", color=colours[INK])
    axis.text(x, y - 1.8, "\n".join(lines), ha="center", va="top", fontsize=7, color=colours[INK], linespacing=1.35)


def _sizes(block: Block) -> list[str]:
    """The lines below a box: its sizes, its kernels, and what follows it."""
    step = block.steps[0]
    lines = [" × ".join(map(str, step.row.shape))]
    if isinstance(step.layer, Conv | Local):
        stride = f", stride {step.layer.stride}" if step.layer.stride > 1 else ""
        lines.append(f"{step.layer.size} × {step.layer.size}{stride}")
    for later in block.steps[1:]:
        match later.layer:
            case LRN():
                lines.append("LRN")
            case MaxPool(size=side, stride=stride) | AveragePool(size=side, stride=stride):
                lines.append(f"pool {side}/{stride}")
            case Dropout():
                lines.append("dropout")
    return lines
