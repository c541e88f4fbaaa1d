"""Held-out windows of a mixture come from every source, by weight, and from the validation splits only."""

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.build import build_dataset
from data_pipeline.config import BuildConfig, DataConfig
from data_pipeline.dataset import TokenDataset
from inference.evaluation import held_out_windows
from runtime.errors import UserError

LENGTH = 8


def _build(folder: Path, name: str, words: str, tokenizer: dict[str, object], validation: float = 0.5) -> Path:
    texts = folder / f"{name}-texts"
    texts.mkdir()
    for number in range(60):
        (texts / f"{number}.txt").write_text(f"{words} {number} " * 5)
    source = {"kind": "text", "name": name, "licence": "CC0", "glob": f"{texts}/*.txt"}
    values = {"sources": [source], "tokenizer": tokenizer, "validation": validation}
    build_dataset(BuildConfig.parse(values, name), folder / name, show_progress=False)
    return folder / name


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("held-out")
    first = _build(folder, "sea", "the sea is blue", {"kind": "train", "vocabulary": 290})
    return first, _build(folder, "hill", "a hill of grass", {"kind": "existing", "path": str(first)})


def _all_windows(path: Path) -> set[bytes]:
    dataset = TokenDataset(path, "validation")
    return {dataset.window(i, LENGTH).astype(np.int64).tobytes() for i in range(dataset.windows(LENGTH))}


def test_a_mixture_is_scored_by_its_weights(datasets: tuple[Path, Path]) -> None:
    sea, hill = datasets
    data = DataConfig(mixture={str(sea): 3.0, str(hill): 1.0})
    rows = [row.tobytes() for row in held_out_windows(data, LENGTH, windows=16, seed=3)]
    assert len(rows) == 16
    assert all(row in _all_windows(sea) for row in rows[:12])
    assert all(row in _all_windows(hill) for row in rows[12:])


def test_a_light_source_gives_at_least_one_window(datasets: tuple[Path, Path]) -> None:
    sea, hill = datasets
    data = DataConfig(mixture={str(sea): 1e6, str(hill): 1.0})
    assert held_out_windows(data, LENGTH, windows=4, seed=0)[-1].tobytes() in _all_windows(hill)


def test_a_source_gives_each_window_at_most_once(datasets: tuple[Path, Path]) -> None:
    path = str(datasets[0])
    available = TokenDataset(path, "validation").windows(LENGTH)
    assert len(held_out_windows(DataConfig(path=path), LENGTH, windows=10 * available, seed=0)) == available


def test_a_source_without_held_out_text_is_named(datasets: tuple[Path, Path], tmp_path: Path) -> None:
    bare = _build(tmp_path, "bare", "no rest", {"kind": "existing", "path": str(datasets[0])}, validation=0.0)
    with pytest.raises(UserError, match=f"{bare}.*validation"):
        held_out_windows(DataConfig(mixture={str(datasets[0]): 1.0, str(bare): 1.0}), LENGTH, windows=4, seed=0)
