"""Stand-ins for Slurm's commands and for train.py, so that the batch scripts run in milliseconds without a cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

# Each command notes its arguments in $FAKES/calls, one JSON list a line. FAIL_NAME="N STATUS TEXT" makes its first N
# calls fail.
NOTE = """#!{python}
import json, os, sys
name = os.path.basename(sys.argv[0])
with open(os.environ["FAKES"] + "/calls", "a+") as calls:
    calls.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
    calls.seek(0)
    number = sum(json.loads(line)[0] == name for line in calls)
times, status, text = os.environ.get("FAIL_" + name, "0 0 ").split(" ", 2)
if number <= int(times):
    print(text, file=sys.stderr)
    sys.exit(int(status))
"""
COMMANDS = {
    # srun runs its command once, in its own place: signals reach it as they would by srun's forwarding.
    "srun": """k = next(i for i, a in enumerate(sys.argv) if i and not a.startswith("-"))
os.execv(sys.argv[k], sys.argv[k:])""",
    "squeue": "print(os.environ.get('FAKE_STATE', 'RUNNING'))",
    "scontrol": """if sys.argv[1:3] == ["show", "node"]:
    print("   NodeAddr=" + os.environ["FAKE_NODE_ADDRESS"] + " Port=6818")""",
    "getent": "print(os.environ['FAKE_RESOLVES_TO'] + '      STREAM node1')",
    "hostname": "print('10.0.0.7 192.168.1.7')",
    "sbatch": "print('77;cluster' if '--parsable' in sys.argv else 'Submitted batch job 77')",
    "nvidia-smi": "sys.exit(1)",
    "sleep": "",
    "sinfo": "print(os.environ.get('FAKE_FAILED_NODES', ''), end='')",
}
# What a shell of another job may have in its environment, and sbatch hands on.
LEAKED = {
    "SLURM_MEM_PER_NODE": "4096",
    "SLURM_GPUS": "3",
    "SLURM_NNODES": "3",
    "SLURM_CPU_BIND": "map_cpu:99",
    "SLURM_STEP_GRES": "none",
    "SLURM_EXPORT_ENV": "NOTHING",
    "SLURM_WORKING_DIR": "/",
}
# Writes down how it was started; STEPS says what it does then: "exit N", "save NAME", "step" (the first is made),
# "wait" (for SIGUSR1), "vanish", "die N" (of a signal).
TRAIN = f"""
import json, os, runpy, signal, sys, time

LEAKED = {tuple(LEAKED)!r}

def parse(argv):
    return runpy.run_path({str(REPOSITORY / "train.py")!r})["parse"](argv)

def take_steps():
    folder = sys.argv[sys.argv.index("--checkpoint-dir") + 1]
    for step in os.environ.get("STEPS", "exit 0").split(","):
        action, _, value = step.strip().partition(" ")
        if action == "exit":
            if value == "0":
                open(folder + "/complete", "w").close()
            sys.exit(int(value))
        if action == "vanish":  # with its node
            sys.exit(0)
        if action == "save":
            open(folder + "/latest", "w").write(value + "\\n")
        if action == "step":
            open(folder + "/first-step", "w").close()
        if action == "die":
            os.kill(os.getpid(), int(value))
        if action == "wait":
            open(os.environ["FAKES"] + "/ready", "w").close()
            while not told:
                time.sleep(0.01)
            time.sleep(0.3)

if __name__ == "__main__":
    told = []
    signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
    names = ("MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "FROM_MODULE", "RANK", *LEAKED)
    with open(os.environ["FAKES"] + "/runs", "a") as runs:
        seen = dict(argv=sys.argv[1:], env=dict((name, os.environ.get(name)) for name in names))
        runs.write(json.dumps(seen) + "\\n")
    take_steps()
"""


class Bench:
    """A repository with a stand-in train.py in a folder with a space in its name, and a PATH of stand-in commands."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "a repository"
        self.fakes = folder / "fakes"
        self.env = {
            "PATH": f"{self.fakes}:{os.environ['PATH']}",
            "FAKES": str(self.fakes),
            "CLTT_HOME": str(self.home),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(REPOSITORY),
        }
        self.home.mkdir()
        self.fakes.mkdir()
        shutil.copytree(REPOSITORY / "slurm", self.home / "slurm")
        (self.home / "train.py").write_text(TRAIN)
        (self.home / "tools").mkdir()
        (self.home / "tools/build_shards.py").write_text(NOTE.format(python=sys.executable))
        for name, body in COMMANDS.items():
            (self.fakes / name).write_text(NOTE.format(python=sys.executable) + body + "\n")
            (self.fakes / name).chmod(0o755)

    @property
    def job(self) -> dict[str, str]:
        """What Slurm tells a batch script of one node."""
        return {
            "SLURM_JOB_ID": "41",
            "SLURM_JOB_NODELIST": "node1",
            "SLURMD_NODENAME": "node1",
            "SLURM_JOB_NUM_NODES": "1",
        }

    def start(self, script: str, *args: str, **env: str) -> subprocess.Popen[str]:
        """Start a script of the slurm folder as a batch job would; ``env`` adds to the environment."""
        command = ["bash", str(self.home / "slurm" / script), *args]
        pipe = subprocess.PIPE
        environment = {**self.env, **env}
        return subprocess.Popen(
            command, cwd=self.home, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )

    def run(self, script: str, *args: str, **env: str) -> tuple[int, str]:
        """Run a script to its end: exit status and what it wrote."""
        process = self.start(script, *args, **env)
        output, _ = process.communicate(timeout=30)
        return process.returncode, output

    def train(self, *args: str, **env: str) -> tuple[int, str]:
        """Run train.sbatch as a job of one node."""
        return self.run("train.sbatch", *args, **{**self.job, **env})

    def calls(self, name: str) -> list[list[str]]:
        """Arguments of every call of a stand-in command so far."""
        path = self.fakes / "calls"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line[1:] for line in lines if line[0] == name]

    def requeued(self) -> list[str]:
        """Ids given to ``scontrol requeue`` so far."""
        return [call[1] for call in self.calls("scontrol") if call[0] == "requeue"]

    def runs(self) -> list[dict]:
        """Arguments and environment of every start of the training so far."""
        path = self.fakes / "runs"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_until_ready(self) -> None:
        """Return when the training waits for its signal."""
        deadline = time.monotonic() + 20
        while not (self.fakes / "ready").exists():
            assert time.monotonic() < deadline, "the training never started"
            time.sleep(0.01)
