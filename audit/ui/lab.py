"""The sections of the prompt lab, each one function; the page puts them in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from audit.cells import safe_cell
from audit.images import resize
from audit.records import CheckStatus, Neighbour, Sample, Verdict, VerdictKind, limit
from audit.ui import bench, composer, evidence, trail, url
from audit.ui.bundle import csv_bytes, zip_bytes
from audit.ui.cards import attribution, card, why_none
from audit.ui.claims import RETRIEVED, VERIFIED
from audit.ui.comparison import NO_MASK, Masked, Side, comparison
from audit.ui.layers import Column, Heatmap, layers
from audit.ui.page_state import PageState
from audit.ui.pictures import data_uri, png
from audit.ui.scores import score_rows
from audit.ui.text import escape, literal, shorten
from audit.ui.url import Lab
from audit.units import duration
from audit.verbatim.distances import blank_sse, masked_sse, sse

if TYPE_CHECKING:
    from audit.corpus.reader import Row
    from audit.runs.one_caption import Look, Proof
    from audit.scores.calibration import Calibration
    from audit.targets.base import Target
    from audit.ui.bench import TrainingSet

LAB = PageState("lab", url.read_lab, url.write_lab, composer.fill, filled="lab-seeds")
WANTED, WANT_ALL = "lab wanted", "lab wanted all"
DECIDED = "lab decided"
"""Verdicts by the key of their proof: they stay known when the proof itself had to go."""
ASK_FIRST = 20.0
"""Seconds that full samples may take without asking."""


def component_key(name: str, state: Lab) -> str:
    """Key of a component that forgets what was set in it when the caption or the link changes."""
    return f"{name}-{LAB.generation}-{hash((state.captions, state.chosen))}"


def overview(
    target: Target, looks: list[Look], calibration: Calibration | None, state: Lab, *, blur: bool
) -> Lab:
    """A row a caption; the one that is picked is looked at below."""
    st.header("All captions", anchor=False)
    decided: dict[str, str] = st.session_state.setdefault(DECIDED, {})
    keys = {
        look.caption: bench.proof_key(target, look.caption, state.seeds, state.steps, state.guidance)
        for look in looks
    }
    for caption, key in keys.items():
        proof = bench.kept_proof(target, caption, state.seeds, state.steps, state.guidance)
        if proof is not None:
            decided[key] = proof.verdict.kind.value
    names = [name for name in ("dcs", "magnitude", "ecs") if name in looks[0].scores]
    compared = [name for name in names if calibration is not None and name in calibration.values]
    rows = [
        {
            "picture": data_uri(_thumbnail(look.pictures[0]), blur=blur),
            "caption": safe_cell(look.caption),
            **{name: scores[f"{name}_percentile" if name in compared else name] for name in names},
            "verdict": decided.get(keys[look.caption], ""),
        }
        for look, scores in zip(looks, score_rows(looks, calibration), strict=True)
    ]
    columns: dict = {
        "picture": st.column_config.ImageColumn("One step", width="small"),
        "caption": st.column_config.TextColumn("Caption", width="large"),
        "verdict": st.column_config.TextColumn("Verdict", help="Empty: not generated in full yet"),
    }
    for name in names:
        columns[name] = (
            st.column_config.ProgressColumn(
                name.upper(),
                min_value=0,
                max_value=100,
                format="%.1f%%",
                help="Share of ordinary captions that score lower",
            )
            if name in compared
            else st.column_config.NumberColumn(name.upper(), format="%.4g")
        )
    picked = st.dataframe(
        rows,
        hide_index=True,
        row_height=64,
        on_select="rerun",
        selection_mode="single-row",
        key=f"overview-{LAB.generation}-{hash(state.captions)}",
        column_config=columns,
        alt="Captions with their scores and verdicts",
    ).selection.rows
    left = [caption for caption, key in keys.items() if key not in decided]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("Pick a row to look at its caption below.")
        if len(left) > 1:
            st.button(
                f"Generate all {len(left)} in full",
                icon=":material/playlist_play:",
                on_click=_want_all,
                args=(state.captions,),
            )
    if st.session_state.get(WANT_ALL) == state.captions:
        for number, caption in enumerate(left, start=1):
            st.caption(f"Generating in full: {len(looks) - len(left) + number} of {len(looks)}")
            proof = bench.proof(target, caption, state.seeds, state.steps, state.guidance, place="all")
            if proof is None:
                break
            decided[keys[caption]] = proof.verdict.kind.value
        else:
            st.session_state.pop(WANT_ALL)
            if left:
                st.rerun()
    if picked and picked[0] != state.chosen:
        return replace(state, chosen=picked[0], neighbour="", sample=None)
    return state


def _want_all(captions: tuple[str, ...]) -> None:
    st.session_state[WANT_ALL] = captions


def is_wanted(target: Target, look: Look, state: Lab) -> bool:
    """Whether a caption is generated in full: where that is quick or was asked for."""
    wanted = (look.caption, state.seeds, state.steps, state.guidance)
    return (
        bench.estimate(target, len(state.seeds), state.steps) <= ASK_FIRST
        or st.session_state.get(WANTED) == wanted
        or bench.kept_proof(target, *wanted) is not None
    )


def offer_proof(target: Target, look: Look, state: Lab) -> None:
    """A button for what takes too long to begin by itself."""
    seconds = bench.estimate(target, len(state.seeds), state.steps)
    st.info(
        f"Full samples of this caption take about {duration(seconds)} on this machine; the scores below need none.",
        icon=":material/schedule:",
    )
    wanted = (look.caption, state.seeds, state.steps, state.guidance)
    st.button("Generate in full and decide", type="primary", on_click=_want, args=(wanted,))


def _want(wanted: tuple) -> None:
    st.session_state[WANTED] = wanted


def pictures(look: Look, proof: Proof | None, state: Lab, *, waiting: str, blur: bool) -> Lab:
    """One-step pictures with heatmaps above the full samples."""
    samples = {sample.seed: sample for sample in proof.samples} if proof else {}
    distances = best_distances(proof) if proof else {}
    verified = (
        proof.verdict.seed
        if proof and proof.verdict.kind in (VerdictKind.MV, VerdictKind.RV, VerdictKind.TV)
        else None
    )
    columns = [
        Column(
            seed,
            look.pictures[place],
            samples[seed].image if seed in samples else None,
            note=f"distance {distances[seed]:,.0f}" if seed in distances else "",
            verified=seed == verified,
        )
        for place, seed in enumerate(look.seeds)
    ]
    overlay, opacity = layers(
        columns,
        heatmaps(look),
        waiting=waiting,
        overlay=state.overlay,
        opacity=state.opacity,
        key=component_key("layers" if proof else "first layers", state),
        on_change=LAB.touch,
        blur=blur,
    )
    return replace(state, overlay=overlay, opacity=opacity)


def heatmaps(look: Look) -> list[Heatmap]:
    """The heatmaps that this look has, with what they show."""
    found = []
    if "dcs" in look.scores and look.scores["dcs"].heatmap is not None:
        values = look.scores["dcs"].heatmap
        found.append(
            Heatmap(
                "dcs",
                "DCS",
                "Bright where the model takes away most of the noise at once; a square is a position of its latent "
                f"picture. Mean of {len(look.seeds)} {'seed' if len(look.seeds) == 1 else 'seeds'}.",
                values,
                float(values.min()),
                float(values.max()),
            )
        )
    edges = look.scores["ecs"].heatmap
    if edges is not None:
        count = len(look.scores["ecs"].seeds)
        found.append(
            Heatmap(
                "ecs",
                "ECS",
                f"Bright where an edge appears in many of the {count} one-step pictures, dark where in none.",
                100 * edges,
                0.0,
                100.0,
                "%",
            )
        )
    return found


def moved_pieces(target: Target, proof: Proof, state: Lab) -> Proof:
    """The proof with moved pieces looked for, where that was asked for and no copy was found before."""
    if not state.pieces or proof.verdict.kind not in (VerdictKind.N, VerdictKind.U):
        return proof
    return bench.with_pieces(target, proof) or proof


def offer_pieces(proof: Proof, state: Lab) -> None:
    """A button that looks for moved pieces too."""
    if state.pieces or proof.verdict.kind not in (VerdictKind.N, VerdictKind.U):
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Look for moved pieces",
            icon=":material/extension:",
            on_click=LAB.change,
            kwargs={"pieces": True},
            help="Pieces of training pictures that stand elsewhere in the samples, mirrored, scaled or recoloured. It takes "
            "some seconds a sample, and half a minute more at the first time.",
        )
        st.caption("Copies of whole pictures and of templates were looked for; moved pieces were not yet.")


def pieces_found(proof: Proof, have: TrainingSet, *, blur: bool) -> None:
    """The sample and the training picture that share pieces, with these connected."""
    if not proof.pieces:
        return
    from audit.verbatim.overlay import description, overlay

    image_id = proof.pieces[0].image_id
    sample = next(each for each in proof.samples if each.seed == proof.verdict.seed)
    training = have.picture(image_id)
    if training is None:
        st.warning(why_none(have.index.row(image_id)), icon=":material/link_off:")
        return
    told = description(proof.pieces)
    shown = overlay(sample.image, training, proof.pieces)
    st.image(png(shown, blur=blur), output_format="PNG", width="stretch", alt=told)
    st.markdown(
        f"Left the picture generated from seed {sample.seed}, right the training image. {escape(told)}"
    )
    row = have.index.row(image_id)
    literal(row.caption, style="body")
    literal(attribution(row.title, row.author, row.licence, row.source or row.url))


def checks_table(verdict: Verdict) -> None:
    """Every check behind the verdict with its numbers."""
    names = {
        VerdictKind.TV: "Template",
        VerdictKind.MV: "Own training image",
        VerdictKind.RV: "Other training images",
        VerdictKind.PV: "Moved pieces",
    }
    rows = []
    for check in verdict.checks:
        made = check.status is CheckStatus.CHECKED
        piece = check.kind is VerdictKind.PV
        rows.append(
            {
                "Check": names[check.kind],
                "Status": escape(check.status.value),
                "Smallest distance": f"{check.distance:,.0f}" if check.distance is not None else "–",
                "Copy below": "–" if piece else f"{check.threshold:,.0f}",
                "Score": f"{check.score:,.1f}" if check.score is not None else "–",
                "Piece above": f"{check.threshold:,.1f}" if piece and made else "–",
                "One colour": f"{check.blank:,.0f}" if check.blank is not None else "–",
                "Outcome": ("**:orange[holds]**" if check.holds else "does not hold") if made else "–",
                "Compared": f"{check.looked_at:,}",
                "Seed": "–" if check.seed is None else str(check.seed),
                "Against": escape(check.image_id or "–"),
                "Note": escape(check.note or "–"),
            }
        )
    st.table(rows, hide_index=True, border="horizontal", alt="Checks behind the verdict")
    st.caption(
        "Distances are sums of squared differences over 256×256×3 values between 0 and 1; the masked one of a template "
        "is divided by the share of the picture that the mask covers. *One colour* is what a blank picture would reach "
        "against the same image: a copy's distance has to be under half of that too. *Score* is of the surest moved piece; one in "
        "a hundred ordinary captions has one above. *Compared* counts pairs of a sample and a picture."
    )


@dataclass(frozen=True)
class Near:
    """A training image that is near to at least one of the samples."""

    neighbour: Neighbour
    """As found for the sample it is nearest to; ``sse`` None where its file cannot be read."""
    seed: int
    verified: bool
    own: bool


def nearest(proof: Proof, count: int) -> list[Near]:
    """The `count` training images with the smallest distance to any sample; the caption's own among them.

    An image stands once, with the sample that it is nearest to.
    """
    limits = {check.kind: check.threshold for check in proof.verdict.checks}
    best: dict[str, Near] = {}
    for sample, neighbours in zip(proof.samples, proof.neighbours, strict=True):
        for neighbour in neighbours:
            own = neighbour.image_id in proof.own_ids
            below = limit(limits.get(VerdictKind.MV if own else VerdictKind.RV, 0.0), neighbour.blank)
            near = Near(neighbour, sample.seed, neighbour.sse is not None and neighbour.sse < below, own)
            known = best.get(neighbour.image_id)
            if known is None or _order(near) < _order(known):
                best[neighbour.image_id] = near
    ordered = sorted(best.values(), key=_order)
    own = [near for near in ordered[count:] if near.own]
    return [*ordered[: count - len(own)], *own]


def best_distances(proof: Proof) -> dict[int, float]:
    """Seed -> smallest distance of its sample to a retrieved training image; the verdict's own at the seed it names.

    These may differ: a nearer image may be so faint that nearness to it says nothing.
    """
    found = {}
    for sample, neighbours in zip(proof.samples, proof.neighbours, strict=True):
        distances = [neighbour.sse for neighbour in neighbours if neighbour.sse is not None]
        if distances:
            found[sample.seed] = min(distances)
    verdict = proof.verdict
    if verdict.threshold is not None and verdict.seed is not None and verdict.sse is not None:
        found[verdict.seed] = verdict.sse
    return found


def by_likeness(target: Target, look: Look, state: Lab, *, blur: bool) -> None:
    """The nearest training images by likeness, as long as their pictures are fetched and the verdict waits for them."""
    found = bench.retrieved(target, look.caption, state.seeds, state.steps, state.guidance)
    if found is None:
        return
    best: dict[str, Neighbour] = {}
    for hit in sorted((hit for hits in found for hit in hits), key=lambda hit: -hit.similarity):
        best.setdefault(hit.image_id, hit)
    st.header("Nearest training images", anchor=False)
    st.caption("By likeness, as long as their pictures are fetched; the verdict is on their pixels.")
    grid = st.grid(4, min_column_width=200, border=True)
    for hit in list(best.values())[: bench.NEIGHBOURS]:
        with grid.cell():
            card(hit, blur=blur, claims=(RETRIEVED,), number=f"likeness {hit.similarity:.2f}")


def neighbour_cards(near: list[Near], proof: Proof, have: TrainingSet, chosen: str, *, blur: bool) -> None:
    """The nearest training images; a button takes one into the comparison."""
    looked = {neighbour.image_id for neighbours in proof.neighbours for neighbour in neighbours}
    st.caption(
        f"The {len(near)} with the smallest pixel distance among {len(looked):,} of {len(have.index):,} training "
        f"images, which were retrieved by likeness for {len(proof.samples)} "
        f"{'sample' if len(proof.samples) == 1 else 'samples'}."
    )
    grid = st.grid(4, min_column_width=200, border=True)
    for entry in near:
        hit = entry.neighbour
        distance = "no distance" if hit.sse is None else f"distance {hit.sse:,.0f} at seed {entry.seed}"
        with grid.cell():
            card(
                hit,
                blur=blur,
                claims=(RETRIEVED, VERIFIED) if entry.verified else (RETRIEVED,),
                number=distance + (" · this caption's own image, or equal to it" if entry.own else ""),
            )
            st.button(
                "Compared below" if hit.image_id == chosen else "Compare",
                key=f"compare-{hit.image_id}",
                type="primary" if hit.image_id == chosen else "secondary",
                icon=":material/compare:",
                width="stretch",
                on_click=LAB.change,
                kwargs={"neighbour": hit.image_id, "sample": entry.seed},
            )


def chosen_pair(state: Lab, proof: Proof, near: list[Near], have: TrainingSet) -> tuple[str, Sample]:
    """Training image and sample that are compared: those chosen, else those that decided, else the nearest."""
    verdict = proof.verdict
    template = have.template(verdict.template_id)
    wanted = (state.neighbour, template.image_id if template else "", verdict.neighbour_id or "")
    image_id = next(filter(have.has, wanted), near[0].neighbour.image_id)
    seeds = {entry.neighbour.image_id: entry.seed for entry in near}
    fallback = verdict.seed if not state.neighbour and verdict.seed is not None else seeds.get(image_id)
    seed = state.sample if state.sample is not None else fallback
    by_seed = {sample.seed: sample for sample in proof.samples}
    return image_id, by_seed.get(seed, proof.samples[0])  # type: ignore[arg-type]


def compare(state: Lab, proof: Proof, image_id: str, sample: Sample, have: TrainingSet, *, blur: bool) -> Lab:
    """The chosen sample against the chosen training image in six ways."""
    row = have.index.row(image_id)
    picture = have.picture(image_id)
    if picture is None:
        st.warning(why_none(row), icon=":material/link_off:")
        return state
    chosen = st.segmented_control(
        "Sample",
        [each.seed for each in proof.samples],
        default=sample.seed,
        required=True,
        format_func=lambda seed: f"Seed {seed}",
        key=f"{component_key('sample', state)}-{image_id}-{sample.seed}",
    )
    if chosen != sample.seed:
        LAB.change(neighbour=image_id, sample=chosen)
        st.rerun()
    mode = comparison(
        generated_side(sample),
        training_side(row, picture, pair := measure(proof, sample, image_id, picture, have)),
        sentences=sentences(pair, sample),
        mode=state.mode,
        key=component_key("comparison", state),
        on_change=LAB.touch,
        blur=blur,
        masked=pair.masked,
    )
    literal(row.caption, style="body")
    literal(attribution(row.title, row.author, row.licence, row.source or row.url))
    return replace(state, mode=mode)


@dataclass(frozen=True)
class Pair:
    """Distances between a sample and a training image."""

    sse: float
    threshold: float
    blank: float
    """What a picture of one colour would reach."""
    own: bool
    masked: Masked | None = None
    masked_sse: float | None = None
    masked_threshold: float = 0.0
    masked_blank: float = 0.0


def measure(proof: Proof, sample: Sample, image_id: str, picture: np.ndarray, have: TrainingSet) -> Pair:
    """Exact distances of a sample to a training image, and to the template that covers it."""
    limits = {check.kind: check.threshold for check in proof.verdict.checks}
    own = image_id in proof.own_ids
    generated = resize(sample.image)
    threshold = limits.get(VerdictKind.MV if own else VerdictKind.RV, 0.0)
    pair = Pair(float(sse(generated, picture)), threshold, float(blank_sse(picture)), own)
    template = have.covering(image_id)
    if template is None:
        return pair
    side = Side(
        template.image,
        "Template",
        "template",
        "Template: a picture that a family of training images shares but for a region",
    )
    return replace(
        pair,
        masked=Masked(side, template.mask),
        masked_sse=float(masked_sse(template.image, template.mask, generated)),
        masked_threshold=limits.get(VerdictKind.TV, 0.0),
        masked_blank=float(blank_sse(template.image, template.mask)),
    )


def sentences(pair: Pair, sample: Sample) -> dict[str, str]:
    """What each way of comparing shows."""
    own = "the caption's own training image" if pair.own else "a training image"
    told = {
        "side": f"The picture generated from seed {sample.seed} in {sample.steps} steps, beside {own}.",
        "swipe": "Drag the border: left of it the generated picture, right of it the training image.",
        "blink": "The two pictures in turn: what jumps is different, what stays is the same.",
        "onion": "The generated picture laid over the training image.",
        "difference": f"Distance {pair.sse:,.0f}, {_under(pair.sse, pair.threshold, pair.blank)} for {own}.",
        "masked": NO_MASK,
    }
    if pair.masked is not None and pair.masked_sse is not None:
        under = _under(pair.masked_sse, pair.masked_threshold, pair.masked_blank)
        told["masked"] = (
            f"Inside the mask, the {pair.masked.mask.mean():.0%} of the picture that its family shares: masked distance "
            f"{pair.masked_sse:,.0f}, {under} for a template."
        )
    return told


def _under(distance: float, threshold: float, blank: float) -> str:
    if limit(threshold, blank) <= distance < threshold:
        return (
            f"under the threshold of {threshold:,.0f} but over half of what a picture of one colour would reach "
            f"({blank:,.0f})"
        )
    return f"{'under' if distance < threshold else 'not under'} the threshold of {threshold:,.0f}"


def generated_side(sample: Sample) -> Side:
    return Side(
        sample.image,
        f"Generated, seed {sample.seed}",
        "generated",
        f"Picture generated from seed {sample.seed}",
        note=f"{sample.steps} steps, guidance {sample.guidance:g}",
    )


def training_side(row: Row, picture: np.ndarray, pair: Pair) -> Side:
    verified = pair.sse < limit(pair.threshold, pair.blank)
    return Side(
        picture,
        "Training image",
        "training image",
        f"Training image with the caption: {shorten(row.caption, 200)}",
        claim=VERIFIED if verified else RETRIEVED,
        note=f"distance {pair.sse:,.0f}",
    )


def download(
    target: Target,
    looks: list[Look],
    calibration: Calibration | None,
    have: TrainingSet | None,
    state: Lab,
    proof: Proof | None = None,
    proof_files: Callable[[], dict[str, bytes]] = dict,
) -> None:
    """Everything shown as one zip, made when it is asked for."""
    look = looks[state.chosen]

    def make() -> bytes:
        files = evidence.look_files(look, calibration, state.opacity / 100)
        if len(looks) > 1:
            files["all_captions.csv"] = csv_bytes(score_rows(looks, calibration))
        facts = {"audit.json": evidence.facts(target, look, state, proof, have)}
        return zip_bytes(files | proof_files() | facts)

    trail.download(
        "Download everything shown",
        make,
        f"verbatim-{look.caption_id}.zip",
        what="everything shown of a caption",
        mime="application/zip",
        key="download" if proof else "first download",
        icon=":material/download:",
        help="Pictures as PNG (not blurred), scores, neighbours and checks as CSV, all settings as JSON, with sha256 sums.",
    )


def _order(near: Near) -> tuple[bool, float, int]:
    distance = near.neighbour.sse
    return distance is None, distance or 0.0, near.neighbour.rank


def _thumbnail(image: np.ndarray) -> np.ndarray:
    step = max(1, image.shape[0] // 96)
    return image[::step, ::step]
