"""``python -m cltt.evaluation``: how good the encoders of a run are, as a table and a picture, and what they see."""

from __future__ import annotations

import contextlib
import logging
import os
import textwrap
from argparse import BooleanOptionalAction
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from cltt import checkpoint, cli, config, distributed
from cltt.config import (
    DEVICES,
    MAX_IMAGE_SIZE,
    MIN_IMAGE_SIZE,
    NORMALISATIONS,
    DataSettings,
    WindowSettings,
    check_fields,
)
from cltt.distributed import RankInfo
from cltt.errors import CLTTError, SettingsError
from cltt.evaluation import results
from cltt.evaluation.datasets import LabelledData, LabelledSettings, open_labelled
from cltt.evaluation.evaluator import EvaluationResult, Evaluator, Features, features_of
from cltt.evaluation.images import Images, ShardSource, joined
from cltt.evaluation.parts import seen_in_training
from cltt.evaluation.plots import UNTRAINED, check_map, draw_map, draw_neighbours
from cltt.evaluation.probe import ProbeSettings
from cltt.evaluation.protocols import older_coil
from cltt.evaluation.protocols.abx import AbxEvaluator, AbxResult
from cltt.files import atomic
from cltt.files.atomic import file_sha256
from cltt.models.encoders import IMAGE_SIZE, Encoder, build_encoder, check_takes
from cltt.models.weights import Weights, read_weights
from cltt.sets.locate import SHARDS_HOME
from cltt.shards.dataset import ShardDataset
from cltt.visualize.embeddings import Embeddings, check_npz
from cltt.visualize.figures import check_save_path, save_figure

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Which encoders are evaluated, on what, and what is written."""

    checkpoint: tuple[str, ...] = config.setting(
        (),
        "folders of a run or of the older script, for all checkpoints in them, and files: a checkpoint, one of the "
        "older script, or an encoder's state dict under torchvision's or timm's names (.pth, .safetensors)",
        required=True,
        metavar="PATH",
    )
    backbone: str | None = config.setting(
        None,
        "the encoder, where the file does not name it, as `cltt train` takes it (default: some ResNets and Swins)",
    )
    weights_prefix: str | None = config.setting(
        None, "what stands before the names of one of several encoders in the file"
    )
    data: str = config.setting(
        "",
        "labelled images: one folder per class, flat COIL files, CIFAR, or shards. Folders train, val and test in it, "
        "and the splits of shards, are kept; data without such parts is split at random, 60/20/20 a class: images of "
        "one video need --group-from then, or neighbouring frames lie on both sides, which flatters the result",
        required=True,
    )
    out: str | None = config.setting(
        None,
        "folder for evaluation.csv, .json and .png, to which rows are added (default: the folder of the "
        "checkpoints, if they lie in one)",
    )
    baseline: bool = config.setting(
        True, "also evaluate the encoder as it was before training", action=BooleanOptionalAction
    )
    abx: bool = config.setting(
        False,
        "also measure, on shards, whether a frame is nearer to one of its window than to one of another moment, or "
        "another clip, in clips that the encoder is not trained on; needs no labels",
    )
    embeddings: str | None = config.setting(
        None, "file (.npz) for the features of all images, of the last checkpoint, with what is known of each"
    )
    neighbours: str | None = config.setting(
        None, "picture of some frames beside the nearest ones of other clips, by the last checkpoint"
    )
    map: str | None = config.setting(
        None, "picture of all frames in two dimensions, by the last checkpoint (extra: map)"
    )
    image_size: int | None = config.setting(
        None, "side of the frames, in pixels (default: as trained)", within=(MIN_IMAGE_SIZE, MAX_IMAGE_SIZE)
    )
    normalise: str | None = config.setting(
        None,
        "how pixels enter the network: less ImageNet's mean, over its deviation, or (none) from 0 to 1 (default: as "
        "trained; the older script's files do not say it)",
        choices=NORMALISATIONS,
    )
    device: str = config.setting("auto", "auto takes cuda, else mps, else cpu", choices=DEVICES)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def shows_frames(self) -> bool:
        return (self.embeddings or self.neighbours or self.map) is not None


class Evaluation:
    """One call of the command: its settings, and what it has opened."""

    def __init__(self, settings: EvaluationSettings, labelled: LabelledSettings, probe: ProbeSettings) -> None:
        self.settings, self.probe = settings, probe
        self._compared: set[tuple[str, bytes]] = set()  # shards and clips trained on
        self._begun = 0  # encoders that are evaluated, or have been
        self._rows: list[results.Row] = []  # for the JSON
        self._flat: list[results.Row] = []  # the same in columns
        self.paths = [path for given in settings.checkpoint for path in _checkpoints_in(Path(given))]
        self.out = Path(settings.out) if settings.out else _common_folder(self.paths)
        _check_outputs(settings, self.out)
        self.device = distributed.pick_device(settings.device, RankInfo())
        self.data = self._open_data(labelled)
        if settings.abx and not isinstance(self.data.source, ShardSource):
            raise SettingsError(f"--abx takes shards, whose clips say what a window is; {settings.data!r} holds none")
        given = {name: value for name, value in asdict(labelled).items() if value is not None}
        self.rules = " ".join(f"{name}={value}" for name, value in given.items() if name != "max_images")
        print(self.data.layout, flush=True)
        for note in self.data.notes:
            print(f"note: {note}", flush=True)

    def _open_data(self, labelled: LabelledSettings) -> LabelledData:
        settings = self.settings
        if not self.probe.protocol:
            return open_labelled(settings.data, labelled, unlabelled=settings.shows_frames or settings.abx)
        if labelled != LabelledSettings():
            raise SettingsError(
                f"--protocol {self.probe.protocol} takes all images, labelled by their names; leave out rules for "
                "labels and groups, --clips and --max-images"
            )
        return older_coil.open_older_coil(settings.data)

    def run(self) -> None:
        """Evaluate the untrained encoder and every checkpoint, add the rows, and show the last one's frames."""
        last, features = self._read(self.paths[-1]), {}
        self.windows = WindowSettings(**(last.saved["settings"]["windows"] if last.saved else {}))
        if self.settings.abx:
            self._abx(last)  # refused before the first minutes of work
        if self.settings.baseline:
            self._evaluate(UNTRAINED, last, _untrained(last))
        for path in self.paths:
            weights = last if path == self.paths[-1] else self._read(path)
            self._warn_of_known_clips(weights)
            features = self._evaluate(self._name(path), weights, weights.build_encoder())
        if self._rows:
            results.add_rows(self.out, self._rows, self._flat)
            print(f"written: {self.out / 'evaluation.csv'}, evaluation.json, evaluation.png")
        if self.settings.shows_frames:
            self._show(last, features)

    def _read(self, path: Path) -> Weights:
        s = self.settings
        return read_weights(path, s.backbone, image_size=s.image_size, prefix=s.weights_prefix, normalise=s.normalise)

    def _evaluate(self, name: str, weights: Weights, encoder: Encoder) -> Features:
        """Add what ``encoder`` reaches, if anything is measured -> its features of the images, if they are needed."""
        reading = self._reading(weights)
        check_takes(encoder, weights.backbone, reading["image_size"])
        encoder = encoder.to(self.device)
        labelled = bool(self.data.label_names)
        if labelled or self.settings.abx:
            self._announce(name, weights)
        needed = labelled or (self.settings.shows_frames and name != UNTRAINED)
        features = features_of(self.data.parts, encoder, device=self.device, **reading) if needed else {}
        made: list[EvaluationResult | AbxResult] = []
        if labelled:
            evaluator = Evaluator(self.data, device=self.device, probe=self.probe, **reading)
            made.append(evaluator.evaluate(features))
        if self.settings.abx:
            made.append(self._abx(weights)(encoder))
        if made:
            self._add(name, weights, made)
        return features

    def _announce(self, name: str, weights: Weights) -> None:
        """What is evaluated now, before the minutes that it takes, and how many are left."""
        self._begun += 1
        note = _note(name, weights)
        number = f"{self._begun} of {len(self.paths) + self.settings.baseline}"
        print(f"{name} ({number}{f'; {note}' if note else ''}):", flush=True)

    def _abx(self, weights: Weights) -> AbxEvaluator:
        """On clips that the run is not trained on, by the windows of the last run, so that rows can be compared."""
        dataset = cast(ShardSource, self.data.source).dataset
        known = weights.saved if weights.saved and weights.saved["fingerprint"] == dataset.fingerprint else None
        trained_on = _trained_on(weights, self.settings.data) if known else None
        clips = np.empty(0, np.int64) if trained_on is None else trained_on[1]
        return AbxEvaluator(dataset, clips, self.windows, device=self.device, **self._reading(weights))

    def _add(self, name: str, weights: Weights, made: list[EvaluationResult | AbxResult]) -> None:
        note = _note(name, weights)
        print(textwrap.indent("\n".join(result.describe() for result in made), "  "), flush=True)
        epoch, step = (0, 0) if name == UNTRAINED else (weights.epoch, weights.step)
        identity = {
            "checkpoint": name,
            "backbone": weights.backbone,
            "data": os.path.abspath(self.settings.data),
            "rules": self.rules,
            **self._reading(weights),
        }
        place = {"epoch": epoch, "step": step}
        whole = {key: value for result in made for key, value in asdict(result).items()}
        row = {key: value for result in made for key, value in result.row().items()}
        columns = {key: value for result in made for key, value in result.columns().items()}
        self._rows.append({**place, **identity, **whole, "row": row} | ({"note": note} if note else {}))
        self._flat.append({**place, **columns, **identity})

    def _name(self, path: Path) -> str:
        """The checkpoint's name in the table: that of its file in ``out``, else its whole path."""
        return path.name if path.parent.resolve() == self.out.resolve() else os.path.abspath(path)

    def _reading(self, weights: Weights) -> dict[str, Any]:
        """How images are read for the encoder: as the settings or the protocol have it, else as in training."""
        size, normalise = weights.image_size, self.settings.normalise or weights.normalise
        if self.probe.protocol:
            size, normalise = older_coil.IMAGE_SIZE, older_coil.NORMALISE
        return {"image_size": self.settings.image_size or size or DataSettings.image_size, "normalise": normalise}

    def _warn_of_known_clips(self, weights: Weights) -> None:
        """A line where the encoder was trained on the clips that it is asked about."""
        trained_on = _trained_on(weights, self.settings.data) if weights.saved else None
        if trained_on is None:
            return
        dataset, clips = trained_on
        if (of := (dataset.fingerprint, clips.tobytes())) in self._compared:
            return
        self._compared.add(of)
        if warning := seen_in_training(self.data.parts, dataset, clips):
            log.warning("%s", warning)

    def _show(self, weights: Weights, features: Features) -> None:
        """What ``--embeddings``, ``--neighbours`` and ``--map`` ask for."""
        images = joined(list(self.data.parts.values()))
        together = torch.cat([features[part] for part in self.data.parts]).cpu().numpy()
        embeddings = embed(images, together, self.data, self._identity(weights))
        settings = self.settings
        if settings.embeddings:
            embeddings.save(Path(settings.embeddings))
            print(f"written: {settings.embeddings} ({len(embeddings):,} frames)")
        for path, draw in ((settings.neighbours, draw_neighbours), (settings.map, draw_map)):
            if path:
                save_figure(draw(embeddings, images.pictures), Path(path))
                print(f"written: {path}")

    def _identity(self, weights: Weights) -> dict[str, Any]:
        return {
            "file": str(weights.path),
            "sha256": file_sha256(weights.path),
            "backbone": weights.backbone,
            "epoch": weights.epoch,
            "step": weights.step,
            "fingerprint": weights.saved.get("fingerprint"),
            **self._reading(weights),
            "data": os.path.abspath(self.settings.data),
        }


