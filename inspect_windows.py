#!/usr/bin/env python3
"""Look at what the network will see: windows, batches, statistics, damage, or a gallery that opens from disk.

    python inspect_windows.py --shards shards/mine --sample-idx 1200 --save-path window.png
    python inspect_windows.py --shards shards/mine --mode batch --batch-sampling plan --step 250 --save-path b.png
    python inspect_windows.py --root-dir frames --mode stats --save-path stats.png
    python inspect_windows.py --shards shards/mine --mode verify --decode
    python inspect_windows.py --shards shards/mine --mode html --out gallery

Needs neither a GPU nor DALI. Window, batch and augmentation flags mean what they mean in train.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cltt import visualize
from cltt.cli import Parser, add_settings, run, settings_from
from cltt.config import SPLITS, DataSettings, WindowSettings, require
from cltt.reader import FolderDataset, ShardDataset
from cltt.sampler import EpochPlan
from cltt.windows import WindowIndex

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_HERE = ("rescan", "stage_to", "split", "num_workers", "cache_gb", "max_bad_frames")


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="inspect_windows.py", description="Look at what the network will see.")
    parser.add_argument("--mode", choices=MODES, default="sample", help="what to look at")
    parser.add_argument("--save-path", type=Path, help="picture to write (sample, batch, stats)")
    parser.add_argument("--out", type=Path, help="folder for the gallery (html)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines to read")
    parser.add_argument("--sample-idx", type=int, default=0, help="window to show (sample)")
    parser.add_argument(
        "--batch-sampling",
        choices=("contiguous", "random", "plan"),
        default="random",
        help="neighbouring windows, any windows, or exactly the batch of training at --epoch and --step",
    )
    parser.add_argument("--batch-idx", type=int, default=0, help="which batch (contiguous, random)")
    parser.add_argument("--epoch", type=int, default=0, help="epoch of the plan, the first is 0")
    parser.add_argument("--step", type=int, default=0, help="step of the epoch, the first is 0 (plan)")
    parser.add_argument("--seed", type=int, default=0, help="seed of random batches, the plan and the augmentation")
    parser.add_argument("--difference", action="store_true", help="add rows of differences between neighbouring frames")
    parser.add_argument("--fps", type=float, help="frames a second of the clips: gives times in seconds")
    parser.add_argument("--decode", action="store_true", help="decode every frame as well (verify)")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        help="clips to look at (default: as train.py for sample and batch, all for stats, verify and html)",
    )
    add_settings(parser, DataSettings, skip=NOT_HERE)
    add_settings(parser, WindowSettings)
    return parser


def open_dataset(settings: DataSettings) -> ShardDataset | FolderDataset:
    """The shards, or the folder of clips as it lies there."""
    if settings.root_dir is not None:
        return FolderDataset(settings.root_dir)
    assert settings.shards is not None  # DataSettings wants one of the two
    return ShardDataset(settings.shards)


class Inspection:
    """The parsed flags, checked, and the objects made from them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.windows = settings_from(args, WindowSettings)
        self.data = settings_from(args, DataSettings)
        require(args.seed >= 0, f"--seed is {args.seed}; it must be 0 or more")
        require(args.fps is None or args.fps > 0, f"--fps is {args.fps}; it must be more than 0")
        if args.save_path:
            visualize.check_save_path(args.save_path)
        self.dataset = open_dataset(self.data)
        self.split = self._split()
        self.clips = self._clips()

    def _split(self) -> str:
        if self.args.split:
            return str(self.args.split)
        as_training = self.args.mode in ("sample", "batch") and self.dataset.split_names
        return "train" if as_training else "all"

    def _clips(self) -> np.ndarray:
        if self.split == "all":
            return np.arange(self.dataset.num_clips)
        names = self.dataset.split_names
        known = f"they have {', '.join(names)}" if names else "they were built without splits"
        require(self.split in names, f"--split is {self.split}, but the data have no such split: {known}")
        return self.dataset.split_clips(self.split)

    def index(self) -> WindowIndex:
        w = self.windows
        return WindowIndex(
            self.dataset.clip_lengths,
            w.window_size,
            w.frame_step,
            w.window_stride,
            w.max_windows_per_clip,
            clips=self.clips,
        )

    def batch_ids(self, index: WindowIndex) -> tuple[np.ndarray, str]:
        """Window ids of the batch asked for, and its name."""
        args, size = self.args, self.data.batch_size
        require(size <= len(index), f"--batch-size is {size}, but there are only {len(index)} windows")
        if args.batch_sampling == "contiguous":
            return visualize.contiguous_ids(index, size, args.batch_idx), f"contiguous batch {args.batch_idx}"
        if args.batch_sampling == "random":
            ids = visualize.random_ids(index, size, args.batch_idx, args.seed)
            return ids, f"random batch {args.batch_idx}, seed {args.seed}"
        plan = self._plan(index)
        steps = len(plan)
        require(0 <= args.step < steps, f"--step is {args.step}; the epoch has steps 0 to {steps - 1}")
        return plan.batch(args.step), f"training batch at epoch {args.epoch}, step {args.step}, seed {args.seed}"

    def _plan(self, index: WindowIndex) -> EpochPlan:
        """The order of the epoch; a warning of the plan becomes a line on stderr."""
        order = {
            "seed": self.args.seed,
            "epoch": self.args.epoch,
            "min_gap": self.data.min_gap,
            "depth": self.data.depth,
        }
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            plan = EpochPlan(index, self.data.batch_size, **order)
        for warning in caught:
            print(f"note: {warning.message}", file=sys.stderr)
        return plan

    def size_facts(self) -> dict[str, Any]:
        return {
            "data": str(self.data.shards or self.data.root_dir),
            "split": self.split,
            "clips": len(self.clips),
            "frames": int(self.dataset.clip_lengths[self.clips].sum()),
        }

    def view(self, index: WindowIndex, ids: np.ndarray) -> visualize.WindowView:
        return visualize.view_windows(self.dataset, index, ids, image_size=self.data.image_size)


