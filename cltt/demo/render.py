"""Labelled clips out of nothing: bare solids that turn and move in coloured light before a quickly panning background.

Every clip has its own background, light and paths, drawn from a seed that does not know the object. Solids have no
colour of their own, and the light's colour, the place and the background change within a clip: what stays the same
through it, and from clip to clip, is the solid's shape alone. A solid is a swept surface (a profile turned around an
axis, with a cross-section), cut into quads that OpenCV fills back to front.

Shapes in comments: R rings along the profile, S sectors around the axis, F = R*S faces.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

RINGS, SECTORS = 20, 30
SUPERSAMPLE = 2  # solids are drawn this many times larger and averaged down: smooth edges
CANVAS = 640  # side of a background, in pixels; it wraps around
FOCAL = 2.6  # focal length in units of half the picture's height

THINGS = 25  # that lie about in a background
PAN = (35, 50)  # how far the camera moves on over a background between two frames, in its pixels

# What changes within a clip, whatever the solid: lowest, highest, frames that a slow wave between them takes.
PLACE = ([-0.35, -0.35, 3.7], [0.35, 0.35, 4.9], 20)  # right, down and away, in units
LEAN = ([-0.5, -0.5], [0.5, 0.5], 24)  # of the axis to the side and to the camera, in radians
LAMP = ([-0.9, -0.9, -1.0], [0.9, 0.2, -0.5], 20)  # where the light comes from
PAINT = ([0.2, 150], [0.9, 255], 16)  # saturation (0..1) and brightness (0..255) of the light
TURNS = ([0.02, 0.02], [0.05, 0.05])  # of the light's hue and of the solid about its axis, in turns a frame


@dataclass(frozen=True)
class Solid:
    """One object: the names of its profile and its cross-section."""

    profile: str
    section: str


SOLIDS = (
    Solid("ball", "round"),
    Solid("drum", "square"),
    Solid("cone", "round"),
    Solid("ring", "round"),
    Solid("hourglass", "round"),
    Solid("bottle", "round"),
    Solid("drum", "star"),
    Solid("diamond", "square"),
)


def profile_curve(name: str, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Radius and height [R+1] of a profile at ``t`` in 0..1, from bottom to top (a ring's profile is closed)."""
    if name == "ball":
        return np.sin(np.pi * t), -np.cos(np.pi * t)
    if name == "ring":
        return 0.75 + 0.35 * np.cos(2 * np.pi * t), 0.35 * np.sin(2 * np.pi * t)
    corners = {
        "drum": ((0, -0.9), (0.75, -0.9), (0.75, 0.9), (0, 0.9)),
        "cone": ((0, -0.8), (0.95, -0.8), (0.5, 0.1), (0, 1.0)),
        "diamond": ((0, -1.15), (0.45, -0.55), (0.9, 0), (0.45, 0.55), (0, 1.15)),
        "hourglass": ((0, -1), (0.8, -1), (0.25, 0), (0.8, 1), (0, 1)),
        "bottle": ((0, -1.1), (0.65, -1.1), (0.65, 0.1), (0.22, 0.5), (0.22, 1.1), (0, 1.1)),
    }[name]
    radius, height = np.array(corners, float).T
    position = np.concatenate([[0], np.cumsum(np.hypot(np.diff(radius), np.diff(height)))])
    t = t * position[-1]
    return np.interp(t, position, radius), np.interp(t, position, height)


def section_radius(name: str, angle: np.ndarray) -> np.ndarray:
    """Factor on the radius [S+1] at ``angle`` around the axis, in radians."""
    if name == "round":
        return np.ones_like(angle)
    corners = {"square": 4, "star": 5}[name]
    within = np.mod(angle, 2 * np.pi / corners) - np.pi / corners
    if name == "star":
        return 0.6 + 0.5 * np.abs(within) / (np.pi / corners)
    return 1.15 * np.cos(np.pi / corners) / np.cos(within)


