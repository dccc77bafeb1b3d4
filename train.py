#!/usr/bin/env python3
"""Train an encoder by contrastive learning through time on a folder of clips; ``python train.py --help``.

    python train.py --root-dir FRAMES --window-size 5 --frame-step 10 --checkpoint-dir checkpoints/run --csv-log
    torchrun --nproc-per-node 4 train.py --shards shards/NAME --checkpoint-dir checkpoints/run --resume

Exit status: 0 complete, 2 refused (one sentence says why), 85 stopped by SIGUSR1 or SIGTERM with a checkpoint saved,
130 the same by Ctrl-C (a second Ctrl-C stops at once, without a checkpoint), 1 failed in a way that another start may
not (out of memory, a rank killed). Of several ranks all end with the status of the first that fails.
"""

from cltt.start import TRAINING, require_packages

if __name__ == "__main__":
    require_packages("train.py", *TRAINING)
    from cltt.cli import run
    from cltt.commands.train import main

    run(main, "train.py")
