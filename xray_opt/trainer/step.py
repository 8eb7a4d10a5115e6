"""One optimizer step: a batch in equal parts that fit into memory, with fewer films a part when it runs out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from xray_opt.errors import OutOfMemory, one_line
from xray_opt.faults import SHORTAGES, out_of_memory
from xray_opt.trainer.eager import Eager
from xray_opt.trainer.validation import forget


class Stepper:
    """Forward, backward and update of one batch, whatever part of it fits into memory at a time.

    Parts are weighted by their films: where BatchNorm is frozen and nothing is dropped, the gradient is that of
    the whole batch. Where BatchNorm trains, its statistics are those of a part, and a part has at least two films.
    When memory runs out the whole step is done again from the same state with parts half as large, and what
    validation keeps is let go.

    Attributes:
        micro_batch: most films a forward pass (one more where BatchNorm trains and one would be left alone).
    """

    def __init__(
        self,
        gradients: Eager,
        optimizer: torch.optim.Optimizer,
        micro_batch: int,
        batch_statistics: bool,
        say: Callable[[str], None],
    ) -> None:
        """``gradients`` does the parts; ``batch_statistics`` says whether BatchNorm trains."""
        self.micro_batch = micro_batch
        self._gradients = gradients
        self._optimizer = optimizer
        self._fewest = 2 if batch_statistics else 1
        self._say, self._why = say, ""
        self._statistics = Statistics(gradients.network) if batch_statistics else None

    def step(self, images: Tensor, targets: Tensor) -> Tensor:
        """Update the weights from (B, 3, s, s) ``images`` and (B,) ``targets``; the mean loss, detached, ().

        Raises:
            OutOfMemory: not even the smallest part fits.
        """
        device = images.device
        random = _random_state(device)
        if self._statistics:
            self._statistics.keep()
        while (loss := self._try(images, targets)) is None:
            self._halve(device)
            _restore_random(device, random)
            if self._statistics:
                self._statistics.restore()
        self._gradients.end()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss

    def _try(self, images: Tensor, targets: Tensor) -> Tensor | None:
        """Gradients of one batch and its loss, none where memory ran out."""
        total = torch.zeros((), device=images.device)
        parts = part_count(len(images), self.micro_batch, self._fewest)
        try:
            self._gradients.begin()
            for some, wanted in zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True):
                total += self._gradients.part(some, wanted, len(some) / len(images))
        except SHORTAGES as error:
            if not out_of_memory(error):
                raise
            self._why = one_line(error)
            return None
        return total

    def _halve(self, device: torch.device) -> None:
        self._optimizer.zero_grad()
        forget()
        if self.micro_batch <= self._fewest:
            raise OutOfMemory(
                f"memory of {device} ran out with {self.micro_batch} film(s) at a time ({self._why}); lower "
                "image.size, or lora.stages=late, or free the device"
            )
        self.micro_batch = max(self._fewest, self.micro_batch // 2)
        self._gradients.restart()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        self._say(f"memory of {device} ran out: going on with {self.micro_batch} films at a time, same batch")


class Statistics:
    """Running statistics of BatchNorm as they were before a step, to undo a part that ran before memory did."""

    def __init__(self, network: nn.Module) -> None:
        self._live = running_statistics(network)
        self._kept = [[buffer.clone() for buffer in same] for same in self._live]

    def keep(self) -> None:
        """Remember the statistics; one kernel for all of a kind."""
        copy_statistics(self._live, self._kept)

    def restore(self) -> None:
        """Put back what :meth:`keep` remembered."""
        copy_statistics(self._kept, self._live)


def running_statistics(network: nn.Module) -> list[list[Tensor]]:
    """Buffers of the BatchNorm layers that are not frozen, a list for each type of number."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    buffers = [buffer for norm in norms if not norm.track_frozen for buffer in norm.buffers()]
    kinds = dict.fromkeys(buffer.dtype for buffer in buffers)
    return [[buffer for buffer in buffers if buffer.dtype == kind] for kind in kinds]


def copy_statistics(source: list[list[Tensor]], target: list[list[Tensor]]) -> None:
    """Write what :func:`running_statistics` gave into that of another network."""
    for into, out_of in zip(target, source, strict=True):
        torch._foreach_copy_(into, out_of)


def part_count(films: int, micro_batch: int, fewest: int) -> int:
    """In how many near-equal parts ``films`` are done: at most ``micro_batch`` films each, but at least ``fewest``."""
    parts = -(-films // micro_batch)
    return max(1, min(parts, films // fewest))


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore_random(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
