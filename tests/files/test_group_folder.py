"""Two users and a folder that their group shares (setgid, umask 002): what one leaves, the other can go on with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cltt.files.locks import holder
from tests.helpers import data

REPOSITORY = Path(__file__).parents[2]
ANN, BOB, GROUP = 60001, 60002, 60100  # ids that no account needs to have


# The interpreter and the packages may lie where only root can read, so users begin with the right to read everything.
GIVE_UP = """
import ctypes
import {modules}
assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
"""


def command(user: int, code: str, folder: Path, umask: int, modules: str) -> dict[str, Any]:
    """Options of Popen for ``code``, which gives that right up once ``modules`` are imported ("": it keeps it)."""
    become = [f"--reuid={user}", f"--regid={user}", f"--groups={GROUP}"]
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    code = (GIVE_UP.format(modules=modules) if modules else "") + textwrap.dedent(code)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    return {
        "args": ["setpriv", *become, *reading, sys.executable, "-c", code],
        "cwd": folder,
        "env": environment,
        "umask": umask,
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
    }


def act(user: int, code: str, folder: Path, *, umask: int = 0o002, modules: str = "") -> str:
    """What ``code`` prints that ``user`` runs in ``folder``."""
    done = subprocess.run(**command(user, code, folder, umask, modules), timeout=120)
    assert done.returncode == 0, done.stdout
    return str(done.stdout)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder of Ann's that her group may write to, with clips in ``frames``."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root, and setpriv of util-linux, to act as two users")
    folder = Path(tempfile.mkdtemp(prefix="cltt-group-"))
    try:
        os.chown(folder, ANN, GROUP)
        folder.chmod(0o2770)
        data.make_clips(folder / "frames", {"a/one": 30, "a/two": 25})
        yield folder
    finally:
        shutil.rmtree(folder)


LOCKS = "cltt.files.locks"
LOCK = """
from pathlib import Path
from cltt.files.locks import locked
with locked(Path("run/.lock"), shared={shared}):
    print("locked")
"""


# Even with umask 022: https://github.com/huggingface/datasets/issues/7900. 0.1.0 made locks as 0644 whatever the umask.
@pytest.mark.parametrize("umask", [0o002, 0o022])
@pytest.mark.parametrize("exclusive", [True, False])
def test_a_lock_of_another_member_can_be_taken(shared: Path, umask: int, exclusive: bool) -> None:
    act(ANN, LOCK.format(shared=False), shared, umask=umask)
    assert (shared / "run/.lock").stat().st_mode & 0o777 == 0o666 & ~umask
    assert act(BOB, LOCK.format(shared=not exclusive), shared, modules=LOCKS) == "locked\n"


def test_a_lock_that_may_not_be_looked_at_counts_as_held(shared: Path) -> None:
    act(ANN, LOCK.format(shared=False), shared, umask=0o077)
    look = "from pathlib import Path; from cltt.files.locks import holder; print(holder(Path('run/.lock')))"
    assert act(ANN, look, shared, modules=LOCKS) == "None\n"
    assert act(BOB, look, shared, modules=LOCKS) == "a process of another user\n"
    assert holder(shared / "run/nothing") is None


def test_what_may_not_be_written_is_named_with_the_right_that_is_missing(shared: Path) -> None:
    act(ANN, LOCK.format(shared=False), shared, umask=0o077)
    (shared / "run").chmod(0o755)
    code = """
        from pathlib import Path
        from cltt.errors import DataError
        from cltt.files.atomic import published
        from cltt.files.locks import locked
        for path in ("run/.lock", "run/new"):
            try:
                with locked(Path(path)):
                    pass
            except DataError as error:
                print(error)
    """
    lock, new = act(BOB, code, shared, modules=LOCKS).splitlines()
    assert lock.startswith("cannot write run/.lock: Permission denied; run/.lock belongs to user 60001 (-rw-------)")
    assert f"; {shared}/run belongs to user 60001 (drwxr-xr-x): ask for the right to write it (chmod g+wx)" in new


BUILD = "from cltt import build_shards; build_shards('frames', 'shards', workers=1, shard_size=10_000, {how})"


def test_tasks_of_two_members_build_one_set(shared: Path) -> None:
    act(ANN, BUILD.format(how="task='0/2'"), shared)
    act(BOB, BUILD.format(how="task='1/2'"), shared)
    act(BOB, BUILD.format(how="finalize=True"), shared)
    act(ANN, "from cltt import ShardDataset; assert ShardDataset('shards').num_frames == 55", shared)


# ---- sets that are built on first use

LOCATE = """
from cltt.config import DataSettings
from cltt.sets.locate import locate_shards
shards = locate_shards(DataSettings(root_dir="frames"))
"""
USE = (
    LOCATE
    + """
import sys, time
from pathlib import Path
from cltt.sets.use import in_use
with in_use(shards, Path("bob's run")):
    print("in use", flush=True)
    sys.stdin.read()
"""
)
PRUNE = "import sys; from cltt.commands.prune import main; main(['--remove', *sys.argv[1:]])"


def old_set(shared: Path, umask: int) -> Path:
    """A set that Ann built and used, which is no longer the newest of its folder once Bob is at it."""
    act(ANN, LOCATE + "from cltt.sets.use import in_use\nfrom pathlib import Path\nwith in_use(shards, Path('r')): pass", shared, umask=umask)  # fmt: skip  # noqa: E501
    (found,) = (path.parent for path in (shared / "shards").glob("*/index.json"))
    return found


def supersede(shared: Path, umask: int) -> None:
    data.make_clips(shared / "frames", {"b/new": 7})
    act(ANN, LOCATE, shared, umask=umask)


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o002, 0o022])
def test_a_set_is_not_removed_under_another_members_run(shared: Path, umask: int) -> None:
    old = old_set(shared, umask)
    with subprocess.Popen(
        **command(
            BOB,
            USE,
            shared,
            umask,
            "torch.distributed, cltt.distributed.decisions, cltt.distributed.identity, cltt.sets.locate, cltt.sets.use",
        ),
        stdin=subprocess.PIPE,
    ) as bob:
        lines = [bob.stdout.readline() for _ in range(2 if umask == 0o002 else 3)]
        assert lines[-1] == "in use\n", lines
        supersede(shared, umask)
        assert "a run uses it" in act(ANN, PRUNE, shared, modules="cltt.commands.prune")
        bob.communicate("", timeout=30)
    noted = umask == 0o002
    assert any("does not know that this run needs" in line for line in lines) != noted
    run = shared / "bob's run"
    run.mkdir()
    (run / "settings.json").write_text('{"optim": {"epochs": 2}}')
    os.chown(run, BOB, BOB)
    run.chmod(0o700)  # Ann may not look whether it is complete
    why = f"unfinished: {run}" if noted else "other users may read it, and their runs are not listed"
    assert why in act(ANN, PRUNE, shared, modules="cltt.commands.prune") and old.is_dir()
    if noted:
        shutil.rmtree(run)
        assert "removed 1 of 2" in act(ANN, PRUNE, shared, modules="cltt.commands.prune") and not old.is_dir()


@pytest.mark.slow
def test_a_set_that_nobody_else_can_reach_may_go(shared: Path) -> None:
    shared.chmod(0o700)
    old = old_set(shared, 0o022)
    supersede(shared, 0o022)
    assert "removed 1 of 2" in act(ANN, PRUNE, shared, modules="cltt.commands.prune") and not old.is_dir()
