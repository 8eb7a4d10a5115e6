"""What is trained on top of the base: LoRA, linear probe or everything; and the bundle that carries it."""

from xray_opt.adapter.attach import (
    attach,
    logits,
    lora_targets,
    restore,
    set_mode,
    trainable,
    trainable_state,
    without_peft,
)
from xray_opt.adapter.bundle import Bundle, make_bundle
from xray_opt.adapter.files import load_bundle, read_bundle, save_bundle
from xray_opt.adapter.merged import merged
from xray_opt.adapter.prefix import frozen_prefix, run_prefix, run_rest

__all__ = [
    "Bundle",
    "attach",
    "frozen_prefix",
    "load_bundle",
    "logits",
    "lora_targets",
    "make_bundle",
    "merged",
    "read_bundle",
    "restore",
    "run_prefix",
    "run_rest",
    "save_bundle",
    "set_mode",
    "trainable",
    "trainable_state",
    "without_peft",
]
