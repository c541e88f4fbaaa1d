"""One thread, items in order, errors where they belong, nothing left behind."""

import threading
import time
from itertools import count

import pytest

from data_pipeline.loader import Loader


def _threads() -> int:
    return sum(thread.name == "lacuna-loader" for thread in threading.enumerate())


def test_items_in_order_and_the_thread_ends() -> None:
    with Loader(lambda i: i * i, 3, 20) as loader:
        assert list(loader) == [i * i for i in range(3, 20)]
        assert loader.position == 20
    assert _threads() == 0


def test_state_is_one_integer() -> None:
    with Loader(str, 0, 10) as loader:
        head = [next(loader) for _ in range(4)]
        position = loader.position
    with Loader(str, position, 10) as loader:
        assert head + list(loader) == [str(i) for i in range(10)]


def test_empty_range() -> None:
    with Loader(str, 5, 5) as loader:
        assert list(loader) == []


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_at_most_depth_items_wait(depth: int) -> None:
    started: list[int] = []
    with Loader(started.append, 0, 100, depth) as loader:
        next(loader)
        deadline = time.monotonic() + 5
        while len(started) < depth + 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        assert len(started) == depth + 2  # one taken, `depth` ready, one in hand


def test_an_error_arrives_after_the_items_before_it() -> None:
    def assemble(i: int) -> int:
        if i == 3:
            raise KeyError("sample 3")
        return i

    with Loader(assemble, 0, 10) as loader:
        assert [next(loader) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(KeyError, match="sample 3"):
            next(loader)
        with pytest.raises(StopIteration):
            next(loader)
        assert loader.position == 3
    assert _threads() == 0


def test_close_in_the_middle_and_twice() -> None:
    loader = Loader(lambda i: i, 0, 10**9)
    assert next(loader) == 0
    loader.close()
    loader.close()
    assert _threads() == 0
    with pytest.raises(StopIteration):
        next(loader)


def test_close_from_another_thread_wakes_the_consumer() -> None:
    gate = threading.Event()
    loader = Loader(lambda i: gate.wait(10), 0, 5)
    timers = [threading.Timer(0.05, loader.close), threading.Timer(0.15, gate.set)]
    for timer in timers:
        timer.start()
    assert list(loader) == []
    for timer in timers:
        timer.join()
    assert _threads() == 0


def test_an_error_in_the_consumer_ends_the_thread() -> None:
    def step() -> None:
        with Loader(lambda i: i, 0, 10**9) as loader:
            next(loader)
            raise RuntimeError("step")

    with pytest.raises(RuntimeError, match="step"):
        step()
    assert _threads() == 0


def test_wait_seconds_tell_a_slow_source_from_a_fast_one() -> None:
    with Loader(lambda i: time.sleep(0.05), 0, 3) as loader:
        next(loader)
        assert loader.wait_seconds > 0.03
        time.sleep(0.3)
        next(loader)
        assert loader.wait_seconds < 0.03


def test_assembles_while_the_consumer_works() -> None:
    begun = [threading.Event() for _ in range(5)]
    with Loader(lambda i: begun[i].set(), 0, 5) as loader:
        for i, _ in enumerate(loader):
            assert begun[min(i + 1, 4)].wait(5), "the next item is begun only when asked for"


def test_only_one_thread_assembles() -> None:
    names = set()
    ticks = count()

    def assemble(i: int) -> int:
        names.add(threading.get_ident())
        return next(ticks)

    with Loader(assemble, 0, 50) as loader:
        assert list(loader) == list(range(50))
    assert len(names) == 1
    assert threading.get_ident() not in names
