"""MLflow's scoring server on a registered version: ``starting`` runs it, ``scoring_app`` is what it runs."""

from xray_opt.serving.starting import Served, serve

__all__ = ["Served", "serve"]
