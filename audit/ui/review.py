"""The sections of the review page: queues, and the labelling of one."""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import streamlit as st
from sqlalchemy.exc import DBAPIError

from audit.errors import InputError
from audit.review.masks import save_mask
from audit.review.queue import Answer, Given, Item, Others, Queue, queues
from audit.review.roles import Action, Person, require
from audit.runs import jobs, selections
from audit.runs.jobs import check_name
from audit.runs.templates import library_of, versions_of
from audit.settings import settings, template_library
from audit.ui import bench, frame, labelling, prepared, removal, reviewer, url
from audit.ui.desk import Desk, seat
from audit.ui.guard import guarded, show_error
from audit.ui.guidelines import guidelines
from audit.ui.labelling import Ack, Label, Progress, Shown, Told, Work
from audit.ui.page_state import PageState
from audit.ui.pictures import data_uri
from audit.ui.prepared import Prepared, family_difference, levels, picture_key
from audit.ui.reviewer import allowed, store
from audit.ui.text import count, escape
from audit.ui.url import Reviewed
from audit.units import duration
from audit.verbatim.editing import from_json

if TYPE_CHECKING:
    import numpy as np

    from audit.ui.bench import TrainingSet

FIRST, LATER = 20.0, 0.0
"""Seconds that the first item of a page is waited for, and any other."""
LONGEST = 3600.0
"""Seconds for one item, at most: whoever needs longer was away."""
ACKS = 20_000
"""Answers whose outcome is remembered: what a tab sends again before it has heard is not asked of the store again."""
LIMITS = (100, 500, 2_000, 10_000)
LABELS = (
    Label("1", "MV", "Matching", "Matching verbatim: the caption's own training image came back."),
    Label("2", "RV", "Retrieved", "Retrieved verbatim: another caption's training image came back."),
    Label("3", "TV", "Template", "Template verbatim: a training image came back but for fixed regions."),
    Label("4", "N", "No copy", "None of the candidates is a copy."),
    Label("5", "PV", "Patch", "Patch verbatim: a piece of a training image came back elsewhere."),
)
WIDE = "<style>.stMainBlockContainer { max-width: none; padding: 2.6rem 1.6rem 1rem; }</style>"


def fill(state: Reviewed) -> None:
    """Put a state that came by a link into the widgets."""
    st.session_state["review-filled"] = True


REVIEW = PageState("review", url.read_reviewed, url.write, fill, filled="review-filled")


# ---- queues


def listing(person: Person) -> None:
    """All queues with what waits in each."""
    there = queues(store())
    if not there:
        st.info(
            "There is no queue yet."
            + (
                " Make one below, from a run that has verdicts or from captions that were set aside."
                if allowed(person, Action.FILL)
                else " An auditor makes one from a run; then it is here."
            ),
            icon=":material/inbox:",
        )
        return
    st.header("Queues", anchor=False)
    for each in there:
        with st.container(border=True, horizontal=True, vertical_alignment="center", gap="medium"):
            whole = each.items - each.unanswered - each.begun
            st.markdown(
                f"**{escape(each.name)}**  \n:small[{count(each.items, 'item', 'items')} · {each.unanswered:,} without an "
                f"answer · {each.begun:,} wait for another · {whole:,} have all · {each.disagreements:,} to be decided]",
                width="stretch",
            )
            if allowed(person, Action.LABEL):
                st.button(
                    "Label",
                    key=f"open-{each.name}",
                    type="primary",
                    icon=":material/rate_review:",
                    on_click=REVIEW.change,
                    kwargs={"queue": each.name, "task": "label"},
                )
            if each.disagreements and allowed(person, Action.ADJUDICATE):
                st.button(
                    f"Decide {each.disagreements:,}",
                    key=f"decide-{each.name}",
                    icon=":material/gavel:",
                    on_click=REVIEW.change,
                    kwargs={"queue": each.name, "task": "decide"},
                )
    if not allowed(person, Action.LABEL):
        st.info(
            "Your role reads and changes nothing, so there is nothing to label for you. The page Agreement has the figures.",
            icon=":material/visibility:",
        )


