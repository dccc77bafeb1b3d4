#!/usr/bin/env bash
# The training of train.sbatch on a machine without Slurm: the same variables, then flags of train.py. Started again, it
# goes on from its last checkpoint.
#
#   WINDOW_STRIDE=10 slurm/local.sh --amp
#   PROCESSES=2 slurm/local.sh              one process per GPU; default: the number of GPUs, or one
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    gpus=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .)
else
    gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU') || true
fi
export LOCAL_PROCESSES=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
export CLTT_HOME=${CLTT_HOME:-${here%/*}}
exec bash "$here/train.sbatch" "$@"
