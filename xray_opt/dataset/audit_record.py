"""The last audit of a source under its split, kept beside the manifests on this machine, where the report finds it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xray_opt.config import Workspace
from xray_opt.dataset.manifest import Manifest, manifest_name, write_atomic
from xray_opt.errors import DataError

if TYPE_CHECKING:
    from xray_opt.dataset.audit import Audit

#: Settings that choose among the films of a split, or leave out bad ones, but move none to another split.
CHOOSING = ("train_films", "val_films", "skip_bad")


def keep_audit(audit: Audit, manifest: Manifest, workspace: Workspace) -> None:
    """Keep an audit of ``manifest`` in place of an earlier one of the same source and split.

    Raises:
        DataError: the folder cannot be written.
    """
    text = json.dumps(audit.to_dict() | {"fingerprint": manifest.fingerprint}, indent=1)
    write_atomic(_place(manifest, workspace), text.encode("utf-8") + b"\n")


def kept_audit(manifest_sha256: str, workspace: Workspace) -> dict[str, Any] | None:
    """The audit of the source that a study's films, known by their digest, were split from, as ``Audit.to_dict``.

    None where the manifest or an audit is not kept here, or the source has changed in between.
    """
    for path in sorted(workspace.manifests.glob("*.csv")):
        with suppress(DataError, OSError, ValueError, AttributeError, RecursionError):
            manifest = Manifest.load(path)
            if manifest.sha256 == manifest_sha256:
                found = json.loads(_place(manifest, workspace).read_text(encoding="utf-8"))
                if found.get("fingerprint") == manifest.fingerprint:
                    return dict(found)
    return None


def _place(manifest: Manifest, workspace: Workspace) -> Path:
    dealt = {name: value for name, value in manifest.settings.items() if name not in CHOOSING}
    return workspace.manifests / f"{Path(manifest_name(manifest.source or manifest.root, dealt)).stem}.audit.json"
