"""What a script asks before it imports anything else: whether this Python has the packages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACKAGES = ("numpy", "cv2", "PIL", "simplejpeg", "matplotlib", "tqdm")
TRAINING = ("torch", "torchvision")


def require_packages(prog: str, *further: str) -> None:
    """Exit with status 2, and a sentence that names the Python to use, if this one lacks a package."""
    missing = [name for name in (*PACKAGES, *further) if importlib.util.find_spec(name) is None]
    if not missing:
        return
    home = Path(__file__).parents[1]
    made = home / ".venv/bin/python"
    there = made.is_file() and Path(sys.prefix) != made.parents[1]
    remedy = f"start with {made}" if there else f"install them with `make setup` in {home}, and start with {made}"
    print(f"{prog}: error: {sys.executable} has no {', '.join(missing)}; {remedy}", file=sys.stderr)
    sys.exit(2)
