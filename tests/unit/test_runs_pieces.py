"""Moved pieces as a check behind a verdict: a real tiny index, and samples that pieces were laid into."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from audit.cli import main
from audit.errors import InputError
from audit.images import decode as decode_png
from audit.images import png_bytes, sha256, to_uint8
from audit.records import CheckStatus, Sample, VerdictKind
from audit.retrieval.build import build
from audit.retrieval.embedding import Embedder
from audit.retrieval.search import Retriever
from audit.runs.folder import RunFolder
from audit.runs.one_caption import judge, own_image
from audit.runs.pieces import (
    PieceCalibration,
    Pieces,
    calibrate,
    default_path,
    find_calibration,
    open_windows,
)
from audit.runs.results import Results
from audit.runs.run import score
from audit.runs.verdicts import Decider, TrainingSet, decide_run
from audit.targets.pipelines import load
from audit.verbatim.overlay import overlay
from audit.verbatim.pieces import SCORING
from audit.verbatim.templates import TemplateLibrary
from tests.unit.test_verbatim_pieces import HOST, PICTURES, planted

CAPTIONS = {name: f"picture {name}" for name in PICTURES}
STEPS, GUIDANCE = 2, 7.5


pytestmark = pytest.mark.usefixtures("own_data_folder")


@pytest.fixture(scope="module")
def retriever(tiny_clip_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "corpus/images").mkdir(parents=True)
    rows = []
    for name, picture in PICTURES.items():
        (folder / f"corpus/images/{name}.png").write_bytes(png_bytes(picture))
        rows.append(
            {"image_id": name, "file": f"images/{name}.png", "caption": CAPTIONS[name], "indexed": True}
        )
    pd.DataFrame(rows).to_parquet(folder / "corpus/corpus.parquet")
    build(folder / "corpus", folder / "index", Embedder(f"local-dir:{tiny_clip_dir}", device="cpu"))
    return Retriever.open(folder / "index", device="cpu")


@pytest.fixture
def library(retriever):
    return TemplateLibrary((), index_sha256=retriever.index.sha256)


@pytest.fixture(scope="module")
def target(tiny_pipeline_dir):
    return load(str(tiny_pipeline_dir), device="cpu")


def calibration(target_sha256, index_sha256, values=(1.0,) * 99, seeds=(0, 1)):
    return PieceCalibration(
        target_sha256, index_sha256, seeds, STEPS, GUIDANCE, len(values), "of a test", values, SCORING
    )


def pieces_of(retriever, over):
    return Pieces(open_windows(retriever), retriever, calibration("", retriever.index.sha256, (over,) * 99))


def samples(*pictures):
    return [Sample(picture, seed, STEPS, GUIDANCE) for seed, picture in enumerate(pictures)]


def decided(retriever, library, pictures, over, caption="picture p0"):
    own = own_image(caption, retriever)
    return judge(caption, samples(*pictures), retriever, library, own, pieces_of(retriever, over))


def test_a_moved_piece_is_a_verdict_of_its_own(retriever, library):
    moved = planted(PICTURES["p3"][10:138, 20:148], 110, 90)
    proof = decided(retriever, library, [HOST, moved], 5.0)
    verdict = proof.verdict
    assert (verdict.kind, verdict.seed, verdict.neighbour_id) == (VerdictKind.PV, 1, "p3")
    assert verdict.sse is None and verdict.threshold == 5.0 and verdict.checks[3].score > 5
    assert [piece.image_id for piece in proof.pieces] == ["p3"] * len(proof.pieces) and proof.pieces
    for words in ("calibrated score and no measured distance", "p3", "moved", "2 pictures"):
        assert words in verdict.reason


def test_the_pieces_of_a_verdict_are_kept_as_a_picture(target, retriever, library):
    moved = planted(PICTURES["p3"][10:138, 20:148], 110, 90)
    proofs = [decided(retriever, library, [HOST, moved], over) for over in (5.0, 1e6)]
    decider = Decider(
        target, training_set=TrainingSet(retriever, library), seeds=(0, 1), steps=1, guidance=7.5
    )
    rows = decider.pictures(proofs).to_pylist()
    assert [row["kind"] for row in rows] == ["sample"] * 2 + ["one step"] * 2 + ["pieces"]
    assert rows[-1]["seed"] == 1 and sha256(rows[-1]["image"]) == rows[-1]["sha256"]
    shown = decode_png(rows[-1]["image"])
    assert np.array_equal(to_uint8(shown), to_uint8(overlay(moved, PICTURES["p3"], proofs[0].pieces)))


def test_a_score_that_ordinary_captions_reach_does_not_count(retriever, library):
    moved = planted(PICTURES["p3"][10:138, 20:148], 110, 90)
    proof = decided(retriever, library, [moved], 1e6)
    assert proof.verdict.kind is VerdictKind.N and proof.pieces == ()
    assert (
        "surest moved piece scores" in proof.verdict.reason and "not looked for" not in proof.verdict.reason
    )
    assert proof.verdict.checks[3].looked_at > 0 and not proof.verdict.checks[3].holds


def test_whole_copies_come_first(retriever, library):
    proof = decided(retriever, library, [PICTURES["p0"]], 5.0)
    assert proof.verdict.kind is VerdictKind.MV
    last = proof.verdict.checks[3]
    assert (last.kind, last.status, last.looked_at) == (VerdictKind.PV, CheckStatus.NOT_AVAILABLE, 0)


def test_no_copy_says_when_pieces_were_not_looked_for(retriever, library):
    proof = judge("picture p0", samples(HOST), retriever, library, own_image("picture p0", retriever))
    assert proof.verdict.kind is VerdictKind.N and len(proof.verdict.checks) == 3
    assert proof.verdict.reason.endswith("Pieces that stand elsewhere in the picture were not looked for.")


def test_windows_are_made_once(retriever, monkeypatch):
    first = open_windows(retriever)
    monkeypatch.setattr("audit.verbatim.pieces.PieceIndex.build", None)
    again = open_windows(retriever)
    assert again.image_ids == first.image_ids == tuple(PICTURES)


def test_threshold_is_a_conformal_quantile():
    values = tuple(float(value) for value in range(1, 200))
    assert calibration("m", "i", values).threshold == 198  # 2 of 200 may exceed it
    with pytest.raises(InputError, match="too few"):
        calibration("m", "i", values[:98]).threshold  # noqa: B018


def test_a_calibration_is_kept_and_checked(tmp_path):
    kept = calibration("m" * 64, "i" * 64)
    kept.save(default_path("m" * 64, "i" * 64))
    assert find_calibration("m" * 64, "i" * 64) == kept and find_calibration("m" * 64, "j" * 64) is None
    replace(kept, scoring="another").save(default_path("m" * 64, "i" * 64))
    assert find_calibration("m" * 64, "i" * 64) is None, "its scores are of another kind"
    default_path("m" * 64, "i" * 64).write_text("{}")
    with pytest.raises(InputError, match="no calibration of moved pieces"):
        find_calibration("m" * 64, "i" * 64)


def test_other_sampling_is_refused(retriever):
    calibration("m" * 64, retriever.index.sha256).save(default_path("m" * 64, retriever.index.sha256))
    windows = open_windows(retriever)
    Pieces.calibrated(windows, retriever, "m" * 64, ((0,), STEPS, GUIDANCE))
    for sampling in (((0, 1, 2), STEPS, GUIDANCE), ((0,), 3, GUIDANCE), ((0,), STEPS, 1.0)):
        with pytest.raises(InputError, match="were calibrated on 2 samples a caption of 2 steps"):
            Pieces.calibrated(windows, retriever, "m" * 64, sampling)
    with pytest.raises(InputError, match="calibrate MODEL --pieces"):
        Pieces.calibrated(windows, retriever, "n" * 64, ((0,), STEPS, GUIDANCE))


def test_calibration_by_the_model_and_a_run(target, retriever, library, tmp_path):
    windows = open_windows(retriever)
    found = calibrate(
        target, ["a", "b", "c"], Pieces(windows, retriever), source="test", seeds=(0, 1), steps=STEPS
    )
    assert found.captions == len(found.values) == 3 and min(found.values) >= 0
    # a threshold under everything: every caption with any piece at all is a patch verbatim
    calibration(target.sha256, retriever.index.sha256, (-1.0,) * 99).save(
        default_path(target.sha256, retriever.index.sha256)
    )
    captions = tmp_path / "captions.txt"
    captions.write_text("picture p0\na blue star")
    score(target, captions, tmp_path / "run")
    decide_run(
        target,
        tmp_path / "run",
        TrainingSet(retriever, library, windows),
        seeds=(0, 1),
        steps=STEPS,
        top=None,
    )
    table = RunFolder.open(tmp_path / "run").table("verdicts")
    assert set(table["pv_status"]) == {"checked"} and (table["pv_score"] >= 0).all()
    assert json.loads((tmp_path / "run/verdicts.json").read_text())["pieces_over"] == -1.0
    assert Results(RunFolder.open(tmp_path / "run")).page()["pv_looked_at"].min() >= 0
    with pytest.raises(InputError, match="pieces_over"):
        decide_run(
            target, tmp_path / "run", TrainingSet(retriever, library), seeds=(0, 1), steps=STEPS, top=None
        )


def test_commands(target, retriever, tiny_pipeline_dir, tmp_path, capsys):
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(f"caption {number}" for number in range(99)))
    options = ["--captions", str(captions), "--device", "cpu", "--seeds", "0", "--steps", "1"]
    places = ["--pieces", "--index", str(retriever.index.folder)]
    assert main(["calibrate", str(tiny_pipeline_dir), *options, *places]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["captions"] == 99 and np.isfinite(report["threshold"])
    assert main(["calibrate", str(tiny_pipeline_dir), *options, *places, "--limit", "50"]) == 2
    assert "at least 99" in capsys.readouterr().err


def test_the_demo_is_calibrated():
    from audit.retrieval.index import Index
    from audit.settings import DEMO
    from audit.targets.pipelines import hash_model

    found = find_calibration(hash_model(DEMO / "model"), Index.open(DEMO / "index").sha256)
    assert found is not None and found.captions >= 99 and 0 < found.threshold < 100
