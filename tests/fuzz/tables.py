"""Odd tables of labels and metrics: read, or refused in a sentence."""

from __future__ import annotations

from pathlib import Path

from cltt.build import labels
from cltt.metrics import EVAL_COLUMNS, TRAIN_COLUMNS, is_ours_to_replace, read_run
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
        if rng.random() < 0.5:
            return self._label_table(content)
        return self._metrics(content)

    def _text(self, rng: Rng) -> str:
        header = [["clip", "label"], list(TRAIN_COLUMNS), list(EVAL_COLUMNS), []][int(rng.integers(4))]
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

    def _label_table(self, content: bytes) -> str:
        file = self._folder / "labels.csv"
        file.write_bytes(content)
        found, refused = attempt(lambda: labels.read_table(str(file), "label_from", "label"))
        if found is None:
            return f"labels refused: {refused}"
        demand(bool(found) and all(isinstance(label, str) for label in found.values()), f"labels {found!r}")
        return "labels read"

    def _metrics(self, content: bytes) -> str:
        file = self._folder / "metrics.csv"
        file.write_bytes(content)
        is_ours_to_replace(file)
        found, refused = attempt(lambda: read_run(file))
        if found is None:
            return f"metrics refused: {refused}"
        demand(len({len(column) for column in found.train.values()}) == 1, "columns of different lengths")
        return "metrics read"
