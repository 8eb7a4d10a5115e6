"""Training: yields one frozen ``Epoch`` after the other; what changes weights lives here, who watches lives outside."""

from xray_opt.trainer.checkpoint import discard_checkpoint, has_checkpoint
from xray_opt.trainer.records import Epoch
from xray_opt.trainer.trainer import Trainer

__all__ = ["Epoch", "Trainer", "discard_checkpoint", "has_checkpoint"]
