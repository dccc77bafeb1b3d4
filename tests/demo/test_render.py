"""The demo's clips: the same again from the same seed, always in motion, and no label in the background."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cltt.demo import render
from cltt.demo.baselines import ColourHistogram
from cltt.demo.render import SOLIDS, render_clip, solid_points, write_clip

SIZE = 48


def clip(solid: int, *seed: int, frames: int = 4) -> np.ndarray:
    """Frames [frames, SIZE, SIZE, 3] of one clip."""
    return np.stack(list(render_clip(SOLIDS[solid], frames, SIZE, np.random.default_rng(seed))))


def nearest_accuracy(train: np.ndarray, test: np.ndarray) -> float:
    """Share of ``test`` [objects, clips, ...] whose nearest in ``train`` [objects, clips, ...] is the same object."""
    objects, per_object = train.shape[:2]
    train, test = train.reshape(objects * per_object, -1), test.reshape(len(test) * test.shape[1], -1)
    distance = np.linalg.norm(test[:, None].astype(float) - train[None], axis=-1)
    found = distance.argmin(1) // per_object
    return float((found == np.arange(len(test)) // (len(test) // objects)).mean())


def corners(images: np.ndarray, side: int = 10) -> np.ndarray:
    """The four corner patches of images [..., SIZE, SIZE, 3]: background, and hardly ever the object."""
    rows = np.concatenate([images[..., :side, :, :], images[..., -side:, :, :]], axis=-3)
    return np.concatenate([rows[..., :side, :], rows[..., -side:, :]], axis=-2)


def test_the_same_seed_renders_the_same_clip() -> None:
    np.testing.assert_array_equal(clip(3, 1, 2), clip(3, 1, 2))
    assert (clip(3, 1, 2) != clip(3, 1, 3)).any()


def test_solids_differ_in_shape() -> None:
    assert len({(solid.profile, solid.section) for solid in SOLIDS}) == len(SOLIDS) >= 8


def test_colour_light_and_path_do_not_know_the_solid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draw of lots gives every solid the same colours, light, pose and place, frame by frame."""
    given: list[tuple[np.ndarray, ...]] = []
    monkeypatch.setattr(render, "draw_faces", lambda image, points, colour, light: given.append((colour, light)))
    for solid in (0, 1, 2):
        clip(solid, 3, frames=5)
    first, second, third = given[:5], given[5:10], given[10:]
    for one, *others in zip(first, second, third, strict=True):
        assert all(np.array_equal(a, b) for other in others for a, b in zip(one, other, strict=True))


def test_the_lamp_changes_its_colour_within_a_window() -> None:
    """Five frames of a window show colours that are further apart than the same places of two clips often are."""
    motions = [render.Motion(np.random.default_rng(seed)) for seed in range(40)]
    colours = np.array([[motion.colour(frame) for frame in range(0, 17, 4)] for motion in motions])
    assert (colours >= 0).all() and (colours <= 255).all()
    within = np.linalg.norm(colours[:, 0] - colours[:, -1], axis=1)
    between = np.linalg.norm(colours[:20, 0] - colours[20:, 0], axis=1)
    assert np.median(within) > 0.6 * np.median(between)


def test_the_label_cannot_be_read_from_colours() -> None:
    """Nearest neighbour by colour histogram, from some clips to others, in the centre where the solid is: chance."""
    objects, train, test = len(SOLIDS), 5, 4
    frames = np.stack([[clip(k, 11, k, c, frames=1)[0] for c in range(train + test)] for k in range(objects)])
    pixels = torch.from_numpy(frames).reshape(-1, SIZE, SIZE, 3).permute(0, 3, 1, 2) / 255
    shown = ColourHistogram(centre=True)(pixels).reshape(objects, train + test, -1).numpy()
    chance = 1 / objects
    error = np.sqrt(chance * (1 - chance) / (objects * test))
    assert nearest_accuracy(shown[:, :train], shown[:, train:]) < chance + 3 * error


@pytest.mark.parametrize("number", range(len(SOLIDS)))
def test_solids_are_of_like_size_and_stay_before_the_camera(number: int) -> None:
    reach = np.linalg.norm(solid_points(SOLIDS[number]), axis=-1)
    assert 0.9 <= reach.max() <= 1.7
    images = clip(number, 5, frames=6).astype(int)
    assert images.shape == (6, SIZE, SIZE, 3)
    assert 20 < images.mean() < 235


def test_the_camera_never_stands_still() -> None:
    images = corners(clip(0, 9, frames=12)).astype(float)
    moved = np.abs(np.diff(images, axis=0)).mean(axis=(1, 2, 3))
    assert moved.min() > 3


def test_the_object_turns_and_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = np.full((640, 640, 3), 128, np.uint8)
    monkeypatch.setattr(render, "make_background", lambda rng: grey)
    images = clip(1, 4, frames=12).astype(float)
    shown = np.abs(images - images[:, :1, :1]).max(-1) > 12
    assert (shown.mean(axis=(1, 2)) > 0.04).all()
    assert all((a != b).mean() > 0.005 for a, b in pairwise(shown))


def test_the_label_cannot_be_read_from_the_background() -> None:
    """Nearest neighbour on corner pixels, from some clips to others: chance, unless backgrounds follow the object."""
    objects, train, test = len(SOLIDS), 6, 5
    fair = np.stack([[clip(k, 7, k, c, frames=1)[0] for c in range(train + test)] for k in range(objects)])
    leaky = np.stack([clip(k, 7, k, frames=train + test) for k in range(objects)])  # one background an object
    chance = 1 / objects
    error = np.sqrt(chance * (1 - chance) / (objects * test))
    assert nearest_accuracy(corners(fair[:, :train]), corners(fair[:, train:])) < chance + 3 * error
    assert nearest_accuracy(corners(leaky[:, ::2]), corners(leaky[:, 1::2])) > 0.5


def test_a_clip_appears_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "obj00" / "clip_00"
    half = folder.with_name(".clip_00.unfinished")
    half.mkdir(parents=True)
    (half / "frame_000099.jpg").write_bytes(b"from a run that was stopped")
    write_clip(folder, SOLIDS[0], 3, 32, np.random.default_rng(0))
    assert sorted(path.name for path in folder.iterdir()) == [f"frame_{k:06d}.jpg" for k in range(3)]
    assert not half.exists()
    image = cv2.imread(str(folder / "frame_000002.jpg"))
    assert image is not None and image.shape == (32, 32, 3)
