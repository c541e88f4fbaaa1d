"""A build keeps every document once, says what it dropped, and repeats to the byte."""

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sample_texts import HOSTILE, documents

from data_pipeline.build import build_dataset
from data_pipeline.config import BuildConfig
from data_pipeline.dataset import TokenDataset
from data_pipeline.manifest import DatasetManifest
from data_pipeline.tokenizer import Tokenizer
from runtime.errors import UserError

Config = Callable[..., BuildConfig]


def texts_of(path: Path) -> list[tuple[str, int]]:
    """Every document of a dataset as (text, source), decoded from the shards."""
    tokenizer, found = Tokenizer.load(path), []
    for split in ("train", "validation"):
        for shard in TokenDataset(path, split).shards:
            stream = np.concatenate([shard.batch(b) for b in range(len(shard.info.batches))])
            ends, sources = shard.documents()
            for begin, end, source in zip([0, *ends[:-1]], ends, sources, strict=True):
                assert stream[end - 1] == tokenizer.eos_id
                found.append((tokenizer.decode(stream[begin : end - 1].tolist()), int(source)))
    return found


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def test_every_document_comes_back_once(built: Path) -> None:
    assert sorted(text for text, _ in texts_of(built)) == sorted([*documents(400, 0), *HOSTILE])


def test_no_text_becomes_a_special_id(built: Path) -> None:
    """The corpus spells `<mask>` and the others out; EOS stands at the end of documents alone."""
    tokenizer, ids = Tokenizer.load(built), TokenDataset(built)
    stream = np.concatenate([shard.batch(b) for shard in ids.shards for b in range(len(shard.info.batches))])
    assert any("<mask>" in text for text, _ in texts_of(built))
    assert not np.isin(stream, [tokenizer.mask_id, tokenizer.bos_id, tokenizer.pad_id]).any()
    assert np.count_nonzero(stream == tokenizer.eos_id) == ids.manifest.splits["train"].documents


def test_what_was_dropped_is_counted(built: Path) -> None:
    source = DatasetManifest.load(built).sources[0]
    assert (source.documents, source.duplicates, source.undecodable, source.empty) == (404, 1, 1, 1)
    assert source.bytes == sum(len(t.encode()) for t in [*documents(400, 0), *HOSTILE])
    assert (source.name, source.licence, source.skipped) == ("words", "CC0", None)


def test_manifest_describes_the_files(built: Path) -> None:
    manifest = DatasetManifest.load(built)
    files = {file.name for file in manifest.files + manifest.tables}
    assert files | {"manifest.json"} == set(os.listdir(built))
    assert all((built / file.name).stat().st_size == file.bytes for file in manifest.files)
    assert manifest.splits["train"].tokens + manifest.splits["validation"].tokens == manifest.sources[0].tokens
    assert 10 < manifest.splits["validation"].documents < 80
    assert len(manifest.splits["train"].shards) > 2
    assert manifest.dtype == "uint16"
    assert manifest.digest == json.loads((built / "manifest.json").read_text())["digest"]


def test_two_builds_are_byte_identical(built: Path, build_config: Config, tmp_path: Path) -> None:
    build_dataset(build_config(), tmp_path / "again", show_progress=False)
    assert files_of(tmp_path / "again") == files_of(built)
    assert os.listdir(tmp_path) == ["again"]


def test_lz4_holds_the_same_tokens(built: Path, build_config: Config, tmp_path: Path) -> None:
    manifest = build_dataset(build_config(compression="lz4"), tmp_path / "packed", show_progress=False)
    assert texts_of(tmp_path / "packed") == texts_of(built)
    plain = DatasetManifest.load(built)
    assert [s.batches for s in manifest.splits["train"].shards] == [s.batches for s in plain.splits["train"].shards]


def test_existing_tokenizer(built: Path, build_config: Config, tmp_path: Path) -> None:
    config = build_config(tokenizer={"kind": "existing", "path": str(built)})
    manifest = build_dataset(config, tmp_path / "second", show_progress=False)
    assert manifest.tokenizer.file == DatasetManifest.load(built).tokenizer.file
    with pytest.raises(UserError, match=r"gone\.model cannot be read"):
        build_dataset(
            build_config(tokenizer={"kind": "existing", "path": "gone.model"}),
            tmp_path / "x",
            show_progress=False,
        )
    assert sorted(os.listdir(tmp_path)) == ["second"]


