"""The sections of the duplicates page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from audit.errors import InputError
from audit.runs import jobs
from audit.runs.folder import RunFolder
from audit.ui import bench, frame, trail, url
from audit.ui.bundle import csv_bytes
from audit.ui.cards import STRIP, card, owed_together, strip
from audit.ui.claims import RETRIEVED, VERIFIED
from audit.ui.guard import show_error
from audit.ui.owner import LONG, SHORT, Job, job_key
from audit.ui.page_state import PageState
from audit.ui.results import runs_begun
from audit.ui.text import count, escape, literal
from audit.ui.url import Repeated
from audit.ui.waiting import ask

if TYPE_CHECKING:
    from audit.retrieval.index import Index
    from audit.runs.duplicates import Duplicates
    from audit.runs.regurgitation import Regurgitation
    from audit.ui.bench import TrainingSet

PAGE, MEMBERS, CAPTIONS = 12, 24, 500
ASIDE = 0.08
"""Of a bin's width, by which the lines stand apart so that their intervals can be read."""
ASKED = "duplicates asked for"


@dataclass(frozen=True)
class Kind:
    """How a kind of cluster is named."""

    title: str
    icon: str
    meaning: str


KINDS = {
    "exact": Kind("Equal", ":material/file_copy:", "the same file, several times or trained several times"),
    "near": Kind("Near", ":material/filter_none:", "the same picture saved, scaled, cut or marked anew"),
    "template": Kind("Template", ":material/dashboard_customize:", "the same picture but for a region"),
}


@dataclass(frozen=True)
class Series:
    """How a kind of duplication is drawn: by colour, sign and line, so that none of them is needed alone."""

    title: str
    light: str
    dark: str
    symbol: str
    dash: str


SERIES = {
    "multimodal": Series(
        "Multimodal: the picture with this caption", "#c2500a", "#f0944d", "circle", "solid"
    ),
    "image_only": Series(
        "Image-only: the picture with other captions", "#1f5f99", "#6fb1e8", "square", "dash"
    ),
    "template": Series("Template: the family of the picture", "#6b4ca0", "#b79be8", "diamond", "dot"),
}
SORTS = {
    "occurrences": "Times trained",
    "images": "Images",
    "captions": "Distinct captions",
    "multimodal": "Times with one caption",
    "image_only": "Times with other captions",
    "regurgitated": "Given back",
}


def fill(state: Repeated) -> None:
    """Put a state that came by a link into the widgets."""
    st.session_state["dup-by"] = state.by
    st.session_state["dup-kind"] = state.kind
    st.session_state["dup-sort"] = state.sort


REPEATED = PageState("dup", url.read_repeated, url.write, fill, filled="dup-sort")


def known(have: TrainingSet) -> Duplicates | None:
    """Duplicates of this training set that were found before; None where there are none."""
    stamp = _stamp(have)
    if not any(stamp):
        return None
    try:
        return _known(str(stamp), have.index.folder, have.index.sha256)
    except InputError as error:
        show_error(error)
        return None


def _stamp(have: TrainingSet) -> list[int]:
    """When duplicates of this training set were last found, by place; zeros and nothing where they never were."""
    from audit.runs.duplicates import REPORT, default_duplicates, kept_duplicates

    if have.index.folder is None:
        return []
    files = [
        each / REPORT for each in (default_duplicates(have.index.folder), kept_duplicates(have.index.sha256))
    ]
    return [path.stat().st_mtime_ns if path.is_file() else 0 for path in files]


@st.cache_resource(show_spinner=False, max_entries=2)
def _known(stamp: str, _folder, name: str) -> Duplicates | None:
    from audit.runs.duplicates import known_duplicates

    return known_duplicates(_folder, name)


