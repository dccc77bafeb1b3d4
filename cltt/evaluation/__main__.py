"""``python -m cltt.evaluation``: how good the encoders of a run are, as a table and a picture."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cltt import checkpoint, cli, config, distributed
from cltt.config import DEVICES, MAX_IMAGE_SIZE, MIN_IMAGE_SIZE, check_fields
from cltt.distributed import RankInfo
from cltt.errors import SettingsError
from cltt.evaluation.datasets import open_labelled
from cltt.files import atomic
from cltt.files.atomic import replace_file

if TYPE_CHECKING:
    pass
from cltt.evaluation.evaluator import Evaluator, load_encoder
from cltt.evaluation.plots import draw_accuracies


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Flags of ``python -m cltt.evaluation``."""

    checkpoint: str = config.setting("", "a checkpoint, or a run's folder: all of its checkpoints", required=True)
    data: str = config.setting(
        "",
        "labelled images: a folder a class, flat COIL files, CIFAR, or shards. Folders train, val and test in it, and "
        "the splits of shards, are kept; images without such parts are split at random, 60/20/20 a class: of a video, "
        "neighbouring frames then lie on both sides, which flatters the result",
        required=True,
    )
    out: str | None = config.setting(
        None, "folder for evaluation.csv, .json and .png (default: the run's folder)", type=str
    )
    image_size: int | None = config.setting(
        None, "side of the frames, in pixels (default: as trained)", type=int, within=(MIN_IMAGE_SIZE, MAX_IMAGE_SIZE)
    )
    device: str = config.setting("auto", "auto takes cuda, else mps, else cpu", choices=DEVICES)

    def __post_init__(self) -> None:
        check_fields(self)


def evaluate_checkpoints(settings: EvaluationSettings) -> list[dict[str, Any]]:
    """Evaluate each checkpoint asked for; one dictionary each, with its file, epoch and step."""
    source = Path(settings.checkpoint)
    paths = checkpoint.list_checkpoints(source) if source.is_dir() else [source]
    if not paths:
        raise SettingsError(f"{source} holds no checkpoints (epoch-*.pt)")
    device = distributed.pick_device(settings.device, RankInfo())
    data = open_labelled(settings.data)
    rows = []
    for path in paths:
        encoder, trained = load_encoder(path)
        image_size = settings.image_size or trained["data"]["image_size"]
        result = Evaluator(data, image_size=image_size, device=device)(encoder.to(device))
        epoch, step = checkpoint.position(path) if path.name.startswith("epoch-") else (0, 0)
        print(f"{path.name}: {result.describe()}", flush=True)
        rows.append({"checkpoint": str(path), "epoch": epoch, "step": step, **result.to_dict(), "row": result.row()})
    return rows


def write_results(rows: list[dict[str, Any]], out: Path) -> None:
    """Write ``evaluation.csv``, ``evaluation.json`` and ``evaluation.png`` into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "evaluation.json", json.dumps(rows, indent=1).encode())
    flat = [
        {"epoch": r["epoch"], "step": r["step"], **r["row"], **{f"nn_{k}": v for k, v in r["nearest"].items()}}
        for r in rows
    ]
    with open(out / "evaluation.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, flat[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
    draw_accuracies(flat).savefig(out / "evaluation.png", dpi=150)


def main(argv: list[str] | None = None, prog: str = "python -m cltt.evaluation") -> int:
    """``python -m cltt.evaluation``."""
    parser = cli.Parser(prog=prog, description="Evaluate the encoder of one or all checkpoints.")
    cli.add_settings(parser, EvaluationSettings)
    settings = cli.settings_from(parser.parse_args(argv), EvaluationSettings)
    source = Path(settings.checkpoint)
    if not source.exists():
        raise SettingsError(f"no checkpoint at {source}")
    out = Path(settings.out) if settings.out else (source if source.is_dir() else source.parent)
    atomic.check_writable(out, "give another --out")
    rows = evaluate_checkpoints(settings)
    write_results(rows, out)
    print(f"written: {out / 'evaluation.csv'}, evaluation.json, evaluation.png")
    return 0


if __name__ == "__main__":
    cli.run(main, "python -m cltt.evaluation")
