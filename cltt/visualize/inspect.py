"""Inspecting what the network will see: settings to pictures, text and pages, a function a mode."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cltt.cli import Parser, add_settings, settings_from
from cltt.config import (
    MANY,
    MAX_SEED,
    SPLITS,
    Augment,
    DataSettings,
    OrderSettings,
    WindowSettings,
    check_fields,
    require,
    setting,
    values_of,
)
from cltt.errors import FrameError
from cltt.region import without_box_line
from cltt.sampling.epoch_plan import EpochPlan
from cltt.sampling.epoch_windows import EpochWindows
from cltt.sampling.windows import WindowIndex
from cltt.shards.dataset import ShardDataset
from cltt.shards.folder import FolderDataset
from cltt.shards.verify import corrupt_frames
from cltt.text import counted, printable_lines
from cltt.visualize import embeddings, figures, gallery, stats, stats_page, views, windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOK_MODES = ("sample", "batch", "stats", "verify", "html")
BATCH_SAMPLINGS = ("contiguous", "random", "plan")
HERE_OTHERWISE = ("root_dir", "fps")  # train.py builds shards of it
ONLY_TRAINING = ("rescan", "stage_to", "split", "num_workers", "cache_gb", "keep_gb", "keep_dir", "max_bad_frames")
NAMED = 10  # files named where there may be thousands


@dataclass(frozen=True, kw_only=True)
class LookSettings:
    """What ``inspect_windows.py`` shows, and where the picture goes."""

    mode: str = setting("sample", "what to look at", choices=LOOK_MODES)
    save_path: str | None = setting(
        None,
        "picture to write (sample, batch, stats); without it, and without --json, sample and batch open a window",
    )
    out: str | None = setting(None, "folder for the gallery (html)")
    embeddings: str | None = setting(
        None,
        "features of these clips, as cltt evaluate --embeddings writes them: a click on a frame lists the nearest ones "
        "of other clips (html)",
    )
    json: bool = setting(False, "print JSON instead of lines to read")
    sample_idx: int = setting(0, "window to show (sample)", within=(0, MANY * MANY))
    batch_sampling: str = setting(
        "random",
        "neighbouring windows, any windows, or exactly the batch of training at --epoch and --step (with --root-dir, "
        "plan and --mode stats first read every file: clips end at an invalid one)",
        choices=BATCH_SAMPLINGS,
    )
    batch_idx: int = setting(0, "which batch (contiguous, random)", within=(0, MANY * MANY))
    epoch: int = setting(0, "epoch of the plan, the drawn steps and the augmentation; the first is 0", within=(0, MANY))
    step: int = setting(0, "step of the epoch (plan); the first is 0", within=(0, MANY))
    seed: int = setting(
        0, "seed of random batches, the plan, the drawn steps and the augmentation", within=(0, MAX_SEED)
    )
    split: str | None = setting(
        None,
        "clips to look at (default: windows come from the clips that `cltt train` would take, the rest from all clips)",
        choices=SPLITS,
    )
    difference: bool = setting(False, "add rows of differences between neighbouring frames")
    fps: float | None = setting(
        None,
        "frames a second of the clips: gives times in seconds, and is taken of videos under --root-dir",
        within=(1e-3, 1e6),
    )
    decode: bool = setting(False, "decode every frame as well (verify)")

    @property
    def counts_windows(self) -> bool:
        """Whether what is shown depends on the exact windows of training, so on every frame being whole."""
        return self.mode == "stats" or (self.mode in ("batch", "html") and self.batch_sampling == "plan")

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.mode != "html" or self.out is not None, "mode html needs --out, the folder for the gallery")
        require(self.mode == "html" or self.embeddings is None, "embeddings go into the gallery; give --mode html")


class Inspection:
    """The settings, checked, and the objects made from them."""

    def __init__(self, argv: list[str] | None, prog: str) -> None:
        parser = Parser(prog=prog, description="Look at what the network will see.")
        parser.add_argument(
            "--root-dir", help="folder of clip folders and videos, looked at as it is: nothing is built"
        )
        add_settings(parser, LookSettings)
        add_settings(parser, DataSettings, skip=HERE_OTHERWISE + ONLY_TRAINING)
        add_settings(parser, WindowSettings)
        args = parser.parse_args(argv)
        self.look = settings_from(args, LookSettings)
        self.windows = settings_from(args, WindowSettings)
        self.data = settings_from(args, DataSettings)
        if self.look.save_path:
            figures.check_save_path(Path(self.look.save_path))
        if self.look.mode == "html" and self.look.out is not None:
            gallery.check_gallery_folder(Path(self.look.out))
        self.dataset = open_dataset(self.data, check=self.look.counts_windows, fps=self.look.fps)

    def clips(self, split: str) -> np.ndarray:
        """Ids of the clips of a split, or of all; SettingsError if there are none."""
        return self.dataset.training_clips(split, self.data.clips)[1]

    def index(self) -> tuple[WindowIndex, str]:
        """The windows that training would take, and the name of their split."""
        split, clips = self.dataset.training_clips(self.look.split, self.data.clips)
        shuffle_seed = self.data.shuffle_seed(self.look.seed)
        return (
            WindowIndex(self.dataset.clip_lengths, **asdict(self.windows), clips=clips, shuffle_seed=shuffle_seed),
            split,
        )

    @property
    def frames_note(self) -> str:
        """What a picture's title says of shuffled frames and drawn steps."""
        shuffled = f", frames of a clip shuffled by seed {self.look.seed}" if self.data.shuffle_frames else ""
        drawn = f", steps {self.windows.frame_step} of epoch {self.look.epoch}, seed {self.look.seed}"
        return shuffled + (drawn if isinstance(self.windows.frame_step, str) else "")

    def batch_ids(self, index: WindowIndex) -> tuple[np.ndarray, str]:
        """Window ids of the batch asked for, and its name."""
        look, size = self.look, self.data.batch_size
        there = counted(len(index), "window")
        fits = f"--batch-size is {size}, but the clips give only {there}; take a smaller batch"
        require(size <= len(index), fits)
        if look.batch_sampling == "contiguous":
            return views.contiguous_ids(index, size, look.batch_idx), f"contiguous batch {look.batch_idx}"
        if look.batch_sampling == "random":
            ids = views.random_ids(index, size, look.batch_idx, look.seed)
            return ids, f"random batch {look.batch_idx}, seed {look.seed}"
        plan = self._plan(index)
        require(0 <= look.step < len(plan), f"--step is {look.step}; the epoch has steps 0 to {len(plan) - 1}")
        return plan.batch(look.step), f"training batch at epoch {look.epoch}, step {look.step}, seed {look.seed}"

    def _plan(self, index: WindowIndex) -> EpochPlan:
        """The order of the epoch; a warning of the plan becomes a line on stderr."""
        data, look = self.data, self.look
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            plan = EpochPlan(index, **values_of(data, OrderSettings), seed=look.seed, epoch=look.epoch)
        for warning in caught:
            print(f"note: {warning.message}", file=sys.stderr)
        return plan

    def view(self, index: WindowIndex, ids: np.ndarray) -> views.WindowView:
        """The windows ``ids``, seen as the network does; with boxes a line on stderr says how many frames have none."""
        epoch = EpochWindows(index, seed=self.look.seed, epoch=self.look.epoch)
        region = self.data.looked_at
        region.check_boxes(self.dataset)
        if region.kind == "boxes":
            _, clips = self.dataset.training_clips(self.look.split, self.data.clips)
            without, frames = self.dataset.frames_without_box(clips), self.dataset.clip_lengths[clips].sum()
            print(f"note: {without_box_line(without, int(frames))}", file=sys.stderr)
        return views.view_windows(self.dataset, epoch, ids, image_size=self.data.image_size, region=region)

    def size_info(self, split: str) -> dict[str, Any]:
        clips = self.clips(split)
        frames = int(self.dataset.clip_lengths[clips].sum())
        return {
            "data": str(self.data.shards or self.data.root_dir),
            "split": split,
            "clips": len(clips),
            "frames": frames,
        }


