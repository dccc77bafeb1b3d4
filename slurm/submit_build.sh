#!/usr/bin/env bash
# Build shards with a job array of N tasks (default 8), and a job after it that merges and publishes the parts.
#
#   slurm/submit_build.sh [SBATCH_OPTION...] ROOT OUT [N] [FLAG...]
#   slurm/submit_build.sh --partition=cpu /data/clips shards/main 16 --resize-short 256
#   TASKS=3,7 slurm/submit_build.sh ROOT OUT 16     tasks 3 and 7 again, which failed; then merge and publish
#
# sbatch options come first, written --name=value; flags of tools/build_shards.py come last.
set -euo pipefail

CLTT_HOME=${CLTT_HOME:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
export CLTT_HOME

PYTHON=${PYTHON:-$CLTT_HOME/.venv/bin/python}
# shellcheck source=slurm/common.sh
. "$CLTT_HOME/slurm/common.sh"

options=()
while [[ ${1:-} == -* ]]; do check_sbatch_option "$1" "${2:-}"; options+=("$1"); shift; done
if [ $# -lt 2 ]; then echo "usage: $0 [SBATCH_OPTION...] ROOT OUT [N] [FLAG...]" >&2; exit 2; fi
root=$1 out=$2 parts=8
shift 2
if [[ ${1:-} =~ ^[0-9]+$ ]]; then parts=$1; shift; fi
if [ ! -d "$root" ]; then echo "$0: $root is not a folder" >&2; exit 2; fi
if [ "$parts" -lt 1 ]; then echo "$0: N is $parts; at least one task is needed" >&2; exit 2; fi

"$PYTHON" "$CLTT_HOME/slurm/check_build.py" --root-dir "$root" --out "$out" "$@" || exit 2 # before anything is submitted
mkdir -p logs
script=$CLTT_HOME/slurm/build_shards.sbatch
array=$(sbatch --parsable --array="${TASKS:-0-$((parts - 1))}" "${options[@]}" "$script" "$root" "$out" "$parts" "$@")
array=${array%%;*} # on a federation, the cluster's name follows the id
merge=$(sbatch --parsable --dependency="afterok:$array" --kill-on-invalid-dep=yes --job-name=cltt-merge \
    --output=logs/%x-%j.out \
    "${options[@]}" "$script" "$root" "$out" "$parts" "$@")
echo "build: job array $array; merge and publish, if all of it succeeds: job ${merge%%;*}"
