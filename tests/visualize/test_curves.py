"""Curves of runs: what is read from their CSV files, what is refused, and that pictures show what they were given."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from cltt import TemporalInfoNCE, checkpoint
from cltt.errors import DataError, SettingsError
from cltt.metrics import History, RunMetrics, chance_loss, read_run
from cltt.visualize import curves, windows
from cltt.visualize.curves import name_runs

TRAIN = "epoch,loss,learning_rate,decay_rate\n"
EVAL = "epoch,train_loss,train_acc,val_loss,val_acc,test_loss,test_acc\n"


def make_run(folder: Path, epochs: int = 4, evaluation: str = EVAL + "2,0.5,0.8,0.6,0.7,,\n") -> Path:
    folder.mkdir(parents=True)
    rows = [f"{epoch},{3 / epoch},{0.001 / epoch},{1 / epoch}\n" for epoch in range(1, epochs + 1)]
    (folder / "metrics.csv").write_text(TRAIN + "".join(rows))
    (folder / "metrics_eval.csv").write_text(evaluation)
    return folder


def test_an_evaluation_of_ten_columns_is_read_by_name(tmp_path: Path) -> None:
    """The older script's, with accuracies of the five best."""
    names = "epoch,train_loss,train_acc,train_top5,val_loss,val_acc,val_top5,test_loss,test_acc,test_top5"
    run = read_run(make_run(tmp_path / "run", evaluation=f"{names}\n2,0.5,0.8,0.9,0.6,0.7,0.8,0.4,0.3,0.2\n"))
    assert run.evaluation == {
        "epoch": [2], "train_loss": [0.5], "train_acc": [0.8], "val_loss": [0.6], "val_acc": [0.7],
        "test_loss": [0.4], "test_acc": [0.3],
    }  # fmt: skip


def test_abx_of_a_run_is_read_from_its_evaluations_and_drawn(tmp_path: Path) -> None:
    """The last of an epoch counts, and the last data; columns of text and rows without it harm nothing."""
    run = make_run(tmp_path / "run")
    assert len(lines_of(curves.draw_curves({"run": read_run(run)}))) == 4
    (run / "evaluation.csv").write_text(
        "epoch,step,abx_within,abx_across,test_acc,checkpoint,data\n"
        "1,0,0.1,0.1,,epoch-0001.pt,other\n2,0,0.6,0.8,,in training,s\n1,0,0.5,,,in training,s\n"
        "2,0,0.7,0.9,,in training,s\n4,0,,,0.5,epoch-0004.pt,s\n"
    )
    metrics = read_run(run)
    assert metrics.abx["epoch"] == [1, 2] and metrics.abx["abx_within"] == [0.5, 0.7]
    panels = lines_of(curves.draw_curves({"run": metrics}))
    assert len(panels) == 6 and panels[4:] == [[[(1, 0.5), (2, 0.7)]], [[(2, 0.9)]]]
    (run / "evaluation.csv").write_text("nothing,of,ours\n1,2,3\n")
    assert read_run(run).abx["epoch"] == []


def lines_of(figure: object) -> list[list[tuple[float, float]]]:
    """The points of every drawn line, panel by panel."""
    return [[list(zip(*line.get_data(), strict=True)) for line in axes.lines] for axes in figure.axes]  # type: ignore[attr-defined]


def test_reads_what_training_wrote(tmp_path: Path) -> None:
    metrics = read_run(make_run(tmp_path / "run", epochs=2))
    assert metrics.train == {
        "epoch": [1, 2],
        "loss": [3, 1.5],
        "learning_rate": [0.001, 0.0005],
        "decay_rate": [1, 0.5],
    }
    assert metrics.evaluation["val_acc"] == [0.7]
    assert math.isnan(metrics.evaluation["test_acc"][0])  # a part without data has empty cells


def test_a_metrics_file_of_another_name_brings_its_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.csv").rename(tmp_path / "mine.csv")
    (run / "metrics_eval.csv").rename(tmp_path / "mine_eval.csv")
    assert read_run(tmp_path / "mine.csv").evaluation["epoch"] == [2]


