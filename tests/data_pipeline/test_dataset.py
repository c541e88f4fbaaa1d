"""Windows are the flat stream, samples are a pure function of (seed, index)."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.build import build_dataset
from data_pipeline.config import BuildConfig, DataConfig
from data_pipeline.dataset import SampleReader, TokenDataset
from data_pipeline.loader import Loader
from data_pipeline.mixture import BLOCK
from data_pipeline.tokenizer import train_tokenizer
from runtime.errors import UserError

LENGTH = 64


def flat(path: Path) -> np.ndarray:
    """The whole training stream, read batch by batch."""
    return np.concatenate([s.batch(b) for s in TokenDataset(path).shards for b in range(len(s.info.batches))])


@pytest.fixture(scope="module")
def second(built: Path, build_config: Callable[..., BuildConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another dataset of the same tokenizer."""
    out = tmp_path_factory.mktemp("second") / "stdlib"
    source = {"kind": "python_stdlib", "name": "stdlib", "licence": "PSF-2.0", "max_bytes": 60_000}
    config = build_config(
        sources=[source],
        tokenizer={"kind": "existing", "path": str(built)},
        compression="lz4",
        batch_tokens=100,
    )
    build_dataset(config, out, show_progress=False)
    return out


@pytest.mark.parametrize("length", [1, 7, 64, 512, 513, 3000, 5000])
def test_windows_equal_the_flat_stream(built: Path, length: int) -> None:
    dataset, stream = TokenDataset(built), flat(built)
    assert dataset.tokens == len(stream)
    assert dataset.windows(length) == len(stream) // length > 0
    joined = np.concatenate([dataset.window(w, length) for w in range(dataset.windows(length))])
    assert np.array_equal(joined, stream[: len(joined)])


