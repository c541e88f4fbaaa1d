"""Debian packages as a corpus: real ones where the machine has apt, and what happens where it has not."""

import gzip
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.build import build_dataset
from data_pipeline.config import BuildConfig
from data_pipeline.manifest import DatasetManifest
from data_pipeline.sources.config import DebianPackage
from data_pipeline.sources.debian import PackageUnavailable, fetch_package
from data_pipeline.sources.pieces import Opened, cut, open_source, read_piece
from data_pipeline.sources.plain_text import fortunes
from runtime.errors import UserError

POEMS = {
    "kind": "debian",
    "name": "poems",
    "licence": "GPL-2+",
    "package": "fortunes-zh",
    "include": ["usr/share/games/fortunes/tang300"],
    "split": "fortune",
}


def texts_of(source: DebianPackage, opened: Opened) -> dict[tuple[str, int], str | None]:
    """Every document by the name of its file and its place in it."""
    return {
        (Path(piece.file.path).name, number): found.text
        for piece in cut(source, opened.files, 1 << 20)
        for number, found in enumerate(read_piece(source, piece, 1 << 20))
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds fortunes-zh; skips where it cannot be fetched."""
    directory = tmp_path_factory.mktemp("cache")
    try:
        fetch_package("fortunes-zh", directory)
    except PackageUnavailable as error:
        pytest.skip(f"apt-get download does not work here: {error}")
    return directory


def test_tang_poems(cache: Path, tmp_path: Path) -> None:
    source = DebianPackage.model_validate(POEMS)
    corpus = open_source(source, tmp_path, cache)
    poems = [text for text in texts_of(source, corpus).values() if text]
    assert corpus.origin.startswith("fortunes-zh_")
    assert 300 <= len(poems) <= 330
    assert not any("\x1b" in poem or "%" in poem for poem in poems)
    assert poems[0].startswith("《感遇・其一》\n作者：张九龄\n兰叶春葳蕤")


def test_a_dataset_of_poems(cache: Path, build_config: Callable[..., BuildConfig], tmp_path: Path) -> None:
    config = build_config(sources=[POEMS], tokenizer={"kind": "train", "vocabulary": 3000})
    manifest = build_dataset(config, tmp_path / "poems", cache, show_progress=False)
    assert manifest.sources[0].documents >= 300
    assert manifest.sources[0].bytes / manifest.sources[0].tokens > 2


def test_the_cache_is_used_without_apt(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert fetch_package("fortunes-zh", cache).parent == cache


def test_without_apt(
    build_config: Callable[..., BuildConfig], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    words = {"kind": "text", "name": "words", "licence": "CC0", "glob": f"{corpus}/*.txt"}
    with pytest.raises(UserError, match=r"source 'poems': apt-get is not installed.*`optional: true`"):
        build_dataset(build_config(sources=[words, POEMS]), tmp_path / "out", tmp_path / "cache", show_progress=False)
    config = build_config(sources=[{**POEMS, "optional": True}, words])
    build_dataset(config, tmp_path / "out", tmp_path / "cache", show_progress=False)
    poems, rest = DatasetManifest.load(tmp_path / "out").sources
    assert (poems.skipped, poems.documents) == ("apt-get is not installed", 0)
    assert rest.documents == 404


def test_only_skipped_sources(
    build_config: Callable[..., BuildConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match="no text is left to train on"):
        build_dataset(
            build_config(sources=[{**POEMS, "optional": True}]),
            tmp_path / "out",
            tmp_path / "cache",
            show_progress=False,
        )


def test_no_such_package(tmp_path: Path) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("apt-get is not installed")
    with pytest.raises(PackageUnavailable, match="apt-get failed"):
        fetch_package("no-such-package-anywhere", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package made here, with what a hostile one might hold."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        "Package: demo\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\n"
    )
    docs = root / "usr/share/doc"
    docs.mkdir(parents=True)
    (docs / "plain.rst").write_text("plain")
    (docs / "packed.rst.gz").write_bytes(gzip.compress("packed é".encode()))
    (docs / "cut.rst.gz").write_bytes(gzip.compress(b"cut" * 100)[:-10])
    (docs / "link.rst").symlink_to("plain.rst")
    (docs / "outside.rst").symlink_to("/etc/passwd")
    (docs / "folder").symlink_to("/etc")
    cache = tmp_path / "cache"
    cache.mkdir()
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", root, cache / "demo_1_all.deb"],
        check=True,
        capture_output=True,
    )
    return cache


def test_links_and_packed_files(package: Path, tmp_path: Path) -> None:
    source = DebianPackage(
        kind="debian",
        name="demo",
        licence="x",
        package="demo",
        include=["usr/**/*.rst", "usr/**/*.rst.gz", "usr/share/doc/folder/*"],
    )
    assert texts_of(source, open_source(source, tmp_path / "work", package)) == {
        ("plain.rst", 0): "plain",
        ("packed.rst.gz", 0): "packed é",
        ("cut.rst.gz", 0): None,
    }


def test_a_damaged_package(package: Path, tmp_path: Path) -> None:
    (package / "demo_1_all.deb").write_bytes(b"not a package")
    source = DebianPackage(kind="debian", name="demo", licence="x", package="demo", include=["*"])
    with pytest.raises(UserError, match="source 'demo': dpkg-deb failed"):
        open_source(source, tmp_path / "work", package)


def test_fortune_borders() -> None:
    data = b"\x1b[32mone\x1b[m\n50% of\n%\ntwo\r\n%\r\n% not a border\n%\n"
    assert [part.text for part in fortunes(data)] == ["one\n50% of", "two", "% not a border", ""]
    assert [part.text for part in fortunes(b"\xff")] == [None]
