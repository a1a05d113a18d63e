"""Runs on a real tiny model: every row once, whatever happened before."""

import json
import math
import os

import pandas as pd
import pytest
import torch

from audit.errors import InputError
from audit.runs import calibrate as calibration_module
from audit.runs.calibrate import calibrate, default_path, find_calibration, ordinary_captions, require_enough
from audit.runs.folder import RunFolder
from audit.runs.run import score
from audit.runs.scoring import score_batch
from audit.runs.verdicts import CHOSEN, choose
from audit.scores.ecs import ecs, ecs_seeds
from audit.settings import settings
from audit.targets.one_step import one_step
from audit.targets.pipelines import load

CAPTIONS = [
    "a red house",
    "a cat",
    "a red house",
    "a small dog on the green tree and the star and a round flag",
    "🦄",
    "",
    "a\x00b",
]
DISTINCT = 5
FAINT = 0.4
"""An edge threshold at which the blurs of a random model have edges."""


@pytest.fixture(scope="module")
def target(tiny_pipeline_dir):
    return load(str(tiny_pipeline_dir), device="cpu")


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(settings(), "data_dir", tmp_path / "data")


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(json.dumps({"caption": text}) for text in CAPTIONS))
    return path


def check_complete(out, seeds=(0, 3)):
    run = RunFolder.open(out)
    scores, table = run.table("scores"), run.table("captions")
    assert len(table) == DISTINCT and table["caption_id"].is_unique
    assert set(table["caption"]) == {text for text in CAPTIONS if text}
    assert len(scores) == DISTINCT * len(seeds)
    assert not scores.duplicated(["caption_id", "seed"]).any()
    assert set(scores["seed"]) == set(seeds)
    return scores, table


def test_rows_are_the_scores_of_single_captions(target, captions, tmp_path):
    out = tmp_path / "run"
    report = score(target, captions, out, seeds=(0, 3), batch=2)
    assert report["captions"] == report["scored_now"] == DISTINCT and report["empty"] == 1
    scores, table = check_complete(out)
    for row in scores.itertuples():
        alone = score_batch(target, [row.caption], [row.seed], 7.5, ["dcs", "magnitude"])
        assert row.dcs == pytest.approx(float(alone.per_seed["dcs"][0, 0]), rel=1e-5)
        assert row.magnitude == pytest.approx(float(alone.per_seed["magnitude"][0, 0]), rel=1e-5)
        assert row.model_sha256 == target.sha256
    means = scores.groupby("caption_id")["dcs"].mean()
    assert table["dcs"].to_numpy() == pytest.approx(means[table["caption_id"]].to_numpy(), rel=1e-6)
    by_caption = table.set_index("caption")
    assert by_caption.loc["a red house", "occurrences"] == 2
    assert by_caption["truncated"].to_dict() == {text: text == CAPTIONS[3] for text in by_caption.index}
    description = RunFolder.open(out).description
    assert description["sigma_max"] == pytest.approx(14.6146, abs=1e-3)
    assert description["versions"]["torch"] == torch.__version__.split("+")[0]


def test_scoring_without_edges_decodes_nothing(target, captions, tmp_path, monkeypatch):
    def refuse(latents):
        raise AssertionError("decoded")

    monkeypatch.setattr(target, "decode", refuse)
    score(target, captions, tmp_path / "run")
    with pytest.raises(AssertionError, match="decoded"):
        score(target, captions, tmp_path / "edges", scores=("ecs",))


def test_edge_scores_look_at_four_seeds(target, monkeypatch):
    monkeypatch.setattr("audit.scores.ecs.EDGE_THRESHOLD", FAINT)
    assert ecs_seeds([7]) == (7, 0, 1, 2)
    assert ecs_seeds([1, 2, 3, 4, 5]) == (1, 2, 3, 4)
    assert ecs_seeds([0]) == (0, 1, 2, 3)
    result = score_batch(target, ["a cat", "a dog"], [7], 7.5, ["dcs", "ecs", "ecs_g1"])
    assert result.per_seed["dcs"].shape == (2, 1)
    condition = target.encode(["a dog"])
    for name, guidance in (("ecs", 7.5), ("ecs_g1", 1.0)):
        step = one_step(target, condition.expand(4, -1, -1), [7, 0, 1, 2], guidance)
        expected = ecs(target.decode(step.denoised))
        assert 0.01 < expected < 0.99
        assert result.per_caption[name][1] == pytest.approx(expected, abs=1e-3)