def new(person: Person) -> None:
    """For an auditor: a queue out of a run or a selection."""
    if not allowed(person, Action.FILL):
        return
    st.header("Make a queue", anchor=False)
    sources = _sources()
    if not sources:
        st.info(
            "There is no run and no selection yet. Start a run on the page Batch audits and let it generate its highest "
            "captions in full.",
            icon=":material/info:",
        )
        st.page_link("pages/batch.py", label="Start an audit", icon=":material/queue:")
        return
    with st.form("new-queue", border=True):
        with st.container(horizontal=True, vertical_alignment="bottom"):
            source = st.selectbox("From", list(sources), width=340)
            name = st.text_input(
                "Name of the queue", max_chars=80, width=260, placeholder="As the run is called"
            )
            limit = st.selectbox(
                "Items at most", LIMITS, index=1, width=150, format_func=lambda limit: f"{limit:,}"
            )
            asked = st.form_submit_button("Make the queue", type="primary", icon=":material/playlist_add:")
        st.caption(
            "The most useful come first: near the threshold, where score and verdict disagree, one of each template family "
            "before the rest; every tenth is drawn at random. A queue that is there already gets what it has not."
        )
    if asked and source:
        try:
            _fill(person, sources[source], name.strip() or sources[source].stem, limit)
        except InputError as error:
            show_error(error)


def _sources() -> dict[str, Path]:
    """What a queue can be made of, by how it is shown."""
    runs = {f"Run {job.name}": job.folder for job in jobs.jobs()}
    return runs | {
        f"Set aside: {each.name} ({each.captions:,})": each.path for each in selections.selections()
    }


def _fill(person: Person, source: Path, name: str, limit: int) -> None:
    from audit.review.fill import fill

    name = check_name(name)
    with st.spinner("Looking through the verdicts …"):
        fill(store(), person, source, name, limit=limit)
    REVIEW.change(queue=name, task="label")
    st.rerun()


# ---- labelling


def label(state: Reviewed, person: Person) -> None:
    """One queue, item after item."""
    require(person, Action.ADJUDICATE if state.task == "decide" else Action.LABEL)
    there = {each.name: each for each in queues(store())}
    if state.queue not in there:
        st.info("There is no queue of that name. Choose one from the list.", icon=":material/link_off:")
        _back()
        return
    st.html(WIDE)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        _back()
        st.markdown(
            f"**{escape(state.queue)}** · {'deciding where people disagree' if state.task == 'decide' else 'labelling'}",
            width="content",
        )
        reviewer.badge(person)
        if (left := there[state.queue].disagreements) and allowed(person, Action.ADJUDICATE):
            other = "label" if state.task == "decide" else "decide"
            st.button(
                "Label" if other == "label" else f"Decide {left:,}",
                key="other-task",
                on_click=REVIEW.change,
                kwargs={"task": other},
                type="tertiary",
                icon=":material/gavel:" if other == "decide" else ":material/rate_review:",
            )
    _view(Desk(Queue(store(), state.queue), person, state.task))


def _back() -> None:
    st.button(
        "All queues",
        icon=":material/arrow_back:",
        on_click=REVIEW.change,
        kwargs={"queue": "", "task": "label"},
        type="tertiary",
    )


@st.fragment
@guarded
def _view(desk: Desk) -> None:
    """Only this runs for an answer: it is stored, and what comes next is sent."""
    have = bench.training_set()
    if have is None:
        return
    seat().take(desk)
    said = labelling.sent(desk.key)
    trouble = st.empty()
    work, drawn, error = _work(desk, said, have)
    sections, examples = guidelines(work.blur)
    labelling.labelling(replace(work, guidelines=sections), (drawn | examples).__getitem__, key=desk.key)
    if error is not None:
        with trouble:
            show_error(error)
    if skipped := st.session_state.get(f"{desk.key} skipped"):
        st.button(
            f"Offer the {count(skipped, 'item', 'items')} again that you skipped",
            on_click=_reopen,
            args=(desk,),
            icon=":material/replay:",
            shortcut="a",
        )


