"""The decoded cache: right pixels, built once, whole or not at all."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from small_sets import kaggle_set

from xray_opt import cache
from xray_opt.cache import Images, cache_side, open_images, redrawn_images
from xray_opt.config import DataConfig, Workspace
from xray_opt.dataset import decode, prepare, redrawn, to_square
from xray_opt.errors import DataError


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return prepare(DataConfig(root=str(kaggle_set(tmp_path_factory.mktemp("films") / "set"))))


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def folder(workspace):
    (found,) = workspace.caches.iterdir()
    return found


def test_pixels_are_those_of_the_one_decoder(manifest, workspace):
    images = open_images(manifest, 32, workspace)
    for split in (images.train, images.val):
        films = manifest.of(split.name)
        assert split.paths == tuple(film.path for film in films)
        assert split.labels.tolist() == [film.label for film in films]
        assert split.groups == tuple(film.group for film in films)
        pixels = split.batch([0, len(split) - 1, 0])
        assert (pixels.shape, pixels.dtype) == ((3, images.side, images.side), np.uint8)
        for row, index in ((0, 0), (1, len(split) - 1)):
            film = (Path(manifest.root) / films[index].path).read_bytes()
            assert np.array_equal(pixels[row], to_square(decode(film), images.side))


def test_there_is_no_way_to_the_test_split():
    assert [field.name for field in fields(Images)] == ["train", "val", "side", "manifest"]


def test_the_side_is_one_and_a_half_times_the_input_where_films_have_it(manifest):
    assert cache_side(manifest, 32) == 40  # the films are 40 px wide
    assert cache_side(manifest, 20) == 30
    assert cache_side(manifest, 64) == 64


def test_it_is_built_once(manifest, workspace):
    seen = []
    open_images(manifest, 32, workspace, lambda done, total: seen.append((done, total)))
    opened = len(manifest.of("train")) + len(manifest.of("val"))
    assert seen[-1] == (opened, opened)
    open_images(manifest, 32, workspace, lambda done, total: seen.append("again"))
    assert "again" not in seen


@pytest.mark.parametrize("damage", ["flip", "cut", "record", "gone"])
def test_a_damaged_cache_is_built_anew(manifest, workspace, damage):
    before = open_images(manifest, 32, workspace).train.batch([0, 1]).copy()
    pixels, record = folder(workspace) / "pixels.npy", folder(workspace) / "cache.json"
    if damage == "flip":
        content = bytearray(pixels.read_bytes())
        content[-5] ^= 255
        pixels.write_bytes(content)
    elif damage == "cut":
        pixels.write_bytes(pixels.read_bytes()[:-100])
    elif damage == "record":
        record.write_text(json.dumps(json.loads(record.read_text()) | {"side": 41}))
    else:
        record.unlink()
    assert np.array_equal(open_images(manifest, 32, workspace).train.batch([0, 1]), before)


def test_a_film_that_changed_or_went_is_named(tmp_path, workspace):
    root = kaggle_set(tmp_path / "set")
    manifest = prepare(DataConfig(root=str(root)))
    film = root / manifest.of("train")[3].path
    content = film.read_bytes()
    film.write_bytes(content + b"x")
    with pytest.raises(DataError, match=rf"{film.name} changed"):
        open_images(manifest, 32, workspace)
    film.unlink()
    with pytest.raises(DataError, match=film.name):
        open_images(manifest, 32, workspace)
    assert list(workspace.caches.iterdir()) == []
    film.write_bytes(content)
    assert len(open_images(manifest, 32, workspace).train) > 0


def test_films_of_the_test_split_are_not_even_opened(tmp_path, workspace):
    root = kaggle_set(tmp_path / "set")
    manifest = prepare(DataConfig(root=str(root)))
    sealed = manifest.open_test(lambda: None)
    for film in sealed:
        (root / film.path).unlink()
    images = open_images(manifest, 32, workspace)
    assert len(sealed) > 0
    assert images.train.pixels.shape[0] == len(images.train) + len(images.val) == len(manifest.films) - len(sealed)


def test_another_split_of_the_same_films_decodes_nothing(tmp_path, workspace):
    root = kaggle_set(tmp_path / "set")
    manifest = prepare(DataConfig(root=str(root)))
    images = open_images(manifest, 32, workspace)
    shutil.rmtree(root)
    other = redrawn_images(images, redrawn(manifest, 5))
    assert set(other.val.paths) != set(images.val.paths)
    assert set(other.val.paths) | set(other.train.paths) == set(images.val.paths) | set(images.train.paths)
    assert not set(other.val.groups) & set(other.train.groups)
    known = {path: (split, at) for split in (images.train, images.val) for at, path in enumerate(split.paths)}
    for at, path in enumerate(other.val.paths):
        split, place = known[path]
        assert np.array_equal(other.val.batch([at]), split.batch([place]))
        assert other.val.labels[at] == split.labels[place]


def test_a_place_that_cannot_be_written_is_one_line(manifest, workspace):
    workspace.data.mkdir()
    workspace.caches.write_text("a file where a folder should be")
    with pytest.raises(DataError, match="cannot write the cache"):
        open_images(manifest, 32, workspace)


def build(manifest, root):
    open_images(manifest, 32, Workspace(root))


def test_two_builders_at_once_end_well(manifest, tmp_path):
    context = multiprocessing.get_context("fork")
    builders = [context.Process(target=build, args=(manifest, tmp_path)) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(300)
        assert builder.exitcode == 0
    assert len(list((tmp_path / "data" / "cache").iterdir())) == 1


def test_what_another_host_builds_is_left_alone_until_it_is_old(manifest, workspace):
    """On a disk without locks of folders; its process may have any number."""
    workspace.caches.mkdir(parents=True)
    living = workspace.caches / ".0123456789abcdef-48.00000000-1-abcdef.part"
    living.mkdir()
    (living / "pixels.npy").write_bytes(b"half")
    old, own = (workspace.caches / f".x.{host}-{2**22 + 1}-abc.part" for host in ("00000000", cache._host()))
    for part in (old, own):
        part.mkdir()
    os.utime(old, (1, 1))
    open_images(manifest, 32, workspace)
    assert living.is_dir()
    assert (old.exists(), own.exists()) == (False, False)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_cache_that_another_host_was_faster_with_is_used_where_it_is_whole(manifest, workspace, tmp_path, damaged):
    theirs = Workspace(tmp_path / "theirs")
    open_images(manifest, 32, theirs)
    (made,) = theirs.caches.iterdir()
    if damaged:
        (made / "pixels.npy").write_bytes(b"damaged")
    mark = made / "theirs"
    mark.touch()

    def faster(done, total):
        if done == total:
            shutil.copytree(made, workspace.caches / made.name, dirs_exist_ok=True)

    images = open_images(manifest, 32, workspace, faster)
    assert len(images.train) > 0
    assert (folder(workspace) / "theirs").exists() is not damaged
    assert np.array_equal(images.val.batch([0]), to_square_of(manifest, images))


def to_square_of(manifest, images):
    film = Path(manifest.root) / images.val.paths[0]
    return to_square(decode(film.read_bytes(), film.name), images.side)[None]


def test_a_disk_without_locks_of_folders_is_no_fault(manifest, workspace, monkeypatch):
    def refuses(handle, what):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr("xray_opt.cache.fcntl.flock", refuses)
    assert len(open_images(manifest, 32, workspace).train) > 0


KILLED = """
import sys, time
from pathlib import Path
from xray_opt.cache import open_images
from xray_opt.config import DataConfig, Workspace
from xray_opt.dataset import prepare
def slowly(done, total):
    print(done, flush=True)
    time.sleep(0.05)
