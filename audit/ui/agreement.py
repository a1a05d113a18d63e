"""The sections of the agreement page: how far people agree with each other, with the machine, and with what is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from audit.review import agreement
from audit.review.agreement import ALL, DISAGREED, ONE_ANSWER, Figure, GoldResult, Pace
from audit.review.events import EventKind
from audit.review.queue import Queue, queues
from audit.review.roles import Person
from audit.runs.templates import versions_of
from audit.settings import template_library
from audit.ui import trail, url
from audit.ui.bundle import csv_bytes
from audit.ui.page_state import PageState
from audit.ui.reviewer import store
from audit.ui.text import count, escape, shorten
from audit.ui.url import Agreed
from audit.verbatim.templates import TemplateLibrary
from audit.verbatim.versions import MaskVersion, drawn_alone, versions

if TYPE_CHECKING:
    from audit.ui.bench import TrainingSet

EVERY = "All queues"
PAIRS = 20
"""Pairs of people that are shown; those with most in common first."""
ROW_HEIGHT = 76
"""Pixels of a flag's row: long notes take three lines."""
NAMES = {
    ALL: "All kinds",
    "MV": "MV, matching",
    "RV": "RV, retrieved",
    "TV": "TV, template",
    "PV": "PV, patch",
    "N": "N, no copy",
}


def fill(state: Agreed) -> None:
    """Put a state that came by a link into the widgets."""
    st.session_state["agreed-by"] = state.by


AGREED = PageState("agreed", url.read_agreed, url.write, fill, filled="agreed-by")


@dataclass(frozen=True)
class Figures:
    """Everything that is shown of some queues."""

    decisions: pd.DataFrame
    """What people say of each item, as `audit.review.queue.Queue.decisions` gives it, with its queue."""
    people: int
    labels: int
    imported: int
    """Of the labels, those that came in from elsewhere."""
    seen: int
    """Of the labels, those given by somebody who had been told what the others say."""
    alpha: dict[str, Figure]
    kappas: dict[tuple[str, str], dict[str, Figure]]
    """By pair of people."""
    confusion: pd.DataFrame
    gold: list[GoldResult]
    pace: list[Pace]


def choose(state: Agreed) -> Agreed | None:
    """The queue that is looked at, and what counts once; None while there is none."""
    names = [each.name for each in queues(store())]
    if not names:
        st.info(
            "There is no queue yet, so nobody has labelled anything. Make one on the page Review.",
            icon=":material/inbox:",
        )
        st.page_link("pages/review.py", label="Go to Review", icon=":material/rate_review:")
        return None
    if state.queue and state.queue not in names:
        st.warning(escape(f"There is no queue {state.queue!r}."), icon=":material/link_off:")
    options = [EVERY, *names]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        queue = st.selectbox(
            "Queue",
            options,
            index=options.index(state.queue) if state.queue in names else 0,
            key=f"agreed-queue-{AGREED.generation}",
            width=340,
        )
        by = st.segmented_control(
            "What counts once",
            ("item", "cluster"),
            key="agreed-by",
            required=True,
            format_func={"item": "Each caption", "cluster": "Each cluster"}.__getitem__,
            help="A cluster is all captions about the same training image or template. Counted by caption, a family that "
            "was repeated a hundred times has a hundred votes.",
        )
    return Agreed("" if queue == EVERY else queue, by or state.by)


@st.cache_data(show_spinner="Computing the figures …", max_entries=8)
def figures(queue: str, by: str, root: str, _person: Person) -> Figures:
    """The figures of a queue, of all for an empty name; `root` is the store's end, so that a new label makes them anew.

    They are the same for everybody who may see them, which the page asks each time.
    """
    names = [queue] if queue else [each.name for each in queues(store())]
    decisions = pd.concat(
        [Queue(store(), name).decisions(_person).assign(queue=name) for name in names], ignore_index=True
    )
    labels = store().labels(_person)
    labels = labels.loc[labels["item_id"].isin(decisions["item_id"])]
    clusters = _by_item(decisions, "cluster")
    each_once = by == "cluster"
    pairs = agreement.pairs(labels)[:PAIRS]
    by_themselves = labels.loc[~labels["adjudicated"].astype(bool)]
    return Figures(
        decisions=decisions,
        people=by_themselves["who"].nunique(),
        labels=len(by_themselves),
        imported=int(by_themselves["imported"].sum()),
        seen=int(by_themselves["others_shown"].sum()),
        alpha=agreement.alpha(labels, clusters, each_once=each_once),
        kappas={pair: agreement.kappa(labels, *pair, clusters, each_once=each_once) for pair in pairs},
        confusion=agreement.confusion(
            labels, _by_item(decisions, "verdict"), clusters if each_once else None
        ),
        gold=agreement.gold(labels, _by_item(decisions, "gold")),
        pace=agreement.pace(labels),
    )


