"""One caption's look, on a real tiny model."""

import math
import shutil

import numpy as np
import pytest

from audit.errors import InputError
from audit.runs.one_caption import generate, look
from audit.runs.scoring import score_batch
from audit.scores.ecs import ecs
from audit.targets.pipelines import load


@pytest.fixture(scope="module")
def target(tiny_pipeline_dir):
    return load(str(tiny_pipeline_dir), device="cpu")


CAPTIONS = [
    f"a red house and {word}"
    for word in ("cat", "dog", "tree", "flag", "star", "a", "on", "of", "the", "with")
]


def test_looks_equal_the_scores_of_a_run(target, monkeypatch):
    monkeypatch.setattr("audit.scores.ecs.EDGE_THRESHOLD", 0.4)
    seeds = (0, 1, 2, 3)
    looks = look(target, CAPTIONS, seeds)
    assert [each.caption for each in looks] == CAPTIONS
    expected = score_batch(target, CAPTIONS, seeds, 7.5, ["dcs", "magnitude", "ecs", "ecs_g1"])
    for row, each in enumerate(looks):
        assert each.pictures.shape == (4, 32, 32, 3)
        for name in ("dcs", "magnitude"):
            assert each.per_seed[name] == pytest.approx(expected.per_seed[name][row], rel=1e-5)
            assert each.scores[name].value == pytest.approx(expected.per_seed[name][row].mean(), rel=1e-5)
            assert each.scores[name].heatmap.shape == (8, 8)
        assert each.scores["dcs"].heatmap.mean() == pytest.approx(each.scores["dcs"].value, rel=1e-5)
        assert 0.01 < each.scores["ecs"].value == ecs(each.pictures) < 0.99
        assert each.scores["ecs_g1"].value == pytest.approx(expected.per_caption["ecs_g1"][row], abs=1e-3)
        assert each.scores["ecs"].heatmap.shape == (256, 256)
        assert (each.seeds, each.scores["dcs"].seeds, each.truncated) == (seeds, seeds, False)


def test_one_look_needs_one_evaluation_a_seed_when_the_empty_caption_is_known(target):
    look(target, ["a cat"], (0, 1, 2, 3))
    rows = []
    handle = target.unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    look(target, ["a dog"], (0, 1, 2, 3))
    handle.remove()
    assert rows == [4]


def test_edges_are_looked_at_in_four_pictures_whatever_is_shown(target, monkeypatch):
    monkeypatch.setattr("audit.scores.ecs.EDGE_THRESHOLD", 0.4)
    one, four = (look(target, ["a cat"], seeds)[0] for seeds in ((0,), (0, 1, 2, 3)))
    assert one.pictures.shape == (1, 32, 32, 3) and one.per_seed["dcs"].shape == (1,)
    assert one.scores["dcs"].seeds == (0,) and one.scores["ecs"].seeds == (0, 1, 2, 3)
    for name in ("ecs", "ecs_g1"):
        assert one.scores[name].value == pytest.approx(four.scores[name].value, abs=1e-3)
    many = look(target, ["a cat"], (5, 6, 7, 8, 9, 10))[0]
    assert many.pictures.shape[0] == 6 and many.scores["ecs"].seeds == (5, 6, 7, 8)
    assert many.scores["ecs"].value == ecs(many.pictures[:4])


def test_a_model_that_gives_no_numbers_is_told(tiny_pipeline_dir):
    broken = load(str(tiny_pipeline_dir), device="cpu")
    broken.unet.conv_out.weight.fill_(float("nan"))
    for ask in (look, lambda target, captions, seeds: generate(target, captions, seeds, 2, 7.5)):
        with pytest.raises(InputError, match=r"gives no numbers \(NaN\) in float32"):
            ask(broken, ["a cat"], (0,))


def test_edges_at_guidance_1_are_those_of_pictures_at_guidance_1(target, monkeypatch):
    monkeypatch.setattr("audit.scores.ecs.EDGE_THRESHOLD", 0.4)
    at_7, at_1 = (look(target, ["a cat"], (0, 1, 2, 3), guidance)[0].scores for guidance in (7.5, 1.0))
    np.testing.assert_allclose(at_7["ecs_g1"].heatmap, at_1["ecs"].heatmap, atol=1e-6)
    assert np.abs(at_7["ecs_g1"].heatmap - at_7["ecs"].heatmap).max() > 0


def test_truncation_is_told(target):
    each = look(target, ["a red house " * 30], (0,))[0]
    assert each.truncated and each.tokens > 16


def test_zero_terminal_snr_has_edge_scores_only(tiny_v_pipeline_dir, tmp_path):
    import json

    folder = shutil.copytree(tiny_v_pipeline_dir, tmp_path / "model")
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rescale_betas_zero_snr": True}))
    target = load(str(folder), device="cpu")
    assert math.isinf(target.sigma_max)
    assert set(look(target, ["a cat"], (0, 1))[0].scores) == {"ecs", "ecs_g1"}


def test_a_look_can_be_stopped_between_captions(target, monkeypatch):
    monkeypatch.setattr("audit.runs.one_caption.ROWS", 2)
    told = []

    def stop_at_the_second(done, count):
        told.append((done, count))
        if done == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        look(target, CAPTIONS[:3], (0, 1), progress=stop_at_the_second)
    assert told == [(0, 3), (1, 3)]