open_images(prepare(DataConfig(root=sys.argv[1])), 32, Workspace(Path(sys.argv[2])), slowly)
"""


def test_a_kill_leaves_no_half_cache(manifest, workspace):
    arguments = [sys.executable, "-c", KILLED, manifest.root, str(workspace.root)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    while process.stdout.readline().strip() != "5":
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert all(path.name.startswith(".") for path in workspace.caches.iterdir())
    assert len(open_images(manifest, 32, workspace).train) > 0
    assert [path.name.startswith(".") for path in workspace.caches.iterdir()] == [False]


FULL = """
import resource, sys
from pathlib import Path
from xray_opt.cache import open_images
from xray_opt.config import DataConfig, Workspace
from xray_opt.dataset import prepare
manifest = prepare(DataConfig(root=sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
open_images(manifest, 32, Workspace(Path(sys.argv[2])))
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(manifest, workspace):
    arguments = [sys.executable, "-c", FULL, manifest.root, str(workspace.root)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "DataError: cannot write the cache" in done.stderr.splitlines()[-1]
    assert list(workspace.caches.iterdir()) == []


@pytest.mark.parametrize("pixels", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00\x02\x00((", b"\x93NUMPY"])
def test_pixels_that_are_none_are_made_anew_even_if_their_digest_is_right(manifest, workspace, pixels):
    before = np.array(open_images(manifest, 32, workspace).train.pixels)
    record = json.loads((folder(workspace) / "cache.json").read_text())
    (folder(workspace) / "pixels.npy").write_bytes(pixels)
    record["sha256"] = hashlib.sha256(pixels).hexdigest()
    (folder(workspace) / "cache.json").write_text(json.dumps(record))
    assert np.array_equal(open_images(manifest, 32, workspace).train.pixels, before)


def test_a_record_of_a_thousand_brackets_is_a_damaged_one(manifest, workspace):
    before = np.array(open_images(manifest, 32, workspace).train.pixels)
    (folder(workspace) / "cache.json").write_text("[" * 100_000)
    assert np.array_equal(open_images(manifest, 32, workspace).train.pixels, before)
