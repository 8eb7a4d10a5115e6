"""MLflow's login, and one rule more: where artifacts lie is the server's business alone.

An experiment whose ``artifact_location`` is a folder or another bucket would let everybody who may log in read the
server's own files (``/proc/self/environ`` among them) or whatever its S3 key opens. The auth.ini names ``login``.
"""

from flask import Response, make_response, request
from mlflow.exceptions import MlflowException
from mlflow.protos.service_pb2 import CreateExperiment
from mlflow.server.auth import authenticate_request_basic_auth, make_basic_auth_response
from mlflow.server.handlers import _get_request_message
from werkzeug.datastructures import Authorization


def login() -> Authorization | Response:
    """Who asks, or the answer that refuses: 401 for a wrong login, 403 for a location of one's own."""
    given = request.authorization
    if given is None or given.type != "basic" or not given.username or given.password is None:
        return make_basic_auth_response()
    found = authenticate_request_basic_auth()
    if isinstance(found, Authorization) and request.path.endswith("/mlflow/experiments/create") and _names_a_place():
        return make_response(
            "artifact_location is refused: the artifacts of this service lie where it keeps them\n", 403
        )
    return found


def _names_a_place() -> bool:
    """Read as the server itself reads the request, so that no other spelling gets past."""
    try:
        place: str = _get_request_message(CreateExperiment()).artifact_location
    except MlflowException:
        return False  # not a request that the server takes
    return bool(place) and not place.startswith("mlflow-artifacts:/")
