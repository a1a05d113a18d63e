"""The benchmark measures the same thing twice: equal scores, and a share that is one."""

import pytest

from audit.runs.bench import bench, network_seconds, some_captions
from audit.targets.pipelines import load


def test_both_ways_give_the_same_scores(tiny_pipeline_dir):
    target = load(str(tiny_pipeline_dir), device="cpu")
    told = []
    found = bench(
        target,
        ["a red house", "a cat", "a red house", "🦄", "the tree"],
        rounds=2,
        batch=2,
        progress=lambda *now: told.append(now),
    )
    assert found["captions"] == 4 and found["batch"] == 2 and told == [(1, 2), (2, 2)]
    assert found["largest_relative_difference"] < 1e-4
    for name in ("one_at_a_time_per_second", "library_per_second", "times_as_fast"):
        assert 0 < found[name]["least"] <= found[name]["median"] <= found[name]["most"]
    assert 0 < found["share_outside_networks"]["median"] < 1


def test_time_in_the_networks_is_counted_and_hooks_are_removed(tiny_pipeline_dir):
    target = load(str(tiny_pipeline_dir), device="cpu")
    with network_seconds(target) as spent:
        target.encode(["a cat"])
        first = spent[0]
        target.unconditional([0])
    assert 0 < first < spent[0]
    target.encode(["a cat"])
    assert not target.unet._forward_hooks and not target.text_encoder._forward_pre_hooks


@pytest.mark.parametrize("count", [3, 5000])
def test_captions_are_distinct(count):
    captions = some_captions(count)
    assert len(set(captions)) == len(captions) == count
