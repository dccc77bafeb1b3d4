"""The command: rows that are added, the untrained encoder beside them, and what it writes of the frames."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cltt import ShardDataset, build_shards
from cltt.config import DataSettings, TrainSettings, WindowSettings
from cltt.errors import DataError, SettingsError
from cltt.evaluation import plots, results
from cltt.evaluation.__main__ import main
from cltt.models.encoders import build_encoder
from cltt.visualize import embeddings as embeddings_module
from tests.helpers import data
from tests.helpers.labelled import colour_folder, save_run, write_image


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_run(tmp_path / "run")
    return tmp_path / "run"


def flags(run: Path, labelled: Path, *more: str) -> list[str]:
    return ["--checkpoint", str(run), "--data", str(labelled), "--device", "cpu", *more]


def test_every_checkpoint_of_a_run_and_the_untrained_encoder_get_a_row(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = colour_folder(tmp_path / "images", 4)
    assert main(flags(run, labelled)) == 0
    begun = [line for line in capsys.readouterr().out.splitlines() if line.endswith("):")]
    assert begun[0].startswith("untrained (1 of 3; drawn anew")
    assert begun[1:] == ["epoch-0001.pt (2 of 3):", "epoch-0001-step-000007.pt (3 of 3):"]
    rows = table(run / "evaluation.csv")
    assert list(rows[0])[:4] == ["epoch", "step", "train_loss", "train_acc"]
    assert [(row["epoch"], row["step"], row["checkpoint"]) for row in rows] == [
        *(("0", "0", "untrained"), ("1", "0", "epoch-0001.pt"), ("1", "7", "epoch-0001-step-000007.pt"))
    ]
    assert rows[1]["test_acc"] == rows[2]["test_acc"] and float(rows[0]["effective_rank"]) >= 1
    assert [row["checkpoint"] for row in json.loads((run / "evaluation.json").read_text())] == [
        row["checkpoint"] for row in rows
    ]
    assert (run / "evaluation.png").stat().st_size > 1000
    one = [str(run / "epoch-0001.pt"), labelled, "--out", str(tmp_path / "one"), "--no-baseline"]
    assert main(flags(Path(one[0]), *one[1:])) == 0  # type: ignore[arg-type]
    (row,) = table(tmp_path / "one" / "evaluation.csv")
    assert row["checkpoint"] == str(run / "epoch-0001.pt")


def older_folder(folder: Path, epochs: tuple[int, ...]) -> Path:
    """Encoders of other weights each, as the older script saved them."""
    folder.mkdir()
    for epoch in epochs:
        torch.manual_seed(epoch)
        encoder = {f"encoder.{name}": value for name, value in build_encoder("resnet18").state_dict().items()}
        state = {"epoch": epoch, "model_state_dict": encoder, "proj_dim": 128, "backbone": "resnet18"}
        torch.save(state, folder / f"simclr_epoch_{epoch:03d}.pth")
    return folder


def test_files_and_folders_of_several_runs_get_a_row_each_by_epoch_and_one_plot(run: Path, tmp_path: Path) -> None:
    older, other = older_folder(tmp_path / "older", (10, 9, 100)), tmp_path / "other"
    save_run(other, steps=(0,))
    labelled, out = colour_folder(tmp_path / "images", 4), tmp_path / "out"
    paths = [str(other / "epoch-0001.pt"), str(older), str(run)]
    given = ["--checkpoint", *paths, "--data", str(labelled), "--device", "cpu", "--normalise", "imagenet"]
    with pytest.raises(SettingsError, match="several folders; give --out"):
        main(given)
    more = ["--image-size", "32", "--no-baseline", "--knn", "1", "5", "--out", str(out)]
    assert main([*given, *more]) == 0
    rows = table(out / "evaluation.csv")
    names = [*(f"older/simclr_epoch_{epoch:03d}.pth" for epoch in (9, 10, 100)), "run/epoch-0001.pt"]
    found = [row["checkpoint"].removeprefix(f"{tmp_path}/") for row in rows]
    assert found == ["other/epoch-0001.pt", *names, "run/epoch-0001-step-000007.pt"]
    assert [row["epoch"] for row in rows] == ["1", "9", "10", "100", "1", "1"]
    assert all(row["knn1_top1"] == row["nn_all"] and row["knn5_top1"] for row in rows) and "knn20_top1" not in rows[0]
    (nearest,) = [
        axes for axes in plots.draw_evaluations(rows).axes if axes.get_title(loc="left") == "Nearest neighbours"
    ]
    assert [label.get_text() for label in nearest.get_xticklabels()] == [
        *("9\nolder", "10\nolder", "100\nolder", "1\nother", "1\nrun", "1+7\nrun")
    ]
    lengths = [len(line.get_xdata()) for line in nearest.lines if line.get_color() == plots.PALETTE[2]]
    assert lengths == [3, 1, 2]  # a curve per run, none from one to the next
    assert [text.get_text() for text in nearest.get_legend().get_texts()][-2:] == [
        *("all labels, vote of 1", "all labels, vote of 5")
    ]


def test_the_folder_of_the_older_script_is_a_run_too(tmp_path: Path) -> None:
    older = older_folder(tmp_path / "older", (2,))
    labelled = colour_folder(tmp_path / "images", 4)
    assert main(flags(older, labelled, "--normalise", "none", "--image-size", "32", "--no-baseline")) == 0
    (row,) = table(older / "evaluation.csv")
    assert (row["checkpoint"], row["epoch"], row["normalise"]) == ("simclr_epoch_002.pth", "2", "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="empty holds no checkpoints"):
        main(flags(tmp_path / "empty", labelled))
    save_run(tmp_path / "runs" / "mine", steps=(0,))
    with pytest.raises(SettingsError, match=r"runs holds no checkpoints .*; the runs in it are mine"):
        main(flags(tmp_path / "runs", labelled))


def test_the_untrained_row_of_a_run_begun_before_says_that_it_is_drawn_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = colour_folder(tmp_path / "images", 4)
    for name, begun in (("before", {}), ("now", {"begun_with": "0.2.0"})):
        save_run(tmp_path / name, steps=(0,), **begun)
        assert main(flags(tmp_path / name, labelled)) == 0
        untrained, trained = json.loads((tmp_path / name / "evaluation.json").read_text())
        assert ("earlier version" in untrained.get("note", "")) == (name == "before") and "note" not in trained
        assert ("untrained (1 of 2; drawn anew: the run began" in capsys.readouterr().out) == (name == "before")


def test_rows_are_added_and_only_the_same_evaluation_is_replaced(run: Path, tmp_path: Path) -> None:
    labelled, other = colour_folder(tmp_path / "images", 4), colour_folder(tmp_path / "other", 5)
    assert main(flags(run / "epoch-0001.pt", labelled, "--no-baseline")) == 0
    first = table(run / "evaluation.csv")
    assert main(flags(run / "epoch-0001.pt", labelled, "--no-baseline")) == 0
    assert table(run / "evaluation.csv") == first
    assert main(flags(run / "epoch-0001.pt", other, "--no-baseline")) == 0
    assert main(flags(run / "epoch-0001.pt", labelled, "--no-baseline", "--probe", "sgd", "--probe-epochs", "2")) == 0
    rows = table(run / "evaluation.csv")
    assert rows[: len(first)] == first and len(rows) == 3
    assert [row["probe"] for row in rows] == ["closed", "closed", "sgd"]
    assert len(json.loads((run / "evaluation.json").read_text())) == 3


def test_rows_of_0_1_0_stay(run: Path, tmp_path: Path) -> None:
    (run / "evaluation.csv").write_text("epoch,step,train_loss,train_acc,nn_1\n3,0,0.25,0.5,0.125\n")
    (run / "evaluation.json").write_text('{"loss": {"train": 0.25}, "accuracy": {"train": 0.5}}')  # training's
    assert main(flags(run / "epoch-0001.pt", colour_folder(tmp_path / "images", 4), "--no-baseline")) == 0
    old, new = table(run / "evaluation.csv")
    assert {name: value for name, value in old.items() if value} == {
        "epoch": "3",
        "step": "0",
        "train_loss": "0.25",
        "train_acc": "0.5",
        "nn_1": "0.125",
    }
    assert new["checkpoint"] == "epoch-0001.pt"
    assert json.loads((run / "evaluation.json").read_text())[0]["accuracy"] == {"train": 0.5}


@pytest.mark.parametrize(
    ("name", "text"), [("evaluation.csv", "a,b\n1,2\n"), ("evaluation.json", "{"), ("evaluation.json", "[1]")]
)
def test_files_that_are_not_ours_are_refused_before_the_work(name: str, text: str, run: Path, tmp_path: Path) -> None:
    (run / name).write_text(text)
    with pytest.raises(DataError, match=f"{name}.*move it away"):
        main(flags(run, tmp_path / "nowhere"))
    assert (run / name).read_text() == text


@pytest.mark.parametrize("out", ["afile", "afile/x", "/proc/x"])
def test_an_unusable_out_is_refused_before_the_work(out: str, tmp_path: Path) -> None:
    (tmp_path / "afile").touch()
    (tmp_path / "epoch-0001.pt").write_bytes(b"not read")
    with pytest.raises(SettingsError, match=r"cannot write to .*--out"):
        main(["--checkpoint", str(tmp_path / "epoch-0001.pt"), "--data", "x", "--out", str(tmp_path / out)])


@pytest.mark.parametrize(
    ("flag", "path", "says"),
    [
        ("--embeddings", "x.npy", "must end in .npz"),
        ("--embeddings", "{file}/y.npz", "give another --embeddings"),
        ("--neighbours", "x.doc", "cannot save a picture"),
        ("--map", "{file}/y.png", "give another --map"),
    ],
)
def test_unusable_outputs_are_refused_before_the_work(flag: str, path: str, says: str, run: Path) -> None:
    with pytest.raises(SettingsError, match=says):
        main(flags(run, Path("nowhere"), flag, path.format(file=run / "latest")))


# ---- what it writes of the frames


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    lengths = {f"{name}/clip{k}": 5 + k for name in ("x", "y") for k in range(3)}
    build_shards(data.make_clips(folder / "frames", lengths), folder / "s", label_from="parent")
    build_shards(folder / "frames", folder / "plain")
    return folder


def test_embeddings_say_what_each_row_is(run: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "e.npz"
    assert main(flags(run, shards / "s", "--no-baseline", "--embeddings", str(out))) == 0
    with np.load(out, allow_pickle=False) as file:
        plain = {name: file[name] for name in file.files}
    found = embeddings_module.load(out)
    assert found.features.shape == (36, 512) and found.features.dtype == np.float32
    clips = found.clip_names[found.clip]
    assert set(clips) == {f"{name}/clip{k}" for name in ("x", "y") for k in range(3)}
    assert [f"{clip}/frame_{frame:06d}.jpg" for clip, frame in zip(clips, found.frame, strict=True)] == list(found.path)
    assert (found.label_names[found.label] == [clip[0] for clip in clips]).all()
    assert np.isnan(found.time).all() and len(np.unique(found.path)) == 36
    known = json.loads(str(plain["checkpoint"]))
    assert known["file"].endswith("epoch-0001-step-000007.pt") and known["step"] == 7
    assert (known["fingerprint"], known["normalise"], len(known["sha256"])) == ("none", "imagenet", 64)


def test_embeddings_are_the_encoders_features_of_those_frames(run: Path, shards: Path, tmp_path: Path) -> None:
    from cltt import ShardDataset
    from cltt.frames.decode_cpu import FrameDecoder
    from cltt.frames.geometry import Framing
    from cltt.models.weights import read_weights

    assert main(flags(run, shards / "s", "--no-baseline", "--embeddings", str(tmp_path / "e.npz"))) == 0
    found, dataset = embeddings_module.load(tmp_path / "e.npz"), ShardDataset(shards / "s")
    names = {dataset.frame_name(frame): frame for frame in range(dataset.num_frames)}
    row = 11
    pixels = FrameDecoder(Framing(image_size=32)).frame(dataset.read([names[str(found.path[row])]])[0])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = torch.from_numpy(((pixels / 255 - mean) / std).transpose(2, 0, 1)[None]).float()
    with torch.no_grad():
        expected = read_weights(run).build_encoder().eval()(x)[0].numpy()
    np.testing.assert_allclose(found.features[row], expected, atol=1e-4, rtol=1e-3)


def test_shards_without_labels_have_features_too(run: Path, shards: Path, tmp_path: Path) -> None:
    assert main(flags(run, shards / "plain", "--embeddings", str(tmp_path / "e.npz"))) == 0
    found = embeddings_module.load(tmp_path / "e.npz")
    assert len(found) == 36 and (found.label == -1).all() and not (run / "evaluation.csv").exists()


def test_a_folder_of_images_without_labels_has_features_too(run: Path, tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / "images" / f"{number}.png", (60 * number, 90, 200))
    given = flags(run, tmp_path / "images", "--embeddings", str(tmp_path / "e.npz"))
    assert main(given) == 0
    found = embeddings_module.load(tmp_path / "e.npz")
    assert list(found.path) == [f"{number}.png" for number in range(4)] and (found.label == -1).all()
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="no labelled images"):
        main(flags(run, tmp_path / "empty", "--embeddings", str(tmp_path / "e.npz")))


def test_neighbours_and_map_are_drawn(run: Path, shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    import cv2

    pictures = ["--neighbours", str(tmp_path / "n.png"), "--map", str(tmp_path / "m.png")]
    assert main(flags(run, shards / "s", "--no-baseline", *pictures)) == 0
    for name in ("n.png", "m.png"):
        picture = cv2.imread(str(tmp_path / name))
        assert min(picture.shape[:2]) > 300 and picture.std() > 20  # colours, not a blank page


def test_the_map_without_scikit_learn_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"--map needs scikit-learn: pip install 'cltt\[map\]'"):
        main(flags(run, Path("nowhere"), "--map", "m.png"))


def test_a_map_keeps_two_heaps_apart_and_is_the_same_every_time() -> None:
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    heaps = np.repeat([[5, 0, 0, 0], [0, 5, 0, 0]], 40, axis=0) + rng.normal(size=(80, 4))
    places = plots.two_dimensional(heaps.astype(np.float32))
    centres = places[:40].mean(0), places[40:].mean(0)
    own = np.linalg.norm(places[:40] - centres[0], axis=1)
    assert (own < np.linalg.norm(places[:40] - centres[1], axis=1)).mean() > 0.95
    assert np.array_equal(places, plots.two_dimensional(heaps.astype(np.float32)))


def test_frames_of_a_run_that_built_its_shards_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = data.make_clips(tmp_path / "images", {"a": 5, "b": 5})
    shards = ShardDataset(build_shards(images, tmp_path / "shards" / "images-1").path)
    data_settings = DataSettings(root_dir=str(images), image_size=32)
    settings = TrainSettings(windows=WindowSettings(), data=data_settings)
    save_run(tmp_path / "run", steps=(0,), fingerprint=shards.fingerprint, settings=settings.to_dict())
    assert main(flags(tmp_path / "run", images, "--no-baseline")) == 0
    assert any("frames that the encoder is trained on" in record.getMessage() for record in caplog.records)


def test_clips_of_training_are_warned_of(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_run(tmp_path / "run", steps=(0,), fingerprint=ShardDataset(shards / "s").fingerprint)
    assert main(flags(tmp_path / "run", shards / "s", "--no-baseline")) == 0
    assert any("images are of clips that the encoder is trained on" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(("clips", "seen"), [("x\ny", 11), ("x/clip0", 5), ("x/clip2", 0)])
def test_only_listed_clips_count_as_trained_on(
    clips: str, seen: int, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "clips.txt").write_text(clips)
    data_settings = DataSettings(shards=str(shards / "s"), clips=str(tmp_path / "clips.txt"), image_size=32)
    settings = TrainSettings(windows=WindowSettings(), data=data_settings)
    fingerprint = ShardDataset(shards / "s").fingerprint
    save_run(tmp_path / "run", steps=(0,), fingerprint=fingerprint, settings=settings.to_dict())
    assert main(flags(tmp_path / "run", shards / "s", "--no-baseline")) == 0
    warnings = [record.getMessage() for record in caplog.records if "is trained on" in record.getMessage()]
    assert [int(warning.split()[0]) for warning in warnings] == ([seen] if seen else [])


# ---- the picture


def row(checkpoint: str, epoch: int, value: float) -> dict[str, Any]:
    names = ("train_acc", "val_acc", "test_acc", "nn_1", "nn_1_std", "nn_4", "nn_all", "knn20_top1")
    spread = {"effective_rank": "9.5", "alignment": "0.5", "uniformity": "-2.5"}
    return {"checkpoint": checkpoint, "epoch": epoch, "step": 0, **dict.fromkeys(names, value), **spread}


def test_equal_accuracies_all_show_and_the_untrained_encoder_stands_first() -> None:
    rows = [row("b", 2, 1.0), row("untrained", 0, 0.5), row("a", 1, 1.0)]
    figure = plots.draw_evaluations(rows)
    for axes, curves in zip(figure.axes, (3, 4, 1, 2), strict=True):
        trained = [
            line for line in axes.lines if line.get_label().startswith("_") is False or len(line.get_xdata()) == 2
        ]
        widths = [
            line.get_linewidth() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() != "None"
        ]
        assert trained and [label.get_text() for label in axes.get_xticklabels()] == ["untrained", "1", "2"]
        assert len(widths) >= curves and (curves < 3 or widths[:curves] == sorted(set(widths[:curves]), reverse=True))
        legend = axes.get_legend()
        assert (legend is None) == (curves == 1) and (legend is None or len(legend.get_texts()) == curves)


def test_older_rows_without_some_columns_are_drawn() -> None:
    old = {"checkpoint": "a", "epoch": "3", "step": "0", "train_acc": "0.5", "nn_1": "0.125"}
    assert plots.draw_evaluations([old]).axes


def test_rows_of_two_processes_are_all_there(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def add(number: int) -> None:
        made = row(f"c{number}", number, 0.5)
        results.add_rows(tmp_path, [made], [made])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(6)))
    assert {line["checkpoint"] for line in table(tmp_path / "evaluation.csv")} == {f"c{k}" for k in range(6)}


def test_help_shows_no_empty_default_and_says_what_rules_are_asked_about(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "(default: )" not in shown and "(default: auto)" in shown and "at random" in shown
    assert "the file's path relative to the data (for shards: the clip's key)" in shown and "--no-baseline" in shown
