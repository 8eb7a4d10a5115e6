"""Room export: three formats that answer as predict does, on 100 films; what stands in them; what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow_stores import base, make_adapter
from PIL import Image
from safetensors import safe_open
from torchvision.models import efficientnet_v2_s

from xray_opt import registry
from xray_opt.adapter import Bundle, attach, merged
from xray_opt.augment import plain
from xray_opt.backbone import Base, build_network, save_base, trained_base
from xray_opt.config import Config, TrackingConfig, Workspace, override
from xray_opt.errors import ConfigError, ModelError, TrackingError
from xray_opt.evaluate import predict_logits
from xray_opt.export import FORMATS, export
from xray_opt.export import exporting as room
from xray_opt.export.exporting import CHECKED, TOLERANCE, checked, in_double, made_up, rounding
from xray_opt.export.formats import FACTS
from xray_opt.export.network import FilmNetwork, resizing
from xray_opt.mlflow_client import connect
from xray_opt.phantom import make_phantoms

CPU = torch.device("cpu")
CHAMPION = "models:/xray-pneumonia@champion"


def noise(count: int, side: int) -> np.ndarray:
    """(count, side, side) uint8 squares of smooth noise."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 12, 12), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in coarse])


STRATEGIES = {
    "folded lora": {"lora.rank": 4},
    "lora of all convolutions": {"lora.rank": 4, "lora.targets": "ungrouped"},
    "lora with dropout": {"lora.rank": 4, "lora.dropout": 0.1, "lora.stages": "late"},
    "trained statistics": {"lora.rank": 4, "model.batch_norm": "train"},
    "linear": {"model.strategy": "linear"},
    "full": {"model.strategy": "full", "model.batch_norm": "train"},
}


@pytest.fixture(scope="module")
def settled() -> Base:
    """Random weights whose BatchNorm has the statistics of some films, so that films differ in their logits."""
    network = build_network(base().state).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for _ in range(3):
            network(plain(torch.from_numpy(noise(16, 48)), 64))
    return trained_base(network.features.state_dict(prefix="features."), "settled", ())


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_merged_network_is_torchvisions_and_computes_the_same(name: str, settled: Base) -> None:
    network = attach(settled, override(Config(), {"model.strategy": "lora", **STRATEGIES[name], "image.size": 32}))
    with torch.no_grad():
        for key, value in network.named_parameters():
            if value.requires_grad:
                chance = torch.Generator().manual_seed(len(key))
                value.add_((0.02 if "classifier" in key else 0.001) * torch.randn(value.shape, generator=chance))
    films = noise(3, 48)
    wanted = predict_logits(network, films, 64, CPU)
    one = merged(network)
    strange = efficientnet_v2_s(weights=None, num_classes=1).eval()
    strange.load_state_dict(one.state_dict())
    with torch.inference_mode():
        found = strange(plain(torch.from_numpy(films), 64)).squeeze(1).double().numpy()
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert {type(module).__module__.partition(".")[0] for module in one.modules()} == {"torch", "torchvision"}
    assert np.ptp(wanted) > 1e-3


