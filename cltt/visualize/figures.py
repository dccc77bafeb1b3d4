"""Helpers of every picture: colours, figures measured in pixels, saving and showing.

matplotlib is imported when a picture is drawn, and used through its object interface: saving needs neither a display
nor an environment variable.
"""

from __future__ import annotations

import os
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cltt.errors import SettingsError
from cltt.files.atomic import check_writable, writing
from cltt.text import printable_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart (jfly.uni-koeln.de/color), darkest first.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
INK, GREY, PALE = "#222222", "#666666", "#DDDDDD"
DPI = 100
SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp", ".tif", ".tiff")
MAX_SIDE = 60_000  # pixels; Agg draws up to 2**16
PNG_LEVEL = 4  # of 9; higher levels take twice the time and make photographs hardly smaller


def pixel_figure(width: int, height: int) -> tuple[Figure, Axes]:
    """A white figure of ``width`` x ``height`` pixels.

    Its one axes has pixel coordinates with y downwards.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    return figure, axes


def write(axes: Axes, x: float, y: float, text: str, *, size: float = 13, color: str = INK, **options: Any) -> None:
    """Write ``text``, vertically centred, at pixel ``(x, y)``.

    ``size`` in pixels. ``$`` and ``_`` stay as they are.
    """
    axes.text(
        x, y, printable_lines(text), fontsize=size * 72 / DPI, color=color, va="center", parse_math=False, **options
    )


def plain_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Set title and axis names; keep only two spines and pale horizontal grid lines."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(x, color=GREY)
    axes.set_ylabel(y, color=GREY)
    axes.tick_params(colors=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)


def check_save_path(path: Path, flag: str = "--save-path") -> None:
    """Raise SettingsError if a picture cannot be saved as ``path``, the value of ``flag``."""
    if path.suffix.lower() not in SUFFIXES:
        raise SettingsError(f"cannot save a picture as {path.name!r}; its ending must be one of {', '.join(SUFFIXES)}")
    check_writable(path.parent, f"give another {flag}")
    if path.is_dir():
        raise SettingsError(f"{path} is a folder; give the file name of the picture")


def save_figure(figure: Figure, path: Path) -> None:
    """Save ``figure`` in the format of the suffix, creating parent folders.

    SettingsError if it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    check_save_path(path)
    _use_fonts(figure)
    FigureCanvasAgg(figure)
    with writing(path, "give another --save-path"):
        path.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"pil_kwargs": {"compress_level": PNG_LEVEL}} if path.suffix.lower() == ".png" else {}
        figure.savefig(path, dpi=DPI, **options)


def _use_fonts(figure: Figure) -> None:
    """Draw characters that matplotlib's font lacks in another installed font, else as ``…``."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if not text.get_text().isascii():
            families, missing = _fonts_for(frozenset(text.get_text()) - {"\n"})
            text.set_fontfamily(["sans-serif", *families])
            if missing:
                text.set_text(re.sub(f"[{re.escape(''.join(missing))}]+", "…", text.get_text()))


@lru_cache
def _fonts_for(letters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Fonts for the characters that matplotlib's font lacks, and the characters no font has."""
    from matplotlib import font_manager

    own = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    missing = {letter for letter in letters if not own.get_char_index(ord(letter))}
    families = []
    plain = (entry for entry in font_manager.fontManager.ttflist if entry.style == "normal" and entry.weight == 400)
    for entry in sorted(plain, key=lambda entry: ("Sans" not in entry.name, entry.name)):
        if not missing:
            break
        if entry.name.startswith("Last Resort"):  # matplotlib's placeholder: a box for every character
            continue
        try:
            font = font_manager.get_font(entry.fname)
        except (OSError, RuntimeError):  # removed since matplotlib listed it, or not readable
            continue
        if font.scalable and (has := {letter for letter in missing if font.get_char_index(ord(letter))}):
            families.append(entry.name)
            missing -= has
    return families, frozenset(missing)


def show_figure(figure: Figure) -> None:
    """Open a window with ``figure`` and wait until it is closed.

    SettingsError if no window can be opened.
    """
    require_window()
    from matplotlib import pyplot
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    _use_fonts(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = pyplot.figure(figsize=figure.get_size_inches(), dpi=DPI).add_axes((0, 0, 1, 1))
    axes.imshow(canvas.buffer_rgba())
    axes.axis("off")
    pyplot.show()


def require_window() -> None:
    """Raise SettingsError unless a display and a window toolkit are available."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise SettingsError("there is no display to open a window on; pass --save-path FILE.png")
    import matplotlib
    from matplotlib import pyplot

    pyplot.figure()  # chooses the backend: an interactive one if its toolkit can be imported, else Agg
    pyplot.close()
    if matplotlib.get_backend().lower() == "agg":
        raise SettingsError("matplotlib finds no window toolkit (Tk, Qt, GTK) here; pass --save-path FILE.png")
