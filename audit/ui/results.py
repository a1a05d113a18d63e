"""The sections of the results page."""

from __future__ import annotations

import html
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from audit.cells import safe_cell
from audit.errors import InputError
from audit.records import VerdictKind
from audit.runs import jobs, selections
from audit.runs.folder import RunFolder
from audit.runs.jobs import Job
from audit.runs.results import Filter, Results
from audit.settings import settings
from audit.ui import bench, frame, reviewer, trail, url
from audit.ui.bundle import csv_bytes
from audit.ui.claims import OUTCOMES
from audit.ui.guard import guarded, show_error
from audit.ui.page_state import PageState
from audit.ui.pictures import data_uri
from audit.ui.scores import MEANINGS
from audit.ui.text import count, escape, literal, shorten
from audit.ui.url import Found

if TYPE_CHECKING:
    from audit.runs.one_caption import Look
    from audit.scores.calibration import Calibration

COPIES = ("MV", "TV", "RV", "PV")
"""Verdicts that exhibits are made of."""
ROWS = 50
PICTURES = 12
FALSE_ALARMS = 0.01
SCATTER = 20_000
"""Captions drawn of two runs that are compared."""
TITLES = {meaning.name: meaning.title for meaning in MEANINGS} | {
    "ecs_g1": "Edge consistency at guidance 1",
    "caption": "Caption",
    "occurrences": "Times in the file",
    "tokens": "Length in tokens",
}
KEPT = 3
"""Runs that stay open; one of 2,000,000 captions takes some 300 MB."""


def fill(state: Found) -> None:
    """Put a state that came by a link into the widgets."""
    st.session_state["found-search"] = state.search
    st.session_state["found-verdict"] = state.verdict
    st.session_state["found-sort"] = state.sort
    st.session_state["found-order"] = state.order
    st.session_state["found-view"] = state.view
    st.session_state["found-above"] = state.above


FOUND = PageState("found", url.read_found, url.write, fill, filled="found-view")


@st.cache_resource(show_spinner=False, max_entries=KEPT)
def _open(folder: str) -> dict[str, Results]:
    return {}


def runs_begun(wanted: str) -> list[str]:
    """Names of the runs that have something to show, the newest first; told where `wanted` is none of them."""
    names = [job.name for job in jobs.jobs() if RunFolder.exists(job.folder)]
    if wanted and wanted not in names:
        st.warning(
            escape(f"There is no run {wanted!r}; it was deleted or renamed, or has not begun yet."),
            icon=":material/link_off:",
        )
    return names


def opened(folder: Path) -> Results:
    """The run's tables as they are now: opened anew when a part was written, in the place of the older ones."""
    if not RunFolder.exists(folder):
        raise InputError(
            f"There is nothing of the run {folder.name} yet: it has not begun, ended before it could, or was deleted."
        )
    run = RunFolder(folder)
    stamp = f"{len(run.parts('captions'))} {len(run.parts('verdicts'))} {(folder / 'run.json').stat().st_mtime_ns}"
    kept = _open(str(folder))
    found = kept.get(stamp)
    if found is None:
        found = Results(run)
        kept.clear()
        kept[stamp] = found
    return found


def choose(state: Found) -> tuple[Found, Job | None, Results | None]:
    """The run that is looked at."""
    names = [job.name for job in jobs.jobs()]
    if not names:
        st.info(
            "There is no run yet. Start one on the page Batch audits, or with `python -m audit run`.",
            icon=":material/info:",
        )
        st.page_link("pages/batch.py", label="Start an audit", icon=":material/queue:")
        return state, None, None
    if state.run and state.run not in names:
        st.warning(
            escape(f"There is no run {state.run!r}; it was deleted or renamed."), icon=":material/link_off:"
        )
    index = names.index(state.run) if state.run in names else 0
    name = st.selectbox("Run", names, index=index, key=f"found-run-{FOUND.generation}")
    if name != state.run:
        state = Found(run=name)
        fill(state)
    job = jobs.job(name)
    try:
        return state, job, opened(job.folder)
    except InputError as error:
        st.info(escape(str(error)), icon=":material/hourglass:")
        if job.state.message:
            st.error(escape(job.state.message), icon=":material/error:")
        _again(job)
        return state, job, None


