"""The sections of the templates page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st

from audit.errors import InputError
from audit.runs import jobs
from audit.runs.compared import other_templates, other_training_set
from audit.settings import template_library
from audit.ui import frame, trail, url
from audit.ui.bundle import csv_bytes
from audit.ui.cards import card, owed
from audit.ui.overlays import blend
from audit.ui.page_state import PageState
from audit.ui.pictures import png
from audit.ui.results import opened, runs_begun
from audit.ui.text import count, escape, literal
from audit.ui.url import Library

if TYPE_CHECKING:
    from audit.records import Template
    from audit.runs.folder import RunFolder
    from audit.ui.bench import TrainingSet

PAGE = 12
MEMBERS = 24
NO_RUN = "No run"
VARYING = np.array((0.98, 0.45, 0.09), np.float32)
"""Colour laid over the part in which a template's members differ."""


def fill(state: Library) -> None:
    """Put a state that came by a link into the widgets."""
    st.session_state["library-filled"] = True


LIBRARY = PageState("library", url.read_library, url.write, fill, filled="library-filled")


@dataclass(frozen=True)
class Hits:
    """What a run found of the templates."""

    rows: pd.DataFrame
    """``template_id, caption_id, caption, seed, masked_sse``: each a template that a sample agrees with."""
    looked_at: int
    """Captions that have a verdict: the denominator."""

    def of(self, template_id: str) -> pd.DataFrame:
        return self.rows.loc[self.rows["template_id"] == template_id]


def choose_run(state: Library, have: TrainingSet) -> tuple[Library, Hits | None]:
    """The run whose captions are counted beside each template; none where its verdicts are not of these templates."""
    names = [NO_RUN, *runs_begun(state.run)]
    index = names.index(state.run) if state.run in names else 0
    name = st.selectbox(
        "Run whose verdicts are counted",
        names,
        index=index,
        key=f"library-run-{LIBRARY.generation}",
        help="Each template then says how many of the run's captions brought it back.",
    )
    if name == NO_RUN:
        return replace(state, run=""), None
    state = replace(state, run=name)
    try:
        results = opened(jobs.job(name).folder)
        why = _not_of(results.run, have)
    except InputError as error:
        st.info(escape(str(error)), icon=":material/hourglass:")
        return state, None
    if not results.decided:
        st.info(
            "This run has no verdicts yet: its captions were scored, not generated in full. Decide its highest with "
            "`python -m audit verdict RUN`.",
            icon=":material/info:",
        )
        return state, None
    if why:
        st.warning(escape(why), icon=":material/rule:")
        return state, None
    return state, Hits(results.template_hits(), sum(results.verdicts().values()))


def _not_of(run: RunFolder, have: TrainingSet) -> str:
    """Why a run's verdicts are not of these templates; those of masks that people have edited since are."""
    why = other_training_set(run, have.index.sha256, len(have.index))
    library = have.library
    if why or library is None:
        return why
    before = (_as_found(library.sha256),) if library.versions else ()
    return other_templates(run, library.sha256, *before)


@st.cache_data(show_spinner=False, max_entries=2)
def _as_found(stamp: str) -> str:
    """sha256 of the library in use without what people edited."""
    from audit.runs.templates import as_found
    from audit.verbatim.versions import template_sha256

    return template_sha256(*as_found(template_library()))