def _reopen(desk: Desk) -> None:
    desk.queue.reopen(desk.person)


def _work(
    desk: Desk, said: labelling.Sent, have: TrainingSet
) -> tuple[Work, dict[str, str], Exception | None]:
    """What the view shows next, and its pictures' addresses by key; where the store does not answer, what it showed
    before, and why.
    """
    blur = frame.blurred()
    acks: dict[str, Ack] = {}
    error: Exception | None = None
    try:
        settle(desk, said.answers, have, acks)
        have = bench.training_set() or have  # a mask that was saved is in use at once
        items = _items(desk)
        flags = desk.queue.own_flags(desk.person)
        hidden = frozenset(removal.hidden())
        progress, skipped = _progress(desk)
        differences = _levels(said.editing, have)
        st.session_state[f"{desk.key} before"] = items, flags, hidden, progress, differences
        st.session_state[f"{desk.key} skipped"] = skipped
    except Exception as failure:
        error = failure
        items, flags, hidden, progress, differences = st.session_state.get(
            f"{desk.key} before", ([], {}, frozenset(), Progress(0, 0, ""), {})
        )
    patience = LATER if said.have else FIRST
    shown, preparing = prepared.ready([item for item, _ in items], have, hidden, blur=blur, patience=patience)
    others = {item.item_id: given for item, given in items}
    st.session_state[f"{desk.key} shown"] = {each.shown.id: each for each in shown}
    drawn = {key: address for each in shown for key, address in each.pictures.items()}
    drawn |= {picture_key(image): data_uri(image) for image in differences.values()}
    work = Work(
        session=desk.session,
        who=desk.person.name,
        items=[
            replace(_told(each.shown, others[each.shown.id], desk.task), flag=flags.get(each.shown.id))
            for each in shown
        ],
        labels=LABELS,
        acks=acks,
        progress=progress,
        nothing=_nothing_left(desk, progress, st.session_state.get(f"{desk.key} skipped", 0)),
        may_label=allowed(desk.person, Action.LABEL),
        blur=blur,
        preparing=preparing,
        differences={template_id: picture_key(image) for template_id, image in differences.items()},
    )
    return work, drawn, error


def _items(desk: Desk) -> list[tuple[Item, Others | None]]:
    """The items of a desk in order, with what others say of them where that is shown."""
    ahead = labelling.AHEAD + 1
    if desk.task == "decide":
        return [(each.item, each) for each in desk.queue.disagreements(desk.person, ahead)]
    items = desk.queue.take(desk.person, ahead)
    shown = settings().show_others
    return [(item, desk.queue.others(desk.person, item.item_id) if shown else None) for item in items]


def _told(shown: Shown, others: Others | None, task: str) -> Shown:
    """An item with what others and the machine say of it, where there is something to tell."""
    if others is None:
        return shown
    if task == "decide":
        both = tuple(
            Told(each.who, each.label, each.image_id or None, _note(each))
            for each in others.given
            if not each.adjudicated
        )
        return replace(shown, both=both, told=(_machine(others.item),))
    return replace(
        shown, told=(_machine(others.item), *(f"{each.who}: {each.label}" for each in others.given))
    )


def _note(given: Given) -> str:
    """What an adjudicator is told beside a label."""
    after = "Given after they were told what others say." if given.others_shown else ""
    return " ".join(filter(None, (after, given.note)))


def _machine(item: Item) -> str:
    if not item.verdict:
        return "the machine has no verdict"
    if item.distance is None or item.limit is None:
        return f"the machine: {item.verdict}"
    return f"the machine: {item.verdict}, distance {item.distance:,.0f}, a copy below {item.limit:,.0f}"


