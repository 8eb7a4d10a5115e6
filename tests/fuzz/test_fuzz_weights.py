"""Adapter bundles and checkpoints: whatever was done to them, they are read as written or refused in one line."""

import hashlib
import importlib
import io
import json
import os
import random
import shutil
import struct
import tempfile
from pathlib import Path

import pytest
from harness import Case, Limits, fuzz
from mutations import mutated, odd_text
from test_fuzz_kept import json_damage

KEPT: dict[str, object] = {}


def place() -> str:
    return tempfile.gettempdir()


def bundle_case(chance: random.Random, number: int) -> Case:
    kinds = ("bytes", "header", "tensor", "record", "record", "peft", "missing", "link", "whole")
    kind = kinds[number % len(kinds)]
    return Case(kind, (kind, chance.randrange(2**32), chance.random() < 0.7), (), (place(),))


def made():
    """A base, a bundle of it on disk, the network's answer to noise; made once a process."""
    if not KEPT:
        import torch

        from xray_opt.adapter import attach, load_bundle, logits, make_bundle, save_bundle
        from xray_opt.backbone import random_base
        from xray_opt.config import Config, override

        values = {
            "model.strategy": "lora",
            "lora.rank": 2,
            "lora.stages": "early",
            "image.size": 32,
            "model.base": "random",
        }
        base, config = random_base(0), override(Config(), values)
        folder = Path(tempfile.mkdtemp()) / "bundle"
        save_bundle(attach(base, config), folder, make_bundle(base, config, 48))
        noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        network, bundle = load_bundle(folder, base)
        with torch.no_grad():
            KEPT.update(base=base, folder=folder, noise=noise, answer=logits(network, noise), bundle=bundle)
    return KEPT


def read_bundle_folder(given):
    """A changed bundle is refused, unless the change says nothing, or it was signed and changed values only."""
    import torch

    from xray_opt.adapter import load_bundle, logits

    kind, seed, signed = given
    known, chance = made(), random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundle"
        shutil.copytree(known["folder"], folder)
        damage(folder, kind, chance)
        if signed and kind not in ("whole", "link"):
            sign(folder)
        network, bundle = load_bundle(folder, known["base"])
        with torch.no_grad():
            answer = logits(network, known["noise"])
        assert torch.isfinite(answer).all()
        assert 0 <= bundle.threshold <= 1
        assert 0 < bundle.temperature < float("inf")
        if not signed or kind in ("whole", "missing"):
            assert torch.equal(answer, known["answer"])
            assert bundle.to_json() == known["bundle"].to_json()


read_bundle_folder.ready = made


def damage(folder, kind, chance):
    weights = chance.choice(sorted(folder.glob("*.safetensors")))
    match kind:
        case "bytes":
            path = chance.choice(sorted(folder.iterdir()))
            path.write_bytes(mutated(path.read_bytes(), chance)[1])
        case "header":
            weights.write_bytes(lying(weights.read_bytes(), chance))
        case "tensor":
            change_tensor(weights, chance)
        case "record" | "peft":
            path = folder / {"record": "bundle.json", "peft": "adapter_config.json"}[kind]
            path.write_text(json_damage(path.read_text(), chance), encoding="latin-1")
        case "missing":
            chance.choice(sorted(folder.iterdir())).unlink()
            (folder / f"extra{chance.randrange(3)}").write_text("x")
        case "link":
            path = chance.choice(sorted(folder.iterdir()))
            path.unlink()
            replace(path, chance)


def replace(path, chance):
    """Something else under the name of a file."""
    match chance.randrange(4):
        case 0:
            path.symlink_to(
                chance.choice(("/dev/zero", path.name, "missing", path.parent, "/dev/null", "/proc/self/mem"))
            )
        case 1:
            os.mkfifo(path)
        case 2:
            path.mkdir()
        case _:
            with path.open("wb") as file:
                file.truncate(chance.choice((0, 2**20, 2**29)))


def lying(content, chance):
    """A safetensors file whose header says odd things of sizes, types, shapes and places."""
    (size,) = struct.unpack("<Q", content[:8])
    header, rest = json.loads(content[8 : 8 + size]), content[8 + size :]
    if chance.random() < 0.2:
        return struct.pack("<Q", chance.choice((0, 1, size + 1, 2**32, 2**63, 2**64 - 1))) + content[8:]
    name = chance.choice([name for name in header if name != "__metadata__"])
    entry, field = header[name], chance.choice(("dtype", "shape", "data_offsets", "name", "extra"))
    odd = {
        "dtype": ("F64", "I8", "F8_E4M3", "BF16", "F4", "odd", 3, None),
        "shape": ([], [0], [2**62, 4], [-1], [1, 1, 1], "x", [1.5], [10**30]),
        "data_offsets": ([0, 0], [0, 2**63], [4, 2], [-4, 0], [0], None),
    }
    if field in odd:
        entry[field] = chance.choice(odd[field])
    elif field == "name":
        header[odd_text(chance).replace("\ud800", "").encode("utf-8", "ignore").decode()] = header.pop(name)
    else:
        header["__metadata__"] = chance.choice(({"x": "y" * 1000}, {"x": 1}, [], {}))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + rest


