"""Pictures of an evaluation: accuracies over checkpoints, neighbours of some frames, a map of all."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cltt.errors import SettingsError
from cltt.metrics import ABX_COLUMNS
from cltt.text import printable, shorten
from cltt.visualize.embeddings import Embeddings, nearest_elsewhere, unit
from cltt.visualize.figures import GREY, INK, PALETTE, pixel_figure, plain_axes, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
Pictures = Callable[[np.ndarray, int], np.ndarray]  # rows [m], side -> uint8 [m, side, side, 3]
CHECKPOINTS_NAMED = 10
UNTRAINED = "untrained"
PART_STYLES = {"train": (":", "v"), "val": ("--", "s"), "test": ("-", "o")}
NEAREST = {"nn_1": "1 label per class", "nn_4": "4 labels per class", "nn_all": "all labels"}
_SHARE = re.compile(r"probe_([\d.e-]+)")
_VOTE = re.compile(r"knn(\d+)_top1")

# ---- accuracies


def draw_evaluations(rows: Sequence[Row]) -> Figure:
    """Accuracies and the spread of the features over checkpoints, from rows of ``evaluation.csv``.

    The untrained encoder's values stand apart, at the left; of equal curves each still shows.
    """
    from matplotlib.figure import Figure

    rows = sorted(rows, key=_place)
    with_abx = any(row.get(name) for row in rows for name in ABX_COLUMNS)
    figure = Figure(figsize=(11.5, 10 if with_abx else 7), facecolor="white", layout="constrained")
    probe, nearest, rank, spread, *abx = figure.subplots(3 if with_abx else 2, 2).ravel()
    for number, (part, (style, marker)) in enumerate(PART_STYLES.items()):
        look = {"linestyle": style, "marker": marker, "linewidth": 3 - 0.8 * number}
        _draw(probe, rows, f"{part}_acc", part, color=PALETTE[number], **look)
    shares = sorted({match[1] for row in rows for name in row if (match := _SHARE.fullmatch(name))}, key=float)
    for number, share in enumerate(shares):
        label = f"test, {100 * float(share):g}% of labels"
        _draw(probe, rows, f"probe_{share}", label, color=PALETTE[(3 + number) % len(PALETTE)], marker="D", linewidth=1)
    votes = sorted({int(match[1]) for row in rows for name in row if (match := _VOTE.fullmatch(name))})
    curves = NEAREST | {f"knn{k}_top1": f"all labels, vote of {k}" for k in votes}
    colors = label_colors(len(curves))
    for number, (name, label) in enumerate(curves.items()):
        look = {"marker": "osv^D"[number % 5], "linewidth": 3 - 2 * number / len(curves)}
        _draw(nearest, rows, name, label, color=colors[number], **look)
    _draw(rank, rows, "effective_rank", "effective rank", color=PALETTE[0], marker="o", linewidth=2)
    for number, name in enumerate(("alignment", "uniformity")):
        _draw(spread, rows, name, name, color=PALETTE[number], marker="os"[number], linewidth=2)
    for axes, name, where in zip(abx, ABX_COLUMNS, ("another moment of the clip", "another clip"), strict=False):
        _draw(axes, rows, name, name, color=PALETTE[0], marker="o", linewidth=2)
        _name_checkpoints(axes, rows, f"ABX: nearer to its window than to {where}", "share (chance: 0.5)")
    for axes, title, unit_name in (
        (probe, "Linear probe", "accuracy"),
        (nearest, "Nearest neighbours", "accuracy"),
        (rank, "Effective rank of the features (1: collapsed)", "rank"),
        (spread, "Alignment (lower: closer classes), uniformity (0: collapsed)", ""),
    ):
        _name_checkpoints(axes, rows, title, unit_name)
    for axes in (probe, nearest):
        axes.set_ylim(-0.02, 1.02)
    rank.set_ylim(0, 1.1 * max([float(row.get("effective_rank") or 0) for row in rows]) or 1)
    return figure


def _place(row: Row) -> tuple[Any, ...]:
    """Where a row stands: the untrained encoder first, then run by run, by epoch."""
    return row["checkpoint"] != UNTRAINED, _folder(row), float(row["epoch"]), float(row["step"])


def _folder(row: Row) -> str:
    return os.path.dirname(row["checkpoint"])


def _draw(axes: Axes, rows: Sequence[Row], name: str, label: str, *, color: str, **look: Any) -> None:
    """One curve per run, with bars of the deviation over drawings where there is one."""
    values = [float(row.get(name) or math.nan) for row in rows]
    if all(map(math.isnan, values)):
        return
    bars = [float(row.get(f"{name}_std") or 0) for row in rows]
    places = np.arange(len(rows))
    folders = np.array([_folder(row) for row in rows])
    trained = np.array([row["checkpoint"] != UNTRAINED for row in rows])
    runs = [trained & (folders == folder) for folder in np.unique(folders[trained])]
    curves = [(run, {"label": label if number == 0 else None, **look}) for number, run in enumerate(runs)]
    size = 3 + 2 * look["linewidth"]
    for shown, options in (*curves, (~trained, {**look, "linestyle": "none", "mfc": "white"})):
        if shown.any():
            axes.errorbar(
                places[shown],
                np.array(values)[shown],
                yerr=np.array(bars)[shown] if any(bars) else None,
                color=color,
                markersize=size,
                capsize=3 if any(bars) else 0,
                elinewidth=1,
                clip_on=False,
                **options,
            )


def _name_checkpoints(axes: Axes, rows: Sequence[Row], title: str, unit_name: str) -> None:
    """At most ten checkpoints are named, the untrained one always."""
    plain_axes(axes, title, "epoch", unit_name)
    several = len({_folder(row) for row in rows if row["checkpoint"] != UNTRAINED}) > 1
    labels = [_checkpoint_name(row, several) for row in rows]
    first = sum(label == UNTRAINED for label in labels)
    every = -(-(len(rows) - first) // CHECKPOINTS_NAMED) or 1
    shown = [*range(first), *range(first, len(rows), every)]
    axes.set_xticks(shown, [labels[place] for place in shown])
    axes.margins(x=0.06)
    axes.set_xlim(-0.5, max(len(rows) - 0.5, 0.5))
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _checkpoint_name(row: Row, several: bool) -> str:
    """The epoch and, with ``several`` runs, the folder below it."""
    if row["checkpoint"] == UNTRAINED:
        return UNTRAINED
    name = f"{int(float(row['epoch']))}" + (f"+{row['step']}" if float(row["step"]) else "")
    return f"{name}\n{printable(shorten(os.path.basename(_folder(row)), 12))}" if several else name


# ---- neighbours

QUERIES, SHOWN = 8, 8  # rows and columns
DEEP = 2000  # nearest frames among which those of eight clips are looked for
SIDE, GAP = 112, 10  # pixels
TITLE, CAPTION = 56, 34


def draw_neighbours(embeddings: Embeddings, pictures: Pictures) -> Figure:
    """Some frames, each with the nearest frame of each of the clips that come nearest; colours tell labels apart."""
    queries = _spread_queries(embeddings, QUERIES)
    rows, cosines = _one_a_clip(embeddings, queries)
    if not (rows >= 0).any():
        raise SettingsError("there is one clip alone, so no frame has a neighbour in another")
    width = (SHOWN + 1) * (SIDE + GAP) + 3 * GAP
    height = TITLE + len(queries) * (SIDE + CAPTION + GAP)
    figure, axes = pixel_figure(width, height)
    write(axes, GAP, TITLE / 3, "Frames, and the nearest ones of other clips by cosine", size=17, weight="bold")
    colours = "green: the same label, orange: another; " if len(embeddings.label_names) else ""
    write(axes, GAP, TITLE * 0.75, colours + _encoder_name(embeddings), size=12, color=GREY)
    for number, query in enumerate(queries.tolist()):
        top = TITLE + number * (SIDE + CAPTION + GAP)
        _draw_frame(axes, embeddings, pictures, query, GAP, top, INK, _caption(embeddings, query))
        for place, (row, cosine) in enumerate(zip(rows[number].tolist(), cosines[number].tolist(), strict=True)):
            if row >= 0:
                left = 3 * GAP + (place + 1) * (SIDE + GAP)
                color = _same_label(embeddings, query, row)
                _draw_frame(
                    axes, embeddings, pictures, row, left, top, color, f"{cosine:.2f} {_caption(embeddings, row)}"
                )
    return figure


def _one_a_clip(embeddings: Embeddings, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and cosines [m, SHOWN] of the nearest frame of each of the nearest other clips; -1 where there are fewer."""
    deep = min(len(embeddings), DEEP)
    rows, cosines = nearest_elsewhere(
        embeddings.features[queries], embeddings.clip[queries], embeddings.features, embeddings.clip, deep
    )
    shown, similar = np.full((len(queries), SHOWN), -1), np.zeros((len(queries), SHOWN))
    for number, found in enumerate(rows):
        there = found[found >= 0]
        first = np.sort(np.unique(embeddings.clip[there], return_index=True)[1])[:SHOWN]
        shown[number, : len(first)] = there[first]
        similar[number, : len(first)] = cosines[number, first]
    return shown, similar


