"""The template library of an index: its families found, where it is kept, and the reference's form of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from audit.corpus.remote import goes_by
from audit.errors import InputError
from audit.runs.pictures import Pictures
from audit.settings import DEMO, default_templates, settings
from audit.verbatim.templates import TemplateLibrary, discover
from audit.verbatim.versions import beside

if TYPE_CHECKING:
    from audit.records import Template
    from audit.retrieval.base import TrainingIndex
    from audit.retrieval.index import Index


IMPORTED = "imported"
"""In the place of an index's sha256."""


def find_templates(index: Index, progress: Callable[[int, int], None] | None = None) -> TemplateLibrary:
    """The template families of an index's pictures."""
    have = Pictures.of_index(index, progress)
    found = discover(have.image_ids, have.picture, have.vectors, progress=progress)
    return TemplateLibrary(tuple(found), index_sha256=index.sha256)


def import_templates(folder: Path, index: Index) -> TemplateLibrary:
    """A library in whatever form `TemplateLibrary.load` reads, its pictures named as in the index where that has them.

    The reference names a template by the address of its picture. It does not say of which training set its templates
    are all there are, so none of them holding says nothing (`TemplateLibrary.gap`).
    """
    library = TemplateLibrary.load(folder)
    if not library.templates:
        raise InputError(
            f"{folder} holds no usable template: {next(iter(library.refused.values()), 'it is empty')}"
        )
    by_url = dict(zip(index.rows.column("url"), index.rows.column("image_id"), strict=True))
    by_url.pop("", None)

    def named(image_id: str) -> str:
        return by_url.get(image_id, image_id)

    templates = tuple(
        replace(each, image_id=named(each.image_id), members=tuple(map(named, each.members)))
        for each in library.templates
    )
    # of no index: so it is never taken for all the families that this one has
    return replace(library, templates=templates, index_sha256=IMPORTED)


def in_view(templates: tuple[Template, ...], index: TrainingIndex, hidden: Set[str]) -> tuple[Template, ...]:
    """Without those whose picture was made of a training picture that is not to be shown, by the sha256 of its file."""
    return tuple(
        each
        for each in templates
        if each.image_id not in index or not goes_by(index.row(each.image_id), hidden)
    )


def export_templates(library: TemplateLibrary, index: Index, folder: Path) -> None:
    """The library as the reference keeps it: ``metadata.parquet`` with ``url, mask_file, img_file``."""
    urls = {
        each.image_id: index.row(each.image_id).url for each in library.templates if each.image_id in index
    }
    library.save_reference(folder, {name: url for name, url in urls.items() if url})


def library_of(index: str | Path, folder: Path | None = None) -> TemplateLibrary | None:
    """The library in `folder`, by default as set or where an index has its own; None where there is none.

    Its masks are the newest that people saved (`versions_of`).
    """
    asked = folder or settings().templates
    if asked is None and not default_templates(index).is_dir():
        return None
    library = Path(asked or default_templates(index))
    return TemplateLibrary.load(library, versions_of(library))


def as_found(library: Path) -> tuple[Template, ...]:
    """The templates of a library with the masks that were found, whatever people made of them; none where there is none."""
    if not library.is_dir():
        return ()
    edited = TemplateLibrary.load(library, versions_of(library)).versions
    return TemplateLibrary.load(library, versions_of(library), dict.fromkeys(edited, 0)).templates


def versions_of(library: Path) -> Path:
    """Folder of the masks that people edited of a library: beside it, or among our data where nothing can be written.

    The demo's own library ships with the code and is never written to.
    """
    library = library.resolve()
    folder = beside(library)
    if not library.is_relative_to(DEMO.resolve()) and (folder.is_dir() or os.access(folder.parent, os.W_OK)):
        return folder
    name = hashlib.sha256(os.fsencode(library)).hexdigest()[:16]
    return settings().data_dir / "templates.versions" / name
