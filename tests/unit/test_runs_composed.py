"""A whole audit as one piece of work, on a real tiny model."""

import pandas as pd
import pytest

from audit.errors import Cancelled
from audit.runs.composed import audit_captions
from audit.runs.folder import RunFolder
from audit.runs.plan import plan
from audit.runs.verdicts import TrainingSet
from audit.scores.ecs import ecs_seeds
from audit.settings import settings
from audit.targets.pipelines import load
from audit.verbatim.templates import TemplateLibrary

COUNT, TOP = 8, 3


@pytest.fixture(scope="module")
def target(tiny_pipeline_dir):
    return load(str(tiny_pipeline_dir), device="cpu")


@pytest.fixture(scope="module")
def training_set(tiny_clip_dir, tmp_path_factory):
    import numpy as np

    from audit.images import png_bytes
    from audit.retrieval.build import build
    from audit.retrieval.embedding import Embedder
    from audit.retrieval.search import Retriever

    folder = tmp_path_factory.mktemp("set")
    (folder / "corpus").mkdir()
    for number in range(3):
        picture = np.random.default_rng(number).random((32, 32, 3), dtype=np.float32)
        (folder / f"corpus/{number}.png").write_bytes(png_bytes(picture))
        (folder / f"corpus/{number}.txt").write_text(f"a picture {number}")
    build(folder / "corpus", folder / "index", Embedder(f"local-dir:{tiny_clip_dir}", device="cpu"))
    return TrainingSet(Retriever.open(folder / "index", device="cpu"), TemplateLibrary(()))


@pytest.fixture
def captions(tmp_path, monkeypatch):
    monkeypatch.setattr(settings(), "data_dir", tmp_path / "data")
    path = tmp_path / "captions.txt"
    path.write_text("\n".join(f"a red house number {number}" for number in range(COUNT)))
    return path


def audit(target, captions, out, training_set, **more):
    options = {"top": str(TOP), "sample_seeds": (0, 1), "steps": 2, "batch": 4}
    return audit_captions(target, captions, out, training_set, **options, **more)


def check_whole(out):
    run = RunFolder.open(out)
    scored, decided = run.table("captions"), run.table("verdicts")
    assert len(scored) == COUNT and scored["caption_id"].is_unique
    highest = scored.sort_values("dcs", ascending=False)["caption_id"].head(TOP)
    assert decided["caption_id"].tolist() == highest.tolist()
    assert decided["ecs"].between(0, 1).all() and decided["ecs_g1"].between(0, 1).all()
    assert "ecs" not in scored
    assert run.state().stage == "done" and run.state().total == TOP


def test_the_highest_get_edge_scores_and_verdicts(target, captions, training_set, tmp_path):
    told = []
    report = audit(target, captions, tmp_path / "run", training_set, planned=told.append)
    check_whole(tmp_path / "run")
    assert (report["scored"]["scored_now"], report["decided"]["decided_now"]) == (COUNT, TOP)
    (cost,) = told
    assert cost == plan(COUNT, seeds=(0,), scores=("dcs", "magnitude"), top=TOP, sample_seeds=(0, 1), steps=2)
    assert cost.sampling == TOP * (2 * 2 * 3 + len(ecs_seeds((0,))))
    assert report["evaluations"] == cost.evaluations


def test_without_a_training_set_it_is_a_score(target, captions, tmp_path):
    report = audit(target, captions, tmp_path / "run", None)
    assert report["decided"] is None and RunFolder.open(tmp_path / "run").state().stage == "done"


def test_a_stop_between_the_two_halves_is_a_stop(target, captions, training_set, tmp_path):
    """The last caption has been scored and no verdict been asked for: nothing may say that the run is done."""
    out, stages = tmp_path / "run", []

    def stop(done, total):
        stages.append(RunFolder(out).state().stage)
        if (done, total) == (COUNT, COUNT):
            RunFolder(out).cancel()

    with pytest.raises(Cancelled):
        audit(target, captions, out, training_set, progress=stop)
    assert "done" not in stages
    assert RunFolder(out).state().stage == "cancelled"
    assert len(RunFolder(out).table("captions")) == COUNT and not RunFolder(out).parts("verdicts")
    audit(target, captions, out, training_set)
    check_whole(out)


def test_a_crash_while_deciding_is_gone_on_with(target, captions, training_set, tmp_path, monkeypatch):
    monkeypatch.setattr("audit.runs.verdicts.ROWS", 2)
    monkeypatch.setattr("audit.runs.folder.PART_ROWS", 1)

    class Stopped(BaseException):
        pass

    def stop(done, total):
        if (done, total) == (1, TOP):
            raise Stopped

    out = tmp_path / "run"
    with pytest.raises(Stopped):
        audit(target, captions, out, training_set, progress=stop)
    assert len(RunFolder(out).table("verdicts")) == 1
    report = audit(target, captions, out, training_set)
    assert (report["decided"]["decided_before"], report["decided"]["decided_now"]) == (1, TOP - 1)
    decided = RunFolder(out).table("verdicts")
    assert pd.Series(decided["caption_id"]).is_unique and len(decided) == TOP
