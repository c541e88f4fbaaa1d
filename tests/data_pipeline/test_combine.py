"""Datasets that grow, join and part: no shard is written anew, no document lost or doubled, readers undisturbed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_texts import documents

from data_pipeline.append import append_sources
from data_pipeline.build import Means, build_dataset
from data_pipeline.combine import merge_datasets, split_by_shards, split_by_source
from data_pipeline.config import BuildConfig
from data_pipeline.dataset import TokenDataset
from data_pipeline.manifest import DatasetManifest
from data_pipeline.stats import dataset_stats
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.evaluate import evaluate_tokenizer
from data_pipeline.verify import verify_dataset
from runtime.errors import UserError

Config = Callable[..., BuildConfig]
FRESH = [f"{text} fresh" for text in documents(60, 77)]


def texts_of(path: Path) -> list[tuple[str, str]]:
    """Every document with its source's name, from the shards."""
    tokenizer, manifest, found = Tokenizer.load(path), DatasetManifest.load(path), []
    for split in ("train", "validation"):
        for shard in TokenDataset(path, split).shards:
            stream = np.concatenate([shard.batch(b) for b in range(len(shard.info.batches))])
            ends, sources = shard.documents()
            for begin, end, source in zip([0, *ends[:-1]], ends, sources, strict=True):
                found.append((tokenizer.decode(stream[begin : end - 1].tolist()), manifest.sources[source].name))
    return found


def inodes(path: Path) -> dict[str, int]:
    return {file.name: file.stat().st_ino for file in path.iterdir() if file.name != "manifest.json"}


@pytest.fixture
def more(build_config: Config, dataset: Path, tmp_path: Path) -> Callable[..., BuildConfig]:
    """A configuration of fresh documents and of some that the dataset has already."""
    (tmp_path / "more.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in [*FRESH, *documents(30, 0)]))

    def make(**changes: Any) -> BuildConfig:
        source = {"kind": "jsonl", "name": "more", "licence": "MIT", "glob": f"{tmp_path}/more.jsonl"}
        tokenizer = {"kind": "existing", "path": str(dataset)}
        return build_config(**{"sources": [source], "tokenizer": tokenizer, **changes})

    return make


def test_append_adds_and_leaves_the_rest(dataset: Path, more: Config) -> None:
    before, old, open_before = texts_of(dataset), inodes(dataset), TokenDataset(dataset)
    stream = open_before.window(0, open_before.tokens).copy()
    manifest = append_sources(dataset, more(), Means(show_progress=False))
    assert (manifest.sources[1].documents, manifest.sources[1].duplicates) == (60, 30)
    assert sorted(texts_of(dataset)) == sorted([*before, *((text, "more") for text in FRESH)])
    assert {name: inodes(dataset)[name] for name in old} == old, "no file was written anew"
    assert np.array_equal(open_before.window(0, open_before.tokens), stream), "a reader goes on"
    grown = TokenDataset(dataset)
    assert np.array_equal(grown.window(0, open_before.tokens), stream), "the old stream comes first"
    assert verify_dataset(dataset, progress=False).ok
    assert len(manifest.appended) == 1
    assert not list(dataset.parent.glob(".*building"))


def test_append_twice_and_repeat(dataset: Path, more: Config, tmp_path: Path) -> None:
    append_sources(dataset, more(), Means(show_progress=False))
    with pytest.raises(UserError, match="has a source 'more' already"):
        append_sources(dataset, more(), Means(show_progress=False))
    source = {"kind": "jsonl", "name": "again", "licence": "MIT", "glob": f"{tmp_path}/more.jsonl"}
    manifest = append_sources(dataset, more(sources=[source]), Means(show_progress=False))
    assert (manifest.sources[2].documents, manifest.sources[2].duplicates) == (0, 90)
    assert verify_dataset(dataset, progress=False).ok


def test_a_killed_append_leaves_the_dataset(dataset: Path, more: Config) -> None:
    """Killed after the files are in place and before the manifest is."""
    program = (
        "import os, sys, pathlib, data_pipeline.append as a\n"
        "from data_pipeline.config import BuildConfig\n"
        "a.fsync_directory = lambda path: os._exit(9)\n"
        "a.append_sources(pathlib.Path(sys.argv[1]), BuildConfig.model_validate_json(sys.argv[2]))"
    )
    before = texts_of(dataset)
    command = [sys.executable, "-c", program, str(dataset), more().model_dump_json()]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 9
    assert texts_of(dataset) == before
    assert verify_dataset(dataset, progress=False).ok
    append_sources(dataset, more(), Means(show_progress=False))
    assert len(texts_of(dataset)) == len(before) + 60
    assert verify_dataset(dataset, progress=False).ok


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": {"kind": "train", "vocabulary": 400}}, "an append takes the dataset's own"),
        ({"compression": "lz4"}, "compression: .* has none, not lz4"),
        ({"batch_tokens": 7}, "batch_tokens: .* has 512, not 7"),
        ({"seed": 1}, "seed: .* has 0, not 1"),
    ],
)
def test_appends_that_do_not_fit(dataset: Path, more: Config, changes: dict[str, Any], message: str) -> None:
    before = (dataset / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=message):
        append_sources(dataset, more(**changes), Means(show_progress=False))
    assert (dataset / "manifest.json").read_bytes() == before