def _spread_queries(embeddings: Embeddings, count: int) -> np.ndarray:
    """Frames of as many labels, then of as many clips, as there are: one from the middle of each."""
    kind = embeddings.label if (embeddings.label >= 0).any() and embeddings.label.max() > 0 else embeddings.clip
    kinds = np.unique(kind)
    kinds = kinds[np.unique(np.linspace(0, len(kinds) - 1, count).round().astype(int))]
    members = [np.flatnonzero(kind == value) for value in kinds]
    return np.array([rows[len(rows) // 2] for rows in members])


def _same_label(embeddings: Embeddings, query: int, row: int) -> str:
    if embeddings.label[query] < 0 or embeddings.label[row] < 0:
        return GREY
    return PALETTE[2] if embeddings.label[query] == embeddings.label[row] else PALETTE[1]


def _draw_frame(
    axes: Axes, embeddings: Embeddings, pictures: Pictures, row: int, left: int, top: int, color: str, caption: str
) -> None:
    from matplotlib.patches import Rectangle

    (picture,) = pictures(np.array([row]), SIDE)
    axes.imshow(picture, extent=(left, left + SIDE, top + SIDE, top), aspect="auto", interpolation="nearest")
    axes.add_patch(Rectangle((left, top), SIDE, SIDE, fill=False, edgecolor=color, linewidth=2.5))
    for line, text in enumerate(caption.split("\n")):
        write(axes, left, top + SIDE + 9 + 14 * line, text, size=11, color=color if line == 0 else GREY)


def _caption(embeddings: Embeddings, row: int) -> str:
    label = embeddings.label[row]
    name = embeddings.label_names[label] if label >= 0 else f"frame {embeddings.frame[row]}"
    clip = embeddings.clip_names[embeddings.clip[row]]
    return f"{printable(shorten(str(name), 12))}\n{printable(shorten(str(clip), 17))}"


def _encoder_name(embeddings: Embeddings) -> str:
    known = embeddings.checkpoint
    return printable(shorten(f"{known.get('backbone')}, {known.get('file')}", 120))


# ---- a map

MAP_POINTS = 5000
MAP_PICTURES = 60
MAP_SIDE, MAP_THUMB = 1100, 44
PCA_AXES = 50
LEGEND = 20  # labels named


def draw_map(embeddings: Embeddings, pictures: Pictures) -> Figure:
    """Features in two dimensions, PCA to 50 and t-SNE from there, coloured by label, with pictures at some points."""
    rows = np.unique(np.linspace(0, len(embeddings) - 1, min(len(embeddings), MAP_POINTS)).round().astype(int))
    places = two_dimensional(embeddings.features[rows])
    margin, title = 40, 64
    legend = 230 if len(embeddings.label_names) else 0
    low, high = places.min(0), places.max(0)
    places = (places - low) / np.maximum(high - low, 1e-9)
    xy = np.stack(
        [margin + places[:, 0] * (MAP_SIDE - 2 * margin), title + margin + places[:, 1] * (MAP_SIDE - 2 * margin)], 1
    )
    figure, axes = pixel_figure(MAP_SIDE + legend, MAP_SIDE + title)
    write(axes, margin / 2, 22, f"{len(rows):,} frames by t-SNE of their features", size=18, weight="bold")
    write(axes, margin / 2, 48, _encoder_name(embeddings), size=12, color=GREY)
    colors = label_colors(len(embeddings.label_names))
    labels = embeddings.label[rows]
    axes.scatter(xy[:, 0], xy[:, 1], s=9, c=[colors[k] if k >= 0 else GREY for k in labels], linewidths=0)
    _draw_thumbs(axes, xy, rows, labels, colors, pictures)
    for number, name in enumerate(embeddings.label_names[:LEGEND]):
        y = title + 30 + 26 * number
        axes.scatter([MAP_SIDE + 12], [y], s=60, c=[colors[number]], linewidths=0)
        write(axes, MAP_SIDE + 28, y, shorten(printable(str(name)), 24), size=14)
    if len(embeddings.label_names) > LEGEND:
        write(
            axes, MAP_SIDE + 28, title + 30 + 26 * LEGEND, f"and {len(embeddings.label_names) - LEGEND} more", size=14
        )
    return figure


def check_map() -> None:
    """SettingsError unless what a map needs is installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise SettingsError("--map needs scikit-learn: pip install 'cltt[map]'")


def two_dimensional(features: np.ndarray) -> np.ndarray:
    """float32 [n, F] -> float64 [n, 2]: unit features, PCA, then t-SNE (van der Maaten and Hinton 2008).

    The same features give the same map. SettingsError without scikit-learn, or for fewer than three frames.
    """
    check_map()
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(features) < 3:
        raise SettingsError(f"--map needs three frames or more; there are {len(features)}")
    axes = min(PCA_AXES, *features.shape)
    flat = PCA(axes, random_state=0).fit_transform(unit(features).astype(np.float64))
    perplexity = min(30.0, (len(features) - 1) / 3)
    return np.asarray(TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(flat), np.float64)


def label_colors(count: int) -> list[Any]:
    """A colour a label: those that colour-blind readers tell apart, or of more labels twenty, or turns of a wheel."""
    if count <= len(PALETTE):
        return list(PALETTE)
    from matplotlib import colormaps

    if count <= 20:
        return [colormaps["tab20"](number) for number in range(count)]
    return [colormaps["hsv"](number / count) for number in range(count)]


def _draw_thumbs(
    axes: Axes, xy: np.ndarray, rows: np.ndarray, labels: np.ndarray, colors: list[Any], pictures: Pictures
) -> None:
    """Pictures that do not cover each other, of points spread over the map."""
    from matplotlib.patches import Rectangle

    chosen: list[int] = []
    for place in np.random.default_rng(0).permutation(len(xy)).tolist():
        if all(np.abs(xy[place] - xy[other]).max() > 1.6 * MAP_THUMB for other in chosen):
            chosen.append(place)
        if len(chosen) == MAP_PICTURES:
            break
    half = MAP_THUMB / 2
    for place, picture in zip(chosen, pictures(rows[chosen], MAP_THUMB), strict=True):
        x, y = xy[place]
        axes.imshow(picture, extent=(x - half, x + half, y + half, y - half), aspect="auto", zorder=3)
        color = colors[labels[place]] if labels[place] >= 0 else GREY
        axes.add_patch(
            Rectangle((x - half, y - half), MAP_THUMB, MAP_THUMB, fill=False, edgecolor=color, linewidth=2, zorder=4)
        )
