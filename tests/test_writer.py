"""The writer: whatever call fails, the old content or the new one is there, and nothing else."""

import errno
import os
from pathlib import Path

import pytest

from benchmarks.trust.faults import every_fault
from studio.store import writer


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("short", [False, True])
def test_replacing_a_file_leaves_the_old_or_the_new(tmp_path: Path, error: int, short: bool) -> None:
    path = tmp_path / "a" / "file"

    def check(done: bool) -> None:
        found = path.read_bytes()
        assert found in (b"old" * 100, b"new" * 100)
        assert not done or found == b"new" * 100
        writer.sweep(tmp_path)
        assert names(tmp_path) == {"file"}
        path.write_bytes(b"old" * 100)

    path.parent.mkdir()
    path.write_bytes(b"old" * 100)
    assert every_fault(lambda: writer.write_file(path, b"new" * 100), check, error, short=short) >= 6


def test_a_new_file_is_whole_or_absent_and_never_replaces(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"

    def check(done: bool) -> None:
        assert done <= path.exists()
        assert not path.exists() or path.read_bytes() == b"x" * 1000
        path.unlink(missing_ok=True)

    assert every_fault(lambda: writer.write_file(path, b"x" * 1000, replace=False), check, errno.ENOSPC) >= 8
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        writer.write_file(path, b"theirs", replace=False)
    assert path.read_bytes() == b"mine"
    assert names(tmp_path) == {"file"}


def test_a_directory_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"

    def fill(folder: Path) -> None:
        (folder / "weights").mkdir()
        (folder / "weights" / "model.bin").write_bytes(b"w" * 5000)
        (folder / "config.json").write_text("{}")

    def check(done: bool) -> None:
        assert done <= path.exists()
        if path.exists():
            assert writer.verify_directory(path) is None
            for file in sorted(path.rglob("*"), reverse=True):
                file.unlink() if file.is_file() else file.rmdir()
            path.rmdir()

    assert every_fault(lambda: writer.write_directory(path, fill), check, errno.EIO) >= 10
    writer.write_directory(path, fill)
    with pytest.raises(FileExistsError):
        writer.write_directory(path, fill)
    (path / "config.json").write_text("{ }")
    assert writer.verify_directory(path) == "checkpoint/config.json is damaged"
    (path / "extra").write_text("")
    assert "extra" in str(writer.verify_directory(path))


def test_an_appended_line_never_harms_the_lines_before(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    whole: list[str] = []

    def work() -> None:
        writer.append_line(path, f'{{"n": {len(whole)}}}')

    def check(done: bool) -> None:
        lines = path.read_text().splitlines() if path.exists() else []
        assert lines[: len(whole)] == whole
        whole[:] = lines

    assert every_fault(work, check, errno.ENOSPC) >= 3
    with path.open("a") as file:
        file.write('{"torn')
    writer.append_line(path, '{"after": 1}')
    assert path.read_text().splitlines()[-2:] == ['{"torn', '{"after": 1}']


def test_the_harness_catches_a_naive_writer(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old" * 100)
    torn: list[bytes] = []

    def naive() -> None:
        handle = os.open(path, os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(handle, b"new" * 100)
        finally:
            os.close(handle)

    def check(done: bool) -> None:
        if path.read_bytes() not in (b"old" * 100, b"new" * 100):
            torn.append(path.read_bytes())
        path.write_bytes(b"old" * 100)

    every_fault(naive, check, errno.ENOSPC)
    assert torn