def solid_points(solid: Solid) -> np.ndarray:
    """Surface points [R+1, S+1, 3] of a solid, about one unit in radius."""
    radius, height = profile_curve(solid.profile, np.linspace(0, 1, RINGS + 1))
    angle = np.linspace(0, 2 * np.pi, SECTORS + 1)
    reach = radius[:, None] * section_radius(solid.section, angle)[None]
    return np.stack([reach * np.cos(angle), reach * np.sin(angle), np.broadcast_to(height[:, None], reach.shape)], -1)


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """Rotation matrix [3, 3] from a rotation vector in radians."""
    return cv2.Rodrigues(np.array([[x], [y], [z]], float))[0]


def draw_faces(image: np.ndarray, points: np.ndarray, colour: np.ndarray, light: np.ndarray) -> None:
    """Fill the quads of a surface that face the camera into ``image`` [H, W, 3] uint8, far ones first.

    points: [R+1, S+1, 3] in camera coordinates (z away from the camera); colour [3]; light: unit vector [3].
    """
    quads = np.stack([points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]], axis=2).reshape(-1, 4, 3)
    quads, normals = facing_camera(quads)
    shade = 0.3 + 0.7 * np.clip(normals @ light, 0, 1)
    lit = shade[:, None] * colour
    half = image.shape[0] / 2
    pixels = np.round(half + half * FOCAL * quads[..., :2] / quads[..., 2:]).astype(np.int32)
    for face in np.argsort(-quads[..., 2].sum(1)):
        cv2.fillConvexPoly(image, pixels[face], lit[face].tolist())