def show_windows(look: Inspection) -> int:
    """Modes sample and batch: print what the windows are, then draw them."""
    args = look.args
    if args.save_path is None:
        visualize.require_window()
    index = look.index()
    if args.mode == "sample":
        ids, name = visualize.sample_id(index, args.sample_idx), f"window {args.sample_idx} of {len(index):,}"
    else:
        ids, name = look.batch_ids(index)
    view = look.view(index, ids)
    facts = {**look.size_facts(), "windows": len(index), "showing": name, **view.facts()}
    emit(facts, visualize.windows_text(facts), args.json)
    augmented = None
    if look.data.augment != "none":
        augmented = visualize.augment_windows(
            look.dataset, view, look.data.augment, look.data.augment_scope, seed=args.seed, epoch=args.epoch
        )
    figure = visualize.draw_windows(
        view, name, difference=args.difference, augmented=augmented, frames_per_second=args.fps
    )
    deliver(figure, args.save_path)
    return 0


def show_stats(look: Inspection) -> int:
    stats = visualize.dataset_stats(look.dataset, look.windows, look.clips)
    facts = {**look.size_facts(), **stats}
    emit(facts, visualize.stats_text(stats), look.args.json)
    if look.args.save_path:
        deliver(visualize.draw_stats(stats, facts["data"]), look.args.save_path)
    return 0


def verify(look: Inspection) -> int:
    """Exit status 1 if any frame is damaged."""
    damaged = visualize.damaged_frames(look.dataset, look.clips, decode=look.args.decode)
    names = [str(error) for error in damaged]
    facts = {**look.size_facts(), "decoded": look.args.decode, "damaged": names}
    checked = "read and decoded" if look.args.decode else "read"
    emit(facts, "\n".join([*names, f"{facts['frames']:,} frames {checked}, {len(names):,} damaged"]), look.args.json)
    return 1 if damaged else 0


def write_html(look: Inspection) -> int:
    require(look.args.out is not None, "--mode html needs --out DIR, the folder to write the gallery to")
    index = look.index()
    ids, title = look.batch_ids(index)
    page = visualize.write_gallery(look.dataset, look.args.out, look.windows, look.clips, look.view(index, ids), title)
    emit({**look.size_facts(), "page": str(page)}, f"wrote {page}: open it in a browser", look.args.json)
    return 0


def emit(facts: dict[str, Any], text: str, as_json: bool) -> None:
    print(json.dumps(facts, indent=2) if as_json else visualize.printable_lines(text))


def deliver(figure: Figure, save_path: Path | None) -> None:
    if save_path is None:
        visualize.show_figure(figure)
        return
    visualize.save_figure(figure, save_path)
    print(f"wrote {save_path}", file=sys.stderr)


MODES = {"sample": show_windows, "batch": show_windows, "stats": show_stats, "verify": verify, "html": write_html}


def main(argv: list[str] | None = None) -> int:
    look = Inspection(arguments().parse_args(argv))
    return MODES[look.args.mode](look)


if __name__ == "__main__":
    run(main, "inspect_windows.py")
