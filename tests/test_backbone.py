"""Base weights: digest, files, download from a real server, devices."""

import hashlib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from xray_opt.backbone import (
    Base,
    build_network,
    download_weights,
    imagenet_weights,
    load_base,
    random_base,
    read_base,
    resolve_device,
    resolve_precision,
    save_base,
)
from xray_opt.backbone.network import feature_shapes
from xray_opt.config import ModelConfig
from xray_opt.errors import ConfigError, ModelError


@pytest.fixture(scope="module")
def base() -> Base:
    return random_base(0)


def test_random_weights_follow_from_their_seed_and_leave_the_global_state_alone(base):
    before = torch.get_rng_state()
    again, other = random_base(0), random_base(1)
    assert torch.equal(before, torch.get_rng_state())
    assert again.sha256 == base.sha256 != other.sha256
    assert base.origin == "random seed 0"
    assert "RANDOM" in base.warning()


def test_the_digest_is_of_contents_not_of_a_file(base, tmp_path):
    path = save_base(base, tmp_path / "base.safetensors")
    torch.save(dict(base.state) | {"classifier.1.weight": torch.zeros(1000, 1280)}, tmp_path / "base.pth")
    assert read_base(path).sha256 == read_base(tmp_path / "base.pth").sha256 == base.sha256
    assert read_base(path).origin == "random seed 0"
    assert read_base(tmp_path / "base.pth").origin == "base.pth"


def trained(base):
    """Weights whose norms have seen something."""
    state = {name: value.clone() for name, value in base.state.items()}
    state["features.0.1.running_mean"] += 0.1
    return state


@pytest.mark.parametrize("name", ["random.pth", "random seed 0", "imagenet", "best.safetensors"])
def test_random_weights_are_warned_of_by_what_they_are_not_by_what_they_are_called(base, tmp_path, name):
    save = save_file if name.endswith(".safetensors") else torch.save
    save(dict(base.state), tmp_path / name)
    assert "RANDOM" in read_base(tmp_path / name).warning()
    save(trained(base), tmp_path / name)
    assert read_base(tmp_path / name).warning() is None
    assert read_base(tmp_path / name).origin not in ("imagenet", "random seed 0")


def test_a_stored_random_base_stays_warned_of_under_any_label(base, tmp_path):
    for origin in ("random seed 0", "imagenet", "best.pth"):
        path = save_base(replace(base, origin=origin), tmp_path / "base.safetensors")
        assert read_base(path).origin == origin
        assert "RANDOM" in read_base(path).warning()


