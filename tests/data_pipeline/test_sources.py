"""Every kind of source gives every document once, or counts why not; hostile files are bounded and named."""

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter
from sample_texts import HOSTILE, documents

from data_pipeline.build import build_dataset
from data_pipeline.config import BuildConfig
from data_pipeline.fates import Fate
from data_pipeline.manifest import SourceInfo
from data_pipeline.passes.read import _grouped
from data_pipeline.sources.config import SourceConfig, Storage
from data_pipeline.sources.document import SourceDocument
from data_pipeline.sources.pieces import cut, open_source, read_piece
from data_pipeline.sources.storage import File, open_filesystem
from data_pipeline.sources.streams import chunks_of_lines, lines
from data_pipeline.stages.config import StagesConfig
from runtime.errors import UserError
from tests.support.object_store import s3_server

TEXTS = [*documents(60, 11), *HOSTILE]


def _resident(figure: str) -> int:
    """VmRSS or VmHWM of this process, in kB."""
    found = re.search(rf"{figure}:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


@pytest.fixture(scope="module", autouse=True)
def resident_before() -> int:
    """The memory held before this file's tests, and the peak begun anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def source_of(kind: str, glob: Any, **keys: Any) -> SourceConfig:
    values = {"kind": kind, "name": "s", "licence": "CC0", "glob": glob, **keys}
    found: SourceConfig = TypeAdapter(SourceConfig).validate_python(values)
    return found


def read(
    source: SourceConfig, tmp_path: Path, piece_bytes: int = 1 << 20, limit: int = 1 << 20
) -> list[SourceDocument]:
    files = open_source(source, tmp_path, tmp_path).files
    return [found for piece in cut(source, files, piece_bytes) for found in read_piece(source, piece, limit)]


def built(source: SourceConfig, tmp_path: Path, vocabulary: int = 360, **keys: Any) -> SourceInfo:
    """What the manifest says of a build of `source` and the sample texts, which make a vocabulary possible."""
    (tmp_path / "more").mkdir(exist_ok=True)
    (tmp_path / "more/texts.jsonl").write_text(
        "\n".join(json.dumps({"text": f"{text} more"}) for text in documents(300, 3))
    )
    more = {"kind": "jsonl", "name": "more", "licence": "CC0", "glob": f"{tmp_path}/more"}
    values = {"sources": [source.model_dump(), more], "tokenizer": {"kind": "train", "vocabulary": vocabulary}, **keys}
    return build_dataset(BuildConfig.parse(values, "build"), tmp_path / "out", show_progress=False).sources[0]


def jsonl(texts: list[str], first: int = 0) -> bytes:
    """U+2028 and its like stand unescaped: only a line feed ends a line."""
    return "\n".join(
        json.dumps({"text": text, "n": n}, ensure_ascii=False) for n, text in enumerate(texts, first)
    ).encode()


def write_parquet(path: Path) -> None:
    table = pa.table({"n": range(len(TEXTS)), "text": TEXTS})
    pq.write_table(table, path, row_group_size=7)


def write_arrow(path: Path, stream: bool) -> None:
    table = pa.table({"text": pa.array(TEXTS).dictionary_encode() if stream else TEXTS, "n": range(len(TEXTS))})
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema) as out:
        out.write_table(table, max_chunksize=9)


@pytest.fixture
def everywhere(tmp_path: Path) -> dict[str, tuple[str, Path]]:
    """The sample texts in a file of each format."""
    home = tmp_path / "files"
    home.mkdir()
    (home / "a.jsonl").write_bytes(jsonl(TEXTS))
    (home / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS[:30])) + gzip.compress(b"\n" + jsonl(TEXTS[30:], 30)))
    (home / "c.jsonl.zst").write_bytes(pa.Codec("zstd").compress(jsonl(TEXTS), asbytes=True))
    write_parquet(home / "d.parquet")
    write_arrow(home / "e.arrow", stream=False)
    write_arrow(home / "f.arrow", stream=True)
    kinds = {"a": "jsonl", "b": "jsonl", "c": "jsonl", "d": "parquet", "e": "arrow", "f": "arrow"}
    return {path.name: (kinds[path.name[0]], path) for path in sorted(home.iterdir())}


@pytest.mark.parametrize("piece_bytes", [1, 100, 1000, 1 << 20])
def test_every_format_gives_the_same_documents(
    everywhere: dict[str, tuple[str, Path]], tmp_path: Path, piece_bytes: int
) -> None:
    """However the files are cut into pieces."""
    for name, (kind, path) in everywhere.items():
        source = source_of(kind, str(path), id_field="n")
        found = read(source, tmp_path, piece_bytes)
        assert [one.text for one in found] == TEXTS, name
        assert [one.id for one in found] == [str(n) for n in range(len(TEXTS))], name
        assert all(one.fate == Fate.KEPT for one in found)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_parts_of_tables_are_units_of_their_own(tmp_path: Path, kind: str) -> None:
    """A file of 50 row groups (or batches) is no single unit, and its units give what the whole gives."""
    texts = documents(500, 5)
    table, path = pa.table({"text": texts}), tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=10)
    else:
        with pa.ipc.new_file(str(path), table.schema) as out:
            out.write_table(table, max_chunksize=10)
    source = source_of(kind, str(path))
    size = path.stat().st_size
    units = list(_grouped(cut(source, open_source(source, tmp_path, tmp_path).files, size // 20), size // 20))
    assert 10 <= len(units) <= 20
    pieces = [piece for unit in units for piece in unit]
    assert [begin for _, begin, _, _ in pieces] == [0, *(end for _, _, end, _ in pieces[:-1])]
    assert pieces[-1].end == 50
    assert size - len(pieces) < sum(piece.bytes for piece in pieces) <= size
    assert [one.text for piece in pieces for one in read_piece(source, piece, 1 << 20)] == texts


def test_directories_lists_and_hidden_files(everywhere: dict[str, tuple[str, Path]], tmp_path: Path) -> None:
    home = tmp_path / "files"
    (home / ".hidden.jsonl").write_bytes(jsonl(["hidden"]))
    (home / "below").mkdir()
    (home / "below/g.ndjson").write_bytes(jsonl(["below"]))
    (home / "readme.txt").write_text("not a record")
    count = len(TEXTS)
    assert len(read(source_of("jsonl", str(home)), tmp_path)) == 3 * count + 1
    assert len(read(source_of("jsonl", [f"{home}/a*", f"{home}/a.jsonl", f"{home}/below"]), tmp_path)) == count + 1
    assert len(read(source_of("parquet", str(home)), tmp_path)) == count
    with pytest.raises(UserError, match="no file matches"):
        read(source_of("jsonl", f"{home}/nothing-*"), tmp_path)


def test_names_and_metadata_reach_the_dataset(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"body": {"text": text}, "url": f"u{n}", "when": {"year": n}} for n, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    keys = {"field": "body.text", "id_field": "url", "metadata_fields": ["when", "gone"]}
    info = built(source_of("jsonl", f"{tmp_path}/a.jsonl", **keys), tmp_path)
    assert info.documents == len(TEXTS)
    lines = [line for line in caplog.messages if "no record has" in line]
    assert lines == ["source s: no record has the field 'gone': check its `metadata_fields`"]
    table = pa.ipc.open_file(str(tmp_path / "out/train-00000.documents.arrow")).read_all().to_pylist()
    assert [row["id"] for row in table[:3]] == ["u0", "u1", "u2"]
    assert json.loads(table[5]["metadata"]) == {"when": {"year": 5}}
    assert table[0]["bytes"] == len(TEXTS[0].encode())
    assert table[-1]["id"] is None


def test_text_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("one\ntwo \u2028 still two\r\n\nthree".encode()))
    found = read(source_of("text", f"{tmp_path}/a.txt.gz", split="line"), tmp_path)
    assert [one.text for one in found] == ["one", "two \u2028 still two\r", "", "three"]


def test_lines_of_any_cut() -> None:
    data = b"a\n\nlonger than four\nbb\n" + b"x" * 100 + b"\ncc"
    expected = [b"a", b"", None, b"bb", None, b"cc"]
    for size in range(1, len(data) + 1):
        pieces = (data[begin : begin + size] for begin in range(0, len(data), size))
        assert list(lines(pieces, 4)) == expected


def test_every_line_belongs_to_one_range(tmp_path: Path) -> None:
    data = b"one\n\ntwo\nthree is longer\n4\n"
    (tmp_path / "a").write_bytes(data)
    file = File(str(tmp_path / "a"), len(data), 0)
    for size in range(1, len(data) + 2):
        ranges = ((begin, begin + size) for begin in range(0, len(data), size))
        assert b"".join(b"".join(chunks_of_lines(file, Storage(), *between)) for between in ranges) == data


def test_hostile_records_are_counted_and_nothing_else_is_lost(tmp_path: Path) -> None:
    rows = jsonl(TEXTS).split(b"\n")
    bad = [
        b"{broken",
        b"\xff\xfe",
        b'{"text": "\\ud800"}',
        b"[" * 100_000,
        b'{"text": 5}',
        b'{"txt": "a"}',
        b"7",
        b"[]",
    ]
    bad += [b'{"text": ""}', b'{"text": " \\n\\u2028 "}', b"", b"  ", b'{"text": "' + b"x" * 3_000_000 + b'"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows[:20] + bad + rows[20:]))
    info = built(source_of("jsonl", f"{tmp_path}/a.jsonl"), tmp_path, max_document_bytes=1_000_000)
    assert info.documents == len(TEXTS)
    assert (info.undecodable, info.without_text, info.empty, info.oversized) == (4, 4, 2, 1)
    assert info.bytes == sum(len(text.encode()) for text in TEXTS)


def test_a_200_mb_line_in_bounded_memory(tmp_path: Path) -> None:
    with open(tmp_path / "a.jsonl", "wb") as out:
        out.write(b'{"text": "before"}\n{"text": "')
        for _ in range(200):
            out.write(b"x" * 1_000_000)
        out.write(b'"}\n{"text": "after"}\n')
    program = (
        "import re, sys, pathlib, json\n"
        "from tests.data_pipeline.test_sources import read, source_of\n"
        "found = read(source_of('jsonl', sys.argv[1]), pathlib.Path('.'), 1 << 26, 1 << 24)\n"
        # ru_maxrss would begin with the peak of the process that started this one
        "peak = re.search(r'VmHWM:\\s*(\\d+)', pathlib.Path('/proc/self/status').read_text()).group(1)\n"
        "print(json.dumps([[d.text, d.fate] for d in found]), peak)"
    )
    program = program.replace("tests.data_pipeline.test_sources", "test_sources")
    here = str(Path(__file__).parent)
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path[:0] = ['.', {here!r}]\n{program}",
        str(tmp_path / "a.jsonl"),
        "0",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found, _, kilobytes = result.stdout.rpartition(" ")
    assert json.loads(found) == [["before", 0], [None, Fate.OVERSIZED], ["after", 0]]
    assert int(kilobytes) < 400_000, "the line was held as a whole"


def bomb(path: Path, megabytes: int, line_feeds: bool) -> None:
    with gzip.open(path, "wb") as out:
        for _ in range(megabytes):
            out.write((b"0" * 9999 + b"\n") * 100 if line_feeds else b"0" * 1_000_000)


@pytest.mark.parametrize("line_feeds", [False, True])
def test_a_zip_bomb_is_bounded(tmp_path: Path, line_feeds: bool) -> None:
    """Records: one line that names it, or a count. A file that is one document: a count."""
    bomb(tmp_path / "a.jsonl.gz", 130, line_feeds)
    (tmp_path / "b.jsonl").write_bytes(jsonl(TEXTS))
    with pytest.raises(
        UserError, match=r"source 's': .*a\.jsonl\.gz cannot.*more than 256 times.*`damaged: skip`"
    ) as e:
        built(source_of("jsonl", f"{tmp_path}/*.jsonl*"), tmp_path)
    assert "\n" not in str(e.value)
    info = built(source_of("jsonl", f"{tmp_path}/*.jsonl*", damaged="skip"), tmp_path)
    assert (info.documents, info.damaged, info.oversized) == (len(TEXTS), 1, 0)
    found = read(source_of("text", f"{tmp_path}/a*"), tmp_path)
    assert [one.fate for one in found] == [Fate.OVERSIZED]


@pytest.mark.parametrize("name", ["b.jsonl.gz", "c.jsonl.zst", "d.parquet", "e.arrow", "f.arrow"])
def test_files_that_break_off(everywhere: dict[str, tuple[str, Path]], tmp_path: Path, name: str) -> None:
    kind, path = everywhere[name]
    data = path.read_bytes()
    for cut_at in (len(data) // 2, 5):
        path.write_bytes(data[:cut_at])
        with pytest.raises(UserError, match=f"source 's': .*{name} cannot be read to its end"):
            built(source_of(kind, str(path)), tmp_path)
    (tmp_path / "good").mkdir()
    path.write_bytes(data[: len(data) // 2])
    found = list(read_skipping(source_of(kind, str(path), damaged="skip"), tmp_path))
    assert found == TEXTS[: len(found)]


def read_skipping(source: SourceConfig, tmp_path: Path) -> Iterator[str]:
    from data_pipeline.passes.read import ReadTask, _documents

    pieces = cut(source, open_source(source, tmp_path, tmp_path).files, 1 << 20)
    for found in _documents(ReadTask(source, pieces, 1 << 20, 0, StagesConfig(), None)):
        if found.fate == Fate.DAMAGED:
            continue
        assert found.text is not None
        yield found.text


@pytest.mark.parametrize("name", ["d.parquet", "e.arrow"])
def test_wrong_columns(everywhere: dict[str, tuple[str, Path]], tmp_path: Path, name: str) -> None:
    kind, path = everywhere[name]
    with pytest.raises(UserError, match=f"{name} has no column 'body': its columns are .*text.*set `field`"):
        built(source_of(kind, str(path), field="body"), tmp_path)
    with pytest.raises(UserError, match=r"source 's' gives no document \(64 without text\)"):
        built(source_of(kind, str(path), field="n"), tmp_path)


def write_table(table: Any, path: Path, schema: bool = True) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path, store_schema=schema)
        return
    with pa.ipc.new_file(str(path), table.schema) as out:
        out.write_table(table)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_fields_below_columns(tmp_path: Path, kind: str) -> None:
    rows = [{"body": {"text": t, "from": {"url": f"u{n}"}}, "a.b": n, "rest": {"x": 1}} for n, t in enumerate(TEXTS)]
    rows[3]["body"] = None
    path = tmp_path / f"a.{kind}"
    write_table(pa.Table.from_pylist(rows), path)
    keys = {"field": "body.text", "id_field": "body.from.url", "metadata_fields": ["rest.x", "a.b", "body.gone", "x"]}
    found = read(source_of(kind, str(path), **keys), tmp_path)
    assert [one.text for one in found] == [*TEXTS[:3], None, *TEXTS[4:]]
    assert found[3].fate == Fate.WITHOUT_TEXT
    assert (found[5].id, json.loads(found[5].metadata or "")) == ("u5", {"rest.x": 1, "a.b": 5})
    for wrong in ("body.txt", "body.text.more", "body.from.url.x", "bod.text"):
        with pytest.raises(UserError, match=f"has no column '{wrong}': its columns are body, a.b, rest"):
            read(source_of(kind, str(path), field=wrong), tmp_path)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_rows_are_measured_in_bytes(tmp_path: Path, kind: str) -> None:
    """Between small ones, and whatever stands in the first column."""
    texts = ["small", "é" * 50, "é" * 50 + "x", "small", "x" * 101, "x" * 100]
    path = tmp_path / f"a.{kind}"
    write_table(pa.table({"text": texts, "n": range(6)}), path)
    found = read(source_of(kind, str(path), id_field="n"), tmp_path, limit=100)
    assert [one.text for one in found] == ["small", "é" * 50, None, "small", None, "x" * 100]
    assert {one.fate for one in found if one.text is None} == {Fate.OVERSIZED}
    wide = pa.table({"text": ["a", "b", "c"], "meta": [["x"] * 9, ["x"] * 20, None]})
    write_table(wide, path)
    found = read(source_of(kind, str(path), metadata_fields=["meta"]), tmp_path, limit=100)
    assert [one.text for one in found] == ["a", None, "c"]


def test_a_table_that_unpacks_to_far_more_is_bounded(tmp_path: Path) -> None:
    """A value stored once stands in many rows; rows compress to nothing. Memory is measured at the end."""
    large = Random(0).randbytes(4_000_000).hex()
    dictionary = pa.DictionaryArray.from_arrays(pa.array([1, *[0] * 150, 1], pa.int32()), pa.array([large, "fine"]))
    for kind, schema in (("parquet", True), ("parquet", False), ("arrow", True)):
        path = tmp_path / f"a.{kind}"
        write_table(pa.table({"text": dictionary}), path, schema)  # without it, it is read as plain text
        assert path.stat().st_size < 10_000_000
        found = read(source_of(kind, str(path)), tmp_path)
        assert [one.fate for one in found] == [Fate.KEPT, *[Fate.OVERSIZED] * 150, Fate.KEPT]
    program = (
        "import sys, pyarrow as pa, pyarrow.parquet as pq; rows = pa.table({'text': ['0' * 1_000_000] * 100}); "
        "pq.write_table(rows, sys.argv[1], use_dictionary=False, compression='zstd')"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "b.parquet")], check=True)  # its memory is not ours
    with pytest.raises(UserError, match=r"source 's': .*b\.parquet cannot.*more than 256 times.*`damaged: skip`"):
        built(source_of("parquet", f"{tmp_path}/b.parquet"), tmp_path)


def test_columns_that_are_not_utf8(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"caf\xe9", b"also fine"]).view(pa.binary())
    broken = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    found = read(source_of("parquet", f"{tmp_path}/a.parquet"), tmp_path)
    assert [(one.text, one.fate) for one in found] == [("fine", 0), (None, Fate.UNDECODABLE), ("also fine", 0)]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"glob": []}, "at least one pattern"),
        ({"glob": ""}, "at least one pattern"),
        ({"glob": "ftp://host/a"}, "ftp:// is not known"),
        ({"glob": "s3://key:secret@bucket/a"}, "credentials do not belong here"),
        ({"glob": "a", "storage": {"endpoint": "http://key:secret@host:9000"}}, "credentials do not belong here"),
        ({"glob": "s3:///a.jsonl"}, "names no bucket"),
        ({"glob": "a", "markup": "html"}, "unknown key"),
        ({"glob": "a", "damaged": "ignore"}, "damaged"),
        ({"glob": "a", "storage": {"secret_key": "x"}}, "unknown key"),
    ],
)
def test_bad_sources(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    values = {"sources": [{"kind": "jsonl", "name": "s", "licence": "x", **keys}]}
    with pytest.raises(UserError, match=message) as caught:
        built(
            BuildConfig.parse({**values, "tokenizer": {"kind": "train", "vocabulary": 300}}, "b").sources[0], tmp_path
        )
    assert "secret" not in str(caught.value).replace("secret_key", "")


@pytest.fixture(scope="module")
def bucket() -> Iterator[Storage]:
    """A bucket of a real S3 server."""
    with s3_server("corpus") as server:
        yield server.storage


def test_object_storage(bucket: Storage, everywhere: dict[str, tuple[str, Path]], tmp_path: Path) -> None:
    filesystem = open_filesystem("s3", bucket)
    for name, (_, path) in everywhere.items():
        for place in (f"corpus/{name}", f"corpus/deep/er/{name}"):
            with filesystem.open_output_stream(place, compression=None) as out:
                out.write(path.read_bytes())
    storage = bucket.model_dump()
    for name, (kind, _) in everywhere.items():
        found = read(source_of(kind, f"s3://corpus/{name}", storage=storage), tmp_path, 500)
        assert [one.text for one in found] == TEXTS
    for pattern, files in (
        ("s3://corpus/*.jsonl", ["a.jsonl"]),
        ("s3://corpus/**/*.jsonl", ["a.jsonl", "deep/er/a.jsonl"]),
        ("s3://corpus/deep", ["deep/er/a.jsonl", "deep/er/b.jsonl.gz", "deep/er/c.jsonl.zst"]),
        ("s3://corpus/d?ep/*/[ab].jsonl*", ["deep/er/a.jsonl", "deep/er/b.jsonl.gz"]),
    ):
        opened = open_source(source_of("jsonl", pattern, storage=storage), tmp_path, tmp_path)
        assert [file.path for file in opened.files] == [f"s3://corpus/{name}" for name in files]
    info = built(source_of("parquet", "s3://corpus/deep", storage=storage), tmp_path)
    assert (info.documents, info.files, info.origin) == (len(TEXTS), 1, "s3://corpus/deep")


def test_object_storage_that_refuses(bucket: Storage, tmp_path: Path) -> None:
    storage = bucket.model_dump()
    with pytest.raises(UserError, match="no file matches in s3://elsewhere/a"):
        read(source_of("jsonl", "s3://elsewhere/a.jsonl", storage=storage), tmp_path)
    dead = {"endpoint": "http://127.0.0.1:9", "region": "us-east-1"}
    with pytest.raises(UserError, match=r"s3://corpus/a\.jsonl cannot be listed") as caught:
        read(source_of("jsonl", "s3://corpus/a.jsonl", storage=dead), tmp_path)
    assert "\n" not in str(caught.value)


def test_memory_of_this_test_file_is_bounded(resident_before: int) -> None:
    """The files above unpack to hundreds of megabytes; none was ever held."""
    assert _resident("VmHWM") - resident_before < 400_000