def open_dataset(settings: DataSettings, *, check: bool, fps: float | None = None) -> ShardDataset | FolderDataset:
    """The shards, or the folder of clips as it lies there; with ``check``, cut at invalid files as its shards would be.

    A line on stderr says what was left out.
    """
    if settings.root_dir is None:
        assert settings.shards is not None  # DataSettings wants one of the two
        return ShardDataset(settings.shards)
    dataset = FolderDataset(settings.root_dir, check=check, fps=fps, stream=settings.stream)
    if dataset.invalid:
        print(f"note: {invalid_text(dataset.invalid)}", file=sys.stderr)
    return dataset


def invalid_text(invalid: dict[str, str]) -> str:
    """How many files were left out, and the first of them by name."""
    first = [printable_lines(f"{name} ({reason})") for name, reason in islice(invalid.items(), NAMED)]
    more = f" and {len(invalid) - NAMED:,} more" if len(invalid) > NAMED else ""
    whole = f"{counted(len(invalid), 'file')} left out, and the clip cut there, as shards would be"
    return f"{whole}: {', '.join(first)}{more}"


def show_windows(made: Inspection) -> int:
    """Modes sample and batch: print what the windows are, then draw them."""
    look, data = made.look, made.data
    if look.save_path is None and not look.json:
        figures.require_window()
    index, split = made.index()
    if look.mode == "sample":
        ids, name = views.sample_id(index, look.sample_idx), f"window {look.sample_idx} of 0 to {len(index) - 1:,}"
    else:
        ids, name = made.batch_ids(index)
    name += made.frames_note
    view = made.view(index, ids)
    info = {**made.size_info(split), "windows": len(index), "showing": name, "normalise": data.normalise}
    info |= view.info()
    emit(info, views.windows_text(info), look.json)
    if look.json and look.save_path is None:
        return 0
    augmented = None
    if data.augmentation != Augment():
        draws = {"seed": look.seed, "epoch": look.epoch}
        augmented = views.augment_windows(made.dataset, view, data.augmentation, data.augment_scope, **draws)
    deliver(windows.draw_windows(view, name, look.difference, augmented, look.fps), look.save_path)
    return 0


