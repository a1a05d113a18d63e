"""Distances by hand, masks in two dimensions, and every kind of verdict."""

import numpy as np
import pytest

from audit.errors import InputError
from audit.records import CheckStatus, Neighbour, Sample, Template, VerdictKind
from audit.verbatim.distances import blank_sse, masked_sse, sse
from audit.verbatim.masks import (
    agreement,
    changed_iou,
    check_mask,
    consensus_mask,
    edges,
    pair_mask,
)
from audit.verbatim.verdict import Thresholds, decide

VALUES = 256 * 256 * 3


def flat(value):
    return np.full((256, 256, 3), value, np.float32)


def noise(seed):
    return np.random.default_rng(seed).random((256, 256, 3), np.float32)


def at_distance(image, distance):
    """The picture moved by the same amount everywhere so that its SSE is about `distance`."""
    return np.float32(image + np.sqrt(distance / VALUES))


# Distances


def test_sse_by_hand():
    a = flat(0)
    b = flat(0)
    b[3, 4] = (0.5, 0, 1.0)
    b[255, 255, 2] = 0.25
    assert float(sse(a, b)) == pytest.approx(0.25 + 1 + 0.0625)
    assert float(sse(flat(0), flat(1))) == VALUES == 196_608


def test_sse_is_zero_on_itself_symmetric_and_never_negative():
    a, b = noise(0), noise(1)
    assert float(sse(a, a)) == 0
    assert float(sse(a, b)) == float(sse(b, a)) > 0
    assert float(sse(a, b)) == pytest.approx(((a.astype(float) - b) ** 2).sum(), rel=1e-6)


def test_distances_are_broadcast_over_leading_axes():
    stack = np.stack([flat(0), flat(0.5), flat(1)])
    assert sse(stack, flat(0)).tolist() == [0, VALUES / 4, VALUES]
    assert sse(stack[:, None], stack[None]).shape == (3, 3)
    masks = np.zeros((2, 256, 256), bool)
    masks[0] = True
    masks[1, :128] = True
    assert masked_sse(flat(0), masks, flat(0.5)).tolist() == [VALUES / 4, VALUES / 4]


def test_masked_sse_by_hand():
    """A difference of 1 in 100 masked pixels of three channels; the mask covers a quarter."""
    template, x, mask = flat(0), flat(0), np.zeros((256, 256), bool)
    mask[:128, :128] = True
    x[:10, :10] = 1
    x[200:, 200:] = 1
    assert float(masked_sse(template, mask, x)) == pytest.approx(300 / 0.25)
    assert float(masked_sse(x, mask, x)) == 0


def test_full_mask_gives_the_plain_distance():
    a, b = noise(2), noise(3)
    assert float(masked_sse(a, np.ones((256, 256), bool), b)) == pytest.approx(float(sse(a, b)), rel=1e-9)


