"""The tracking service of a team: starts, stops and looks at the containers of ``docker-compose.yml``.

Everything goes through ``docker compose``; MLflow and Optuna are not imported here.
"""

from xray_opt.services.backups import backup, restore
from xray_opt.services.environment import environment_path
from xray_opt.services.starting import down, up
from xray_opt.services.status import Status, status, when

__all__ = ["Status", "backup", "down", "environment_path", "restore", "status", "up", "when"]