def change_tensor(path, chance):
    import torch
    from safetensors.torch import load_file, save_file

    state = load_file(path)
    name = chance.choice(sorted(state))
    value = state[name]
    other = {
        "nan": lambda: torch.full_like(value, float("nan")),
        "inf": lambda: torch.where(torch.rand_like(value) < 0.1, float("inf"), value),
        "double": lambda: value.double(),
        "half": lambda: value.half(),
        "whole": lambda: value.int(),
        "shape": lambda: value.reshape(-1),
        "empty": lambda: torch.zeros(0),
        "moved": lambda: value + 0.01,
    }
    kind = chance.choice((*other, "gone", "renamed"))
    if kind in other:
        state[name] = other[kind]().contiguous()
    else:
        del state[name]
        if kind == "renamed":
            state[name + "x"] = value
    save_file(state, path)


def sign(folder):
    """Make the digests right again, where the record can still be read."""
    from xray_opt.adapter.bundle import content_sha256

    path = folder / "bundle.json"
    try:
        document = json.loads(path.read_text())
        for name in document["files"]:
            document["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        document["sha256"] = content_sha256(document)
        path.write_text(json.dumps(document))
    except (ValueError, OSError, LookupError, TypeError, RecursionError):
        return


def checkpoint_case(chance: random.Random, number: int) -> Case:
    kinds = ("bytes", "signed", "state", "both", "stranger", "other", "whole")
    kind = kinds[number % len(kinds)]
    return Case(kind, (kind, chance.randrange(2**32)), (), (place(),))


IDENTITY = {"lora.rank": "4", "base": "ab", "manifest": "cd", "format": "1"}


def state_of(epoch):
    import torch

    return {
        "network": {"a": torch.full((3, 4), float(epoch))},
        "epochs": [{"number": epoch}],
        "micro_batch": None,
        "best": {},
    }


def read_checkpoint(given):
    """The newest whole state, else the one before it, else none; damaged files are said and gone."""
    import torch

    from xray_opt.trainer.checkpoint import Checkpoint

    kind, seed = given
    chance, said = random.Random(seed), []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "trial"
        checkpoint = Checkpoint(path, IDENTITY, said.append)
        for epoch in (1, 2):
            checkpoint.save(state_of(epoch))
        damage_checkpoint(path, checkpoint.previous, kind, chance)
        state = checkpoint.load()
        if state is None:
            assert len(said) == 2
            assert not path.exists()
            return
        assert state["identity"] == IDENTITY
        if kind in ("whole", "bytes", "both"):
            (epoch,) = state["epochs"]
            assert epoch["number"] in (1, 2)
            assert torch.equal(state["network"]["a"], state_of(epoch["number"])["network"]["a"])
            assert (epoch["number"] == 1) == bool(said)
        assert all(line.isprintable() and "\n" not in line for line in said)


read_checkpoint.ready = lambda: importlib.import_module("xray_opt.trainer.checkpoint")


def damage_checkpoint(path, previous, kind, chance):
    import torch

    head, body = path.read_bytes()[:85], path.read_bytes()[85:]
    if kind in ("bytes", "both"):
        path.write_bytes(changed(head + body, chance))
        if kind == "both":
            previous.write_bytes(changed(previous.read_bytes(), chance))
    elif kind == "signed":
        path.write_bytes(signed(mutated(body, chance)[1]))
    elif kind == "state":
        odd = (
            [],
            {},
            {"identity": 3},
            {"identity": {"a": [1]}},
            {"identity": IDENTITY},
            torch.zeros(3),
            "x",
            None,
            {1: 2},
        )
        buffer = io.BytesIO()
        torch.save(chance.choice(odd), buffer)
        path.write_bytes(signed(buffer.getvalue()))
    elif kind == "other":
        buffer = io.BytesIO()
        name = chance.choice((odd_text(chance), "lora.rank"))
        torch.save({"identity": IDENTITY | {name: odd_text(chance)}, **state_of(2)}, buffer)
        path.write_bytes(signed(buffer.getvalue()))
    elif kind == "stranger":
        path.unlink()
        path.mkdir() if chance.random() < 0.5 else path.write_bytes(chance.randbytes(chance.choice((0, 10, 300))))


def changed(content, chance):
    """A mutation that changes something."""
    while (other := mutated(content, chance)[1]) == content:
        pass
    return other


def signed(body):
    return b"xray-opt checkpoint " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


@pytest.mark.parametrize(
    ("name", "reader", "make", "brief", "least"),
    [
        ("bundles", "read_bundle_folder", bundle_case, 18, 100),
        ("checkpoints", "read_checkpoint", checkpoint_case, 70, 300),
    ],
)
def test_weights_are_read_as_written_or_refused_with_one_line(reported, name, reader, make, brief, least):
    tally = fuzz(name, f"test_fuzz_weights:{reader}", make, brief, 0.12, least, Limits(30, 1536))
    reported(tally)
    assert not tally.faults, tally.told()
    assert tally.accepted > tally.cases / 20
    assert tally.refused > tally.cases / 20
