"""Near-duplicates: bands and decisions against datasketch, planted copies at known similarities, and whole builds."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from datasketch.lsh import _optimal_param
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from data_pipeline.build import Means, build_dataset
from data_pipeline.config import BuildConfig
from data_pipeline.dataset import TokenDataset
from data_pipeline.dedup.exact import DROPPED, BucketTask, among, bucket_bits, find_duplicates, rows_within
from data_pipeline.dedup.near import PAIRS, ChainTask, PairTask, drop_later, find_pairs
from data_pipeline.dedup.signatures import BANDS, choose_bands, shingles, sign
from data_pipeline.manifest import SourceInfo
from data_pipeline.rows import Part, save_parts
from tests.support.near_copies import (
    PERMUTATIONS,
    THRESHOLD,
    N,
    altered,
    dropped_by_datasketch,
    dropped_by_us,
    plant,
    similarity,
    words_of,
)


@pytest.fixture(scope="module")
def planted() -> tuple[list[str], dict[int, tuple[int, float]]]:
    return plant((0, 1, 2, 4, 6, 9, 13, 30, 60) * 20)


@pytest.mark.parametrize("permutations", [32, 128])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9])
def test_bands_are_datasketchs(threshold: float, permutations: int) -> None:
    assert choose_bands(threshold, permutations) == _optimal_param(threshold, permutations, 0.5, 0.5)


def test_signatures_estimate_the_similarity(planted: tuple[list[str], dict[int, tuple[int, float]]]) -> None:
    """The share of equal places is binomial around the similarity: 6 standard errors for each of 180 pairs."""
    texts, copies = planted
    signatures = sign([shingles(text, N) for text in texts], PERMUTATIONS)
    for copy, (original, truth) in copies.items():
        error = abs((signatures[copy] == signatures[original]).mean() - truth)
        assert error <= 6 * (max(truth * (1 - truth), 1e-9) / PERMUTATIONS) ** 0.5


def test_planted_copies_against_the_truth_and_datasketch(
    planted: tuple[list[str], dict[int, tuple[int, float]]], tmp_path: Path
) -> None:
    texts, copies = planted
    ours, theirs = dropped_by_us(texts, tmp_path), dropped_by_datasketch(texts)
    assert ours <= set(copies), "only copies are dropped, never an original"
    alike = {copy for copy, (_, truth) in copies.items() if truth >= THRESHOLD}
    surely = {copy for copy, (_, truth) in copies.items() if truth >= THRESHOLD + 0.1}
    unlike = {copy for copy, (_, truth) in copies.items() if truth < THRESHOLD - 0.15}
    assert len(surely) > 40
    assert len(unlike) >= 40
    assert surely <= ours
    assert not unlike & ours
    assert len(ours & alike) / len(alike) > 0.85, "recall"
    assert len(ours & alike) / len(ours) > 0.85, "precision"
    assert len(ours ^ theirs) <= 0.15 * len(ours | theirs), "agreement with datasketch"
    near_border = {copy for copy, (_, truth) in copies.items() if abs(truth - THRESHOLD) < 0.15}
    assert ours ^ theirs <= near_border


def test_the_cut_into_parts_changes_nothing(
    planted: tuple[list[str], dict[int, tuple[int, float]]], tmp_path: Path
) -> None:
    texts, _ = planted
    assert dropped_by_us(texts[:60], tmp_path / "1", 1) == dropped_by_us(texts[:60], tmp_path / "7", 7)


def test_a_chain_keeps_its_first(tmp_path: Path) -> None:
    """Each is like the next, the ends are not alike; and a crowd of equals is one group."""
    source = Random(2)
    words = words_of(source, 200)
    others = words_of(source, 200)
    chain = [" ".join([*others[: 4 * n], *words[4 * n :]]) for n in range(9)]
    assert similarity(chain[0], chain[-1]) < 0.75
    assert similarity(chain[3], chain[4]) > 0.9
    assert dropped_by_us([*chain, "a b c d"], tmp_path / "chain") == set(range(1, 9))
    assert dropped_by_us(["other text here", *["the same text again"] * 50], tmp_path / "crowd") == set(range(2, 51))


@pytest.mark.parametrize("bits", [0, 1, 5])
def test_exact_duplicates_in_any_number_of_buckets(tmp_path: Path, bits: int) -> None:
    source = np.random.default_rng(0)
    digests = source.integers(0, 2**64, (40, 2), dtype=np.uint64)[source.integers(0, 40, 500)]
    parts, first = [], 0
    for number, table in enumerate(np.split(digests, [0, 100, 101, 400])):
        directory = tmp_path / str(number)
        directory.mkdir()
        rows = np.lexsort((table[:, 1], table[:, 0]))
        np.save(directory / "digests.npy", np.stack([table[rows, 0], table[rows, 1], rows.astype(np.uint64)]))
        parts.append(Part(directory, 0, first, len(table)))
        first += len(table)
    save_parts(parts, tmp_path / "parts.json")
    found = []
    for bucket in range(1 << bits):
        find_duplicates(BucketTask(tmp_path / "parts.json", bucket, bits), tmp_path)
        found += np.load(tmp_path / DROPPED).tolist()
    _, firsts = np.unique(digests, axis=0, return_index=True)
    assert sorted(found) == sorted(set(range(500)) - set(firsts.tolist()))


def test_numbers_among_those_of_files(tmp_path: Path) -> None:
    source = np.random.default_rng(1)
    known = [np.unique(source.integers(0, 1000, size)).astype(np.uint64) for size in (0, 1, 30, 300)]
    for number, numbers in enumerate(known):
        np.save(tmp_path / f"{number}.npy", numbers)
    files = [tmp_path / f"{number}.npy" for number in range(len(known))]
    for size in (0, 1, 2, 500):
        numbers = np.unique(source.integers(0, 1000, size)).astype(np.uint64)
        assert among(files, numbers).tolist() == np.isin(numbers, np.concatenate(known)).tolist()
        assert not among([], numbers).any()


def test_a_unit_opens_every_file_once_and_no_two_parts_at_a_time(
    planted: tuple[list[str], dict[int, tuple[int, float]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With files of exact duplicates, whose rows meet nobody."""
    texts = planted[0][:60]
    whole = dropped_by_us(texts, tmp_path / "whole", 5)
    exact = [tmp_path / f"exact-{number}.npy" for number in range(6)]
    gone = sorted(whole)[::2]
    for number, file in enumerate(exact):
        np.save(file, np.array(gone[number :: len(exact)], dtype=np.uint64))
    opened: list[Path] = []
    mapped: list[int] = []
    load = np.load

    def watched(path: Path, *args: Any, **keys: Any) -> Any:
        opened.append(path)
        mapped.append(Path("/proc/self/maps").read_text().count(f"{tmp_path}/whole/"))
        return load(path, *args, **keys)

    monkeypatch.setattr(np, "load", watched)
    task = PairTask(tmp_path / "whole" / "parts.json", exact, 0, 0, 0, THRESHOLD)
    find_pairs(task, tmp_path)
    bands = [path for path in opened if path.name == BANDS]
    assert len(bands) == len(set(bands)) == 5
    assert [path for path in opened if path in exact] == exact
    assert max(mapped) <= 3
    pairs = load(tmp_path / PAIRS)
    assert len(pairs)
    assert not set(pairs.ravel().tolist()) & set(gone)


