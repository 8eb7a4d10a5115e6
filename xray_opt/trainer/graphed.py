"""The training step as a CUDA graph: about 3,000 kernels launched as one, captured once for all trials of a process.

What is captured is a twin of the first trial's network, never a network in training: warm-up and capture change no
weight, statistic or random number of a trial. Before a step a trial writes its weights into the twin's, behind it it
takes the gradients over; with folded LoRA that is the folded weight, so the graph knows neither rank nor alpha, nor
the loss's settings. Learning rates stay outside, as the optimizer does: it is fused, a few kernels a step.

All parts of the first one's shape are replayed. Others (a short last batch, parts of unequal size) go kernel by
kernel through the trial's own network: padding them with films of no weight would enter BatchNorm's statistics.
One captured step is kept, for the trials to come; where the next one differs in more than the graph leaves open, it is
replaced. After https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from xray_opt.adapter import logits, set_mode
from xray_opt.errors import ConfigError, one_line
from xray_opt.faults import out_of_memory
from xray_opt.loss import FocalLoss
from xray_opt.trainer.compiled import Forward
from xray_opt.trainer.eager import Eager
from xray_opt.trainer.step import copy_statistics, running_statistics

if TYPE_CHECKING:
    from xray_opt.adapter.folded_conv import Parts

#: Turns a function on tensors at fixed addresses into one that repeats its kernels.
Record = Callable[[Callable[[], None], torch.device], Callable[[], None]]
#: Runs before a capture, in which libraries initialise themselves (PyTorch's notes).
WARM_UP = 3


def record(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """``function`` as a CUDA graph; it runs a few times before.

    Raises:
        RuntimeError, MemoryError: memory ran out in ``function`` or its capture.
        ConfigError: it cannot be captured.
    """
    stream, outside = _side_stream(device), torch.cuda.current_stream(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(outside):  # comes back to it even where a capture breaks off
            _warm_up(function, stream, outside)
            # The thread that reads films ahead pins memory meanwhile: that may not disturb the capture.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                function()
    except RuntimeError as error:
        if memory := _shortage(error):
            raise memory from None
        raise ConfigError(
            f"training.cuda_graphs: capturing fails here ({one_line(error)}); set training.cuda_graphs=false"
        ) from error
    return graph.replay


def _warm_up(function: Callable[[], None], stream: torch.cuda.Stream, outside: torch.cuda.Stream) -> None:
    stream.wait_stream(outside)
    try:
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                function()
    finally:  # where memory ran out as well: what is freed now must not be written to any more
        outside.wait_stream(stream)


@lru_cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: libraries keep a workspace a stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _shortage(error: BaseException | None) -> BaseException | None:
    """The lack of memory that ended a capture, if one did: leaving it may raise once more."""
    while error is not None and not out_of_memory(error):
        error = error.__context__
    return error


class Captured:
    """A recorded forward and backward pass, and the tensors that it reads and writes.

    Attributes:
        own: trained weights of the twin that are not folded into another.
        live: folded weights of the twin.
        gradients: sums since the last zeroing, in fp32 at least: of the folded weights, then of ``own``.
    """

    def __init__(
        self, network: nn.Module, precision: torch.dtype, images: Tensor, forward: Callable[[nn.Module], Forward]
    ) -> None:
        from xray_opt.adapter.live import LiveWeights

        device = images.device
        self._twin = copy.deepcopy(network)
        set_mode(self._twin, True)
        self.live = LiveWeights(self._twin, precision)
        self.own = trained(self._twin, self.live.adapter(self._twin))
        self._leaves = [*self.live.tensors, *self.own]
        wide = [torch.promote_types(leaf.dtype, torch.float32) for leaf in self._leaves]
        self.gradients = [torch.zeros_like(leaf, dtype=kind) for leaf, kind in zip(self._leaves, wide, strict=True)]
        self.statistics = running_statistics(self._twin)
        self._images, self._targets = images.clone(), torch.zeros(len(images), device=device)
        self._share, self._total = (torch.zeros((), device=device) for _ in range(2))
        # As precise as Python's numbers, and without a dimension: so they give what those give.
        self._alpha, self._gamma, self._smoothing = (
            torch.zeros((), dtype=torch.float64, device=device) for _ in range(3)
        )
        self._loss = FocalLoss(self._alpha, self._gamma, self._smoothing)
        self._precision = precision
        self._forward = forward(self._twin)
        self._replay: Callable[[], None] = self._run

    def record(self, how: Record) -> None:
        """From now on the kernels are repeated; the weights should be a trial's by now."""
        self._replay = how(self._run, self._images.device)

    def ask(self, loss: FocalLoss) -> None:
        """Compute this loss from now on."""
        self._alpha.fill_(loss.alpha)
        self._gamma.fill_(loss.gamma)
        self._smoothing.fill_(loss.smoothing)

    def part(self, images: Tensor, targets: Tensor, share: float) -> Tensor:
        """See :meth:`Eager.part`; gradients are added to :attr:`gradients`."""
        self._images.copy_(images)
        self._targets.copy_(targets)
        self._share.fill_(share)
        self._replay()
        return self._total.clone()

    def _run(self) -> None:
        kind, autocast = self._images.device.type, self._precision != torch.float32
        # No cache: casts of weights are of this graph, and of each replay anew.
        with torch.autocast(kind, self._precision, enabled=autocast, cache_enabled=False):
            answer = self._forward(self._images)
        loss = self._loss(answer.float(), self._targets) * self._share
        torch._foreach_add_(self.gradients, torch.autograd.grad(loss, self._leaves))
        self._total.copy_(loss.detach())


