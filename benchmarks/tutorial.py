"""``python -m benchmarks.tutorial``: runs the commands of docs/tutorial.md and writes their outputs and pictures again.

The videos are rendered: solids of the demo, which stand for the things that a reader films. A block ``output`` of the
page holds what the commands of the block before it print.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from cltt.demo.render import SOLIDS, render_clip

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
THINGS = {"ball": SOLIDS[0], "cone": SOLIDS[2], "bottle": SOLIDS[5], "star": SOLIDS[6]}
TAKES = {1: "train", 2: "train", 3: "test"}
RATE = 5  # frames per second of a video
SECONDS = 20
SIZE = 128  # pixels
MAX_WIDTH = 900  # of a picture on the page, in pixels
BLOCK = re.compile(r"^```(bash|output)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def film(folder: Path, frames: int = SECONDS * RATE) -> None:
    """Render the videos of step 1 into ``folder``."""
    import av

    for number, (thing, solid) in enumerate(THINGS.items()):
        for take, part in TAKES.items():
            path = folder / part / f"{thing}_{take}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            with av.open(str(path), "w") as video:
                stream = video.add_stream("libx264", rate=RATE)
                stream.width = stream.height = SIZE
                stream.pix_fmt = "yuv420p"
                for image in render_clip(solid, frames, SIZE, np.random.default_rng([number, take])):
                    video.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
                video.mux(stream.encode())


def run_page(text: str, folder: Path) -> str:
    """Run the bash blocks of ``text`` in ``folder``, in order -> the text with what they printed."""
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environ["CUDA_VISIBLE_DEVICES"] = ""
    before, printed = "", ""

    def step(block: re.Match[str]) -> str:
        nonlocal before, printed
        kind, body = block.groups()
        if kind == "output":
            return f"```output\n{printed}```"
        before += "".join(line for line in body.splitlines(True) if re.match(r"[A-Z]=", line))
        script = "set -e\n" + before + body
        done = subprocess.run(["bash", "-c", script], cwd=folder, env=environ, stdout=-1, stderr=-2, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{body}\n{done.stdout}")
        printed = done.stdout.replace(str(folder) + "/", "")
        return block.group()

    return BLOCK.sub(step, text)


def save_pictures(text: str, folder: Path, images: Path) -> None:
    """Save each picture that ``text`` shows, ``folder/NAME`` as ``images/tutorial_NAME``, at most MAX_WIDTH wide."""
    for name in re.findall(r"images/tutorial_(\w+\.\w+)", text):
        picture = Image.open(folder / name).convert("RGB")
        picture.thumbnail((MAX_WIDTH, 10_000))
        picture.save(images / f"tutorial_{name}", optimize=True)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        film(Path(folder) / "videos")
        text = run_page(PAGE.read_text(), Path(folder))
        save_pictures(text, Path(folder), PAGE.parent / "images")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
