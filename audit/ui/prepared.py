"""Items of a queue with the pictures that people judge them by, made ready ahead of time on threads of their own."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from audit.corpus.remote import sha256_of
from audit.errors import InputError
from audit.images import decode, resize, sha256, to_uint8
from audit.records import Neighbour, PictureKind, Template
from audit.runs.jobs import found_run
from audit.ui.cards import DEAD, attribution
from audit.ui.labelling import Candidate, Shown
from audit.ui.pictures import data_uri
from audit.ui.removal import REMOVED
from audit.ui.results import opened
from audit.verbatim.masks import MAX_MEMBERS, difference
from audit.verbatim.versions import template_sha256

if TYPE_CHECKING:
    from audit.corpus.reader import Row
    from audit.review.queue import Item
    from audit.ui.bench import TrainingSet

log = logging.getLogger(__name__)

CANDIDATES = 8
"""Training images of an item; its templates come besides."""
KEPT = 96
"""Items kept ready, for everybody at this dashboard: about a megabyte each."""
AT_ONCE = 2
NOT_KEPT = "The run kept no picture of this caption. Decide its run again, or skip the item."
NOT_THERE = "This image is not in the training set that is in use."
CHANGED = (
    "The file is not the one that the training set's index was made of, so nobody can be asked about it."
)
FAILED = "This item could not be prepared; the server's log says why. Skip it, or try again later."


@dataclass(frozen=True)
class Prepared:
    """An item as it is shown, and what an answer to it says was shown."""

    shown: Shown
    pictures: dict[str, str] = field(default_factory=dict)
    """Key -> ``data:`` address."""
    seed: int | None = None
    generated_sha256: str = ""
    training_sha256: dict[str, str] = field(default_factory=dict)
    """By image id, of those that are shown."""
    mask_sha256: dict[tuple[str, str], str] = field(default_factory=dict)
    """Of each template with its mask, by its name and the version."""
    blurred: bool = False


class Shelf:
    """Items that are ready or being made ready."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="preparing")
        self.lock = Lock()
        self.kept: OrderedDict[tuple, Future[Prepared]] = OrderedDict()

    def ask(self, key: tuple, work: Callable[[], Prepared]) -> Future[Prepared]:
        """The item of this key, begun now if it was not before."""
        with self.lock:
            future = self.kept.get(key)
            if future is None or (future.done() and future.exception()):
                future = self.kept[key] = self.pool.submit(work)
            self.kept.move_to_end(key)
            while len(self.kept) > KEPT:
                self.kept.popitem(last=False)[1].cancel()
        return future


@st.cache_resource(show_spinner=False)
def shelf() -> Shelf:
    return Shelf()


def ready(
    items: Iterable[Item], have: TrainingSet, hidden: frozenset[str], *, blur: bool, patience: float
) -> tuple[list[Prepared], bool]:
    """Those of the items that are ready, in order, and whether more are on their way.

    Parameters
    ----------
    hidden
        sha256 of the pictures that are not to be shown.
    patience
        Seconds to wait for the first one.
    """
    futures = [(item, _asked(item, have, hidden, blur)) for item in items]
    if futures:
        wait([futures[0][1]], patience)
    found = []
    for item, future in futures:
        if not future.done():
            continue
        if future.cancelled() or (error := future.exception()) is None:
            if not future.cancelled():
                found.append(future.result())
            continue
        log.error("item %s could not be prepared", item.item_id, exc_info=error)
        found.append(Prepared(_shown(item, None, FAILED, ())))
    return found, len(found) < len(futures)


def one(item: Item, have: TrainingSet, hidden: frozenset[str], *, blur: bool) -> Prepared:
    """One item, waited for."""
    return _asked(item, have, hidden, blur).result()


def _asked(item: Item, have: TrainingSet, hidden: frozenset[str], blur: bool) -> Future[Prepared]:
    # masks that were edited make another library
    edition = tuple(sorted((name, each.number) for name, each in versions(have).items()))
    key = (item.item_id, edition, hidden, blur)
    return shelf().ask(key, lambda: prepare(item, have, hidden, blur=blur))


def versions(have: TrainingSet) -> dict:
    """Which edited masks the library in use has."""
    return have.library.versions if have.library else {}


def prepare(item: Item, have: TrainingSet, hidden: frozenset[str], *, blur: bool) -> Prepared:
    """An item with its pictures: the generated one, its candidates and their masks."""
    made = _Making(have, hidden, blur)
    picture, near, why = _of_run(item)
    generated = None
    if picture is not None:
        generated = made.picture(resize(decode(picture.png, "the generated picture")))
    candidates = made.candidates(item, near)
    return Prepared(
        _shown(item, generated, why, candidates, picture.seed if picture else item.seed),
        made.pictures,
        picture.seed if picture else item.seed,
        picture.sha256 if picture else "",
        made.hashes,
        made.masks,
        blur,
    )


def _of_run(item: Item):
    """The generated picture, the neighbours that its run found, and why there is no picture."""
    try:
        results = opened(found_run(item.run, Path(item.run_path)))
        picture = results.pictures([item.caption_id]).get((item.caption_id, PictureKind.SAMPLE))
        return picture, results.neighbours(item.caption_id), "" if picture else NOT_KEPT
    except InputError as error:
        return None, [], f"{error}"
    except OSError:
        return (
            None,
            [],
            f"The run {item.run} cannot be read at the moment. Skip the item, or try again later.",
        )