@pytest.fixture(scope="module")
def stored(base, tmp_path_factory):
    return save_base(base, tmp_path_factory.mktemp("stored") / "base.safetensors").read_bytes()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_a_damaged_file_is_refused_with_one_line_or_is_the_same_base(base, stored, tmp_path_factory, data):
    header = 8 + int.from_bytes(stored[:8], "little")
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    kind = data.draw(st.sampled_from(["cut", "length", "header", "values"]))
    if kind == "cut":
        damaged = stored[: data.draw(st.sampled_from([0, 3, 8, 9, header // 2, header, header + 1, len(stored) - 1]))]
    elif kind == "length":
        length = data.draw(st.sampled_from([0, 1, header - 9, header - 7, 10**9, 2**63 - 1, 2**64 - 1]))
        damaged = length.to_bytes(8, "little") + stored[8:]
    else:
        first, last = (8, header) if kind == "header" else (header, len(stored))
        at = data.draw(st.integers(first, last - 1))
        damaged = stored[:at] + bytes([stored[at] ^ data.draw(st.integers(1, 255))]) + stored[at + 1 :]
    path.write_bytes(damaged)
    refusal = ""
    try:
        found = read_base(path)
    except ModelError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal
        assert path.name in refusal
    else:  # the label or a key of the metadata was hit, and that decides nothing
        assert found.sha256 == base.sha256
        assert "RANDOM" in found.warning()


def test_a_tensor_without_values_is_refused(base, tmp_path):
    name = "features.0.0.weight"
    for odd in (torch.empty(24, 3, 3, 3, device="meta"), base.state[name].to_sparse()):
        torch.save(dict(base.state) | {name: odd}, tmp_path / "odd.pth")
        with pytest.raises(ModelError, match=r"odd\.pth"):
            read_base(tmp_path / "odd.pth")


def test_one_changed_value_is_another_base(base, tmp_path):
    state = {name: value.clone() for name, value in base.state.items()}
    state["features.0.0.weight"][0, 0, 0, 0] += 1e-6
    save_file(state, tmp_path / "other.safetensors")
    assert read_base(tmp_path / "other.safetensors").sha256 != base.sha256


def test_saving_is_whole_or_not_at_all(base, tmp_path):
    save_base(base, tmp_path / "sub" / "base.safetensors")
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["base.safetensors"]


@pytest.mark.parametrize("spoil", ["missing", "shape", "nan", "text", "empty", "list"])
def test_unusable_weights_are_refused_with_one_line(base, tmp_path, spoil):
    path = tmp_path / ("w.pth" if spoil == "list" else "w.safetensors")
    state = {name: value.clone() for name, value in base.state.items()}
    if spoil == "missing":
        del state["features.3.0.block.0.0.weight"]
    elif spoil == "shape":
        state["features.0.0.weight"] = torch.zeros(8, 3, 3, 3)
    elif spoil == "nan":
        state["features.0.0.weight"][0] = float("nan")
    save_file(state, path)
    if spoil == "text":
        path.write_text("no weights")
    elif spoil == "empty":
        path.write_bytes(b"")
    elif spoil == "list":
        torch.save([1, 2], path)
    with pytest.raises(ModelError) as caught:
        read_base(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelError, match=r"evil\.pth"):
        read_base(tmp_path / "evil.pth")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ModelError, match="no base weights"):
        load_base(ModelConfig(base=str(tmp_path / "none.pth")))


def test_the_network_carries_the_weights_and_gives_one_logit(base):
    network = build_network(base.state, dropout=0.3)
    assert network.classifier[0].p == 0.3
    state = network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in base.state.items())
    assert network.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 1)
    assert sum(1 for module in network.modules() if isinstance(module, torch.nn.Conv2d)) == 170


def test_stochastic_depth_rises_to_the_given_chance(base):
    network = build_network(base.state, stochastic_depth=0.3)
    chances = [module.p for module in network.modules() if type(module).__name__ == "StochasticDepth"]
    assert chances[0] == 0
    assert chances == sorted(chances)
    assert 0.2 < chances[-1] < 0.3


def test_batch_counters_are_not_part_of_the_base(base):
    assert not any("num_batches_tracked" in name for name in base.state)
    assert set(base.state) == set(feature_shapes())


CONTENT = bytes(range(256)) * 20000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT; ``ranges``: whether it resumes; ``cut``: bytes after which it breaks the first connection."""

    ranges, cut, content = True, 0, CONTENT
    asked: ClassVar[list] = []

    def do_GET(self):
        kind = type(self)
        kind.asked.append(self.headers.get("Range"))
        start = 0
        if kind.ranges and self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        if start >= len(kind.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(kind.content) - start))
        self.end_headers()
        body = kind.content[start:]
        if kind.cut:
            body, kind.cut = body[: kind.cut], 0
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@contextmanager
def serving(**settings):
    handler = type("Handler", (Server,), {"asked": [], **settings})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/weights.pth", handler
    finally:
        server.shutdown()


def test_downloads_once_and_verifies(tmp_path):
    seen = []
    with serving() as (url, handler):
        path = download_weights(url, DIGEST, tmp_path, lambda done, total: seen.append((done, total)))
        assert download_weights(url, DIGEST, tmp_path) == path
        assert len(handler.asked) == 1
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on_or_starts_over(tmp_path, ranges):
    with serving(ranges=ranges, cut=1_000_000) as (url, handler):
        with pytest.raises(ModelError, match="try again to resume"):
            download_weights(url, DIGEST, tmp_path)
        assert not (tmp_path / "weights.pth").exists()
        assert download_weights(url, DIGEST, tmp_path).read_bytes() == CONTENT
        assert handler.asked == [None, "bytes=1000000-"]


def test_wrong_bytes_are_refused_and_not_kept(tmp_path):
    with serving(content=b"x" * 1000) as (url, _), pytest.raises(ModelError, match="SHA-256"):
        download_weights(url, DIGEST, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cache_is_fetched_anew(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"half")
    with serving() as (url, _):
        assert download_weights(url, DIGEST, tmp_path).read_bytes() == CONTENT


HOLDER = """
import fcntl, sys
with open(sys.argv[1], "ab") as part:
    fcntl.flock(part, fcntl.LOCK_EX)
    part.write(b"\\x00\\x01\\x02")
    part.flush()
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_part_is_left_to_its_holder_and_taken_over_when_it_dies(tmp_path):
    part = tmp_path / "weights.pth.0.part"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(part)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with serving() as (url, handler):
            path = download_weights(url, DIGEST, tmp_path)
            assert (path.read_bytes() == CONTENT, part.read_bytes()) == (True, b"\x00\x01\x02")
            holder.kill()
            holder.wait()
            path.unlink()
            assert download_weights(url, DIGEST, tmp_path).read_bytes() == CONTENT
            assert handler.asked == [None, "bytes=3-"]
    finally:
        holder.kill()
        holder.communicate()
    assert [item.name for item in tmp_path.iterdir()] == ["weights.pth"]


def test_a_whole_part_needs_no_byte_more(tmp_path):
    (tmp_path / "weights.pth.0.part").write_bytes(CONTENT)
    with serving() as (url, handler):
        assert download_weights(url, DIGEST, tmp_path).read_bytes() == CONTENT
        assert handler.asked == [f"bytes={len(CONTENT)}-"]


def test_downloads_at_once_do_not_disturb_each_other(tmp_path):
    with serving() as (url, _), ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: download_weights(url, DIGEST, tmp_path), range(4)))
    assert [path.read_bytes() == CONTENT for path in paths] == [True] * 4
    assert [item.name for item in tmp_path.iterdir()] == ["weights.pth"]


