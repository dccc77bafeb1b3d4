"""What a script asks before it imports anything else: whether this Python is new enough and has the packages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

OLDEST = (3, 11)
PACKAGES = ("numpy", "cv2", "PIL", "simplejpeg", "matplotlib", "tqdm")
TRAINING = ("torch", "torchvision")


def why_too_old() -> str:
    """A clause that says that this Python is too old for cltt; "" if it is not."""
    if sys.version_info >= OLDEST:
        return ""
    return f"{sys.executable} is Python {sys.version.split()[0]}, and cltt needs {OLDEST[0]}.{OLDEST[1]} or newer"


def require_packages(prog: str, *further: str) -> None:
    """Exit with status 2, and a sentence that names the Python to use, if this one is too old or lacks a package."""
    missing = [name for name in (*PACKAGES, *further) if importlib.util.find_spec(name) is None]
    lacks = why_too_old() or (f"{sys.executable} has no {', '.join(missing)}" if missing else "")
    if not lacks:
        return
    home = Path(__file__).parents[1]
    made = home / ".venv/bin/python"
    there = made.is_file() and Path(sys.prefix) != made.parents[1]
    remedy = f"start with {made}" if there else f"install all with `make setup` in {home}, and start with {made}"
    if not (home / "Makefile").is_file():  # an installed package, not a clone
        remedy = "install cltt again, with pip of a Python that is new enough"
    print(f"{prog}: error: {lacks}; {remedy}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":  # `make setup` asks it
    why = why_too_old()
    sys.exit(f"{why}; remove .venv if it is there, and give make setup PYTHON=..." if why else 0)
