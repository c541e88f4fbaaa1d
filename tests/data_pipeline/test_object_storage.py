"""Datasets in an object store: the same samples, a cache that stays small, stores that fail, processes that die."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from data_pipeline.build import build_dataset
from data_pipeline.config import BuildConfig, DataConfig
from data_pipeline.dataset import SampleReader, TokenDataset
from data_pipeline.loader import Loader
from data_pipeline.manifest import DatasetManifest
from data_pipeline.packing import PiecePacking
from data_pipeline.remote.block_cache import BlockCache
from data_pipeline.remote.folder import Folder
from data_pipeline.shards import DamagedBatch
from data_pipeline.windows import write_index
from runtime.errors import UserError
from runtime.files import digest_bytes
from tests.support.object_store import Server, s3_server

LENGTH, BATCH = 48, 64
BLOCK = 2 * BATCH
PLAIN, PACKED = "s3://tokens/some/plain", "s3://tokens/some/packed"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, build_config: Callable[..., BuildConfig]) -> Path:
    """A dataset of many small record batches, plain and packed."""
    folder = tmp_path_factory.mktemp("local")
    for compression in ("none", "lz4"):
        config = build_config(batch_tokens=BATCH, shard_tokens=6000, compression=compression)
        build_dataset(config, folder / {"none": "plain", "lz4": "packed"}[compression], show_progress=False)
    return folder


@pytest.fixture(scope="module")
def server(local: Path) -> Iterator[Server]:
    """Both in an S3 server."""
    with s3_server("tokens") as server:
        for name in ("plain", "packed"):
            server.put(local / name, f"tokens/some/{name}")
        yield server


@pytest.fixture
def remote(server: Server, tmp_path: Path) -> dict[str, Any]:
    """Settings that read it through a fresh cache."""
    values = server.storage.model_dump()
    return {**values, "cache": str(tmp_path / "cache"), "cache_bytes": 1 << 20, "patience": 0}


def open_reader(url: str, remote: dict[str, Any], **changes: Any) -> SampleReader:
    config = DataConfig.parse({"path": url, "remote": {**remote, **changes}}, "recipe")
    return SampleReader(config, LENGTH, seed=0)


def stored(cache: str | Path) -> list[Path]:
    return [path for path in (Path(cache) / "blocks").glob("*/*") if path.is_file()]


def finished(cache: str | Path) -> set[str]:
    return {path.name for path in stored(cache) if not path.name.startswith(".")}


def tables(reader: SampleReader) -> set[str]:
    """Blocks of the tables of shards, which a node reads once."""
    return {file.digest for manifest in reader.manifests for file in manifest.tables}


@pytest.mark.parametrize("name", ["plain", "packed"])
def test_the_same_samples_with_one_request_a_batch(
    local: Path, remote: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, read = [], Folder._read
    monkeypatch.setattr(Folder, "_read", lambda self, file, *rest: requests.append(file) or read(self, file, *rest))
    near = SampleReader(DataConfig(path=str(local / name)), LENGTH, seed=0)
    far = open_reader(f"s3://tokens/some/{name}", remote)
    windows = near.datasets[0].windows(LENGTH)
    assert far.digest == near.digest
    assert np.array_equal(far.batch(range(windows)), near.batch(range(windows)))
    shards = far.manifests[0].splits["train"].shards
    digests = {digest for shard in shards for digest in shard.batches}
    assert len(digests) // 2 < len(requests) <= len(digests) + len(shards)  # files' ends hold some batches here
    kept = finished(remote["cache"]) - tables(far)
    assert len(digests) - 1 <= len(kept) <= len(digests)  # the last may hold no window
    assert kept <= digests
    requests.clear()
    again = open_reader(f"s3://tokens/some/{name}", remote)
    assert np.array_equal(again.batch(range(20)), near.batch(range(20)))
    assert not requests, "all of it stands in the cache"
    ends, sources = far.datasets[0].shards[0].documents()
    assert ends[-1] == shards[0].tokens
    assert sources.max() == 0
    text = "as before"
    assert far.datasets[0].open_tokenizer().encode(text) == near.datasets[0].open_tokenizer().encode(text)
    far.datasets[0].check_files()


def test_the_cache_keeps_its_bound_and_forgets_the_oldest(local: Path, remote: dict[str, Any]) -> None:
    limit = 64 * BLOCK
    near, far = SampleReader(DataConfig(path=str(local / "plain")), LENGTH, 0), open_reader(
        PLAIN, remote, cache_bytes=limit
    )  # fmt: skip
    far.datasets[0]._place._files.views.clear()
    most = 0
    for i in range(300):
        assert np.array_equal(far.tokens(i), near.tokens(i))
        if i % 10 == 0:
            most = max(most, sum(path.stat().st_size for path in stored(remote["cache"])))
    assert 0.8 * limit < most <= limit
    assert most < 2 * near.datasets[0].tokens


def test_what_was_used_of_late_stays(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 1000)
    blocks = {digest_bytes(data): data for data in (bytes([n]) * 100 for n in range(12))}
    digests = list(blocks)
    for number, digest in enumerate(digests):
        assert bytes(cache.view(digest, lambda digest=digest: blocks[digest])) == blocks[digest]
        os.utime(tmp_path / "blocks" / digest[:2] / digest, ns=(number, number))
        if number == 7:
            assert bytes(cache.view(digests[0], _never)) == blocks[digests[0]]
    assert cache.holds(digests[0])
    assert cache.holds(digests[11])
    assert not cache.holds(digests[1])


def _never() -> bytes:
    raise AssertionError("it is there")


READ = """
import json, sys
import numpy as np
from data_pipeline.config import DataConfig
from data_pipeline.dataset import SampleReader
from runtime.files import digest_bytes
config, first = json.loads(sys.argv[1]), int(sys.argv[2])
reader = SampleReader(DataConfig.parse(config, "recipe"), 48, seed=0)
print("ready", flush=True)
while first < 0:
    for i in range(10**6):
        reader.prefetch(range(i, i + 64))
        reader.tokens(i)
