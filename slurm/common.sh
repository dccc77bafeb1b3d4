# shellcheck shell=bash
# Functions that the batch scripts of this folder share. Sourced, never run.

EXIT_USAGE=2 # exit status for settings that cannot work: the job is not requeued
FIRST_STEP=first-step # a file in CHECKPOINT_DIR: train.py has made a step since this start

say() { printf '%s slurm: %s\n' "$(date '+%F %T')" "$*"; }
die() { say "$@" >&2; exit "$EXIT_USAGE"; }

# Load the modules named in MODULES, without `set -eu`: module systems read unset variables and return any status.
load_modules() {
    [ -n "${MODULES:-}" ] || return 0
    local -a names
    read -r -a names <<<"$MODULES"
    set +eu
    # shellcheck source=/dev/null
    type module >/dev/null 2>&1 || . /etc/profile
    module load "${names[@]}"
    set -eu
}

# Replace this shell by the training ("$2" is Python, then its arguments) in $1 processes on this machine.
run_here() {
    local processes=$1
    shift
    mkdir -p "$CHECKPOINT_DIR"
    if [ "$processes" = 1 ]; then exec "$@"; fi
    exec "$1" -m torch.distributed.run --standalone --nproc-per-node "$processes" "${@:2}"
}

# Check that there is one process per GPU: otherwise GPUs are idle, or processes share them.
check_gpus() {
    local gpus=${SLURM_GPUS_ON_NODE:-} processes=${SLURM_NTASKS_PER_NODE:-1} asked=${SLURM_GPUS_PER_NODE:-}
    if [ -z "$gpus" ] || [ "$gpus" = "$processes" ]; then return 0; fi
    [ "${asked##*:}" != "$processes" ] || # asked for as "a100:1", too
        die "--gpus-per-node=$asked was asked for, but Slurm gave the whole node with its $gpus GPUs: leave out" \
            "--exclusive, or use them all with --gpus-per-node=$gpus --ntasks-per-node=$gpus"
    die "$gpus GPUs but $processes processes per node: give --gpus-per-node and --ntasks-per-node the same number"
}

# --- variables of another job -----------------------------------------------------------------
# sbatch passes on the variables of the submitting shell. In an interactive job or under JupyterHub these include the
# variables of that job, which srun would take for its options, or the rank in another torchrun. They are unset here;
# plan_step gives srun all options that a step needs.
forget_other_jobs() {
    local name
    for name in "${!SLURM_@}"; do
        case $name in
            SLURM_GPUS_ON_NODE) ;;
            SLURM_MEM_PER_* | SLURM_MEM_BIND* | SLURM_CPU_BIND* | SLURM_CPUS_PER_GPU | SLURM_GPU* | SLURM_GRES* | \
                SLURM_TRES_PER_* | SLURM_NNODES | SLURM_NPROCS | SLURM_NTASKS_PER_* | SLURM_STEP* | SLURM_PTY_* | \
                SLURM_EXACT | SLURM_EXCLUSIVE | SLURM_OVERLAP | SLURM_IMMEDIATE | SLURM_TIMELIMIT | SLURM_EXIT_* | \
                SLURM_EXPORT_ENV | SLURM_WORKING_DIR | SLURM_REMOTE_CWD | SLURM_STD*MODE | SLURM_LABELIO)
                unset "$name" ;;
        esac
    done
    unset RANK WORLD_SIZE LOCAL_RANK
}

# Set the array `step` to the srun command for a step of the whole job. SLURM_TASKS_PER_NODE has the form "4(x2)". Since
# Slurm 22.05 srun does not inherit --cpus-per-task from sbatch. --kill-on-bad-exit=0: a process that ends first must not
# end the others while they write a checkpoint.
plan_step() {
    local tasks=${SLURM_TASKS_PER_NODE:-1}
    step=(srun --export=ALL --kill-on-bad-exit=0 --wait="$STRAGGLER_WAIT" --nodes="$SLURM_JOB_NUM_NODES")
    case $tasks in
        *,*) step+=(--ntasks="$SLURM_NTASKS") ;; # not as many on every node
        *) step+=(--ntasks-per-node="${tasks%%(*}") ;;
    esac
    if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then step+=(--cpus-per-task="$SLURM_CPUS_PER_TASK"); fi
}

# Print srun's message if it refuses the step because of its options; nothing in other cases, as when Slurm does not
# answer, a node is down or the job is ending.
step_refusal() {
    [ ! -f "$CHECKPOINT_DIR/$FIRST_STEP" ] || return 0
    timeout 60 "${step[@]}" true 2>&1 | grep -E '^srun: ' | grep -vE 'Invalid job|[Tt]imed out|down, drained' |
        grep -E -e 'mutually exclusive|Invalid |permitted|Only allocated|Unable to satisfy|unrecognized' \
            -e 'Memory required .* not available|node configuration is not available' | tail -n 1
}

