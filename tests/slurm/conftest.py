"""A real two-node Slurm on this machine for the time of the tests, and a handle to submit to it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.fakes import REPOSITORY

HERE = Path(__file__).parent
LOCK = (
    Path(tempfile.gettempdir()) / "cltt-slurm-tests.lock"
)  # one cluster a machine: a second test run waits for the first
MARK = "# written by slurm_up.sh"


def why_no_slurm() -> str | None:
    """Why a throw-away cluster can't be started here, or None."""
    if os.geteuid() != 0:
        return "needs root to start slurmctld and slurmd"
    missing = [
        name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name, path=daemon_path()) is None
    ]
    if missing:
        return f"needs Slurm: {', '.join(missing)} not installed (Debian: slurm-wlm, munge)"
    conf = Path("/etc/slurm/slurm.conf")
    if conf.exists() and conf.read_text().split("\n", 1)[0] != MARK:
        return f"{conf} belongs to a Slurm that is not ours"
    return None


def daemon_path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Cluster:
    """Jobs are submitted from ``folder`` (a path with a space), as a user would from a shell there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "logs").mkdir(parents=True, exist_ok=True)

    def call(self, *command: str, **env: str) -> str:
        """Output of a command run in the folder."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        environment = {**inherited, "CLTT_HOME": str(REPOSITORY), **env}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command} exited with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *args: str, **env: str) -> str:
        """Id of the job that ``sbatch args`` makes."""
        return self.call("sbatch", "--parsable", *args, **env).strip()

    def job_info(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says of one job or array task."""
        words = self.call("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job: str) -> str:
        return self.job_info(job)["JobState"]

    def ended(self, job: str) -> bool:
        return self.state(job) not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED")

    def wait(self, job: str, *, seconds: float = 300) -> dict[str, str]:
        """What is known of the job once it has ended for good; its log is shown if it does not end."""
        deadline = time.monotonic() + seconds
        while not self.ended(job):
            assert time.monotonic() < deadline, f"job {job} is still {self.state(job)}\n{self.logs()}"
            time.sleep(0.2)
        return self.job_info(job)

    def wait_for(self, job: str, file: Path, lines: int, *, seconds: float = 120) -> None:
        """Return when the job has written so many lines."""
        deadline = time.monotonic() + seconds
        while not (file.exists() and len(file.read_text().splitlines()) >= lines):
            assert time.monotonic() < deadline, f"{file.name} has not {lines} lines after {seconds} s\n{self.logs()}"
            assert not self.ended(job), f"job {job} ended before {file.name} had {lines} lines\n{self.logs()}"
            time.sleep(0.05)

    def logs(self) -> str:
        """All job logs, each under its name."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text()}" for path in sorted((self.folder / "logs").glob("*.out"))
        )


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """The cluster's daemons; stopped at the end, whatever the tests did."""
    reason = why_no_slurm()
    if reason is not None:
        pytest.skip(reason)
    with open(LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run([HERE / "slurm_down.sh"], check=True, capture_output=True)  # of a test run that was killed
        try:
            up = subprocess.run([HERE / "slurm_up.sh"], capture_output=True, text=True)
            assert up.returncode == 0, up.stdout + up.stderr
            yield
        finally:
            subprocess.run([HERE / "slurm_down.sh"], check=True, capture_output=True)


@pytest.fixture
def cluster(slurm: None, tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "my project")
