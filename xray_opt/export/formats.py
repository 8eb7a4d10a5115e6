"""The three formats: how a network becomes the bytes of a file, and how such bytes are asked for probabilities.

What is asked is what a reader of the file has: onnxruntime, ``torch.export.load``, or torchvision's own network.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torchvision.models import efficientnet_v2_s

from xray_opt.adapter import Bundle
from xray_opt.augment import plain
from xray_opt.export.network import FilmNetwork

Films = NDArray[np.uint8]
#: (N, side, side) grey squares → (N,) calibrated probabilities.
Ask = Callable[[Films], NDArray[np.float64]]
#: Names of the graph's input and outputs. File of the facts inside a torch.export program.
INPUT, OUTPUTS = "films", ("probability", "logit")
FACTS = "xray-opt.json"


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        suffix: that its files must have.
        write: the bytes of a file that holds a network and facts about it.
        read: what its own runtime makes of such bytes.
        needs: packages of the extra ``onnx`` that both take.
    """

    suffix: str
    write: Callable[[FilmNetwork, Mapping[str, str]], bytes]
    read: Callable[[bytes, Bundle], Ask]
    needs: tuple[str, ...] = ()


def _write_onnx(network: FilmNetwork, facts: Mapping[str, str]) -> bytes:
    with _quiet():
        program = torch.onnx.export(
            network,
            (_example(network),),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={INPUT: {0: torch.export.Dim("N")}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise TypeError("torch.onnx.export gave nothing")
    model = program.model_proto
    for name, value in facts.items():
        model.metadata_props.add(key=name, value=value)
    content: bytes = model.SerializeToString()
    return content


def _read_onnx(content: bytes, bundle: Bundle) -> Ask:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda films: np.asarray(session.run([OUTPUTS[0]], {INPUT: films})[0], dtype=np.float64)


def _write_program(network: FilmNetwork, facts: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with _quiet():
        shapes = {INPUT: {0: torch.export.Dim("N")}}
        program = torch.export.export(network, (_example(network),), dynamic_shapes=shapes)
        torch.export.save(program, buffer, extra_files={FACTS: json.dumps(dict(facts), indent=1, sort_keys=True)})
    return buffer.getvalue()


def _read_program(content: bytes, bundle: Bundle) -> Ask:
    with _quiet():
        network = torch.export.load(io.BytesIO(content)).module()
    return lambda films: network(torch.from_numpy(films))[0].double().numpy()


def _write_weights(network: FilmNetwork, facts: Mapping[str, str]) -> bytes:
    state = {name: value.contiguous() for name, value in network.network.state_dict().items()}
    return _in_order(save(state), facts)


def _in_order(content: bytes, facts: Mapping[str, str]) -> bytes:
    """A safetensors file with facts in its header, in their order: the library's own differs from call to call."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(facts)} | json.loads(content[8:end])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[end:]


def _read_weights(content: bytes, bundle: Bundle) -> Ask:
    network = efficientnet_v2_s(weights=None, num_classes=1).eval()
    network.load_state_dict(load(content))

    def ask(films: Films) -> NDArray[np.float64]:
        with torch.inference_mode():
            logits = network(plain(torch.from_numpy(films), bundle.image_size)).squeeze(1).double()
            return torch.sigmoid(logits / bundle.temperature).numpy()

    return ask


FORMATS = {
    "onnx": Format(".onnx", _write_onnx, _read_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "torch-export": Format(".pt2", _write_program, _read_program),
    "safetensors": Format(".safetensors", _write_weights, _read_weights),
}


def _example(network: FilmNetwork) -> torch.Tensor:
    """Two films: one would be taken for a size that never changes."""
    side = network.rows.shape[1]
    return torch.zeros(2, side, side, dtype=torch.uint8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' talk: standard output and error belong to the commands."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