# --- paths on the node ------------------------------------------------------------------------
# Print the path with $NAME and ${NAME} replaced by this node's variables; an error if a variable is not set.
on_this_node() { # path, the variable it comes from
    local path=$1 done="" name value TMPDIR=${TMPDIR:-/tmp}
    while [[ $path =~ ^([^$]*)\$(([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})(.*)$ ]]; do
        name=${BASH_REMATCH[3]:-${BASH_REMATCH[4]}}
        value=${!name:-}
        [ -n "$value" ] || die "$2 is '$1', but $name is not set on $(hostname)"
        done+=${BASH_REMATCH[1]}$value
        path=${BASH_REMATCH[5]}
    done
    case $done$path in *'$'*) die "$2 is '$1': only \$NAME and \${NAME} can be replaced in a path" ;; esac
    echo "$done$path"
}

# --- submitting -------------------------------------------------------------------------------
# Refuse an sbatch option that is not written as --name=value: only that form can be told from the other arguments.
check_sbatch_option() {
    case $1 in
        --mem=*) die "$1: the script sets --mem-per-cpu, and Slurm accepts only one of the two: give --mem-per-cpu" ;;
        --*=*) ;;
        --exclusive | --hold | --requeue | --no-requeue | --parsable | --quiet | --verbose | --wait | --test-only | \
            --overcommit | --contiguous | --spread-job | --use-min-nodes | --ignore-pbs) ;;
        *) die "write options of sbatch as --name=value, in one word: $1 has no value${2:+, and \"$2\" follows}" ;;
    esac
}

# --- questions to Slurm -----------------------------------------------------------------------
# Print the output of a Slurm command, which is retried for about a minute: with a busy controller commands time out, and
# squeue may end with status 0 then. Prints nothing for a job that Slurm does not know; status 1 without an answer.
ask_slurm() { # command...
    local said="" try
    for try in {1..12}; do
        [ "$try" = 1 ] || sleep 5
        if said=$(timeout 20 "$@" 2>&1) && [[ $said != *error:* ]]; then echo "$said"; return 0; fi
        if [[ $said == *"Invalid job id"* ]]; then return 0; fi
    done
    say "no answer to $*: ${said%%$'\n'*}" >&2
    return 1
}

# --- rendezvous -------------------------------------------------------------------------------
is_address() { [[ $1 =~ ^[0-9]+(\.[0-9]+){3}$ || $1 == *:*:* ]]; }

