"""Tracking URIs: what they name, whether someone answers there, and how to show one without its secrets."""

import re
import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from runtime.errors import UserError

_USER = re.compile(r"//.*@", re.DOTALL)
_SECRET = "token|key|secret|pass|pwd|auth|sig|cred"  # noqa: S105 - words in the names of query parameters
_SECRET_PARAMETER = re.compile(rf"([?&;][^=&]*(?:{_SECRET})[^=&]*=)[^&]*", re.IGNORECASE)
_FILE = re.compile(r"sqlite(\+\w+)?:///")
_DATABASE = re.compile(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://")


def redact(uri: str) -> str:
    """`uri` (or a text with one inside) fit for logs: user, password and secret query values become `***`.

    Rather too much than too little: a password may hold an unquoted `/`, `?`, `@` or space, so all between `//` and
    the last `@` goes, and all of a secret value up to the next `&`. Paths of sqlite files hold no user and stay.
    """
    shown = _SECRET_PARAMETER.sub(r"\1***", uri)  # first: such a value may hold an `@`
    return shown if _FILE.match(uri) else _USER.sub("//***@", shown)


def artifact_folder(uri: str, run_directory: Path) -> Path | None:
    """Where artifacts go when `uri` is a database: `mlartifacts` beside the sqlite file, or beside the run.

    None if a server stands between: it has its own place for artifacts. Without this, MLflow would make a
    folder `mlruns` wherever the process happens to stand. Raises UserError for a database in memory.
    """
    if not _DATABASE.match(uri):
        return None
    if not uri.startswith("sqlite"):
        return run_directory.absolute().parent / "mlartifacts"
    database = uri.partition("?")[0].partition("://")[2].removeprefix("/")
    if database in ("", ":memory:"):
        raise UserError(f"tracking.uri {uri!r} is a database in memory: name a file, sqlite:///FILE")
    return Path(database).absolute().parent / "mlartifacts"


def check_reachable(uri: str, seconds: float) -> None:
    """Raise UserError unless the host of a http(s) `uri` takes a connection; other URIs pass.

    Says so in milliseconds where importing MLflow alone takes many seconds. Behind a proxy only the proxy can
    tell, so nothing is checked.
    """
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError:  # its words may be a part of an unquoted password
        raise UserError(f"tracking.uri {redact(uri)} is no URI: write http://HOST:PORT, a password as %XX") from None
    if not uri.strip():
        raise UserError("tracking.uri is empty: write http://HOST:PORT or sqlite:///FILE")
    if parts.scheme not in ("http", "https"):
        return
    if not host:
        raise UserError(f"tracking.uri {redact(uri)} names no host: write http://HOST:PORT")
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return
    port = port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except UnicodeError:
        raise UserError(unreachable(uri, "that is no host name")) from None
    except OSError as error:
        raise UserError(unreachable(uri, error.strerror or str(error))) from None


def unreachable(uri: str, reason: str) -> str:
    """The one line for a tracking server that does not do what it should."""
    return (
        f"tracking server {redact(uri)} failed ({reason}): start it or mend tracking.uri; nothing is lost, "
        "`lacuna track sync` sends what is missing"
    )
