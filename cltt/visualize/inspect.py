"""``cltt inspect``: shows what the network will see, as pictures, text and pages.

One function per mode.
"""

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

INSPECT_MODES = ("sample", "batch", "stats", "verify", "html")
BATCH_SAMPLINGS = ("contiguous", "random", "plan")
OWN_FLAGS = ("root_dir", "fps")  # with another meaning than in training, which builds shards
ONLY_TRAINING = ("rescan", "stage_to", "split", "num_workers", "cache_gb", "keep_gb", "keep_dir", "max_bad_frames")
NAMED = 10  # files listed at most


@dataclass(frozen=True, kw_only=True)
class InspectSettings:
    """What ``cltt inspect`` shows, and where it writes."""

    mode: str = setting("sample", "what to look at", choices=INSPECT_MODES)
    save_path: str | None = setting(
        None, "picture to write (sample, batch, stats); without it, and without --json, sample and batch open a window"
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
        "frames per second of the clips: shows times in seconds; videos under --root-dir are read at this rate",
        within=(1e-3, 1e6),
    )
    decode: bool = setting(False, "decode every frame as well (verify)")

    @property
    def counts_windows(self) -> bool:
        """Whether the output needs the exact windows of training, so every file is checked."""
        return self.mode == "stats" or (self.mode in ("batch", "html") and self.batch_sampling == "plan")

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.mode != "html" or self.out is not None, "mode html needs --out, the folder for the gallery")
        require(self.mode == "html" or self.embeddings is None, "embeddings go into the gallery; give --mode html")


class Inspection:
    """The checked settings, and the dataset, windows and batches that they describe."""

    def __init__(self, argv: list[str] | None, prog: str) -> None:
        parser = Parser(prog=prog, description="Look at what the network will see.")
        parser.add_argument(
            "--root-dir", help="folder of clip folders and videos, looked at as it is: nothing is built"
        )
        add_settings(parser, InspectSettings)
        add_settings(parser, DataSettings, skip=OWN_FLAGS + ONLY_TRAINING)
        add_settings(parser, WindowSettings)
        args = parser.parse_args(argv)
        self.look = settings_from(args, InspectSettings)
        self.windows = settings_from(args, WindowSettings)
        self.data = settings_from(args, DataSettings)
        if self.look.save_path:
            figures.check_save_path(Path(self.look.save_path))
        if self.look.mode == "html" and self.look.out is not None:
            gallery.check_gallery_folder(Path(self.look.out))
        self.dataset = open_dataset(self.data, check=self.look.counts_windows, fps=self.look.fps)

    def clips(self, split: str) -> np.ndarray:
        """Ids of the clips of ``split``; SettingsError if there are none."""
        return self.dataset.training_clips(split, self.data.clips)[1]

    def index(self) -> tuple[WindowIndex, str]:
        """The windows that training would use, and the name of their split."""
        split, clips = self.dataset.training_clips(self.look.split, self.data.clips)
        shuffle_seed = self.data.shuffle_seed(self.look.seed)
        return (
            WindowIndex(self.dataset.clip_lengths, **asdict(self.windows), clips=clips, shuffle_seed=shuffle_seed),
            split,
        )

    @property
    def frames_note(self) -> str:
        """Text for a picture's title about shuffled frames and drawn steps; "" for neither."""
        shuffled = f", frames of a clip shuffled by seed {self.look.seed}" if self.data.shuffle_frames else ""
        drawn = f", steps {self.windows.frame_step} of epoch {self.look.epoch}, seed {self.look.seed}"
        return shuffled + (drawn if isinstance(self.windows.frame_step, str) else "")

    def batch_ids(self, index: WindowIndex) -> tuple[np.ndarray, str]:
        """Window ids of the batch that the settings name, and a title for it."""
        look, size = self.look, self.data.batch_size
        windows = counted(len(index), "window")
        if look.mode == "html" and look.batch_sampling != "plan":
            size = min(size, max(1, len(index)))  # a gallery is of clips, and training makes no such batch
        require(size <= len(index), f"--batch-size is {size}, but the clips give only {windows}; take a smaller batch")
        if look.batch_sampling == "contiguous":
            last = len(index) // size - 1
            require(look.batch_idx <= last, f"--batch-idx is {look.batch_idx}; {windows} give batches 0 to {last}")
            return look.batch_idx * size + np.arange(size), f"contiguous batch {look.batch_idx}"
        if look.batch_sampling == "random":
            ids = views.random_ids(index, size, look.batch_idx, look.seed)
            return ids, f"random batch {look.batch_idx}, seed {look.seed}"
        plan = self._plan(index)
        require(0 <= look.step < len(plan), f"--step is {look.step}; the epoch has steps 0 to {len(plan) - 1}")
        return plan.batch(look.step), f"training batch at epoch {look.epoch}, step {look.step}, seed {look.seed}"

    def _plan(self, index: WindowIndex) -> EpochPlan:
        """The plan of the epoch; its warnings become lines on stderr."""
        data, look = self.data, self.look
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            plan = EpochPlan(index, **values_of(data, OrderSettings), seed=look.seed, epoch=look.epoch)
        for warning in caught:
            print(f"note: {warning.message}", file=sys.stderr)
        return plan

    def view(self, index: WindowIndex, ids: np.ndarray) -> views.WindowView:
        """The windows ``ids`` as the network sees them.

        With boxes, prints to stderr how many frames have none.
        """
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
    """Open the shards, or the folder of clips without building shards.

    With ``check``, clips of a folder are cut at invalid files, as its shards would be; a line on stderr names them.
    """
    if settings.root_dir is None:
        assert settings.shards is not None  # DataSettings requires one of the two
        return ShardDataset(settings.shards)
    dataset = FolderDataset(settings.root_dir, check=check, fps=fps, stream=settings.stream)
    if dataset.invalid:
        print(f"note: {invalid_text(dataset.invalid)}", file=sys.stderr)
    return dataset