def look(have: TrainingSet) -> Duplicates | None:
    """Look for them now, once somebody asked for it; None until they are there."""
    from audit.retrieval.index import Index

    index = have.index
    if not isinstance(index, Index):
        st.info(
            "This training set is searched by a service that does not give its embeddings. Find its duplicates from the "
            "embeddings or pictures themselves, with `python -m audit duplicates`.",
            icon=":material/info:",
        )
        return None
    name = index.sha256
    if st.session_state.get(ASKED) != name:
        st.info(
            f"Nobody looked for duplicates among these {len(index):,} training images yet. It compares embeddings, "
            "then the pixels of what is near; what is found is kept.",
            icon=":material/info:",
        )
        st.button(
            "Look for duplicates",
            type="primary",
            icon=":material/filter_none:",
            on_click=st.session_state.__setitem__,
            args=(ASKED, name),
        )
        st.markdown(
            "For a large training set, or one with a table of how often each picture was trained with which caption, use "
            "the command line: `python -m audit duplicates INDEX --captions TABLE --out INDEX/duplicates`."
        )
        return None
    key = job_key("duplicates", training_set=name)
    return ask(
        bench.owner(),
        key,
        "Looking for duplicates",
        lambda job: _look(job, have, index),
        priority=LONG,
        again="Look again",
    )


def _look(job: Job, have: TrainingSet, index: Index) -> Duplicates:
    from audit.runs.duplicates import Pictures, find_duplicates, kept_duplicates

    label, begun = job.label, 0.0

    def fetched(done: int, all: int) -> None:
        job.progress(0.5 * done / all, f"Fetching the pictures: {done:,} of {all:,} asked")

    def compared(done: int, all: int) -> None:
        job.progress(begun + (0.99 - begun) * done / all, label)

    pictures = Pictures.of_index(index, fetched, job.waits)
    begun = job.share  # nothing has to be fetched where all pictures lie here
    library = have.library
    usable = library is not None and not library.gap(pictures.sha256, index)
    found = find_duplicates(
        pictures,
        library.templates if library and usable else None,
        progress=compared,
    )
    found.save(kept_duplicates(pictures.sha256))
    bench.owner().held[bench.TRAINING_SET] = replace(have, families=bench.families(index))
    return found


def summary(found: Duplicates) -> None:
    """How many pictures there are, how many of them distinct, and how often they were trained."""
    report = found.report
    images, distinct = report["training_images"], report["distinct_pictures"]
    grid = st.grid(4, min_column_width=170, border=True)
    with grid.cell():
        st.metric("Distinct pictures", f"{distinct:,}")
        st.caption(f"of {images:,} training images; nothing is taken away: the duplicates are the evidence")
    verified = "verified on pixels" if report["verified_on"] == "pixels" else "compared on pixels"
    for name, what in (("exact", "Equal files"), ("near", "Near-duplicates")):
        with grid.cell():
            these = report["clusters"][name]
            st.metric(what, f"{these['clusters'] - these['of_one_image']:,}")
            st.caption(
                f"clusters, of {these['images'] - these['of_one_image']:,} images; "
                + (
                    f"besides, {these['of_one_image']:,} single files that were trained several times"
                    if name == "exact"
                    else f"{these['verified']:,} of them {verified}"
                )
            )
    with grid.cell():
        these = report["clusters"]["template"]
        st.metric("Template families", f"{these['clusters']:,}")
        st.caption(f"of {these['images']:,} images that are the same but for a region")
    literal(
        f"Trained {report['occurrences']:,} times in all, as {report['occurrences_from']} "
        + ("say." if report["occurrences_from"].startswith("the rows") else "says.")
        + (
            f" {report['rows_of_unknown_pictures']:,} of its rows name no picture of this training set."
            if report["rows_of_unknown_pictures"]
            else ""
        )
        + (f" {report['not_opened']:,} pictures could not be opened." if report["not_opened"] else "")
    )


