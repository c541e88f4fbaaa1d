"""A file is the old one or the new one, a directory is published once, and broken JSON is named."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.files import (
    digest_bytes,
    digest_file,
    half_removed,
    publish_directory,
    read_json,
    remove_tree,
    write_atomic,
    write_json,
)

_LIMITED = (
    "import pathlib, resource, signal, sys\n"
    "from runtime.files import write_atomic\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    "try: write_atomic(pathlib.Path(sys.argv[1]), b'n' * 5000)\n"
    "except OSError as error: sys.exit(error.errno)\n"
)


def test_a_write_that_finds_no_room_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    write_atomic(target, "old")
    result = subprocess.run([sys.executable, "-c", _LIMITED, str(target)], check=False, timeout=60)
    assert result.returncode == errno.EFBIG
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_name_that_cannot_be_replaced_keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "taken/below").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_atomic(tmp_path / "taken", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
    assert (tmp_path / "taken/below").is_dir()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write in a read-only directory")
def test_a_read_only_directory_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    write_atomic(target, "old")
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(PermissionError):
            write_atomic(target, "new")
    finally:
        tmp_path.chmod(stat.S_IRWXU)
    assert target.read_text() == "old"


def test_write_makes_parents_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "a/b/state"
    write_atomic(target, b"\x00\xff")
    write_atomic(target, "zwei ü")
    assert target.read_text(encoding="utf-8") == "zwei ü"


def test_json_comes_back_and_refuses_what_json_has_no_word_for(tmp_path: Path) -> None:
    target, value = tmp_path / "v.json", {"ä": [1, 2.5, None, "\n\u2028"], "b": {"c": True}}
    write_json(target, value)
    assert read_json(target) == value
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(target, float("nan"))
    assert read_json(target) == value


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b'{"a": 1} x', b"[" * 200_000],
    ids=["empty", "torn", "not UTF-8", "more", "deep"],
)
def test_broken_json_is_named(tmp_path: Path, content: bytes) -> None:
    target = tmp_path / "v.json"
    target.write_bytes(content)
    with pytest.raises(UserError, match=r"v\.json cannot be read as JSON .*: restore or rebuild it"):
        read_json(target)


def test_missing_json_and_a_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none does not exist"):
        read_json(tmp_path / "none")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_json(tmp_path)


def test_publishing_refuses_to_overwrite(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    publish_directory(tmp_path / "one", tmp_path / "final")
    with pytest.raises(UserError, match="final exists already"):
        publish_directory(tmp_path / "two", tmp_path / "final")
    assert (tmp_path / "final/file").read_text() == "one"
    assert (tmp_path / "two/file").read_text() == "two"
    assert not (tmp_path / "one").exists()


def test_a_removed_tree_leaves_nothing_and_may_be_gone_already(tmp_path: Path) -> None:
    (tmp_path / "t/deep").mkdir(parents=True)
    remove_tree(tmp_path / "t")
    remove_tree(tmp_path / "t")
    remove_tree(tmp_path / "not there/t")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_removal_left_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t/deep").mkdir(parents=True)
    (tmp_path / "t.2").mkdir()
    with monkeypatch.context() as patches:
        patches.setattr("runtime.files.shutil.rmtree", lambda *_, **__: None)
        remove_tree(tmp_path / "t")
        remove_tree(tmp_path / "t.2")
    assert len(half_removed(tmp_path / "t")) == 1
    remove_tree(tmp_path / "t")
    assert half_removed(tmp_path / "t") == []
    assert len(half_removed(tmp_path / "t.2")) == 1


def test_digests_are_xxh3_128(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"lacuna" * 1_000_000)  # more than one piece of reading
    assert digest_file(tmp_path / "f") == digest_bytes(b"lacuna" * 1_000_000)
    assert digest_bytes(b"") == "99aa06d3014798d86001c324468d497f"  # the algorithm's published value