def test_windows_cannot_be_written(built: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        TokenDataset(built).window(0, 16)[0] = 1


def test_lz4_forgets_old_batches_and_reads_them_again(second: Path) -> None:
    dataset = TokenDataset(second)
    first = dataset.window(0, LENGTH).copy()
    for window in range(dataset.windows(LENGTH)):
        dataset.window(window, LENGTH)
    assert sum(len(shard._views) for shard in dataset.shards) <= 64 * len(dataset.shards)
    assert sum(len(shard.info.batches) for shard in dataset.shards) > 100
    assert np.array_equal(dataset.window(0, LENGTH), first)


def test_an_epoch_visits_every_window_once(built: Path) -> None:
    reader = SampleReader(DataConfig(path=str(built)), LENGTH, seed=0)
    windows = TokenDataset(built).windows(LENGTH)
    places = [reader.locate(i) for i in range(3 * windows)]
    for epoch in range(3):
        part = places[epoch * windows : (epoch + 1) * windows]
        assert {e for _, e, _ in part} == {epoch}
        assert sorted(w for _, _, w in part) == list(range(windows))
    orders = [[w for _, e, w in places if e == epoch] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]


def test_tokens_are_the_located_window(built: Path) -> None:
    reader, stream = SampleReader(DataConfig(path=str(built)), LENGTH, seed=3), flat(built)
    for i in (0, 5, 1000, BLOCK * 7 + 1, 10**15):
        name, _, window = reader.locate(i)
        assert name == str(built)
        tokens = reader.tokens(i)
        assert tokens.dtype == np.int64
        assert np.array_equal(tokens, stream[window * LENGTH : (window + 1) * LENGTH])


def test_samples_do_not_depend_on_what_was_read_before(built: Path, second: Path) -> None:
    config = DataConfig(mixture={str(built): 2, str(second): 1})
    forward = SampleReader(config, LENGTH, seed=1)
    samples = [forward.tokens(i) for i in range(3 * BLOCK)]
    fresh = SampleReader(config, LENGTH, seed=1)
    for i in np.random.default_rng(0).permutation(3 * BLOCK)[:200]:
        assert np.array_equal(fresh.tokens(int(i)), samples[i])
    assert np.array_equal(fresh.batch([7, 3000, 0]), np.stack([samples[7], samples[3000], samples[0]]))


def test_seeds_differ(built: Path) -> None:
    config = DataConfig(path=str(built))
    first, second = (SampleReader(config, LENGTH, seed) for seed in (0, 1))
    assert [first.locate(i) for i in range(20)] != [second.locate(i) for i in range(20)]


def test_mixture_of_datasets(built: Path, second: Path) -> None:
    reader = SampleReader(DataConfig(mixture={str(built): 3, str(second): 1}), LENGTH, seed=0)
    places = [reader.locate(i) for i in range(4 * BLOCK)]
    names = Counter(name for name, _, _ in places)
    assert names == {str(built): 3 * BLOCK, str(second): BLOCK}
    for path in (built, second):
        windows = TokenDataset(path).windows(LENGTH)
        first_epoch = [w for name, e, w in places if name == str(path) and e == 0]
        assert sorted(first_epoch) == list(range(windows))


def test_order_and_digest_do_not_depend_on_where_a_dataset_lies(built: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(built, tmp_path / "moved")
    readers = [SampleReader(DataConfig(path=str(path)), LENGTH, seed=0) for path in (built, moved)]
    assert np.array_equal(readers[0].batch(range(50)), readers[1].batch(range(50)))
    assert readers[0].digest == readers[1].digest


def test_packing_does_not_change_the_samples(
    built: Path, build_config: Callable[..., BuildConfig], tmp_path: Path
) -> None:
    build_dataset(build_config(compression="lz4"), tmp_path / "packed", show_progress=False)
    readers = [SampleReader(DataConfig(path=str(path)), LENGTH, 0) for path in (built, tmp_path / "packed")]
    assert readers[0].digest == readers[1].digest
    assert readers[0].manifests[0].digest != readers[1].manifests[0].digest
    assert np.array_equal(readers[0].batch(range(50)), readers[1].batch(range(50)))


def test_digest_tells_data_and_weights_apart(built: Path, second: Path) -> None:
    a, b = str(built), str(second)
    configs = [{a: 1}, {b: 1}, {a: 1, b: 1}, {a: 1, b: 2}, {b: 1, a: 1}]
    assert len({SampleReader(DataConfig(mixture=m), LENGTH, 0).digest for m in configs}) == len(configs)


def test_any_number_of_loaders_gives_the_same_stream(built: Path) -> None:
    reader = SampleReader(DataConfig(path=str(built)), LENGTH, seed=0)
    whole = [reader.tokens(i) for i in range(24)]
    for world in (1, 2, 3):
        for rank in range(world):
            own = SampleReader(DataConfig(path=str(built)), LENGTH, seed=0)
            with Loader(
                lambda step, own=own, rank=rank, world=world: own.tokens(step * world + rank), 0, 24 // world
            ) as loader:
                for step, tokens in enumerate(loader):
                    assert np.array_equal(tokens, whole[step * world + rank])


def test_the_tokenizer_must_be_the_shards_own(built: Path, dataset: Path) -> None:
    assert TokenDataset(built).open_tokenizer().digest == TokenDataset(built).tokenizer_digest
    (dataset / "tokenizer.model").write_bytes(train_tokenizer(["other words " + str(i) for i in range(99)], 290))
    with pytest.raises(UserError, match="tokenizer that is not the shards' own"):
        TokenDataset(dataset).open_tokenizer()
    (dataset / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.model cannot be read"):
        TokenDataset(dataset).open_tokenizer()


def test_a_mixture_of_tokenizers_is_refused(
    built: Path, build_config: Callable[..., BuildConfig], tmp_path: Path
) -> None:
    build_dataset(build_config(tokenizer={"kind": "train", "vocabulary": 390}), tmp_path / "other", show_progress=False)
    with pytest.raises(UserError, match=r"data\.mixture: .*other and .*different tokenizers"):
        SampleReader(DataConfig(mixture={str(built): 1, str(tmp_path / "other"): 1}), LENGTH, 0)


def test_too_short_for_one_sample(built: Path) -> None:
    with pytest.raises(
        UserError, match=r"train split has \d+ tokens, less than one sample of 10000000.*sequence_length"
    ):
        SampleReader(DataConfig(path=str(built)), 10_000_000, 0)


def test_validation_split(built: Path) -> None:
    reader = SampleReader(DataConfig(path=str(built)), LENGTH, 0, split="validation")
    train = {TokenDataset(built).window(w, LENGTH).tobytes() for w in range(TokenDataset(built).windows(LENGTH))}
    assert reader.tokens(0).astype(np.uint16).tobytes() not in train


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"data\.path and data\.mixture: neither"),
        ({"path": "a", "mixture": {"b": 1}}, r"data\.path and data\.mixture: both"),
        ({"mixture": {"a": 0}}, r"data\.mixture: the weight of 'a' is 0"),
        ({"mixture": {"a": float("nan")}}, r"mixture\.a: Input should be a finite number"),
        ({"path": "/nowhere"}, "/nowhere does not exist"),
        ({"path": "/"}, "is not a dataset"),
    ],
)
def test_bad_data_settings(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SampleReader(DataConfig.parse(values, "config.yaml"), LENGTH, 0)


def test_a_small_dataset_repeats_in_new_orders(built: Path) -> None:
    """With three windows an epoch, all six orders occur."""
    dataset = TokenDataset(built)
    length = dataset.tokens // 3
    reader = SampleReader(DataConfig(path=str(built)), length, 0)
    orders = {tuple(reader.locate(3 * epoch + k)[2] for k in range(3)) for epoch in range(300)}
    assert len(orders) == 6


def test_foretelling_costs_what_is_new(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand ranks, one reads a sample a step and looks 64 steps ahead: far beyond the chunks that are kept."""
    reader = SampleReader(DataConfig(path=str(built)), 64, seed=0)
    worked_out: list[tuple[int, int]] = []
    told: list[tuple[int, int]] = []
    places, batch = reader.places, 4096
    monkeypatch.setattr(reader, "places", lambda begin, end: worked_out.append((begin, end)) or places(begin, end))
    monkeypatch.setattr(reader.datasets[0], "prefetch", told.extend)
    for step in range(4):
        reader.prefetch(soon * batch + 7 for soon in range(step, step + 65))
    assert worked_out == [(soon * batch + 7, soon * batch + 8) for soon in range(68)]
    assert told == [(reader.locate(soon * batch + 7)[2] * 64, 64) for soon in range(68)]
