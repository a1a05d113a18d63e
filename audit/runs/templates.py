"""The template library of an index: its families found, and where it is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from audit.settings import default_templates, settings
from audit.verbatim.templates import TemplateLibrary, discover

if TYPE_CHECKING:
    from audit.retrieval.search import Retriever


def find_templates(
    retriever: Retriever, progress: Callable[[int, int], None] | None = None
) -> TemplateLibrary:
    """The template families of an index's pictures."""
    index = retriever.index
    names = [row.image_id for row in index.rows]
    found = discover(names, lambda place: retriever.picture(names[place]), index.vectors(), progress=progress)
    return TemplateLibrary(tuple(found), index_sha256=index.sha256)


def library_of(index: Path, folder: Path | None = None) -> TemplateLibrary | None:
    """The library in `folder`, by default as set or where an index has its own; None where there is none."""
    asked = folder or settings().templates
    if asked is None and not default_templates(index).is_dir():
        return None
    return TemplateLibrary.load(asked or default_templates(index))
