"""What is said of a lock that cannot be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from cltt.errors import DataError
from cltt.files.locks import locked


def test_a_lock_that_cannot_be_made_names_itself_and_the_right_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(DataError) as raised, locked(tmp_path / "run" / ".lock"):
        pass
    said = str(raised.value)
    assert said.startswith(f"cannot write {tmp_path / 'run' / '.lock'}: ") and "shards" not in said
    assert f"see that this user may write in {tmp_path / 'run'}" in said
