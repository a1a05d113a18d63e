"""Below which folder the pictures of an index are opened: what it says may come from anybody, and name any file here.

A folder is taken at an index's word only if this user built that index of it, here: a build leaves a mark in the data
folder. Any other index shows the pictures that lie inside its own folder, or below the one that ``VERBATIM_PICTURES``
names.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from audit.corpus.stored import Root
from audit.images import sha256
from audit.settings import DEMO, settings

log = logging.getLogger(__name__)


def mark_built(told: bytes, source: Path) -> None:
    """Remember that an index was built of `source`; `told` is what it says of itself."""
    mark = _mark(told, source)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(f"{source}\n", encoding="utf-8")


def root_of(told: bytes, source: Path, folder: Path | None = None) -> Root | None:
    """Where the paths of an index start that says `told` of itself and lies in `folder`; None where it names a folder
    that it may not.

    Parameters
    ----------
    source
        The folder of its pictures, by its own account.
    """
    source = Path(os.path.abspath(source))
    if source == DEMO / "corpus" or (source.is_dir() and _mark(told, source).is_file()):
        return Root(source)
    if given := given_root():
        return given
    if folder is not None and Path(os.path.realpath(source)).is_relative_to(os.path.realpath(folder)):
        return Root(source, links=False)
    log.warning(
        "An index has its pictures in %s, which nothing here vouches for: it was built elsewhere, or moved since. None of "
        "them is opened; set VERBATIM_PICTURES to the folder that they lie in.",
        source,
    )
    return None


def given_root() -> Root | None:
    """The folder that the settings name."""
    named = settings().pictures
    return Root(named) if named else None


def _mark(told: bytes, source: Path) -> Path:
    named = f"{sha256(told)} {os.path.realpath(source)}".encode("utf-8", "surrogatepass")
    return settings().data_dir / "built" / sha256(named)[:32]