def summary(job: Job, found: Results) -> None:
    """How many captions, how many verdicts, and out of how many."""
    run = found.run
    description = run.description
    total, scored = run.total, found.count()
    verdicts = found.verdicts()
    decided = sum(verdicts.values())
    grid = st.grid(4, min_column_width=170, border=True)
    with grid.cell():
        st.metric("Distinct captions scored", f"{scored:,}", help=f"Of {total:,} in the run.")
        st.caption(
            f"of {description.get('captions_rows', total):,} rows; "
            f"{description.get('captions_rejected', 0):,} held no usable caption"
        )
    with grid.cell():
        st.metric("Generated in full and decided", f"{decided:,}")
        st.caption(f"of {scored:,}; for the others nothing is claimed")
    with grid.cell():
        copies = sum(verdicts.get(kind, 0) for kind in ("MV", "RV", "TV"))
        st.metric("Copies under a threshold", f"{copies:,}")
        moved = f"; moved pieces, by a score, in {verdicts['PV']:,} more" if verdicts.get("PV") else ""
        st.caption(f"of {decided:,} decided: verified by pixels, not yet confirmed by people{moved}")
    with grid.cell():
        st.metric("No copy found", f"{verdicts.get('N', 0):,}")
        st.caption(f"of {decided:,} decided; {verdicts.get('U', 0):,} undetermined")
    if unread := description.get("captions_unread"):
        st.warning(
            f"{count(unread, 'file', 'files')} of the source could not be read, or not to the end: the other captions in "
            "there are not in this audit. `rejected.parquet` in the run's folder says which and why.",
            icon=":material/warning:",
        )
    names = " · ".join(
        f"{kind.value} {verdicts[kind.value]:,} ({OUTCOMES[kind].title.lower()})"
        for kind in VerdictKind
        if verdicts.get(kind.value)
    )
    literal(
        f"Model {description['model']} ({description['model_sha256'][:12]}…) · seeds "
        f"{', '.join(map(str, description['seeds']))} · guidance {description['guidance']:g}"
        + (f" · {names}" if names else "")
    )
    _again(job)


def _again(job: Job) -> None:
    """While the run is worked on, the page looks again."""
    if not job.works:
        return

    def parts() -> tuple[int, int]:
        run = RunFolder(job.folder)
        return len(run.parts("captions")), len(run.parts("verdicts"))

    @st.fragment(run_every=3.0)
    def look() -> None:
        try:
            now = jobs.job(job.name)
        except InputError:
            st.rerun()
        if not now.works or parts() != before:
            st.rerun()
        share = f"{now.state.done:,} of {now.state.total:,}" if now.state.total else "beginning"
        st.caption(f":material/autorenew: The run is worked on: {share}. This page grows with it.")

    before = parts()
    look()


def calibration_of(found: Results) -> Calibration | None:
    """Ordinary captions of the run's model, where they were scored."""
    if bench.target() is None:
        return None
    from audit.runs.calibrate import find_calibration

    description = found.run.description
    try:
        return find_calibration(
            description["model_sha256"], description["guidance"], description["seeds"], description["noise"]
        )
    except InputError:
        return None


