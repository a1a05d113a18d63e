"""Duplicates with their captions, and how often a run gives them back: numbers that can be worked out by hand."""

import json
import shutil
import tarfile
import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.cli import main
from audit.errors import InputError
from audit.images import png_bytes, resize
from audit.records import Template, caption_id
from audit.runs import duplicates as duplicates_module
from audit.runs import regurgitation as module
from audit.runs.duplicates import TABLES, Duplicates, find_duplicates, kept_duplicates, known_duplicates
from audit.runs.folder import RunFolder
from audit.runs.pictures import Pictures
from audit.runs.regurgitation import rates, regurgitation
from audit.settings import settings


def texture(seed):
    blocks = np.random.default_rng(seed).uniform(0.2, 0.8, (16, 16, 3)).astype(np.float32)
    return blocks.repeat(16, 0).repeat(16, 1)


def varied(colour):
    picture = texture(3)
    picture[64:160, 64:160] = colour
    return picture


PICTURES = {
    "a": texture(0),
    "a2": texture(0),
    "a3": texture(0) + 0.05,
    "alone": texture(1),
    "often": texture(2),
    "t0": varied(0.1),
    "t1": varied(0.5),
    "t2": varied(0.9),
}
CAPTIONS = ["cat", "cat", "dog", "alone", "often", "red", "green", "blue"]
"""Of the rows of the training set."""
TABLE = pd.DataFrame(
    {
        "image_id": ["a", "a", "often", "often", "often", "t0", "t1"],
        "caption": ["cat", "lion", "often", "one", "two", "red", "green"],
        "times": [4, 2, 30, 1, 1, 6, 6],
    }
)
"""How often they were trained."""


@pytest.fixture
def have():
    names = list(PICTURES)
    chance = np.random.default_rng(0)
    vectors = chance.standard_normal((8, 64)).astype(np.float32)
    vectors[[1, 2]] = vectors[0] + 0.01 * vectors[[1, 2]]
    vectors[[6, 7]] = vectors[5] + 0.01 * vectors[[6, 7]]
    return Pictures(
        names,
        CAPTIONS,
        [""] * 8,
        ["same", "same", *names[2:]],
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        lambda place: PICTURES[names[place]],
        "f" * 64,
    )


@pytest.fixture
def template():
    mask = np.ones((256, 256), bool)
    mask[60:164, 60:164] = False
    return Template("template-t0", PICTURES["t0"], mask, ("t0", "t1", "t2"), "t0")


@pytest.fixture
def found(have, template, tmp_path):
    TABLE.to_parquet(tmp_path / "times.parquet")
    return find_duplicates(have, [template], captions=tmp_path / "times.parquet")


def clusters_of(found):
    return found.clusters.set_index("cluster_id").to_dict("index")


def test_each_row_once_without_a_table(have, template):
    clusters = clusters_of(find_duplicates(have, [template]))
    assert set(clusters) == {"near-a", "template-t0"}
    near = clusters["near-a"]
    assert (near["images"], near["verified"], near["occurrences"]) == (3, 3, 3)
    assert (near["captions"], near["multimodal"], near["image_only"]) == (2, 2, 1)
    family = clusters["template-t0"]
    assert (family["images"], family["captions"], family["multimodal"], family["image_only"]) == (3, 3, 1, 2)


def test_members_say_what_they_are_and_how_that_is_known(found):
    rows = found.members.set_index(["cluster_id", "image_id"])
    near = rows.loc["near-a"]
    assert near["kind"].to_dict() == {"a": "exact", "a2": "exact", "a3": "near"}
    assert near["verified"].all()
    assert near.loc["a3", "sse"] == pytest.approx(196608 * 0.05**2, rel=1e-3)
    family = rows.loc["template-t0"]
    assert family["sse"].tolist() == pytest.approx([0, 0, 0])  # under the mask of what they share
    assert family["verified"].all() and set(family["kind"]) == {"template"}
    assert rows.loc["exact-often"].index.tolist() == ["often"]