@pytest.mark.parametrize(("side", "size"), [(48, 32), (96, 64), (33, 32), (40, 60), (32, 32)])
def test_two_products_are_the_antialiased_resize(side: int, size: int) -> None:
    films = torch.from_numpy(noise(2, side))
    rows = resizing(side, size)
    grey = films.unsqueeze(1).float() / 255
    images = (rows @ grey @ rows.T - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(1, 3, 1, 1)
    assert torch.allclose(images, plain(films, size), atol=2e-5)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_adapter(tmp_path_factory.mktemp("adapter"))
    save_base(base(), folder / "base.safetensors")
    return folder


def test_weights_of_a_folder_and_what_stands_beside_them(adapter: Path, tmp_path: Path) -> None:
    made = export(str(adapter), "safetensors", tmp_path / "deep" / "a.safetensors", Workspace(tmp_path))
    content = Path(made.path).read_bytes()
    assert (made.sha256, made.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert made.difference <= TOLERANCE
    record = json.loads((adapter / "bundle.json").read_text())
    assert made.source_sha256 == record["sha256"]
    with safe_open(made.path, "pt") as file:
        facts = file.metadata()
    check_facts(facts, Bundle.from_json((adapter / "bundle.json").read_text(), ""))
    assert (facts["source"], "version" in facts, "run" in facts) == (adapter.name, False, False)
    assert str(adapter.parent) not in json.dumps(facts)
    again = export(str(adapter), "safetensors", tmp_path / "b.safetensors", Workspace(tmp_path))
    assert again.sha256 == made.sha256


def test_made_up_films_are_squares_of_their_own() -> None:
    films = made_up(8, 40)
    assert (films.shape, films.dtype) == ((8, 40, 40), np.uint8)
    assert len({film.tobytes() for film in films}) == 8


def check_facts(facts: dict[str, str], bundle: Bundle) -> None:
    assert "Not for clinical use" in facts["warning"]
    assert facts["source_sha256"] == bundle.sha256
    assert facts["base_sha256"] == bundle.base_sha256
    assert json.loads(facts["classes"]) == [*bundle.classes]
    assert float(facts["threshold"]) == bundle.threshold
    assert float(facts["temperature"]) == bundle.temperature
    assert json.loads(facts["thresholds"]) == dict(bundle.thresholds)
    assert (int(facts["image_size"]), int(facts["cache_side"])) == (bundle.image_size, bundle.cache_side)
    assert json.loads(facts["mean"])[0] == 0.485


@pytest.mark.parametrize(
    ("model", "kind", "name", "error", "words"),
    [
        ("adapter", "gguf", "a.gguf", ConfigError, "known are onnx"),
        ("adapter", "onnx", "a.safetensors", ConfigError, "end in .onnx"),
        ("adapter", "safetensors", "old.safetensors", ConfigError, "--force"),
        ("adapter", "safetensors", "folder.safetensors", ConfigError, "exists already"),
        ("adapter", "safetensors", "old.safetensors/a.safetensors", ConfigError, "cannot write"),
        ("nothing", "safetensors", "a.safetensors", TrackingError, "no model"),
    ],
)
def test_what_is_refused_is_one_line_and_leaves_all_as_it_was(
    adapter: Path, tmp_path: Path, model: str, kind: str, name: str, error: type[Exception], words: str
) -> None:
    (tmp_path / "old.safetensors").write_bytes(b"old")
    (tmp_path / "folder.safetensors").mkdir()
    source = str(adapter) if model == "adapter" else model
    with pytest.raises(error, match=words) as caught:
        export(source, kind, tmp_path / name, Workspace(tmp_path))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "old.safetensors").read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} - {"mlruns"} == {"old.safetensors", "folder.safetensors"}


