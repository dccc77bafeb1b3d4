"""All settings of a training run, as frozen dataclasses that check their values and are saved with the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from cltt.config.augmenting import Augment
from cltt.config.data import DataSettings, WindowSettings
from cltt.config.fields import MAX_SEED, check_fields, declared, require, saved, setting
from cltt.config.labels import LabelRules
from cltt.config.old_flags import LINEAR_EVALUATION, WANDB
from cltt.config.recipe import ModelSettings, OptimSettings
from cltt.text import changes

DEVICES = ("auto", "cuda", "mps", "cpu")
AMP_MODES = ("auto", "bf16", "off")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Seed, device and precision of a run."""

    seed: int = setting(0, "seed of the weights, the order and the augmentation", within=(0, MAX_SEED))
    device: str = setting("auto", "auto takes cuda, else mps, else cpu", choices=DEVICES, free=True)
    amp: str = setting(
        "auto", "bfloat16 autocast: auto is bf16 on CUDA and off elsewhere", choices=AMP_MODES, nargs="?", const="bf16"
    )
    compile: bool = setting(False, "compile the model with torch.compile", free=True)
    deterministic: bool = setting(
        False,
        "make the same command, and a resumed run, give bit-identical results, on the same kind and number of GPUs and "
        "the same versions of the libraries (slower; results on the CPU always are)",
        free=True,
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Where and how often the run is saved, and what it starts from."""

    checkpoint_dir: str | None = setting(
        None, "folder of this run (default: checkpoints/ws<T>_fs<step>_wstr<stride>)", free=True
    )
    resume: bool = setting(
        False, "go on from the latest checkpoint in --checkpoint-dir; start a new run if there is none", free=True
    )
    checkpoint_path: str | None = setting(
        None,
        "start a new run from these weights: a checkpoint, the newest in a run's folder, a file of the older script, "
        "or an encoder's state dict under the names of --backbone",
        free=True,
    )
    weights_prefix: str | None = setting(
        None, "with --checkpoint-path: prefix of the names of one encoder, if the file holds several", free=True
    )
    checkpoint_minutes: float = setting(
        30.0,
        "save within an epoch after this many minutes (0: only at its end and at a request to stop)",
        within=(0, 1e6),
        free=True,
    )
    keep_last: int = setting(3, "number of newest checkpoints to keep", within=(1, 1_000_000), free=True)
    keep_every: int = setting(
        10, "also keep the checkpoint of every n-th epoch (0: none)", within=(0, 1_000_000), free=True
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class LogSettings(LabelRules):
    """Logs of the training, and evaluation during it."""

    csv_log: bool = setting(False, "write metrics.csv and metrics_eval.csv", free=True, old=WANDB)
    csv_log_path: str | None = setting(
        None, "file for the training metrics, with --csv-log (default: metrics.csv in the checkpoint folder)", free=True
    )
    eval_csv_log_path: str | None = setting(
        None, "file for the evaluation metrics (default: --csv-log-path with _eval before the extension)", free=True
    )
    eval_data: str | None = setting(
        None,
        "labelled images to evaluate on: one folder per class, flat COIL files, CIFAR archives, or shards; images "
        "without train and test parts are split at random, which gives too high accuracies for neighbouring frames of "
        "a video",
        free=True,
        old=LINEAR_EVALUATION,
    )
    eval: str | None = setting(
        None,
        "abx: test, without labels and on clips that are not trained on, whether a frame is closer to a frame of its "
        "window than to one of another moment or clip",
        choices=("abx",),
        free=True,
    )
    eval_every: int = setting(1, "evaluate after every n-th epoch and after the last", within=(1, 1_000_000), free=True)
    tensorboard: bool = setting(
        False, "also write TensorBoard files to the checkpoint folder (extra: tensorboard)", free=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        ruled = [rule.name for rule in declared(LabelRules) if getattr(self, rule.name) != rule.default]
        require(
            self.eval_data is not None or not ruled,
            f"{' and '.join(ruled)} need --eval-data, which they label; give --eval-data too, or leave them out",
        )
        for name in ("csv_log_path", "eval_csv_log_path"):
            path = getattr(self, name)
            require(
                self.csv_log or path is None,
                f"{name} is {path!r}, but it is only written with --csv-log; give --csv-log too, or leave it out",
            )


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """All settings of ``cltt train``, in groups."""

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
            self.windows.frame_steps[1] > 0 or self.data.augmentation != Augment(),
            "--frame-step 0 repeats one frame in a window: with --augment none all its views are equal and there is "
            "nothing to learn; give --augment crop or simclr",
        )
        require(size >= 2, f"--window-size is {size}; the loss compares the frames of a window: give 2 or more")
        batch = self.data.batch_size
        require(batch >= 2, f"--batch-size is {batch}; the loss needs windows to compare: give 2 or more")
        one_file = self.log.csv_log and self.csv_path.absolute() == self.eval_csv_path.absolute()
        require(not one_file, f"--csv-log-path and --eval-csv-log-path both name {self.csv_path}; give two files")

    @staticmethod
    def groups() -> dict[str, type]:
        """The settings class of every group, by field name."""
        return get_type_hints(TrainSettings)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The values, one dictionary per group, as settings.json and every checkpoint hold them."""
        return saved(self)

    @property
    def run_dir(self) -> Path:
        """The folder of the run's checkpoints and logs."""
        if self.checkpoint.checkpoint_dir is not None:
            return Path(self.checkpoint.checkpoint_dir)
        w = self.windows
        return Path("checkpoints") / f"ws{w.window_size}_fs{w.frame_step}_wstr{w.window_stride}"

    @property
    def csv_path(self) -> Path:
        """The file of the training metrics."""
        return Path(self.log.csv_log_path) if self.log.csv_log_path else self.run_dir / "metrics.csv"

    @property
    def eval_csv_path(self) -> Path:
        """The file of the evaluation metrics."""
        if self.log.eval_csv_log_path:
            return Path(self.log.eval_csv_log_path)
        return self.csv_path.with_name(f"{self.csv_path.stem}_eval{self.csv_path.suffix}")


def differences(before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> list[str]:
    """Changed settings with which a run cannot be resumed: ``["batch_size is 16 and was 32", ...]``.

    A setting that ``before`` does not have was its default.
    """
    found = []
    for group, settings in TrainSettings.groups().items():
        was = {known.name: known.default for known in declared(settings)} | before.get(group, {})
        bound = [known.name for known in declared(settings) if not known.metadata["free"]]
        found += changes(was, {name: now[group][name] for name in bound})
    return found
