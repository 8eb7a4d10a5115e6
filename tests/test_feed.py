"""Films on the device: the same batches whether resident or read ahead, kept for all trials, dropped with the split."""

import gc
import threading

import numpy as np
import pytest
import torch
from small_sets import kaggle_set

from xray_opt import feed as room
from xray_opt.cache import Images, Split
from xray_opt.config import Config, Workspace, override
from xray_opt.dataset import prepare
from xray_opt.feed import Feed, Sizes, feed

CPU = torch.device("cpu")


def make_split() -> Split:
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (12, 6, 6), dtype=np.uint8)
    rows = np.array([11, 2, 5, 7, 0])
    return Split("train", np.array([1, 0, 1, 1, 0]), tuple("abcde"), tuple("abcde"), pixels, rows)


@pytest.fixture
def split() -> Split:
    return make_split()


ORDER = [np.array([3, 0]), np.array([4, 1, 2]), np.array([0])]


@pytest.mark.parametrize("free", [0, 10**6], ids=["read ahead", "resident"])
def test_batches_are_the_splits_own(split: Split, free: int) -> None:
    films = Feed(split, CPU, free)
    assert films.resident == (free > 0)
    for (pixels, labels), indices in zip(films.batches(ORDER), ORDER, strict=True):
        assert pixels.dtype == torch.uint8
        assert np.array_equal(pixels.numpy(), split.batch(indices))
        assert torch.equal(films.take(indices), pixels)
        assert labels.tolist() == split.labels[indices].astype(float).tolist()
    assert list(films.batches([])) == []


def test_films_stay_in_host_memory_where_they_would_take_too_much_of_the_device(split: Split) -> None:
    size = 5 * 6 * 6
    assert Feed(split, CPU, int(size / room.SHARE) + 1).resident
    assert not Feed(split, CPU, int(size / room.SHARE) - 1).resident


def test_a_feed_is_made_once_and_goes_with_its_split() -> None:
    split = make_split()
    first = feed(split, CPU)
    assert feed(split, CPU) is first
    before = len(room._FEEDS)
    del split, first
    gc.collect()
    assert len(room._FEEDS) == before - 1


def test_the_reader_ends_when_the_training_is_left(split: Split) -> None:
    batches = Feed(split, CPU).batches(ORDER)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


def test_a_reader_that_fails_is_heard(split: Split) -> None:
    with pytest.raises(IndexError):
        list(Feed(split, CPU).batches([np.array([0]), np.array([99])]))


@pytest.mark.parametrize("free", [0, 10**6])
def test_a_feed_made_while_predicting_serves_training(split: Split, free: int) -> None:
    with torch.inference_mode():
        films = Feed(split, CPU, free)
    weight = torch.ones((), requires_grad=True)
    for pixels, labels in films.batches(ORDER):
        ((weight * pixels.float()).mean() * labels * weight).sum().backward()
    assert weight.grad is not None


def test_films_that_find_the_memory_taken_are_read_ahead(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Split, indices: object) -> None:
        raise torch.OutOfMemoryError("another process was faster")

    own = split.batch
    with monkeypatch.context() as patch:
        patch.setattr(Split, "batch", full)
        films = Feed(split, CPU, 10**6)
    assert not films.resident
    assert np.array_equal(next(films.batches(ORDER))[0].numpy(), own(ORDER[0]))


def test_films_of_other_sizes_leave_the_device() -> None:
    def images(name: str) -> Images:
        return Images(make_split(), make_split(), 6, name)

    sizes = Sizes({32: images("a"), 48: images("b")})
    small, large = (override(Config(), {"image.size": size}) for size in (32, 48))
    assert sizes.at(small) is sizes.first
    assert (sizes.at(large).manifest, sizes.side(large)) == ("b", 6)
    kept, stranger = sizes.at(small), make_split()
    first = [feed(split, CPU) for split in (kept.train, kept.val, stranger)]
    assert [feed(split, CPU) for split in (sizes.at(small).train, kept.val)] == first[:2]
    other = sizes.at(large)
    assert (id(kept.train), "cpu") not in room._FEEDS
    assert feed(stranger, CPU) is first[2], "films that are not of the study stay"
    again = feed(other.train, CPU)
    assert sizes.at(large) is other
    assert feed(other.train, CPU) is again
    before = len(room._FEEDS)
    del sizes, kept, other
    gc.collect()
    assert len(room._FEEDS) < before


def test_each_size_is_decoded_once(tmp_path) -> None:
    workspace = Workspace(tmp_path)
    root = kaggle_set(tmp_path / "set", patients=6, films=1)
    manifest = prepare(override(Config(), {"data.root": str(root)}).data)
    sizes = Sizes.open(manifest, (32, 48), workspace)
    assert sizes.side(override(Config(), {"image.size": 32})) < sizes.side(override(Config(), {"image.size": 48}))
    assert len(list(workspace.caches.glob("*/pixels.npy"))) == 2
    assert sizes.first.val.paths == sizes.at(override(Config(), {"image.size": 48})).val.paths