def embed(images: Images, features: np.ndarray, data: LabelledData, identity: dict[str, Any]) -> Embeddings:
    """Features float32 [n, F] of ``images`` with what is known of each."""
    places = images.source.places(images.ids)
    clip_names, clip = np.unique(np.array(places.clip, np.str_), return_inverse=True)
    return Embeddings(
        features=features,
        label=images.labels,
        clip=clip.astype(np.int64),
        frame=places.frame,
        time=places.time,
        path=np.array(places.path, np.str_),
        clip_names=clip_names,
        label_names=np.array(data.label_names, np.str_),
        checkpoint=identity,
    )


def _checkpoints_in(source: Path) -> list[Path]:
    """The file ``source``, or the checkpoints of a run, or of the older script, in the folder ``source``, by epoch."""
    if not source.exists():
        raise SettingsError(f"no checkpoint at {source}")
    if not source.is_dir():
        return [source]
    found = checkpoint.list_checkpoints(source) or checkpoint.older_checkpoints(source)
    if not found:
        below = checkpoint.runs_below(source)
        raise SettingsError(f"{source} holds no checkpoints (epoch-*.pt, or simclr_epoch_*.pth){below}")
    return found


def _common_folder(paths: list[Path]) -> Path:
    """The folder that holds all of ``paths``; SettingsError if there are several."""
    folders = {path.parent.resolve(): path.parent for path in paths}
    if len(folders) > 1:
        raise SettingsError("the checkpoints lie in several folders; give --out FOLDER for their common table and plot")
    return folders.popitem()[1]