def choose(state: Repeated, found: Duplicates, have: TrainingSet) -> tuple[Repeated, Regurgitation | None]:
    """The run that is joined, if any."""
    from audit.runs.regurgitation import regurgitation, scoring

    names = runs_begun(state.run)
    if not names:
        st.info(
            "With a run, this page says how often each cluster came back. There is no run yet.",
            icon=":material/info:",
        )
        st.page_link("pages/batch.py", label="Start an audit", icon=":material/queue:")
        return replace(state, run=""), None
    name = st.selectbox(
        "Joined with the run",
        names,
        index=names.index(state.run) if state.run in names else None,
        placeholder="Choose a run, to see what of this came back",
        key=f"dup-run-{REPEATED.generation}",
    )
    state = replace(state, run=name or "")
    if not name:
        return state, None
    run = RunFolder(jobs.job(name).folder)
    stamp = [
        len(run.parts("captions")),
        len(run.parts("verdicts")),
        (run.path / "run.json").stat().st_mtime_ns,
        *_stamp(have),
    ]
    try:
        threshold = scoring(run)  # it changes when ordinary captions are scored
    except InputError as error:
        st.info(escape(str(error)), icon=":material/hourglass:")
        return state, None
    key = job_key(
        "regurgitation",
        run=str(run.path),
        stamp=stamp,
        threshold=threshold,
        of=found.report["training_set_sha256"],
    )

    def work(job: Job) -> Regurgitation:
        return regurgitation(found, run)

    joined = ask(bench.owner(), key, "Joining the run", work, priority=SHORT, again="Join again")
    if joined is not None and (why := joined.report["verdicts_left_out"]):
        st.warning(escape(why), icon=":material/rule:")
    return state, joined


def chart(state: Repeated, joined: Regurgitation | None) -> Repeated:
    """The rate of memorisation against both kinds of duplication."""
    if joined is None:
        return state
    st.header("How often what repeats comes back", anchor=False)
    report, score = joined.report, joined.report["score"]
    by = st.segmented_control(
        "A caption counts as memorised by",
        ("score", "verdict"),
        format_func=lambda by: (
            f"its {score.upper() if score else 'score'}" if by == "score" else "its verdict"
        ),
        key="dup-by",
        required=True,
    )
    state = replace(state, by=by or state.by)
    st.caption(
        "Memorised: it scores above what 99% of ordinary captions do."
        if state.by == "score"
        else "Memorised: a picture generated from it is a copy under a threshold."
    )
    rows = joined.rates.get(score or "" if state.by == "score" else "verdict", [])
    if all(row["series"] == "once" for row in rows):
        st.info(
            described(rows) if rows else _why_not(state.by, report),
            icon=":material/info:",
        )
        return state
    st.plotly_chart(
        figure(rows, dark=st.context.theme.type == "dark"),
        key="dup-chart",
        config={"displayModeBar": False},
        theme=None,
        alt=described(rows),
    )
    left, right = st.columns([5, 1], vertical_alignment="center")
    left.markdown(_denominators(state.by, report))
    with right:
        trail.download(
            "Chart data",
            lambda: csv_bytes(rows),
            f"memorisation_by_{state.by}.csv",
            what="chart of what repeats",
            icon=":material/download:",
            key="dup-chart-csv",
        )
    return state


def _why_not(by: str, report: dict[str, Any]) -> str:
    if by == "verdict":
        if report["verdicts_left_out"]:
            return "The verdicts of this run are those of another training set, so nothing is said of what came back."
        return "The run generated no caption of this training set in full yet, so nothing is said of what came back."
    if not report["scored"]:
        return "The run scored no caption of this training set."
    return (
        "No ordinary captions were scored with the model of this run, so what is unusual cannot be told. Score them with "
        "`python -m audit calibrate MODEL`."
    )


