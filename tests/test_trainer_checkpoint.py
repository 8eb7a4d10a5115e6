"""Checkpoint files themselves: what is damaged, what is another's, what is no file; resuming is in test_trainer.py."""

import errno
import hashlib
import io
import os
import threading
from pathlib import Path

import pytest
import torch

from xray_opt.errors import DiskFault, TrainingError
from xray_opt.trainer.checkpoint import Checkpoint, discard_checkpoint

IDENTITY = {"lora.rank": "4", "format": "1"}


@pytest.fixture
def said():
    return []


@pytest.fixture
def checkpoint(tmp_path, said):
    """Two epochs were saved."""
    checkpoint = Checkpoint(tmp_path / "trial", IDENTITY, said.append)
    for epoch in (1, 2):
        checkpoint.save({"epoch": epoch})
    return checkpoint


def signed(body):
    return b"xray-opt checkpoint " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("state", [[], {}, "x", torch.zeros(3), {"identity": 3}, {"identity": {"a": [1]}}, {1: 2}])
def test_a_state_of_another_kind_is_a_damaged_one(checkpoint, said, state):
    checkpoint.path.write_bytes(signed(saved(state)))
    assert checkpoint.load()["epoch"] == 1
    assert len(said) == 1
    assert "is damaged and was removed" in said[0]


@pytest.mark.parametrize("at", [10, 200, 300, 400, 500])
@pytest.mark.parametrize("other", [b"\0" * 8, b"\xff" * 8, b"(((((((("])
def test_whatever_torch_raises_on_damaged_bytes_means_damaged(checkpoint, said, at, other):
    body = saved({"identity": IDENTITY, "epoch": 2})
    checkpoint.path.write_bytes(signed(body[:at] + other + body[at + 8 :]))
    assert checkpoint.load()["epoch"] in (1, 2)


@pytest.mark.parametrize("body", [b"", b"PK\x03\x04", b"\x80\x02.", b"\x80\x02c", b"(((", saved([1])[:-30]])
def test_bytes_that_are_no_state_fall_back_to_the_epoch_before(checkpoint, said, body):
    checkpoint.path.write_bytes(signed(body))
    assert checkpoint.load()["epoch"] == 1
    assert len(said) == 1


def test_a_folder_in_its_place_is_one_line(checkpoint, said):
    checkpoint.path.unlink()
    checkpoint.path.mkdir()
    with pytest.raises(TrainingError, match=r"cannot read checkpoint .*trial: Is a directory") as caught:
        checkpoint.load()
    assert "\n" not in str(caught.value)


def test_a_strangers_setting_cannot_break_the_line(checkpoint):
    checkpoint.path.write_bytes(signed(saved({"identity": IDENTITY | {"x\n" * 500: "y" * 5000}})))
    with pytest.raises(TrainingError, match="belongs to another training") as caught:
        checkpoint.load()
    assert str(caught.value).isprintable()
    assert len(str(caught.value).replace(str(checkpoint.path), "")) < 300


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 12 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 12 bytes"),
    ],
)
def test_a_lack_of_memory_is_no_damage(checkpoint, said, monkeypatch, error):
    def full(*arguments, **options):
        raise error

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(TrainingError, match=r"cannot read checkpoint .*trial: out of memory;"):
        checkpoint.load()
    assert checkpoint.path.exists()
    assert checkpoint.previous.exists()
    assert said == []


def test_a_folder_that_may_not_be_searched_says_nothing_of_the_training(checkpoint, monkeypatch):
    """The trial is handed back, not failed, as where the folder may not be written."""

    def refused(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(checkpoint.path), "read_bytes", refused)  # root may search every folder
    with pytest.raises(DiskFault, match=r"cannot use checkpoint .*trial: Permission denied; nothing is lost"):
        checkpoint.load()


def test_a_damaged_one_on_a_read_only_disk_says_nothing_of_the_training(checkpoint, monkeypatch):
    def refused(path, *_):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    checkpoint.path.write_bytes(b"damaged")
    monkeypatch.setattr(type(checkpoint.path), "unlink", refused)
    with pytest.raises(DiskFault, match="Read-only file system; nothing is lost"):
        checkpoint.load()


def test_two_writers_at_once_leave_a_whole_checkpoint(checkpoint, said):
    """A worker that hung for so long that its trial was taken over, and wakes, writes beside the other one."""
    others = [Checkpoint(checkpoint.path, IDENTITY, said.append) for _ in range(4)]

    def write(one):
        for epoch in range(3, 30):
            one.save({"epoch": epoch, "bulk": torch.zeros(2000)})

    threads = [threading.Thread(target=write, args=(one,)) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert checkpoint.load()["epoch"] == 29
    checkpoint.path.unlink()
    assert checkpoint.load()["epoch"] > 2
    assert said == []
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["trial.previous"]


def test_what_was_discarded_meanwhile_ends_no_writer(checkpoint, monkeypatch):
    """Whoever took a trial over has ended it, while a worker that hung writes."""
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (real(handle), discard_checkpoint(checkpoint.path)))
    checkpoint.save({"epoch": 3})
    assert checkpoint.load() is None


def test_it_goes_on_from_the_best_of_the_earlier_ones_which_are_asked_for_only_then(checkpoint, tmp_path, said):
    asked = []

    def earlier():
        asked.append(1)
        yield tmp_path / "nowhere"
        yield checkpoint.path

    own = Checkpoint(tmp_path / "own", IDENTITY, said.append, earlier)
    assert own.load()["epoch"] == 2
    assert own.found == checkpoint.path
    checkpoint.path.write_bytes(b"damaged")
    assert own.load()["epoch"] == 1
    own.save({"epoch": 3})
    assert (own.load()["epoch"], len(asked)) == (3, 2)
    assert checkpoint.load()["epoch"] == 1  # which is only read


def test_a_disk_that_fails_under_the_newest_gives_the_one_before(checkpoint, said, monkeypatch):
    real = Path.read_bytes

    def fails(path):
        if path == checkpoint.path:
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", fails)
    assert checkpoint.load()["epoch"] == 1
    assert "cannot be read (Input/output error); going back" in said[0]
