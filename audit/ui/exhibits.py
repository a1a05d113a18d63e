"""The sections of the exhibits page: for readers who never heard of diffusion. Nothing on it can be changed."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import streamlit as st

from audit.errors import InputError
from audit.evidence import exports
from audit.evidence.exports import Export
from audit.evidence.html import REPORT as HTML
from audit.evidence.reading import Exhibit, gallery
from audit.evidence.report import REPORT as PDF
from audit.evidence.untrusted import write_zip
from audit.images import decode
from audit.ui import frame, reviewer, trail, url
from audit.ui.claims import CONFIRMED, RETRIEVED, VERIFIED
from audit.ui.comparison import Side, comparison
from audit.ui.guard import show_error
from audit.ui.page_state import PageState
from audit.ui.pictures import png
from audit.ui.removal import hidden
from audit.ui.text import count, escape, literal
from audit.ui.url import Shown

PAGE = 12
BESIDE = 3
"""Answers that stand beside the pictures: what was asked, what came back, what it matches."""
CLAIMS = (RETRIEVED, VERIFIED, CONFIRMED)
"""In the order of the claims of an exhibit."""
STATES = {"yes": ":material/check_circle:", "no": ":material/cancel:", "open": ":material/pending:"}
STEPS = (
    ("1. One step", "pictures/one-step.png", "What was asked?"),
    ("2. Looked up", "pictures/neighbours.png", "What does it match?"),
    ("3. Measured", "pictures/difference.png", "How was that verified?"),
)
"""How do we know: title, picture, and the question whose answer stands below it."""
STYLES = """
<style>
.verbatim-large { max-width: 62rem; }
.verbatim-large p { font-size: 1.2rem; line-height: 1.55; margin: 0 0 0.35rem; unicode-bidi: plaintext; overflow-wrap: anywhere; }
</style>
"""


def fill(state: Shown) -> None:
    """Put a state that came by a link into the widgets."""
    st.session_state["exhibits-filled"] = True


EXHIBITS = PageState("exhibits", url.read_shown, url.write, fill, filled="exhibits-filled")


def every(state: Shown) -> None:
    """All exports of this computer."""
    found = exports.exports()
    if not found:
        st.info(
            "There are no exhibits here yet. An auditor makes them on the page **Results**, or with "
            "`python -m audit exhibit RUN --verdicts MV,TV,RV --out DIR`.",
            icon=":material/info:",
        )
        return
    if any(each.works for each in found):
        st.button("Look again", icon=":material/refresh:")
    for each in found:
        with st.container(border=True, horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{escape(each.name)}**  \n{told(each)}")
            st.button(
                "Open",
                key=f"open-{each.name}",
                disabled=not each.done,
                on_click=EXHIBITS.change,
                kwargs={"export": each.name, "exhibit": "", "page": 1},
            )
            if reviewer.reads_only():
                continue
            if each.works:
                st.button("Stop", key=f"stop-{each.name}", on_click=_stop, args=(each.name,))
            elif each.message or (each.done < each.total and not each.whole):
                st.button("Go on", key=f"resume-{each.name}", on_click=_resume, args=(each.name,))


def told(export: Export) -> str:
    """How far an export is, in a line of Markdown."""
    line = count(export.done, "exhibit", "exhibits")
    if export.works:
        return f":material/hourglass: {export.done:,} of {export.total:,} made"
    if not export.whole:
        line += f" of {export.total:,}; it was stopped before its end"
    return line + (f" · {escape(export.message)}" if export.message else "")


def _stop(name: str) -> None:
    if not reviewer.reads_only():
        exports.stop(name)


def _resume(name: str) -> None:
    if reviewer.reads_only():  # the role may be another since the button was shown
        return
    try:
        exports.resume(name, trail.name())
    except InputError as error:
        show_error(error)


def listing(state: Shown) -> Shown:
    """The exhibits of one export, as pairs of pictures."""
    export = exports.export(state.export)
    st.button(
        "All exhibits",
        icon=":material/arrow_back:",
        type="tertiary",
        on_click=EXHIBITS.change,
        kwargs={"export": ""},
    )
    st.header(escape(export.name), anchor=False)
    names = gallery(export.folder) if export.folder.is_dir() else []
    st.markdown(
        told(export) + ". Each is one caption: what the model answered, left, and the training image, right."
    )
    pages = max(1, -(-len(names) // PAGE))
    page = min(state.page, pages)
    if pages > 1:
        page = st.pagination(pages, default=page, key=f"exhibits-pages-{EXHIBITS.generation}")
    grid = st.grid(3, min_column_width=280, border=True)
    for name in names[(page - 1) * PAGE : page * PAGE]:
        with grid.cell():
            try:
                _card(opened(export, name), name)
            except InputError as error:
                st.warning(escape(str(error)), icon=":material/broken_image:")
    return replace(state, page=page)


def opened(export: Export, name: str) -> Exhibit:
    """An exhibit, read once as long as its manifest is the same; InputError where it holds what was removed from view."""
    folder = export.folder / name
    if not folder.is_dir():
        raise InputError(f"There is no exhibit {name}; it was removed, or the link is of another computer.")
    stamp = max((path.stat().st_mtime_ns for path in folder.rglob("*")), default=0)
    exhibit = _opened(str(folder), stamp)
    if not exhibit.training_sha256.isdisjoint(hidden()):
        raise InputError(
            f"The exhibit {name} holds a training picture that was removed from view since, so it is not shown. Make it "
            "again, and it comes without that picture."
        )
    return exhibit


@st.cache_resource(show_spinner=False, max_entries=64)
def _opened(folder: str, stamp: int) -> Exhibit:
    from pathlib import Path

    return Exhibit.open(Path(folder))


def _card(exhibit: Exhibit, name: str) -> None:
    document, blur = exhibit.document, frame.blurred()
    pair = [document["pair"][side] for side in ("left", "right") if document["pair"][side]["file"]]
    images = [decode(exhibit.files[each["file"]], each["file"]) for each in pair]
    st.image(
        png(beside(images), blur=blur),
        output_format="PNG",
        width="stretch",
        alt="; ".join(each["alt"] for each in pair) + (" (blurred)" if blur else ""),
    )
    literal(exhibit.facts["caption"]["text"], style="clamp")
    st.markdown(f"**{escape(document['heading'])}**  \n" + " · ".join(_claim_words(document)))
    if exhibit.findings:
        st.warning("This exhibit was changed after it was written.", icon=":material/warning:")
    st.button(
        "Open the exhibit",
        key=f"exhibit-{name}",
        width="stretch",
        on_click=EXHIBITS.change,
        kwargs={"exhibit": name, "mode": "swipe"},
    )


def beside(images: list[np.ndarray], side: int = 192) -> np.ndarray:
    """Pictures at one size in a row with a white gap, (side, ..., 3)."""
    from audit.images import resize

    gap = np.ones((side, 8, 3), np.float32)
    parts = [part for image in images for part in (gap, resize(image, side))][1:]
    return np.concatenate(parts, axis=1)


def _claim_words(document: dict[str, Any]) -> list[str]:
    return [f"{escape(claim['name'])}: {escape(claim['state'])}" for claim in document["claims"]]


def one(state: Shown) -> Shown:
    """One exhibit a page, in large type."""
    export = exports.export(state.export)
    exhibit = opened(export, state.exhibit)
    document, blur = exhibit.document, frame.blurred()
    trail.viewed(exhibit.root, what="exhibit", export=export.name, caption_id=exhibit.name)
    st.html(STYLES)
    _ways(state, gallery(export.folder))
    st.header(escape(document["heading"]), anchor=False)
    literal(f"“{exhibit.facts['caption']['text']}”", style="title")
    st.caption(escape(document["subtitle"]))
    if exhibit.findings:
        st.error(
            "This exhibit is not as it was written. Do not rely on it. "
            + " ".join(escape(finding.sentence) for finding in exhibit.findings[:3]),
            icon=":material/gpp_bad:",
        )
    claims(document)
    blur = blur and not _asked_for(exhibit)
    beside_it, rest = document["answers"][:BESIDE], document["answers"][BESIDE:]
    seen, said = st.columns(2, gap="large")
    with seen:
        mode = pictures(exhibit, state, blur=blur)
    with said:
        answers(beside_it)
    answers(rest)
    how_do_we_know(exhibit, blur=blur)
    st.subheader(escape(document["method"]["title"]), anchor=False)
    _large([document["method"]["intro"]])
    for part in document["method"]["lists"]:
        with st.expander(part["title"]):
            st.markdown("\n".join(f"- {escape(item)}" for item in part["items"]))
    with st.expander(document["words"]["title"], icon=":material/menu_book:", expanded=True):
        st.markdown("\n".join(f"- {_term(item)}" for item in document["words"]["items"]))
    record(document)
    downloads(exhibit)
    return replace(state, mode=mode)


def _ways(state: Shown, names: list[str]) -> None:
    """Back to the list, and to the exhibits before and after."""
    place = names.index(state.exhibit) if state.exhibit in names else 0
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            escape(state.export),
            icon=":material/arrow_back:",
            type="tertiary",
            on_click=EXHIBITS.change,
            kwargs={"exhibit": ""},
        )
        st.markdown(f"Exhibit {place + 1:,} of {len(names):,}", width="content")
        for label, step, icon in (("Previous", -1, "chevron_left"), ("Next", 1, "chevron_right")):
            to = place + step
            st.button(
                label,
                icon=f":material/{icon}:",
                disabled=not 0 <= to < len(names),
                shortcut="Left" if step < 0 else "Right",
                on_click=EXHIBITS.change,
                kwargs={"exhibit": names[to] if 0 <= to < len(names) else ""},
            )


def claims(document: dict[str, Any]) -> None:
    """The three claims with what each of them is here."""
    grid = st.grid(3, min_column_width=220, border=True)
    for claim, told in zip(CLAIMS, document["claims"], strict=True):
        with grid.cell():
            holds = told["mark"] == "yes"
            icon = STATES.get(told["mark"], STATES["open"])
            words = f"{escape(told['name'])}: {escape(told['state'])}"
            st.markdown(f"#### :{claim.colour}[{icon} {words}]" if holds else f"#### {icon} {words}")
            st.markdown(escape(told["meaning"]))


def _asked_for(exhibit: Exhibit) -> bool:
    """Whether blurred pictures were asked for."""
    key = f"show {exhibit.root}"
    if not st.session_state.get(key):
        st.info("The pictures are blurred, as they may be sensitive.", icon=":material/blur_on:")
        st.button("Show the pictures of this exhibit", on_click=lambda: st.session_state.update({key: True}))
    return bool(st.session_state.get(key))


def pictures(exhibit: Exhibit, state: Shown, *, blur: bool) -> str:
    """The generated picture against the training image; returns the way of comparing."""
    left, right = (exhibit.document["pair"][side] for side in ("left", "right"))
    generated = decode(exhibit.generated, "generated picture")
    if exhibit.training is None or not right["file"]:
        st.image(
            png(generated, blur=blur),
            output_format="PNG",
            width=420,
            alt=left["alt"],
            caption=left["caption"],
        )
        _large([right["caption"]])
        return state.mode
    original = decode(exhibit.training, "training image")
    verified = exhibit.document["claims"][1]["mark"] == "yes"
    measured = _answer(exhibit.document["answers"], "How was that verified?")
    told = {
        "side": "Left what the model drew, right the training image.",
        "swipe": "Drag the border: left of it what the model drew, right of it the training image.",
        "blink": "The two pictures in turn: what jumps is different, what stays is the same.",
        "onion": "What the model drew, laid over the training image.",
        "difference": "Black where the two pictures are equal. " + measured,
        "masked": "This exhibit's masked difference, where it has one, stands in its report.",
    }
    return comparison(
        Side(generated, left["caption"], "generated", left["alt"]),
        Side(
            original,
            right["caption"],
            "training image",
            right["alt"],
            claim=VERIFIED if verified else RETRIEVED,
        ),
        sentences=told,
        mode=state.mode,
        key=f"exhibit-comparison-{exhibit.root}",
        blur=blur,
        on_change=EXHIBITS.touch,
    )


def answers(found: list[dict[str, Any]]) -> None:
    """The ten questions, each with its answer in plain words."""
    for each in found:
        st.subheader(escape(each["question"]), anchor=False)
        _large(each["sentences"])


def how_do_we_know(exhibit: Exhibit, *, blur: bool) -> None:
    """Three steps, each a picture and the sentence that goes with it."""
    st.subheader("How do we know?", anchor=False)
    alts = {figure["file"]: figure["alt"] for figure in exhibit.document["figures"]}
    grid = st.grid(3, min_column_width=260, border=True)
    for title, file, question in STEPS:
        with grid.cell():
            st.markdown(f"#### {title}")
            if file in exhibit.files:
                image = decode(exhibit.files[file], file)
                st.image(
                    png(image, blur=blur), output_format="PNG", width="stretch", alt=alts.get(file, title)
                )
            for figure in exhibit.document["figures"]:
                if figure["file"] == file:
                    st.caption(escape(figure["caption"]))
            st.markdown(escape(_answer(exhibit.document["answers"], question)))


def _answer(found: list[dict[str, Any]], question: str) -> str:
    return next((" ".join(each["sentences"]) for each in found if each["question"] == question), "")


def _term(item: str) -> str:
    """A word and what it means, the word in bold."""
    word, colon, meaning = item.partition(":")
    return (
        f"**{escape(word)}**{colon}{escape(meaning) if not meaning[:1].isspace() else ' ' + escape(meaning)}"
    )


def record(document: dict[str, Any]) -> None:
    """Every number, closed until somebody asks."""
    with st.expander(document["record_title"], icon=":material/receipt_long:"):
        for part in document["record"]:
            st.markdown(f"**{escape(part['title'])}**")
            for line in part.get("text", ()):
                st.markdown(escape(line))
            rows = part.get("rows")
            if rows:
                head = part.get("head") or ["", " "][: len(rows[0])]
                table = [dict(zip(head, map(_cell, row), strict=False)) for row in rows]
                st.table(table, hide_index=True, border="horizontal", alt=part["title"])
            for line in _lines(part.get("code")):
                st.code(line, language=None, wrap_lines=True)


def _cell(value: object) -> str:
    return escape(str(value)) or "–"


def _lines(code: object) -> list[str]:
    if not code or isinstance(code, bool):
        return []
    return [code] if isinstance(code, str) else [str(line) for line in code]  # type: ignore[union-attr]


def downloads(exhibit: Exhibit) -> None:
    """The report and the whole exhibit, as they are; and its root."""
    st.subheader("Take it with you", anchor=False)

    def whole() -> bytes:
        stream = io.BytesIO()
        write_zip(exhibit.files, exhibit.name, stream)
        return stream.getvalue()

    with st.container(horizontal=True):
        for label, file, mime in (
            ("Report, PDF", PDF, "application/pdf"),
            ("Report, HTML", HTML, "text/html"),
        ):
            if file in exhibit.files:
                name = f"{exhibit.name}-{file}"
                st.download_button(label, exhibit.files[file], file_name=name, mime=mime, on_click="ignore")
        st.download_button(
            "Whole exhibit, zip",
            whole,
            file_name=f"{exhibit.name}.zip",
            mime="application/zip",
            on_click="ignore",
        )
    st.markdown(
        "Root hash of this exhibit: it stands in the register since the export, and changes with any file of the exhibit."
    )
    st.code(exhibit.root, language=None, wrap_lines=True)


def _large(sentences: list[str]) -> None:
    from html import escape as safe

    told = "".join(f'<p dir="auto">{safe(sentence)}</p>' for sentence in sentences)
    st.html(f'<div class="verbatim-large">{told}</div>')
