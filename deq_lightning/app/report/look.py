"""How pictures look: on paper, and in a page whose colours are the reader's."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

INK = "#010203"  # of all that is not data; a page has the colour of its text in its place
COLOURS = ("#1f83c4", "#e07b00", "#12a37a", "#c965a3", "#8f7ee7", "#b5651d", "#7f8c8d", "#d1495b")
WIDTH, HEIGHT = 4.8, 2.4  # inches of a panel
STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "font.size": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "svg.fonttype": "none",  # text that can be found and read aloud
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


@contextmanager
def our_look() -> Iterator[None]:
    """Let the figures that are made and written in a block have our look."""
    from cycler import cycler

    with rc_context({**STYLE, "axes.prop_cycle": cycler(color=COLOURS)}):
        yield


def panels(count: int, width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, list[Any]]:
    """Return a figure and its panels, one above the other, so that a narrow screen shows them large enough."""
    figure = Figure(figsize=(width, height * count), layout="constrained")
    return figure, list(figure.subplots(count, 1, squeeze=False)[:, 0])


def as_svg(figure: Figure, name: str) -> str:
    """Return the figure as an element of a page, in the colours of its text.

    Args:
        figure: the figure.
        name: different for each figure of a page, because elements refer to each other by names.
    """
    file = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return svg.replace(INK, "currentColor")
