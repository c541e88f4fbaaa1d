"""Proofs keep results by a digest of what they prove: any change of it, and nothing else, gives another."""

from pathlib import Path

import pytest

from tests.support.provenance import PROVED, sources_digest


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in PROVED:
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "one.py").write_text("x = 1\n")
    return tmp_path


def test_the_same_sources_give_the_same_digest(tree: Path) -> None:
    before = sources_digest(root=tree)
    (tree / PROVED[0] / "__pycache__").mkdir()
    (tree / PROVED[0] / "__pycache__" / "one.pyc").write_bytes(b"1")
    (tree / "docs").mkdir()
    (tree / "docs" / "page.md").write_text("a result\n")
    assert sources_digest(root=tree) == before
    assert len(before) == 16


@pytest.mark.parametrize("name", PROVED)
def test_any_change_gives_another(tree: Path, name: str) -> None:
    seen = [sources_digest(root=tree)]
    file = tree / name / "deep" / "one.py"
    file.write_text("x = 2\n")
    seen.append(sources_digest(root=tree))
    file.rename(file.with_name("two.py"))
    seen.append(sources_digest(root=tree))
    file.write_text("")
    seen.append(sources_digest(root=tree))
    assert len(set(seen)) == len(seen)


def test_more_can_be_named_and_must_be_there(tree: Path) -> None:
    (tree / "proof.py").write_text("x = 1\n")
    assert sources_digest("proof.py", root=tree) != sources_digest(root=tree)
    with pytest.raises(AssertionError, match="holds no sources"):
        sources_digest("gone.py", root=tree)


def test_this_project_has_one() -> None:
    assert sources_digest("tests/prove/kill.py") != sources_digest()