def _by_item(decisions: pd.DataFrame, column: str) -> dict[str, str]:
    """A column by item, where it says anything."""
    return {name: value for name, value in zip(decisions["item_id"], decisions[column], strict=True) if value}


def summary(found: Figures) -> None:
    """How much there is, with what it is out of."""
    status = Counter(found.decisions["status"])
    items = len(found.decisions)
    both = items - status["open"] - status["one answer"]
    grid = st.grid(4, min_column_width=170, border=True)
    with grid.cell():
        st.metric("Labels", f"{found.labels:,}")
        told = [f"by {count(found.people, 'person', 'people')}, without decisions over others"]
        if found.imported:
            told.append(f"{found.imported:,} of them came in from elsewhere")
        if found.seen:
            told.append(f"{found.seen:,} given after others were shown count in no agreement")
        st.caption("; ".join(told))
    with grid.cell():
        st.metric("Items with an answer", f"{items - status.get('open', 0):,}")
        st.caption(f"of {items:,}; {both:,} have two or more that count, or a decision")
    with grid.cell():
        st.metric("Agreed", f"{status.get('agreed', 0):,}")
        st.caption(f"of {both:,} with two answers that count, or a decision")
    with grid.cell():
        st.metric("Disagreed", f"{status.get('disagreed', 0):,}")
        st.caption(f"not decided yet; {status.get('adjudicated', 0):,} were decided")


def of_all(found: Figures) -> None:
    """Krippendorff's alpha over all kinds and of each."""
    st.header("Agreement of all people", anchor=False)
    st.markdown(
        "Krippendorff's alpha: 1 is full agreement, 0 is what chance would give. The first row takes all kinds at once, each "
        "other row one kind against the rest. In brackets the 95% interval, by bootstrap over clusters."
    )
    if found.alpha[ALL].value is None:
        st.info(escape(found.alpha[ALL].reason), icon=":material/hourglass:")
        return
    dark = st.context.theme.type == "dark"
    st.plotly_chart(
        chart(found.alpha, dark=dark),
        key="agreed-alpha",
        config={"displayModeBar": False},
        theme=None,
        alt="Krippendorff's alpha with its interval, for all kinds and for each",
    )
    st.table(
        [
            {"Kind": NAMES[kind], "Alpha": _words(figure), "Items": f"{figure.items:,}"}
            for kind, figure in found.alpha.items()
        ],
        hide_index=True,
        border="horizontal",
        alt="Krippendorff's alpha by kind",
    )


def of_two(found: Figures) -> None:
    """Cohen's kappa of pairs of people."""
    st.header("Agreement of two", anchor=False)
    if not found.kappas:
        st.markdown("No two people have labelled the same item yet.")
        return
    st.markdown(
        "Cohen's kappa over the items that both have labelled, each without knowing the other's answer."
    )
    rows = [
        {"First": first, "Second": second, "Items": kinds[ALL].items}
        | {NAMES[kind]: _words(kinds[kind]) for kind in NAMES}
        for (first, second), kinds in found.kappas.items()
    ]
    st.dataframe(rows, hide_index=True, width="stretch", alt="Cohen's kappa of pairs of people")


