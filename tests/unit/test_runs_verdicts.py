"""Verdicts on a real tiny model whose own pictures are put into the training set, or kept out of it."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.cli import main
from audit.errors import Cancelled, InputError
from audit.images import decode, png_bytes, resize
from audit.records import CheckStatus, PictureKind, Template, VerdictKind
from audit.retrieval.build import build
from audit.retrieval.embedding import Embedder
from audit.retrieval.search import Retriever
from audit.runs.folder import RunFolder
from audit.runs.one_caption import generate, own_image, prove
from audit.runs.results import Results
from audit.runs.run import score
from audit.runs.verdicts import OwnImages, TrainingSet, decide_run
from audit.settings import settings
from audit.targets.pipelines import load
from audit.verbatim.distances import sse
from audit.verbatim.templates import TemplateLibrary

SEEDS, STEPS = (0, 1), 2
COPIED, OTHER, HELD_OUT, UNKNOWN = "a red house", "a blue star", "a round cat", "the dog"


@pytest.fixture(scope="module")
def target(tiny_pipeline_dir):
    return load(str(tiny_pipeline_dir), device="cpu")


@pytest.fixture(scope="module")
def copy(target):
    """What the model gives for the copied caption at seed 1."""
    return generate(target, [COPIED], SEEDS, STEPS, 7.5)[0][1].image


def noise(seed):
    return np.random.default_rng(seed).random((32, 32, 3), dtype=np.float32)


def make_retriever(folder, clip, pictures):
    """A training set of (caption, picture, trained) and its index."""
    (folder / "corpus/images").mkdir(parents=True)
    rows = []
    for i, (caption, picture, indexed) in enumerate(pictures):
        (folder / f"corpus/images/p{i}.png").write_bytes(png_bytes(picture))
        row = {"image_id": f"p{i}", "file": f"images/p{i}.png", "caption": caption, "indexed": indexed}
        rows.append(row | {"author": f"author of p{i}", "licence": "free", "source": "made for a test"})
    pd.DataFrame(rows).to_parquet(folder / "corpus/corpus.parquet")
    build(folder / "corpus", folder / "index", Embedder(f"local-dir:{clip}", device="cpu"))
    return Retriever.open(folder / "index", device="cpu")


@pytest.fixture(scope="module")
def memorised(copy, tiny_clip_dir, tmp_path_factory):
    """p0 is the model's own picture; p1 belongs to another caption; p2 was kept from training."""
    pictures = [(COPIED, copy, True), (OTHER, noise(1), True), (HELD_OUT, noise(2), False)]
    return make_retriever(tmp_path_factory.mktemp("memorised"), tiny_clip_dir, pictures)


@pytest.fixture(scope="module")
def unrelated(tiny_clip_dir, tmp_path_factory):
    pictures = [(COPIED, noise(0), True), (OTHER, noise(1), True), (HELD_OUT, noise(2), False)]
    return make_retriever(tmp_path_factory.mktemp("unrelated"), tiny_clip_dir, pictures)


@pytest.fixture(scope="module")
def no_templates(unrelated):
    """What is found in the training set of `unrelated`: no family."""
    return TemplateLibrary((), index_sha256=unrelated.index.sha256)


def check(proof, kind):
    return next(check for check in proof.verdict.checks if check.kind is kind)


def test_own_training_image_came_back(target, memorised, no_templates):
    proof = prove(target, COPIED, memorised, no_templates, seeds=SEEDS, steps=STEPS)
    assert (proof.verdict.kind, proof.verdict.seed, proof.verdict.neighbour_id) == (VerdictKind.MV, 1, "p0")
    assert proof.verdict.sse < 10 and proof.own_id == "p0"
    assert [each.seed for each in proof.samples] == [0, 1] and len(proof.neighbours) == 2
    assert [hit.image_id for hit in proof.neighbours[1]] == ["p0", "p1"]
    assert check(proof, VerdictKind.MV).looked_at == 2


def test_another_captions_image_came_back(target, memorised, no_templates):
    proof = prove(target, OTHER, memorised, no_templates, seeds=SEEDS, steps=STEPS)
    assert (proof.verdict.kind, proof.verdict.seed, proof.verdict.neighbour_id) == (VerdictKind.RV, 1, "p0")
    assert proof.own_id == "p1" and check(proof, VerdictKind.MV).distance > 2500


def test_template_came_back(target, copy, unrelated):
    changed = resize(copy)
    mask = np.ones((256, 256), bool)
    mask[:128, :100] = False
    changed[~mask] = 0
    library = TemplateLibrary((Template("t0", changed, mask, ("p0", "p1"), "p0"),))
    proof = prove(target, COPIED, unrelated, library, seeds=SEEDS, steps=STEPS)
    assert (proof.verdict.kind, proof.verdict.template_id, proof.verdict.seed) == (VerdictKind.TV, "t0", 1)
    assert proof.verdict.masked_sse < 10 and proof.verdict.sse > 2500


