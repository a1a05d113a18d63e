"""What this dashboard works on: one model and one training set for everybody, and the jobs that use them.

Imports of torch, diffusers, open_clip and faiss happen in the owner's thread, so that the first page is there at once.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from audit.corpus.stored import is_local
from audit.errors import Cancelled, InputError
from audit.review.events import EventKind
from audit.review.trail import command_line_user
from audit.settings import DEMO, settings
from audit.targets.catalogue import KNOWN
from audit.ui import trail
from audit.ui.owner import LONG, SHORT, Job, Owner, job_key
from audit.ui.removal import hidden, removed
from audit.ui.text import shorten
from audit.ui.waiting import PATIENCE, ask, begin, failure, so_far

if TYPE_CHECKING:
    from audit.corpus.reader import Row
    from audit.records import Neighbour, Template
    from audit.retrieval.base import TrainingIndex
    from audit.retrieval.search import Retriever
    from audit.runs.one_caption import Look, Proof
    from audit.runs.verdicts import OwnImages
    from audit.targets.base import Target
    from audit.verbatim.templates import TemplateLibrary

log = logging.getLogger(__name__)

MODEL, TRAINING_SET, PACE = "model", "training set", "seconds of one evaluation"
WINDOWS = "windows of training pictures"
PROVING = "Full samples, neighbours and verdict"
NEIGHBOURS = 8
"""Nearest training images shown."""
LISTED, LOOKED_THROUGH = 20_000, 200_000
"""Training images whose captions are offered in a list; whose families are gathered when it is opened."""


@dataclass(frozen=True)
class TrainingSet:
    """The index of training images, the means to search it, and the templates found in it."""

    retriever: Retriever
    library: TemplateLibrary | None
    own_images: OwnImages
    captions: list[str]
    """Distinct, sorted; none where there are too many to list."""
    families: dict[str, list[Row]]
    """See `families`."""

    @property
    def index(self) -> TrainingIndex:
        return self.retriever.index

    def has(self, image_id: str) -> bool:
        """Whether a training image of this name exists."""
        return image_id in self.index

    def pixels(self, stored: Row | Neighbour) -> np.ndarray | None:
        """A training picture to be shown, (256, 256, 3) uint8; None if it was removed from view, is missing or damaged."""
        pixels = self.retriever.pictures.get(stored)
        # only now is the hash of one known that has an address only
        return None if removed(stored) else pixels

    def picture(self, image_id: str) -> np.ndarray | None:
        """`pixels` of a training image by name, float32 in [0, 1]."""
        pixels = self.pixels(self.index.row(image_id))
        return None if pixels is None else pixels.astype(np.float32) / 255.0

    @property
    def templates(self) -> tuple[Template, ...]:
        """Those that may be shown."""
        return self._in_view(self.library.templates) if self.library else ()

    def template(self, template_id: str | None) -> Template | None:
        """A template of the library by name."""
        return next((each for each in self.templates if each.template_id == template_id), None)

    def covering(self, image_id: str) -> Template | None:
        """The template of which a training image is a member."""
        found = self.library.of_image(image_id) if self.library else None
        return next(iter(self._in_view((found,))), None) if found else None

    def _in_view(self, templates: tuple[Template, ...]) -> tuple[Template, ...]:
        """Without those whose picture was made of a training picture that was removed from view."""
        from audit.runs.templates import in_view

        gone = hidden()
        return in_view(templates, self.index, gone) if gone else templates


@st.cache_resource(show_spinner=False, max_entries=1, on_release=Owner.close)
def owner() -> Owner:
    """The owner of this process; it begins to load the training set and the model at once."""
    made = Owner(prepare=_prepare)
    made.hold(TRAINING_SET, "Opening the training set", _open_training_set)
    load_model(made, settings().model, command_line_user())
    return made


def load_model(owner: Owner, name: str, who: str) -> Job:
    """Load a model for everybody; the one before stays in use until then, or if it cannot be loaded.

    `who` asked for it, for the audit trail.
    """
    source = KNOWN[name].source if name in KNOWN else name
    at_hand = os.path.isdir(os.path.expanduser(source))

    def download(job: Job) -> None:
        # torch is imported by one thread: the owner's, which opens the training set first
        owner.holding[TRAINING_SET].future.exception()
        from audit.targets.pipelines import find_folder

        find_folder(name, allow_pickle=False, offline=settings().offline)

    return owner.hold(
        MODEL,
        f"Loading the model {shorten(name)}",
        lambda job: _load(owner, name, who),
        fetch=None if at_hand else download,
    )


def target() -> Target | None:
    """The model in use; None until the first one is loaded."""
    return owner().held.get(MODEL)


def training_set() -> TrainingSet | None:
    """The training set in use; None until it is open, or where it cannot be opened."""
    return owner().held.get(TRAINING_SET)


def mismatch(target: Target) -> str | None:
    """A sentence where the training set in use is the demo's and the model is another one."""
    have = training_set()
    if have is None or have.index.folder is None or have.index.folder.resolve() != (DEMO / "index").resolve():
        return None
    if target.name == "demo" or target.sha256 == _demo_sha256():
        return None
    return (
        "The training set in use is the demo's, and this model was not trained on it: neighbours and verdicts "
        "say nothing about it. Set VERBATIM_INDEX to an index of its training set."
    )