def facing_camera(quads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those quads [F, 4, 3] whose outside is seen from the origin, and their unit normals [F, 3]."""
    normals = np.cross(quads[:, 3] - quads[:, 1], quads[:, 2] - quads[:, 0])
    seen = (normals * quads.mean(1)).sum(1) < 0
    quads, normals = quads[seen], normals[seen]
    return quads, normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9)


def make_background(rng: np.random.Generator) -> np.ndarray:
    """A cluttered picture [CANVAS, CANVAS, 3] uint8 that wraps around: a soft coloured ground with things on it."""
    coarse = rng.uniform(40, 200, (6, 6, 3)).astype(np.float32)
    wrapped = np.pad(coarse, ((1, 1), (1, 1), (0, 0)), mode="wrap")
    scale = CANVAS // 6
    ground = cv2.resize(wrapped, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)[scale:-scale, scale:-scale]
    image = np.clip(cv2.resize(ground, (CANVAS, CANVAS)), 0, 255).astype(np.uint8)
    for _ in range(THINGS):
        draw_clutter(image, rng)
    return image


def draw_clutter(image: np.ndarray, rng: np.random.Generator) -> None:
    """Draw one thing of random kind, colour, size and place into a background."""
    x, y = (int(value) for value in rng.integers(0, CANVAS, 2))
    width, height = (int(value) for value in rng.integers(8, 70, 2))
    colour = rng.uniform(20, 240, 3).tolist()
    kind = int(rng.integers(4))
    if kind == 0:
        corners = cv2.boxPoints(((x, y), (width, height), float(rng.uniform(0, 180))))
        cv2.fillConvexPoly(image, corners.astype(np.int32), colour)
    elif kind == 1:
        cv2.ellipse(image, (x, y), (width // 2, height // 2), float(rng.uniform(0, 180)), 0, 360, colour, -1)
    elif kind == 2:
        cv2.line(image, (x, y), (x + 2 * width - 70, y + 2 * height - 70), colour, int(rng.integers(2, 10)))
    else:
        cv2.circle(image, (x, y), width // 2, colour, int(rng.integers(2, 8)))


class Drift:
    """A smooth random path between ``low`` and ``high`` [dimensions]: a slow wave with a quicker one on it."""

    def __init__(self, rng: np.random.Generator, low: list[float], high: list[float], period: float) -> None:
        self.low, self.high = np.array(low), np.array(high)
        self.phase = rng.uniform(0, 2 * np.pi, (2, len(low)))
        self.rate = 2 * np.pi / (period * rng.uniform([[0.8], [0.35]], [[1.2], [0.55]], (2, len(low))))

    def at(self, frame: int) -> np.ndarray:
        """The place [dimensions] at a frame."""
        slow, quick = np.sin(self.phase + self.rate * frame)
        return self.low + (self.high - self.low) * (0.5 + 0.35 * slow + 0.15 * quick)


class Camera:
    """A moving camera's view of the background: it pans over the canvas, rolls a little and never stands still."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.canvas = make_background(rng)
        self.start = rng.uniform(0, CANVAS, 2)
        heading = rng.uniform(0, 2 * np.pi)
        self.pan = rng.uniform(*PAN) * np.array([np.cos(heading), np.sin(heading)])
        self.sway = Drift(rng, [-30, -30, -0.35, 1.1], [30, 30, 0.35, 1.9], period=30)

    def view(self, frame: int, size: int) -> np.ndarray:
        """What lies behind the object at a frame: BGR uint8 [size, size, 3]."""
        sway_x, sway_y, roll, zoom = self.sway.at(frame)
        cos, sin = np.cos(roll) * zoom * 100 / size, np.sin(roll) * zoom * 100 / size
        x, y = self.start + self.pan * frame + (sway_x, sway_y)
        to_canvas = np.array([[cos, -sin, x], [sin, cos, y]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(self.canvas, to_canvas, (size, size), flags=flags, borderMode=cv2.BORDER_WRAP)


class Motion:
    """What a clip's solid does: it spins, leans and wanders under a lamp that moves and changes its colour."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.place, self.lean, self.lamp, self.paint = (Drift(rng, *path) for path in (PLACE, LEAN, LAMP, PAINT))
        self.hue, self.spin = rng.uniform(0, 1, 2)
        self.hue_rate, self.spin_rate = rng.choice([-1, 1], 2) * rng.uniform(*TURNS)

    def pose(self, frame: int) -> np.ndarray:
        """Rotation [3, 3] of the solid, whose axis is upright but for its lean."""
        side, to_camera = self.lean.at(frame)
        spin = 2 * np.pi * (self.spin + self.spin_rate * frame)
        return rotation(0, 0, side) @ rotation(np.pi / 2 + to_camera, 0, 0) @ rotation(0, 0, spin)

    def colour(self, frame: int) -> np.ndarray:
        """Colour [3] of the light, BGR 0..255."""
        saturation, brightness = self.paint.at(frame)
        hue = (self.hue + self.hue_rate * frame + np.array([2, 1, 0]) / 3) % 1
        return brightness * (1 - saturation * np.clip(2 - np.abs(6 * hue - 3), 0, 1))

    def light(self, frame: int) -> np.ndarray:
        """Where the light comes from, a unit vector [3]."""
        direction = self.lamp.at(frame)
        return direction / np.linalg.norm(direction)


def render_clip(solid: Solid, num_frames: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the frames of one clip, BGR uint8 [size, size, 3]; ``rng`` alone decides on everything but the solid."""
    points = solid_points(solid)
    camera, motion = Camera(rng), Motion(rng)
    large = size * SUPERSAMPLE
    for frame in range(num_frames):
        image = camera.view(frame, large)
        placed = points @ motion.pose(frame).T + motion.place.at(frame)
        draw_faces(image, placed, motion.colour(frame), motion.light(frame))
        yield cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def write_clip(folder: Path, solid: Solid, num_frames: int, size: int, rng: np.random.Generator) -> None:
    """Render a clip into ``folder`` as ``frame_000000.jpg ...``; the folder appears under its name when whole."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for number, image in enumerate(render_clip(solid, num_frames, size, rng)):
        cv2.imwrite(str(unfinished / f"frame_{number:06d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    unfinished.rename(folder)