def test_a_table_of_times_is_counted_by_picture_and_caption(found):
    """Of the cluster a: cat 4 times by the table and once by the other file's row, lion twice, dog once."""
    clusters = clusters_of(found)
    near = clusters["near-a"]
    assert (near["occurrences"], near["captions"], near["multimodal"], near["image_only"]) == (8, 3, 5, 3)
    often = clusters["exact-often"]
    assert (often["images"], often["occurrences"], often["multimodal"], often["image_only"]) == (1, 32, 30, 2)
    family = clusters["template-t0"]
    assert (family["occurrences"], family["captions"], family["multimodal"], family["image_only"]) == (
        13,
        3,
        6,
        7,
    )
    assert found.clusters["cluster_id"].tolist()[:2] == ["exact-often", "template-t0"]
    assert "exact-alone" not in clusters
    captions = found.captions.set_index(["picture", "caption"])
    assert captions.loc[("a", "cat"), ["times", "image_only", "cluster_id"]].tolist() == [5, 3, "near-a"]
    assert captions.loc[("t1", "green"), ["times", "image_only", "family_id"]].tolist() == [
        6,
        0,
        "template-t0",
    ]
    assert captions.loc[("alone", "alone"), ["times", "cluster_id", "family_id"]].tolist() == [1, "", ""]
    assert captions["times"].sum() == found.report["occurrences"]


def test_a_copy_of_a_member_belongs_to_its_family(have, template):
    names = [*have.image_ids, "copy of t1"]
    pictures = PICTURES | {"copy of t1": PICTURES["t1"] + 0.02}
    more = Pictures(
        names,
        [*CAPTIONS, "teal"],
        [""] * 9,
        [*have.hashes, "other"],
        np.concatenate([have.vectors, have.vectors[6:7]]),
        lambda place: pictures[names[place]],
        have.sha256,
    )
    found = find_duplicates(more, [template])
    family = found.members.loc[found.members["kind"] == "template"].set_index("image_id")
    assert set(family.index) == {"t0", "t1", "t2", "copy of t1"}
    assert family.loc["copy of t1", "verified"]
    assert clusters_of(found)["near-t1"]["images"] == 2
    assert clusters_of(found)["template-t0"]["captions"] == 4


