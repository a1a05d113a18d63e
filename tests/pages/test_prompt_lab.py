"""Prompt lab: the whole way of a caption, and bad input."""

import io
import json
import zipfile

import pytest

HOSTILE = "<script>alert(1)</script> **bold** :red[x] $a$ [link](http://x.invalid)"
CAPTIONS = {"red house", "blue tree", "green star", "small cat", HOSTILE}
SHORT = {"seeds": "0-1", "steps": "2"}


def submit(page, caption):
    page.text_input(key="lab-one").set_value(caption)
    return next(button for button in page.button if button.label == "Audit").click().run()


def test_empty_page_says_what_to_do(app):
    page = app("prompt_lab")
    assert not page.exception
    assert any("Type a caption" in info.value for info in page.info)


def test_the_whole_way_of_a_caption(app, words):
    page = app("prompt_lab", caption="red house", **SHORT)
    assert not page.exception
    assert not page.error
    text = words(page)
    assert "What the model draws" in text
    assert "Nearest training images" in text
    assert "Denoising confidence" in text
    assert "No copy found" in text
    assert page.query_params["caption"] == "red house"
    assert len(page.table) == 1


def test_typing_changes_the_address_and_the_answer(app, words):
    page = submit(app("prompt_lab", **SHORT), "blue tree")
    assert not page.exception
    assert page.query_params["caption"] == "blue tree"
    assert "blue tree" in words(page)
    page = submit(page, "green star")
    assert page.query_params["caption"] == "green star"


def test_looking_again_computes_nothing(app):
    from audit.ui import bench

    page = app("prompt_lab", caption="red house", **SHORT)
    target = bench.target()
    calls = []
    denoise = target.denoise
    target.denoise = lambda *args: calls.append(1) or denoise(*args)
    page.run()
    app("prompt_lab", caption="red house", **SHORT)
    assert calls == []
    app("prompt_lab", caption="blue tree", **SHORT)
    assert calls


@pytest.mark.parametrize(
    ("caption", "sentence"),
    [
        ("", "There is no caption yet"),
        ("   \t ", "There is no caption yet"),
        ("x" * 10_000, "10,000 characters"),
    ],
)
def test_bad_captions_are_refused_in_one_sentence(app, caption, sentence, words):
    page = submit(app("prompt_lab"), caption)
    assert not page.exception
    assert any(sentence in error.value.replace("\\", "") for error in page.error)
    assert "What the model draws" not in words(page)


@pytest.mark.parametrize("caption", [HOSTILE, "שלום עולם 🏠", "\u202egnorw", "🏴‍☠️" * 20, "a" * 1_900])
def test_any_caption_is_shown_as_text_and_audited(app, caption, words):
    page = app("prompt_lab", **SHORT)
    page = submit(page, caption)
    assert not page.exception
    assert not page.error
    text = words(page)
    assert "<script>alert" not in text
    assert "What the model draws" in text
    for element in page.markdown:
        assert "**bold**" not in element.value
        assert ":red[x]" not in element.value


def test_several_captions_and_choosing_one(app, words):
    page = app("prompt_lab", caption=["red house", "blue tree", "red house"], chosen="2", **SHORT)
    assert not page.exception
    assert page.query_params["caption"] == ["red house", "blue tree"]
    assert page.query_params["chosen"] == "2"
    assert "All captions" in words(page)
    assert "blue tree" in words(page)


def test_too_many_captions_are_refused_with_the_way_out(app):
    page = app("prompt_lab")
    page.segmented_control(key="lab-source").set_value("Several").run()
    page.text_area(key="lab-several").set_value("\n".join(f"caption {n}" for n in range(17)))
    page = next(button for button in page.button if button.label == "Audit").click().run()
    assert any("python -m audit score" in error.value.replace("\\", "") for error in page.error)


