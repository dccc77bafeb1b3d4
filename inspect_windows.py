#!/usr/bin/env python3
"""Look at what the network will see: windows, batches, statistics, damage, or a gallery that opens from disk.

    python inspect_windows.py --shards shards/mine --sample-idx 1200 --save-path window.png
    python inspect_windows.py --shards shards/mine --mode batch --batch-sampling plan --step 250 --save-path b.png
    python inspect_windows.py --root-dir frames --mode stats --save-path stats.png
    python inspect_windows.py --shards shards/mine --mode verify --decode
    python inspect_windows.py --shards shards/mine --mode html --out gallery

Needs neither a GPU nor DALI. Window, batch and augmentation flags mean what they mean in train.py.
"""

from cltt.start import require_packages

if __name__ == "__main__":
    require_packages("inspect_windows.py")
    from cltt.cli import run
    from cltt.visualize.inspect import main

    run(main, "inspect_windows.py")
