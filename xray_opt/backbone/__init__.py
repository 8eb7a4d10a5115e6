"""EfficientNetV2-S: its network, its verified base weights, and where it runs."""

from xray_opt.backbone.base import Base, load_base, random_base, read_base, save_base, trained_base
from xray_opt.backbone.device import resolve_device, resolve_precision
from xray_opt.backbone.download import download_weights, file_sha256, imagenet_weights, kept_weights, weight_cache
from xray_opt.backbone.lineage import Ancestor, ancestor
from xray_opt.backbone.network import FEATURES, build_network

__all__ = [
    "FEATURES",
    "Ancestor",
    "Base",
    "ancestor",
    "build_network",
    "download_weights",
    "file_sha256",
    "imagenet_weights",
    "kept_weights",
    "load_base",
    "random_base",
    "read_base",
    "resolve_device",
    "resolve_precision",
    "save_base",
    "trained_base",
    "weight_cache",
]
