"""`gs://` against an emulator of Google's storage: the same samples, files found by pattern, what is missing named."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.build import build_dataset
from data_pipeline.config import BuildConfig, DataConfig
from data_pipeline.dataset import SampleReader
from data_pipeline.sources.config import Storage
from data_pipeline.sources.storage import find_files, open_filesystem
from runtime.errors import UserError
from tests.support.object_store import gcs_server


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    with gcs_server("tokens") as storage:
        yield storage


def put(storage: Storage, name: str, data: bytes) -> None:
    with open_filesystem("gs", storage).open_output_stream(name, compression=None) as out:
        out.write(data)


def test_a_build_reads_files_by_pattern(storage: Storage, built: Path, tmp_path: Path) -> None:
    for name in ("a.txt", "deep/b.txt", "deep/.hidden.txt", "deep/c.md"):
        put(storage, f"tokens/texts/{name}", f"the text of {name}".encode())

    def found(pattern: str) -> list[str]:
        return [file.path for file in find_files([pattern], storage, lambda name: name.endswith(".txt"))]

    both = ["gs://tokens/texts/a.txt", "gs://tokens/texts/deep/b.txt"]
    assert found("gs://tokens/texts/**/*.txt") == found("gs://tokens/texts/") == both
    assert found("gs://tokens/texts/a.txt") == found("gs://tokens/texts/?.txt") == both[:1]
    assert found("gs://tokens/nothing") == []
    with pytest.raises(UserError, match="gs:///x names no bucket"):
        found("gs:///x")
    source = {"kind": "text", "name": "t", "licence": "x", "glob": "gs://tokens/texts/**/*.txt"}
    values = {
        "sources": [{**source, "storage": storage.model_dump()}],
        "tokenizer": {"kind": "existing", "path": str(built)},
    }
    manifest = build_dataset(BuildConfig.parse(values, "build"), tmp_path / "out", show_progress=False)
    assert (manifest.sources[0].files, manifest.sources[0].documents) == (2, 2)


def test_samples_are_those_on_disk(storage: Storage, built: Path, tmp_path: Path) -> None:
    for file in built.iterdir():
        put(storage, f"tokens/data/{file.name}", file.read_bytes())
    remote = {**storage.model_dump(), "cache": str(tmp_path / "cache"), "patience": 0}
    config = DataConfig.parse({"path": "gs://tokens/data", "remote": remote}, "recipe")
    near, far = SampleReader(DataConfig(path=str(built)), 48, seed=0), SampleReader(config, 48, seed=0)
    assert far.digest == near.digest
    assert np.array_equal(far.batch(range(near.windows[0])), near.batch(range(near.windows[0])))
    far.datasets[0].check_files()
    shard = far.manifests[0].splits["train"].shards[0].file.name
    open_filesystem("gs", storage).delete_file(f"tokens/data/{shard}")
    with pytest.raises(UserError, match=rf"gs://tokens/data/{shard} does not exist"):
        far.datasets[0].check_files()
