"""A tracking server that fails as real ones do: it stands before a real one and lets requests through, or not."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

from tests.support.ports import free_ports

Mode = Literal["works", "refused", "black hole", "500", "cut"]
"""`refused`: nobody listens. `black hole`: takes requests and never answers. `cut`: carries out what is to be written,
and ends the connection instead of answering."""


class UnreliableServer:
    """`with UnreliableServer(target) as server:` listens at `server.uri`; `become` changes how it behaves."""

    def __init__(self, target: str) -> None:
        self._host, self._port = urlsplit(target).hostname, urlsplit(target).port
        self._mode: Mode = "works"
        self._changed = threading.Event()
        self._listener: ThreadingHTTPServer | None = self._listen(free_ports())
        self.port = self._listener.server_port
        self.requests = 0

    @property
    def uri(self) -> str:
        """Where it listens, if it does."""
        return f"http://127.0.0.1:{self.port}"

    def become(self, mode: Mode) -> None:
        """Behave so from now on; requests that hang in a black hole are cut."""
        self._changed.set()
        self._changed = threading.Event()
        self._mode = mode
        if mode == "refused":
            self._close()
        elif self._listener is None:
            self._listener = self._listen(self.port)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._changed.set()
        self._close()

    def _close(self) -> None:
        if self._listener is not None:
            self._listener.shutdown()
            self._listener.server_close()
            self._listener = None

    def _listen(self, port: int) -> ThreadingHTTPServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                outer._answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                """Silence."""

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            allow_reuse_address = True

        listener = Listener(("127.0.0.1", port), Handler)
        threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
        return listener

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests += 1
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        mode = self._mode
        if mode == "black hole":
            self._changed.wait()
        elif mode == "500":
            request.send_error(500)
        else:
            onward = http.client.HTTPConnection(str(self._host), self._port, timeout=60)
            headers = {name: value for name, value in request.headers.items() if name.lower() != "connection"}
            onward.request(request.command, request.path, body, headers | {"Connection": "close"})
            answer = onward.getresponse()
            data = answer.read()
            onward.close()
            if mode == "works" or request.command == "GET":
                request.send_response(answer.status)
                request.send_header("Content-Type", answer.getheader("Content-Type") or "application/json")
                request.send_header("Content-Length", str(len(data)))
                request.end_headers()
                request.wfile.write(data)
        request.close_connection = True