def test_without_a_network_the_line_names_the_ways_on(tmp_path):
    with serving() as (url, _):
        pass
    with pytest.raises(ModelError, match=r"--weights PATH.*model\.base=random"):
        download_weights(url, DIGEST, tmp_path)


def test_imagenet_weights_may_be_given_by_a_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAY_OPT_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(ModelError, match="XRAY_OPT_WEIGHTS"):
        imagenet_weights()
    (tmp_path / "mine.pth").write_bytes(b"x")
    monkeypatch.setenv("XRAY_OPT_WEIGHTS", str(tmp_path / "mine.pth"))
    with pytest.raises(ModelError, match="not torchvision's ImageNet file"):
        imagenet_weights()
    monkeypatch.setattr("xray_opt.backbone.download.IMAGENET_SHA256", hashlib.sha256(b"x").hexdigest())
    assert imagenet_weights() == tmp_path / "mine.pth"


def test_random_is_never_a_fallback(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAY_OPT_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(ModelError):
        load_base(ModelConfig(base="imagenet"))


def test_devices():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cuda", "mps", "cpu")
    for name in ("cuda:64", "gpu", "cuda:01"):
        with pytest.raises(ConfigError, match=name):
            resolve_device(name)


def test_precision_is_what_was_asked_for_or_what_the_device_is_made_for():
    cpu = torch.device("cpu")
    assert resolve_precision("bf16", cpu) == torch.bfloat16
    assert resolve_precision("fp32", cpu) == torch.float32
    assert resolve_precision("auto", cpu) in (torch.float32, torch.bfloat16)
    assert resolve_precision("auto", torch.device("mps")) == torch.float32


def test_safetensors_of_ours_open_without_us(base, tmp_path):
    assert load_file(save_base(base, tmp_path / "b.safetensors")).keys() == base.state.keys()


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_weights_that_cannot_even_be_looked_for_are_one_line(tmp_path, name):
    with pytest.raises(ModelError, match="no base weights at"):
        read_base(tmp_path / name)
