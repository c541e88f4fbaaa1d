"""Real servers of object stores: moto's for S3, in this process, and an emulator of GCS in another."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

from data_pipeline.sources.config import Storage
from data_pipeline.sources.storage import open_filesystem


class Server:
    """`storage` says how to reach it; it can go away and come back with all that it held."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._server = kind(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self._running = True
        host, self._port = self._server.get_host_and_port()
        self.storage = Storage(endpoint=f"http://{host}:{self._port}", region="us-east-1")

    def stop(self) -> None:
        """Close the port."""
        self._server.stop()
        self._running = False

    def start(self) -> None:
        """Open it again, if it is closed."""
        if self._running:
            return
        self._running = True
        self._server = self._kind(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()

    def put(self, folder: Path, target: str) -> None:
        """Copy all files of a directory to `BUCKET/FOLDER`."""
        filesystem = open_filesystem("s3", self.storage)
        for path in folder.iterdir():
            self.write(f"{target}/{path.name}", path.read_bytes(), filesystem)

    def write(self, name: str, data: bytes, filesystem: Any = None) -> None:
        """Store an object."""
        with (filesystem or open_filesystem("s3", self.storage)).open_output_stream(name, compression=None) as out:
            out.write(data)

    def read(self, name: str) -> bytes:
        """A stored object."""
        with open_filesystem("s3", self.storage).open_input_file(name) as file:
            return bytes(file.read())

    def remove(self, name: str) -> None:
        """Delete an object."""
        open_filesystem("s3", self.storage).delete_file(name)


@contextmanager
def s3_server(bucket: str) -> Iterator[Server]:
    """A running server with an empty bucket, and credentials in the environment. Skips where moto is missing."""
    server = Server(pytest.importorskip("moto.server").ThreadedMotoServer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        filesystem = pyarrow.fs.S3FileSystem(
            endpoint_override=(server.storage.endpoint or "").removeprefix("http://"),
            scheme="http",
            region=server.storage.region,
            allow_bucket_creation=True,
        )
        filesystem.create_dir(bucket)
        yield server
    server.stop()


@contextmanager
def gcs_server(bucket: str) -> Iterator[Storage]:
    """How to reach a running server with an empty bucket. Skips where gcp-storage-emulator is missing."""
    pytest.importorskip("gcp_storage_emulator")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # in a process of its own: pyarrow may hold the interpreter's lock while it waits for an answer
    command = ["start", "--host=127.0.0.1", f"--port={port}", "--in-memory", f"--default-bucket={bucket}"]
    server = subprocess.Popen([sys.executable, "-m", "gcp_storage_emulator", *command], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not _listens(port):
            assert server.poll() is None, "the emulator ended"
            assert time.monotonic() < deadline, "the emulator did not start"
            time.sleep(0.02)
        yield Storage(endpoint=f"http://127.0.0.1:{port}", anonymous=True)
    finally:
        server.kill()
        server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