def test_none_came_back_and_undetermined(target, unrelated, no_templates):
    assert (
        prove(target, COPIED, unrelated, no_templates, seeds=SEEDS, steps=STEPS).verdict.kind is VerdictKind.N
    )
    proof = prove(target, UNKNOWN, unrelated, no_templates, seeds=SEEDS, steps=STEPS)
    assert proof.verdict.kind is VerdictKind.U and proof.own_id is None
    without_library = prove(target, COPIED, unrelated, None, seeds=SEEDS, steps=STEPS)
    assert without_library.verdict.kind is VerdictKind.U
    assert check(without_library, VerdictKind.TV).status is CheckStatus.NOT_AVAILABLE


def test_a_library_of_another_index_does_not_rule_out_template_copies(target, copy, memorised, unrelated):
    mask = np.ones((256, 256), bool)
    mask[:128, :100] = False
    stranger = Template("t0", resize(noise(9)), mask, ("q0", "q1"), "q0")
    ours = Template("t1", resize(noise(9)), mask, ("p0", "p1"), "p0")
    by_hand = {"seeds": SEEDS, "steps": STEPS}
    for library, kind in (
        (TemplateLibrary((ours,)), VerdictKind.N),
        (TemplateLibrary((stranger,)), VerdictKind.U),
        (TemplateLibrary((ours, stranger)), VerdictKind.U),
        (TemplateLibrary((ours,), index_sha256=memorised.index.sha256), VerdictKind.U),
        (TemplateLibrary((ours,), {"t2": "Its mask is missing."}), VerdictKind.U),
        (TemplateLibrary(()), VerdictKind.U),
    ):
        proof = prove(target, COPIED, unrelated, library, **by_hand)
        assert proof.verdict.kind is kind, library
    assert "was not made from this index" in proof.verdict.reason
    # a copy of a template is one, wherever the template is from
    copied = Template("t3", resize(copy), mask, ("q0", "q1"), "q0")
    verdict = prove(target, COPIED, unrelated, TemplateLibrary((copied,)), **by_hand).verdict
    assert (verdict.kind, verdict.template_id) == (VerdictKind.TV, "t3")


def test_own_image_by_name(target, memorised, no_templates):
    proof = prove(
        target,
        UNKNOWN,
        memorised,
        no_templates,
        seeds=SEEDS,
        steps=STEPS,
        own=own_image(UNKNOWN, memorised, "p0"),
    )
    assert (proof.verdict.kind, proof.own_id) == (VerdictKind.MV, "p0")


def test_own_images_of_pairs_that_were_kept_from_training(memorised):
    own = OwnImages(memorised)
    held_out = own.find(HELD_OUT)
    assert list(held_out.pictures) == ["p2"]
    np.testing.assert_allclose(held_out.pictures["p2"], resize(noise(2)), atol=1 / 255)
    assert list(own.find(UNKNOWN, "p2").pictures) == ["p2"]
    assert list(own.find(UNKNOWN, "p1").pictures) == ["p1"]
    assert own.find(UNKNOWN) is None
    assert own.find(UNKNOWN, "gone").pictures == {"gone": None}


def test_own_images_that_share_a_caption(target, copy, tiny_clip_dir, tmp_path, no_templates):
    """The second of two rows of one caption came back: that is its own image, not another caption's."""
    pictures = [(COPIED, noise(0), True), (COPIED, copy, True), (COPIED, noise(2), False)]
    retriever = make_retriever(tmp_path, tiny_clip_dir, pictures)
    proof = prove(target, COPIED, retriever, no_templates, seeds=SEEDS, steps=STEPS)
    assert (proof.verdict.kind, proof.verdict.neighbour_id, proof.own_id) == (VerdictKind.MV, "p1", "p1")
    assert proof.own_ids >= {"p0", "p1"} and check(proof, VerdictKind.RV).looked_at == 0
    assert list(OwnImages(retriever).find(COPIED, "p1").pictures) == ["p1", "p0", "p2"]


def test_progress_and_stopping(target, memorised, no_templates):
    told = []
    options = {"seeds": (0,), "steps": 3}
    prove(target, COPIED, memorised, no_templates, **options, progress=lambda *now: told.append(now))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(Cancelled):
        prove(target, COPIED, memorised, no_templates, **options, cancelled=lambda: True)


@pytest.fixture
def run(target, tmp_path, monkeypatch):
    monkeypatch.setattr(settings(), "data_dir", tmp_path / "data")
    captions = tmp_path / "captions.txt"
    captions.write_text(f"{COPIED}\n{OTHER}\n{HELD_OUT}\n{UNKNOWN}")
    score(target, captions, tmp_path / "run")
    return tmp_path / "run"