def test_a_training_caption_can_be_picked(app):
    page = app("prompt_lab", **SHORT)
    page.segmented_control(key="lab-source").set_value("From the training set").run()
    assert CAPTIONS <= set(page.selectbox(key="lab-picked").options)
    page.selectbox(key="lab-picked").set_value("red house")
    page = next(button for button in page.button if button.label == "Audit").click().run()
    assert not page.exception
    assert page.query_params["caption"] == "red house"


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("captions.txt", b"red house\nblue tree\n", None),
        ("captions.csv", b"id;caption\n1;red house\n", None),
        ("captions.csv", b"a,b\n1,2\n", "has no column"),
        ("captions.txt", b"\xff\xfe\x00\xd8", "UTF-16"),
        ("captions.txt", b" \n", "is empty"),
    ],
)
def test_a_file_of_captions(app, name, data, sentence, words):
    page = app("prompt_lab", **SHORT)
    page.segmented_control(key="lab-source").set_value("From a file").run()
    page.file_uploader(key="lab-file").set_value((name, data, "text/plain"))
    page = next(button for button in page.button if button.label == "Audit").click().run()
    assert not page.exception
    if sentence is None:
        assert "red house" in page.query_params["caption"]
        assert not page.error
    else:
        told = [error.value.replace("\\", "") for error in page.error]
        assert any(sentence in error for error in told)
        assert not any("/tmp" in error for error in told)


def test_hostile_links_change_nothing_and_are_told(app):
    page = app(
        "prompt_lab",
        caption="red house",
        seeds="0-99999999",
        steps="2",
        mode="<script>",
        neighbour="../../etc/passwd\n",
    )
    assert not page.exception
    assert (
        len(
            [
                warning
                for warning in page.warning
                if "link" in warning.value.lower() or "range" in warning.value
            ]
        )
        == 3
    )
    assert "passwd" not in str(page.query_params)


def test_choosing_a_neighbour_goes_into_the_address(app):
    page = app("prompt_lab", caption="red house", **SHORT)
    buttons = [button for button in page.button if button.label == "Compare"]
    assert buttons
    chosen = buttons[-1].key.removeprefix("compare-")
    page = buttons[-1].click().run()
    assert not page.exception
    assert page.query_params["neighbour"] == chosen


def test_members_of_a_template_are_compared_under_the_mask(app):
    from audit.ui import bench, lab

    page = app("prompt_lab", caption="red house", neighbour="p1", **SHORT)
    assert not page.exception
    have, target = bench.training_set(), bench.target()
    proof = bench.kept_proof(target, "red house", (0, 1), 2, 7.5)
    pair = lab.measure(proof, proof.samples[0], "p1", have.retriever.picture("p1"), have)
    assert pair.masked is not None
    assert pair.masked_sse > 0
    assert "94%" in lab.sentences(pair, proof.samples[0])["masked"]
    other = lab.measure(proof, proof.samples[0], "p9", have.retriever.picture("p9"), have)
    assert other.masked is None


def test_everything_shown_comes_as_one_zip(app):
    from audit.ui import bench, evidence, lab
    from audit.ui.bundle import zip_bytes
    from audit.ui.url import Lab

    page = app("prompt_lab", caption=HOSTILE, **SHORT)
    assert not page.exception
    have, target = bench.training_set(), bench.target()
    look = bench.looks(target, (HOSTILE,), (0, 1), 7.5)[0]
    proof = bench.kept_proof(target, HOSTILE, (0, 1), 2, 7.5)
    near = lab.nearest(proof, 8)
    image_id, sample = lab.chosen_pair(Lab((HOSTILE,), (0, 1), 2), proof, near, have)
    data = zip_bytes(
        evidence.look_files(look, None, 0.5)
        | evidence.proof_files(proof, near, have, image_id, sample)
        | {"audit.json": evidence.facts(target, look, Lab((HOSTILE,), (0, 1), 2), proof, have)}
    )
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = set(archive.namelist())
        assert archive.testzip() is None
    assert {"audit.json", "scores.csv", "neighbours.csv", "checks.csv", "SHA256SUMS"} <= names
    assert {"one_step/seed_0.png", "full_samples/seed_1.png", "comparison/difference.png"} <= names


def test_copies_of_the_own_image_are_measured_as_own_not_as_retrieved(app):
    """At a distance between the two thresholds another image is verified, the own one and its copies are not."""
    from dataclasses import replace

    from audit.records import Neighbour
    from audit.ui import bench, lab

    app("prompt_lab", caption="red house", **SHORT)
    proof = bench.kept_proof(bench.target(), "red house", (0, 1), 2, 7.5)
    hits = tuple(Neighbour(name, "caption", 0.9, 0, sse=2700.0) for name in ("own", "copy", "other"))
    proof = replace(proof, own_id="own", own_ids=frozenset({"own", "copy"}), neighbours=(hits, ()))
    near = {entry.neighbour.image_id: (entry.own, entry.verified) for entry in lab.nearest(proof, 8)}
    assert near == {"own": (True, False), "copy": (True, False), "other": (False, True)}


