"""Three prepared captions of the demo: one that is a copy, one that is a template, one that is ordinary."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.parquet as pq
import streamlit as st

from audit.settings import DEMO

CORPUS = DEMO / "corpus"


@dataclass(frozen=True)
class Example:
    """A caption of the test half of the demo's truth, and what was planted about it."""

    expected: str
    title: str
    why: str
    caption: str
    picture: str
    """Its training image's file; of a caption that was never trained, none."""


KINDS = (
    (
        "MV",
        "A copy",
        "Its picture stood in the training set {repeats} times with this very caption.",
        lambda row: row["kind"] == "multimodal",
    ),
    (
        "TV",
        "A template",
        "One of {members} pictures that differ only in a fixed region, each repeated {repeats} times.",
        lambda row: row["kind"] == "template" and not row["wide"],
    ),
    (
        "N",
        "An ordinary caption",
        "Its picture stood in the training set once, as most pictures do.",
        lambda row: row["kind"] == "once",
    ),
)


@st.cache_data(show_spinner=False)
def examples() -> list[Example]:
    """The most repeated caption of each kind in the test half, the shortest first; empty without the demo."""
    if not (CORPUS / "truth.parquet").is_file():
        return []
    truth = pq.read_table(CORPUS / "truth.parquet").to_pylist()
    corpus = pq.read_table(CORPUS / "corpus.parquet", columns=["image_id", "file"]).to_pylist()
    files = {row["image_id"]: row["file"] for row in corpus}
    found = []
    for expected, title, why, fits in KINDS:
        rows = [
            row
            for row in truth
            if row["split"] == "test"
            and row["expected"] == expected
            and not row["natural_family"]
            and fits(row)
            and 12 <= len(row["caption"]) <= 60
        ]
        if not rows:
            continue
        row = min(rows, key=lambda row: (-row["repeats"], len(row["caption"]), row["caption"]))
        members = sum(other["family"] == row["family"] for other in truth)
        found.append(
            Example(
                expected,
                title,
                why.format(repeats=row["repeats"], members=members),
                row["caption"],
                str(CORPUS / files[row["image"]]) if row["image"] in files else "",
            )
        )
    return found
