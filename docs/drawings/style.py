"""The register of pictures, and the look that they share: it reads on a white page and on a dark one.

Text and axes are of a grey between white and black, the ground is transparent, and the colours are those of Okabe and
Ito, which colour-blind readers can tell apart.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FOLDER = Path(__file__).resolve().parents[1] / "pictures"
INK = "#808080"  # text and axes
FAINT = "#80808055"  # grids, and what stands behind
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW = "#CC79A7", "#56B4E9", "#F0E442"

PICTURES: dict[str, Callable[[], Figure]] = {}

_LOOK: dict[Any, Any] = {
    "svg.hashsalt": "fnn",  # the same names of clip paths in each run
    "svg.fonttype": "path",  # the same letters in each browser
    "path.simplify": False,  # as many points in each run
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "mathtext.fontset": "dejavusans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def style():
    """The context in which a picture is drawn and saved."""
    return matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **_LOOK})  # type: ignore[arg-type]


def picture(draw: Callable[[], Figure]) -> Callable[[], Figure]:
    """Register a function that draws a picture; the function's name is the name of the file."""
    if draw.__name__ in PICTURES:
        raise ValueError(f"two pictures are called {draw.__name__}")
    PICTURES[draw.__name__] = draw
    return draw


def save(name: str, folder: Path = FOLDER) -> Path:
    """Draw one picture and write ``folder/name.svg``; the same run gives the same file."""
    path = folder / f"{name}.svg"
    with style():
        figure = PICTURES[name]()
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
        plt.close(figure)
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
    return path


def preview(name: str, folder: Path) -> None:
    """Draw one picture as two PNG files, on a white ground and on a dark one, to look at."""
    with style():
        figure = PICTURES[name]()
        for ground, colour in (("white", "#ffffff"), ("dark", "#131416")):
            figure.savefig(folder / f"{name}_{ground}.png", facecolor=colour, dpi=110, bbox_inches="tight")
        plt.close(figure)


def bare(axes: Axes) -> None:
    """Leave out the frame, the ticks and their numbers."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
