"""The table of shards: what it holds, how damage of it is met, and datasets of the first format."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline import shards
from data_pipeline.append import append_sources
from data_pipeline.build import Means
from data_pipeline.combine import merge_datasets, split_by_shards
from data_pipeline.config import BuildConfig, DataConfig
from data_pipeline.dataset import SampleReader, TokenDataset
from data_pipeline.manifest import DatasetManifest
from data_pipeline.shard_table import COLUMNS, ShardTable
from data_pipeline.verify import verify_dataset
from data_pipeline.windows import write_index
from runtime.errors import UserError
from runtime.files import digest_bytes, write_json


def canonical(values: Any) -> str:
    return digest_bytes(json.dumps(values, sort_keys=True, separators=(",", ":")).encode())


def make_old(dataset: Path) -> None:
    """Turn a dataset into one of the first format, whose manifest held the shards."""
    manifest = DatasetManifest.load(dataset)
    values = {**manifest.model_dump(mode="json"), "version": 1}
    for name, split in manifest.splits.items():
        values["splits"][name]["shards"] = [shard.model_dump(mode="json") for shard in split.shards]
    for file in manifest.tables:
        (dataset / file.name).unlink()
    write_json(dataset / "manifest.json", {**values, "digest": canonical(values)})


def rewrite(dataset: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the columns of the train split's table, and make all digests fit again, as an enemy would."""
    manifest = DatasetManifest.load(dataset)
    old = manifest.splits["train"].shards
    columns = pa.ipc.open_file(old.data).get_batch(0).to_pydict()
    change(columns)
    out = pa.BufferOutputStream()
    batch = pa.RecordBatch.from_pydict(columns, schema=pa.schema([f for f in COLUMNS if f.name in columns]))
    with pa.ipc.new_file(out, batch.schema) as writer:
        writer.write_batch(batch)
    data = out.getvalue().to_pybytes()
    (dataset / f"{digest_bytes(data)}.shards.arrow").write_bytes(data)
    values = json.loads((dataset / "manifest.json").read_text())
    del values["digest"]
    digest = digest_bytes(data)
    values["splits"]["train"]["shards"] = {"name": f"{digest}.shards.arrow", "bytes": len(data), "digest": digest}
    write_json(dataset / "manifest.json", {**values, "digest": canonical(values)})


def table_file(dataset: Path) -> Path:
    return dataset / DatasetManifest.load(dataset).splits["train"].shards.file.name


def test_it_gives_back_its_shards(built: Path) -> None:
    table = DatasetManifest.load(built).splits["train"].shards
    infos = list(table)
    assert ShardTable.of(infos) == table
    assert ShardTable.of(infos).file == table.file
    assert ShardTable.of(infos[1:]) != table
    assert [info.tokens for info in infos] == table.tokens.tolist() == np.diff(table.starts).tolist()
    assert [info.documents for info in infos] == table.documents.tolist()
    assert [len(info.batches) for info in infos] == np.diff(table.first_batch).tolist()
    assert [(info.file.name, info.file.bytes) for info in infos] == list(table.token_files())
    assert [json.loads(line) for line in table.batch_digests()] == [info.batches for info in infos]
    assert table[-1] == infos[-1]
    with pytest.raises(IndexError):
        table[len(table)]


def test_no_shards() -> None:
    table = ShardTable.of([])
    assert (len(table), list(table), list(table.batch_digests())) == (0, [], [])
    assert table.starts.tolist() == [0]