# Print an address at which every node reaches this one, the first of the job. It is a number, since names of nodes may
# not resolve inside a job, and not this node's entry in its own /etc/hosts (127.0.1.1 on Debian).
master_address() {
    local node_address
    if [ "${SLURM_JOB_NUM_NODES:-1}" = 1 ]; then echo 127.0.0.1; return; fi
    node_address=$(ask_slurm scontrol show node "${SLURMD_NODENAME:-}") || true
    node_address=$(sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p' <<<"$node_address")
    if ! is_address "$node_address"; then
        node_address=$(getent ahostsv4 "$node_address" | awk '$1 !~ /^127\./ {print $1; exit}') || true
    fi
    if ! is_address "$node_address"; then node_address=$(hostname -I | awk '{print $1}'); fi
    is_address "$node_address" || die "found no address of node ${SLURMD_NODENAME:-}; set MASTER_ADDR"
    echo "$node_address"
}

# Print a port above the system's and below those given to clients; two jobs on one node seldom have the same.
master_port() { echo $((10000 + SLURM_JOB_ID % 20000)); }

# --- signals ----------------------------------------------------------------------------------
step_pid=""
signal_seen=""

hand_on() { # the signal's name
    signal_seen=$1
    say "got SIG$1: asking the training for a checkpoint"
    if [ -n "$step_pid" ]; then kill -USR1 "$step_pid" 2>/dev/null || true; fi
}

# Return the exit status of process $1. A trap ends `wait` early with its own status, so wait again after a signal.
wait_through_signals() {
    local status
    while :; do
        signal_seen=""
        status=0
        wait "$1" || status=$?
        [ -n "$signal_seen" ] || return "$status"
    done
}

# --- requeue ----------------------------------------------------------------------------------
# CHECKPOINT_DIR/requeues holds "COUNT PROGRESS": restarts in a row without a newer checkpoint, and the newest checkpoint.
progress() { cat "$CHECKPOINT_DIR/latest" 2>/dev/null || echo none; }

restarts_without_progress() { # the count if the job started again now
    local count=0 before=""
    if [ -f "$CHECKPOINT_DIR/requeues" ]; then read -r count before <"$CHECKPOINT_DIR/requeues" || true; fi
    if [ "$(progress)" = "$before" ]; then echo $((count + 1)); else echo 0; fi
}

# Count this start; end the job if Slurm has restarted it (node failures, preemption) too often without a new checkpoint.
count_start() {
    local count=0
    if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then count=$(restarts_without_progress); else rm -f "$CHECKPOINT_DIR/died"; fi
    if [ "$count" -gt "$MAX_REQUEUES" ]; then
        say "restarted $count times without a newer checkpoint (MAX_REQUEUES=$MAX_REQUEUES): giving up" >&2
        exit 1
    fi
    # A full disk does not end the job here: it may have space when there is something to save.
    local file=$CHECKPOINT_DIR/requeues
    if { printf '%s %s\n' "$count" "$(progress)" >"$file.tmp" && mv "$file.tmp" "$file"; } 2>/dev/null; then return 0; fi
    rm -f "$file.tmp" 2>/dev/null || true
    say "cannot write to $CHECKPOINT_DIR: this start is not counted" >&2
}

# Remove the count of a refused start, and the folder if it is empty.
forget_start() {
    if [ "$(progress)" = none ]; then rm -f "$CHECKPOINT_DIR/requeues"; fi
    rmdir "$CHECKPOINT_DIR" 2>/dev/null || true
}

# Print the names of this job's nodes that have failed.
failed_nodes() {
    sinfo --noheader --nodes="$SLURM_JOB_NODELIST" --states=down,fail,no_respond --format=%N 2>/dev/null | paste -sd, -
}

say_failed_nodes() {
    local nodes
    nodes=$(failed_nodes) || true
    [ -z "$nodes" ] || say "node failure: $nodes" >&2
}

# End the job if Python was killed before the first step twice in a row: Python or its packages were built for other CPUs
# than this node's (status 8: the system cannot execute Python). CHECKPOINT_DIR/died describes the first time.
end_if_python_dies() { # exit status
    local how="" file=$CHECKPOINT_DIR/died
    case $1 in 132) how=SIGILL ;; 135) how=SIGBUS ;; 139) how=SIGSEGV ;; 8) how="Exec format error" ;; esac
    if [ -z "$how" ] || [ -f "$CHECKPOINT_DIR/$FIRST_STEP" ]; then rm -f "$file"; return 0; fi
    how+=" on $SLURM_JOB_NODELIST"
    if [ ! -f "$file" ]; then echo "$how" >"$file" || true; return 0; fi
    say "Python died before the first step twice ($(cat "$file"); $how): the environment of $PYTHON does not suit the" \
        "CPUs there; build it on such a node (make setup), or ask for others (--constraint): not requeued" >&2
    rm -f "$file"
    exit "$1"
}

# Print the id of this job for scontrol. In an array, SLURM_JOB_ID of the last task is the id of the whole array.
job_id() {
    if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
        echo "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    else
        echo "$SLURM_JOB_ID"
    fi
}

# Print the job's state; "gone" if Slurm no longer knows it, "unknown" if Slurm does not answer.
job_state() { # id
    local answer
    if answer=$(ask_slurm squeue --noheader --jobs="$1" --format=%T); then
        answer=${answer##*$'\n'}
        echo "${answer:-gone}"
    else
        echo unknown
    fi
}

# Requeue this job and exit with status $1. Not requeued: a job that is cancelled, that Slurm requeues, or that has
# restarted too often without a newer checkpoint.
requeue_and_exit() {
    local status=$1 id state count
    id=$(job_id)
    trap '' USR1 TERM # Slurm signals this script when the job is requeued
    state=$(job_state "$id")
    case $state in
        RUNNING) ;;
        unknown) say "Slurm does not say the state of job $id: it is requeued" >&2 ;;
        *)
            say "job $id is $state, so it was cancelled or Slurm requeues it: nothing to do"
            exit "$status" ;;
    esac
    count=$(restarts_without_progress)
    if [ "$count" -gt "$MAX_REQUEUES" ]; then
        say "no newer checkpoint after $MAX_REQUEUES restarts: not requeued" >&2
        exit "$status"
    fi
    say "requeueing job $id (restarts without a newer checkpoint: $count of at most $MAX_REQUEUES)"
    ask_slurm scontrol requeue "$id" >/dev/null ||
        say "scontrol requeue failed: submit the same command again to go on" >&2
    exit "$status"
}