class Graphed(Eager):
    """Gradients by way of a captured step, which trials share."""

    def __init__(
        self,
        network: nn.Module,
        loss: FocalLoss,
        precision: torch.dtype,
        same: Hashable,
        forward: Callable[[nn.Module], Forward] = lambda network: partial(logits, network),
        how: Record = record,
    ) -> None:
        """``same`` is all that the network's kernels depend on, but their images: equal for two that may share."""
        super().__init__(network, loss, precision)
        self._same = same
        self._make_forward = forward
        self._how = how
        self._shape: torch.Size | None = None
        self._trial: _Trial | None = None
        self._begun = False

    def begin(self) -> None:
        """The weights may have changed since the last step."""
        self._begun = False

    def part(self, images: Tensor, targets: Tensor, share: float) -> Tensor:
        """Replay the step on images of the shape that came first; others as :class:`Eager` does."""
        self._shape = self._shape or images.shape
        if images.shape != self._shape:
            return super().part(images, targets, share)
        if self._trial is None:
            self._trial = self._join(images)
        if not self._begun:
            self._trial.lend(self._loss)
            self._begun = True
        return self._trial.part(images, targets, share)

    def end(self) -> None:
        """Add the gradients of what was replayed to those of the other parts."""
        if self._begun and self._trial:
            self._trial.collect()

    def restart(self) -> None:
        """Let go of the captured step: the next one is of a smaller shape."""
        self._trial, self._shape, self._begun = None, None, False
        release()

    def _join(self, images: Tensor) -> _Trial:
        """Take over the captured step that is kept, or capture one; random numbers are as before."""
        device = images.device
        key = (self._same, self._precision, images.shape, device)
        if key not in _KEPT:
            release()
        gc.collect()  # what earlier trials left in cycles must not be freed in the midst of a capture
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            captured = _KEPT.get(key) or Captured(self.network, self._precision, images, self._make_forward)
            trial = _Trial(self.network, captured, self._how, device)
            if key not in _KEPT:
                trial.lend(self._loss)
                captured.record(self._how)
                _KEPT[key] = captured
        return trial


#: The one captured step that is kept for the trials to come.
_KEPT: dict[Hashable, Captured] = {}


def release() -> None:
    """Let go of the captured step that is kept, and of its memory once no training uses it."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()  # the device may still be at the last replay
    _KEPT.clear()
    gc.collect()


class _Trial:
    """Ties the network of one trial to a captured step: its weights there, the gradients back."""

    def __init__(self, network: nn.Module, captured: Captured, how: Record, device: torch.device) -> None:
        from xray_opt.adapter.live import halves

        self._captured = captured
        self._adapter = captured.live.adapter(network)
        self._halves = halves(self._adapter)
        self._own = trained(network, self._adapter)
        self._statistics = running_statistics(network)
        # Gradients of A and B, and small graphs of their own: folding takes 500 kernels.
        self._found = [torch.zeros_like(half) for half in self._halves]
        self._fold = how(partial(captured.live.fold, self._adapter), device) if self._adapter else None
        self._project = how(self._to_halves, device) if self._adapter else None

    @torch.no_grad()
    def lend(self, loss: FocalLoss) -> None:
        """Write the trial's weights into the twin's, and forget gradients."""
        if self._fold:
            self._fold()
        torch._foreach_copy_(self._captured.own, self._own)
        torch._foreach_zero_(self._captured.gradients)
        self._captured.ask(loss)

    def part(self, images: Tensor, targets: Tensor, share: float) -> Tensor:
        """See :meth:`Eager.part`; the trial's statistics are the ones that move."""
        copy_statistics(self._statistics, self._captured.statistics)
        loss = self._captured.part(images, targets, share)
        copy_statistics(self._captured.statistics, self._statistics)
        return loss

    def collect(self) -> None:
        """Add the sums to the gradients of the trial's weights."""
        if self._project:
            self._project()
        own = self._captured.gradients[len(self._captured.live.tensors) :]
        for weight, gradient in zip([*self._halves, *self._own], [*self._found, *own], strict=True):
            weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)

    def _to_halves(self) -> None:
        live = self._captured.gradients[: len(self._captured.live.tensors)]
        torch._foreach_copy_(self._found, self._captured.live.project(self._adapter, live))


def trained(network: nn.Module, adapter: Sequence[Parts]) -> list[Tensor]:
    """Weights that are trained, in order, but those of ``adapter``."""
    folded = {id(half) for parts in adapter for half in (parts.down, parts.up)}
    return [weight for weight in network.parameters() if weight.requires_grad and id(weight) not in folded]