@st.cache_data(show_spinner=False)
def _demo_sha256() -> str | None:
    from audit.targets.pipelines import hash_model

    return hash_model(DEMO / "model") if (DEMO / "model").is_dir() else None


def looks(
    target: Target, captions: Sequence[str], seeds: Sequence[int], guidance: float
) -> list[Look] | None:
    """One denoising step of each caption; None while it is waited for."""
    return ask(owner(), *_looking(target, captions, seeds, guidance), priority=SHORT, again="Look again")


def glimpse(
    target: Target, captions: Sequence[str], seeds: Sequence[int], guidance: float
) -> list[Look] | None:
    """`looks` without a word about waiting: begun where they are not there yet, and None meanwhile; empty if it failed."""
    key, label, work = _looking(target, captions, seeds, guidance)
    found = owner().kept(key)
    if found is None:
        job = begin(owner(), key, label, work, SHORT)
        if job.future.done() and failure(job):
            return []
    return found


def _looking(
    target: Target, captions: Sequence[str], seeds: Sequence[int], guidance: float
) -> tuple[str, str, Callable[[Job], list[Look]]]:
    """Key, label and work of a look."""
    who = trail.name()  # now: the owner's thread knows no session
    key = job_key("look", model=target.sha256, captions=list(captions), seeds=list(seeds), guidance=guidance)

    def work(job: Job) -> list[Look]:
        from audit.runs.one_caption import look

        _ran(who, "one step", target, captions, seeds)
        return look(
            _same(target), captions, seeds, guidance, progress=lambda done, all: job.progress(done / all)
        )

    count = f"{len(captions)} captions" if len(captions) > 1 else "the caption"
    return key, f"One step of {count}", work


def proof(
    target: Target, caption: str, seeds: Sequence[int], steps: int, guidance: float, *, place: str = ""
) -> Proof | None:
    """Full samples, neighbours and verdict of a caption; None while they are waited for.

    `place` tells two places of a page apart that ask for the same.
    """
    have = training_set()
    if have is None:
        return None
    key = proof_key(target, caption, seeds, steps, guidance)
    work = _proving(target, caption, seeds, steps, guidance, have)
    return ask(owner(), key, PROVING, work, priority=LONG, again="Generate again", place=place)


def begin_proof(target: Target, caption: str, seeds: Sequence[int], steps: int, guidance: float) -> None:
    """Let the owner begin with a proof that `proof` will ask for: the page draws meanwhile."""
    have = training_set()
    key = proof_key(target, caption, seeds, steps, guidance)
    if have is not None:
        begin(owner(), key, PROVING, _proving(target, caption, seeds, steps, guidance, have), LONG)