def machine(found: Figures, by: str) -> None:
    """People against the machine."""
    st.header("People and the machine", anchor=False)
    table = found.confusion
    if not table.to_numpy().sum():
        st.markdown("Nobody has labelled an item that the machine has a verdict on.")
        return
    unit = "captions" if by == "item" else "clusters"
    st.markdown(
        f"Rows are the machine's verdicts, columns what people say all in all; numbers are {unit}. A verdict of the machine "
        "is *verified* at most; what people agree on is *confirmed*."
    )
    shown = table.rename(columns={DISAGREED: "People disagree", ONE_ANSWER: "One answer only"})
    shown = shown.rename_axis("The machine")
    sums = shown.sum(axis=1)
    shown = shown.assign(All=sums).map(lambda value: f"{value:,.0f}" if by == "item" else f"{value:,.1f}")
    st.table(
        shown.reset_index(),
        hide_index=True,
        border="horizontal",
        alt="The machine's verdicts against what people say",
    )


def people(found: Figures) -> None:
    """Each person: known items, and pace."""
    st.header("Each person", anchor=False)
    known = {each.who: each for each in found.gold}
    rows = [
        {
            "Name": escape(each.who),
            "Labels": f"{each.labels:,}",
            "An hour": "–" if each.per_hour is None else f"{each.per_hour:,.0f}",
            "Hours": f"{each.hours:,.1f}",
            "Right on known items": _known(known.get(each.who)),
        }
        for each in found.pace
    ]
    st.table(rows, hide_index=True, border="horizontal", alt="Pace and known items of each person")
    st.caption(
        "Pauses of more than five minutes are left out of the hours. Known items stand among the others and nobody is told "
        "which they are; the interval is Wilson's, 95%."
    )


def flagged(person: Person, found: Figures) -> None:
    """What people marked, with their notes, whether or not they answered it."""
    captions = _by_item(found.decisions, "caption")
    rows = [
        {
            "Note": each.note or "–",
            "Caption": shorten(captions.get(each.item_id, ""), 120),
            "By": each.who,
            "When": each.when[:10],
            "Queue": name,
        }
        for name in found.decisions["queue"].unique()
        for each in Queue(store(), name).flags(person)
    ]
    if not rows:
        return
    st.header("Flagged", anchor=False)
    st.markdown(
        f"{count(len(rows), 'flag that holds', 'flags that hold')}. Who set one takes it off with the same key, `f`."
    )
    st.dataframe(
        rows,
        hide_index=True,
        width="stretch",
        row_height=ROW_HEIGHT,
        column_config={
            "Note": st.column_config.Column(width=340),
            "Caption": st.column_config.Column(width=260),
        },
        alt="Flagged items with their notes",
    )


def masks(have: TrainingSet | None, found: Figures) -> Figure | None:
    """How far the masks agree that people drew by themselves at items of these queues; None where nobody saved one."""
    alone, others = _saved(have, set(found.decisions["item_id"]))
    every = alone + others
    if not every:
        return None
    st.header("Masks", anchor=False)
    table, mean = agreement.mask_agreement((each.template_id, each.who, each.mask) for each in alone)
    left_out = f"Left out: {len(others):,} of {count(len(every), 'saved version', 'saved versions')}, drawn on from another's mask."
    if mean.value is None:
        templates = count(len({each.template_id for each in every}), "template has", "templates have")
        st.markdown(f"{templates} edited masks. {escape(mean.reason)} {left_out}")
        return mean
    st.markdown(
        f"Overlap (IoU) of the changed regions of two people's masks of one template: **{_words(mean)}** over "
        f"{count(mean.items, 'template', 'templates')}. It is each one's last mask of those drawn from the mask as it was "
        "found, and not on another's. They may have seen another's all the same: the mask in use stands beside the pictures. "
        f"{left_out}"
    )
    st.dataframe(
        table.rename(columns={"template_id": "Template", "first": "First", "second": "Second", "iou": "IoU"}),
        hide_index=True,
        width="stretch",
        column_config={"IoU": st.column_config.NumberColumn(format="%.3f")},
    )
    return mean


def _saved(have: TrainingSet | None, items: set[str]) -> tuple[list[MaskVersion], list[MaskVersion]]:
    """The versions that people saved at one of the items: those drawn alone (`drawn_alone`), and the others."""
    alone: list[MaskVersion] = []
    others: list[MaskVersion] = []
    if have is None or have.library is None or not have.library.versions:
        return alone, others
    library = template_library()
    folder = versions_of(library)
    saved = {
        (event.subject, event.body["number"])
        for event in store().events([EventKind.MASK_SAVED])
        if event.body["item_id"] in items
    }
    as_found = TemplateLibrary.load(library, folder, dict.fromkeys(have.library.versions, 0))
    for template in as_found.templates:
        every = versions(folder, template)[0] if template.template_id in have.library.versions else []
        # of all: the versions between may have been saved at other queues' items
        by_themselves = {version.number for version in drawn_alone(every)}
        for version in every:
            if (template.template_id, version.number) in saved:
                (alone if version.number in by_themselves else others).append(version)
    return alone, others