def _untrained(weights: Weights) -> Encoder:
    """The encoder that the run started from; of files that are not a run's, one of seed 0."""
    seed = weights.saved["settings"].get("run", {}).get("seed", 0) if weights.saved else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(weights.backbone, weights.image_size or IMAGE_SIZE)


def _note(name: str, weights: Weights) -> str:
    """What the row ``name`` does not show by itself."""
    if name == UNTRAINED and weights.saved and not weights.saved.get("begun_with"):
        return "drawn anew: the run began with an earlier version, which drew other weights"
    return ""


def _trained_on(weights: Weights, data: str) -> tuple[ShardDataset, np.ndarray] | None:
    """The shards a run was trained on and the ids of its clips; None if they are not found.

    They are looked for at their path, at ``data``, and among the sets that training with --root-dir has built here.

    Without the list of --clips that the run was given, all clips of its split count as trained on.
    """
    trained = weights.saved["settings"]["data"]
    shards, listed = trained.get("shards"), trained.get("clips")
    listed = listed if listed and Path(listed).is_file() else None
    for path in (shards, data, *sorted(SHARDS_HOME.glob("*"))):
        if not path or not Path(path).is_dir():
            continue
        with contextlib.suppress(CLTTError):
            dataset = ShardDataset(path)
            if dataset.fingerprint == weights.saved["fingerprint"]:
                return dataset, dataset.training_clips(trained.get("split") if shards else "all", listed)[1]
    return None


def _check_outputs(settings: EvaluationSettings, out: Path) -> None:
    """SettingsError or DataError, before any work, for what could not be written."""
    atomic.check_writable(out, "give another --out")
    results.check(out)
    if settings.embeddings:
        check_npz(Path(settings.embeddings), "--embeddings")
    if settings.map:
        check_map()
    for path, flag in ((settings.neighbours, "--neighbours"), (settings.map, "--map")):
        if path:
            check_save_path(Path(path), flag)


def main(argv: list[str] | None = None, prog: str = "python -m cltt.evaluation") -> int:
    """``python -m cltt.evaluation``."""
    parser = cli.Parser(prog=prog, description="Evaluate the encoder of one or all checkpoints.")
    for group in (EvaluationSettings, LabelledSettings, ProbeSettings):
        cli.add_settings(parser, group)
    args = parser.parse_args(argv)
    Evaluation(
        cli.settings_from(args, EvaluationSettings),
        cli.settings_from(args, LabelledSettings),
        cli.settings_from(args, ProbeSettings),
    ).run()
    return 0


if __name__ == "__main__":
    cli.run(main, "python -m cltt.evaluation")
