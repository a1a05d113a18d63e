"""The sections of the batch page: a new run with what it will cost, and the runs there are."""

from __future__ import annotations

import datetime
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from audit.errors import InputError
from audit.images import sha256
from audit.runs import jobs
from audit.runs.captions import CaptionSource, Rejected, kind
from audit.runs.folder import RunFolder, disk_is_full
from audit.runs.jobs import Job
from audit.runs.results import Filter
from audit.settings import settings
from audit.ui import bench, results, trail
from audit.ui.claims import Colour
from audit.ui.guard import DISK_IS_FULL, guarded, show_error
from audit.ui.text import count, escape, literal, shorten
from audit.ui.url import parse_seeds
from audit.units import disk, duration

UPLOAD, PLACE = "Upload a file", "A path or address"
SHARES = {"0": "None", "100": "The 100 highest", "1%": "The highest 1%", "all": "All of them"}
SUFFIXES = ["txt", "csv", "tsv", "jsonl", "ndjson", "parquet", "gz", "tar"]
PREVIEWED = 2_000
"""Rows that a preview reads."""
SHOWN = 8
LIVE = 200_000
"""Captions up to which a run at work is looked through every few seconds."""
HITS = 4
"""Of a run at work, shown as pictures."""
LISTED = 10
"""Runs on a page of the list."""
STAGES: dict[str, tuple[str, Colour]] = {
    "new": ("not begun", "gray"),
    "starting": ("starting", "blue"),
    "reading": ("reading captions", "blue"),
    "scoring": ("scoring", "blue"),
    "deciding": ("generating in full", "blue"),
    "done": ("done", "green"),
    "cancelled": ("stopped", "gray"),
    "interrupted": ("interrupted", "orange"),
    "failed": ("failed", "red"),
}
"""Stage -> how it is told, and its colour."""


@dataclass(frozen=True)
class Preview:
    """How a source begins."""

    captions: list[str]
    rejected: list[Rejected]
    rows: int
    """Rows read for the preview."""
    total: int
    """Rows in all; estimated from those that were read unless `exact`."""
    exact: bool
    files: int
    bytes: int


def new() -> None:
    """Choose captions, see what is in them and what the run will cost, start it."""
    st.header("New audit", anchor=False)
    with st.container(border=True):
        place = _source()
        if place is None:
            return
        try:
            found = _preview(place, _stamp(place))
        except InputError as error:
            show_error(error)
            return
        _show(found)
        if found.captions:
            _ask(place, found)


