"""Names that may leave the machine: salted hashes of film paths and patient keys. The salt never leaves it."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from xray_opt.config import Workspace
from xray_opt.errors import DataError

_SALT_BYTES = 32


class Pseudonyms:
    """Pseudonyms of one workspace: the same name gives the same pseudonym on this machine, and another one elsewhere.

    The salt stands in ``data/salt`` (mode 0600) and is made at first use; who loses it loses the way back.

    Raises:
        DataError: the salt cannot be made or read, or is not one.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._salt = _salt(workspace.data / "salt")

    def film(self, path: str) -> str:
        """Pseudonym of a film's path in its manifest, for example ``film-2f1c…`` (16 hex digits)."""
        return self._name("film", path)

    def patient(self, key: str) -> str:
        """Pseudonym of a patient key, for example ``patient-90ab…`` (16 hex digits)."""
        return self._name("patient", key)

    def _name(self, kind: str, text: str) -> str:
        message = f"{kind}:{text}".encode("utf-8", "surrogateescape")
        return f"{kind}-{hmac.new(self._salt, message, hashlib.sha256).hexdigest()[:16]}"


def _salt(path: Path) -> bytes:
    try:
        if not path.exists():
            _make_salt(path)
        salt = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot use the salt {path}: {error}; restore it, or move it away to get other pseudonyms"
        ) from error
    if len(salt) != _SALT_BYTES:
        raise DataError(f"the salt {path} is damaged; restore it, or move it away to get other pseudonyms")
    return salt


def _make_salt(path: Path) -> None:
    """A link appears whole or not at all and replaces none: of two makers at once both read the first one's salt."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".salt.{secrets.token_hex(4)}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_SALT_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)
        except FileExistsError:
            return
    finally:
        part.unlink(missing_ok=True)