def every(state: Library, have: TrainingSet, hits: Hits | None) -> Library:
    """All templates, those that came back most often first."""
    templates = list(have.templates)
    if not templates:
        st.info(
            "No template of this training set is known. Find them with `python -m audit templates INDEX`, or take over a "
            "library with its option --import.",
            icon=":material/info:",
        )
        return state
    times: dict[str, int] = {}
    if hits is not None:
        shown = hits.rows.loc[hits.rows["template_id"].isin([each.template_id for each in templates])]
        times = shown.groupby("template_id")["caption_id"].nunique().to_dict()
        back, captions = len(times), shown["caption_id"].nunique()
        st.markdown(
            f"**{back:,} of {count(len(templates), 'template', 'templates')}** came back, from **{captions:,} of "
            f"{hits.looked_at:,}** captions that were generated in full. One caption may bring back several templates, "
            "and one template may come back from many captions."
        )
    else:
        st.markdown(
            f"**{count(len(templates), 'template', 'templates')}**, found in {len(have.index):,} training images. Orange is "
            "the part in which a template's members differ; a copy is measured on the rest."
        )
    templates.sort(key=lambda each: (-times.get(each.template_id, 0), -len(each.members), each.template_id))
    pages = -(-len(templates) // PAGE)
    page = min(state.page, pages)
    if pages > 1:
        page = st.pagination(pages, default=page, key=f"library-pages-{LIBRARY.generation}")
    grid = st.grid(4, min_column_width=220, border=True)
    for template in templates[(page - 1) * PAGE : page * PAGE]:
        with grid.cell():
            _overlay(template)
            literal(template.template_id, style="clamp")
            literal(_in_short(template))
            _owed(template, have)
            if hits is not None:
                found = times.get(template.template_id, 0)
                literal(f"came back from {found:,} of {hits.looked_at:,} captions")
            st.button(
                "Look closer",
                key=f"template-{template.template_id}",
                width="stretch",
                on_click=LIBRARY.change,
                kwargs={"template": template.template_id},
            )
    return replace(state, page=page)


def one(state: Library, have: TrainingSet, hits: Hits | None) -> Library:
    """One template: picture, mask, members, and the captions and seeds that brought it back."""
    st.button("All templates", icon=":material/arrow_back:", on_click=LIBRARY.change, kwargs={"template": ""})
    template = have.template(state.template)
    if template is None:
        st.info("The library has no template of that name; choose one from the list.", icon=":material/info:")
        return replace(state, template="")
    literal(template.template_id, style="title")
    literal(_in_short(template))
    blur = frame.blurred()
    left, middle, right = st.columns(3)
    with left:
        st.markdown("**First member**")
        st.image(
            png(template.image, blur=blur), output_format="PNG", width="stretch", alt="The template's picture"
        )
        _owed(template, have)
    with middle:
        st.markdown("**Mask**: white is what the members share")
        # with an edge, or its white would run into the page's
        mask = np.pad(template.mask.astype(np.float32), 2, constant_values=0.5)
        st.image(png(mask), output_format="PNG", width="stretch", alt="Mask of what the members share")
    with right:
        st.markdown("**What varies**, in orange")
        _overlay(template)
    if hits is not None:
        _hits(template, hits, state.run)
    st.subheader(f"{len(template.members):,} members", anchor=False)
    grid = st.grid(4, min_column_width=200)
    for name in template.members[:MEMBERS]:
        with grid.cell():
            if have.has(name):
                card(have.index.row(name), blur=blur)
            else:
                literal(f"{name} is not in this training set.")
    if len(template.members) > MEMBERS:
        st.caption(f"The first {MEMBERS} are shown.")
    return state


def _hits(template: Template, hits: Hits, run: str) -> None:
    found = hits.of(template.template_id)
    captions = found["caption_id"].nunique()
    st.subheader("What brought it back", anchor=False)
    if found.empty:
        st.markdown(
            f"None of the {hits.looked_at:,} captions of this run that were generated in full brought it back."
        )
        return
    st.markdown(
        f"**{captions:,} of {hits.looked_at:,}** captions, in {count(len(found), 'sample', 'samples')}. The numbers are "
        "distances under the mask as it was then, by seed; a gap is a sample that does not agree."
    )
    table = found.pivot_table(index="caption", columns="seed", values="masked_sse", aggfunc="min")
    table.columns = [f"seed {seed}" for seed in table.columns]
    shown = (
        table.assign(nearest=table.min(axis=1)).sort_values("nearest").drop(columns="nearest").reset_index()
    )
    numbers = {
        name: st.column_config.NumberColumn(format="%.0f") for name in shown.columns if name != "caption"
    }
    st.dataframe(shown, hide_index=True, column_config=numbers, width="stretch")
    trail.download(
        "Download as CSV",
        csv_bytes(found.to_dict("records")),
        f"{run}-{template.template_id}.csv",
        what="samples of a template",
        mime="text/csv",
        icon=":material/download:",
    )


def _in_short(template: Template) -> str:
    return f"{len(template.members):,} members share {template.mask.mean():.0%} of the picture"


def _owed(template: Template, have: TrainingSet) -> None:
    """To whom the template's picture is owed, where it is one of this training set."""
    if have.has(template.image_id):
        owed(have.index.row(template.image_id))


def _overlay(template: Template) -> None:
    tinted = np.where(
        template.mask[..., None],
        template.image,
        blend(template.image, np.broadcast_to(VARYING, template.image.shape), 0.6),
    )
    st.image(
        png(tinted, blur=frame.blurred()),
        output_format="PNG",
        width="stretch",
        alt="The template's picture; the part in which its members differ is tinted orange",
    )