def _denominators(by: str, report: dict[str, Any]) -> str:
    all_, strangers = report["captions_of_training_set"], report["captions_not_in_training_set"]
    if by == "score":
        return (
            f"Of {all_:,} captions of the training set the run scored **{report['scored']:,}**; the others stand in no "
            f"rate. Of {strangers['scored']:,} captions besides, {strangers['over_threshold']:,} score as high without "
            "having been trained. Bars are Wilson's 95% intervals and take captions of one picture as independent, which "
            "they are not."
        )
    return (
        f"Of {all_:,} captions of the training set the run generated **{report['decided']:,}** in full and decided; the "
        f"others stand in no rate, nor do {report['undetermined']:,} undetermined ones. A run decides its highest scores "
        "first, so these rates are above those of all captions unless all were decided. Bars are Wilson's 95% intervals "
        "and take captions of one picture as independent, which they are not."
    )


def label(row: dict[str, Any]) -> str:
    """A bin in words."""
    if row["to"] is None:
        return f"{row['from']}+"
    return str(row["from"]) if row["to"] == row["from"] else f"{row['from']}–{row['to']}"


def described(rows: Sequence[dict[str, Any]]) -> str:
    """The chart in words."""
    parts = [
        f"{row['series'].replace('_', '-')} {label(row)} times: {row['memorised']} of {row['captions']}"
        for row in rows
    ]
    return "Share of captions that are memorised. " + "; ".join(parts)


def figure(rows: Sequence[dict[str, Any]], *, dark: bool) -> go.Figure:
    """Rates with their intervals against how often something was trained; what was trained once begins all lines."""
    text = "#e8e6e1" if dark else "#1c2430"
    grid = "rgba(128,136,148,0.25)"
    once = [row for row in rows if row["series"] == "once"]
    labels = dict.fromkeys(label(row) for row in sorted(rows, key=lambda row: row["from"]))
    places = {name: place for place, name in enumerate(labels)}
    data = []
    for aside, (name, series) in zip((-ASIDE, 0.0, ASIDE), SERIES.items(), strict=True):
        own = [row for row in rows if row["series"] == name]
        if not own:
            continue
        points = [*once, *sorted(own, key=lambda row: row["from"])]
        rates = np.array([row["rate"] for row in points])
        colour = series.dark if dark else series.light
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": series.title,
                "x": [places[label(row)] + aside for row in points],
                "y": 100 * rates,
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": 100 * (np.array([row["high"] for row in points]) - rates),
                    "arrayminus": 100 * (rates - np.array([row["low"] for row in points])),
                    "thickness": 1.5,
                    "width": 5,
                },
                "line": {"color": colour, "width": 2, "dash": series.dash},
                "marker": {"color": colour, "size": 9, "symbol": series.symbol},
                "customdata": [
                    [row["memorised"], row["captions"], row["pictures"], label(row)] for row in points
                ],
                "hovertemplate": "%{customdata[0]:,} of %{customdata[1]:,} captions, of %{customdata[2]:,} pictures, "
                "trained %{customdata[3]} times: %{y:.1f}%<extra></extra>",
            }
        )
    axis = {"tickfont": {"color": text, "size": 12}, "fixedrange": True, "zeroline": False}
    return go.Figure(
        {
            "data": data,
            "layout": {
                "height": 380,
                "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
                "legend": {
                    "orientation": "h",
                    "y": 1.02,
                    "yanchor": "bottom",
                    "x": 0,
                    "font": {"color": text},
                },
                "font": {"color": text},
                "paper_bgcolor": "rgba(0,0,0,0)",
                "plot_bgcolor": "rgba(0,0,0,0)",
                "dragmode": False,
                "xaxis": {
                    **axis,
                    "tickvals": list(places.values()),
                    "ticktext": list(places),
                    "showgrid": False,
                    "automargin": True,
                    "title": {"text": "Times trained"},
                },
                "yaxis": {
                    **axis,
                    "range": [-2, 104],
                    "ticksuffix": "%",
                    "gridcolor": grid,
                    "automargin": True,
                    "title": {"text": "Captions memorised"},
                },
            },
        }
    )