def _progress(desk: Desk) -> tuple[Progress, int]:
    """How far one is, in words, and how many items were skipped."""
    far = desk.queue.progress(desk.person, ZoneInfo(st.context.timezone or "UTC"))
    if desk.task == "decide":
        overview = next(each for each in queues(store()) if each.name == desk.queue.name)
        left, done = overview.disagreements, overview.adjudicated
        return Progress(done, done + left, f"{done:,} decided · {left:,} left"), far.skipped
    words = [f"{far.done:,} done", f"{far.left:,} left"]
    if far.per_hour is not None and far.seconds_left is not None:
        words += [f"{far.per_hour:,.0f} an hour", f"about {duration(far.seconds_left)} left"]
    words.append(f"{far.today:,} today")
    return Progress(far.done, far.done + far.left, " · ".join(words)), far.skipped


def _nothing_left(desk: Desk, progress: Progress, skipped: int) -> str:
    """What to do where no item is left; `progress` counts those that others hold."""
    left = progress.total - progress.done
    again = " Below, or with the key a, ask for those again that you skipped." if skipped else ""
    if desk.task == "decide":
        if not left:
            return "Nobody disagrees at the moment. Go back to all queues, or label."
        return (
            f"Of {count(left, 'item', 'items')} to be decided, none is for you: you have answered them yourself, "
            f"skipped them, or somebody else is deciding them.{again} What comes free is shown here."
        )
    if left:
        return (
            f"{count(left, 'item is', 'items are')} left, held by somebody else at the moment.{again} What comes free is shown "
            "here."
        )
    return (
        f"Nothing is left for you in this queue: every item has its answers, or yours.{again} The page Agreement shows how "
        "far people agree."
    )


# ---- answers


@st.cache_resource(show_spinner=False)
def _acks() -> OrderedDict[tuple[str, str], Ack]:
    return OrderedDict()


def settle(desk: Desk, answers: Sequence[Mapping[str, Any]], have: TrainingSet, acks: dict[str, Ack]) -> None:
    """Store what the view sent, in order, and write what became of each into `acks`.

    Stops at the first that could not be stored for now: it and those after it stay in the view's outbox.

    Raises
    ------
    Exception
        Why it stopped.
    """
    known = _acks()
    for entry in answers:
        name = (desk.session, entry["answer_id"])
        if name not in known:
            # by its id the store knows what comes again while it is still being stored
            known[name] = _settled(desk, entry, have)
            while len(known) > ACKS:
                known.popitem(last=False)
        acks[entry["answer_id"]] = known[name]


def _settled(desk: Desk, entry: Mapping[str, Any], have: TrainingSet) -> Ack:
    try:
        return ACTIONS[entry["action"]](desk, entry, have)
    except InputError as error:
        if isinstance(error.__cause__, DBAPIError):  # the store does not answer: that passes
            raise
        return Ack(False, str(error))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        return Ack(False, f"{error}")


def _answer(desk: Desk, entry: Mapping[str, Any], have: TrainingSet) -> Ack:
    item_id = _text(entry, "item_id")
    shown = _shown_before(desk, item_id, have)
    if not shown.generated_sha256:
        return Ack(
            False, "Its generated picture is not kept, so nobody can have seen it: skip it, or flag it."
        )
    image_id = _text(entry, "image_id")
    seconds = entry.get("seconds")
    answer = Answer(
        answer_id=entry["answer_id"],
        label=_text(entry, "label"),
        image_id=image_id,
        template_id=_text(entry, "template_id"),
        seed=shown.seed,
        mask_version=_text(entry, "mask_version"),
        mask_sha256=shown.mask_sha256.get((_text(entry, "template_id"), _text(entry, "mask_version")), ""),
        generated_sha256=shown.generated_sha256,
        training_sha256=shown.training_sha256.get(image_id, ""),
        seconds=min(max(float(seconds), 0.0), LONGEST) if isinstance(seconds, int | float) else None,
        blurred=shown.blurred,
    )
    if entry["action"] == "adjudicate":
        desk.queue.adjudicate(desk.person, item_id, answer)
        return Ack(True, reveal=f"{answer.label} is the decision.")
    desk.queue.answer(desk.person, item_id, answer)
    return Ack(True, reveal=_reveal(answer.label, desk.queue.others(desk.person, item_id)))