def test_with_force_it_is_written_over_at_once(adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    out.write_bytes(b"old")
    made = export(str(adapter), "safetensors", out, Workspace(tmp_path), force=True)
    assert out.stat().st_size == made.bytes > 1000
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        export(str(adapter), "safetensors", tmp_path / "folder.safetensors", Workspace(tmp_path), force=True)


def test_what_does_not_agree_is_not_written(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = room.FilmNetwork

    class Wrong(FilmNetwork):
        def __init__(self, network: torch.nn.Module, bundle: Bundle) -> None:
            super().__init__(network, bundle)
            with torch.no_grad():
                self.network.classifier[1].bias += 0.1

    monkeypatch.setattr(room, "FilmNetwork", Wrong)
    with pytest.raises(ModelError, match="differs from predict by"):
        export(str(adapter), "safetensors", tmp_path / "a.safetensors", Workspace(tmp_path))

    class Broken(original):
        def __init__(self, network: torch.nn.Module, bundle: Bundle) -> None:
            raise ValueError("odd\nthing")

    monkeypatch.setattr(room, "FilmNetwork", Broken)
    with pytest.raises(ModelError, match="cannot be exported as safetensors: odd thing"):
        export(str(adapter), "safetensors", tmp_path / "a.safetensors", Workspace(tmp_path))
    assert not (tmp_path / "a.safetensors").exists()


def test_what_rounding_explains_is_no_difference(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = registry.load(connect(TrackingConfig(), Workspace(tmp_path)), str(adapter), CPU)
    side = loaded.bundle.cache_side
    exact = in_double(loaded, made_up(CHECKED, side))

    def off(by: float):
        return lambda films: exact[: len(films)] + by

    assert checked(loaded, off(0.0)) <= TOLERANCE
    with pytest.raises(ModelError, match=r"differs from predict by 0\.0003"):
        checked(loaded, off(3e-4))
    cases = ((2e-4, -1.5e-4, True), (2e-4, -9e-4, False), (0.1, -0.2, False), (0.1, 5e-3, True), (0.1, -2e-2, False))
    for moved, answer, holds in cases:
        answers = exact + moved
        monkeypatch.setattr(
            room, "predict_logits", lambda *given, p=answers: np.log(p / (1 - p)) * loaded.bundle.temperature
        )
        if holds:
            assert checked(loaded, off(answer)) == pytest.approx(moved - answer, rel=1e-3)
        else:
            with pytest.raises(ModelError, match="differs from predict by"):
                checked(loaded, off(answer))


def test_without_the_extra_one_line_says_how_to_get_it(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"needs onnxscript: pip install 'xray-opt\[onnx\]'"):
        export(str(adapter), "onnx", tmp_path / "a.onnx", Workspace(tmp_path))
    assert not (tmp_path / "a.onnx").exists()


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """100 phantoms that no model has seen."""
    folder = tmp_path_factory.mktemp("phantoms")
    make_phantoms(folder, 70, 4711)
    return sorted(folder.rglob("*.jpeg"))[:100]


@pytest.fixture(scope="module")
def exported(tuned, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The champion of the shared study in every format, by the command."""
    pytest.importorskip("onnxruntime")
    place, _, _ = tuned
    folder = tmp_path_factory.mktemp("exported")
    return {
        kind: place.json("export", "--format", kind, "--out", str(folder / f"model{one.suffix}"))
        for kind, one in FORMATS.items()
    }


def squares(films: list[Path], side: int) -> np.ndarray:
    """As the documentation says it, with Pillow alone."""
    opened = [Image.open(path).convert("L").resize((side, side), Image.Resampling.BILINEAR) for path in films]
    return np.stack([np.asarray(image) for image in opened])


def with_onnxruntime(path: str, squares: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), outputs = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("films", "tensor(uint8)", [*squares.shape[1:]])
    assert [one.name for one in outputs] == ["probability", "logit"]
    parts = [session.run(None, {"films": squares[first : first + 64]})[0] for first in range(0, len(squares), 64)]
    return np.concatenate(parts), session.get_modelmeta().custom_metadata_map


def with_torch_export(path: str, squares: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    facts = {FACTS: ""}
    network = torch.export.load(path, extra_files=facts).module()
    return network(torch.from_numpy(squares))[0].numpy(), json.loads(facts[FACTS])


def with_torchvision(path: str, squares: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    with safe_open(path, "pt") as file:
        facts = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    network = efficientnet_v2_s(weights=None, num_classes=1).eval()
    network.load_state_dict(state)
    size = int(facts["image_size"])
    grey = torch.from_numpy(squares).unsqueeze(1).float() / 255
    grey = torch.nn.functional.interpolate(grey, (size, size), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(json.loads(facts[name])).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        logits = network((grey - mean) / std).squeeze(1)
    return torch.sigmoid(logits / float(facts["temperature"])).numpy(), facts


@pytest.fixture(scope="module")
def asked(tuned, films: list[Path]) -> tuple[registry.Loaded, np.ndarray, np.ndarray, np.ndarray]:
    """The champion, the films' squares, predict's (100,) answers, and for which films (100,) arithmetic bears them out.

    Three steps on random weights leave a network that multiplies rounding a million times for some films, in predict's
    own answer too: where double precision does not confirm it, or is moved by a millionth of the greys, the answer says
    nothing about an export.
    """
    place, _, _ = tuned
    loaded = registry.load(connect(TrackingConfig(), place.workspace), CHAMPION, CPU)
    given, wanted = squares(films, loaded.bundle.cache_side), loaded.predictor.probabilities(films)
    firm = rounding(loaded, given, wanted, in_double(loaded, given)) <= TOLERANCE / 10
    assert firm.sum() >= 75
    return loaded, given, wanted, firm


READERS = {"onnx": with_onnxruntime, "torch-export": with_torch_export, "safetensors": with_torchvision}


@pytest.mark.long
@pytest.mark.parametrize("kind", READERS)
def test_100_films_are_answered_as_predict_answers_them(asked, exported, kind: str) -> None:
    loaded, given, wanted, firm = asked
    made, bundle = exported[kind], loaded.bundle
    found, facts = READERS[kind](made["path"], given)
    assert found.shape == wanted.shape == (100,)
    assert np.abs(found - wanted)[firm].max() <= TOLERANCE
    called = wanted >= bundle.threshold
    assert 0 < called[firm].sum() < firm.sum()
    assert ((found >= float(facts["threshold"])) == called)[firm].all()
    check_facts(facts, bundle)
    assert facts["version"] == loaded.version == made["version"]
    assert (facts["run"], facts["source"]) == (loaded.run_id, CHAMPION)
    first = int(np.flatnonzero(firm)[0])
    one, _ = READERS[kind](made["path"], given[[first]])
    assert one == pytest.approx(wanted[[first]], abs=TOLERANCE)
    assert hashlib.sha256(Path(made["path"]).read_bytes()).hexdigest() == made["sha256"]


@pytest.mark.long
def test_the_command_says_what_it_wrote_and_refuses_to_write_over_it(tuned, exported) -> None:
    place, _, _ = tuned
    out = exported["safetensors"]["path"]
    refused = place.run("export", "--format", "safetensors", "--out", out)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--force" in refused.stderr
    done = place.run("export", "--format", "safetensors", "--out", out, "--force")
    assert done.returncode == 0, done.stderr
    assert exported["safetensors"]["sha256"] in done.stdout
    assert "not for clinical use" in done.stdout
    assert done.stderr == ""
    assert [name for name in os.listdir(Path(out).parent) if name.startswith(".")] == []
