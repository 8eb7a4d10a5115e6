"""Moves the champion of a registered model: on to a better version, or back."""

from __future__ import annotations

from xray_opt import registry
from xray_opt.config import Workspace
from xray_opt.mlflow_client import connect
from xray_opt.places import Place


def promote(
    name: str, version: str | None, workspace: Workspace, place: Place = Place(), why: str = ""
) -> registry.Comparison:
    """Make ``version`` (none means the candidate) of the registered model ``name`` its champion; keep who, when, why.

    Raises:
        TrackingError: no such version, no candidate, it is champion already, or somebody moved it at the same time.
    """
    return registry.promote(connect(place.tracking(workspace), workspace), name, version, why)


def rollback(
    name: str, version: str | None, workspace: Workspace, place: Place = Place(), why: str = ""
) -> registry.Comparison:
    """Give the champion of ``name`` back to the version that had it before, or to ``version``; keep who, when, why.

    Raises:
        TrackingError: no earlier champion is known, or as :func:`promote`.
    """
    return registry.rollback(connect(place.tracking(workspace), workspace), name, version, why)


def champion_moves(name: str, workspace: Workspace, place: Place = Place()) -> list[registry.Move]:
    """Every recorded move of the champion of ``name``, the oldest first."""
    return [*registry.read_state(connect(place.tracking(workspace), workspace), name).moves.values()]
