"""Query parameters: what is written is read again, and hostile values change nothing."""

import pytest

from audit.errors import InputError
from audit.ui import url
from audit.ui.url import Lab, Library, Repeated, Search


def listed(params):
    return {name: value if isinstance(value, list) else [value] for name, value in params.items()}


@pytest.mark.parametrize(
    "state",
    [
        Lab(),
        Lab(captions=("a red house",)),
        Lab(
            captions=("a=b&c#d", "שלום 🏠", "<b>*x*</b>"),
            seeds=(7, 0, 2147483647),
            steps=32,
            guidance=1.0,
            chosen=2,
            neighbour="00000/flags 0-1.x",
            sample=7,
            mode="masked",
            overlay="ecs",
            opacity=0,
        ),
    ],
)
def test_lab_round_trip(state):
    assert url.read_lab(listed(url.write_lab(state))) == (state, [])


@pytest.mark.parametrize("state", [Search(), Search("two words", "sub/IMG 1", "families", "f/2", 17)])
def test_search_round_trip(state):
    assert url.read_search(listed(url.write(state))) == (state, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seeds", "-1"),
        ("seeds", "0-99999999"),
        ("seeds", "٣"),
        ("seeds", "1e9"),
        ("seeds", "2147483648"),
        ("steps", "0"),
        ("steps", "101"),
        ("steps", "nan"),
        ("guidance", "nan"),
        ("guidance", "inf"),
        ("guidance", "-1"),
        ("chosen", "2"),
        ("chosen", "0"),
        ("neighbour", "a\nb"),
        ("neighbour", "a" * 301),
        ("neighbour", ""),
        ("sample", "9"),
        ("sample", "x"),
        ("mode", "<script>"),
        ("overlay", "DCS"),
        ("opacity", "101"),
        ("opacity", "9" * 5000),
        ("caption", "x" * 10_000),
        ("caption", "  \n "),
    ],
)
def test_hostile_values_are_told_and_left_out(name, value):
    state, problems = url.read_lab({name: [value]})
    assert state == Lab()
    assert len(problems) == 1
    assert len(problems[0]) < 400


def test_unknown_parameters_are_ignored():
    assert url.read_lab({"__proto__": ["x"], "page": ["3"]}) == (Lab(), [])


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0", (0,)),
        ("0-3", (0, 1, 2, 3)),
        ("3, 1;2 1", (3, 1, 2)),
        ("5 - 6", None),
        ("0–1, 9", (0, 1, 9)),
        ("", None),
    ],
)
def test_parse_seeds(text, seeds):
    if seeds is None:
        with pytest.raises(InputError):
            url.parse_seeds(text)
    else:
        assert url.parse_seeds(text) == seeds
        assert url.parse_seeds(url.seeds_text(seeds)) == seeds


def test_captions_are_kept_as_they_are_and_made_distinct():
    """Blanks tell captions of a training set apart, as they do in a run."""
    given = ["a  b ", "", " \t", "a b", "a  b", "c\td", "a b"]
    assert url.check_captions(given) == ("a  b ", "a b", "a  b", "c\td")
    state = Lab(captions=("a  b ", "a b"))
    assert url.read_lab(listed(url.write_lab(state))) == (state, [])


def test_too_many_captions_are_refused_with_the_way_out():
    with pytest.raises(InputError, match="python -m audit score"):
        url.check_captions([f"caption {n}" for n in range(17)])


@pytest.mark.parametrize(
    ("value", "read"), [("demo", "demo"), ("a/b", "a/b"), ("a\x00b", None), ("x" * 401, None), ("", None)]
)
def test_model_name(value, read):
    assert url.read_model({"model": [value]}) == read


@pytest.mark.parametrize("state", [Library(), Library("run 1", "template-sub/pic 1", 2)])
def test_templates_round_trip(state):
    assert url.read_library(listed(url.write(state))) == (state, [])


@pytest.mark.parametrize(
    "state", [Repeated(), Repeated("run 1", "verdict", "near", "images", "template-a/b c", 3)]
)
def test_duplicates_round_trip(state):
    assert url.read_repeated(listed(url.write(state))) == (state, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [("cluster", "other-x"), ("cluster", "near-\x00"), ("kind", "all"), ("run", "../x"), ("by", "")],
)
def test_duplicates_leave_out_what_is_not_allowed(name, value):
    state, problems = url.read_repeated({name: [value]})
    assert state == Repeated() and len(problems) == 1