def test_a_stream_is_known_by_the_digest_it_always_had(built: Path) -> None:
    """Old runs and indices of windows hold it."""
    manifest = DatasetManifest.load(built)
    streams = {name: [shard.batches for shard in split.shards] for name, split in manifest.splits.items()}
    assert manifest.stream_digest == canonical([manifest.tokenizer.file.digest, streams])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda file: file.unlink(), "cannot be read"),
    "cut short": (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes long, not"),
    "longer": (lambda file: file.write_bytes(file.read_bytes() + b"\0"), "bytes long, not"),
    "empty": (lambda file: file.write_bytes(b""), "is 0 bytes long"),
    "all zeros": (lambda file: file.write_bytes(bytes(file.stat().st_size)), "is damaged"),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_table_is_refused(dataset: Path, damage: str) -> None:
    spoil, message = DAMAGE[damage]
    file = table_file(dataset)
    spoil(file)
    for use in (DatasetManifest.load, TokenDataset, lambda path: verify_dataset(path, progress=False)):
        with pytest.raises(UserError, match=message) as caught:
            use(dataset)
        assert str(file) in str(caught.value)
        assert "restore the file" in str(caught.value)


def test_every_flip_in_a_table_is_refused(dataset: Path) -> None:
    file, source = table_file(dataset), Random(7)
    good = file.read_bytes()
    for _ in range(100):
        data = bytearray(good)
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        file.write_bytes(data)
        with pytest.raises(UserError, match=f"{file.name} is damaged"):
            DatasetManifest.load(dataset)


def test_swapped_tables_are_refused(dataset: Path) -> None:
    manifest = DatasetManifest.load(dataset)
    train, validation = (dataset / manifest.splits[split].shards.file.name for split in ("train", "validation"))
    good = train.read_bytes()
    train.write_bytes(validation.read_bytes())
    validation.write_bytes(good)
    with pytest.raises(UserError, match=r"bytes long, not|is damaged"):
        DatasetManifest.load(dataset)


@pytest.mark.parametrize("column", ["file", "offsets"])
@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "a/b.arrow", "..", ".hidden", "a\nb", "a\n", ""])
def test_a_table_cannot_point_outside(dataset: Path, column: str, name: str) -> None:
    rewrite(dataset, lambda columns: columns[column].__setitem__(0, name))
    with pytest.raises(UserError, match=f"a name in its column '{column}' is none of a file beside it"):
        DatasetManifest.load(dataset)


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "a/b.arrow", "..", ".hidden", "a\nb"])
def test_a_manifest_cannot_point_outside(dataset: Path, name: str) -> None:
    values = json.loads((dataset / "manifest.json").read_text())
    del values["digest"]
    values["splits"]["train"]["shards"]["name"] = name
    write_json(dataset / "manifest.json", {**values, "digest": canonical(values)})
    with pytest.raises(UserError, match="name"):
        DatasetManifest.load(dataset)


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a token more": (lambda c: c["tokens"].__setitem__(0, c["tokens"][0] + 1), "do not add up"),
    "a document more": (lambda c: c["documents"].__setitem__(0, c["documents"][0] + 1), "do not add up"),
    "a shard less": (lambda c: [column.pop() for column in c.values()], "do not add up"),
    "a digest less": (lambda c: c["batches"][1].pop(), "train-00001.arrow: .* batch digests do not cover"),
    "nothing in it": (lambda c: c["tokens"].__setitem__(0, 0), "a shard with 0 tokens"),
    "less than nothing": (lambda c: c["documents"].__setitem__(0, -1), "a shard with -1 documents"),
    "negative bytes": (lambda c: c["file_bytes"].__setitem__(0, -1), "a shard with -1 file_bytes"),
    "a column less": (lambda c: c.pop("offsets_digest"), "is no table of shards .*its columns are"),
}


@pytest.mark.parametrize("change", list(HOSTILE))
def test_a_table_must_mean_something(dataset: Path, change: str) -> None:
    spoil, message = HOSTILE[change]
    rewrite(dataset, spoil)
    with pytest.raises(UserError, match=message):
        DatasetManifest.load(dataset)


def test_a_table_that_is_no_arrow_file() -> None:
    for data in (b"", b"ARROW1", b"x" * 1000):
        with pytest.raises(UserError, match="here is no table of shards"):
            ShardTable(data, "here")


def samples(dataset: Path) -> tuple[str, list[list[int]]]:
    reader = SampleReader(DataConfig(path=str(dataset)), 64, seed=3)
    return reader.digest, [reader.tokens(i).tolist() for i in range(40)]