def distribution(state: Found, found: Results) -> tuple[Found, float]:
    """Histogram of a score, and a threshold with what it means; the threshold itself besides."""
    score = score_of(state, found)
    st.header(f"Where the captions stand: {TITLES[score]}", anchor=False)
    edges, counts = found.histogram(score)
    calibration = calibration_of(found)
    ordinary = calibration.values.get(score) if calibration is not None else None
    usual, _ = usual_threshold(calibration, score, edges, counts)
    low, high = float(edges[0]), float(edges[-1])
    value = state.threshold if state.threshold is not None else usual
    threshold = st.slider(
        "Threshold",
        low,
        max(high, low + 1e-6),
        min(max(value, low), high),
        step=(high - low) / 500 or 1e-6,
        format="%.4g",
        key=f"found-threshold-{FOUND.generation}-{state.run}-{score}-{calibration is not None}",
        help="Captions that score higher count as unusual. Drag it; the sentence below says what it means.",
    )
    dark = st.context.theme.type == "dark"
    st.plotly_chart(
        histogram(edges, counts, ordinary, threshold, dark=dark),
        key="found-histogram",
        config={"displayModeBar": False},
        theme=None,
        alt=f"Histogram of {TITLES[score]} over {int(counts.sum()):,} captions, threshold {threshold:.4g}",
    )
    above = found.count(Filter(score=score, least=threshold))
    sentence = f"**{above:,} of {int(counts.sum()):,} captions** score {threshold:.4g} or more."
    if ordinary is not None:
        rate = float(np.mean(ordinary >= threshold))
        sentence += (
            f" Of {len(ordinary):,} ordinary captions of the calibration {rate:.2%} do, so about "
            f"{rate * int(counts.sum()):,.0f} of this run's would, were all of them ordinary."
        )
    else:
        sentence += " What rate of false alarms that is cannot be told: no ordinary captions were scored with this model."
    left, right = st.columns([5, 1], vertical_alignment="center")
    left.markdown(sentence)
    with right:
        trail.download(
            "Chart data",
            lambda: csv_bytes(
                [
                    {"from": float(low), "to": float(high), "captions": int(number)}
                    for low, high, number in zip(edges, edges[1:], counts, strict=False)
                ]
            ),
            f"{score}_histogram.csv",
            what=f"chart of the run {found.run.path.name}",
            icon=":material/download:",
            key="found-histogram-csv",
        )
    moved = abs(threshold - min(max(usual, low), high)) > 1e-9
    return replace(state, threshold=round(threshold, 6) if moved else None), threshold


def usual_threshold(calibration, score: str, edges: np.ndarray, counts: np.ndarray) -> tuple[float, bool]:
    """What one ordinary caption in a hundred exceeds; without a calibration one of this run's, and False."""
    if calibration is not None and score in calibration.values:
        try:
            return calibration.threshold(score, FALSE_ALARMS), True
        except InputError:
            pass
    shares = np.cumsum(counts) / max(1, counts.sum())
    return float(edges[int(np.searchsorted(shares, 1 - FALSE_ALARMS))]), False


def histogram(
    edges: np.ndarray,
    counts: np.ndarray,
    ordinary: np.ndarray | None,
    threshold: float,
    *,
    dark: bool,
    height: int = 240,
) -> go.Figure:
    """Captions at each score, those above the threshold in colour, beside what ordinary captions would give."""
    text = "#e8e6e1" if dark else "#1c2430"
    accent, grey = ("#f0944d", "#9aa4b1") if dark else ("#c2500a", "#66707d")
    centres = (edges[:-1] + edges[1:]) / 2
    data = [
        {
            "type": "bar",
            "name": "this run",
            "x": centres,
            "y": counts,
            "width": float(edges[1] - edges[0]),
            "marker": {
                "color": [accent if each >= threshold else "rgba(128,136,148,0.55)" for each in centres]
            },
            "hovertemplate": "%{y:,} captions near %{x:.4g}<extra></extra>",
        }
    ]
    if ordinary is not None and counts.sum():
        expected, _ = np.histogram(ordinary, edges)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "ordinary captions, to scale",
                "x": centres,
                "y": expected * (counts.sum() / len(ordinary)),
                "line": {"color": grey, "width": 2, "dash": "dot", "shape": "spline"},
                "hovertemplate": "%{y:,.0f} expected near %{x:.4g}, were all ordinary<extra></extra>",
            }
        )
    axis = {"showgrid": False, "zeroline": False, "tickfont": {"color": text, "size": 11}, "fixedrange": True}
    return go.Figure(
        {
            "data": data,
            "layout": {
                "height": height,
                "margin": {"l": 8, "r": 8, "t": 8, "b": 24},
                "bargap": 0,
                "showlegend": ordinary is not None,
                "legend": {
                    "orientation": "h",
                    "y": 1.0,
                    "x": 1.0,
                    "xanchor": "right",
                    "font": {"color": text},
                },
                "paper_bgcolor": "rgba(0,0,0,0)",
                "plot_bgcolor": "rgba(0,0,0,0)",
                "dragmode": False,
                "shapes": [
                    {
                        "type": "line",
                        "x0": threshold,
                        "x1": threshold,
                        "y0": 0,
                        "y1": 1,
                        "yref": "paper",
                        "line": {"color": accent, "width": 2},
                    }
                ],
                "xaxis": axis,
                "yaxis": {
                    **axis,
                    "automargin": True,
                    "type": "log" if counts.max() > 200 else "linear",
                    "nticks": 4,
                },
            },
        }
    )


