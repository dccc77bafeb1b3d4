#!/usr/bin/env bash
# Submit one training per line of a table. The whole table is checked before anything is submitted.
#
#   slurm/submit_sweep.sh [SBATCH_OPTION...] TABLE [FLAG...]
#   slurm/submit_sweep.sh --partition=gpu --time=4:00:00 slurm/sweep.txt --amp bf16
#
# Options of sbatch come before the table, written as --name=value; flags of train.py for all lines come after it. The
# variables of slurm/train.sbatch are read from the environment. The runs' folders are in SWEEP_DIR (default
# checkpoints/TABLE) and are named by their settings, so the same table submitted again resumes the runs.
set -euo pipefail

CLTT_HOME=${CLTT_HOME:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
PYTHON=${PYTHON:-$CLTT_HOME/.venv/bin/python}

# shellcheck source=slurm/common.sh
. "$CLTT_HOME/slurm/common.sh"

options=()
while [[ ${1:-} == -* ]]; do check_sbatch_option "$1" "${2:-}"; options+=("$1"); shift; done
if [ $# -lt 1 ]; then echo "usage: $0 [SBATCH_OPTION...] TABLE [FLAG...]" >&2; exit 2; fi
table=$1
shift

if [ -n "${ROOT_DIR:-}" ]; then data=(--root-dir "$ROOT_DIR"); else data=(--shards "${SHARDS:-shards/main}"); fi
count=$("$PYTHON" "$CLTT_HOME/slurm/sweep_table.py" check "$table" "${data[@]}" "$@")
name=${table##*/}
name=${name%.*}
export SWEEP_DIR=${SWEEP_DIR:-checkpoints/$name} CLTT_HOME PYTHON

# Tasks read a copy: the table may be edited while they wait in the queue.
mkdir -p logs
copy=$(mktemp "$PWD/logs/$name-XXXXXX.tsv")
cp "$table" "$copy"
sbatch --array="0-$((count - 1))" "${options[@]}" "$CLTT_HOME/slurm/sweep.sbatch" "$copy" "$@"
echo "$count runs, under $SWEEP_DIR"
