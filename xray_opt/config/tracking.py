"""Settings of MLflow; they change nothing of what is learned, so no study is bound to them."""

from __future__ import annotations

from dataclasses import dataclass

from xray_opt.config.checks import one_of, require


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow: server (none means ``MLFLOW_TRACKING_URI``, else the embedded store), registered model, sampling.

    Attributes:
        uri: tracking URI.
        registered_model: name of the registered model.
        system_interval: seconds between samples of CPU, RAM and GPU use; 0 switches them off.
        checkpoints: ``disk`` (below the workspace), or ``mlflow``: among the artifacts of the trial's run as well, so
            that a worker on a host with another disk goes on from the last epoch.
    """

    uri: str | None = None
    registered_model: str = "xray-pneumonia"
    system_interval: float = 5.0
    checkpoints: str = "disk"

    def __post_init__(self) -> None:
        name = self.registered_model
        plain = bool(name.strip()) and name.isprintable() and len(name) <= 250 and not set(name) & set("/:'\"@\\")
        wants = "1 to 250 printable characters without / : ' \" @ \\"
        require(plain, "tracking.registered_model", wants, name)
        require(self.system_interval >= 0, "tracking.system_interval", "0 or more seconds", self.system_interval)
        one_of("tracking.checkpoints", self.checkpoints, ("disk", "mlflow"))