def test_chains_are_the_connected_components(tmp_path: Path) -> None:
    source = np.random.default_rng(3)
    rows, first = 2000, 70
    pairs = np.sort(source.integers(0, rows, (1100, 2)), axis=1)
    path = np.stack([np.arange(rows - 501, rows - 1), np.arange(rows - 500, rows)], axis=1)[::-1]  # far from its first
    files = [tmp_path / f"{n}.npy" for n in range(3)]
    for file, some in zip(files, [pairs[:400], pairs[400:], path], strict=True):
        np.save(file, (some + first).astype(np.uint64))
    drop_later(ChainTask(files, first, rows), tmp_path)
    every = np.concatenate([pairs, path])
    graph = coo_matrix((np.ones(len(every)), (every[:, 0], every[:, 1])), shape=(rows, rows))
    _, components = connected_components(graph, directed=False)
    _, firsts = np.unique(components, return_index=True)
    later = np.setdiff1d(np.arange(rows), firsts) + first
    assert np.load(tmp_path / DROPPED).tolist() == later.tolist()


def test_memory_does_not_grow_with_the_pairs_nor_with_the_duplicates(tmp_path: Path) -> None:
    """Anonymous memory at its peak, with one million and four million numbers on disk."""
    peaks = []
    for scale in (1, 4):
        work = tmp_path / str(scale)
        work.mkdir()
        rows = scale << 20
        numbers = np.arange(rows, dtype=np.uint64)
        np.save(work / "pairs.npy", np.stack([numbers // 2, numbers], axis=1))
        np.save(work / "exact.npy", numbers)
        tracemalloc.start()
        drop_later(ChainTask([work / "pairs.npy"], 0, rows), work)
        chains = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        within = rows_within([work / "exact.npy"], Part(work, 0, 1000, 50))
        assert within.tolist() == list(range(50))
        peaks.append((chains, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
        assert len(np.load(work / DROPPED, mmap_mode="r")) == rows - 1
    assert peaks[1][0] < 1.1 * peaks[0][0]
    assert peaks[1][1] < 1 << 20


def test_buckets_bound_the_memory() -> None:
    assert [bucket_bits(rows, 100) for rows in (0, 1, 100, 101, 200, 201, 1000)] == [0, 0, 0, 1, 1, 2, 4]


@pytest.fixture
def maker(build_config: Callable[..., BuildConfig], built: Path) -> tuple[Callable[..., BuildConfig], Path]:
    """Configurations, and a dataset whose tokenizer serves."""
    return build_config, built


def build(
    maker: tuple[Callable[..., BuildConfig], Path], tmp_path: Path, texts: list[str], stages: object, name: str = "out"
) -> SourceInfo:
    build_config, tokenizer = maker
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    source = {"kind": "jsonl", "name": "t", "licence": "x", "glob": f"{tmp_path}/texts.jsonl"}
    config = build_config(sources=[source], tokenizer={"kind": "existing", "path": str(tokenizer)}, stages=stages)
    means = Means(processes=1, part_bytes=3000 if name == "parts" else None, show_progress=False)
    return build_dataset(config, tmp_path / name, means=means).sources[0]


def test_a_build_drops_near_duplicates_and_counts_them(
    maker: tuple[Callable[..., BuildConfig], Path], tmp_path: Path
) -> None:
    source = Random(8)
    originals = [words_of(source) for _ in range(30)]
    texts = [" ".join(words) for words in originals]
    texts += [" ".join(altered(words, 1, source)) for words in originals[:12]] + texts[:5]
    stages = {"near_duplicates": {"n": N}}
    found = build(maker, tmp_path, texts, stages)
    assert (found.documents, found.duplicates, found.near_duplicates) == (30, 5, 12)
    assert build(maker, tmp_path, texts, stages, "parts") == found
    assert (tmp_path / "parts/train-00000.arrow").read_bytes() == (tmp_path / "out/train-00000.arrow").read_bytes()
    kept = build(maker, tmp_path, texts, {"exact_duplicates": False}, "all")
    assert (kept.documents, kept.duplicates, kept.near_duplicates) == (47, 0, 0)


def test_a_build_drops_what_evaluation_sets_hold(
    maker: tuple[Callable[..., BuildConfig], Path], tmp_path: Path
) -> None:
    source = Random(9)
    texts = [" ".join(words_of(source)) for _ in range(30)]
    question = " ".join(texts[7].split()[40:53])
    close = " ".join(texts[8].split()[40:52])
    (tmp_path / "evaluation.jsonl").write_text(
        "\n".join(json.dumps({"q": q}) for q in (question.upper() + "?", close, "x"))
    )
    against = {"kind": "jsonl", "name": "e", "licence": "x", "glob": f"{tmp_path}/evaluation.jsonl", "field": "q"}
    found = build(maker, tmp_path, texts, {"decontaminate": {"against": [against]}})
    assert (found.documents, found.filtered) == (29, {"contaminated": 1})
    found = build(maker, tmp_path, texts, {"decontaminate": {"against": [against], "n": 12}}, "twelve")
    assert (found.documents, found.filtered) == (28, {"contaminated": 2})


def test_every_stage_at_once_is_counted(maker: tuple[Callable[..., BuildConfig], Path], tmp_path: Path) -> None:
    prose = "The quick brown foxes jump over the lazy dogs and that have fun with number"
    texts = [
        f"{prose} {n}. {' '.join(words_of(Random(n), 60))} be with the end.\nMail {n}@example.org" for n in range(40)
    ]
    texts[3] = texts[3].replace("number", "nume\u0301ro")
    texts += ["too short", "Das ist ein deutscher Text über einen Garten mit vielen Blumen und Bäumen. " * 3]
    stages = {
        "normalise": "NFC", "scrub": {}, "c4": {"min_sentences": 0},
        "quality": {"min_words": 10, "min_word_length": 1, "min_stop_words": 0},
        "repetition": {"top_n_grams": {}, "repeated_n_grams": {}}, "language": {"keep": ["en"]},
    }  # fmt: skip
    found = build(maker, tmp_path, texts, stages)
    assert found.documents == 40
    assert found.emails == 40
    assert (found.normalised, found.lines_cut) == (1, 40)
    assert found.languages == {"en": 40}
    for shard in TokenDataset(tmp_path / "out").shards:
        assert set(shard.document_table().column("language").to_pylist()) == {"en"}
    assert found.filtered == {"too_short": 1, "language": 1}
    assert found.documents + sum(found.filtered.values()) == len(texts)


def test_counts_do_not_end_at_sixteen_bits(maker: tuple[Callable[..., BuildConfig], Path], tmp_path: Path) -> None:
    found = build(maker, tmp_path, ["a@b.org " * 70_000, "nothing"], {"scrub": {}})
    assert (found.documents, found.emails, found.addresses) == (2, 70_000, 0)