@pytest.mark.parametrize("shape", [(256, 256), (3, 256, 256), (255, 256, 3), (64, 64, 3), (256, 256, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match="256, 256, 3"):
        sse(np.zeros(shape, np.float32), flat(0))
    with pytest.raises(InputError, match="256, 256, 3"):
        masked_sse(flat(0), np.ones((256, 256), bool), np.zeros(shape, np.float32))


def test_empty_or_misshapen_masks_are_refused():
    with pytest.raises(InputError, match="empty"):
        masked_sse(flat(0), np.zeros((256, 256), bool), flat(0))
    with pytest.raises(InputError, match="masks are"):
        masked_sse(flat(0), np.ones((64, 64), bool), flat(0))


# Masks


def test_mask_is_false_where_a_patch_changed_and_true_elsewhere():
    a = noise(0)
    b = a.copy()
    b[100:160, 40:120] = 1 - b[100:160, 40:120]
    expected = np.ones((256, 256), bool)
    expected[102:158, 42:118] = False  # two pixels less on each side: the rim
    mask = pair_mask(a, b)
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(mask, pair_mask(b, a))
    assert pair_mask(a, a).all()


def test_threshold_is_on_the_sum_over_channels():
    """0.012 in each of three channels is 0.036 in sum: over 0.03; 0.025 in one channel is under it."""
    three, one = flat(0.5), flat(0.5)
    three[80:120, 80:120] += 0.012
    one[80:120, 80:120, 1] += 0.025
    assert not pair_mask(flat(0.5), three)[100, 100]
    assert pair_mask(flat(0.5), one).all()


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_morphology_is_two_dimensional(channel):
    """A change in one channel alone marks its positions; across channels it would be eroded away."""
    b = flat(0.5)
    b[80:120, 80:120, channel] += 0.2
    assert not pair_mask(flat(0.5), b)[82:118, 82:118].any()


def test_specks_are_removed():
    a, b = flat(0.2), flat(0.8)
    b[50, 50] = a[50, 50]
    assert not pair_mask(a, b).any()
    c = flat(0.2)
    c[50, 50] = 0.9
    assert pair_mask(a, c).all()


def test_consensus_sees_what_a_pair_is_blind_to():
    """Three members, two of which have the same colour in the changed square."""
    members = np.stack([flat(0.5)] * 3)
    members[1:, 60:120, 60:120] = 0.9
    truth = np.ones((256, 256), bool)
    truth[60:120, 60:120] = False
    assert pair_mask(members[1], members[2]).all()
    assert changed_iou(consensus_mask(members), truth) > 0.85
    assert agreement(members)[90, 90] == pytest.approx(1 / 3) and agreement(members)[0, 0] == 1


def test_consensus_tolerates_one_odd_pair_in_many():
    members = np.stack([flat(0.5)] * 40)
    members[7, 10:60, 10:60] = 0.9
    assert consensus_mask(members).all()
    with pytest.raises(InputError, match="at least 2"):
        consensus_mask(members[:1])


def test_changed_iou_by_hand():
    a, b = np.ones((256, 256), bool), np.ones((256, 256), bool)
    a[:10, :10] = False
    b[:10, 5:15] = False
    assert changed_iou(a, b) == pytest.approx(50 / 150)
    assert changed_iou(np.ones((256, 256), bool), b) == 0
    assert changed_iou(a, a) == 1 == changed_iou(np.ones((2, 2), bool), np.ones((2, 2), bool))
    with pytest.raises(InputError, match="shapes"):
        changed_iou(a, b[:10])


def test_mask_over_too_little_is_refused():
    mask = np.zeros((256, 256), bool)
    mask[:100, :100] = True
    with pytest.raises(InputError, match="covers 15%"):
        check_mask(noise(0), mask)
    with pytest.raises(InputError, match="covers 0%"):
        check_mask(noise(0), ~np.ones((256, 256), bool))


def test_mask_over_something_flat_is_refused():
    rows = np.linspace(0, 1, 256, dtype=np.float32)
    gradient = np.broadcast_to(rows[:, None, None], (256, 256, 3))
    assert not edges(gradient).any()
    with pytest.raises(InputError, match="flat"):
        check_mask(gradient, np.ones((256, 256), bool))
    textured_elsewhere = noise(0)
    textured_elsewhere[:200] = 0.5
    mask = np.zeros((256, 256), bool)
    mask[:199] = True
    with pytest.raises(InputError, match="flat"):
        check_mask(textured_elsewhere, mask)
    check_mask(textured_elsewhere, np.ones((256, 256), bool))


# Verdict

OWN = noise(10)
OTHER = noise(11)
UNRELATED = noise(12)


def template_of(image, template_id="t"):
    mask = np.ones((256, 256), bool)
    mask[100:140] = False
    return Template(template_id, image, mask, ("m0", "m1"), "m0")


def neighbour(image_id, distance, blank=None):
    return Neighbour(image_id, "caption", 0.5, 0, distance, blank)


FAR = [neighbour("far", 30_000.0)]


def verdict_on(*images, **changes):
    samples = [Sample(image, seed=100 + i, steps=16, guidance=7.5) for i, image in enumerate(images)]
    arguments = {
        "own": {"own": OWN},
        "own_duplicates": set(),
        "neighbours_per_sample": [FAR] * len(images),
        "templates": [template_of(OTHER)],
    }
    return decide(samples, **(arguments | changes))


def statuses(verdict):
    return {check.kind.value: check.status.value for check in verdict.checks}


def test_not_a_copy_when_every_check_was_made():
    verdict = verdict_on(UNRELATED, UNRELATED)
    assert verdict.kind is VerdictKind.N
    assert statuses(verdict) == {"TV": "checked", "MV": "checked", "RV": "checked"}
    assert [check.looked_at for check in verdict.checks] == [2, 2, 2]
    assert verdict.threshold is None and verdict.template_id is None
    assert verdict.sse == pytest.approx(30_000, rel=0.1) and verdict.masked_sse > 2500


def test_own_image_is_matching_verbatim_by_any_seed_and_records_it():
    image = at_distance(OWN * 0.9, 0)
    verdict = verdict_on(UNRELATED, UNRELATED, at_distance(0.9 * OWN, 400), own={"own": image})
    assert verdict.kind is VerdictKind.MV
    assert verdict.seed == 102 and verdict.neighbour_id == "own" and verdict.threshold == 2500
    assert verdict.sse == pytest.approx(400, rel=0.2)
    assert "seed 102" in verdict.reason and "2,500" in verdict.reason and "3 comparisons" in verdict.reason


@pytest.mark.parametrize(("distance", "kind"), [(2499.0, VerdictKind.MV), (2501.0, VerdictKind.N)])
def test_matching_threshold(distance, kind):
    """Half a level of rounding moves a distance a little: the threshold is set where the distance is."""
    grey, sample = flat(102 / 255), flat(102 / 255)
    sample[:16] = 204 / 255
    grey[128:] = sample[128:] = 0.0
    exact = float(sse(grey, sample))
    assert exact == pytest.approx(16 * 256 * 3 * 0.4**2, rel=1e-5)
    thresholds = Thresholds(matching=exact * 2500 / distance)
    assert verdict_on(sample, own={"own": grey}, thresholds=thresholds).kind is kind


def test_retrieved_image_is_retrieved_verbatim():
    hits = [[neighbour("a", 3100.0)], [neighbour("b", 2999.0), neighbour("c", None)]]
    verdict = verdict_on(UNRELATED, UNRELATED, neighbours_per_sample=hits)
    assert verdict.kind is VerdictKind.RV
    assert (verdict.neighbour_id, verdict.seed, verdict.sse, verdict.threshold) == ("b", 101, 2999.0, 3000.0)
    assert verdict_on(UNRELATED, neighbours_per_sample=[[neighbour("a", 3000.0)]]).kind is VerdictKind.N


def test_what_a_blank_picture_reaches():
    rows = np.zeros((256, 256, 3), np.float32)
    rows[:128] = 0.5
    assert float(blank_sse(rows)) == pytest.approx(256 * 256 * 3 * 0.25**2)
    mask = np.zeros((256, 256), bool)
    mask[:128] = True
    assert float(blank_sse(rows, mask)) == pytest.approx(0, abs=1e-3)
    mask[192:] = True
    under_mask = rows[mask]
    assert float(blank_sse(rows, mask)) == pytest.approx(
        ((under_mask - under_mask.mean(0)) ** 2).sum() / mask.mean(), rel=1e-5
    )
    assert blank_sse(np.stack([rows, rows]), mask).shape == (2,)


def test_nearness_to_a_faint_picture_counts_only_where_a_blank_one_is_farther():
    """A picture of one colour is under the threshold of every faint training image."""
    faint = flat(0.5)
    faint[::16, ::16] = 1.0  # a picture of 768 values that differ by half
    blank = float(blank_sse(faint))
    assert blank < 200
    for sample, kind in ((flat(0.5), VerdictKind.N), (faint, VerdictKind.MV)):
        verdict = verdict_on(sample, own={"own": faint})
        assert verdict.kind is kind and verdict.checks[1].blank == pytest.approx(blank, rel=0.05)
    assert (
        "more than half of what a picture of one colour would reach"
        in verdict_on(flat(0.5), own={"own": faint}).reason
    )
    hits = [[neighbour("faint", 900.0, 1700.0), neighbour("told", 2000.0, 9000.0), neighbour("far", 9e4)]]
    verdict = verdict_on(UNRELATED, neighbours_per_sample=hits)
    assert (verdict.kind, verdict.neighbour_id, verdict.sse) == (VerdictKind.RV, "told", 2000.0)
    verdict = verdict_on(UNRELATED, neighbours_per_sample=[hits[0][:1]])
    assert (verdict.kind, verdict.checks[2].distance) == (VerdictKind.N, 900.0)


def test_own_image_and_its_exact_copies_are_no_retrieved_images():
    hits = [[neighbour("own", 2700.0), neighbour("copy", 2700.0), neighbour("far", 9000.0)]]
    assert verdict_on(UNRELATED, neighbours_per_sample=hits).kind is VerdictKind.RV
    verdict = verdict_on(UNRELATED, neighbours_per_sample=hits, own_duplicates={"copy"})
    assert verdict.kind is VerdictKind.N
    retrieved = verdict.checks[2]
    assert (retrieved.looked_at, retrieved.distance, retrieved.image_id) == (1, 9000.0, "far")


def test_own_images_that_share_the_caption_are_all_its_own():
    hits = [[neighbour("own", 100.0), neighbour("second", 100.0), neighbour("far", 9000.0)]] * 2
    both = {"own": OWN, "second": OTHER}
    verdict = verdict_on(UNRELATED, OTHER, own=both, neighbours_per_sample=hits, templates=[])
    assert (verdict.kind, verdict.neighbour_id, verdict.seed) == (VerdictKind.MV, "second", 101)
    assert verdict.checks[1].looked_at == 4 and verdict.checks[2].image_id == "far"
    dead = verdict_on(UNRELATED, own={"own": OWN, "second": None}, templates=[])
    assert dead.kind is VerdictKind.U and "second could not be opened" in dead.reason
    assert verdict_on(OWN, own={"own": OWN, "second": None}).kind is VerdictKind.MV


def test_template_is_looked_at_before_the_own_image():
    """The sample equals its own image, which is a member of a template."""
    verdict = verdict_on(OWN, templates=[template_of(UNRELATED, "u"), template_of(OWN, "t-own")])
    assert verdict.kind is VerdictKind.TV
    assert (verdict.template_id, verdict.neighbour_id, verdict.threshold) == ("t-own", "m0", 2500)
    assert verdict.checks[1].holds and verdict.checks[0].looked_at == 2
    assert verdict.masked_sse < 1 and "under its mask" in verdict.reason


def test_template_holds_whatever_its_varying_part_is():
    sample = OTHER.copy()
    sample[100:140] = 0
    verdict = verdict_on(UNRELATED, sample)
    assert verdict.kind is VerdictKind.TV and verdict.seed == 101
    assert verdict.masked_sse < 1 and verdict.sse == pytest.approx(40 * 256 * 3 / 3, rel=0.02)
    assert verdict_on(UNRELATED, sample, templates=[]).kind is VerdictKind.N


@pytest.mark.parametrize(
    ("changes", "statuses_expected", "words"),
    [
        ({"own": {}}, ("checked", "not available", "checked"), "is not known"),
        ({"own": {"own": None}}, ("checked", "dead link", "checked"), "own could not be opened"),
        ({"templates": None}, ("not available", "checked", "checked"), "no template library"),
        (
            {"templates_gap": "Some are missing."},
            ("not available", "checked", "checked"),
            "Some are missing.",
        ),
        ({"neighbours_per_sample": None}, ("checked", "checked", "not available"), "no index"),
        (
            {"neighbours_per_sample": [[neighbour("a", 9000.0), neighbour("b", None)]]},
            ("checked", "checked", "dead link"),
            "1 of 2 retrieved training images could not be opened",
        ),
        (
            {"neighbours_per_sample": [[neighbour("a", None)]]},
            ("checked", "checked", "dead link"),
            "1 of 1 retrieved",
        ),
    ],
)
def test_a_check_that_could_not_be_made_leaves_it_undetermined(changes, statuses_expected, words):
    verdict = verdict_on(UNRELATED, **changes)
    assert verdict.kind is VerdictKind.U
    assert tuple(statuses(verdict).values()) == statuses_expected
    assert words in verdict.reason and verdict.reason.startswith("Undetermined, not cleared")


def test_nothing_could_be_checked():
    verdict = verdict_on(UNRELATED, own={}, neighbours_per_sample=None, templates=None)
    assert verdict.kind is VerdictKind.U and "nothing could be checked" in verdict.reason
    assert (verdict.sse, verdict.masked_sse, verdict.seed, verdict.neighbour_id) == (None,) * 4


def test_a_check_that_holds_decides_whatever_else_is_missing():
    verdict = verdict_on(OWN, neighbours_per_sample=None, templates=None)
    assert verdict.kind is VerdictKind.MV and statuses(verdict)["RV"] == "not available"


def test_own_image_alone_in_the_index_leaves_nothing_to_retrieve():
    verdict = verdict_on(UNRELATED, neighbours_per_sample=[[neighbour("own", 9000.0)]])
    assert verdict.kind is VerdictKind.N
    assert verdict.checks[2].status is CheckStatus.CHECKED and verdict.checks[2].looked_at == 0


def test_template_with_an_unusable_mask_is_left_out_and_named():
    flat_template = Template("flat", flat(0.5), np.ones((256, 256), bool), ("a", "b"), "a")
    verdict = verdict_on(flat(0.5), templates=[flat_template])
    assert verdict.kind is VerdictKind.U and "flat" in verdict.checks[0].note
    verdict = verdict_on(flat(0.5), templates=[flat_template, template_of(OTHER)])
    assert verdict.kind is VerdictKind.U and verdict.checks[0].note.startswith("1 of 2 templates left out")
    assert verdict_on(OTHER, templates=[flat_template, template_of(OTHER)]).kind is VerdictKind.TV


def test_samples_and_own_image_of_any_size_are_compared_at_256():
    small = np.random.default_rng(5).random((64, 64, 3), np.float32)
    assert verdict_on(small, own={"own": small}).kind is VerdictKind.MV


def test_bad_calls_are_refused():
    with pytest.raises(InputError, match="No sample"):
        verdict_on()
    with pytest.raises(InputError, match="1 lists of neighbours were given for 2 samples"):
        verdict_on(OWN, OWN, neighbours_per_sample=[FAR])
