"""Checkpoint files themselves: what is damaged, what is another's, what is no file; resuming is in test_trainer.py."""

import hashlib
import io

import pytest
import torch

from xray_opt.errors import TrainingError
from xray_opt.trainer.checkpoint import Checkpoint

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