@pytest.mark.parametrize("log", ['{"csv_log_path": "logs/a.csv"}', '{"csv_log_path": null}', "7"])
def test_a_run_whose_settings_name_its_metrics_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "run")
    (run / "settings.json").write_text(f'{{"log": {log}}}')
    if "logs" in log:
        (tmp_path / "logs").mkdir()
        (run / "metrics.csv").rename("logs/a.csv")
        (run / "metrics_eval.csv").rename("logs/a_eval.csv")
    metrics = read_run(run)
    assert metrics.train["epoch"] == [1, 2, 3, 4] and metrics.evaluation["epoch"] == [2]


def test_a_line_being_written_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", epochs=2)
    with (run / "metrics.csv").open("a") as file:
        file.write("3,0.9")
    assert read_run(run).train["epoch"] == [1, 2]


@pytest.mark.parametrize(
    ("content", "says"),
    [("", "begins with 'nothing'"), ("a,b\n1,2\n", "begins with 'a,b'"), (TRAIN + "1,x,2,3\n", "line 2: '1,x,2,3'")],
)
def test_other_files_are_refused_by_name(tmp_path: Path, content: str, says: str) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.csv").write_text(content)
    with pytest.raises(DataError, match=r"metrics\.csv") as caught:
        read_run(run)
    assert says in str(caught.value)


def test_a_folder_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_run(tmp_path)


def test_runs_are_named_by_what_tells_them_apart() -> None:
    paths = [Path("/x/a/run"), Path("/x/b/run"), Path("/x/a/run")]
    assert name_runs(paths) == {"a/run": paths[0], "b/run": paths[1]}
    assert list(name_runs([Path("/x/one"), Path("/x/two")])) == ["one", "two"]


def test_every_run_is_drawn_with_its_own_values_and_colour(tmp_path: Path) -> None:
    runs = {name: read_run(make_run(tmp_path / name, epochs)) for name, epochs in (("a", 3), ("b", 5))}
    figure = curves.draw_curves(runs)
    loss, rate, _, accuracy = lines_of(figure)
    assert loss == [[(e, 3 / e) for e in range(1, n + 1)] for n in (3, 5)]
    assert rate == [[(e, 0.001 / e) for e in range(1, n + 1)] for n in (3, 5)]
    assert [(2, 0.8)] in accuracy and [(2, 0.7)] in accuracy
    assert len({line.get_color() for line in figure.axes[0].lines}) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_more_runs_than_the_palette_still_differ(tmp_path: Path) -> None:
    metrics = read_run(make_run(tmp_path / "run"))
    figure = curves.draw_curves({f"run {number}": metrics for number in range(20)})
    assert len({line.get_color() for line in figure.axes[0].lines}) == 20


def test_without_evaluation_there_is_no_empty_panel(tmp_path: Path) -> None:
    figure = curves.draw_curves({"run": read_run(make_run(tmp_path / "run", evaluation=EVAL))})
    assert [axes.get_title("left") for axes in figure.axes] == ["Training loss", "Learning rate"]


def test_plot_run_saves_a_picture_and_makes_its_folder(tmp_path: Path) -> None:
    save_path = tmp_path / "new" / "folder" / "plots.png"
    curves.plot_run(make_run(tmp_path / "run"), save_path)
    assert matplotlib.image.imread(save_path).shape[:2] == (700, 1100)


@pytest.mark.parametrize("name", ["plots", "plots.csv"])
def test_an_unknown_kind_of_picture_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="its ending must be one of"):
        curves.plot_run(make_run(tmp_path / "run"), tmp_path / name)


def test_curves_command(tmp_path: Path) -> None:
    runs = [str(make_run(tmp_path / name)) for name in ("a $x^$", "b_1")]
    command = [sys.executable, "-m", "cltt.visualize", "curves", *runs, "--save-path", str(tmp_path / "both.svg")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "both.svg").read_text().startswith("<?xml")


