"""Files below a URL of an object store, read by range; what fails is tried again for a while."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

import pyarrow.fs
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from data_pipeline.config import RemoteConfig
from data_pipeline.files import MEND
from data_pipeline.sources.storage import open_filesystem, split_scheme
from runtime.errors import UserError, one_line
from runtime.logs import log

T = TypeVar("T")
_HANDLES_KEPT = 4096
_LONGEST_PAUSE = 20.0


class Folder:
    """A folder of an object store, for any number of threads.

    Attempts follow each other after pauses that grow, with jitter, until `patience` seconds have gone by.
    """

    def __init__(self, url: str, config: RemoteConfig) -> None:
        self.url = url.rstrip("/")
        scheme, base = split_scheme(url)
        self._base = base.rstrip("/")
        if not base.partition("/")[0]:
            raise UserError(f"{url} names no bucket: give one, as in {scheme}://bucket/folder")
        self._patience = config.patience
        self._handles: OrderedDict[str, Any] = OrderedDict()
        self._lock = Lock()
        try:
            self._filesystem = open_filesystem(scheme, config)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.url} cannot be reached ({one_line(error)}): check data.remote") from None

    def read(self, name: str, begin: int, size: int, length: int, patient: bool = True) -> bytes:
        """Bytes [begin, begin + size) of file `name`, which must be `length` bytes long in all.

        Raises UserError naming the file if it is another or cannot be read; at the first failure unless `patient`.
        """
        return self._try(name, lambda: self._read(name, begin, size, length), patient)

    def read_all(self, name: str) -> bytes:
        """A whole file. Raises UserError naming it."""

        def whole() -> bytes:
            with self._filesystem.open_input_file(f"{self._base}/{name}") as file:
                return bytes(file.read())

        return self._try(name, whole)

    def sizes(self) -> dict[str, int]:
        """The length of every file by name. Raises UserError if the folder cannot be listed."""
        selector = pyarrow.fs.FileSelector(self._base, allow_not_found=True)
        listing = self._try("", lambda: self._filesystem.get_file_info(selector))
        return {info.base_name: info.size for info in listing if info.type == pyarrow.fs.FileType.File}

    def _read(self, name: str, begin: int, size: int, length: int) -> bytes:
        with self._lock:
            handle = self._handles.pop(name, None)
        if handle is None:
            handle = self._filesystem.open_input_file(f"{self._base}/{name}")
        if handle.size() != length:
            raise UserError(f"{self.url}/{name} is {handle.size()} bytes long, not {length}: {MEND}")
        data: bytes = handle.read_at(size, begin)
        if len(data) != min(size, length - begin):
            raise OSError(f"{len(data)} bytes came instead of {size}")
        with self._lock:  # kept only if it served
            self._handles[name] = handle
            if len(self._handles) > _HANDLES_KEPT:
                self._handles.popitem(last=False)
        return data

    def _try(self, name: str, call: Callable[[], T], patient: bool = True) -> T:
        where = f"{self.url}/{name}".rstrip("/")

        def tell(state: RetryCallState) -> None:
            error, pause = state.outcome and state.outcome.exception(), state.upcoming_sleep
            log.warning("%s cannot be read (%s): again in %.1f s", where, one_line(error or OSError()), pause)

        attempts = Retrying(
            stop=stop_after_delay(self._patience if patient else 0),
            wait=wait_random_exponential(multiplier=0.25, max=_LONGEST_PAUSE),
            retry=retry_if_exception(_may_pass),
            before_sleep=tell,
            reraise=True,
        )
        try:
            return attempts(call)
        except FileNotFoundError:
            raise UserError(f"{where} does not exist: check the path, or restore the file") from None
        except OSError as error:
            raise UserError(
                f"{where} cannot be read ({one_line(error)}), tried for {self._patience:g} s: "
                "check the store, data.remote and your credentials"
            ) from None


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
