"""xray-opt finds, proves and ships the best LoRA adapter of EfficientNetV2-S for chest X-rays.

Importing the package costs nothing: torch, MLflow and Optuna are imported by the rooms that need them.
The same verbs as the command line stand in :mod:`xray_opt.api`.
"""

__version__ = "0.1.0"