def test_verdicts_of_a_run(target, run, memorised, no_templates, monkeypatch):
    monkeypatch.setattr("audit.runs.verdicts.ROWS", 4)
    report = decide_run(target, run, TrainingSet(memorised, no_templates), seeds=SEEDS, steps=STEPS, top=None)
    assert (report["decided_now"], report["not_looked_at"]) == (4, 0)
    # what came back for the unknown caption is in the training set all the same
    assert report["verdicts"] == {"MV": 1, "RV": 3, "TV": 0, "PV": 0, "N": 0, "U": 0}
    table = RunFolder.open(run).table("verdicts").set_index("caption")
    alone = prove(target, COPIED, memorised, no_templates, seeds=SEEDS, steps=STEPS)
    row = table.loc[COPIED]
    assert (row["verdict"], row["seed"], row["neighbour_id"], row["own_id"]) == ("MV", 1, "p0", "p0")
    owed = memorised.index.row("p0")
    assert row["neighbour_caption"] == owed.caption and row["neighbour_author"] == owed.author
    assert row["sse"] == pytest.approx(alone.verdict.sse, rel=1e-2) and row["threshold"] == 2500
    assert (row["tv_status"], row["mv_status"], row["rv_status"]) == ("not available", "checked", "checked")
    assert table.loc[UNKNOWN, "mv_status"] == "not available" and pd.isna(table.loc[UNKNOWN, "mv_seed"])
    assert table.loc[HELD_OUT, "own_id"] == "p2"
    searched = json.loads((run / "verdicts.json").read_text())["training_set"]
    assert searched["sha256"] == memorised.index.sha256 and searched["images"] == 2 and searched["exact"]


def test_verdicts_of_the_highest_go_on_where_they_stopped(target, run, unrelated, no_templates):
    first = decide_run(target, run, TrainingSet(unrelated, no_templates), seeds=SEEDS, steps=STEPS, top=1)
    assert (first["decided_now"], first["not_looked_at"]) == (1, 3)
    scores = RunFolder.open(run).table("captions").set_index("caption")["dcs"]
    assert RunFolder.open(run).table("verdicts")["caption"].tolist() == [scores.idxmax()]
    second = decide_run(target, run, TrainingSet(unrelated, no_templates), seeds=SEEDS, steps=STEPS, top=None)
    assert (second["decided_before"], second["decided_now"]) == (1, 3)
    assert second["verdicts"] == {"MV": 0, "RV": 0, "TV": 0, "PV": 0, "N": 3, "U": 1}
    assert RunFolder.open(run).table("verdicts")["caption_id"].is_unique
    with pytest.raises(InputError, match="were made with steps 2 and not 3"):
        decide_run(target, run, TrainingSet(unrelated, no_templates), seeds=SEEDS, steps=3, top=None)


def test_pictures_and_neighbours_of_a_verdict_are_kept(target, run, memorised, no_templates):
    decide_run(target, run, TrainingSet(memorised, no_templates), seeds=SEEDS, steps=STEPS, top=2)
    folder = RunFolder.open(run)
    found, table = Results(folder), folder.table("verdicts")
    for row in table.itertuples():
        kept = found.pictures([row.caption_id])
        sample, step = (kept[row.caption_id, kind] for kind in (PictureKind.SAMPLE, PictureKind.ONE_STEP))
        assert sample.seed == step.seed == row.seed and sample.png != step.png
        training = memorised.pictures.get(memorised.index.row(row.neighbour_id)).astype(np.float32) / 255
        assert float(sse(resize(decode(sample.png)), resize(training))) == pytest.approx(row.sse)
        nearest = found.neighbours(row.caption_id)
        assert nearest[0].sse == min(each.sse for each in nearest if each.sse is not None)
        assert row.neighbour_id in [each.image_id for each in nearest]
        assert [each.author for each in nearest] == [f"author of {each.image_id}" for each in nearest]
        assert all(each.licence == "free" and each.source for each in nearest)
    assert set(found.pictures(table["caption_id"].tolist())) == {
        (name, kind)
        for name in table["caption_id"]
        for kind in (PictureKind.SAMPLE, PictureKind.ONE_STEP)  # no pieces were looked for
    }
    assert "neighbours" not in found.page().columns and found.neighbours("nobody") == []


def test_pictures_without_their_verdicts_do_not_count(target, run, memorised, no_templates):
    """Killed between the two parts: the pictures go, and are made again with the verdicts."""
    decide_run(target, run, TrainingSet(memorised, no_templates), seeds=SEEDS, steps=STEPS, top=1)
    folder = RunFolder.open(run)
    (name,) = folder.table("verdicts")["caption_id"]
    before = Results(folder).pictures([name])
    folder.parts("verdicts")[0].unlink()
    assert folder.parts("pictures") == [] and list((run / "pictures").glob("part-*"))
    decide_run(target, run, TrainingSet(memorised, no_templates), seeds=SEEDS, steps=STEPS, top=1)
    assert Results(folder).pictures([name]) == before
    assert len(list((run / "pictures").glob("part-*"))) == 1