def test_a_family_is_never_in_memory_whole(have):
    """A family of thousands is as many times 786 kB."""
    names = [f"t{number}" for number in range(200)]
    mask = np.ones((256, 256), bool)
    mask[60:164, 60:164] = False

    def picture(place):
        image = PICTURES["t0"].copy()
        image[100, 100] = place
        return image

    family = replace(
        have, image_ids=names, captions=names, picture=picture, vectors=np.ones((200, 1), np.float32)
    )
    template = Template("t", PICTURES["t0"], mask, tuple(names), "t0")
    tracemalloc.start()
    rows = duplicates_module._members_of_family(
        family, template, dict(zip(names, range(200), strict=True)), np.arange(200)
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows["sse"].tolist() == pytest.approx([0.0] * 200) and peak < 20 * 786_432


def test_a_small_variation_is_no_copy_where_a_family_is_known(have, template):
    """A square of 64 pixels, .4 lighter: an SSE of 1,966, and 12x12 of 64x64 positions in the middle of it."""
    small = PICTURES["t0"].copy()
    small[170:234, 64:128] = small[170:234, 64:128] * 0 + 0.4
    plain = PICTURES["t0"].copy()
    plain[170:234, 64:128] = 0.0
    mask = np.ones((256, 256), bool)
    mask[166:238, 60:132] = False
    pictures = PICTURES | {"t0": plain, "t1": small}
    names = have.image_ids
    varied = replace(have, picture=lambda place: pictures[names[place]])
    family = Template("t", plain, mask, ("t0", "t1"), "t0")
    assert clusters_of(find_duplicates(varied, [family]))["template-t0"]["images"] == 2
    assert clusters_of(find_duplicates(varied, []))["near-t0"]["images"] == 2


def test_a_family_of_copies_of_one_picture_is_none(have, template):
    found = find_duplicates(have, [Template("t", PICTURES["a"], template.mask, ("a", "a2", "x"), "a")])
    assert not found.report["clusters"]["template"]["clusters"]


def test_without_pictures_embeddings_alone_speak_and_say_so(have):
    blind = Pictures(
        have.image_ids, CAPTIONS, have.urls, [""] * 8, have.vectors, lambda place: None, "f" * 64
    )
    found = find_duplicates(blind)
    members = found.members.groupby("cluster_id")["image_id"].apply(set).to_dict()
    assert sorted(map(sorted, members.values())) == [["a", "a2", "a3"], ["t0", "t1", "t2"]]
    others = found.members["image_id"] != found.members["representative"]
    assert not found.members.loc[others, "verified"].any()
    assert found.report["verified_on"] == "nothing: near by embedding only"
    assert found.report["not_opened"] == 8


def test_what_was_saved_is_read_again(found, tmp_path):
    found.save(tmp_path / "out")
    again = Duplicates.load(tmp_path / "out")
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name), check_dtype=False)
    assert again.report == found.report
    (tmp_path / "out" / "clusters.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="no duplicates that can be read"):
        Duplicates.load(tmp_path / "out")


def test_each_member_and_cluster_says_to_whom_it_is_owed(have, template, tmp_path):
    owed = [(f"author of {name}", "free", f"from {name}") for name in have.image_ids]
    found = find_duplicates(replace(have, credits=owed), [template])
    for table, named in ((found.members, "image_id"), (found.clusters, "representative")):
        assert table["author"].tolist() == [f"author of {name}" for name in table[named]]
        assert set(table["licence"]) == {"free"}
        assert table["source"].tolist() == [f"from {name}" for name in table[named]]
    found.save(tmp_path)
    for name in ("clusters", "members"):  # as an earlier version wrote them
        path = tmp_path / TABLES[name]
        pd.read_parquet(path).drop(columns=["author", "licence", "source"]).to_parquet(path)
    again = Duplicates.load(tmp_path)
    assert len(again.members) == len(found.members) and set(again.clusters["author"]) == {""}


def test_duplicates_of_another_training_set_are_not_taken(found, tmp_path):
    found.save(tmp_path / "duplicates")
    assert known_duplicates(tmp_path, "f" * 64) is not None
    assert known_duplicates(tmp_path, "0" * 64) is None


def test_damaged_duplicates_of_an_index_hide_no_good_ones(found, tmp_path, monkeypatch):
    monkeypatch.setattr(settings(), "data_dir", tmp_path / "data")
    found.save(tmp_path / "duplicates")
    (tmp_path / "duplicates" / "duplicates.json").write_text("[]")
    with pytest.raises(InputError, match="no duplicates that can be read"):
        known_duplicates(tmp_path, "f" * 64)
    found.save(kept_duplicates("f" * 64))
    assert known_duplicates(tmp_path, "f" * 64).report == found.report


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Scored: all but lion; decided: cat, red, green, two (copies), often (none), one (undetermined), stranger (a copy)."""
    scores = {
        "cat": 9,
        "dog": 1,
        "alone": 1,
        "often": 9,
        "one": 9,
        "two": 1,
        "red": 9,
        "green": 1,
        "blue": np.nan,
    }
    scores |= {"stranger": 9, "strange": 1}
    verdicts = {
        "cat": ("RV", "a3"),
        "red": ("TV", "t0"),
        "green": ("MV", "t1"),
        "often": ("N", "often"),
        "two": ("PV", "often"),
        "one": ("U", None),
        "stranger": ("RV", "a"),
    }
    run = RunFolder.create(
        tmp_path / "run", {"model": "m", "model_sha256": "f", "seeds": [0], "guidance": 7.5, "noise": "cpu"}
    )
    rows = pd.DataFrame({"caption": scores, "dcs": pd.Series(scores, dtype="float32")}).assign(
        caption=list(scores), caption_id=[caption_id(text) for text in scores]
    )
    run.append({"scores": pa.Table.from_pandas(rows), "captions": pa.Table.from_pandas(rows)}, 0)
    decided = [
        {
            "caption_id": caption_id(text),
            "caption": text,
            "verdict": kind,
            "neighbour_id": name,
            "template_id": None,
        }
        for text, (kind, name) in verdicts.items()
    ]
    run.append({"verdicts": pa.Table.from_pylist(decided)})
    monkeypatch.setattr(module, "scoring", lambda run: ("dcs", 5.0))
    return run


def test_a_cluster_is_given_back_out_of_the_captions_that_were_looked_at(found, run):
    joined = regurgitation(found, run).clusters.set_index("cluster_id")
    columns = ["scored", "over_threshold", "decided", "regurgitated", "came_back"]
    assert joined.index.tolist() == found.clusters["cluster_id"].tolist()
    # cat and dog of three; the copy that came by another caption named a picture of it too
    assert joined.loc["near-a", columns].tolist() == [2, 1, 1, 1, 2]
    # one is undetermined, which is neither given back nor not
    assert joined.loc["exact-often", columns].tolist() == [3, 2, 2, 1, 1]
    assert joined.loc["template-t0", columns].tolist() == [2, 1, 2, 2, 2]


@pytest.mark.parametrize(
    "recorded", [{"training_set": {"sha256": "0" * 64}}, {"training_set": {}, "training_images": 9}]
)
def test_verdicts_of_another_training_set_are_left_out(found, run, recorded):
    """Names of pictures such as row-3 are common: those of another set counted as copies of this one's."""
    (run.path / "verdicts.json").write_text(json.dumps(recorded))
    result = regurgitation(found, run)
    assert result.clusters.columns.tolist() == ["cluster_id", "scored", "over_threshold"]
    assert result.clusters.set_index("cluster_id").loc["near-a"].tolist() == [2, 1]
    assert set(result.rates) == {"dcs"} and (result.report["scored"], result.report["decided"]) == (8, 0)
    assert "made with another training set" in result.report["verdicts_left_out"]


@pytest.mark.parametrize(
    "recorded", [{"training_set": {"sha256": "f" * 64}, "training_images": 9}, {"training_images": 8}]
)
def test_verdicts_of_this_training_set_are_joined(found, run, recorded):
    (run.path / "verdicts.json").write_text(json.dumps(recorded))
    result = regurgitation(found, run)
    near = result.clusters.set_index("cluster_id").loc["near-a"]
    assert near["came_back"] == 2 and result.report["verdicts_left_out"] is None


def test_rates_count_what_was_looked_at_and_nothing_else(found, run):
    result = regurgitation(found, run)
    assert result.report["scored"] == 8  # of ten: lion was not scored, blue is no number
    assert (result.report["decided"], result.report["undetermined"]) == (5, 1)  # a moved piece is a copy
    assert result.report["captions_not_in_training_set"] == {
        "scored": 2,
        "over_threshold": 1,
        "decided": 1,
        "regurgitated": 1,
    }
    by = {
        (row["series"], row["from"]): (row["memorised"], row["captions"]) for row in result.rates["verdict"]
    }
    assert by == {
        ("multimodal", 5): (1, 1),
        ("multimodal", 25): (0, 1),
        ("image_only", 25): (1, 1),
        ("template", 10): (2, 2),
    }
    by = {(row["series"], row["from"]): (row["memorised"], row["captions"]) for row in result.rates["dcs"]}
    assert by == {
        ("once", 1): (0, 1),  # alone
        ("multimodal", 5): (1, 1),  # cat
        ("multimodal", 25): (1, 1),  # often
        ("image_only", 5): (0, 1),  # dog, whose picture was trained 8 times
        ("image_only", 25): (1, 2),  # one and two, 32 times
        ("template", 10): (1, 2),  # red and green, 13 times the family
    }


def test_a_caption_of_two_pictures_counts_once_with_the_one_trained_most(found, run):
    more = found.captions.loc[found.captions["caption"] == "cat"].assign(
        picture="other", times=60, cluster_id=""
    )
    twice = Duplicates(found.clusters, found.members, pd.concat([found.captions, more]), found.report)
    rows = regurgitation(twice, run).rates["verdict"]
    assert sum(row["captions"] for row in rows) == 5
    assert ("multimodal", 50, 1) in [(row["series"], row["from"], row["captions"]) for row in rows]


def test_a_run_without_verdicts_or_calibration_claims_no_rate(found, tmp_path):
    run = RunFolder.create(
        tmp_path / "new", {"model": "m", "model_sha256": "f", "seeds": [0], "guidance": 7.5, "noise": "cpu"}
    )
    with pytest.raises(InputError, match="no scored captions yet"):
        regurgitation(found, run)
    rows = pa.table({"caption_id": [caption_id("cat")], "caption": ["cat"], "dcs": [3.0]})
    run.append({"scores": rows, "captions": rows}, 0)
    result = regurgitation(found, run)
    assert result.rates == {"verdict": []}
    assert (result.report["scored"], result.report["threshold_1pct_fpr"]) == (1, None)


def test_wilson_interval_by_hand():
    """5 of 10 at 95%: (.5 + z^2/20 +- z sqrt(.025 + z^2/400)) / (1 + z^2/10), z = 1.96."""
    rows = pd.DataFrame(
        {"times": 1, "image_only": 0, "family": 0, "picture": list("abcdeabcde"), "hit": [True, False] * 5}
    )
    (row,) = rates(rows, "hit")
    assert (row["series"], row["from"], row["to"], row["pictures"]) == ("once", 1, 1, 5)
    assert (row["rate"], row["low"], row["high"]) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, caption in zip(PICTURES, CAPTIONS, strict=True):
        (folder / f"{name}.png").write_bytes(png_bytes(resize(PICTURES[name], 64)))
        (folder / f"{name}.txt").write_text(caption)
    (folder / "damaged.png").write_bytes(b"\x89PNG nothing")
    (folder / "damaged.txt").write_text("damaged")
    return folder


def test_the_command_reads_a_training_set_and_an_index_alike(corpus, tiny_clip_dir, tmp_path, capsys):
    from audit.retrieval.build import build
    from audit.retrieval.embedding import Embedder

    embedder = f"local-dir:{tiny_clip_dir}"
    build(corpus, tmp_path / "index", Embedder(embedder, device="cpu"))
    reports = []
    for source in (corpus, tmp_path / "index"):
        out = tmp_path / f"{source.name}-out"
        arguments = ["duplicates", str(source), "--out", str(out), "--device", "cpu", "--embedder", embedder]
        assert main(arguments) == 0
        reports.append(json.loads(capsys.readouterr().out))
        tables = Duplicates.load(out)
        assert "near-a" in set(tables.clusters["cluster_id"])
    first, second = reports
    assert first["clusters"] == second["clusters"]
    assert (first["training_images"], first["left_out"], first["distinct_pictures"]) == (8, 1, 6)
    assert first["clusters"]["near"]["images"] == 3


def as_tar(corpus, folder):
    with tarfile.open(folder / "00000.tar", "w") as shard:
        for path in sorted(corpus.iterdir(), key=lambda path: path.stem):
            shard.add(path, path.name)


def as_parquet(corpus, folder):
    """Two files, in each of which the ids start anew."""
    pictures = sorted(corpus.glob("*.png"))
    for number in range(2):
        half = pictures[number::2]
        captions = [path.with_suffix(".txt").read_text() for path in half]
        table = {"id": range(len(half)), "image": [path.read_bytes() for path in half], "caption": captions}
        pq.write_table(
            pa.table({name: list(column) for name, column in table.items()}), folder / f"{number}.parquet"
        )


def as_nested_folders(corpus, folder):
    for number, path in enumerate(sorted(corpus.glob("*.png"))):
        place = folder / "templates" / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        for suffix in (".png", ".txt"):
            shutil.copy(path.with_suffix(suffix), place)


@pytest.mark.parametrize("form", [as_tar, as_parquet, as_nested_folders])
def test_the_command_reads_whatever_an_index_is_made_of(form, corpus, tiny_clip_dir, tmp_path, capsys):
    (tmp_path / "source").mkdir()
    form(corpus, tmp_path / "source")
    reports = []
    for source in (corpus, tmp_path / "source"):
        assert (
            main(["duplicates", str(source), "--device", "cpu", "--embedder", f"local-dir:{tiny_clip_dir}"])
            == 0
        )
        reports.append(json.loads(capsys.readouterr().out))
    same = ("clusters", "training_images", "left_out", "not_opened", "distinct_pictures", "verified_on")
    assert [reports[1][name] for name in same] == [reports[0][name] for name in same]
    assert reports[1]["clusters"]["near"]["images"] == 3 and reports[1]["clusters"]["template"]["images"] == 3


def test_the_command_reads_embeddings_and_the_pictures_that_are_there(corpus, tmp_path, capsys):
    names = list(PICTURES)
    for folder in ("img_emb", "metadata"):
        (corpus / folder).mkdir()
    vectors = np.random.default_rng(0).standard_normal((len(names) + 1, 64), np.float32)
    vectors[1:3] = vectors[0]
    np.save(corpus / "img_emb/img_emb_0.npy", vectors)
    columns = {"image_path": [*(f"{name}.png" for name in names), "gone.png"], "caption": [*CAPTIONS, "gone"]}
    pq.write_table(pa.table(columns), corpus / "metadata/metadata_0.parquet")
    assert main(["duplicates", str(corpus), "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["training_images"], found["verified_on"]) == (9, "pixels")
    assert found["clusters"]["near"]["verified"] == 3 and found["clusters"]["template"]["images"] == 3
    assert set(Duplicates.load(tmp_path / "out").clusters["cluster_id"]) == {"near-a", "template-t0"}


def test_the_command_joins_a_run(corpus, tiny_clip_dir, run, tmp_path, capsys):
    arguments = ["duplicates", str(corpus), "--device", "cpu", "--embedder", f"local-dir:{tiny_clip_dir}"]
    assert main([*arguments, "--run", str(run.path), "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["run"]["decided"] == 4
    rows = pd.read_parquet(tmp_path / "out" / "clusters.parquet").set_index("cluster_id")
    assert rows.loc["near-a", ["decided", "regurgitated"]].tolist() == [1, 1]


@pytest.mark.parametrize("fault", ["source", "run", "out", "captions"])
def test_bad_input_is_one_line(corpus, tmp_path, capsys, fault):
    (tmp_path / "file").write_text("")
    arguments = {
        "source": [str(tmp_path / "nowhere")],
        "run": [str(corpus), "--run", str(tmp_path / "nowhere")],
        "out": [str(corpus), "--out", str(tmp_path / "file")],
        "captions": [str(corpus), "--captions", str(tmp_path / "file")],
    }[fault]
    assert main(["duplicates", *arguments]) == 2
    assert capsys.readouterr().err.strip().count("\n") <= (3 if fault == "captions" else 0)
