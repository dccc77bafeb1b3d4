"""Odd tables of labels, splits, boxes and metrics, and lists of clips: read, or refused in a sentence."""

from __future__ import annotations

from pathlib import Path

from cltt.metrics import EVAL_COLUMNS, TRAIN_COLUMNS, is_ours_to_replace, read_run
from cltt.packing import labels
from cltt.packing.boxes import Boxes
from cltt.shards.clip_table import read_clip_list
from tests.fuzz.contract import Rng, attempt, demand, spoil

CELLS = [
    "a",
    "b/c",
    "",
    '"',
    '""',
    "x,y",
    "\ufeff",
    "é",
    "\0",
    "1",
    "nan",
    "1e999",
    "-1",
    " ",
    "\r",
    "clip",
    "label",
    "epoch",
]
CODINGS = ["utf-8", "utf-8-sig", "utf-16", "latin-1"]
HUGE = 200_000  # letters in a cell; csv's limit is 131,072


class Tables:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def case(self, rng: Rng) -> str:
        text = self._text(rng)
        content = text.encode(CODINGS[int(rng.integers(len(CODINGS)))], errors="replace")
        if rng.random() < 0.4:
            content = spoil(rng, content)
        file = self._folder / "table.csv"
        file.write_bytes(content)
        tried = (self._labels, self._splits, self._boxes, self._list, self._metrics)
        return tried[int(rng.integers(len(tried)))](file)

    def _text(self, rng: Rng) -> str:
        headers = [["clip", "label"], ["clip", "split"], ["frame", "x", "y"], ["frame", "x1", "y1", "x2", "y2"]]
        headers += [list(TRAIN_COLUMNS), list(EVAL_COLUMNS), []]
        header = headers[int(rng.integers(len(headers)))]
        columns = len(header) or int(rng.integers(1, 4))
        rows = [header] if header else []
        for _ in range(int(rng.integers(0, 6))):
            width = columns if rng.random() < 0.9 else int(rng.integers(0, 9))
            numbers = len(header) > 2 and rng.random() < 0.8
            cell = (lambda: f"{rng.normal():.3g}") if numbers else (lambda: CELLS[int(rng.integers(len(CELLS)))])
            rows.append([cell() for _ in range(width)])
        if rows and rows[-1] and rng.random() < 0.05:
            rows[-1][-1] = "x" * HUGE
        end = ["\n", "\r\n", "\r"][int(rng.integers(3))]
        return end.join(",".join(row) for row in rows) + (end if rng.random() < 0.8 else "")

    def _labels(self, file: Path) -> str:
        found, refused = attempt(lambda: labels.read_table(str(file), "label_from", "label"))
        demand(found is None or (bool(found) and all(isinstance(label, str) for label in found.values())), f"{found!r}")
        return f"labels refused: {refused}" if found is None else "labels read"

    def _splits(self, file: Path) -> str:
        rule = f"csv:{file}"
        found, refused = attempt(lambda: labels.split_names(rule))
        if found is not None:
            split_of = labels.splitter({"splits": rule, "split_by": "clip", "split_seed": 0})
            demand(all(-1 <= split_of(key) < len(found) for key in ("a", "b/c", "")), "a split that has no name")
        return f"splits refused: {refused}" if found is None else "splits read"

    def _boxes(self, file: Path) -> str:
        found, refused = attempt(lambda: Boxes(str(file), "pixel"))
        for name in ("a", "b/c", "") if found else ():
            box = found.of(name, 100, 50)
            ordered = box is None or (0 <= box[0] <= box[2] <= 1 and 0 <= box[1] <= box[3] <= 1)
            demand(ordered, f"a box {box}")
        return f"boxes refused: {refused}" if found is None else "boxes read"

    def _list(self, file: Path) -> str:
        found, refused = attempt(lambda: read_clip_list(str(file)))
        demand(found is None or bool(found), "an empty list of clips")
        return f"clip list refused: {refused}" if found is None else "clip list read"

    def _metrics(self, file: Path) -> str:
        is_ours_to_replace(file)
        found, refused = attempt(lambda: read_run(file))
        demand(found is None or len({len(column) for column in found.train.values()}) == 1, "uneven columns")
        return f"metrics refused: {refused}" if found is None else "metrics read"