@pytest.mark.parametrize("chosen", [0, 1])
def test_the_zip_is_whole_before_the_proof_is_there(app, monkeypatch, chosen):
    from audit.ui import bench, lab
    from audit.ui.url import Lab

    app("prompt_lab", **SHORT)
    captions = ("red house", HOSTILE)
    state = Lab(captions, (0, 1), 2, chosen=chosen)
    looks = bench.looks(bench.target(), captions, (0, 1), 7.5)
    made = []
    monkeypatch.setattr(lab.st, "download_button", lambda label, data, **options: made.append(data()))
    for have in (None, bench.training_set()):
        lab.download(bench.target(), looks, None, have, state)
    for data in made:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert {"audit.json", "scores.csv", "all_captions.csv"} <= set(archive.namelist())
            facts = json.loads(archive.read("audit.json"))
        assert (facts["caption"], facts["verdict"]) == (captions[chosen], None)


def test_names_of_files_are_text(app, tmp_path, words):
    (tmp_path / "calibrations").mkdir()
    (tmp_path / "calibrations" / ":red[x] **bold**.json").write_text("[]")
    page = app("prompt_lab", caption="red house", **SHORT)
    assert not page.exception
    told = next(info.value for info in page.info if "no calibration" in info.value)
    assert ":red[x]" not in told and "**bold**" not in told


def test_the_zip_is_offered(app):
    page = app("prompt_lab", caption="red house", **SHORT)
    assert any(button.proto.label == "Download everything shown" for button in page.get("download_button"))


def click(page, label):
    return next(button for button in page.button if button.label == label).click().run()


def test_stopping_is_remembered_until_asked_again(app, words):
    from audit.ui import bench
    from audit.ui.owner import LONG, Job
    from audit.ui.waiting import ASKED

    page = app("prompt_lab", **SHORT)
    key = bench.proof_key(bench.target(), "red house", (0, 1), 2, 7.5)
    job = Job(key, bench.PROVING, lambda job: None, LONG)
    job.stop()
    page.session_state[ASKED] = {key: job}
    page = submit(page, "red house")
    assert not page.exception
    assert any("stopped" in info.value for info in page.info)
    page = click(page, "Generate again")
    assert "No copy found" in words(page)


def test_a_failed_proof_is_told_and_begins_again_only_when_asked(app, monkeypatch, words):
    began = []

    def fail(*args, **kwargs):
        began.append(1)
        raise ZeroDivisionError

    with monkeypatch.context() as failing:
        failing.setattr("audit.runs.one_caption.prove", fail)
        page = app("prompt_lab", caption="red house", **SHORT)
        page = page.run().run()
        assert not page.exception
        assert len(began) == 1 and any("did not foresee" in error.value for error in page.error)
    page = click(page, "Generate again")
    assert "No copy found" in words(page)


def test_generating_all_ends_where_one_fails(app, monkeypatch):
    from audit.runs import one_caption

    prove, began = one_caption.prove, []

    def fail(target, caption, *args, **kwargs):
        began.append(caption)
        if caption == "blue tree":
            raise ZeroDivisionError
        return prove(target, caption, *args, **kwargs)

    monkeypatch.setattr(one_caption, "prove", fail)
    page = app("prompt_lab", caption=["red house", "blue tree", "green star"], **SHORT)
    page = click(page, "Generate all 3 in full").run()
    assert not page.exception
    assert began == ["red house", "blue tree"]
    assert any("did not foresee" in error.value for error in page.error)


def test_the_unexpected_becomes_one_sentence_with_a_reference(app, caplog, words):
    from audit.ui import bench

    page = app("prompt_lab")
    target = bench.target()
    target.encode = lambda captions: 1 / 0
    page = submit(page, "red house")
    assert not page.exception
    sentence = next(error.value for error in page.error if "did not foresee" in error.value)
    reference = sentence.split()[-1].strip(".")
    assert reference in caplog.text
    assert "ZeroDivisionError" not in words(page)
