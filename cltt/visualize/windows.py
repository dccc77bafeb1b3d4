"""Draws windows: one row of frames per window, with clip, frame names and times.

Pixel arrays are uint8 RGB: b windows of T frames, S x S pixels, as the network gets them before normalisation.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cltt.config import require
from cltt.text import counted, shorten
from cltt.visualize.figures import GREY, INK, MAX_SIDE, pixel_figure, write
from cltt.visualize.views import Pixels, WindowView, seconds_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MARGIN, GAP, HEADER = 16, 6, 74  # pixels around the picture, between frames, above the first row
LABEL_WIDTH, CAPTION_HEIGHT = 200, 34  # pixels left of a row, under a row of frames
LETTER = 6.2  # average width of a caption's letter in pixels
SATURATED = 99  # changes above this percentile are drawn black


def draw_windows(
    view: WindowView,
    title: str,
    difference: bool = False,
    augmented: Pixels | None = None,
    frames_per_second: float | None = None,
) -> Figure:
    """Draw one row of frames per window, with clip, frame names and times.

    Args:
        view: the windows.
        title: the first line of the picture.
        difference: add a row of absolute differences to the frame before (:func:`differences`).
        augmented: uint8 [b, T, S, S, 3], the same frames after augmentation; adds a row of them.
        frames_per_second: if given, times are in seconds instead of frame numbers.

    Raises SettingsError for more windows than a picture can hold.
    """
    rows, extra = [view.frames], []
    if difference:
        changes, black = differences(view.frames)
        rows.append(changes)
        extra.append(f"change since the frame\nbefore: white none,\nblack {black} of 255 or more")
    if augmented is not None:
        rows.append(augmented)
        extra.append("augmented")
    grid = np.stack(rows, axis=1)  # [b, rows per window, T, S, S, 3]
    layout = Layout(grid.shape[0], grid.shape[1], grid.shape[2], grid.shape[3])
    figure, axes = pixel_figure(layout.width, layout.height)
    figure.figimage(layout.paste(grid), origin="upper", zorder=-1)  # under the text
    write(axes, MARGIN, MARGIN + 8, title, size=17, weight="bold")
    write(axes, MARGIN, MARGIN + 27, _shape_line(view), size=12, color=GREY)
    for number, line in enumerate(_notes(view)):
        write(axes, MARGIN, MARGIN + 41 + 14 * number, line, size=12, color=GREY)
    for window in range(layout.windows):
        _label_window(axes, layout, view, window, frames_per_second)
        for row, name in enumerate(extra, start=1):
            write(axes, MARGIN, layout.top(window, row) + layout.cell / 2, name, size=12, color=GREY)
    return figure


def differences(frames: Pixels) -> tuple[Pixels, int]:
    """Pictures of each pixel's change since the frame before, and the change drawn black.

    The pictures are grey, [b, T, S, S, 3]. A pixel's change is that of its most changed channel, 0 to 255. 0 is white;
    the largest changes, a hundredth of all, are black. The first frame of a window stays white.
    """
    shown = np.full_like(frames, 255)
    change = np.abs(np.diff(frames.astype(np.int16), axis=1)).max(axis=-1, keepdims=True)
    black = max(1, int(np.percentile(change, SATURATED)))
    shown[:, 1:] = 255 - np.minimum(255, change.astype(np.int32) * 255 // black)
    return shown, black


class Layout:
    """Positions in pixels of ``windows`` groups of ``rows`` rows of ``columns`` square cells."""

    def __init__(self, windows: int, rows: int, columns: int, image_size: int) -> None:
        self.windows, self.rows, self.columns = windows, rows, columns
        self.cell = cell_size(windows * rows, columns, image_size)
        self.group_height = rows * (self.cell + GAP) + CAPTION_HEIGHT
        self.width = max(640, 2 * MARGIN + LABEL_WIDTH + columns * (self.cell + GAP))
        self.height = HEADER + MARGIN + windows * self.group_height
        fit = (MAX_SIDE - HEADER - MARGIN) // self.group_height
        require(
            windows <= fit,
            f"a picture of {windows} windows would be {self.height:,} pixels high; "
            f"draw at most {fit} windows, or look at the batch in pages with --mode html",
        )

    def left(self, column: int) -> int:
        return MARGIN + LABEL_WIDTH + column * (self.cell + GAP)

    def top(self, window: int, row: int) -> int:
        return HEADER + window * self.group_height + row * (self.cell + GAP)

    def paste(self, grid: Pixels) -> Pixels:
        """A white page, RGBA [height, width, 4], with the frames of ``grid``.

        ``grid`` is uint8 [windows, rows, columns, S, S, 3].

        matplotlib draws RGBA directly, but copies RGB several times.
        """
        page = np.full((self.height, self.width, 4), 255, dtype=np.uint8)
        for window, row, column in np.ndindex(*grid.shape[:3]):
            top, left = self.top(window, row), self.left(column)
            page[top : top + self.cell, left : left + self.cell, :3] = resize(grid[window, row, column], self.cell)
        return page


def cell_size(rows: int, columns: int, image_size: int) -> int:
    """Side of a drawn frame in pixels: fits a page of about 1,200 x 9,000, and is at least 48.

    Small frames are enlarged by an integer factor, so that all their pixels have the same size.
    """
    room = max(48, min(224, 1200 // columns, 9000 // rows if rows > 3 else 224))
    return image_size * (room // image_size) if image_size <= room else room


def resize(image: Pixels, side: int) -> Pixels:
    """Resize ``image`` [S, S, 3] to ``side`` by averaging, or to a multiple of S by repeating pixels."""
    import cv2

    how = cv2.INTER_AREA if side < len(image) else cv2.INTER_NEAREST_EXACT  # INTER_NEAREST shifts some, at 49 times S
    return np.asarray(cv2.resize(image, (side, side), interpolation=how), dtype=np.uint8)


def _shape_line(view: WindowView) -> str:
    count, size = view.frame_ids.shape
    side = view.frames.shape[2]
    line = (
        f"{count} x {size} frames of {side} x {side} pixels, {view.distinct_frames} of {count * size} frames distinct"
    )
    if count > 1:
        line += f", {view.overlapping_pairs} of {count * (count - 1) // 2} pairs of windows overlap in time"
    return line


def _notes(view: WindowView) -> list[str]:
    """Lines about the region used and about damaged frames."""
    region, lines = view.region, []
    if region.kind != "none":
        without = f"; {counted(view.without_box, 'frame')} without a box" if view.without_box else ""
        lines.append(f"region: {region.kind}, {region.done}{without}")
    if view.corrupt:
        lines.append(f"grey: {counted(len(view.corrupt), 'damaged frame')}; {view.in_training}")
    return lines


def _label_window(axes: Axes, layout: Layout, view: WindowView, row: int, frames_per_second: float | None) -> None:
    """Write window and clip left of the row, name and time under each frame."""
    top = layout.top(row, 0)
    write(axes, MARGIN, top + 10, f"window {view.window_ids[row]}", size=13, weight="bold")
    write(axes, MARGIN, top + 28, _fitting(view.clip_names[row], LABEL_WIDTH - 8), size=11, color=GREY)
    bottom = top + layout.rows * (layout.cell + GAP) - GAP
    for column in range(layout.columns):
        lines = [_time_text(view, row, column, frames_per_second)]
        if "#t=" not in view.frame_names[row][column]:  # a frame of a video has the name of its clip
            lines.insert(0, _fitting(Path(view.frame_names[row][column]).stem, layout.cell))
        middle = layout.left(column) + layout.cell / 2
        for number, (line, size, color) in enumerate(zip(lines, (11, 10), (INK, GREY), strict=False)):
            write(axes, middle, bottom + 9 + 13 * number, line, size=size, color=color, ha="center")


def _fitting(text: str, pixels: int) -> str:
    """``text``, shortened to about ``pixels`` at the font size of a caption."""
    letters = len(text)
    while letters > 1 and sum(map(_letter_width, shorten(text, letters))) > pixels:
        letters -= 1
    return shorten(text, letters)


def _letter_width(letter: str) -> float:
    return LETTER * (1.8 if unicodedata.east_asian_width(letter) in "WF" else 1)


def _time_text(view: WindowView, row: int, column: int, frames_per_second: float | None) -> str:
    """A frame's time in its source; if unknown, its number in the clip or the time of that."""
    if view.seconds is not None and not np.isnan(view.seconds[row, column]):
        return seconds_text(float(view.seconds[row, column]))
    number = int(view.times[row, column])
    return f"t = {number}" if frames_per_second is None else f"t = {number / frames_per_second:.2f} s"
