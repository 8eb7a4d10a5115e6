"""Frozen settings, their dotted names, YAML, study files, and where a workspace keeps things."""

from xray_opt.config.dotted import as_text, flatten, merge, override, parse_assignments, read_value
from xray_opt.config.environment_file import load_environment, login_for, redacted
from xray_opt.config.settings import (
    AugmentConfig,
    Config,
    DataConfig,
    ImageConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    SchedulerConfig,
    TrainingConfig,
)
from xray_opt.config.space import check_space
from xray_opt.config.study import FIRST, OBJECTIVES, Parameter, PrunerConfig, SamplerConfig, StudyConfig
from xray_opt.config.study_file import find_study, load_study, study_files
from xray_opt.config.study_text import study_text
from xray_opt.config.tracking import TrackingConfig
from xray_opt.config.workspace import Workspace

__all__ = [
    "FIRST",
    "OBJECTIVES",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "ImageConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Parameter",
    "PrunerConfig",
    "SamplerConfig",
    "SchedulerConfig",
    "StudyConfig",
    "TrackingConfig",
    "TrainingConfig",
    "Workspace",
    "as_text",
    "check_space",
    "find_study",
    "flatten",
    "load_environment",
    "load_study",
    "login_for",
    "merge",
    "override",
    "parse_assignments",
    "read_value",
    "redacted",
    "study_files",
    "study_text",
]
