"""Who moved the champion, when and why; and how it is moved while others move it too.

A move is written down first, as a tag of the registered model of its own, and the alias is set after that. MLflow's
aliases have no compare-and-set, so what holds is the move written last: whoever moves reads moves and alias until they
agree twice in a row, and sets the alias where they do not. Moves are in the order of their numbers, not of clocks.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from mlflow.exceptions import MlflowException

from xray_opt.errors import TrackingError
from xray_opt.mlflow_client import MISSING, Connection, speaking, user_name

CHAMPION, CANDIDATE = "champion", "candidate"
#: Reads of the aliases until they are found as they should be twice in a row, and seconds between them.
READS, PAUSE = 20, 0.25
#: Tag of a registered model that holds one move, before its number.
MOVE = "xray_opt.champion."
TAG = re.compile(re.escape(MOVE) + r"(\d{6})\.[0-9a-f]{8}")
ROLLBACK = "rollback"
#: Letters of a reason that are kept.
MOST_WHY = 1000


@dataclass(frozen=True)
class Move:
    """One move of the alias ``champion``.

    Attributes:
        version: that it was given to.
        by: ``promote``, ``confirm`` or ``rollback``.
        found: the version that had it, where the moves before do not say so: the first one, or one moved by hand.
        evidence: what was known of ``version`` then: its scores on validation and test, reports.
    """

    version: str
    who: str
    when: str
    why: str
    by: str
    found: str | None = None
    evidence: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """A registered model as read at once: alias → version, and its moves by their tags, the oldest first."""

    aliases: Mapping[str, str]
    moves: Mapping[str, Move]

    @property
    def champion(self) -> str | None:
        """The version with the alias."""
        return self.aliases.get(CHAMPION)

    @property
    def last(self) -> Move | None:
        """The move written last."""
        return [*self.moves.values()][-1] if self.moves else None

    @property
    def standing(self) -> list[str]:
        """Versions that were champion one after the other, the present one last.

        Without those that a rollback left behind: another rollback does not bring them back.
        """
        return standing([*self.moves.values()], self.champion)


def read_state(connection: Connection, name: str) -> State:
    """Aliases and moves of a registered model; empty where there is none of that name."""
    with speaking(connection.uri, f"read the aliases of {name}"):
        try:
            model = connection.client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code == MISSING:
                return State({}, {})
            raise
    aliases = {alias: str(version) for alias, version in model.aliases.items()}
    found = {tag: _move(text) for tag, text in sorted(model.tags.items()) if TAG.fullmatch(tag)}
    return State(aliases, {tag: one for tag, one in found.items() if one is not None})


def move(
    connection: Connection, name: str, state: State, version: str, by: str, why: str, evidence: Mapping[str, str]
) -> tuple[Move, list[Move]]:
    """Write a move of the champion to ``version`` down and make it so; returns it, and others' moves meanwhile.

    Args:
        state: what the decision was made on.

    Raises:
        TrackingError: the store does not answer, somebody else's later move holds, or the aliases keep changing.
    """
    found = state.champion if state.last is None or state.last.version != state.champion else None
    now = datetime.now(UTC).isoformat(timespec="seconds")
    own = Move(version, user_name(), now, " ".join(why.split())[:MOST_WHY], by, found, dict(evidence))
    with speaking(connection.uri, f"make version {version} of {name} the champion"):
        tag = _next_tag(read_state(connection, name))
        connection.client.set_registered_model_tag(name, tag, json.dumps(asdict(own)))
        after = _settle(connection, name)
    last = after.last
    if last is not None and last.version != version:
        raise TrackingError(
            f"{last.who} made version {last.version} of {name} the champion at the same time ({last.by}"
            f"{': ' + last.why if last.why else ''}): it stays so; look, and run the command again if it is to change"
        )
    return own, [one for key, one in after.moves.items() if key not in state.moves and key != tag]


def standing(moves: Sequence[Move], champion: str | None) -> list[str]:
    """See :attr:`State.standing`; a champion that no move tells of was moved by hand."""
    versions: list[str] = []
    for one in moves:
        if one.found is not None:
            versions.append(one.found)
        if one.by == ROLLBACK and one.version in versions:
            del versions[len(versions) - versions[::-1].index(one.version) :]
        elif versions[-1:] != [one.version]:
            versions.append(one.version)
    if champion is not None and versions[-1:] != [champion]:
        versions.append(champion)
    return versions


def _settle(connection: Connection, name: str) -> State:
    """Read until the alias is where the last move says, twice in a row; set it where it is not."""
    quiet = 0
    for _ in range(READS):
        state = read_state(connection, name)
        wanted = state.last.version if state.last else state.champion
        quiet = quiet + 1 if wanted == state.champion else 0
        if quiet == 2:
            return state
        if wanted is not None and quiet == 0:
            claim(connection, name, CHAMPION, wanted)
        time.sleep(PAUSE)
    raise TrackingError(f"the aliases of {name} at {connection.shown} keep changing; run the command again")


def claim(connection: Connection, name: str, alias: str, version: str) -> None:
    """Point an alias at a version. Where two create it at once the database refuses one: it was not the faster."""
    try:
        connection.client.set_registered_model_alias(name, alias, version)
    except MlflowException:
        if alias not in read_state(connection, name).aliases:
            raise


def _next_tag(state: State) -> str:
    """The tag of the move after those of ``state``; two who write at once get one number, but a tag each."""
    numbers = [int(tag.removeprefix(MOVE)[:6]) for tag in state.moves]
    return f"{MOVE}{max(numbers, default=0) + 1:06d}.{secrets.token_hex(4)}"


def _move(text: str) -> Move | None:
    """The move that a tag holds; none where somebody else wrote something else there."""
    try:
        document: Any = json.loads(text)
        own = {item.name: document[item.name] for item in fields(Move)}
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return Move(**own) if isinstance(own["version"], str) and re.fullmatch(r"\d+", own["version"]) else None