def test_an_existing_directory_is_never_overwritten(built: Path, build_config: Config) -> None:
    before = files_of(built)
    with pytest.raises(UserError, match="exists already"):
        build_dataset(build_config(), built, show_progress=False)
    assert files_of(built) == before


def test_max_bytes_takes_the_first_documents(build_config: Config, corpus: Path, tmp_path: Path) -> None:
    source = {"kind": "text", "name": "few", "licence": "CC0", "glob": f"{corpus}/*.txt", "max_bytes": 20_000}
    manifest = build_dataset(
        build_config(sources=[source], tokenizer={"kind": "train", "vocabulary": 330}),
        tmp_path / "few",
        show_progress=False,
    )
    kept, size = [], 0
    for text in documents(400, 0):
        size += len(text.encode())
        if size > 20_000:
            break
        kept.append(text)
    assert sorted(text for text, _ in texts_of(tmp_path / "few")) == sorted(kept)
    assert manifest.sources[0].bytes <= 20_000


def test_duplicates_are_found_across_sources(build_config: Config, corpus: Path, tmp_path: Path) -> None:
    lines = [{"body": text} for text in [*documents(10, 0), "a new one"]]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sources = [
        {"kind": "text", "name": "words", "licence": "CC0", "glob": f"{corpus}/*.txt"},
        {"kind": "jsonl", "name": "more", "licence": "MIT", "glob": f"{tmp_path}/*.jsonl", "field": "body"},
    ]
    manifest = build_dataset(build_config(sources=sources), tmp_path / "both", show_progress=False)
    assert [(s.documents, s.duplicates) for s in manifest.sources] == [(404, 1), (1, 10)]
    assert [text for text, source in texts_of(tmp_path / "both") if source == 1] == ["a new one"]


def test_json_lines_of_every_sort(build_config: Config, tmp_path: Path) -> None:
    good = documents(200, 5)
    bad = [
        b"{broken",
        b'{"other": 1}',
        b'{"text": 5}',
        b'["text"]',
        b'{"text": "\\ud800"}',
        b"\xff\xfe",
        b"7",
        b"[" * 20_000,
        b"",
    ]
    blob = b"\n".join([*(json.dumps({"text": text}).encode() for text in good), *bad])
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(blob))
    source = {"kind": "jsonl", "name": "j", "licence": "CC0", "glob": f"{tmp_path}/*.gz"}
    config = build_config(sources=[source], tokenizer={"kind": "train", "vocabulary": 330})
    manifest = build_dataset(config, tmp_path / "out", show_progress=False)
    found = manifest.sources[0]
    assert (found.documents, found.undecodable, found.without_text) == (200, 4, 4)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(blob)[:-100])
    with pytest.raises(UserError, match=r"source 'j': .*a\.jsonl\.gz cannot be read to its end .*`damaged: skip`"):
        build_dataset(config, tmp_path / "again", show_progress=False)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (None, "text", "no file matches"),
        (b"", "text", "gives no document .1 empty"),
        (b"\xff", "text", "gives no document .1 undecodable"),
        (b'{"body": "x"}', "jsonl", "gives no document .1 without text.*`field`"),
    ],
)
def test_a_source_without_text(
    build_config: Config, tmp_path: Path, content: bytes | None, kind: str, message: str
) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    source = {"kind": kind, "name": "void", "licence": "CC0", "glob": f"{tmp_path}/*.txt"}
    with pytest.raises(UserError, match=f"source 'void'.*{message}"):
        build_dataset(build_config(sources=[source]), tmp_path / "out", show_progress=False)
    assert not (tmp_path / "out").exists()


