"""What the verdicts of a run were made with: names of pictures and of templates mean nothing beside any other.

Names such as ``row-3`` are common, so those that verdicts hold are joined with one training set only.
"""

from __future__ import annotations

import json
from typing import Any

from audit.errors import InputError
from audit.runs.folder import RunFolder

DESCRIPTION = "verdicts.json"


def other_training_set(run: RunFolder, sha256: str, images: int) -> str:
    """A sentence where a run's verdicts were made with another training set than this one; empty where they were not.

    A run of an earlier version and one that asked a service say only of how many images theirs was.
    """
    made = _description(run)
    recorded = (made.get("training_set") or {}).get("sha256")
    if recorded is not None:
        before, now = str(recorded)[:12], sha256[:12]
    else:
        before, now = made.get("training_images", images), images
    if before == now:
        return ""
    of = "" if recorded is not None else " training images"
    return (
        f"The verdicts of the run {run.path.name} were made with another training set than this one ({before} and not "
        f"{now}{of}), so they say nothing of its pictures and are not counted. Open the one that they were made with."
    )


def other_templates(run: RunFolder, *sha256: str) -> str:
    """A sentence where a run's verdicts were made with templates other than any of these; empty where they were not, and
    where an earlier version of Verbatim did not record which they were.
    """
    made = _description(run)
    if "templates_sha256" not in made or (recorded := made["templates_sha256"]) in sha256:
        return ""
    if recorded is None:
        return f"The verdicts of the run {run.path.name} were made without templates, so none came back."
    return (
        f"The verdicts of the run {run.path.name} were made with other templates than these, or other masks of them "
        f"({str(recorded)[:12]} and not {sha256[0][:12]}), so it is not counted what came back. Decide the captions anew, "
        "in another run."
    )


def _description(run: RunFolder) -> dict[str, Any]:
    """``verdicts.json``; nothing where there is none."""
    path = run.path / DESCRIPTION
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged; score into another folder.") from error
