"""Settings: frozen dataclasses, checked when made, saved in full with each run."""

from __future__ import annotations

from dataclasses import dataclass

from cltt.cli import setting
from cltt.errors import SettingsError


def require(condition: bool, message: str) -> None:
    """Raise :class:`SettingsError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise SettingsError(message)


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """Which frames make a window: t, t+frame_step, ..., t+(window_size-1)*frame_step of one clip."""

    window_size: int = setting(5, "frames in a window (T)")
    frame_step: int = setting(10, "distance between neighbouring frames of a window, in frames")
    window_stride: int = setting(1, "distance between the starts of neighbouring windows, in frames")
    max_windows_per_clip: int = setting(0, "use at most this many windows of a clip, evenly spread (0: all)")

    def __post_init__(self) -> None:
        require(self.window_size >= 1, f"window_size is {self.window_size}; it must be at least 1")
        require(self.frame_step >= 1, f"frame_step is {self.frame_step}; it must be at least 1")
        require(self.window_stride >= 1, f"window_stride is {self.window_stride}; it must be at least 1")
        require(
            self.max_windows_per_clip >= 0,
            f"max_windows_per_clip is {self.max_windows_per_clip}; it must be 0 (all windows) or more",
        )

    @property
    def span(self) -> int:
        """Frames from the first to the last of a window, both included."""
        return (self.window_size - 1) * self.frame_step + 1