def test_all_text_held_out(build_config: Config, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one document")
    source = {"kind": "text", "name": "one", "licence": "CC0", "glob": f"{tmp_path}/*.txt"}
    with pytest.raises(UserError, match="no text is left to train on"):
        build_dataset(build_config(sources=[source], validation=0.999999), tmp_path / "out", show_progress=False)


def test_a_split_depends_on_the_text_alone(built: Path, build_config: Config, corpus: Path, tmp_path: Path) -> None:
    source = {"kind": "text", "name": "half", "licence": "CC0", "glob": f"{corpus}/0[01]*.txt"}
    config = build_config(sources=[source], tokenizer={"kind": "existing", "path": str(built)})
    build_dataset(config, tmp_path / "half", show_progress=False)

    def held_out(path: Path) -> set[str]:
        tokenizer = Tokenizer.load(path)
        dataset = TokenDataset(path, "validation")
        stream = np.concatenate([s.batch(b) for s in dataset.shards for b in range(len(s.info.batches))])
        return {
            tokenizer.decode(part.tolist()) for part in np.split(stream, np.flatnonzero(stream == tokenizer.eos_id))
        }

    assert len(held_out(tmp_path / "half")) > 5
    assert held_out(tmp_path / "half") <= held_out(built)


def test_a_full_disk(built: Path, build_config: Config, tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, resource\n"
        "from data_pipeline.build import build_dataset\n"
        "from data_pipeline.config import BuildConfig\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))\n"
        "c = BuildConfig.model_validate_json(sys.argv[1]); build_dataset(c, pathlib.Path(sys.argv[2]))"
    )
    for limit in ("2_000", "8_000"):
        arguments = [
            program.replace("(LIMIT, LIMIT)", f"({limit}, {limit})"),
            build_config().model_dump_json(),
            str(tmp_path / "out"),
        ]
        result = subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True, check=False)
        assert re.search(
            r"UserError: .*out could not be built \(.*File too large.*nothing was published", result.stderr
        )
        assert not (tmp_path / "out").exists()
    build_dataset(build_config(), tmp_path / "out", show_progress=False)
    assert files_of(tmp_path / "out") == files_of(built)
    assert os.listdir(tmp_path) == ["out"]


def test_no_place_to_build(build_config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/out could not be built"):
        build_dataset(build_config(), tmp_path / "file/out", show_progress=False)


def test_the_standard_library_is_a_corpus(build_config: Config, tmp_path: Path) -> None:
    source = {"kind": "python_stdlib", "name": "stdlib", "licence": "PSF-2.0", "max_bytes": 2_000_000}
    config = build_config(sources=[source], tokenizer={"kind": "train", "vocabulary": 1000, "sample_bytes": 200_000})
    manifest = build_dataset(config, tmp_path / "out", show_progress=False)
    assert 1_500_000 < manifest.sources[0].bytes <= 2_000_000
    assert manifest.sources[0].origin.startswith("Python 3.")
    assert manifest.sources[0].tokens < manifest.sources[0].bytes / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": []}, "sources"),
        ({"sources": [{"kind": "txt", "name": "a", "licence": "b"}]}, "sources.0"),
        (
            {"sources": [{"kind": "text", "name": "a/../b", "licence": "b", "glob": "*"}]},
            "sources.0.name",
        ),
        ({"sources": [{"kind": "text", "name": "a", "glob": "*"}]}, "sources.0.licence"),
        (
            {"sources": [{"kind": "text", "name": "a", "licence": "b", "glob": "*", "splits": "x"}]},
            "did you mean 'sources.0.split'",
        ),
        (
            {"sources": [{"kind": "python_stdlib", "name": "a", "licence": "b"}] * 2},
            "the name 'a' is used twice",
        ),
        (
            {"sources": [{"kind": "debian", "name": "a", "licence": "b", "package": "--help", "include": ["*"]}]},
            "package",
        ),
        (
            {"sources": [{"kind": "debian", "name": "a", "licence": "b", "package": "bash", "include": ["../*"]}]},
            "include",
        ),
        (
            {"sources": [{"kind": "debian", "name": "a", "licence": "b", "package": "bash", "include": ["/etc/*"]}]},
            "include",
        ),
        ({"validation": 1}, "validation"),
        ({"validation": -0.1}, "validation"),
        ({"compression": "zstd"}, "compression"),
        ({"batch_tokens": 0}, "batch_tokens"),
        ({"tokenizer": {"kind": "train", "vocabulary": 100}}, "vocabulary"),
        ({"tokeniser": {}}, "did you mean 'tokenizer'"),
    ],
)
def test_bad_configuration(build_config: Config, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_config(**changes)
    assert "\n" not in str(caught.value)