def invalid_text(invalid: dict[str, str]) -> str:
    """How many files were left out, with the names of the first ones."""
    first = [printable_lines(f"{name} ({reason})") for name, reason in islice(invalid.items(), NAMED)]
    more = f" and {len(invalid) - NAMED:,} more" if len(invalid) > NAMED else ""
    total = f"{counted(len(invalid), 'file')} left out, and the clip cut there, as shards would be"
    return f"{total}: {', '.join(first)}{more}"


def show_windows(inspection: Inspection) -> int:
    """Modes sample and batch: print the windows as text, then draw them."""
    look, data = inspection.look, inspection.data
    if look.save_path is None and not look.json:
        figures.require_window()
    index, split = inspection.index()
    if look.mode == "sample":
        last = len(index) - 1
        require(look.sample_idx <= last, f"--sample-idx is {look.sample_idx}; these settings give windows 0 to {last}")
        ids, name = np.array([look.sample_idx]), f"window {look.sample_idx} of 0 to {last:,}"
    else:
        ids, name = inspection.batch_ids(index)
    if look.mode == "batch" and look.batch_sampling != "plan":
        print("note: training makes no such batch; --batch-sampling plan shows those it makes", file=sys.stderr)
    name += inspection.frames_note
    view = inspection.view(index, ids)
    info = {**inspection.size_info(split), "windows": len(index), "showing": name, "normalise": data.normalise}
    info |= view.info()
    emit(info, views.windows_text(info), look.json)
    if look.json and look.save_path is None:
        return 0
    augmented = None
    if data.augmentation != Augment():
        draws = {"seed": look.seed, "epoch": look.epoch}
        augmented = views.augment_windows(inspection.dataset, view, data.augmentation, data.augment_scope, **draws)
    deliver(windows.draw_windows(view, name, look.difference, augmented, look.fps), look.save_path)
    return 0


def show_stats(inspection: Inspection) -> int:
    split = inspection.look.split or "all"
    found = stats.dataset_stats(inspection.dataset, inspection.windows, inspection.clips(split))
    info = {**inspection.size_info(split), **found}
    emit(info, stats.stats_text(found), inspection.look.json)
    if inspection.look.save_path:
        deliver(stats_page.draw_stats(found, info["data"]), inspection.look.save_path)
    return 0


def verify(inspection: Inspection) -> int:
    """Mode verify: read every frame; exit status 1 if any is corrupt."""
    split, decode = inspection.look.split or "all", inspection.look.decode
    found = corrupt_frames(inspection.dataset, inspection.clips(split), decode=decode)
    info = {**inspection.size_info(split), "decoded": decode, "damaged": [str(error) for error in found]}
    frames = counted(info["frames"], "frame")
    total = f"{frames} {'read and decoded' if decode else 'read'}, {len(found):,} damaged"
    emit(info, "\n".join([*corrupt_text(found), total]), inspection.look.json)
    return 1 if found else 0


def corrupt_text(corrupt: list[FrameError]) -> list[str]:
    """Lines of text: for each reason, how many frames are corrupt, and which.

    A reason names the shard, if there is one. A single frame with a reason has one line. Neighbouring frames of one
    name share a line: if a shard is missing, its frames have only the name of their clip.
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
        groups = _neighbours(errors)
        lines += [f"  {_frames_text(group)}" for group in groups[:NAMED]]
        if rest := sum(map(len, groups[NAMED:])):
            lines.append(f"  and {counted(rest, 'frame')} more; --json names all")
    return lines


def _neighbours(errors: list[FrameError]) -> list[list[FrameError]]:
    """The errors in groups of neighbouring frames with one name."""
    grouped = groupby(enumerate(errors), lambda item: (item[1].name, item[1].frame_id - item[0]))
    return [[error for _, error in group] for _, group in grouped]


def _frames_text(group: list[FrameError]) -> str:
    first, last = group[0].frame_id, group[-1].frame_id
    return f"frame {first} ({group[0].name})" if first == last else f"frames {first} to {last} ({group[0].name})"


def write_html(inspection: Inspection) -> int:
    split, out = inspection.look.split or "all", inspection.look.out
    assert out is not None  # InspectSettings requires it in this mode
    index, _ = inspection.index()
    ids, title = inspection.batch_ids(index)
    title += inspection.frames_note
    view = inspection.view(index, ids)
    features = embeddings.load(Path(inspection.look.embeddings)) if inspection.look.embeddings else None
    marks = None if inspection.frames_note else inspection.windows
    page = gallery.write_gallery(inspection.dataset, Path(out), marks, inspection.clips(split), view, title, features)
    text = [*views.corrupt_lines(view.info()), f"wrote {page}: open it in a browser"]
    emit({**inspection.size_info(split), "page": str(page)}, "\n".join(text), inspection.look.json)
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
    """``inspect_windows.py`` and ``cltt inspect``."""
    inspection = Inspection(argv, prog)
    return MODES[inspection.look.mode](inspection)