def _shown(
    item: Item,
    generated: str | None,
    why_not: str,
    candidates: tuple[Candidate, ...],
    seed: int | None = None,
) -> Shown:
    return Shown(
        item.item_id,
        item.caption,
        item.why,
        "not known" if seed is None else seed,
        generated,
        why_not,
        candidates,
    )


class _Making:
    """The pictures of one item."""

    def __init__(self, have: TrainingSet, hidden: frozenset[str], blur: bool):
        self.have = have
        self.hidden = hidden
        self.blur = blur
        self.pictures: dict[str, str] = {}
        self.hashes: dict[str, str] = {}
        self.masks: dict[tuple[str, str], str] = {}

    def picture(self, image: np.ndarray, *, sharp: bool = False) -> str:
        """Key of a picture (256, 256, 3) or mask (256, 256), which is kept; masks stay sharp."""
        blur = self.blur and not sharp
        key = picture_key(image, blur)
        if key not in self.pictures:
            self.pictures[key] = data_uri(image, blur=blur)
        return key

    def candidates(self, item: Item, near: list[Neighbour]) -> tuple[Candidate, ...]:
        """The caption's own images, the nearest, what the machine compared with, and templates.

        The order is the same whatever the machine decided: it would tell.
        """
        own = {row.image_id for row in self.have.index.by_caption(item.caption) or ()}
        nearest = [*sorted(own)[:3], *(each.image_id for each in near)]
        ids = list(dict.fromkeys(filter(None, nearest)))[:CANDIDATES]
        ids += [item.neighbour_id] if item.neighbour_id and item.neighbour_id not in ids else []
        found = {each.image_id: each for each in near}
        images = [self.image(name, name in own, found.get(name)) for name in ids]
        asked = [*(each.template_id for each in images if each.template_id), item.template_id]
        templates = [self.have.template(name) for name in dict.fromkeys(filter(None, asked))]
        return (*images, *(self.template(each) for each in templates if each is not None))

    def image(self, name: str, own: bool, near: Neighbour | None) -> Candidate:
        """A training image, with the template that covers it."""
        words = "the caption's own training image" if own else "another caption's training image"
        kind = "own" if own else "other"
        stored: Row | Neighbour | None = self.have.index.row(name) if self.have.has(name) else near
        if stored is None:
            return Candidate(name, kind, words, no_picture=NOT_THERE)
        picture, why = self.stored(stored)
        return Candidate(
            name,
            kind,
            words,
            stored.caption,
            attribution(stored.title, stored.author, stored.licence, stored.source or stored.url),
            picture,
            why,
            **(self.mask(template) if picture and (template := self.have.covering(name)) else {}),
        )

    def template(self, template: Template) -> Candidate:
        """A template: the picture that its family shares."""
        row = self.have.index.row(template.image_id) if self.have.has(template.image_id) else None
        mask = self.mask(template)
        if row:
            self.hashes.setdefault(template.image_id, sha256_of(row))
        return Candidate(
            template.image_id,
            "template",
            f"a template that {len(template.members):,} training images share",
            row.caption if row else "",
            attribution(row.title, row.author, row.licence, row.source or row.url) if row else "",
            mask["masked_with"],
            **mask,
        )

    def mask(self, template: Template) -> dict[str, str]:
        """A template's mask and picture, as fields of a candidate."""
        version = versions(self.have).get(template.template_id)
        number = str(version.number if version else 0)
        found = self.have.library.found.get(template.template_id) if self.have.library else None
        self.masks[template.template_id, number] = template_sha256(template)
        return {
            "template_id": template.template_id,
            "mask_version": number,
            "mask": self.picture(template.mask.astype(np.float32), sharp=True),
            "mask_note": f"version {version.number}, by {version.who}" if version else "as it was found",
            "mask_by": version.who if version else "",
            "masked_with": self.picture(template.image),
        } | ({} if found is None else {"mask_found": self.picture(found.astype(np.float32), sharp=True)})

    def stored(self, stored: Row | Neighbour) -> tuple[str | None, str]:
        """Key of a training picture, or why there is none. Its hash is that of the bytes that are decoded."""
        try:
            data = self.have.retriever.pictures.read(stored)
            recorded, found = sha256_of(stored), sha256(data)
            if not self.hidden.isdisjoint((recorded, found)):
                return None, REMOVED
            if recorded not in ("", found):
                return None, CHANGED
            image = resize(decode(data, stored.image_id))
        except InputError:
            return None, DEAD
        self.hashes[stored.image_id] = found
        return self.picture(image), ""


def picture_key(image: np.ndarray, blur: bool = False) -> str:
    """Names a picture by its pixels."""
    return sha256(to_uint8(image).tobytes())[:20] + ("-blurred" if blur else "")


def family_difference(template: Template, have: TrainingSet) -> np.ndarray | None:
    """(256, 256): by how much a template's members differ, as thresholds of its mask are taken of; None for one member.

    Members whose file cannot be read are left out.
    """
    names = [name for name in template.members if have.has(name)]
    if len(names) > MAX_MEMBERS:
        names = [names[place] for place in np.linspace(0, len(names) - 1, MAX_MEMBERS).round().astype(int)]
    found = [have.picture(name) for name in names]
    members = [each for each in found if each is not None]
    return difference(np.stack(members)) if len(members) > 1 else None


def levels(values: np.ndarray) -> np.ndarray:
    """A difference (256, 256) in [0, 3] as a picture (256, 256, 3): in red and green the low and the high byte of how
    many 8-bit levels the three channels differ by together.
    """
    whole = np.rint(255.0 * values).astype(int)
    return np.stack([whole % 256, whole // 256, np.zeros_like(whole)], -1).astype(np.float32) / 255.0
