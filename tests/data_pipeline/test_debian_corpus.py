"""Debian packages as a corpus: real ones where the machine has apt, and what happens where it has not."""

import gzip
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.build import build_dataset
from data_pipeline.config import BuildConfig, DebianPackage
from data_pipeline.corpora import fortunes, open_corpus, whole_file
from data_pipeline.debian import PackageUnavailable, fetch_package
from data_pipeline.manifest import DatasetManifest
from runtime.errors import UserError

POEMS = {
    "kind": "debian",
    "name": "poems",
    "licence": "GPL-2+",
    "package": "fortunes-zh",
    "include": ["usr/share/games/fortunes/tang300"],
    "split": "fortune",
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
    corpus = open_corpus(DebianPackage.model_validate(POEMS), tmp_path, cache)
    poems = [text for file in corpus.files for text in corpus.read(file) if text]
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
    corpus = open_corpus(source, tmp_path / "work", package)
    assert {file.name: next(corpus.read(file)) for file in corpus.files} == {
        "plain.rst": "plain",
        "packed.rst.gz": "packed é",
        "cut.rst.gz": None,
    }


def test_a_damaged_package(package: Path, tmp_path: Path) -> None:
    (package / "demo_1_all.deb").write_bytes(b"not a package")
    source = DebianPackage(kind="debian", name="demo", licence="x", package="demo", include=["*"])
    with pytest.raises(UserError, match="source 'demo': dpkg-deb failed"):
        open_corpus(source, tmp_path / "work", package)


def test_fortune_borders(tmp_path: Path) -> None:
    file = tmp_path / "fortunes"
    file.write_bytes(b"\x1b[32mone\x1b[m\n50% of\n%\ntwo\r\n%\r\n% not a border\n%\n")
    assert list(fortunes(file)) == ["one\n50% of", "two", "% not a border", ""]
    file.write_bytes(b"\xff")
    assert list(fortunes(file)) == [None]


def test_a_whole_file_is_kept_to_the_byte(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfa\r\n\n")
    assert list(whole_file(tmp_path / "a")) == ["\ufeffa\r\n\n"]