def test_differences_are_between_neighbouring_frames() -> None:
    frames = np.full((1, 3, 2, 2, 3), 100, dtype=np.uint8)
    frames[0, 1, 0, 0, 1] = 110
    frames[0, 2] = 0
    changes, black = windows.differences(frames)
    shown = changes[0, ..., 0]
    assert black == 109  # the 99th percentile of 0, 0, 0, 10, 100, 100, 100 and 110, interpolated
    assert (shown[0] == 255).all()
    assert shown[1].tolist() == [[255 - 255 * 10 // black, 255], [255, 255]]
    assert (shown[2] <= 255 - 255 * 100 // black).all()
    assert windows.differences(frames[:, :1].repeat(3, axis=1))[1] == 1  # nothing changes: all white


def test_a_run_alone_has_its_name_and_the_chance_level(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine")
    (run / "settings.json").write_text('{"windows": {"window_size": 5}, "data": {"batch_size": 32}}')
    figure = curves.draw_curves({"mine": read_run(run)})
    assert figure.get_suptitle() == "mine"
    assert figure.axes[0].texts[0].get_text() == "chance: 5.07"
    (run / "settings.json").write_text("[]")
    assert not curves.draw_curves({"mine": read_run(run)}).axes[0].texts


@pytest.mark.parametrize(("beta", "memory"), [(0.0, 0), (0.7, 0), (0.0, 6)])
def test_the_chance_level_is_the_loss_of_equal_features(beta: float, memory: int) -> None:
    loss_fn = TemporalInfoNCE(temperature=0.3, backend="reference", hard_negatives=beta, memory=memory)
    z, frames = torch.ones(8, 3, 4), torch.arange(24).reshape(8, 3)
    losses = [float(loss_fn(z, torch.arange(8) + 8 * step, frames)) for step in range(2)]
    settings = {"windows": {"window_size": 3}, "data": {"batch_size": 8}, "model": {"memory": memory}}
    assert losses[-1] == pytest.approx(chance_loss(settings), rel=1e-5)


def test_equal_runs_do_not_hide_each_other(tmp_path: Path) -> None:
    """The one drawn later is the narrower."""
    metrics = read_run(make_run(tmp_path / "run"))
    figure = curves.draw_curves({"a": metrics, "b": metrics})
    for axes in figure.axes[:2]:
        below, above = axes.lines
        assert below.get_linewidth() > 1.5 * above.get_linewidth()
        assert below.get_markersize() > above.get_markersize()


def test_runs_without_metrics_are_named_and_the_others_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cltt.errors import DataError
    from cltt.visualize.__main__ import curves

    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "metrics.csv").write_text("epoch,loss,learning_rate,decay_rate\n1,0.5,0.001,1.0\n")
    (tmp_path / "refused").mkdir()
    arguments = [str(tmp_path / "good"), str(tmp_path / "refused"), "--save-path", str(tmp_path / "c.png")]
    assert curves(arguments, "cltt curves") == 0 and (tmp_path / "c.png").stat().st_size > 0
    assert f"left out: {tmp_path / 'refused' / 'metrics.csv'} does not exist" in capsys.readouterr().out
    with pytest.raises(DataError, match="does not exist"):
        curves([str(tmp_path / "refused")], "cltt curves")


def test_a_run_without_a_finished_epoch_is_said_not_drawn(tmp_path: Path) -> None:
    from cltt.visualize.__main__ import curves

    begun = make_run(tmp_path / "begun", epochs=0)
    with pytest.raises(DataError, match="begun has no finished epoch yet"):
        curves([str(begun), "--save-path", str(tmp_path / "curves.png")], "cltt curves")
    assert not (tmp_path / "curves.png").exists()


def test_a_run_without_csv_files_is_drawn_from_its_newest_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cltt.visualize import __main__ as command

    history = History()
    for epoch in (1, 2):
        history.add_step(3 / epoch)
        history.end_epoch(1e-3, 1e-3)
        settings = {"windows": {"window_size": 5}, "data": {"batch_size": 32}}
        state = {"history": history.state_dict(), "settings": settings}
        checkpoint.write(tmp_path / "run" / f"epoch-000{epoch}.pt", state)
    drawn: list[RunMetrics] = []
    monkeypatch.setattr(command, "draw_curves", lambda runs: (drawn.extend(runs.values()), curves.draw_curves(runs))[1])
    assert command.curves([str(tmp_path / "run"), "--save-path", str(tmp_path / "curves.png")], "cltt curves") == 0
    assert drawn[0].train["loss"] == [3.0, 1.5] and drawn[0].chance == pytest.approx(math.log(159))