def test_a_finished_run_is_not_scored_again(target, captions, tmp_path):
    out = tmp_path / "run"
    score(target, captions, out, seeds=(0, 3))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    report = score(target, captions, out, seeds=(0, 3))
    assert (report["scored_before"], report["scored_now"]) == (DISTINCT, 0)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == before


@pytest.fixture
def many_parts(target, captions, tmp_path, monkeypatch):
    monkeypatch.setattr("audit.runs.folder.PART_ROWS", 4)
    out = tmp_path / "run"
    score(target, captions, out, seeds=(0, 3), batch=2)
    assert len(list((out / "scores").iterdir())) == 3
    return out


@pytest.mark.parametrize("table", ["scores", "captions"])
def test_resumes_after_a_truncated_part(target, captions, many_parts, table):
    part = many_parts / table / "part-000000000002.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    report = score(target, captions, many_parts, seeds=(0, 3), batch=2)
    assert report["scored_now"] == 2
    check_complete(many_parts)


def test_resumes_after_a_crash_between_the_tables_of_a_part(target, captions, many_parts):
    os.remove(many_parts / "captions/part-000000000004.parquet")
    (many_parts / "captions/part-000000000004.parquet.partial").write_bytes(b"half")
    assert len(RunFolder.open(many_parts).table("scores")) == 2 * 4
    score(target, captions, many_parts, seeds=(0, 3), batch=2)
    check_complete(many_parts)
    assert not list(many_parts.rglob("*.partial"))


def test_resumes_after_the_machine_stopped_while_scoring(target, captions, tmp_path, monkeypatch):
    monkeypatch.setattr("audit.runs.folder.PART_ROWS", 1)
    out = tmp_path / "run"

    class Stopped(BaseException):
        pass

    def stop(done, total):
        if done >= 3:
            raise Stopped

    with pytest.raises(Stopped):
        score(target, captions, out, seeds=(0, 3), batch=1, progress=stop)
    assert len(RunFolder.open(out).table("captions")) == 3
    told = []
    report = score(
        target, captions, out, seeds=(0, 3), batch=1, progress=lambda *told_now: told.append(told_now)
    )
    assert (report["scored_before"], report["scored_now"]) == (3, 2)
    assert told == [(3, 5), (4, 5), (5, 5)]
    check_complete(out)


def test_another_question_does_not_go_into_an_old_run(target, captions, tmp_path, tiny_v_pipeline_dir):
    out = tmp_path / "run"
    score(target, captions, out)
    with pytest.raises(InputError, match=r"was made with guidance 7\.5 and not 3\.0"):
        score(target, captions, out, guidance=3.0)
    with pytest.raises(InputError, match="was made with seeds"):
        score(target, captions, out, seeds=(1,))
    with pytest.raises(InputError, match="was made with model_sha256"):
        score(load(str(tiny_v_pipeline_dir), device="cpu"), captions, out)
    captions.write_text('{"caption": "another"}')
    with pytest.raises(InputError, match="was made with captions_sha256"):
        score(target, captions, out)


def test_other_folders_are_left_alone(target, captions, tmp_path):
    out = tmp_path / "home"
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="holds something else than a run"):
        score(target, captions, out)
    with pytest.raises(InputError, match="is no run"):
        RunFolder.open(out)


def test_two_processes_do_not_share_a_run(target, captions, tmp_path):
    out = tmp_path / "run"
    score(target, captions, out)
    with RunFolder.open(out).owned(), pytest.raises(InputError, match="Another process works on the run"):
        score(target, captions, out)


def test_unknown_scores_are_refused(target, captions, tmp_path):
    with pytest.raises(InputError, match="The scores are dcs, magnitude, ecs, ecs_g1; got bright"):
        score(target, captions, tmp_path / "run", scores=("dcs", "bright"))
    with pytest.raises(InputError, match="got none"):
        score(target, captions, tmp_path / "run", scores=())