def _proving(
    target: Target, caption: str, seeds: Sequence[int], steps: int, guidance: float, have: TrainingSet
) -> Callable[[Job], Proof]:
    who = trail.name()

    def work(job: Job) -> Proof:
        from audit.runs.one_caption import prove

        _ran(who, "full samples", target, [caption], seeds)
        began = time.monotonic()
        proof = prove(
            _same(target),
            caption,
            have.retriever,
            have.library,
            seeds=seeds,
            steps=steps,
            guidance=guidance,
            own=have.own_images.find(caption),
            progress=lambda done, all: job.progress(done / all),
            retrieved=lambda found: _tell(job, found),
            cancelled=job.waits,
        )
        # what the machine does now is a better guide than what it did while it was starting
        owner().held[PACE] = (time.monotonic() - began) / evaluations(len(seeds), steps)
        return proof

    return work


def _tell(job: Job, found: list[list[Neighbour]]) -> None:
    """Let the page show neighbours by likeness where their pictures have to be fetched first."""
    if not all(is_local(hit) for hits in found for hit in hits):
        job.so_far = found


def retrieved(
    target: Target, caption: str, seeds: Sequence[int], steps: int, guidance: float
) -> list[list[Neighbour]] | None:
    """For each sample of a proof that is waited for, what is nearest by likeness; None where that is not known yet."""
    return so_far(proof_key(target, caption, seeds, steps, guidance))


def _ran(who: str, step: str, target: Target, captions: Sequence[str], seeds: Sequence[int]) -> None:
    """Record that the model was asked; what is kept of it is not asked again, and is no second event."""
    body = {"captions": list(captions), "seeds": list(seeds), "model_sha256": target.sha256}
    trail.noted(EventKind.RUN_STARTED, "dashboard", who, step=step, **body)


def proof_key(target: Target, caption: str, seeds: Sequence[int], steps: int, guidance: float) -> str:
    return job_key(
        "prove", model=target.sha256, caption=caption, seeds=list(seeds), steps=steps, guidance=guidance
    )


def kept_proof(
    target: Target, caption: str, seeds: Sequence[int], steps: int, guidance: float
) -> Proof | None:
    """The proof of a caption if it is there already; nothing is started."""
    return owner().kept(proof_key(target, caption, seeds, steps, guidance))


def with_pieces(target: Target, proof: Proof) -> Proof | None:
    """A proof with moved pieces looked for in its samples; None while they are waited for."""
    have = training_set()
    if have is None:
        return None

    def work(job: Job) -> Proof:
        from audit.runs.one_caption import look_for_pieces
        from audit.runs.pieces import Pieces, open_windows, require_calibration

        def progress(done: int, all: int) -> None:
            if job.stopped():
                raise Cancelled("Stopped.")
            job.progress(done / all)

        first = proof.samples[0]
        sampling = ([sample.seed for sample in proof.samples], first.steps, first.guidance)
        require_calibration(have.retriever, target.sha256, sampling)  # told before the windows are made
        held = owner().held
        if WINDOWS not in held:
            held[WINDOWS] = open_windows(have.retriever, progress)
        return look_for_pieces(
            proof, Pieces.calibrated(held[WINDOWS], have.retriever, target.sha256, sampling)
        )

    return ask(
        owner(),
        pieces_key(target, proof),
        "Looking for moved pieces",
        work,
        priority=LONG,
        again="Look again",
    )


def pieces_key(target: Target, proof: Proof) -> str:
    first = proof.samples[0]
    seeds = [sample.seed for sample in proof.samples]
    key = proof_key(target, proof.caption, seeds, first.steps, first.guidance)
    return job_key("pieces", proof=key)


def estimate(target: Target, seeds: int, steps: int) -> float:
    """Seconds that full samples and the verdict will take."""
    return owner().held[PACE] * evaluations(seeds, steps)


def evaluations(seeds: int, steps: int) -> int:
    """Of the model, for full samples: two branches, and Heun's two for each step but the last."""
    return seeds * 2 * (2 * steps - 1)


def find_by_text(text: str, k: int) -> list[Neighbour] | None:
    """Training images whose embedding is near to a text; None while they are waited for."""
    return _find("text", text, lambda retriever: retriever.by_text(text, k), k)


