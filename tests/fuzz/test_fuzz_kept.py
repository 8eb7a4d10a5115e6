"""Saved manifests, notes and caches: used as they were written, made anew, or refused with one clear line."""

import hashlib
import json
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
from harness import Case, Limits, fuzz
from mutations import mutated
from test_fuzz_data import FILES, film_bytes, place

from xray_opt.cache import open_images
from xray_opt.config import DataConfig, Workspace
from xray_opt.dataset import Manifest, prepared
from xray_opt.dataset.preparing import remember, settled


def kept_case(chance: random.Random, number: int) -> Case:
    """Which file of a prepared workspace is changed and how; the digests may be made right again."""
    kind = chance.choice(("manifest", "manifest", "record", "prepared", "pixels"))
    return Case(kind, (kind, chance.randrange(2**32), chance.random() < 0.6), (), (place(),))


def json_damage(text: str, chance: random.Random) -> str:
    """A JSON text with one value or anything of it changed."""
    values = (
        "null",
        "1e400",
        "-1",
        "[]",
        "{}",
        '"x"',
        '"../../x"',
        "[" * 5000,
        "9" * 5000,
        '"\\ud800"',
        "true",
        "NaN",
        '"a\\nb"',
        "7",
        "0.3",
    )
    at = [at for at in range(len(text)) if text[at : at + 2] == ": "]
    if at and chance.random() < 0.7:
        start = chance.choice(at) + 2
        end = min([where for sign in ",}" if (where := text.find(sign, start)) > 0] or [len(text)])
        return text[:start] + chance.choice(values) + text[end:]
    return mutated(text.encode(), chance)[1].decode("latin-1")


def read_kept(given):
    """Whatever was done to it, what was kept is used as it was written, or made anew, or refused."""
    kind, seed, signed = given
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(workspace(), scratch, dirs_exist_ok=True)
        home, films = Workspace(Path(scratch)), workspace() / "films"
        (saved,) = home.manifests.glob("*.csv")
        before = Manifest.load(saved)
        (cache,) = (path for path in home.caches.iterdir() if path.is_dir())
        path = {
            "manifest": saved,
            "record": cache / "cache.json",
            "prepared": home.data / "prepared.json",
            "pixels": cache / "pixels.npy",
        }[kind]
        if kind == "manifest":
            head, _, body = path.read_bytes().partition(b"\n")
            if chance.random() < 0.5:
                body = mutated(body, chance)[1]
            head_text = head.decode()
            if signed:
                digest = json.loads(head[2:])["table_sha256"]
                head_text = head_text.replace(digest, hashlib.sha256(body).hexdigest())
            path.write_bytes(
                (json_damage(head_text, chance) if chance.random() < 0.6 else head_text).encode() + b"\n" + body
            )
        elif kind == "pixels":
            path.write_bytes(mutated(path.read_bytes(), chance)[1])
            if signed:
                record = json.loads((cache / "cache.json").read_text())
                (cache / "cache.json").write_text(
                    json.dumps(record | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
                )
        else:
            path.write_text(json_damage(path.read_text(), chance), encoding="latin-1")
        config = settled(DataConfig(), home)
        again = prepared(DataConfig(root=str(films)), home)
        assert again.sha256 == before.sha256
        assert again == before or kind == "manifest"  # what stands in its first line beside the digests may change
        images = open_images(before, 32, home)
        assert images.train.batch([0]).shape == (1, images.side, images.side)
        assert (kind == "pixels" and signed) or np.array_equal(images.train.pixels, originals())
        assert isinstance(config.root, str)


KEPT: dict[str, object] = {}


def workspace() -> Path:
    """A prepared workspace with its cache, made once a process."""
    if "root" not in KEPT:
        root = Path(tempfile.mkdtemp())
        for film in range(24):
            name = FILES[film % 2].format(n=film)
            path = root / "films" / ["NORMAL", "PNEUMONIA"][film % 2] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(film_bytes(film))
        home = Workspace(root)
        manifest = prepared(DataConfig(root=str(root / "films")), home)
        remember(manifest, home)
        KEPT["pixels"] = np.array(open_images(manifest, 32, home).train.pixels)
        KEPT["root"] = root
    return KEPT["root"]


def originals():
    return KEPT["pixels"]


def test_what_was_kept_is_used_as_written_or_refused_with_one_line(reported):
    tally = fuzz("kept data", "test_fuzz_kept:read_kept", kept_case, 30, 0.1, 200, Limits(30, 1024))
    reported(tally)
    assert not tally.faults, tally.told()
    assert tally.balanced(accepted=1 / 20, refused=1 / 20)
