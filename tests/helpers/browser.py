"""A page as Chromium has it, headless; tests that need it skip with a reason where there is none."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium (chromium, chromium-browser, google-chrome)")


class Page(HTMLParser):
    """Marked frames by clip, and the rest of what the tests look for, out of a dumped page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.frames: dict[int, list[int]] = {}
        self.boxes: dict[int, list[list[float]]] = {}
        self.windows: list[int] = []
        self.images: list[str] = []
        self.near: list[str] = []
        self.text: dict[str, str] = {}
        self._clip, self._id = -1, ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self._id = values.get("id", "")
        if "data-clip" in values:
            self._clip = int(values["data-clip"])
            self.frames[self._clip], self.boxes[self._clip] = [], []
        if "data-frame" in values:
            self.frames[self._clip].append(int(values["data-frame"]))
            self.boxes[self._clip].append([float(part) for part in re.findall(r"[\d.]+(?=%)", values["style"])])
        if "data-window" in values:
            self.windows.append(int(values["data-window"]))
        if "data-near" in values:
            self.near.append(values["data-near"])
        if tag == "img":
            self.images.append(values["src"])

    def handle_data(self, data: str) -> None:
        if self._id:
            self.text[self._id] = self.text.get(self._id, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._id = ""


def browse(tmp_path: Path, page: Path, address: str = "", events: str = "") -> Page:
    """The page as Chromium has it after running ``events`` (JavaScript at the page's end)."""
    if events:
        page.with_name("test.html").write_text(page.read_text().replace("</body>", f"<script>{events}</script></body>"))
        page = page.with_name("test.html")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri() + address], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return Page(done.stdout)