def test_zero_terminal_snr_is_refused_for_dcs_only(captions, tmp_path, tiny_v_pipeline_dir):
    import shutil

    folder = shutil.copytree(tiny_v_pipeline_dir, tmp_path / "model")
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rescale_betas_zero_snr": True}))
    target = load(str(folder), device="cpu")
    with pytest.raises(InputError, match="zero terminal SNR"):
        score(target, captions, tmp_path / "run", scores=("dcs",))
    score(target, captions, tmp_path / "run", scores=("ecs",), limit=2)
    assert RunFolder.open(tmp_path / "run").table("captions")["ecs"].between(0, 1).all()
    assert set(calibrate(target, ["a cat", "a dog"], source="test").values) == {"ecs", "ecs_g1"}


def test_percentiles_come_with_a_calibration(target, captions, tmp_path):
    ordinary = ["a cat", "a blue star", "a tree", "a dog", "the flag"]
    calibration = calibrate(target, ordinary, source="test", seeds=(0, 3), batch=2)
    assert calibration.captions == 5 and len(calibration.values["dcs"]) == 5
    assert find_calibration(target.sha256, 7.5) is None
    calibration.save(default_path(target, 7.5))
    found = find_calibration(target.sha256, 7.5)
    assert found.seeds == (0, 3)
    assert found.values["dcs"] == pytest.approx(calibration.values["dcs"], rel=1e-6)
    assert find_calibration(target.sha256, 7.5, [3]).seeds == (3,)
    assert find_calibration(target.sha256, 7.5, [3, 9]) is None
    assert find_calibration(target.sha256, 1.0) is None
    assert find_calibration("0" * 64, 7.5) is None
    assert score(target, captions, tmp_path / "run", seeds=(3,))["calibrated"]
    table = RunFolder.open(tmp_path / "run").table("captions").set_index("caption")
    below = sum(calibration.for_seeds([3]).values["dcs"] < table.loc["a red house", "dcs"])
    assert table.loc["a red house", "dcs_percentile"] == pytest.approx(100 * below / 5)


def test_a_calibration_with_other_noise_is_none(target, captions, tmp_path, monkeypatch):
    with monkeypatch.context() as other:
        other.setattr(target, "noise_source", "device")
        calibrate(target, ["a cat", "a dog"], source="test", seeds=(0,)).save(default_path(target, 7.5))
    assert find_calibration(target.sha256, 7.5, [0], "device").noise == "device"
    assert find_calibration(target.sha256, 7.5, [0]) is None
    assert not score(target, captions, tmp_path / "run", seeds=(0,))["calibrated"]


def test_scores_that_are_no_numbers_are_counted_and_come_last(captions, tmp_path, tiny_pipeline_dir):
    broken = load(str(tiny_pipeline_dir), device="cpu")
    encode = broken.encode
    broken.encode = lambda texts: (
        encode(texts) * torch.tensor([[[math.nan if "cat" in text else 1.0]] for text in texts])
    )
    report = score(broken, captions, tmp_path / "run")
    assert report["not_a_number"] == 1
    assert choose(RunFolder.open(tmp_path / "run"), None) == (DISTINCT, DISTINCT)
    assert "cat" in pd.read_parquet(tmp_path / "run" / CHOSEN)["caption"].iloc[-1]
    with pytest.raises(InputError, match="gives no number as dcs"):
        calibrate(broken, ["a dog", "a cat"], source="test")


def test_ordinary_captions_that_ship(target):
    captions, source = ordinary_captions(target)
    assert len(captions) == len(set(captions)) >= 300 and "ship" in source
    require_enough(captions)
    with pytest.raises(InputError, match="98 ordinary captions are too few"):
        require_enough(captions[:98])


def test_ordinary_captions_of_the_demo_are_its_calibration_half(target, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration_module, "DEMO", tmp_path)
    monkeypatch.setattr(target, "name", "demo")
    (tmp_path / "corpus").mkdir()
    rows = [("a", "once", "calibration"), ("b", "once", "test"), ("c", "multimodal", "calibration")]
    rows.append(("d", "held_out", "calibration"))
    pd.DataFrame(rows, columns=["caption", "kind", "split"]).to_parquet(tmp_path / "corpus/truth.parquet")
    assert ordinary_captions(target)[0] == ["a", "d"]
