"""The sections of the exhibits page: for readers who never heard of diffusion. Nothing on it can be changed."""

from __future__ import annotations

import io
from dataclasses import replace
from html import escape as safe
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from audit.errors import InputError
from audit.evidence import exports, register
from audit.evidence.exports import Export
from audit.evidence.facts import DIFFERENCE, MASK, MASKED_DIFFERENCE, NEIGHBOURS, ONE_STEP, TEMPLATE, TRAINING
from audit.evidence.html import REPORT as HTML
from audit.evidence.manifest import MANIFEST
from audit.evidence.reading import Exhibit, gallery
from audit.evidence.report import REPORT as PDF
from audit.evidence.untrusted import write_zip
from audit.evidence.verify import Anchor, verify
from audit.images import decode, resize, sha256
from audit.review.roles import Refused
from audit.ui import frame, reviewer, trail, url
from audit.ui.claims import CLAIMS, RETRIEVED, VERIFIED
from audit.ui.comparison import Masked, Side, comparison
from audit.ui.guard import show_error
from audit.ui.page_state import PageState
from audit.ui.pictures import png
from audit.ui.removal import hidden
from audit.ui.text import count, escape, literal
from audit.ui.url import Shown

PAGE = 12
BESIDE = 3
"""Answers that stand beside the pictures: what was asked, what came back, what it matches."""
STATES = {"yes": ":material/check_circle:", "no": ":material/cancel:", "open": ":material/pending:"}
STEPS = (
    ("1. One step", (ONE_STEP,), 0),
    ("2. Looked up", (NEIGHBOURS,), 2),
    ("3. Measured", (MASKED_DIFFERENCE, DIFFERENCE), 3),
)
"""How do we know: title, the picture (the first one that there is), and which step of the method it shows."""
STYLES = """
<style>
.verbatim-large { max-width: 62rem; }
.verbatim-large p { font-size: 1.2rem; line-height: 1.55; margin: 0 0 0.35rem; unicode-bidi: plaintext; overflow-wrap: anywhere; }
[data-testid="stLayoutWrapper"]:has(> .st-key-exhibit-claims) { position: sticky; top: 3.75rem; z-index: 5; }
.st-key-exhibit-claims { background: light-dark(#ffffff, #12161c); padding: 0.5rem 0; row-gap: 0.2rem; }
.st-key-exhibit-claims p { font-size: 1.1rem; }
[data-testid="stTable"] [data-testid="stMarkdownContainer"] { overflow-wrap: anywhere; overflow: visible; }
.st-key-exhibit-ways { margin-top: 0.8rem; }
[data-testid="stMain"] { scroll-padding-top: 8rem; }
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
            f"`python -m audit exhibit RUN --verdicts MV,TV,RV --out '{exports.exports_folder()}/NAME'`.",
            icon=":material/info:",
        )
        return
    if any(each.works for each in found):
        st.button("Look again", icon=":material/refresh:")
    reads = reviewer.reads_only()
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
            if reads:
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


def _resume(name: str) -> None:
    try:
        _refuse()
        exports.resume(name, trail.name())
    except InputError as error:
        show_error(error)


def _stop(name: str) -> None:
    try:
        _refuse()
        exports.stop(name)
    except InputError as error:
        show_error(error)


def _refuse() -> None:
    """A page that was drawn before somebody got another role still has its buttons."""
    if reviewer.reads_only():
        raise Refused("The role reader may not make exhibits; ask an auditor for another role.")
    if not reviewer.sees_labels():
        raise Refused(reviewer.NO_EXHIBITS)


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
    trail.viewed(export.name, what="exhibits")
    st.header(escape(export.name), anchor=False)
    names = gallery(export.folder) if export.folder.is_dir() else []
    st.markdown(
        told(export) + ". Each is one caption: what the model answered, left, and the training image, right."
    )
    if export.whole:
        root = sha256((export.folder / MANIFEST).read_bytes())
        st.markdown(f"Root hash of this export, to be kept elsewhere: `{root}`")
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
    exhibit = _opened(str(folder), _stamp(folder))
    if not exhibit.training_sha256.isdisjoint(hidden()):
        raise InputError(
            f"The exhibit {name} holds a training picture that was removed from view since, so it is not shown. Make it "
            "again, and it comes without that picture."
        )
    return exhibit


@st.cache_resource(show_spinner=False, max_entries=64)
def _opened(folder: str, stamp: int) -> Exhibit:
    return Exhibit.open(Path(folder))


def _stamp(folder: Path) -> int:
    """Changes with whatever is written, added or removed in an exhibit."""
    return max(path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*")))


def anchor() -> Anchor:
    """The register of this computer, read again when it was written."""
    return _anchor(*_register_stamp())


@st.cache_resource(show_spinner=False, max_entries=1)
def _anchor(path: str, stamp: int) -> Anchor:
    return Anchor.open(None)


def _register_stamp() -> tuple[str, int]:
    path = register.register_path()
    return str(path), path.stat().st_mtime_ns if path.is_file() else 0


def changed(sentences: list[str]) -> None:
    """That an exhibit is not what was exported, and the first of what is wrong with it."""
    st.error(
        "**This exhibit is not as it was written. Do not rely on it.** "
        + " ".join(map(escape, sentences[:3])),
        icon=":material/gpp_bad:",
    )


def checked(exhibit: Exhibit, folder: Path) -> None:
    """What `python -m audit verify` says of it: what held, what did not, and what could not be checked."""
    with st.spinner("Checking every file …"):
        found = _verified(str(folder), _stamp(folder), _register_stamp())
    if found["findings"]:
        changed([each["sentence"] for each in found["findings"]])
        return
    agrees = "No file was changed since its list of hashes was made, and pictures, numbers and report agree."
    if not found["register"]:
        st.warning(
            f"**No register vouches for this exhibit.** {agrees} But somebody may have written all of them anew. Compare the "
            "root hash at the end of this page with the one that was shown at the export.",
            icon=":material/gpp_maybe:",
        )
    else:
        first = found["register"][0]
        told = f"its root hash stands in the register since {first['when'][:10]} (entry {first['entry']:,}, by {first['who']})"
        signed = f", signed with {found['signed_by']}" if found["signed_by"] else ""
        st.markdown(f":material/verified_user: **Checked just now:** {escape(told + signed)}. {agrees}")
    for each in found["not_checked"]:
        st.caption(f"Not checked: {escape(each)}")


@st.cache_data(show_spinner=False, max_entries=64)
def _verified(folder: str, stamp: int, vouching: tuple[str, int]) -> dict[str, Any]:
    return verify(Path(folder), anchor())


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
    elif (register.EXHIBIT, exhibit.root) not in anchor().entries:
        st.warning("No register vouches for this exhibit.", icon=":material/gpp_maybe:")
    st.button(
        "Open the exhibit",
        key=f"exhibit-{name}",
        width="stretch",
        on_click=EXHIBITS.change,
        kwargs={"exhibit": name, "root": exhibit.root, "mode": "swipe"},
    )


def beside(images: list[np.ndarray], side: int = 192) -> np.ndarray:
    """Pictures at one size in a row with a white gap, (side, ..., 3)."""
    gap = np.ones((side, 8, 3), np.float32)
    parts = [part for image in images for part in (gap, resize(image, side))][1:]
    return np.concatenate(parts, axis=1)


def _claim_words(document: dict[str, Any]) -> list[str]:
    return [f"{escape(claim['name'])}: {escape(claim['state'])}" for claim in document["claims"]]


def one(state: Shown) -> Shown:
    """One exhibit a page, in large type."""
    export = exports.export(state.export)
    exhibit = opened(export, state.exhibit)
    if state.root not in ("", exhibit.root):
        raise InputError(
            f"The link is to the exhibit with the root {state.root[:16]}…; the one that lies here now has the root "
            f"{exhibit.root[:16]}…: it was changed or made anew. Find it in its list if you want to see it all the same."
        )
    document = exhibit.document
    trail.viewed(exhibit.root, what="exhibit", export=export.name, caption_id=exhibit.name)
    st.html(STYLES)
    _ways(state, gallery(export.folder))
    st.title(escape(document["heading"]), anchor=False)
    literal(f"“{exhibit.facts['caption']['text']}”", style="title")
    st.caption(escape(document["subtitle"]))
    if document["weak"]:
        first, *rest = map(escape, document["weak"])
        st.warning(f"**{first}** {' '.join(rest)}", icon=":material/scale:")
    check = st.container()
    if exhibit.findings:  # before the claims, whatever becomes of the longer check
        with check:
            changed([each.sentence for each in exhibit.findings])
    claims(document)
    blur = frame.blurred() and not _asked_for(exhibit)
    seen, said = st.columns(2, gap="large")
    with seen:
        mode = pictures(exhibit, state, blur=blur)
    with said:
        answers(document["answers"][:BESIDE])
    rest = st.grid(2, min_column_width=380)
    for each in document["answers"][BESIDE:]:
        with rest.cell():
            answers([each])
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
    if not exhibit.findings:
        with check:  # last: it takes a moment, and the page is there meanwhile
            checked(exhibit, export.folder / state.exhibit)
    return replace(state, root=exhibit.root, mode=mode)


def _ways(state: Shown, names: list[str]) -> None:
    """Back to the list, and to the exhibits before and after."""
    place = names.index(state.exhibit) if state.exhibit in names else 0
    with st.container(horizontal=True, vertical_alignment="center", key="exhibit-ways"):
        st.button(
            escape(state.export),
            icon=":material/arrow_back:",
            type="tertiary",
            on_click=EXHIBITS.change,
            kwargs={"exhibit": "", "root": ""},
        )
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            _way("Previous", "chevron_left", "Left", names[place - 1] if place else "")
            st.markdown(f"Exhibit {place + 1:,} of {len(names):,}", width="content")
            _way("Next", "chevron_right", "Right", names[place + 1] if place + 1 < len(names) else "")


def _way(label: str, icon: str, key: str, to: str) -> None:
    st.button(
        label,
        icon=f":material/{icon}:",
        disabled=not to,
        shortcut=key,
        on_click=EXHIBITS.change,
        kwargs={"exhibit": to, "root": ""},
    )


def claims(document: dict[str, Any]) -> None:
    """The three claims, which stay in view, and below them what each of them asks."""
    with st.container(horizontal=True, key="exhibit-claims"):
        for claim, told in zip(CLAIMS, document["claims"], strict=True):
            words = f"{STATES.get(told['mark'], STATES['open'])} **{escape(told['name'])}: {escape(told['state'])}**"
            st.markdown(
                f":{claim.colour if told['mark'] == 'yes' else 'gray'}-badge[{words}]", width="content"
            )
    st.markdown(
        "  \n".join(f"**{escape(told['name'])}:** {escape(told['meaning'])}" for told in document["claims"])
    )


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
    captions = {figure["file"]: figure["caption"] for figure in exhibit.document["figures"]}
    told = {
        "side": "Left what the model drew, right the training image.",
        "swipe": "Drag the border: left of it what the model drew, right of it the training image.",
        "blink": "The two pictures in turn: what jumps is different, what stays is the same.",
        "onion": "What the model drew, laid over the training image.",
        "difference": captions.get(DIFFERENCE, "Black where the two pictures are equal."),
        "masked": captions.get(MASKED_DIFFERENCE, "This exhibit compares whole pictures; it has no mask."),
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
        masked=_masked(exhibit, captions),
        on_change=EXHIBITS.touch,
    )


def _masked(exhibit: Exhibit, captions: dict[str, str]) -> Masked | None:
    """What was compared under the mask; None where the exhibit has none."""
    if MASK not in exhibit.files:
        return None
    against = TEMPLATE if TEMPLATE in exhibit.files else TRAINING
    image, mask = (decode(exhibit.files[name], name) for name in (against, MASK))
    return Masked(Side(image, captions[against], "template", captions[against]), resize(mask)[..., 0] > 0.5)


def answers(found: list[dict[str, Any]]) -> None:
    """The ten questions, each with its answer in plain words."""
    for each in found:
        st.subheader(escape(each["question"]), anchor=False)
        _large(each["sentences"])


def how_do_we_know(exhibit: Exhibit, *, blur: bool) -> None:
    """Three steps, each a picture, what it shows, and what is done in this step."""
    st.subheader("How do we know?", anchor=False)
    figures = {figure["file"]: figure for figure in exhibit.document["figures"]}
    method = exhibit.document["method"]["lists"][0]["items"]
    grid = st.grid(3, min_column_width=260, border=True)
    for title, files, step in STEPS:
        with grid.cell():
            st.markdown(f"#### {title}")
            file = next(filter(figures.get, files), None)
            if file is not None and file in exhibit.files:
                image = decode(exhibit.files[file], file)
                st.image(
                    png(image, blur=blur), output_format="PNG", width="stretch", alt=figures[file]["alt"]
                )
                st.caption(escape(figures[file]["caption"]))
            st.markdown(escape(method[step]))


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


def _cell(value: object) -> str:
    return escape(str(value)) or "–"


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
                trail.download(label, exhibit.files[file], name, what=f"exhibit {exhibit.root}", mime=mime)
        trail.download(
            "Whole exhibit, zip",
            whole,
            f"{exhibit.name}.zip",
            what=f"exhibit {exhibit.root}",
            mime="application/zip",
        )
    st.markdown("Root hash of this exhibit. It changes with any of its files.")
    st.code(exhibit.root, language=None, wrap_lines=True)


def _large(sentences: list[str]) -> None:
    told = "".join(f'<p dir="auto">{safe(sentence)}</p>' for sentence in sentences)
    st.html(f'<div class="verbatim-large">{told}</div>')