def listing(state: Found, found: Results, threshold: float) -> Found:
    """The captions in a table or as pictures, page by page."""
    st.header("Captions", anchor=False)
    sorts = [name for name in url.SORTS if name in found.columns]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        search = st.text_input(
            "Caption contains", key="found-search", type="search", width=280, placeholder="Words"
        ).strip()
        verdict = st.selectbox(
            "Verdict",
            url.VERDICTS,
            key="found-verdict",
            width=190,
            format_func=lambda kind: {"": "Any or none", "none": "Not decided"}.get(kind, str(kind)),
        )
        sort = st.selectbox("Sort by", sorts, key="found-sort", width=240, format_func=TITLES.__getitem__)
        order = st.segmented_control(
            "Order",
            ("down", "up"),
            key="found-order",
            required=True,
            format_func={"down": "Highest first", "up": "Lowest first"}.__getitem__,
        )
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        view = st.segmented_control(
            "View",
            ("table", "gallery"),
            key="found-view",
            required=True,
            format_func=str.capitalize,
            label_visibility="collapsed",
        )
        above = st.checkbox("Only captions above the threshold", key="found-above")
    if sort != state.sort:
        state = replace(state, threshold=None)
    asked = replace(state, search=search, verdict=verdict, sort=sort, order=order, view=view, above=above)
    if replace(asked, page=1, threshold=None) != replace(state, page=1, threshold=None):
        asked = replace(asked, page=1)
    if sort != state.sort:
        FOUND.change(**{name: getattr(asked, name) for name in ("sort", "threshold", "page")})
        st.rerun()
    wanted = filter_of(asked, found, threshold)
    count = found.count(wanted)
    size = ROWS if view == "table" else PICTURES
    pages = max(1, -(-count // size))
    page = min(asked.page, pages)
    if not count:
        st.info("No caption of this run is so; take a filter away.", icon=":material/filter_alt_off:")
        return asked
    if pages > 1:
        shown = hash((count, size, sort, order, search, verdict, above, state.run))
        page = st.pagination(pages, default=page, key=f"found-pages-{FOUND.generation}-{shown}")
    rows = found.page(wanted, sort=sort, descending=order == "down", first=(page - 1) * size, rows=size)
    st.caption(
        f"{count:,} of {found.count():,} captions; {(page - 1) * size + 1:,} to {(page - 1) * size + len(rows):,} here."
    )
    ticked = []
    if view == "table":
        ticked = _table(rows, found)
    else:
        _gallery(rows, found)
    with st.container(horizontal=True):
        _set_aside(found, wanted, count, ticked)
        guarded(_exhibits)(found, ticked)
    return replace(asked, page=page)


def _set_aside(found: Results, wanted: Filter, count: int, ticked: list[str]) -> None:
    """Send the ticked captions, or all that the filters leave, to review."""
    meant = len(ticked) or count
    with st.popover(f"Set {meant:,} aside for review", icon=":material/rate_review:"):
        st.caption(
            f"{'The ticked captions' if ticked else 'All captions that the filters leave'}, with everything the run says "
            "of them, kept for people to look at also when the run is gone."
        )
        name = st.text_input(
            "Name of the selection", value=f"{found.run.path.name} {meant}", key=f"aside-name-{meant}"
        )
        if st.button("Set aside", type="primary", key="aside"):
            try:
                made = selections.select(found, name, wanted=wanted, caption_ids=ticked or None)
            except InputError as error:
                show_error(error)
            else:
                st.toast(escape(f"{made.captions:,} captions are in {made.name}."), icon=":material/check:")


def _exhibits(found: Results, ticked: list[str]) -> None:
    """Exhibits of the ticked captions, or of all with some verdicts, made by a process of their own."""
    if not found.decided:
        return
    from audit.evidence import exports

    with st.popover("Make exhibits", icon=":material/gavel:"):
        reviewer.recall()
        if not reviewer.sees_labels():
            st.markdown(reviewer.NO_EXHIBITS)
            return
        counts = {kind: found.verdicts().get(kind, 0) for kind in COPIES}
        if ticked:
            st.markdown(f"One exhibit for each of the {len(ticked):,} ticked captions that has a verdict.")
            kinds = []
        else:
            kinds = st.pills(
                "Captions with the verdict",
                [kind for kind in COPIES if counts[kind]],
                default=[kind for kind in COPIES if counts[kind]],
                selection_mode="multi",
                format_func=lambda kind: f"{kind} · {counts[kind]:,}",
                key="exhibits-kinds",
            )
        name = st.text_input(
            "Name of the exhibits", value=f"{found.run.path.name} exhibits", key="exhibits-name"
        )
        copy = st.checkbox(
            "With copies of the training images",
            value=True,
            key="exhibits-copy",
            help="Without: their hashes and sources only, for pictures that may not be passed on.",
        )
        options = [] if copy else ["--no-copy"]
        if settings().sign_key and st.checkbox("Signed", value=True, key="exhibits-sign"):
            options += ["--sign", str(settings().sign_key)]
        if settings().model_choice:
            index = st.text_input("Index of the run's training set", settings().index, key="exhibits-index")
            library = st.text_input(
                "Template library", placeholder="The index's own", key="exhibits-templates"
            ).strip()
            options += ["--index", index.strip(), *(["--templates", library] if library else [])]
        st.caption("About half a second each; they appear on the page Exhibits.")
        if st.button("Make them", type="primary", key="exhibits-make"):
            chosen = found.decided_as(tuple(kinds), ticked)
            try:
                exports.start(name, found.run.path, chosen, options, who=trail.name())
            except InputError as error:
                show_error(error)
            else:
                st.page_link(
                    "pages/exhibits.py",
                    label=f"Look at {escape(name)}",
                    query_params={"export": name.strip()},
                )


def set_aside() -> None:
    """The selections that there are."""
    there = selections.selections()
    if not there:
        return
    with st.expander(f"Set aside for review ({len(there)})", icon=":material/rate_review:"):
        for each in there:
            with st.container(horizontal=True, vertical_alignment="center"):
                literal(f"{each.name} · {each.captions:,} captions of {each.run}")
                trail.download(
                    "Parquet",
                    each.path.read_bytes,
                    each.path.name,
                    what="captions set aside",
                    icon=":material/download:",
                    key=f"aside-get-{each.name}",
                )
                st.button(
                    "Delete", key=f"aside-delete-{each.name}", on_click=selections.delete, args=(each.name,)
                )


def filter_of(state: Found, found: Results, threshold: float) -> Filter:
    """What the widgets ask for."""
    if not state.above:
        return Filter(state.search, state.verdict)
    return Filter(state.search, state.verdict, score_of(state, found), threshold)


def score_of(state: Found, found: Results) -> str:
    """The score that is looked at: the one sorted by, if it is one."""
    return state.sort if state.sort in found.scores else found.scores[0]


def _table(rows, found: Results) -> list[str]:
    """The rows, and the ids of those that are ticked."""
    shown = {"caption": [safe_cell(text) for text in rows["caption"]]}
    columns: dict = {"caption": st.column_config.TextColumn("Caption", width="large")}
    for name in found.scores:
        percentile = f"{name}_percentile"
        shown[name] = rows[name].to_list()
        columns[name] = st.column_config.NumberColumn(name.upper(), width="small", format="%.4g")
        if percentile in rows:
            shown[percentile] = rows[percentile].to_list()
            columns[percentile] = st.column_config.ProgressColumn(
                "among ordinary",
                width="small",
                min_value=0,
                max_value=100,
                format="%.1f%%",
                help="Share of ordinary captions that score lower",
            )
    if found.decided:
        shown["verdict"] = rows["verdict"].fillna("").to_list()
        columns["verdict"] = st.column_config.TextColumn(
            "Verdict", width="small", help="Empty: not generated in full"
        )
    shown["occurrences"] = rows["occurrences"].to_list() if "occurrences" in rows else []
    columns["occurrences"] = st.column_config.NumberColumn(
        "Times", width="small", help="How often the caption stands in the file"
    )
    picked = st.dataframe(
        {name: values for name, values in shown.items() if len(values)},
        hide_index=True,
        on_select="rerun",
        selection_mode="multi-row",
        key=f"found-table-{hash(tuple(rows['caption_id']))}",
        column_config=columns,
        alt="Captions with their scores and verdicts",
    ).selection.rows
    if not picked:
        st.caption(
            "Tick rows to open their captions in the prompt lab, to set them aside for review, or to see their scores "
            "seed by seed."
        )
        return []
    chosen = rows.iloc[picked]
    captions = chosen["caption"].tolist()[:16]
    st.page_link(
        "pages/prompt_lab.py",
        label=f"Open {len(captions)} in the prompt lab",
        icon=":material/science:",
        query_params={"caption": captions},
    )
    if len(found.run.description["seeds"]) > 1 and "dcs" in found.scores:
        _seeds(chosen, found)
    return chosen["caption_id"].tolist()


def _seeds(chosen, found: Results) -> None:
    """DCS of each chosen caption at each seed, as a heatmap."""
    table = found.per_seed(chosen["caption_id"].tolist(), "dcs")
    wide = table.pivot_table(index="caption_id", columns="seed", values="dcs").reindex(chosen["caption_id"])
    st.plotly_chart(
        go.Figure(
            {
                "data": [
                    {
                        "type": "heatmap",
                        "z": wide.to_numpy(),
                        "x": [f"seed {seed}" for seed in wide.columns],
                        "y": [
                            f"{place + 1}. {html.escape(shorten(text, 40))}"
                            for place, text in enumerate(chosen["caption"])
                        ],
                        "colorscale": "Cividis",
                        "hovertemplate": "%{y}, %{x}: %{z:.4g}<extra></extra>",
                    }
                ],
                "layout": {
                    "height": 90 + 28 * len(wide),
                    "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
                    "yaxis": {"autorange": "reversed", "automargin": True},
                },
            }
        ),
        key="found-seeds",
        config={"displayModeBar": False},
        alt="DCS of the chosen captions at each seed",
    )
    st.caption("Compare down a column: the seed's own noise moves DCS more than most captions do.")


def _gallery(rows, found: Results) -> None:
    """One-step pictures of the captions on this page, by the model in use."""
    target = bench.target()
    description = found.run.description
    if target is None or target.sha256 != description["model_sha256"]:
        st.info(
            "Pictures are made by the model in use, and this run was scored with another one; load it in the sidebar.",
            icon=":material/swap_horiz:",
        )
        return
    seed = description["seeds"][0]
    looks = bench.looks(target, rows["caption"].tolist(), (seed,), description["guidance"])
    if looks is None:
        return
    grid = st.grid(4, min_column_width=200, border=True)
    for look, row in zip(looks, rows.itertuples(), strict=True):
        with grid.cell():
            hit(look, row, found)
    st.caption(
        f"After a single denoising step at seed {seed}; nothing here is compared with the training set."
    )


def hit(look: Look, row, found: Results) -> None:
    """One caption of a run: its one-step picture, its first score, its verdict where there is one."""
    st.image(
        data_uri(look.pictures[0], blur=frame.blurred()),
        width="stretch",
        alt=f"Picture after one step at seed {look.seeds[0]}: {shorten(look.caption, 120)}",
    )
    verdict = getattr(row, "verdict", None)
    st.markdown(
        f":small[{found.scores[0].upper()} {getattr(row, found.scores[0]):.4g}"
        + (f" · **{escape(verdict)}**" if isinstance(verdict, str) else "")
        + "]"
    )
    literal(look.caption, style="clamp")


def export(state: Found, job: Job, found: Results, threshold: float) -> None:
    """What is shown above, whole, as a file."""
    wanted = filter_of(state, found, threshold)
    with st.container(horizontal=True, vertical_alignment="center"):
        for kind, mime in (("parquet", "application/vnd.apache.parquet"), ("csv", "text/csv")):
            trail.download(
                f"Export as {kind if kind == 'parquet' else 'CSV'}",
                lambda kind=kind: _exported(found, kind, wanted),
                f"{job.name}.{kind}",
                what="captions of a run",
                mime=mime,
                icon=":material/download:",
                key=f"found-export-{kind}",
            )
        st.caption("All captions that the filters leave, with every column.")


def _exported(found: Results, kind: str, wanted: Filter) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"run.{kind}"
        found.export(path, kind, wanted)
        return path.read_bytes()


def compare(state: Found, job: Job, found: Results) -> Found:
    """The same captions in another run: two models, or two seeds."""
    others = [each.name for each in jobs.jobs() if each.name != job.name]
    if not others:
        return replace(state, other="")
    with st.expander(
        "Compare with another run", icon=":material/compare_arrows:", expanded=bool(state.other)
    ):
        other = st.selectbox(
            "Other run",
            others,
            index=others.index(state.other) if state.other in others else None,
            placeholder="Choose a run that has captions of this one",
            key=f"found-other-{FOUND.generation}",
        )
        if other is None:
            return replace(state, other="")
        try:
            second = opened(jobs.job(other).folder)
            score = score_of(state, found)
            _scatter(found, second, job.name, other, score)
        except InputError as error:
            show_error(error)
        return replace(state, other=other)


def _scatter(first: Results, second: Results, name: str, other: str, score: str) -> None:
    both = first.joined(second, score, SCATTER)
    if both.empty:
        st.info("The two runs have no caption in common.", icon=":material/info:")
        return
    correlation = (
        both["first"].corr(both["second"], method="spearman")  # pyright: ignore[reportArgumentType, reportCallIssue]
        if len(both) > 2
        else float("nan")
    )
    st.plotly_chart(
        go.Figure(
            {
                "data": [
                    {
                        "type": "scattergl",
                        "mode": "markers",
                        "x": both["first"],
                        "y": both["second"],
                        "text": [html.escape(shorten(text, 80)) for text in both["caption"]],
                        "marker": {"size": 5, "opacity": 0.5, "color": "#c2500a"},
                        "hovertemplate": "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
                    }
                ],
                "layout": {
                    "height": 420,
                    "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
                    "xaxis": {
                        "title": {"text": f"{score.upper()} in {shorten(name, 40)}"},
                        "automargin": True,
                    },
                    "yaxis": {
                        "title": {"text": f"{score.upper()} in {shorten(other, 40)}"},
                        "automargin": True,
                    },
                },
            }
        ),
        key="found-scatter",
        config={"displayModeBar": False},
        alt=f"{score} of {len(both):,} captions in both runs",
    )
    st.markdown(
        f"{len(both):,} captions that both runs have (at most {SCATTER:,} are drawn); rank correlation "
        f"**{correlation:.3f}**. Scores of other seeds or models differ in their offset: compare ranks, not values."
    )
    trail.download(
        "Chart data",
        lambda: csv_bytes(both.to_dict("records")),
        "comparison.csv",
        what=f"the runs {name} and {other}",
        icon=":material/download:",
        key="found-scatter-csv",
    )