def test_datasets_of_the_first_format(dataset: Path, tmp_path: Path) -> None:
    """They give the same samples to the same runs; verify, pack, split and merge take them, and make new ones."""
    good, new = samples(dataset), DatasetManifest.load(dataset)
    make_old(dataset)
    old = DatasetManifest.load(dataset)
    assert samples(dataset) == good
    assert old == new
    assert verify_dataset(dataset, progress=False).ok
    write_index([TokenDataset(dataset)], 64, "best_fit", progress=False)
    assert SampleReader(DataConfig(path=str(dataset), packing="best_fit"), 64, seed=3).tokens(0).size
    parts = split_by_shards(dataset, tmp_path / "parts", 2, progress=False)
    merged = merge_datasets(sorted((tmp_path / "parts").iterdir()), tmp_path / "merged", progress=False)
    assert json.loads((tmp_path / "merged" / "manifest.json").read_text())["version"] == 2
    assert sum(part.splits["train"].tokens for part in parts) == merged.splits["train"].tokens
    assert merged.stream_digest == new.stream_digest
    assert samples(tmp_path / "merged")[1] == good[1]


def test_an_append_leaves_the_old_table_to_those_who_read_it(
    dataset: Path, tmp_path: Path, build_config: Callable[..., BuildConfig]
) -> None:
    """Also one to a dataset of the first format; an old manifest goes on to open what it describes."""
    old_manifest, before = (dataset / "manifest.json").read_bytes(), DatasetManifest.load(dataset)
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    make_old(copy)
    (tmp_path / "more.jsonl").write_text("".join(f'{{"text": "one more text, number {n}"}}\n' for n in range(50)))
    source = {"kind": "jsonl", "name": "more", "licence": "MIT", "glob": f"{tmp_path}/more.jsonl"}
    config = build_config(sources=[source], tokenizer={"kind": "existing", "path": str(dataset)})
    after = append_sources(dataset, config, Means(show_progress=False))
    assert append_sources(copy, config, Means(show_progress=False)) == after
    assert DatasetManifest.load(copy) == DatasetManifest.load(dataset) == after
    assert list(after.splits["train"].shards)[: len(before.splits["train"].shards)] == list(
        before.splits["train"].shards
    )
    assert verify_dataset(dataset, progress=False).ok
    assert verify_dataset(copy, progress=False).ok
    (dataset / "manifest.json").write_bytes(old_manifest)
    assert DatasetManifest.load(dataset) == before


def test_damage_in_the_first_format(dataset: Path) -> None:
    make_old(dataset)
    file = dataset / "manifest.json"
    values = json.loads(file.read_text())
    del values["digest"]
    for change, message in (
        (lambda s: s["shards"][0]["file"].update(name="../x"), "name"),
        (lambda s: s["shards"][0]["batches"].pop(), "do not cover"),
        (lambda s: s.update(tokens=1), "do not add up"),
        (lambda s: s.pop("shards"), "splits.train: shards"),
        (lambda s: s.update(shards=5), "splits.train: shards"),
    ):
        wrong = json.loads(json.dumps(values))
        change(wrong["splits"]["train"])
        write_json(file, {**wrong, "digest": canonical(wrong)})
        with pytest.raises(UserError, match=message):
            DatasetManifest.load(dataset)
    write_json(file, {**values, "digest": "0" * 32})
    with pytest.raises(UserError, match="edited or damaged"):
        DatasetManifest.load(dataset)


def test_shards_are_let_go_and_checked_once(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More shards than may be open: all are read, few are held, and no batch is compared twice."""
    compared: list[int] = []
    digest = shards.digest_bytes
    monkeypatch.setattr(shards, "_READERS_KEPT", 2)
    monkeypatch.setattr(shards, "digest_bytes", lambda data: compared.append(1) or digest(data))
    dataset = TokenDataset(built)
    assert len(dataset.shards) > 2
    count = dataset.windows(64)
    first, again = ([dataset.window(w, 64).copy() for w in range(count)] for _ in range(2))
    assert np.array_equal(first, again)
    assert len(dataset.shards._readers) == 2
    assert len(compared) <= int(dataset.shards.table.first_batch[-1])


def test_open_shards_cost_no_open_files(built: Path) -> None:
    dataset = TokenDataset(built)
    before = len(list(Path("/proc/self/fd").iterdir()))
    views = [shard.batch(0) for shard in dataset.shards]
    assert len(views) > 2
    assert len(list(Path("/proc/self/fd").iterdir())) == before