def _source() -> str | None:
    """Where the captions are; None while nothing was given."""
    places = [UPLOAD, PLACE] if settings().model_choice else [UPLOAD]
    way = st.segmented_control(
        "Captions from", places, default=UPLOAD, required=True, key="batch-way", label_visibility="collapsed"
    )
    if way == PLACE:
        text = st.text_input(
            "File or folder on this server, or an address",
            key="batch-place",
            placeholder="/data/captions   or   s3://bucket/folder   or   hf://datasets/owner/name",
            help="A .txt with one caption a line, .csv, .tsv, .jsonl, .parquet, a webdataset .tar, or a folder of these.",
        )
        text = text.strip()
        return (text if "://" in text else os.path.abspath(os.path.expanduser(text))) if text else None
    upload = st.file_uploader(
        "A .txt with one caption a line, or a .csv, .tsv, .jsonl or .parquet with a caption column",
        SUFFIXES,
        key="batch-file",
        max_upload_size=max(1, settings().max_captions_bytes // 1_000_000),
    )
    if upload is None:
        st.caption(
            "Equal captions are scored once. Rows without a usable caption are left out and listed with the reason."
        )
        return None
    return _kept(upload)


def _kept(upload) -> str:
    """The path of an uploaded file, under the hash of its content: the name comes from outside."""
    suffix = kind(upload.name) + (
        Path(upload.name).suffix.lower() if upload.name.lower().endswith(".gz") else ""
    )
    known = st.session_state.get("batch upload")
    if known and known[0] == upload.file_id and Path(known[1]).is_file():
        return known[1]
    content = upload.getbuffer()
    path = settings().data_dir / "uploads" / f"{sha256(bytes(content))[:32]}{suffix}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(content)
        partial.rename(path)
    st.session_state["batch upload"] = (upload.file_id, str(path))
    st.session_state["batch stem"] = Path(upload.name).name.partition(".")[0]
    return str(path)


def _stamp(place: str) -> str:
    """Changes when a local source does."""
    try:
        return str(Path(place).stat().st_mtime_ns)
    except (OSError, ValueError):
        return ""


@st.cache_data(show_spinner="Reading how it begins …", max_entries=16)
def _preview(place: str, stamp: str) -> Preview:
    source = CaptionSource(place)
    captions: list[str] = []
    rejected: list[Rejected] = []
    rows = 0
    for chunk in source.chunks(PREVIEWED):
        captions += chunk.captions
        rejected += chunk.rejected
        rows += chunk.rows
    total, exact = source.estimate()
    return Preview(captions, rejected, rows, total, exact, len(source.files), source.bytes)


def _show(found: Preview) -> None:
    """How the source begins, and what is wrong in it."""
    about = "" if found.exact else "about "
    files = count(found.files, "file", "files")
    st.markdown(f"**{about}{found.total:,} rows** in {files}, {disk(found.bytes)}")
    if found.captions:
        st.dataframe(
            {"First captions, as they were read": [shorten(text, 300) for text in found.captions[:SHOWN]]},
            hide_index=True,
            alt="The first captions of the file",
        )
    if found.rejected:
        first = found.rejected[0]
        where = f"row {first.row} of {first.file}" if first.row else first.file
        st.warning(
            escape(
                f"{len(found.rejected):,} of the first {found.rows:,} rows hold no usable caption and will be left out; "
                f"the first is {where}: {first.reason}."
            ),
            icon=":material/rule:",
        )


def _ask(place: str, found: Preview) -> None:
    """Settings, cost, and the button that starts."""
    target = bench.target()
    if target is None:
        st.info("The model is being loaded; the cost can be told then.", icon=":material/hourglass:")
        return
    left, middle, right = st.columns([3, 2, 3], vertical_alignment="bottom")
    stem = (
        st.session_state.get("batch stem")
        if place == st.session_state.get("batch upload", ("", ""))[1]
        else Path(place).name.partition(".")[0]
    )
    name = left.text_input("Name of the run", value=_free_name(stem or "captions"), key=f"batch-name-{place}")
    seeds_text = middle.text_input(
        "Seeds",
        value="0",
        key="batch-seeds",
        help="Starting noises; each costs another step of every caption.",
    )
    top = right.selectbox(
        "Generate in full",
        list(SHARES),
        index=1,
        format_func=SHARES.__getitem__,
        key="batch-top",
        help="Captions with the highest first score are sampled in full, compared with the training set and decided.",
    )
    edges = st.checkbox(
        "Also score edges (ECS): four more pictures of every caption are decoded", key="batch-edges"
    )
    pieces = st.checkbox(
        "Also look for moved pieces in what is generated in full and is no copy: takes about as long again",
        key="batch-pieces",
        help="Pieces of training pictures that stand elsewhere, mirrored, scaled or recoloured. It needs a calibration of the "
        "model on this training set: `python -m audit calibrate MODEL --pieces --index INDEX`.",
    )
    try:
        seeds = parse_seeds(seeds_text)
    except InputError as error:
        show_error(error)
        return
    names = ["dcs", "magnitude", *(["ecs", "ecs_g1"] if edges else [])]
    _cost(found, target, seeds, names, top)
    if st.button("Start the audit", type="primary", icon=":material/play_arrow:"):
        try:
            jobs.start(
                name,
                [
                    *(place, "--model", target.name),
                    *("--seeds", ",".join(map(str, seeds))),
                    *("--scores", ",".join(names), "--top", top),
                    *(("--pieces",) if pieces else ()),
                ],
                who=trail.name(),
            )
        except InputError as error:
            show_error(error)
            return
        st.toast(f"The run {escape(name)} has been started.", icon=":material/check:")
        st.rerun()


def _cost(found: Preview, target, seeds: tuple[int, ...], names: list[str], top: str) -> None:
    """Evaluations, time and disk, and what full sampling would take."""
    from audit.runs.plan import plan, share

    captions = found.total
    cost = plan(captions, seeds=seeds, scores=names, top=share(top, captions))
    pace = bench.owner().held[bench.PACE]
    about = "" if found.exact else "about "
    st.markdown(
        f"**Cost:** {about}{cost.scoring:,} evaluations of the network for the scores"
        + (f" and {cost.sampling:,} to generate {cost.sampled:,} in full" if cost.sampled else "")
        + f": about **{duration(cost.seconds(pace))}** on {target.device} at the pace measured when the model was loaded, "
        f"and {disk(cost.bytes)} on disk. Equal captions make it less."
    )
    st.caption(
        f"By full sampling alone (500 pictures of 50 steps for each caption, Carlini et al. 2023) it would be "
        f"{cost.baseline:,} evaluations: {cost.baseline / max(1, cost.evaluations):,.0f} times as many (computed)."
    )


def _free_name(stem: str) -> str:
    """A name that no run has yet."""
    kept = "".join(letter for letter in stem if letter.isalnum() or letter in " -_.()").strip(" ._-")[:50]
    base = f"{kept or 'captions'} {datetime.date.today():%Y-%m-%d}"
    taken = {job.name for job in jobs.jobs()}
    names = (base if number == 1 else f"{base} ({number})" for number in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


def listing() -> None:
    """All runs, the newest first."""
    st.header("Runs", anchor=False)
    found = jobs.jobs()
    if not found:
        st.info(
            "No run yet. Give a file of captions above; the demo's own half for tests is in "
            "`assets/demo/corpus/test.parquet`.",
            icon=":material/info:",
        )
        return
    pages = -(-len(found) // LISTED)
    page = st.pagination(pages, key="batch-pages") if pages > 1 else 1
    names = tuple(job.name for job in found[(page - 1) * LISTED : page * LISTED])
    working = any(job.works for job in found)
    st.fragment(_rows, run_every=1.5 if working else None)(names, working)
    _disk()


def _rows(names: tuple[str, ...], working: bool) -> None:
    """The runs of one page; the whole page runs again when the last of them has ended."""
    now = []
    for name in names:
        try:
            now.append(jobs.job(name))
        except InputError:
            continue
    works = any(job.works for job in now)
    if len(now) != len(names) or (works and not working):
        st.rerun()  # a button here changed what the list is made of
    if working and not works and not any(job.works for job in jobs.jobs()):
        st.rerun()
    for job in now:
        guarded(_row)(job)


def _row(job: Job) -> None:
    told, colour = STAGES.get(job.state.stage, (job.state.stage, "gray"))
    with st.container(border=True, key=f"run-{job.name}"):
        left, right = st.columns([5, 4], vertical_alignment="center")
        with left:
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.markdown(f"**{escape(job.name)}**", width="content")
                st.badge(escape(told), color=colour)
            literal(_numbers(job))
        with right, st.container(horizontal=True, horizontal_alignment="right"):
            _buttons(job)
        if job.works and job.state.total:
            st.progress(min(1.0, job.state.done / job.state.total))
        if job.state.stage in ("scoring", "deciding"):
            _so_far(job)
        if job.state.message:
            st.error(escape(job.state.message), icon=":material/error:")


def _so_far(job: Job) -> None:
    """What a run has found while it is at work: its scores, and the captions that score highest as pictures."""
    if RunFolder(job.folder).count("captions") > LIVE:
        st.caption(f"More than {LIVE:,} captions are scored; the page Results shows them.")
        return
    try:
        found = results.opened(job.folder)
    except InputError:
        return  # no part has been written yet
    score, description = found.scores[0], found.run.description
    best = found.page(sort=score, rows=HITS)
    edges, counts = found.histogram(score)
    calibration = results.calibration_of(found)
    threshold, calibrated = results.usual_threshold(calibration, score, edges, counts)
    ordinary = calibration.values.get(score) if calibration else None
    above = found.count(Filter(score=score, least=threshold))
    line = (
        "which one ordinary caption in a hundred passes"
        if calibrated
        else "which one in a hundred of them passes"
    )
    st.caption(f"{int(counts.sum()):,} captions scored so far, {above:,} of them beyond the line, {line}.")
    left, right = st.columns([2, 3], vertical_alignment="center")
    left.plotly_chart(
        results.histogram(
            edges,
            counts,
            ordinary,
            threshold,
            dark=st.context.theme.type == "dark",
            height=170,
        ),
        key=f"so-far-{job.name}",
        config={"displayModeBar": False},
        theme=None,
        alt=f"Histogram of {results.TITLES[score]} over the captions scored so far",
    )
    target = bench.target()
    if target is None or target.sha256 != description["model_sha256"]:
        return
    with right:
        grid = st.grid(HITS, min_column_width=110)
        for caption, row in zip(best["caption"], best.itertuples(), strict=True):
            # one at a time: when another caption joins the highest, the pictures of the others are there
            looks = bench.glimpse(target, [caption], description["seeds"][:1], description["guidance"])
            with grid.cell():
                if looks:
                    results.hit(looks[0], row, found)
                else:
                    literal(caption, style="clamp")
                    st.caption(
                        "Its picture is being made …" if looks is None else "No picture could be made."
                    )


def _numbers(job: Job) -> str:
    """Done, rate and time left in one line."""
    state = job.state
    parts = []
    if state.stage == "reading":
        parts.append(f"{state.done:,} rows read")
    elif state.total:
        parts.append(f"{state.done:,} of {state.total:,} captions")
    if job.works and state.rate:
        parts.append(f"{state.rate:,.1f} a second")
    if job.works and state.seconds_left is not None:
        parts.append(f"about {duration(state.seconds_left)} left")
    parts.append(f"started {datetime.datetime.fromtimestamp(job.created):%Y-%m-%d %H:%M}")
    return " · ".join(parts)


def _buttons(job: Job) -> None:
    if RunFolder(job.folder).parts("captions"):
        st.page_link(
            "pages/results.py", label="Results", icon=":material/table_chart:", query_params={"run": job.name}
        )
    if job.works:
        st.button(
            "Stop",
            key=f"stop-{job.name}",
            icon=":material/stop:",
            on_click=_try,
            args=(jobs.cancel, job.name),
        )
    elif job.resumable:
        st.button(
            "Resume",
            key=f"resume-{job.name}",
            icon=":material/play_arrow:",
            on_click=_try,
            args=(jobs.resume, job.name),
        )
    if not job.works:
        with st.popover("More", key=f"more-{job.name}"):
            new_name = st.text_input("Another name", value=job.name, key=f"rename-to-{job.name}")
            st.button(
                "Rename", key=f"rename-{job.name}", on_click=_try, args=(jobs.rename, job.name, new_name)
            )
            st.divider()
            sure = st.checkbox(f"Delete it for good, {disk(jobs.size(job.folder))}", key=f"sure-{job.name}")
            st.button(
                "Delete",
                key=f"delete-{job.name}",
                icon=":material/delete:",
                disabled=not sure,
                on_click=_try,
                args=(jobs.delete, job.name),
            )


def _try(action, *names: str) -> None:
    """A callback whose refusal is told where the page shows its messages."""
    try:
        action(*names)
    except InputError as error:
        st.toast(escape(str(error)), icon=":material/error:")
    except OSError as error:
        if not disk_is_full(error):
            raise
        st.toast(DISK_IS_FULL, icon=":material/error:")


def _disk() -> None:
    """What runs take, and what to do about it."""
    taken, free = _used()
    quota = settings().quota_bytes
    st.caption(
        f"Runs, uploads, selections and caches take {disk(taken)} of {disk(quota)}; {disk(free)} are free on this disk."
    )
    if taken > quota or free < quota / 50:
        st.warning(
            "That is more room than they should take. Delete those that nobody needs (More, on each run), or raise "
            "VERBATIM_QUOTA_BYTES.",
            icon=":material/hard_drive:",
        )
    stale = _stale_uploads()
    if stale and st.button(f"Remove {count(len(stale), 'uploaded file', 'uploaded files')} that no run uses"):
        for path in stale:
            path.unlink(missing_ok=True)
        _used.clear()
        st.rerun()


@st.cache_data(ttl=30, show_spinner=False)
def _used() -> tuple[int, int]:
    folder = settings().data_dir
    folder.mkdir(parents=True, exist_ok=True)
    return jobs.size(folder), shutil.disk_usage(folder).free


def _stale_uploads() -> list[Path]:
    folder = settings().data_dir / "uploads"
    used = "\n".join(path.read_text(errors="replace") for path in jobs.runs_folder().glob("*.job"))
    mine = st.session_state.get("batch upload", ("", ""))[1]
    yesterday = time.time() - 86_400  # what somebody has just sent is about to be used
    return [
        path
        for path in folder.glob("*")
        if path.name not in used and str(path) != mine and path.stat().st_mtime < yesterday
    ]
