"""Draw the figures of the README from the CSV files: ``python -m benchmarks.plots``."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks import harness
from benchmarks.report import read_rows

OURS = "tab:blue"
PEERS = ("tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink")


def against_size(axis: Axes, rows: Sequence[dict[str, str]], column: str, label: str) -> None:
    """One line a loss over N, both axes logarithmic; spread (20th to 80th percentile) where the file has it."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    peers = iter(PEERS)
    for name in names:
        own = [row for row in rows if row["name"] == name]
        sizes = [int(row["N"]) for row in own]
        color = OURS if name in ("chunked", "triton") else next(peers)
        axis.plot(sizes, [float(row[column]) for row in own], "o-", color=color, label=name, markersize=4)
        if column == "median_ms":
            low, high = ([float(row[side]) for row in own] for side in ("p20_ms", "p80_ms"))
            axis.fill_between(sizes, low, high, color=color, alpha=0.2)
    axis.set(xscale="log", yscale="log", xlabel="N (frames in the batch)", ylabel=label)
    axis.grid(alpha=0.3, which="both")


def loss(name: str) -> None:
    """Time and memory of the loss against N, from ``NAME.csv``."""
    rows = [row for row in read_rows(name) if float(row["median_ms"]) > 0]
    if not rows:
        return
    figure, (time, memory) = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    against_size(time, rows, "median_ms", "forward + backward, ms")
    against_size(memory, [row for row in rows if float(row["extra_mb"]) > 0], "extra_mb", "extra peak memory, MB")
    time.legend(frameon=False)
    first = rows[0]
    figure.suptitle(f"Loss on {first['device']}, D = {first['D']}, T = {first['T']}", fontsize=11)
    figure.savefig(harness.RESULTS / f"{name}.png", dpi=120)
    plt.close(figure)


def build() -> None:
    """Frames/s of building against its peers, one pair of bars a figure."""
    rows = [row for row in read_rows("build") if row.get("peer")]
    if not rows:
        return
    figure, axis = plt.subplots(figsize=(10, 0.62 * len(rows) + 0.9), constrained_layout=True)
    for place, row in enumerate(rows):
        pairs = (("cltt", "ours_frames_per_s", OURS), (row["peer"], "peer_frames_per_s", "silver"))
        for shift, (name, column, color) in zip((-0.2, 0.2), pairs, strict=True):
            value = float(row[column])
            axis.barh(place + shift, value, height=0.38, color=color)
            axis.annotate(f" {name}: {value:,.0f}", (value, place + shift), va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [row["what"] for row in rows])
    axis.invert_yaxis()
    axis.margins(x=0.35)
    axis.set(xlabel="frames per second", xscale="log")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(harness.RESULTS / "build.png", dpi=120)
    plt.close(figure)


def main() -> int:
    loss("loss")
    loss("loss_gpu")
    build()
    print(f"figures drawn into {harness.RESULTS.relative_to(harness.ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
