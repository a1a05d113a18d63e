"""Exhibits of real runs of a tiny model: what they hold, that they come out equal, and that every change is found."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pikepdf
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pypdf import PdfReader

from audit.cli import main
from audit.corpus.roots import mark_built
from audit.errors import InputError
from audit.evidence import facts as facts_module
from audit.evidence import html, report
from audit.evidence.consistency import contradictions, read_facts
from audit.evidence.document import QUESTIONS, document
from audit.evidence.export import Asked, export, files_of, held
from audit.evidence.manifest import MANIFEST, SIGNATURE, manifest_bytes, read_manifest
from audit.evidence.people import CONFIRMED, Compared, Label, People, agreement
from audit.evidence.pixels import compared, contact_sheet, distance, masked_distance
from audit.evidence.plan import PLAN, UNFINISHED
from audit.evidence.reading import Exhibit, gallery
from audit.evidence.register import Register, read
from audit.evidence.signature import armoured, sign, signed_by
from audit.evidence.sources import Sources
from audit.evidence.untrusted import MAX_FILES, read_folder, read_picture
from audit.evidence.verify import Anchor, verify
from audit.evidence.words import ASSETS, words
from audit.images import decode, png_bytes, resize, sha256, to_uint8
from audit.records import Picture, PictureKind, Template, caption_id
from audit.retrieval.build import build
from audit.retrieval.embedding import Embedder
from audit.retrieval.index import Index
from audit.retrieval.search import Retriever
from audit.runs.one_caption import generate
from audit.runs.run import score
from audit.runs.verdicts import TrainingSet, decide_run
from audit.settings import settings
from audit.targets.pipelines import load
from audit.verbatim.distances import masked_sse, sse
from audit.verbatim.templates import TemplateLibrary

SEEDS, STEPS = (0, 1), 2
COPIED, OTHER = "a red house", "a blue star"
HOSTILE = "<script>alert(1)</script> #panic() $x$ *b* \\ {0} %s \u202eevil\u202c 漢字 العربية " + "w" * 300
MV, RV, HARM = caption_id(COPIED), caption_id(OTHER), caption_id(HOSTILE)


def noise(seed):
    return np.random.default_rng(seed).random((32, 32, 3), dtype=np.float32)


@pytest.fixture(scope="module")
def target(tiny_pipeline_dir):
    return load(str(tiny_pipeline_dir), device="cpu")


@pytest.fixture(scope="module")
def copy(target):
    return generate(target, [COPIED], SEEDS, STEPS, 7.5)[0][1].image


def make_world(folder, target, clip, pictures, templates=()):
    """A training set of (caption, picture, trained), its index, its templates, and a decided run."""
    (folder / "corpus/images").mkdir(parents=True)
    rows = []
    for i, (caption, picture, indexed) in enumerate(pictures):
        data = png_bytes(picture)
        (folder / f"corpus/images/p{i}.png").write_bytes(data)
        row = {"image_id": f"p{i}", "file": f"images/p{i}.png", "caption": caption, "indexed": indexed}
        rows.append(
            row | {"sha256": sha256(data), "author": "Ann <b>", "licence": "CC0", "title": f"{caption} #set"}
        )
    pd.DataFrame(rows).to_parquet(folder / "corpus/corpus.parquet")
    build(folder / "corpus", folder / "index", Embedder(f"local-dir:{clip}", device="cpu"))
    retriever = Retriever.open(folder / "index", device="cpu")
    library = TemplateLibrary(tuple(templates), index_sha256=retriever.index.sha256)
    library.save(folder / "index/templates")
    captions = folder / "captions.parquet"
    pd.DataFrame({"caption": [COPIED, OTHER, HOSTILE]}).to_parquet(captions)
    score(target, captions, folder / "run")
    decide_run(target, folder / "run", TrainingSet(retriever, library), seeds=SEEDS, steps=STEPS, top=None)
    return folder


@pytest.fixture(scope="module")
def world(target, copy, tiny_clip_dir, tmp_path_factory):
    """p0 is the model's own picture; p1 is another's; the caption HOSTILE belongs to no image."""
    pictures = [(COPIED, copy, True), (OTHER, noise(1), True), ("a cat", noise(2), True)]
    return make_world(tmp_path_factory.mktemp("world"), target, tiny_clip_dir, pictures)


@pytest.fixture(scope="module")
def sources(world):
    return Sources(world / "run", str(world / "index"))


@pytest.fixture(scope="module")
def template_world(target, copy, tiny_clip_dir, tmp_path_factory):
    mask = np.ones((256, 256), bool)
    mask[:128, :100] = False
    changed = resize(copy)
    changed[~mask] = 0
    pictures = [(COPIED, noise(0), True), (OTHER, noise(1), True)]
    template = Template("t0", changed, mask, ("p0", "p1"), "p0")
    return make_world(tmp_path_factory.mktemp("templates"), target, tiny_clip_dir, pictures, [template])


@pytest.fixture
def made(sources, tmp_path):
    """An export of all three captions."""
    out = tmp_path / "out"
    export(sources, [MV, RV, HARM], Asked(out), Register(tmp_path / "register.jsonl"), who="Ann", workers=1)
    return out


@pytest.fixture
def anchor(made, tmp_path):
    return Anchor.open(tmp_path / "register.jsonl")


def facts_of(folder):
    return read_facts((folder / "exhibit.json").read_bytes())


# Pixels and people


def test_distances_are_those_of_the_verdicts_in_whole_numbers():
    one, other = (compared(noise(seed)) for seed in (1, 2))
    floats = [each.astype(np.float32) / 255 for each in (one, other)]
    assert distance(one, other) == pytest.approx(float(sse(*floats)), rel=1e-6)
    mask = np.zeros((256, 256), bool)
    mask[:64] = True
    assert masked_distance(one, other, mask) == pytest.approx(
        float(masked_sse(floats[0], mask, floats[1])), rel=1e-6
    )
    black, grey = np.zeros_like(one), np.full_like(one, 51)
    assert distance(black, grey) == pytest.approx(256 * 256 * 3 * 0.04)
    assert masked_distance(black, grey, mask) == pytest.approx(256 * 256 * 3 * 0.04)
    with pytest.raises(ValueError):
        distance(one, one[:128])


def test_a_contact_sheet_has_a_place_for_each():
    sheet = contact_sheet([np.zeros((9, 9, 3), np.uint8), None, *[np.full((9, 9, 3), 7, np.uint8)] * 4])
    assert sheet.shape == (196, 496, 3)
    assert (
        (sheet[:96, :96] == 0).all() and (sheet[:96, 100:196] == 224).all() and (sheet[100:, :96] == 7).all()
    )


def label(who, said, adjudicated=False, image_id="p0", **more):
    return Label(who, said, "2026-01-02T03:04:05.000000+00:00", adjudicated, "", "0" * 64, image_id, **more)


@pytest.mark.parametrize(
    ("labels", "outcome"),
    [
        ([], "nobody"),
        ([label("A", "MV")], "one person"),
        ([label("A", "MV"), label("A", "MV")], "one person"),
        ([label("A", "MV"), label("B", "MV")], "confirmed"),
        ([label("A", "N"), label("B", "TV")], "rejected"),
        ([label("A", "MV"), label("B", "N")], "disputed"),
        ([label("A", "MV"), label("B", "N"), label("J", "MV", True)], "confirmed"),
        ([label("A", "MV"), label("B", "N"), label("J", "N", True)], "rejected"),
    ],
)
def test_what_labels_amount_to(labels, outcome):
    assert agreement(labels, Compared("MV", "p0", "a" * 64, ""))["outcome"] == outcome


OTHER_PICTURE = {"image_id": "p1", "training_sha256": "b" * 64}
TOLD, BLURRED = {"others_shown": True}, {"blurred": True}


@pytest.mark.parametrize(
    ("verdict", "labels", "outcome"),
    [
        ("RV", [label("A", "RV", **OTHER_PICTURE), label("B", "RV", image_id="p2")], "rejected"),
        ("RV", [label("A", "RV", **OTHER_PICTURE), label("B", "RV")], "disputed"),
        ("RV", [label("A", "RV", **OTHER_PICTURE), label("B", "RV"), label("C", "RV")], "disputed"),
        ("RV", [label("A", "RV", image_id="q", training_sha256="a" * 64), label("B", "RV")], "confirmed"),
        ("RV", [label("A", "RV", training_sha256="b" * 64), label("B", "RV")], "disputed"),
        ("RV", [label("A", "RV", image_id=""), label("B", "RV", image_id="")], "rejected"),
        ("RV", [label("A", "N"), label("B", "RV"), label("J", "RV", True, **OTHER_PICTURE)], "rejected"),
        ("TV", [label("A", "TV", image_id="q", template_id="t"), label("B", "TV")], "confirmed"),
        ("TV", [label("A", "TV", template_id="u"), label("B", "TV", template_id="t")], "disputed"),
        ("N", [label("A", "N", **OTHER_PICTURE), label("B", "N", image_id="")], "confirmed"),
        ("MV", [label("A", "MV"), label("B", "MV", **TOLD)], "one person"),
        ("MV", [label("A", "MV"), label("B", "N", **TOLD), label("C", "MV")], "confirmed"),
        ("MV", [label("A", "MV", **TOLD), label("B", "MV", **BLURRED)], "nobody"),
        ("MV", [label("A", "MV"), label("B", "N"), label("J", "MV", True, **BLURRED)], "disputed"),
    ],
)
def test_only_who_looked_at_the_same_picture_by_themselves_agrees(verdict, labels, outcome):
    assert agreement(labels, Compared(verdict, "p0", "a" * 64, "t"))["outcome"] == outcome


# What an exhibit holds


def test_an_exhibit_says_what_the_run_says(made, world):
    row = pq.read_table(next((world / "run/verdicts").iterdir())).to_pandas().set_index("caption_id").loc[MV]
    facts = facts_of(made / MV)
    assert facts["verdict"]["kind"] == row["verdict"] == "MV" and facts["verdict"]["reason"] == row["reason"]
    assert facts["measured"]["distance"] == pytest.approx(row["sse"], rel=1e-5, abs=2e-3)
    assert [check["kind"] for check in facts["checks"][:3]] == ["TV", "MV", "RV"]
    assert facts["checks"][1] | {"blank": None, "limit": None} == {
        "kind": "MV", "status": "checked", "threshold": 2500.0, "distance": row["mv_distance"], "blank": None,
        "limit": None, "holds": True, "seed": 1, "image_id": "p0", "looked_at": 2, "score": None,
    }  # fmt: skip
    assert facts["claims"] == {"retrieved": True, "verified": True, "confirmed": False}
    assert facts["training_image"]["author"] == "Ann <b>" and facts["training_image"]["copied"]
    counts = facts["denominators"]
    assert (counts["captions_scored"], counts["captions_decided"], counts["pictures_generated"]) == (3, 3, 6)
    assert counts["training_images"] == 3 and counts["verdicts"] == {"MV": 1, "RV": 2}
    assert facts["sampling"]["seed_shown"] == 1 and facts["sampling"]["steps"] == STEPS
    picture = decode((made / MV / "pictures/training-image.png").read_bytes())
    assert np.array_equal(picture, decode((world / "corpus/images/p0.png").read_bytes()))
    assert facts["hashes"]["model"] == facts["model"]["sha256"] and len(facts["hashes"]["index"]) == 64


def test_nothing_of_the_machine_stands_in_an_exhibit(made, world):
    for path in made.rglob("*"):
        if path.is_file():
            assert str(world).encode() not in path.read_bytes(), path


def test_rates_of_chance_follow_from_the_calibration(world, target, monkeypatch):
    from audit.scores.calibration import Calibration

    values = [[float(value)] for value in range(199)]
    calibration = Calibration(
        "m", target.sha256, 7.5, (0,), 199, "numbers", {"dcs": values, "magnitude": values}, {}
    )
    monkeypatch.setattr("audit.runs.calibrate.find_calibration", lambda *_: calibration)
    sources = Sources(world / "run", str(world / "index"))
    [source] = sources.of([MV])
    generated = compared(decode(source.sample.png))
    checks = facts_module.checks_of(source.row, source.whole)
    found = facts_module.chance_of(source, "MV", generated, checks)["score"]
    above = sum(value[0] >= source.row["dcs"] for value in values)
    assert found["as_high"] == above and found["rate_at_most"] == (above + 1) / 200
    assert found["expected_among_scored"] == pytest.approx(3 * (above + 1) / 200)
    assert facts_module.calibration_of(source.whole)["thresholds_at_1pct"]["dcs"] == 197.0


def test_a_template_copy_is_measured_under_its_mask(template_world, tmp_path):
    sources = Sources(template_world / "run", str(template_world / "index"))
    out = tmp_path / "out"
    export(sources, [MV, RV, HARM], Asked(out), Register(tmp_path / "r"), who="Ann")
    facts = facts_of(out / MV)
    assert facts["verdict"]["kind"] == "TV" and facts["measured"]["masked_distance"] < 10
    assert facts["measured"]["distance"] > 2500 and facts["measured"]["against"] == "pictures/template.png"
    mask = read_picture((out / MV / "pictures/mask.png").read_bytes(), "mask")
    assert not mask[:128, :100].any() and mask.mean() == pytest.approx(facts["template"]["coverage"])
    assert verify(out, Anchor.open(tmp_path / "r"))["verified"]


def test_what_is_no_copy_is_measured_as_the_copy_was(template_world):
    """Of a template the family is left out, and the others are measured under its mask."""
    [source] = Sources(template_world / "run", str(template_world / "index")).of([MV])
    facts, _ = facts_module.gather(source, copy=True)
    assert {near.image_id for near, _ in source.neighbours} == set(source.template.members)
    assert facts["chance"]["nearest_that_is_no_copy"] is None
    other = replace(source, template=replace(source.template, members=("p0",)))
    facts, _ = facts_module.gather(other, copy=True)
    picture = next(found.image for near, found in source.neighbours if near.image_id == "p1")
    under = masked_distance(compared(decode(source.sample.png)), picture, source.template.mask)
    assert facts["chance"]["nearest_that_is_no_copy"] == pytest.approx(under)
    sentence = document(facts)["answers"][QUESTIONS.index("chance")]["sentences"][0]
    assert "in the same part" in sentence and f"{under:,.0f}" in sentence


def test_commands_name_all_that_the_verdicts_were_made_with(world, sources):
    [source] = sources.of([MV])
    commands = facts_module.commands_of(source)
    assert "--pieces" not in commands["decide"] and "--index INDEX --out" in commands["export"]
    named = Sources(world / "run", str(world / "index"), world / "index/templates")
    whole = replace(named.whole, sampling=named.whole.sampling | {"pieces_over": 6.0})
    commands = facts_module.commands_of(replace(source, whole=whole))
    assert "--index INDEX --templates TEMPLATES --pieces" in commands["decide"]
    assert "--templates TEMPLATES" in commands["export"]


def test_a_verdict_of_moved_pieces_has_its_numbers(sources):
    [source] = sources.of([MV])
    row = source.row | {
        "verdict": "PV", "pv_status": "checked", "pv_score": 20.0, "pv_seed": 1, "pv_image_id": "p0",
        "pv_looked_at": 6,
    }  # fmt: skip
    whole = replace(source.whole, sampling=source.whole.sampling | {"pieces_over": 12.5}, pieces_rate=0.01)
    outlined = Picture(PictureKind.PIECES, 1, png_bytes(noise(3)), "")
    facts, pictures = facts_module.gather(replace(source, row=row, whole=whole, pieces=outlined), copy=True)
    assert pictures["pictures/pieces.png"] == outlined.png
    check = facts["checks"][-1]
    assert check["kind"] == "PV" and check["holds"] and check["limit"] is None
    assert (check["threshold"], check["score"]) == (12.5, 20.0)
    told = document(facts)
    answers = {
        name: " ".join(each["sentences"]) for name, each in zip(QUESTIONS, told["answers"], strict=True)
    }
    assert "20.00 here" in answers["verified"] and "above 12.50" in answers["verified"]
    assert "Of ordinary captions, 1.0% reach the score of 12.50" in answers["chance"]
    files = pictures | {"exhibit.json": facts_module.json_bytes(facts), html.REPORT: html.html(told, pictures),
                        report.REPORT: report.pdf(told, pictures)}  # fmt: skip
    assert contradictions(files) == ([], [])
    check["score"] = 12.0
    files["exhibit.json"] = facts_module.json_bytes(facts)
    assert "limit of the check PV" in contradictions(files)[0][0].sentence


def test_no_copy_leaves_nothing_of_the_training_image(sources, tmp_path):
    out, register = tmp_path / "out", tmp_path / "r"
    export(sources, [MV], Asked(out, copy=False), Register(register), who="Ann")
    files = read_folder(out / MV)
    assert sorted(name for name in files if name.endswith(".png")) == [
        "pictures/generated.png",
        "pictures/one-step.png",
    ]
    facts = facts_of(out / MV)
    assert not facts["training_image"]["copied"] and len(facts["training_image"]["sha256"]) == 64
    with pikepdf.open(out / MV / "report.pdf") as opened:
        pictures = [each for page in opened.pages for each in page.images.values()]
    assert len(pictures) <= 4 and files["report.html"].count(b"data:image/png") == 3
    found = verify(out / MV, Anchor.open(register))
    assert found["verified"] and "training image is not in the exhibit" in " ".join(found["not_checked"])


def test_copying_by_licence(sources):
    [source] = sources.of([MV])
    assert source.training.row.licence == "CC0"
    for licences, why in (((), None), (("cc0 ", "CC-BY"), None), (("CC-BY",), "licence")):
        facts, pictures = facts_module.gather(source, copy=True, licences=licences)
        assert facts["training_image"]["not_copied_because"] == why
        assert ("pictures/training-image.png" in pictures) == (why is None)
    sheet = decode(pictures["pictures/neighbours.png"])
    assert set(np.unique(to_uint8(sheet))) <= {224, 255}  # of no picture anything
    assert "none of those that were named" in document(facts)["pair"]["right"]["caption"]


def test_another_language_is_another_file(sources, tmp_path, monkeypatch):
    texts = json.loads((ASSETS / "en.json").read_text(encoding="utf-8"))
    for path in ASSETS.iterdir():
        (tmp_path / path.name).symlink_to(path)
    other = {key: f"«{text}" if key.startswith("question.") else text for key, text in texts.items()}
    (tmp_path / "xx.json").write_text(json.dumps(other), encoding="utf-8")
    for module in ("words", "html", "report"):
        monkeypatch.setattr(f"audit.evidence.{module}.ASSETS", tmp_path)
    [source] = sources.of([MV])
    files = files_of(source, copy=True, language="xx")
    assert "«What was asked?" in files["report.html"].decode() and b'lang="xx"' in files["report.html"]
    assert [each["key"] for each in document(read_facts(files["exhibit.json"]))["answers"]] == [*QUESTIONS]
    with pytest.raises(InputError, match="no texts in the language"):
        words("yy")


def test_what_is_removed_from_view_is_not_copied(world, tmp_path):
    hidden = facts_module.sha256((world / "corpus/images/p0.png").read_bytes())
    people = People({}, frozenset({hidden}))
    [source] = Sources(world / "run", str(world / "index"), people=people).of([MV])
    facts, pictures = facts_module.gather(source, copy=True)
    assert facts["training_image"]["not_copied_because"] == "hidden"
    assert "pictures/training-image.png" not in pictures and "pictures/difference.png" not in pictures


@pytest.mark.parametrize("recorded", ["", "0" * 64])
def test_a_file_is_removed_from_view_by_the_hash_of_its_bytes_too(world, tmp_path, recorded):
    """Metadata may have no hash, or that of a file from which this one was encoded anew."""
    index = tmp_path / "index"
    shutil.copytree(world / "index", index)
    table = pq.read_table(index / "metadata/metadata_0.parquet")
    column = table.column_names.index("sha256")
    told = pa.array([recorded] * len(table))
    pq.write_table(table.set_column(column, "sha256", told), index / "metadata/metadata_0.parquet")
    shutil.copytree(world / "corpus", tmp_path / "corpus")
    mark_built((index / "index.json").read_bytes(), tmp_path / "corpus")
    shutil.copytree(world / "run", tmp_path / "run")
    verdicts = json.loads((tmp_path / "run/verdicts.json").read_text())
    verdicts["training_set"]["sha256"] = Index.open(index).sha256
    (tmp_path / "run/verdicts.json").write_text(json.dumps(verdicts))

    sources = Sources(tmp_path / "run", str(index))
    [source] = sources.of([MV])
    facts, pictures = facts_module.gather(source, copy=True)
    of_bytes = sha256(world / "corpus/images/p0.png")
    name = "file_sha256" if recorded else "sha256"
    assert "pictures/training-image.png" in pictures and facts["training_image"][name] == of_bytes
    assert of_bytes in {each[name] for each in facts["neighbours"]}
    held_by = Exhibit("a", "", pictures, facts, ()).training_sha256
    for digest in filter(None, (recorded, of_bytes)):
        [again] = sources.with_people(People({}, frozenset({digest}))).of([MV])
        assert digest in held_by and again.training.hidden
    [other] = sources.with_people(People({}, frozenset({"1" * 64}))).of([MV])
    assert not other.training.hidden


def test_labels_of_people_stand_in_it(world, tmp_path):
    from audit.review.events import EventKind
    from audit.review.queue import Answer, Item, Queue, item_id
    from audit.review.roles import Person, Role
    from audit.review.store import Store

    store = Store.open(f"sqlite:///{tmp_path}/review.db")
    auditor = store.enter("Ann")
    kept = Sources(world / "run", str(world / "index")).of([MV])[0].sample.sha256
    people = People.of_store(store)
    assert not people.of(MV, kept)
    queue = Queue(store, "q")
    fields = dict.fromkeys(Item.__dataclass_fields__, "")
    item = Item(
        **fields
        | {
            "item_id": item_id("q", "run", MV),
            "queue": "q",
            "run": "run",
            "caption_id": MV,
            "caption": COPIED,
        }
        | {"seed": 1, "place": 1, "audit": False, "distance": 1.0, "limit": 2.0}
    )
    queue.fill(auditor, [item])
    seen = {"image_id": "p0", "template_id": "t", "training_sha256": "a" * 64}
    for number, name in enumerate(("Bob", "Cat")):
        person = Person(name, Role.ANNOTATOR)
        [taken] = queue.take(person, 1)
        shown = kept if name == "Bob" else "f" * 64  # Cat saw another picture
        queue.answer(
            person, taken.item_id, Answer(f"answer-{number}", "MV", seed=1, generated_sha256=shown, **seen)
        )
    people = People.of_store(store)
    assert [label.who for label in people.of(MV, kept)] == ["Bob"] and not people.of(RV, kept)
    sources = Sources(world / "run", str(world / "index"), people=people)
    facts, _ = facts_module.gather(sources.of([MV])[0], copy=True)
    assert facts["agreement"]["outcome"] == "one person" and len(facts["labels"][0]["event_sha256"]) == 64
    assert facts["labels"][0] | seen | {"others_shown": False, "imported": False} == facts["labels"][0]
    # what happens elsewhere in the store, an export's own event among it, changes no exhibit
    store.append(EventKind.EXPORTED, auditor, "root", {})
    later = Sources(world / "run", str(world / "index"), people=People.of_store(store))
    assert facts_module.gather(later.of([MV])[0], copy=True)[0] == facts
    assert facts["history"][-1]["who"] == "Bob" and facts["history"][-1]["label"] == "MV"
    store.close()


def test_two_who_agree_confirm_it(world):
    kept = Sources(world / "run", str(world / "index")).of([MV])[0].sample.sha256
    people = People({(MV, kept): [label("Bob", "MV"), label("Cat", "MV")]})
    facts, _ = facts_module.gather(
        Sources(world / "run", str(world / "index"), people=people).of([MV])[0], copy=True
    )
    assert facts["agreement"]["outcome"] == CONFIRMED and facts["claims"]["confirmed"]
    assert "Bob, Cat" in document(facts)["answers"][QUESTIONS.index("confirmed")]["sentences"][0]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([label("Bob", "MV"), label("Ann", "MV", others_shown=True)],
         ["Not yet confirmed: Bob looked", "shown: one answer."]),
        ([label("Bob", "MV", blurred=True), label("Ann", "MV", blurred=True)],
         ["Nobody has confirmed it", "blurred: 2 answers."]),
        ([label("Bob", "MV"), label("Ann", "MV", image_id="p1")], ["disagree: Bob, Ann (MV)", "template, or"]),
        ([label("Bob", "MV"), label("Ann", "N"), label("Jo", "MV", True)],
         ["Confirmed by people who looked at the pictures: Bob, Jo.", "Jo decided."]),
        ([label("Ann", "MV", others_shown=True), label("Jo", "N", True)],
         ["did not confirm it: Jo (N).", "Jo decided.", "shown: one answer."]),
        ([label("Bob", "MV", imported=True), label("Ann", "MV")], ["Bob, Ann.", "from elsewhere: one answer."]),
    ],
)  # fmt: skip
def test_a_report_says_whose_answers_count_and_why_others_do_not(sources, labels, told):
    [source] = sources.of([MV])
    facts, pictures = facts_module.gather(replace(source, labels=tuple(labels)), copy=True)
    sentences = document(facts)["answers"][QUESTIONS.index("confirmed")]["sentences"]
    assert len(sentences) == len(told)
    assert all(part in sentence for part, sentence in zip(told, sentences, strict=True)), sentences
    assert facts["claims"]["confirmed"] == sentences[0].startswith("Confirmed")
    files = pictures | {"exhibit.json": facts_module.json_bytes(facts), html.REPORT: html.html(document(facts), pictures),
                        report.REPORT: report.pdf(document(facts), pictures)}  # fmt: skip
    assert contradictions(files) == ([], [])


@pytest.mark.parametrize("kind", ["N", "U", "PV"])
def test_where_no_copy_is_verified_people_confirm_none(sources, kind):
    [source] = sources.of([MV])
    source.row["verdict"] = kind
    for said, told in ((kind, "agree with the program"), ("MV", "say otherwise than the program")):
        labels = (label("Bob", said), label("Cat", said))
        facts, _ = facts_module.gather(replace(source, labels=labels), copy=True)
        shown = document(facts)
        [sentence] = shown["answers"][QUESTIONS.index("confirmed")]["sentences"]
        assert told in sentence and "Bob, Cat" in sentence and not sentence.startswith("Confirmed")
        assert shown["claims"][2]["mark"] == "no"


# Equal bytes, stopping, going on


def test_made_twice_they_are_equal_byte_for_byte(world, made, tmp_path):
    again = tmp_path / "again"
    fresh = Sources(world / "run", str(world / "index"))
    export(
        fresh,
        [HARM, RV, MV, *(MV,) * 5],
        Asked(again, zipped=True),
        Register(tmp_path / "r2"),
        who="Bob",
        workers=2,
    )
    for name in (MV, RV, HARM):
        assert read_folder(again / name) == read_folder(made / name)
    listed = [read_manifest((out / MANIFEST).read_bytes()) for out in (again, made)]
    zips = {f"{name}.zip": sha256((again / f"{name}.zip").read_bytes()) for name in (MV, RV, HARM)}
    assert listed[0] == listed[1] | zips


def test_a_second_call_keeps_what_is_there(sources, made, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*.p*")}
    shutil.rmtree(made / RV)
    (made / ".unfinished-0123456789abcdef/pictures").mkdir(parents=True)
    done = export(sources, [MV, RV, HARM], Asked(made), Register(tmp_path / "register.jsonl"), who="Ann")
    assert (done["written"], done["there_before"]) == (1, 2)
    assert len(read(tmp_path / "register.jsonl")) == 4 and not list(made.glob(".unfinished*"))
    kept = {path: path.stat().st_mtime_ns for path in before if RV not in path.parts}
    assert all(before[path] == when for path, when in kept.items())


def stop_after(count):
    def progress(done, total):
        if done == count:
            raise KeyboardInterrupt

    return progress


def test_a_stopped_export_goes_on_with_the_labels_that_it_began_with(world, sources, made, tmp_path):
    out, register = tmp_path / "stopped", tmp_path / "r"
    names = [MV, RV, HARM]
    with pytest.raises(KeyboardInterrupt):
        export(sources, names, Asked(out), Register(register), who="A", workers=1, progress=stop_after(1))
    (out / f"{UNFINISHED}{RV}").mkdir()
    found = verify(out, Anchor.open(register))
    assert found["verified"] and "2 of 3 exhibits are not there" in found["not_checked"][0]
    assert verify(out, Anchor(None, {}))["verified"]
    (out / f"{UNFINISHED}0123456789abcdef").mkdir()
    assert kinds(verify(out, Anchor.open(register))) == [(f"{UNFINISHED}0123456789abcdef", "added")]
    kept = next(source for source in sources.of([MV])).sample.sha256
    later = Sources(world / "run", str(world / "index"), people=People({(MV, kept): [label("Bob", "MV")]}))
    done = export(later, names, Asked(out), Register(register), who="A", workers=1)
    assert (done["written"], done["there_before"]) == (2, 1)
    for name in names:
        assert read_folder(out / name) == read_folder(made / name)
    assert sorted(path.name for path in out.iterdir()) == sorted([MANIFEST, *names])
    assert verify(out, Anchor.open(register))["verified"]
    other = tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        export(sources, names, Asked(other), Register(register), who="A", workers=1, progress=stop_after(1))
    with pytest.raises(InputError, match="nothing was overwritten"):  # with other captions it is another one
        export(later, [MV], Asked(other), Register(register), who="A", workers=1)


def test_what_is_removed_from_view_while_an_export_is_stopped_goes_into_none_of_the_rest(
    world, sources, tmp_path
):
    out, register = tmp_path / "stopped", Register(tmp_path / "r")
    with pytest.raises(KeyboardInterrupt):
        export(sources, [MV, RV], Asked(out), register, who="A", workers=1, progress=stop_after(1))
    hidden = {
        facts_module.sha256((world / f"corpus/images/{name}.png").read_bytes()) for name in ("p0", "p1")
    }
    later = Sources(world / "run", str(world / "index"), people=People({}, frozenset(hidden)))
    done = export(later, [MV, RV], Asked(out), register, who="A", workers=1)
    assert (done["written"], done["there_before"]) == (1, 1)
    assert (out / MV / "pictures/training-image.png").exists()
    assert not (out / RV / "pictures/training-image.png").exists()
    assert facts_of(out / RV)["training_image"]["not_copied_because"] == "hidden"


def test_nothing_is_overwritten(sources, made, tmp_path):
    register = Register(tmp_path / "register.jsonl")
    (made / MV / "exhibit.json").write_bytes(b"{}")
    with pytest.raises(InputError, match="nothing was overwritten"):
        export(sources, [MV, RV, HARM], Asked(made), register, who="A", workers=1)
    assert (made / MV / "exhibit.json").read_bytes() == b"{}"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/letter.txt").touch()
    with pytest.raises(InputError, match="letter"):
        export(sources, [MV], Asked(tmp_path / "other"), register, who="A")
    with held(tmp_path / "new"), pytest.raises(InputError, match="Another process"):
        export(sources, [MV], Asked(tmp_path / "new"), register, who="A")
    with pytest.raises(InputError, match="no caption_id"):
        export(sources, ["../../etc"], Asked(tmp_path / "new"), register, who="A")
    with pytest.raises(InputError, match="No caption"):
        export(sources, [], Asked(tmp_path / "new"), register, who="A")


def test_other_pictures_than_those_compared_are_refused(world, tmp_path, monkeypatch):
    other = tmp_path / "world"
    shutil.copytree(world, other)
    (other / "corpus/images/p0.png").write_bytes(png_bytes(noise(5)))
    monkeypatch.setattr(settings(), "pictures", other / "corpus")
    sources = Sources(other / "run", str(other / "index"))
    with pytest.raises(InputError, match="was changed since"):
        files_of(sources.of([MV])[0], copy=True)
    shutil.rmtree(other / "index/templates")
    with pytest.raises(InputError, match="templates_sha256"):
        Sources(other / "run", str(other / "index"))


def test_killed_in_the_middle_the_rest_goes_on(world, tmp_path):
    out, register = tmp_path / "out", tmp_path / "register.jsonl"
    command = [
        sys.executable,
        "-m",
        "audit",
        "exhibit",
        str(world / "run"),
        "--verdicts",
        "MV,RV",
        "--out",
        str(out),
    ]
    command += ["--index", str(world / "index"), "--register", str(register), "--workers", "1"]
    environment = os.environ | {"VERBATIM_DATA_DIR": str(tmp_path / "data")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("[0-9a-f]*")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = [path for path in out.glob("[0-9a-f]*") if path.is_dir()]
    assert there
    for folder in there:
        assert verify(folder, Anchor.open(register))["verified"]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    assert len(verify(out, Anchor.open(register))["exhibits"]) == 3
    assert verify(out, Anchor.open(register))["verified"]


# The report


def pdf_text(data, pages=None):
    read_pages = PdfReader(io.BytesIO(data)).pages[:pages]
    return " ".join(" ".join(page.extract_text().split()) for page in read_pages)


def test_the_pdf_is_an_accessible_archive(made):
    with pikepdf.open(made / MV / "report.pdf") as opened:
        with opened.open_metadata() as metadata:
            assert metadata["pdfaid:part"] == "2" and metadata["pdfaid:conformance"] == "A"
            assert metadata["pdfuaid:part"] == "1"
            assert MV in metadata["dc:title"]
        assert opened.Root.MarkInfo.Marked and str(opened.Root.Lang) == "en"
        assert opened.Root.ViewerPreferences.DisplayDocTitle
        tags, alts = [], []
        walk(opened.Root.StructTreeRoot, tags, alts)
        assert tags.count("/Figure") == len(alts) >= 6 and all(alts)
        assert {"/H1", "/H2", "/Table", "/TH", "/L"} <= set(tags)
        fonts = [
            each
            for each in opened.objects
            if isinstance(each, pikepdf.Dictionary) and each.get("/Type") == "/FontDescriptor"
        ]
        assert fonts and all("/FontFile2" in each or "/FontFile3" in each for each in fonts)
        assert not any(
            "/JavaScript" in str(each.get("/S", ""))
            for each in opened.objects
            if isinstance(each, pikepdf.Dictionary)
        )


def walk(node, tags, alts):
    if isinstance(node, pikepdf.Array):
        for each in node:
            walk(each, tags, alts)
    elif isinstance(node, pikepdf.Dictionary):
        if "/S" in node:
            tags.append(str(node["/S"]))
            if node["/S"] == "/Figure":
                alts.append(str(node.get("/Alt", "")))
        if "/K" in node:
            walk(node["/K"], tags, alts)


def test_ten_questions_are_answered_on_two_pages(made):
    first_two = pdf_text((made / MV / "report.pdf").read_bytes(), 2)
    told = document(facts_of(made / MV))
    assert len(told["answers"]) == 10
    for number, answer in enumerate(told["answers"], start=1):
        assert f"{number}. {answer['question']}" in first_two
        for sentence in answer["sentences"]:
            assert sentence.replace(" ", "") in first_two.replace(" ", ""), sentence


def test_what_captions_hold_is_text_only(made):
    text = pdf_text((made / HARM / "report.pdf").read_bytes())
    for part in ("<script>alert(1)</script>", "#panic()", "$x$", "*b*", "{0}", "{U+202E}evil"):
        assert part in text, part
    page = (made / HARM / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "漢字" in page and "\u202e" not in page

    class Seen(HTMLParser):
        def __init__(self):
            super().__init__()
            self.tags, self.attributes = set(), set()

        def handle_starttag(self, tag, attrs):
            self.tags.add(tag)
            self.attributes |= {name for name, _ in attrs}
            assert all(
                value.startswith("data:image/png;base64,") for name, value in attrs if name in ("src", "href")
            )

    seen = Seen()
    seen.feed(page)
    assert not seen.tags & {"script", "iframe", "object", "a", "link", "form", "b"}
    assert not any(name.startswith("on") for name in seen.attributes)
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    "caption",
    [
        "",
        " ",
        "\x00\x01\x7f",
        "a\u0301" * 50,
        "👩‍👩‍👧‍👦 🏳️‍🌈",
        "שלום \u2067x",
        "नमस्ते ไทย",
        "x" * 20_000,
        "\ufffe\ud7ff",
        "{" * 50,
        "'\"&<>",
    ],
)
def test_any_caption_can_be_set(made, caption):
    facts = facts_of(made / MV)
    facts["caption"]["text"] = facts["training_image"]["caption"] = facts["training_image"]["author"] = (
        caption
    )
    told = document(facts)
    pictures = {name: (made / MV / name).read_bytes() for name in facts["pictures"]}
    data = report.pdf(told, pictures)
    assert data.startswith(b"%PDF") and len(PdfReader(io.BytesIO(data)).pages) < 30
    assert html.html(told, pictures)


def test_the_template_and_the_texts_belong_together(made):
    say = words("en")
    assert all(
        "{" not in text for each in document(facts_of(made / RV))["answers"] for text in each["sentences"]
    )
    used = "".join(path.read_text(encoding="utf-8") for path in Path(html.__file__).parent.glob("*.py"))
    prefixes = ("title.", "claims.", "state.", "why.", "question.", "match.", "tried.", "method.", "figure.",
                "history.", "check.", "denominator.", "score.", "parameter.", "training.", "hash.", "versions.",
                "again.", "word.", "count.", "confirmed.", "record.", "status.", "sampler.")  # fmt: skip
    unused = [key for key in say.texts if f'"{key}"' not in used and not key.startswith(prefixes)]
    assert not unused
    for name in ("OpenSans", "DejaVu"):
        assert (ASSETS / "fonts" / f"{name}-LICENCE.txt").is_file()


@pytest.mark.parametrize(
    ("limit", "as_high", "told"),
    [
        (0.5, 0, []),
        (0.98, 0, ["98%"]),
        (0.5, 50, ["50 of 100 ordinary captions"]),
        (0.98, 50, ["98%", "50 of"]),
    ],
)
def test_a_verdict_that_barely_holds_says_so_first(made, limit, as_high, told):
    facts = facts_of(made / MV)
    score = {
        "as_high": as_high,
        "ordinary_captions": 100,
        "rate_at_most": (as_high + 1) / 101 / (1 if as_high else 2),
    }
    facts["chance"] |= {"share_of_limit": limit, "score": score | {"expected_among_scored": 0.1}}
    said = document(facts)["weak"]
    assert bool(said) == bool(told) and all(any(words in each for each in said) for words in told)
    assert not said or (said[0] == "A weak result." and "No person" in said[-1])
    page = html.html(document(facts), {name: (made / MV / name).read_bytes() for name in facts["pictures"]})
    assert (b"A weak result." in page) == bool(told)


@pytest.mark.parametrize("kind", ["N", "U"])
def test_where_no_copy_was_found_none_is_claimed(sources, kind):
    [source] = sources.of([HARM])
    row = dict.fromkeys(source.row) | {
        "caption_id": HARM, "caption": HOSTILE, "verdict": kind, "reason": "None.", "decided_by": "thresholds",
        "tv_status": "not available", "mv_status": "checked", "mv_distance": 9000.0, "mv_looked_at": 2,
    }  # fmt: skip
    bare = replace(source, row=row, training=None, template=None, neighbours=())
    facts, pictures = facts_module.gather(bare, copy=True)
    told = document(facts)
    assert facts["claims"] == {"retrieved": False, "verified": False, "confirmed": False}
    assert set(pictures) == {"pictures/generated.png", "pictures/one-step.png"}
    assert told["pair"]["right"]["file"] is None and len(told["answers"]) == 10
    assert report.pdf(told, pictures) and html.html(told, pictures)


# What was done to it afterwards


def kinds(found):
    return [(each["file"], each["change"]) for each in found["findings"]]


def test_an_exhibit_and_an_export_verify(made, anchor):
    found = verify(made, anchor)
    assert found["verified"] and len(found["exhibits"]) == 3 and not found["not_checked"]
    one = verify(made / MV, anchor)
    assert one["verified"] and one["register"][0]["who"] == "Ann" and one["register"][0]["entry"] == 1


def test_one_bit_anywhere_is_found_and_named(made, anchor):
    files = sorted(path for path in (made / MV).rglob("*") if path.is_file())
    chance = random.Random(0)
    for path in files:
        whole = path.read_bytes()
        for place in {0, len(whole) - 1, chance.randrange(len(whole))}:
            path.write_bytes(
                whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :]
            )
            name = path.relative_to(made / MV).as_posix()
            assert name in [file for file, _ in kinds(verify(made / MV, anchor))], (name, place)
        path.write_bytes(whole)
    assert verify(made / MV, anchor)["verified"]


def test_missing_added_swapped_are_told(made, anchor):
    one, other = made / MV / "pictures/generated.png", made / MV / "pictures/difference.png"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    (made / MV / "report.html").unlink()
    (made / MV / "note.txt").write_text("hello")
    found = kinds(verify(made / MV, anchor))
    assert found == [
        ("note.txt", "added"),
        ("pictures/difference.png", "swapped"),
        ("pictures/generated.png", "swapped"),
        ("report.html", "missing"),
    ]


def test_a_picture_that_cannot_be_opened_is_damaged(made, anchor):
    path = made / MV / "pictures/generated.png"
    path.write_bytes(path.read_bytes()[:-200])
    assert kinds(verify(made / MV, anchor)) == [("pictures/generated.png", "damaged")]


def seal(folder):
    """A manifest made anew, as whoever changes a file could."""
    files = {name: data for name, data in read_folder(folder).items() if name not in (MANIFEST, SIGNATURE)}
    (folder / MANIFEST).write_bytes(manifest_bytes({name: sha256(data) for name, data in files.items()}))


def edit_facts(folder, change):
    facts = facts_of(folder)
    change(facts)
    (folder / "exhibit.json").write_bytes(facts_module.json_bytes(facts))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda facts: facts["measured"].update(distance=1.0), "exhibit.json"),
        (lambda facts: facts["caption"].update(text="a green tree"), "exhibit.json"),
        (lambda facts: facts["claims"].update(confirmed=True), "exhibit.json"),
        (lambda facts: facts["verdict"].update(kind="N"), "exhibit.json"),
        (lambda facts: facts["training_image"].update(author="Eve"), "report.pdf"),
        (lambda facts: facts["pictures"].pop("pictures/generated.png"), "pictures/generated.png"),
        (lambda facts: facts.pop("checks"), "exhibit.json"),
        (lambda facts: facts.update(language="../../../tmp/x"), "exhibit.json"),
        (lambda facts: facts.update(checks=7), "exhibit.json"),
        (lambda facts: facts["sampling"].update(seed_shown={}), "report.pdf"),
        (lambda facts: facts.update(version=99), "exhibit.json"),
    ],
)
def test_an_edit_with_the_manifest_made_anew_is_found(made, anchor, change, named):
    edit_facts(made / MV, change)
    seal(made / MV)
    found = verify(made / MV, anchor)
    assert (MANIFEST, "unknown") in kinds(found) and named in [file for file, _ in kinds(found)]
    # even without the register, since the files contradict each other
    assert not verify(made / MV, Anchor(None, {}))["verified"]


def test_a_picture_exchanged_with_everything_made_anew_is_found_by_the_register(made, anchor):
    folder = made / MV
    data = png_bytes(noise(7))
    (folder / "pictures/one-step.png").write_bytes(data)
    edit_facts(folder, lambda facts: facts["pictures"]["pictures/one-step.png"].update(sha256=sha256(data)))
    facts = facts_of(folder)
    pictures = {name: (folder / name).read_bytes() for name in facts["pictures"]}
    told = document(facts)
    (folder / "report.html").write_bytes(html.html(told, pictures))
    (folder / "report.pdf").write_bytes(report.pdf(told, pictures))
    seal(folder)
    assert verify(folder, Anchor(None, {}))["verified"]  # nothing inside can tell
    assert kinds(verify(folder, anchor)) == [(MANIFEST, "unknown")]
    root = next(entry.root for entry in read(anchor.path) if entry.name == MV)
    assert kinds(verify(folder, Anchor(None, {}, root))) == [(MANIFEST, "changed")]


def test_a_report_of_other_texts_or_code_is_not_compared(made, anchor, monkeypatch):
    from audit.evidence import consistency

    here = consistency.rendered_with()
    assert facts_of(made / MV)["versions"]["exhibit"].items() >= here.items()
    monkeypatch.setattr(consistency, "rendered_with", lambda: here | {"report": "0" * 16})
    monkeypatch.setattr(html, "POLICY", "another")
    found = verify(made / MV, anchor)
    assert found["verified"] and f"report {here['report']}" in found["not_checked"][0]


@pytest.mark.parametrize(
    "data", [png_bytes(noise(1))[:30], b"\x89PNG\r\n\x1a\n" + b"\0" * 8 + b"\0\1\0\0" * 2]
)
def test_a_picture_that_cannot_be_read_is_set_in_no_report(made, data):
    (made / MV / "pictures/generated.png").write_bytes(data)
    edit_facts(
        made / MV, lambda facts: facts["pictures"]["pictures/generated.png"].update(sha256=sha256(data))
    )
    seal(made / MV)
    assert kinds(verify(made / MV, Anchor(None, {}))) == [("pictures/generated.png", "damaged")]


def test_an_export_misses_nothing(made, anchor):
    shutil.rmtree(made / RV)
    shutil.copytree(made / MV, made / "0123456789abcdef")
    (made / "letter.txt").touch()
    found = kinds(verify(made, anchor))
    assert {("letter.txt", "added"), (RV, "missing"), ("0123456789abcdef", "added")} <= set(found)
    (made / MANIFEST).unlink()
    assert {(MANIFEST, "missing"), *found} == set(kinds(verify(made, anchor)))


@pytest.mark.parametrize(
    "make",
    [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere"), lambda path: path.symlink_to(MANIFEST)],
    ids=["folder", "pipe", "link to nowhere", "link"],
)
@pytest.mark.parametrize("listed", [True, False])
def test_what_is_no_file_is_no_signature_of_an_export(made, anchor, make, listed):
    if not listed:
        (made / MANIFEST).unlink()
    before = kinds(verify(made, anchor))
    make(made / SIGNATURE)
    assert kinds(verify(made, anchor)) == [*before, (SIGNATURE, "added")]


def test_names_that_are_no_text_can_be_said(made, anchor):
    folder = made / MV / os.fsdecode(b"more\xff")
    (made / os.fsdecode(b"x\xff")).touch()
    folder.mkdir()
    found = verify(made, anchor)
    assert kinds(found) == [(f"{MV}/more\ufffd/", "added"), ("x\ufffd", "added")]
    for place in range(MAX_FILES + 1):
        (folder / str(place)).touch()
    found["findings"] += verify(made, anchor)["findings"]
    assert "more than" in str(found)
    "".join(each["file"] + each["sentence"] for each in found["findings"]).encode()


@pytest.fixture(scope="module")
def packed(sources, tmp_path_factory):
    """An export with zips, and its register, in which another one stands too."""
    place = tmp_path_factory.mktemp("packed")
    for out, names in (("out", [MV, RV, HARM]), ("other", [MV])):
        register = Register(place / "register.jsonl")
        export(sources, names, Asked(place / out, zipped=True), register, who="Ann", workers=1)
    return place


def remove(*names):
    def change(out):
        for name in names:
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def exchange(one, other):
    def change(out):
        os.rename(out / one, out / "between")
        os.rename(out / other, out / one)
        os.rename(out / "between", out / other)

    return change


def both(*changes):
    return lambda out: [change(out) for change in changes]


ZIPS = [f"{name}.zip" for name in (MV, RV, HARM)]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (remove(MANIFEST), {MANIFEST}),
        (remove(RV), {RV}),
        (remove(f"{RV}.zip"), {f"{RV}.zip"}),
        (remove(MANIFEST, RV, f"{RV}.zip"), {MANIFEST, RV}),
        (exchange(MV, RV), {f"{MV}/exhibit.json", f"{RV}/exhibit.json"}),
        (exchange(f"{MV}.zip", f"{RV}.zip"), {f"{MV}.zip", f"{RV}.zip"}),
        (
            both(remove(MANIFEST, *ZIPS), exchange(MV, RV)),
            {MANIFEST, f"{MV}/exhibit.json", f"{RV}/exhibit.json"},
        ),
        (lambda out: (out / f"{UNFINISHED}more").touch(), {f"{UNFINISHED}more"}),
        (lambda out: (out / f"{UNFINISHED}{MV}").mkdir(), {f"{UNFINISHED}{MV}"}),
        (lambda out: (out / PLAN).write_bytes(b"{}"), {PLAN}),
        (lambda out: (out / MV / "pictures/more").mkdir(), {f"{MV}/pictures/more/"}),
        (lambda out: (out / ("0" * 16)).symlink_to("nowhere"), {"0" * 16}),
        (lambda out: shutil.copytree(out / MV, out / ("0" * 16)), {"0" * 16}),
    ],
)
def test_what_is_done_to_an_export_is_found_and_named(packed, tmp_path, change, named):
    out = tmp_path / "out"
    shutil.copytree(packed / "out", out)
    anchor = Anchor.open(packed / "register.jsonl")
    assert verify(out, anchor)["verified"]
    change(out)
    assert named <= {file for file, _ in kinds(verify(out, anchor))}
    assert not verify(out, Anchor(None, {}))["verified"]


def test_an_exhibit_in_the_place_of_another_is_found_alone_too(made, anchor, tmp_path):
    shutil.copytree(made / MV, tmp_path / "my exhibit")
    assert verify(tmp_path / "my exhibit", anchor)["verified"]
    shutil.copytree(made / MV, tmp_path / RV)
    assert kinds(verify(tmp_path / RV, anchor)) == [("exhibit.json", "swapped")]


def test_the_register_of_another_computer_says_nothing(made, packed, tmp_path, monkeypatch):
    own = tmp_path / "own.jsonl"
    entry = {"kind": "exhibit", "run": "r", "model_sha256": "m", "who": "w"}
    Register(own).append(name="f" * 16, root="0" * 64, **entry)
    monkeypatch.setattr("audit.evidence.register.register_path", lambda: own)
    for path in (made, made / MV):
        found = verify(path, Anchor.open(None))
        assert found["verified"] and "no register at hand tells of it" in found["not_checked"][0]
        assert (MANIFEST, "unknown") in kinds(verify(path, Anchor.open(own)))
    Register(own).append(name=MV, root="1" * 64, **entry)  # now it has that caption, with another root
    for path in (made, made / MV):
        assert not verify(path, Anchor.open(None))["verified"]


def test_a_damaged_register_is_told(made, anchor, tmp_path):
    register = tmp_path / "register.jsonl"
    register.write_bytes(register.read_bytes().replace(b'"who":"Ann"', b'"who":"Eve"', 1))
    found = verify(made / MV, Anchor.open(register))
    assert (str(register), "changed") in kinds(found) and not found["verified"]


def test_without_a_register_the_root_decides(made, tmp_path, monkeypatch):
    monkeypatch.setattr("audit.evidence.register.register_path", lambda: tmp_path / "none")
    found = verify(made / MV, Anchor.open(None))
    assert found["verified"] and found["root"] in found["not_checked"][0]
    [unchecked] = verify(made / MV, Anchor.open(None, found["root"]))["not_checked"]
    assert "whether it was signed" in unchecked
    whole = verify(made, Anchor.open(None))
    assert whole["verified"] and whole["root"] in whole["not_checked"][0]
    vouched = verify(made, Anchor.open(None, whole["root"]))
    assert vouched["verified"] and not any(each["not_checked"] for each in vouched["exhibits"].values())
    (made / MV / "report.html").write_bytes(b"<p>")
    seal(made / MV)
    assert (f"{MV}/{MANIFEST}", "changed") in kinds(verify(made, Anchor.open(None, whole["root"])))
    with pytest.raises(InputError, match="no register"):
        Anchor.open(tmp_path / "nowhere")


def test_every_byte_of_a_zip_counts(sources, tmp_path):
    out, register = tmp_path / "out", tmp_path / "r"
    export(sources, [MV], Asked(out, zipped=True), Register(register), who="Ann")
    archive, anchor = out / f"{MV}.zip", Anchor.open(register)
    assert verify(archive, anchor)["verified"] and verify(out, anchor)["verified"]
    whole = archive.read_bytes()
    chance = random.Random(1)
    for place in (
        *(chance.randrange(len(whole)) for _ in range(10)),
        10,
        12,
        len(whole) - 1,
        len(whole) - 60,
    ):
        archive.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :]
        )
        assert not verify(archive, anchor)["verified"], place
    archive.write_bytes(whole + b"more")
    assert not verify(archive, anchor)["verified"]


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_signatures(sources, tmp_path, monkeypatch):
    keys = [tmp_path / name for name in ("ours", "theirs", "locked")]
    for key, phrase in zip(keys, ("", "", "secret"), strict=True):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-f", key, "-C", "x"], check=True)
    out, register = tmp_path / "out", tmp_path / "r"
    export(sources, [MV], Asked(out, key=keys[0]), Register(register), who="Ann")
    anchor = Anchor.open(register)
    found = verify(out / MV, anchor)
    assert found["verified"] and found["signed_by"].startswith("SHA256:") and verify(out, anchor)["verified"]
    manifest, signature = (out / MV / MANIFEST).read_bytes(), out / MV / SIGNATURE
    whole = signature.read_bytes()
    assert armoured(whole)
    for place in range(0, len(whole), 11):
        signature.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert [SIGNATURE] == [file for file, _ in kinds(verify(out / MV, anchor))], place
    signature.write_bytes(sign(manifest, keys[1]))
    assert kinds(verify(out / MV, anchor)) == [(SIGNATURE, "changed")]
    signature.unlink()
    assert kinds(verify(out / MV, anchor)) == [(SIGNATURE, "missing")]
    of_all = (out / SIGNATURE).read_bytes()
    (out / SIGNATURE).write_bytes(whole)
    assert (SIGNATURE, "changed") in kinds(verify(out, anchor))
    (out / SIGNATURE).write_bytes(of_all)
    signature.write_bytes(whole)
    signers = tmp_path / "signers"
    signers.write_text("ann@example.org " + keys[0].with_suffix(".pub").read_text())
    assert signed_by(manifest, whole, signers).startswith("ann@example.org")
    assert verify(out / MV, Anchor.open(register, signers=signers))["verified"]
    for path in (out, out / MV):  # where no register is, a signer who is allowed vouches
        found = verify(path, Anchor(None, {}, signers=signers))
        assert found["verified"] and not found["not_checked"]
    own = tmp_path / "own"  # of a computer that the exhibit was brought to, with another one of that caption
    Register(own).append(
        kind="exhibit", root="0" * 64, name=MV, run="r", model_sha256="m", who="w", signed_by="SHA256:k"
    )
    monkeypatch.setattr("audit.evidence.register.register_path", lambda: own)
    assert not verify(out / MV, Anchor.open(None))["verified"]
    assert verify(out / MV, Anchor.open(None, signers=signers))["verified"]
    rooted = Anchor(None, {}, sha256(manifest))
    assert found["signed_by"].split()[-1] in verify(out / MV, rooted)["not_checked"][0]
    listed = Anchor(None, {}, sha256((out / MANIFEST).read_bytes()))
    signature.unlink()
    assert kinds(verify(out, listed)) == [(f"{MV}/{SIGNATURE}", "missing")]
    signature.write_bytes(sign(manifest, keys[1]))
    assert kinds(verify(out, listed)) == [(f"{MV}/{SIGNATURE}", "changed")]
    signature.write_bytes(whole)
    (out / SIGNATURE).unlink()
    assert kinds(verify(out, listed)) == [(f"{MV}/{SIGNATURE}", "added")]
    (out / SIGNATURE).write_bytes(of_all)
    signers.write_text("eve@example.org " + keys[1].with_suffix(".pub").read_text())
    assert not verify(out / MV, Anchor.open(register, signers=signers))["verified"]
    with pytest.raises(InputError, match="passphrase"):
        sign(b"x", keys[2])
    with pytest.raises(InputError, match="no key"):
        sign(b"x", tmp_path / "none")


# The picture made again


def test_the_picture_comes_again_from_its_seed(made, anchor, target, tiny_v_pipeline_dir):
    found = verify(made / MV, anchor, target)
    assert found["verified"] and found["regenerated"]["within"] and found["regenerated"]["distance"] < 1
    with pytest.raises(InputError, match="load that one"):
        verify(made / MV, anchor, load(str(tiny_v_pipeline_dir), device="cpu"))


def reseal(folder, change):
    """The facts changed, with the reports and the manifest that go with them."""
    edit_facts(folder, change)
    facts = facts_of(folder)
    pictures = {name: (folder / name).read_bytes() for name in facts["pictures"]}
    (folder / "report.html").write_bytes(html.html(document(facts), pictures))
    (folder / "report.pdf").write_bytes(report.pdf(document(facts), pictures))
    seal(folder)


def test_another_picture_than_the_seeds_is_found(made, target):
    folder = made / MV
    reseal(folder, lambda facts: facts["sampling"].update(seed_shown=0))
    found = verify(folder, Anchor(None, {}), target)
    assert kinds(found) == [("pictures/generated.png", "inconsistent")] and not found["regenerated"]["within"]


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("sampling", {"seed_shown": 2.5}),
        ("sampling", {"seed_shown": [1]}),
        ("sampling", {"seed_shown": -1}),
        ("sampling", {"steps": 501}),
        ("sampling", {"steps": 0}),
        ("sampling", {"guidance": 1e300}),
        ("model", {"guidance": True}),
    ],
)
def test_what_cannot_be_made_is_a_finding_of_that_exhibit(made, target, where, change):
    from audit.evidence.regenerate import check_asked

    facts = facts_of(made / MV)
    check_asked(facts)
    facts[where].update(change)
    with pytest.raises(InputError, match="The exhibit states"):
        check_asked(facts)


def test_what_cannot_be_made_stops_no_check_of_the_others(made, target):
    (made / MANIFEST).unlink()
    reseal(made / MV, lambda facts: facts["sampling"].update(steps=0))
    found = verify(made, Anchor(None, {}), target)
    assert (f"{MV}/exhibit.json", "damaged") in kinds(found)
    assert found["exhibits"][RV]["regenerated"]["within"]


def test_the_tolerance_is_that_of_both_machines(made, target):
    from audit.evidence.regenerate import tolerance

    same, other = {"generated": 1, "one_step": 1}, {"generated": 100, "one_step": 1000}
    assert (
        tolerance("cpu float32", "cpu float32") == same and tolerance("cuda float32", "cuda float32") == other
    )
    assert tolerance("cpu bfloat16", "cpu float32") == tolerance("cuda float32", "cpu float32") == other
    for device, most in (("cpu", same), ("cuda:1", other)):
        reseal(made / MV, lambda facts, device=device: facts["model"].update(device=device))
        again = verify(made / MV, Anchor(None, {}), target)["regenerated"]
        assert (again["tolerance"], again["tolerance_of_one_step"]) == (most["generated"], most["one_step"])


# The command line


def test_exhibit_and_verify_by_command(world, tmp_path, capsys, tiny_pipeline_dir, monkeypatch):
    out, register = tmp_path / "out", tmp_path / "register.jsonl"
    chosen = tmp_path / "selection.parquet"
    pd.DataFrame({"caption_id": [RV]}).to_parquet(chosen)
    common = ["--index", str(world / "index"), "--register", str(register)]
    for which in (["--caption", MV], ["--selection", str(chosen)], ["--verdicts", "MV,RV"]):
        place = out / which[0].strip("-")
        assert main(["exhibit", str(world / "run"), *which, "--out", str(place), *common]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["root"] == sha256((place / MANIFEST).read_bytes())
        assert all(
            sha256((place / name / MANIFEST).read_bytes()) == root for name, root in told["exhibits"].items()
        )
    check = ["--register", str(register)]
    assert (
        main(["verify", str(out / "caption" / MV), *check, "--regenerate", "--model", str(tiny_pipeline_dir)])
        == 0
    )
    told = capsys.readouterr()
    assert json.loads(told.out)["regenerated"]["within"] and "Verified" in told.err
    (out / "caption" / MV / "report.pdf").write_bytes(b"%PDF")
    assert main(["verify", str(out / "caption" / MV), *check]) == 1
    told = capsys.readouterr()
    assert "report.pdf: changed" in told.err and not json.loads(told.out)["verified"]
    for bad in (
        ["verify", str(tmp_path / "nowhere")],
        ["verify", str(out), "--register", str(tmp_path / "none")],
        ["exhibit", str(world / "run"), "--caption", "0" * 16, "--out", str(tmp_path / "x"), *common],
        ["exhibit", str(world / "run"), "--selection", str(register), "--out", str(tmp_path / "x"), *common],
        ["exhibit", str(world / "run"), "--verdicts", "TV", "--out", str(tmp_path / "x"), *common],
        ["exhibit", str(world / "run"), "--out", str(tmp_path / "x"), *common],
    ):
        assert main(bad) == 2, bad
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_kinds_of_verdicts_that_are_none_of_these(sources):
    """A later kind of verdict is told with what the run says of it."""
    [source] = sources.of([RV])
    source.row["verdict"] = "XV"
    facts, pictures = facts_module.gather(source, copy=True)
    told = document(facts)
    assert facts["claims"] == {"retrieved": True, "verified": False, "confirmed": False}
    assert report.pdf(told, pictures) and html.html(told, pictures)
    assert "XV" in told["heading"] and facts["verdict"]["reason"] in told["answers"][2]["sentences"][0]


def test_exhibits_are_read_for_presentation(made):
    assert gallery(made) == sorted([MV, RV, HARM])
    shown = Exhibit.open(made / MV)
    assert shown.root == sha256((made / MV / MANIFEST).read_bytes()) and not shown.findings
    assert shown.document["claims"][1]["mark"] == "yes" and decode(shown.generated).shape == (32, 32, 3)
    (made / MV / "report.pdf").write_bytes(b"")
    assert [each.file for each in Exhibit.open(made / MV).findings] == ["report.pdf"]
    edit_facts(made / MV, lambda facts: facts.pop("caption"))
    with pytest.raises(InputError, match="damaged"):
        Exhibit.open(made / MV)
    (made / RV / "pictures/generated.png").unlink()
    with pytest.raises(InputError, match="missing"):
        Exhibit.open(made / RV)
    with pytest.raises(InputError, match="no exhibit"):
        Exhibit.open(made)


def test_nothing_of_anybody_else_is_removed(tmp_path):
    from audit.evidence.export import prepare

    for name in ("film.partial", f"{UNFINISHED}{MV}", f"{MV}.zip.partial"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"holds film\.partial"):
        prepare(Asked(tmp_path), [MV])
    assert len(list(tmp_path.iterdir())) == 3
    (tmp_path / "film.partial").rmdir()
    prepare(Asked(tmp_path), [MV])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / f"{MV}.zip").touch()
    prepare(Asked(tmp_path, zipped=True), [MV])
    with pytest.raises(InputError, match=f"holds {MV}.zip"):
        prepare(Asked(tmp_path), [MV])