def test_merge_and_split_again(dataset: Path, more: Config, tmp_path: Path) -> None:
    build_dataset(more(validation=0.0), tmp_path / "second", show_progress=False)
    manifest = merge_datasets([dataset, tmp_path / "second"], tmp_path / "both", progress=False)
    everything = sorted([*texts_of(dataset), *texts_of(tmp_path / "second")])
    assert sorted(texts_of(tmp_path / "both")) == everything
    assert [source.name for source in manifest.sources] == ["words", "more"]
    assert verify_dataset(tmp_path / "both", progress=False).ok

    parts = split_by_shards(tmp_path / "both", tmp_path / "parts", 3, progress=False)
    places = sorted((tmp_path / "parts").iterdir())
    assert sorted(text for place in places for text in texts_of(place)) == everything
    assert all(verify_dataset(place, progress=False).ok for place in places)
    assert sum(part.sources[1].tokens for part in parts) == manifest.sources[1].tokens
    assert sum(part.sources[0].bytes for part in parts) == manifest.sources[0].bytes
    rejoined = merge_datasets(places, tmp_path / "rejoined", progress=False)
    assert rejoined.splits["train"].shards == manifest.splits["train"].shards
    assert rejoined.stream_digest == manifest.stream_digest

    split_by_source(tmp_path / "both", tmp_path / "apart", progress=False)
    for name in ("words", "more"):
        mine = [text for text in everything if text[1] == name]
        assert sorted(texts_of(tmp_path / "apart" / name)) == mine
        assert verify_dataset(tmp_path / "apart" / name, progress=False).ok


def test_datasets_that_do_not_fit_together(dataset: Path, build_config: Config, more: Config, tmp_path: Path) -> None:
    build_dataset(build_config(tokenizer={"kind": "train", "vocabulary": 390}), tmp_path / "other", show_progress=False)
    with pytest.raises(UserError, match="other has another tokenizer than"):
        merge_datasets([dataset, tmp_path / "other"], tmp_path / "out", progress=False)
    renamed = more().sources[0].model_dump() | {"name": "words"}
    build_dataset(more(sources=[renamed]), tmp_path / "same-name", show_progress=False)
    with pytest.raises(UserError, match="another source of the name 'words'"):
        merge_datasets([dataset, tmp_path / "same-name"], tmp_path / "out", progress=False)
    with pytest.raises(UserError, match=r"has only \d+ shards"):
        split_by_shards(dataset, tmp_path / "out", 1000, progress=False)
    with pytest.raises(UserError, match="exists already"):
        merge_datasets([dataset], tmp_path / "other", progress=False)
    assert not (tmp_path / "out").exists()
    assert sorted(os.listdir(tmp_path)) == ["more.jsonl", "other", "same-name", "words"]


def test_verify_with_processes_says_the_same(dataset: Path) -> None:
    (dataset / "train-00001.arrow").unlink()
    data = bytearray((dataset / "train-00003.documents.arrow").read_bytes())
    data[100] ^= 1
    (dataset / "train-00003.documents.arrow").write_bytes(data)
    alone, shared = (verify_dataset(dataset, progress=False, processes=count) for count in (1, 2))
    assert alone == shared
    assert len(alone.problems) == 2


def test_a_tokenizer_is_evaluated_by_source(dataset: Path, more: Config) -> None:
    append_sources(dataset, more(), Means(show_progress=False))
    found = evaluate_tokenizer(dataset, None, 50, progress=False)
    stats = dataset_stats(dataset)
    assert (found["documents"], found["not_exact"]) == (100, 0)
    assert found["sources"]["more"]["documents"] == 50
    assert 0 < found["used"] <= found["vocabulary"]
    whole = evaluate_tokenizer(dataset, None, 10**6, progress=False)
    assert whole["tokens"] <= sum(source["tokens"] for source in stats["sources"].values())
    assert abs(whole["sources"]["more"]["bytes_per_token"] / stats["sources"]["more"]["bytes_per_token"] - 1) < 0.1
