"""``cltt export CHECKPOINT OUT``: writes a trained encoder for other programs, and a model card.

OUT ends in .pth (a state dict for ``torch.load``) or .safetensors. The names of the weights are torchvision's: they
load with ``strict=True`` into ``torchvision.models.resnet18()``, for example, after its ``fc`` (of a Swin: ``head``) is
replaced by an ``Identity``.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from cltt import cli
from cltt.config import NORMALISATIONS
from cltt.errors import SettingsError
from cltt.files.atomic import check_writable, file_sha256, replace_file
from cltt.files.regular import check_path
from cltt.models.weights import EXTRA, SAFETENSORS, State, Weights, attach, read_weights
from cltt.text import counted, printable

SUFFIXES = (".pth", SAFETENSORS)


def export(
    checkpoint: Path, out: Path, backbone: str | None = None, *, head: bool = False, **reading: Any
) -> list[Path]:
    """Write the encoder in ``checkpoint`` to ``out`` and a model card beside it; returns the files written.

    Args:
        checkpoint: a file, or a run's folder: its newest checkpoint.
        out: the file to write, NAME.pth or NAME.safetensors.
        backbone, reading: arguments of :func:`cltt.models.weights.read_weights`.
        head: also write the projection head, to NAME.head.pth, under the names of its layers (``0.weight`` ...).

    Raises SettingsError for an ``out`` with another ending or that cannot be written, and the errors of
    :func:`read_weights`.
    """
    if out.suffix not in SUFFIXES:
        raise SettingsError(f"cannot export to {out.name!r}; its ending must be {' or '.join(SUFFIXES)}")
    check_path(out, "OUT")
    if out.is_dir():
        raise SettingsError(f"{out} is a folder; give the name of the file")
    check_writable(out.parent, "give another place to export to")
    weights = read_weights(checkpoint, backbone, **reading)
    files = {out: _serialised(weights.build_encoder().state_dict(), weights, out.suffix)}
    head_file = out.with_suffix(f".head{out.suffix}")
    if head:
        files[head_file] = _serialised(weights.build_head().state_dict(), weights, out.suffix)
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        replace_file(path, content)
    # NAME.pth has the card NAME.md, as in earlier versions; NAME.safetensors has one of its own.
    card = out.with_suffix(".md") if out.suffix == ".pth" else out.with_name(f"{out.name}.md")
    described = [out, head_file] if head or _is_head_of(weights, head_file) else [out]
    replace_file(card, model_card(weights, described).encode())
    return [*files, card]


def _is_head_of(weights: Weights, file: Path) -> bool:
    """Whether ``file`` holds the projection head of these weights, from an earlier export."""
    return (
        weights.head is not None
        and file.is_file()
        and file.read_bytes() == _serialised(weights.build_head().state_dict(), weights, file.suffix)
    )


def _serialised(state: Mapping[str, torch.Tensor], weights: Weights, suffix: str) -> bytes:
    own: State = {name: value.detach().clone().contiguous() for name, value in state.items()}
    said = {"backbone": weights.backbone, "normalise": weights.normalise}
    if weights.image_size:
        said["image_size"] = str(weights.image_size)
    if suffix == SAFETENSORS:
        try:
            from safetensors.torch import save
        except ImportError:
            raise SettingsError(f"writing {SAFETENSORS} needs the package safetensors: {EXTRA}") from None
        return bytes(save(own, said))
    data = BytesIO()
    torch.save(attach(own, said), data)
    return data.getvalue()


# ---- the card


def model_card(weights: Weights, files: list[Path]) -> str:
    """The model card in Markdown: what the encoder is, how to load it, its training, data and settings."""
    lines = [f"# {weights.backbone}, from {printable(weights.path.name)}", ""]
    lines += [f"- `{printable(path.name)}`: SHA-256 `{file_sha256(path)}`" for path in files]
    features = weights.empty_encoder().feature_dim
    size = f" [n, 3, {weights.image_size}, {weights.image_size}]" if weights.image_size else " [n, 3, S, S]"
    lines += [f"- takes RGB{size}, {_PIXELS[weights.normalise]}; gives {features} features per frame"]
    lines += [
        f"- from a checkpoint of SHA-256 `{file_sha256(weights.path)}`",
        "",
        "```python",
        *_loading(weights, files[0]),
    ]
    lines += ["```", ""]
    saved = weights.saved
    if not saved:
        return "\n".join([*lines, "Another program trained it, so its settings are unknown.", ""])
    lines += _training(saved["history"], weights) if isinstance(saved.get("history"), dict) else []
    lines += [f"Data: shards of the fingerprint `{printable(str(saved.get('fingerprint')))}`.", ""]
    lines += ["| setting | |", "|---|---|"]
    for group in saved["settings"].values():
        lines += [f"| {name} | {_cell(value)} |" for name, value in group.items()]
    return "\n".join([*lines, ""])


_PIXELS = {
    "imagenet": "pixels from 0 to 1 less ImageNet's mean (0.485, 0.456, 0.406), over its deviation "
    "(0.229, 0.224, 0.225)",
    "none": "pixels from 0 to 1",
}


def _loading(weights: Weights, file: Path) -> list[str]:
    read = f'torch.load("{file.name}")'
    lines = weights.empty_encoder().code
    if file.suffix == SAFETENSORS:
        read = f'safetensors.torch.load_file("{file.name}")'
        lines = [f"{lines[0]}, safetensors.torch", *lines[1:]]
    return [*lines, f"encoder.load_state_dict({read}, strict=True)"]


def _training(history: Mapping[str, Any], weights: Weights) -> list[str]:
    """Lines on how long the encoder was trained, and its last metrics."""
    epochs, step, steps = (history.get(name) for name in ("epoch", "step", "total_steps"))
    next_epoch = f" and {_counted(step, 'step')} of the next" if step else ""
    lines = [f"Trained for {_counted(epochs, 'epoch')}{next_epoch}, {_counted(steps, 'step')} in all."]
    for name, rows in (("training", history.get("train")), ("evaluation", history.get("evaluation"))):
        if isinstance(rows, list) and rows:
            lines.append(
                f"Last {name}: " + ", ".join(f"{key} {_number(value)}" for key, value in rows[-1].items()) + "."
            )
    return [*lines, ""]


def _counted(number: Any, what: str) -> str:
    return counted(number, what) if isinstance(number, int) else f"? {what}s"


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _cell(value: Any) -> str:
    return printable(str(value)).replace("|", "\\|")


def main(argv: list[str] | None = None, prog: str = "python -m cltt.export") -> int:
    """The command ``cltt export``, which is also ``python -m cltt.export``; returns the exit status."""
    parser = cli.Parser(prog=prog, description="Write a trained encoder for other programs, and a card beside it.")
    parser.add_argument("checkpoint", help="a checkpoint, or a run's folder: its newest", metavar="CHECKPOINT")
    parser.add_argument("out", help="file to write: NAME.pth or NAME.safetensors (extra: safetensors)", metavar="OUT")
    parser.add_argument("--head", action="store_true", help="also write the projection head, to NAME.head.pth")
    parser.add_argument("--backbone", help="the encoder, as in `cltt train`, if the file does not name it")
    parser.add_argument(
        "--image-size", type=int, help="side of the images that it is made for, in pixels, if the file does not have it"
    )
    parser.add_argument(
        "--normalise", choices=NORMALISATIONS, help="how pixels are normalised for it, if the file does not have it"
    )
    parser.add_argument("--weights-prefix", help="prefix of the names of one encoder, if the file holds several")
    args = parser.parse_args(argv)
    for name in ("checkpoint", "out"):
        check_path(getattr(args, name), name.upper())
    reading = {"image_size": args.image_size, "normalise": args.normalise, "prefix": args.weights_prefix}
    for path in export(Path(args.checkpoint), Path(args.out), args.backbone, head=args.head, **reading):
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    cli.run(main, "python -m cltt.export")