for i in range(first, first + 100):
    reader.prefetch(range(i, i + 16))
    print(digest_bytes(reader.tokens(i).tobytes()))
"""


def start(remote: dict[str, Any], first: int) -> "subprocess.Popen[str]":
    config = {"path": PLAIN, "remote": remote}
    command = [sys.executable, "-c", READ, json.dumps(config), str(first)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_share_a_cache_and_one_is_killed(local: Path, remote: dict[str, Any]) -> None:
    """The killed one leaves no lock, no half-written block for good, and nothing in shared memory."""
    remote = {**remote, "cache_bytes": 64 * BLOCK}
    victim = start(remote, -1)
    assert victim.stdout is not None
    victim.stdout.readline()
    others = [start(remote, first) for first in (0, 400)]
    for process in others:
        assert process.stdout is not None
        process.stdout.readline()
    assert "/dev/shm" not in Path(f"/proc/{victim.pid}/maps").read_text()
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    near = SampleReader(DataConfig(path=str(local / "plain")), LENGTH, 0)
    for process, first in zip(others, (0, 400), strict=True):
        assert process.stdout is not None
        with process.stdout:
            out = process.stdout.read()  # the rest: the first line was read so too
        assert process.wait() == 0
        assert out.split() == [digest_bytes(near.tokens(i).tobytes()) for i in range(first, first + 100)]
    assert sum(path.stat().st_size for path in stored(remote["cache"])) <= 64 * BLOCK


def test_what_a_killed_process_left_half_written_goes_with_the_next_room(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 1000)
    left = tmp_path / "blocks" / "00" / ".00ff"
    left.write_bytes(b"x" * 500)
    (tmp_path / "usage").write_text("500")
    for data in (bytes([n]) * 100 for n in range(12)):
        cache.view(digest_bytes(data), lambda data=data: data)
    assert not left.exists()
    assert int((tmp_path / "usage").read_text()) >= sum(path.stat().st_size for path in stored(tmp_path))


def test_prefetch_fills_the_cache_before_anyone_reads(remote: dict[str, Any]) -> None:
    far = open_reader(PLAIN, remote)
    wanted = {
        far.datasets[0].shards[shard].info.batches[batch]
        for i in range(30)
        for shard, batch in far.datasets[0].batches(far.locate(i)[2] * LENGTH, LENGTH)
    }
    for _ in range(2):  # what had to make room is fetched anew when it is wanted again
        for path in stored(remote["cache"]):
            path.unlink()
        deadline = time.monotonic() + 30
        while (found := finished(remote["cache"])) != wanted and time.monotonic() < deadline:
            far.prefetch([])
            far.prefetch(range(30))
            time.sleep(0.01)
        assert found == wanted


def test_prefetch_ends_with_the_plan(remote: dict[str, Any]) -> None:
    far = SampleReader(DataConfig.parse({"path": PLAIN, "max_epochs": 1, "remote": remote}, "recipe"), LENGTH, seed=0)
    end = far.windows[0]
    assert far.plan.end == end
    far.prefetch(range(end - 2, end + 64))
    with pytest.raises(UserError, match=r"data\.max_epochs: no source is left"):
        far.tokens(end)


@pytest.mark.parametrize("packing", ["document", "best_fit"])
def test_windows_of_documents_are_those_on_disk(
    local: Path, server: Server, remote: dict[str, Any], tmp_path: Path, packing: PiecePacking
) -> None:
    """Computed at the start, and from an index that is stored beside the shards; what is foretold is fetched."""
    copy = Path(shutil.copytree(local / "plain", tmp_path / "copy"))
    near = SampleReader(DataConfig(path=str(copy), packing=packing), LENGTH, seed=0)
    count = near.windows[0]
    assert count > near.datasets[0].tokens // LENGTH
    config = DataConfig.parse({"path": PLAIN, "packing": packing, "remote": remote}, "recipe")
    computed = SampleReader(config, LENGTH, seed=0)
    assert computed.digest == near.digest
    computed.prefetch(range(count))
    assert all(np.array_equal(computed.tokens(i), near.tokens(i)) for i in range(count))
    path, _ = write_index([TokenDataset(copy)], LENGTH, packing, progress=False)
    index = [path, copy / f"train-{packing}-{LENGTH}.windows.arrow"]
    server.put(copy, "tokens/some/indexed")
    stored = SampleReader(config.model_copy(update={"path": "s3://tokens/some/indexed"}), LENGTH, seed=0)
    assert all(np.array_equal(stored.tokens(i), near.tokens(i)) for i in range(count))
    assert stored.digest == near.digest
    server.write(f"tokens/some/indexed/{index[1].name}", index[1].read_bytes()[:-1] + b"?")
    remote["cache"] = str(tmp_path / "fresh")
    config = DataConfig.parse({"path": "s3://tokens/some/indexed", "packing": packing, "remote": remote}, "recipe")
    with pytest.raises(UserError, match=rf"indexed/{index[1].name} is damaged"):
        SampleReader(config, LENGTH, seed=0).tokens(0)
    server.write(f"tokens/some/indexed/{path.name}", b"{")
    with pytest.raises(UserError, match=rf"indexed/{path.name} cannot be read as JSON"):
        SampleReader(config, LENGTH, seed=0)


def test_a_store_that_goes_away_is_told_and_waited_for(
    server: Server, remote: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.logs.log.propagate", True)
    impatient, patient = open_reader(PLAIN, remote), open_reader(PLAIN, remote, patience=60)
    server.stop()
    try:
        with pytest.raises(UserError, match=r"s3://tokens/some/plain/train-0000\d\.arrow cannot be read .*tried") as e:
            impatient.tokens(0)
        assert "\n" not in str(e.value)
        assert finished(remote["cache"]) == tables(patient)
        with Loader(patient.tokens, 0, 1) as loader:
            while "again in" not in caplog.text:
                time.sleep(0.01)
            time.sleep(0.2)
            server.start()
            assert len(next(loader)) == LENGTH
    finally:
        server.start()


def test_a_slow_store_shows_as_waiting(remote: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    read = Folder._read
    monkeypatch.setattr(Folder, "_read", lambda self, *rest: time.sleep(0.2) or read(self, *rest))
    with Loader(open_reader(PLAIN, remote).tokens, 0, 1) as loader:
        next(loader)
        assert loader.wait_seconds > 0.2


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def problem(url: str, remote: dict[str, Any], truth: Any) -> str:
    """What reading sample 0 says, or nothing if it is `truth`."""
    try:
        return "" if np.array_equal(open_reader(url, remote).tokens(0), truth) else "wrong tokens"
    except UserError as error:
        return str(error)


def test_damage_in_the_store_is_named_and_damage_in_the_cache_is_mended(
    server: Server, remote: dict[str, Any], local: Path
) -> None:
    server.put(local / "plain", "tokens/bad")
    far = open_reader("s3://tokens/bad", remote)
    truth = far.tokens(0)
    shard, number = next(far.datasets[0].batches(far.locate(0)[2] * LENGTH, LENGTH))
    info = far.manifests[0].splits["train"].shards[shard]
    name, block = f"tokens/bad/{info.file.name}", next(
        path for path in stored(remote["cache"]) if path.name == info.batches[number]
    )  # fmt: skip
    good = block.read_bytes()
    for damage in (flipped(good, 17), b"", good[:50]):
        block.write_bytes(damage)
        assert np.array_equal(open_reader("s3://tokens/bad", remote).tokens(0), truth)
        assert block.read_bytes() == good
    block.unlink()
    whole = server.read(name)
    server.write(name, flipped(whole, whole.index(good) + 17))
    where = rf"s3://tokens/bad/{info.file.name}"
    with pytest.raises(DamagedBatch, match=f"{where}: record batch {number} is damaged"):
        open_reader("s3://tokens/bad", remote).tokens(0)
    source = Random(0)
    for _ in range(8):  # of the footer too: refused, or another batch's matter
        server.write(name, flipped(whole, source.randrange(len(whole) - 2000, len(whole))))
        assert re.search(f"^$|{info.file.name}: record batch", problem("s3://tokens/bad", remote, truth))
        block.unlink(missing_ok=True)
    server.write(name, whole[:-1])
    with pytest.raises(UserError, match=f"{where} is {len(whole) - 1} bytes long, not {len(whole)}") as caught:
        open_reader("s3://tokens/bad", remote).tokens(0)
    assert not isinstance(caught.value, DamagedBatch), "a whole file is no batch to leave out"
    with pytest.raises(UserError, match=f"{where} is {len(whole) - 1} bytes long"):
        far.datasets[0].check_files()
    server.remove(name)
    with pytest.raises(UserError, match=f"{where} does not exist"):
        open_reader("s3://tokens/bad", remote).tokens(0)
    with pytest.raises(UserError, match=f"{where} does not exist"):
        far.datasets[0].check_files()
    server.write("tokens/bad/manifest.json", b'{"version": 1')
    with pytest.raises(UserError, match=r"s3://tokens/bad/manifest\.json cannot be read as JSON"):
        open_reader("s3://tokens/bad", remote)


def test_a_damaged_table_of_shards(server: Server, remote: dict[str, Any], local: Path) -> None:
    """In the store it is refused with its name; in the cache it is fetched anew."""
    server.put(local / "plain", "tokens/tables")
    url = "s3://tokens/tables"
    truth = open_reader(url, remote).tokens(0)
    table = DatasetManifest.load(local / "plain").splits["train"].shards.file
    (block,) = (path for path in stored(remote["cache"]) if path.name == table.digest)
    good = block.read_bytes()
    for damage in (flipped(good, 17), b"", good[:50]):
        block.write_bytes(damage)
        assert np.array_equal(open_reader(url, remote).tokens(0), truth)
        assert block.read_bytes() == good
    name = f"tokens/tables/{table.name}"
    for damage in (flipped(good, 17), b"", good[:50], good + b"x"):
        server.write(name, damage)
        block.unlink(missing_ok=True)
        with pytest.raises(UserError, match=f"{url}/{table.name} is damaged") as caught:
            open_reader(url, remote)
        assert "\n" not in str(caught.value)
    server.remove(name)
    with pytest.raises(UserError, match=f"{url}/{table.name} does not exist"):
        open_reader(url, remote)


def test_settings_that_cannot_be(remote: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for url, changes, message in (
        ("s3://tokens/nowhere", {}, r"s3://tokens/nowhere/manifest\.json does not exist"),
        ("s3://nobucket/data", {}, r"s3://nobucket/data/manifest\.json does not exist"),
        ("s3://", {}, "names no bucket"),
        (PLAIN, {"cache": str(tmp_path / "file")}, r"data\.remote\.cache: .*file cannot be used"),
        (PLAIN, {"cache_bytes": 63 * BLOCK}, rf"cache_bytes=8064 is less than 64 record batches.* {64 * BLOCK}"),
        (PLAIN, {"endpoint": "http://127.0.0.1:9"}, r"manifest\.json cannot be read .*data\.remote"),
        (PLAIN, {"cache_bytes": -1}, r"remote\.cache_bytes"),
        (PLAIN, {"secret": "x"}, r"unknown key"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            open_reader(url, remote, **changes)
        assert "\n" not in str(caught.value)


def test_a_disk_that_takes_no_block_costs_only_speed(
    local: Path, remote: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    far, near = open_reader(PLAIN, remote), SampleReader(DataConfig(path=str(local / "plain")), LENGTH, 0)
    monkeypatch.setattr("data_pipeline.remote.block_cache.os.replace", full)
    assert np.array_equal(far.batch(range(20)), near.batch(range(20)))
    assert finished(remote["cache"]) == tables(far)


def test_manifests_of_both_places_are_one(local: Path, remote: dict[str, Any]) -> None:
    far = TokenDataset(PACKED, "validation", DataConfig.parse({"remote": remote}, "r").remote)
    assert far.manifest == DatasetManifest.load(local / "packed")
    assert far.path == PACKED
