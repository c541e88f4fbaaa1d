"""What holds for every test."""

import sys
from collections.abc import Iterator

import pytest

_LONGEST = ("test_real_slurm.py", "test_grid.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


@pytest.fixture(autouse=True)
def _linear_is_given_back() -> Iterator[None]:
    """DeepSpeed's ZeRO-3 replaces the linear function of the whole process and never gives it back."""
    yield
    if torch := sys.modules.get("torch"):
        torch.nn.functional.linear = torch._C._nn.linear


@pytest.fixture(autouse=True, scope="module")
def _no_process_group_outlives_a_file() -> Iterator[None]:
    """What a file leaves open would be in the way of the next file of the same worker."""
    yield
    if sys.modules.get("torch.distributed"):
        from parallel.mesh import close_process_group

        close_process_group()
