"""Settings: frozen dataclasses, checked when made, saved in full with each run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cltt.config.fields import (
    MANY,
    MAX_IMAGE_SIZE,
    MAX_SEED,
    MIN_IMAGE_SIZE,
    check_fields,
    require,
    setting,
)
from cltt.config.recipe import ModelSettings, OptimSettings
from cltt.region import BOXES_OF_SHARDS, EFFECTS, REGIONS, SCALES, Region
from cltt.text import changes


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """Which frames make a window: t, t+frame_step, ..., t+(window_size-1)*frame_step of one clip."""

    window_size: int = setting(5, "frames in a window (T)", within=(1, 10_000))
    frame_step: int = setting(
        10,
        "distance between neighbouring frames of a window, in frames (0: the same frame each time)",
        within=(0, MANY),
    )
    window_stride: int = setting(1, "distance between the starts of neighbouring windows, in frames", within=(1, MANY))
    max_windows_per_clip: int = setting(
        0, "use at most this many windows of a clip, evenly spread (0: all)", within=(0, MANY)
    )
    short_clip_windows: int = setting(
        0, "a clip that offers at most this many windows gives one, from its middle (0: no such rule)", within=(0, MANY)
    )

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def span(self) -> int:
        """Frames from the first to the last of a window, both included."""
        return (self.window_size - 1) * self.frame_step + 1


AUGMENTATIONS = ("none", "crop", "simclr")
AUGMENT_SCOPES = ("frame", "window")
NORMALISATIONS = ("imagenet", "none")
SPLITS = ("train", "val", "test", "all")
DEVICES = ("auto", "cuda", "mps", "cpu")
AMP_MODES = ("auto", "bf16", "off")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which frames are trained on and how they become batches."""

    root_dir: str | None = setting(
        None, "folder of clip folders and videos; shards are built from it under shards/ on first use", type=str
    )
    shards: str | None = setting(None, "folder of built shards (instead of --root-dir)", type=str)
    fps: float | None = setting(
        None, "with --root-dir: frames a second taken of videos (default: every frame)", type=float, within=(1e-3, 1e3)
    )
    rescan: bool = setting(False, "with --root-dir: compare every file with the one built, not only the folders")
    stage_to: str | None = setting(
        None, "copy the shards to this node-local folder first, once a node, verified", type=str
    )
    split: str | None = setting(
        None, "clips to train on (default: train if the shards have splits, else all)", type=str, choices=SPLITS
    )
    clips: str | None = setting(
        None, "file that picks clips: a clip's key or a folder of clips a line, # comments (default: all)", type=str
    )
    batch_size: int = setting(64, "windows a step, over all ranks (B)", within=(1, 1_000_000))
    image_size: int = setting(
        224, "side of the square frames the network sees, in pixels", within=(MIN_IMAGE_SIZE, MAX_IMAGE_SIZE)
    )
    num_workers: int = setting(4, "reading and decoding threads of a rank", within=(1, 1024))
    augment: str = setting("none", "augmentation; with none, time is the augmentation", choices=AUGMENTATIONS)
    augment_scope: str = setting("frame", "draw augmentation for every frame or once a window", choices=AUGMENT_SCOPES)
    region: str = setting("none", "where the network looks: at the center, or at the shards' boxes", choices=REGIONS)
    region_effect: str | None = setting(
        None, "blur all outside, or crop a square about its middle (default: blur)", type=str, choices=EFFECTS
    )
    region_scale: float | None = setting(
        None, "side of that square, in short sides of the frame (default: 0.5)", type=float, within=SCALES
    )
    normalise: str = setting(
        "imagenet",
        "pixels by ImageNet's mean and deviation, or (none) from 0 to 1 (with --checkpoint-path: as those weights were "
        "trained)",
        choices=NORMALISATIONS,
    )
    shuffle_frames: bool = setting(
        False,
        "put each clip's frames in a random order, fixed by the seed, before windows are cut: a control that shows "
        "what time teaches",
    )
    min_gap: int = setting(
        0, "frames that must lie between two windows of one clip in a batch, at least", within=(0, MANY)
    )
    depth: int | None = setting(
        None,
        "steps of a block: frames are decoded once a block (default: 128, more where the data need it)",
        type=int,
        within=(1, 1_000_000),
    )
    run: int | None = setting(
        None,
        "windows of a clip that share frames and are drawn together (default: 5*(window_size-1), at most 32)",
        type=int,
        within=(1, MANY),
    )
    cache_gb: float | None = setting(
        None,
        "decoded frames held, in GB (1e9 bytes) a rank (default: by the free memory)",
        type=float,
        within=(1e-6, 1e6),
    )
    max_bad_frames: int = setting(100, "stop when more frames than this could not be read or decoded", within=(0, MANY))
    io_patience: float = setting(
        600.0,
        "seconds to try again what a file system refuses for a while: reads (EIO, ESTALE ...), and the last writes",
        within=(0, 1e6),
    )
    no_wait: bool = setting(False, "stop, instead of waiting, if another process is building the shards of --root-dir")

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            (self.root_dir is None) != (self.shards is None),
            "give either --root-dir (a folder of clip folders) or --shards (a folder of built shards)",
        )
        region = self.looked_at
        require(region.kind != "boxes" or self.root_dir is None, BOXES_OF_SHARDS)
        for name in ("effect", "scale"):  # what is saved is what was done
            object.__setattr__(self, f"region_{name}", getattr(region, name))

    @property
    def looked_at(self) -> Region:
        return Region(self.region, self.region_effect, self.region_scale)

    def shuffle_seed(self, seed: int) -> int | None:
        """What puts the frames of clips in another order, for a run of ``seed``; None: nothing does."""
        return seed if self.shuffle_frames else None


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What the run is computed with."""

    seed: int = setting(0, "seed of the weights, the order and the augmentation", within=(0, MAX_SEED))
    device: str = setting("auto", "auto takes cuda, else mps, else cpu", choices=DEVICES)
    amp: str = setting(
        "auto", "bfloat16 autocast: auto is bf16 on CUDA and off elsewhere", choices=AMP_MODES, nargs="?", const="bf16"
    )
    compile: bool = setting(False, "compile the model with torch.compile")
    deterministic: bool = setting(
        False,
        "the same bits from the same command, and after a resume, on GPUs of one kind, as many of them, and the same "
        "versions of the libraries (slower; on the CPU it is always so)",
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Where the run is saved, how often, and what it starts from."""

    checkpoint_dir: str | None = setting(
        None, "folder of this run (default: checkpoints/ws<T>_fs<step>_wstr<stride>)", type=str
    )
    resume: bool = setting(False, "go on from the latest checkpoint in --checkpoint-dir; start fresh if there is none")
    checkpoint_path: str | None = setting(
        None,
        "start a new run from these weights: a checkpoint, the newest in a run's folder, a file of the older script, "
        "or an encoder's state dict under torchvision's names or, with --backbone timm:NAME, timm's",
        type=str,
    )
    checkpoint_minutes: float = setting(
        30.0, "save within an epoch after this many minutes (0: at epoch ends only)", within=(0, 1e6)
    )
    keep_last: int = setting(3, "checkpoints kept, the newest first", within=(1, 1_000_000))
    keep_every: int = setting(10, "also keep the checkpoint of every n-th epoch (0: none)", within=(0, 1_000_000))

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """What is written down while training."""

    csv_log: bool = setting(False, "write metrics.csv and metrics_eval.csv")
    csv_log_path: str | None = setting(
        None, "file for the training metrics, with --csv-log (default: metrics.csv in the checkpoint folder)", type=str
    )
    eval_csv_log_path: str | None = setting(
        None, "file for the evaluation metrics (default: --csv-log-path with _eval before the extension)", type=str
    )
    eval_data: str | None = setting(
        None,
        "labelled images to evaluate on: a folder a class, flat COIL files, CIFAR archives, or shards; images without "
        "train and test parts of their own are split at random, which flatters the result where they are neighbouring "
        "frames of a video",
        type=str,
    )
    eval_every: int = setting(1, "evaluate after every n-th epoch, and after the last", within=(1, 1_000_000))
    tensorboard: bool = setting(False, "also write TensorBoard files to the checkpoint folder (extra: tensorboard)")

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("csv_log_path", "eval_csv_log_path"):
            path = getattr(self, name)
            require(self.csv_log or path is None, f"{name} is {path!r}, but nothing is written to it without --csv-log")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Everything ``train.py`` can be told; one group a topic."""

    windows: WindowSettings
    data: DataSettings
    model: ModelSettings = field(default_factory=ModelSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    run: RunSettings = RunSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()

    def __post_init__(self) -> None:
        size = self.windows.window_size
        require(
            self.windows.frame_step > 0 or self.data.augment != "none",
            "--frame-step 0 makes windows of one frame, repeated: with --augment none all its views are equal and "
            "there is nothing to learn; give --augment crop or simclr",
        )
        require(size >= 2, f"--window-size is {size}; the loss compares the frames of a window: give 2 or more")
        one_file = self.log.csv_log and self.csv_path.absolute() == self.eval_csv_path.absolute()
        require(not one_file, f"--csv-log-path and --eval-csv-log-path both name {self.csv_path}; give two files")

    @staticmethod
    def groups() -> dict[str, type]:
        """Settings class of every group, by field name."""
        return {
            "windows": WindowSettings,
            "data": DataSettings,
            "model": ModelSettings,
            "optim": OptimSettings,
            "run": RunSettings,
            "checkpoint": CheckpointSettings,
            "log": LogSettings,
        }

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain dictionaries, one a group: what settings.json and every checkpoint hold."""
        return asdict(self)

    @property
    def run_dir(self) -> Path:
        """Folder of the run's checkpoints and records."""
        if self.checkpoint.checkpoint_dir is not None:
            return Path(self.checkpoint.checkpoint_dir)
        w = self.windows
        return Path("checkpoints") / f"ws{w.window_size}_fs{w.frame_step}_wstr{w.window_stride}"

    @property
    def csv_path(self) -> Path:
        """File of the training metrics."""
        return Path(self.log.csv_log_path) if self.log.csv_log_path else self.run_dir / "metrics.csv"

    @property
    def eval_csv_path(self) -> Path:
        """File of the evaluation metrics."""
        if self.log.eval_csv_log_path:
            return Path(self.log.eval_csv_log_path)
        return self.csv_path.with_name(f"{self.csv_path.stem}_eval{self.csv_path.suffix}")


# Settings a resumed run may be given anew: where things lie, how fast it runs and what is written down. The data is
# compared by its content. All others, with the number of epochs (the schedule ends with them), must be as they were.
FREE_ON_RESUME = {
    "data": {
        "root_dir",
        "shards",
        "fps",
        "clips",
        "rescan",
        "stage_to",
        "num_workers",
        "cache_gb",
        "max_bad_frames",
        "io_patience",
        "no_wait",
    },
    "run": {"device", "compile", "deterministic"},
    "checkpoint": {known.name for known in fields(CheckpointSettings)},
    "log": {known.name for known in fields(LogSettings)},
}


def differences(saved: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> list[str]:
    """Settings that forbid resuming: ``["batch_size is 16 and was 32", ...]``; those free to change are left out.

    A setting that did not exist when ``saved`` was written was what its default is.
    """
    found = []
    for group, values in now.items():
        before = {known.name: known.default for known in fields(TrainSettings.groups()[group])} | saved.get(group, {})
        free = FREE_ON_RESUME.get(group, set())
        found += changes(before, {name: value for name, value in values.items() if name not in free})
    return found