def download(found: Figures, masks: Figure | None, state: Agreed) -> None:
    """All figures as one table."""
    trail.download(
        "Figures as CSV",
        lambda: csv_bytes(rows_of(found, masks)),
        f"{state.queue or 'all queues'} agreement.csv",
        what="figures of agreement",
        mime="text/csv",
        icon=":material/download:",
    )


def rows_of(found: Figures, masks: Figure | None) -> list[dict[str, Any]]:
    """Every figure of the page, a row each."""
    rows = [_row("alpha", "", "", kind, figure) for kind, figure in found.alpha.items()]
    rows += [
        _row("kappa", first, second, kind, figure)
        for (first, second), kinds in found.kappas.items()
        for kind, figure in kinds.items()
    ]
    rows += [_row("right on known items", each.who, "", "", each.figure) for each in found.gold]
    rows += [
        _row("labels an hour", each.who, "", "", Figure(each.per_hour, items=each.labels))
        for each in found.pace
    ]
    rows += [
        _row("machine against people", str(verdict), str(label), "", Figure(float(value)))
        for verdict, labels in found.confusion.iterrows()
        for label, value in labels.items()
        if value
    ]
    return rows + ([_row("overlap of masks", "", "", "", masks)] if masks else [])


def _row(what: str, first: str, second: str, kind: str, figure: Figure) -> dict[str, Any]:
    return {
        "figure": what,
        "first": first,
        "second": second,
        "kind": kind,
        "value": figure.value,
        "low": figure.low,
        "high": figure.high,
        "items": figure.items,
        "clusters": figure.clusters,
        "reason": figure.reason,
    }


def _words(figure: Figure) -> str:
    if figure.value is None:
        return "–"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.2f}"
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"


def _known(result: GoldResult | None) -> str:
    if result is None or result.figure.value is None:
        return "none asked yet"
    return f"{result.right:,} of {result.figure.items:,}, {_words(result.figure)}"


def chart(alphas: Mapping[str, Figure], *, dark: bool) -> go.Figure:
    """Alpha of each kind as a point with its interval."""
    text = "#e8e6e1" if dark else "#1c2430"
    accent = "#c39ae6" if dark else "#7b3fa0"
    # name, alpha, and how far its interval reaches to either side
    shown = [
        (
            NAMES[kind],
            each.value,
            0.0 if each.low is None else each.value - each.low,
            0.0 if each.high is None else each.high - each.value,
        )
        for kind, each in alphas.items()
        if each.value is not None
    ]
    names, values, below, above = (list(column) for column in zip(*shown, strict=True))
    low = min([0.0, *(value - less for value, less in zip(values, below, strict=True))])
    axis = {"tickfont": {"color": text, "size": 12}, "fixedrange": True, "zeroline": False}
    return go.Figure(
        {
            "data": [
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": values,
                    "y": names,
                    "marker": {"color": accent, "size": 11},
                    "error_x": {
                        "type": "data",
                        "symmetric": False,
                        "array": above,
                        "arrayminus": below,
                        "color": accent,
                        "thickness": 2,
                    },
                    "hovertemplate": "%{y}: %{x:.3f}<extra></extra>",
                }
            ],
            "layout": {
                "height": 70 + 34 * len(shown),
                "margin": {"l": 8, "r": 8, "t": 8, "b": 28},
                "paper_bgcolor": "rgba(0,0,0,0)",
                "plot_bgcolor": "rgba(0,0,0,0)",
                "dragmode": False,
                "xaxis": {**axis, "range": [low - 0.03, 1.03], "gridcolor": "rgba(128,136,148,0.3)"},
                "yaxis": {**axis, "autorange": "reversed", "automargin": True, "showgrid": False},
            },
        }
    )