def find_by_image(image: np.ndarray, sha256: str, k: int) -> list[Neighbour] | None:
    """The `k` training images nearest to a picture; None while they are waited for.

    By exact pixels among the `TOP` or more by likeness. Where their pictures have to be fetched first, they come by
    likeness at once, and by pixels when the pictures are there: then the page runs again.
    """
    from audit.retrieval.search import TOP

    have = training_set()
    near = _find("image", sha256, lambda retriever: retriever.by_image(image, max(TOP, k)), k)
    if have is None or near is None:
        return None
    here = all(is_local(hit) for hit in near)

    def work(job: Job) -> list[Neighbour]:
        def progress(done: int, all: int) -> None:
            job.progress(done / all, f"Fetching the pictures of the nearest: {done:,} of {all:,} asked")

        return have.retriever.rerank(image, near, progress=progress, cancelled=job.waits)

    exact = ask(
        owner(),
        job_key("compare by pixels", query=sha256, k=k),
        "Comparing pixels",
        work,
        priority=SHORT if here else LONG,
        again="Compare pixels again",
        patience=PATIENCE if here else 0,
    )
    if exact is None and here:
        return None
    return (near if exact is None else exact)[:k]


def _find(kind: str, query: str, search, k: int) -> list[Neighbour] | None:
    have = training_set()
    if have is None:
        return None
    key = job_key(f"find by {kind}", query=query, k=k)
    return ask(
        owner(), key, "Searching", lambda job: search(have.retriever), priority=SHORT, again="Search again"
    )


def _same(wanted: Target) -> Target:
    """The model in use, if it is still the one that was asked for."""
    now = owner().held[MODEL]
    if now.sha256 != wanted.sha256:
        raise InputError(f"The model was changed to {now.name} while this waited; ask again to use it.")
    return now


def _prepare() -> None:
    import torch

    torch.set_grad_enabled(False)


def _load(owner: Owner, name: str, who: str) -> Target:
    from audit.runs.plan import pace
    from audit.targets.pipelines import load

    limits = settings()
    target = load(name, device=limits.device, dtype=limits.dtype, offline=limits.offline)
    # The half million objects of the libraries stay for good: no collection need walk them again. What was frozen
    # with the model before is looked through once more, or its cycles would stay with them.
    if gc.get_freeze_count():
        gc.unfreeze()
        gc.collect()
    gc.freeze()
    owner.held[PACE] = pace(target)
    trail.noted(EventKind.MODEL_LOADED, target.name, who, sha256=target.sha256, device=str(target.device))
    return target


def _open_training_set(job: Job) -> TrainingSet:
    from audit.retrieval.search import Retriever
    from audit.runs.templates import library_of
    from audit.runs.verdicts import OwnImages

    limits = settings()
    retriever = Retriever.open(limits.index, device=limits.device, offline=limits.offline)
    threading.Thread(target=retriever.warm, name="picture cache", daemon=True).start()
    library = library_of(limits.index)
    index = retriever.index
    listed = index.rows if index.rows is not None and len(index) <= LISTED else ()
    return TrainingSet(
        retriever,
        library,
        OwnImages(retriever),
        captions=sorted({row.caption for row in listed}),
        families=families(index),
    )


def families(index: TrainingIndex) -> dict[str, list[Row]]:
    """Near-duplicates by family, the largest first; none where there are too many rows to look through.

    As the training set's table marks them; where it marks none, the clusters of its duplicates, once these were looked
    for, as the page Duplicates counts them.
    """
    rows = index.rows if index.rows is not None and len(index) <= LOOKED_THROUGH else ()
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.family:
            groups.setdefault(row.family, []).append(row)
    if all(len(group) == 1 for group in groups.values()):
        groups = _clusters(rows, index)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return {name: group for name, group in ordered if len(group) > 1}


def _clusters(rows: Sequence[Row], index: TrainingIndex) -> dict[str, list[Row]]:
    from audit.runs.duplicates import known_duplicates

    found = None
    if rows and index.folder is not None:
        with contextlib.suppress(InputError):  # the page Duplicates tells of it
            found = known_duplicates(index.folder, index.sha256)
    if found is None:
        return {}
    by_id = {row.image_id: row for row in rows}
    clusters: dict[str, list[Row]] = {}
    for name, image_id in zip(found.members["cluster_id"], found.members["image_id"], strict=True):
        clusters.setdefault(name, []).append(by_id[image_id])
    return clusters