def _reveal(label: str, others: Others | None) -> str:
    """What was hidden until now."""
    if others is None:
        return f"Stored: {label}."
    given = ", ".join(f"{each.who}: {each.label}" for each in others.given)
    return f"Stored: {label}. Of it {_machine(others.item)}; {given or 'nobody else has answered yet'}."


def _shown_before(desk: Desk, item_id: str, have: TrainingSet) -> Prepared:
    """The item as it was shown: from this tab, or made anew where the tab was loaded anew since."""
    kept = st.session_state.get(f"{desk.key} shown", {}).get(item_id)
    if kept is not None:
        return kept
    item = desk.queue.item(desk.person, item_id)
    return prepared.one(item, have, frozenset(removal.hidden()), blur=frame.blurred())


def _skip(desk: Desk, entry: Mapping[str, Any], have: TrainingSet) -> Ack:
    desk.queue.skip(desk.person, _text(entry, "item_id"), entry["answer_id"])
    return Ack(True)


def _undo(desk: Desk, entry: Mapping[str, Any], have: TrainingSet) -> Ack:
    meant = entry.get("item_id")
    item_id = desk.queue.undo(desk.person, entry["answer_id"], meant if isinstance(meant, str) else "")
    if item_id is None:
        return Ack(False, "You have answered nothing in this queue that could be taken back.")
    return Ack(True, item_id=item_id)


def _flag(desk: Desk, entry: Mapping[str, Any], have: TrainingSet) -> Ack:
    desk.queue.flag(desk.person, _text(entry, "item_id"), _text(entry, "note"), entry["answer_id"])
    return Ack(True)


def _unflag(desk: Desk, entry: Mapping[str, Any], have: TrainingSet) -> Ack:
    desk.queue.unflag(desk.person, _text(entry, "item_id"), entry["answer_id"])
    return Ack(True)


def _mask(desk: Desk, entry: Mapping[str, Any], have: TrainingSet) -> Ack:
    """A mask saved as a new version; it is the one in use from then on, here and in later runs."""
    name, number = _text(entry, "template_id"), _text(entry, "mask_version")
    if have.library is None:
        raise InputError("The template is not in the library any more; nothing was saved.")
    folder = template_library()
    try:
        saved = save_mask(
            store(),
            desk.person,
            have.library,
            versions_of(folder),
            name,
            from_json(entry.get("steps")),
            number=int(number) if number.isdecimal() and len(number) < 10 else -1,
            answer_id=entry["answer_id"],
            item_id=_text(entry, "item_id"),
            difference=_difference(name, have),
        )
    finally:  # also where somebody else's was saved meanwhile
        bench.owner().held[bench.TRAINING_SET] = replace(have, library=library_of(settings().index))
    return Ack(True, reveal=f"The mask is version {saved.number} of its template now.")


ACTIONS: dict[str, Callable[[Desk, Mapping[str, Any], TrainingSet], Ack]] = {
    "label": _answer,
    "adjudicate": _answer,
    "skip": _skip,
    "undo": _undo,
    "flag": _flag,
    "unflag": _unflag,
    "mask": _mask,
}


def _text(entry: Mapping[str, Any], name: str) -> str:
    """A text of an answer; empty where it is none: the store checks what it says."""
    value = entry.get(name)
    return value if isinstance(value, str) else ""


@st.cache_resource(show_spinner=False, max_entries=32)
def _differences(
    template_id: str, members: tuple[str, ...], hidden: frozenset[str], _have: TrainingSet
) -> np.ndarray | None:
    template = _have.template(template_id)
    return family_difference(template, _have) if template else None


def _difference(template_id: str, have: TrainingSet) -> np.ndarray | None:
    """What thresholds of a template's mask are taken of."""
    template = have.template(template_id)
    return (
        _differences(template_id, template.members, frozenset(removal.hidden()), have) if template else None
    )


def _levels(template_id: str, have: TrainingSet) -> dict[str, np.ndarray]:
    """That as a picture, by the template; empty where there is none."""
    values = _difference(template_id, have) if template_id else None
    return {} if values is None else {template_id: levels(values)}