def listing(state: Repeated, found: Duplicates, joined: Regurgitation | None, have: TrainingSet) -> Repeated:
    """The clusters, page by page."""
    st.header("Clusters", anchor=False)
    table = found.clusters
    if joined is not None:
        table = table.merge(joined.clusters, on="cluster_id")
    if st.session_state.get("dup-sort") not in table.columns:
        st.session_state["dup-sort"] = "occurrences"
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kind = st.segmented_control(
            "Kind",
            url.KINDS,
            key="dup-kind",
            required=True,
            format_func=lambda kind: KINDS[kind].title if kind else "All",
        )
        sorts = [name for name in url.CLUSTER_SORTS if name in table.columns]
        sort = st.selectbox("Most of", sorts, key="dup-sort", format_func=lambda name: SORTS[name], width=260)
        trail.download(
            "All as CSV",
            lambda: csv_bytes(table.to_dict("records")),
            "duplicates.csv",
            what="clusters of duplicates",
            icon=":material/download:",
            key="dup-csv",
        )
    if (kind, sort) != (state.kind, state.sort):
        state = replace(state, kind=kind, sort=sort, page=1)
    if kind:
        table = table.loc[table["kind"] == kind]
        st.caption(f"{KINDS[kind].title}: {KINDS[kind].meaning}.")
    if table.empty:
        st.info("Nothing of this kind repeats in this training set.", icon=":material/info:")
        return state
    order = np.lexsort((np.arange(len(table)), -table[sort].to_numpy(int)))
    pages = max(1, -(-len(order) // PAGE))
    page = min(state.page, pages)
    if pages > 1:
        page = st.pagination(
            pages, default=page, key=f"dup-pages-{REPEATED.generation}-{kind}-{sort}-{joined is not None}"
        )
    here = table.iloc[order[(page - 1) * PAGE : page * PAGE]]
    images = _images_of(found, here["cluster_id"].tolist())
    grid = st.grid(3, min_column_width=260, border=True)
    for row in here.to_dict("records"):
        with grid.cell():
            _cell(row, images[row["cluster_id"]], have)
    return replace(state, page=page)


def _images_of(found: Duplicates, clusters: Sequence[str]) -> dict[str, list[str]]:
    """The first image ids of clusters."""
    rows = found.members.loc[found.members["cluster_id"].isin(clusters), ["cluster_id", "image_id"]]
    images: dict[str, list[str]] = {}
    for cluster, image in rows.itertuples(index=False):
        images.setdefault(str(cluster), []).append(str(image))
    return images


def _cell(row: dict[str, Any], images: Sequence[str], have: TrainingSet) -> None:
    rows = [have.index.row(image) for image in images[:STRIP]]
    kind = KINDS[row["kind"]]
    strip(rows, have.retriever.pictures, blur=frame.blurred())
    with st.container(horizontal=True, gap="xxsmall"):
        st.badge(kind.title, icon=kind.icon, color="gray", help=f"{kind.title}: {kind.meaning}.")
    literal(rows[0].caption, style="clamp")
    literal(numbers(row))
    if "scored" in row:
        literal(came_back(row))
    owed_together(rows)
    st.button(
        "Show it" if row["images"] == 1 else f"Show all {row['images']:,}",
        key=f"dup-{row['cluster_id']}",
        on_click=REPEATED.change,
        kwargs={"cluster": row["cluster_id"], "page": 1},
    )


def numbers(row: dict[str, Any]) -> str:
    """How often a cluster was trained, in one line."""
    return (
        f"{count(row['images'], 'image', 'images')}, {count(row['captions'], 'caption', 'captions')} · trained "
        f"{row['occurrences']:,} times: {row['multimodal']:,} with one caption, {row['image_only']:,} with others"
    )


def came_back(row: dict[str, Any]) -> str:
    """How often a run gave a cluster back, each with its denominator; only scores where its verdicts are left out."""
    scored = f"{row['over_threshold']:,} of {row['scored']:,} scored look memorised"
    if "decided" not in row:
        return scored
    decided = (
        f"given back by {row['regurgitated']:,} of {row['decided']:,} captions generated in full"
        if row["decided"]
        else "no caption of it was generated in full"
    )
    return f"{decided} · {scored}"


def cluster(state: Repeated, found: Duplicates, joined: Regurgitation | None, have: TrainingSet) -> Repeated:
    """All members of one cluster with what is known of each, and its captions."""
    st.button(
        "All clusters",
        icon=":material/arrow_back:",
        on_click=REPEATED.change,
        kwargs={"cluster": "", "page": 1},
    )
    rows = found.clusters.loc[found.clusters["cluster_id"] == state.cluster].to_dict("records")
    if not rows:
        st.info(
            "This training set has no cluster of that name; choose one from the list.", icon=":material/info:"
        )
        return replace(state, cluster="")
    (row,) = rows
    kind = KINDS[row["kind"]]
    st.subheader(f"{kind.icon} {kind.title}: {kind.meaning}", anchor=False)
    literal(numbers(row), style="body")
    literal(f"{row['verified']:,} of {row['images']:,} images verified on bytes or pixels.")
    if joined is not None:
        (run,) = joined.clusters.loc[joined.clusters["cluster_id"] == state.cluster].to_dict("records")
        literal(f"In the run {state.run}: {came_back(run)}.")
        if "came_back" in run:
            named = count(run["came_back"], "copy", "copies")
            literal(f"{named} of any caption named one of these images.")
    members = found.members.loc[found.members["cluster_id"] == state.cluster]
    pages = max(1, -(-len(members) // MEMBERS))
    page = min(state.page, pages)
    if pages > 1:
        page = st.pagination(pages, default=page, key=f"dup-members-{REPEATED.generation}-{state.cluster}")
    blur = frame.blurred()
    grid = st.grid(4, min_column_width=200)
    for member in members.iloc[(page - 1) * MEMBERS : page * MEMBERS].to_dict("records"):
        with grid.cell():
            card(
                have.index.row(member["image_id"]),
                blur=blur,
                claims=(VERIFIED,) if member["verified"] else (RETRIEVED,),
                number=measured(member),
            )
            st.page_link(
                "pages/prompt_lab.py",
                label="Audit",
                icon=":material/science:",
                query_params={"caption": member["caption"]},
            )
    _captions(found, state.cluster)
    return replace(state, page=page)


def measured(member: dict[str, Any]) -> str:
    """How a member was compared with the cluster's first picture."""
    if member["image_id"] == member["representative"]:
        return "compared with the others"
    if member["kind"] == "exact":
        return "equal file"
    if np.isfinite(member["sse"]):
        return f"distance {member['sse']:,.0f}" + (" under the mask" if member["kind"] == "template" else "")
    return f"likeness {member['similarity']:.2f}, pixels not compared"


def _captions(found: Duplicates, cluster_id: str) -> None:
    column = "family_id" if cluster_id.startswith("template-") else "cluster_id"
    rows = found.captions.loc[found.captions[column] == cluster_id, ["caption", "times", "picture"]]
    rows = rows.sort_values("times", ascending=False, kind="stable")
    st.subheader("Captions that it was trained with", anchor=False)
    st.dataframe(
        pd.DataFrame(rows.head(CAPTIONS)),
        hide_index=True,
        column_config={
            "caption": st.column_config.TextColumn("Caption", width="large"),
            "times": st.column_config.NumberColumn("Times"),
            "picture": st.column_config.TextColumn("Picture"),
        },
        alt="Captions and how often each was trained with the picture",
    )
    if len(rows) > CAPTIONS:
        st.caption(f"The first {CAPTIONS:,} of {len(rows):,}.")