def test_a_changed_picture_is_refused(target, run, memorised, no_templates):
    decide_run(target, run, TrainingSet(memorised, no_templates), seeds=SEEDS, steps=STEPS, top=1)
    folder = RunFolder.open(run)
    (part,) = folder.parts("pictures")
    rows = pq.read_table(part).to_pylist()
    rows[0]["image"] += b"."
    pq.write_table(pa.Table.from_pylist(rows), part)
    with pytest.raises(InputError, match="was changed after it was written"):
        Results(folder).pictures([rows[0]["caption_id"]])


def test_verdicts_need_the_model_of_the_run(run, tiny_v_pipeline_dir, unrelated, no_templates):
    with pytest.raises(InputError, match="was scored with the model"):
        decide_run(load(str(tiny_v_pipeline_dir), device="cpu"), run, TrainingSet(unrelated, no_templates))


def test_verdict_command(run, memorised, tmp_path, capsys):
    options = ["--seeds", "0,1", "--steps", "2", "--top", "2", "--device", "cpu"]
    places = ["--index", str(memorised.index.folder)]
    assert main(["verdict", str(run), *places, "--templates", str(tmp_path / "none"), *options]) == 2
    assert "has no templates.parquet" in capsys.readouterr().err
    assert main(["verdict", str(run), *places, *options]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["decided_now"] == 2
    assert "template copies cannot be ruled out" in captured.err
    assert main(["verdict", str(run), "--index", str(tmp_path / "nowhere"), *options]) == 2
    assert "There is no index folder" in capsys.readouterr().err
    assert main(["verdict", str(run), *places, *options, "--noise", "device"]) == 2
    assert "was scored with --noise cpu" in capsys.readouterr().err


def test_an_interrupted_write_does_not_double_rows(run, monkeypatch):
    """Ctrl-C while the part is put on the disk: what waits is written once more, into the same part."""
    import pyarrow as pa

    from audit import files
    from audit.runs.folder import Parts

    rows = pa.table({"caption_id": ["a"], "verdict": ["N"]})
    put, calls = files.put, []

    def interrupted(written, path):
        put(written, path)
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "put", interrupted)
    opened = RunFolder.open(run)
    with pytest.raises(KeyboardInterrupt), Parts(opened) as parts:
        parts.add({"verdicts": rows})
        parts.write()
    assert len(calls) == 2 and len(opened.table("verdicts")) == 1


def test_neighbours_that_an_earlier_version_kept_without_credits_are_read_beside_others(
    target, run, memorised, no_templates
):
    training_set = TrainingSet(memorised, no_templates)
    decide_run(target, run, training_set, seeds=SEEDS, steps=STEPS, top=1)
    (part,) = RunFolder.open(run).parts("verdicts")
    before = pq.read_table(part)
    known = ["image_id", "caption", "similarity", "rank", "sse", "blank"]
    old = [[{name: each[name] for name in known} for each in row] for row in before["neighbours"].to_pylist()]
    place = before.schema.names.index("neighbours")
    pq.write_table(before.set_column(place, "neighbours", pa.array(old)), part)
    decide_run(target, run, training_set, seeds=SEEDS, steps=STEPS, top=2)
    found = Results(RunFolder.open(run))
    authors = [
        found.neighbours(name)[0].author for name in RunFolder.open(run).table("verdicts")["caption_id"]
    ]
    assert authors[0] == "" and authors[1].startswith("author of ")


def test_verdicts_by_another_rule_are_not_mixed(target, run, unrelated, no_templates):
    decide_run(target, run, TrainingSet(unrelated, no_templates), seeds=SEEDS, steps=STEPS, top=1)
    path = run / "verdicts.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rule": "under its threshold"}))
    with pytest.raises(InputError, match="were made with rule under its threshold and not"):
        decide_run(target, run, TrainingSet(unrelated, no_templates), seeds=SEEDS, steps=STEPS, top=None)


def test_verdicts_whose_neighbours_are_not_in_the_index_have_no_attribution(memorised):
    from audit.runs.verdicts import attributed

    for names in ([None, None], ["elsewhere", "elsewhere"], ["p0", None]):
        table = attributed(pd.DataFrame({"neighbour_id": pd.array(names, "string")}), memorised.index)
        assert table["neighbour_author"].isna().sum() == 0
        assert (table["neighbour_caption"][0] != "") == (names[0] == "p0")