def show_stats(made: Inspection) -> int:
    split = made.look.split or "all"
    found = stats.dataset_stats(made.dataset, made.windows, made.clips(split))
    info = {**made.size_info(split), **found}
    emit(info, stats.stats_text(found), made.look.json)
    if made.look.save_path:
        deliver(stats_page.draw_stats(found, info["data"]), made.look.save_path)
    return 0


def verify(made: Inspection) -> int:
    """Exit status 1 if any frame is corrupt."""
    split, decode = made.look.split or "all", made.look.decode
    found = corrupt_frames(made.dataset, made.clips(split), decode=decode)
    info = {**made.size_info(split), "decoded": decode, "damaged": [str(error) for error in found]}
    frames = counted(info["frames"], "frame")
    total = f"{frames} {'read and decoded' if decode else 'read'}, {len(found):,} damaged"
    emit(info, "\n".join([*corrupt_text(found), total]), made.look.json)
    return 1 if found else 0


def corrupt_text(corrupt: list[FrameError]) -> list[str]:
    """Lines to read: for each reason (it names the shard, where there is one) how many frames, and which.

    A frame that is alone with its reason has one line. Neighbours of one name share a line: a missing shard takes the
    names of its frames with it, but not their clip.
    """
    reasons: dict[str, list[FrameError]] = {}
    for error in corrupt:
        reasons.setdefault(error.reason, []).append(error)
    lines = []
    for reason, errors in reasons.items():
        if len(errors) == 1:
            lines.append(str(errors[0]))
            continue
        lines.append(f"{counted(len(errors), 'frame')}: {reason}")
        runs = _runs(errors)
        lines += [f"  {_frames_text(run)}" for run in runs[:NAMED]]
        if rest := sum(map(len, runs[NAMED:])):
            lines.append(f"  and {counted(rest, 'frame')} more; --json names all")
    return lines


def _runs(errors: list[FrameError]) -> list[list[FrameError]]:
    """Neighbouring frames of one name together."""
    grouped = groupby(enumerate(errors), lambda item: (item[1].name, item[1].frame_id - item[0]))
    return [[error for _, error in group] for _, group in grouped]


def _frames_text(run: list[FrameError]) -> str:
    first, last = run[0].frame_id, run[-1].frame_id
    return f"frame {first} ({run[0].name})" if first == last else f"frames {first} to {last} ({run[0].name})"


def write_html(made: Inspection) -> int:
    split, out = made.look.split or "all", made.look.out
    assert out is not None  # LookSettings wants it in this mode
    index, _ = made.index()
    ids, title = made.batch_ids(index)
    title += made.frames_note
    view = made.view(index, ids)
    features = embeddings.load(Path(made.look.embeddings)) if made.look.embeddings else None
    marks = None if made.frames_note else made.windows
    page = gallery.write_gallery(made.dataset, Path(out), marks, made.clips(split), view, title, features)
    text = [*views.corrupt_lines(view.info()), f"wrote {page}: open it in a browser"]
    emit({**made.size_info(split), "page": str(page)}, "\n".join(text), made.look.json)
    return 0


def emit(info: dict[str, Any], text: str, as_json: bool) -> None:
    print(json.dumps(info, indent=2) if as_json else printable_lines(text))


def deliver(figure: Figure, save_path: str | None) -> None:
    if save_path is None:
        figures.show_figure(figure)
        return
    figures.save_figure(figure, Path(save_path))
    print(f"wrote {save_path}", file=sys.stderr)


MODES = {"sample": show_windows, "batch": show_windows, "stats": show_stats, "verify": verify, "html": write_html}


def main(argv: list[str] | None = None, prog: str = "inspect_windows.py") -> int:
    """The face of ``inspect_windows.py`` and ``cltt inspect``."""
    made = Inspection(argv, prog)
    return MODES[made.look.mode](made)
