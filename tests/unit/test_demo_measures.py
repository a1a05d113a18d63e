"""Measures of the demo, on inputs whose figures can be worked out by hand."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from audit.cli import main
from audit.demo.measures import (
    STRENGTHS,
    Strength,
    agreement,
    by_natural_template,
    copies,
    dcs_against_diffusers,
    decide_pictures,
    evenly,
    half_precision,
    masks,
    synthetic_report,
    with_pictures,
)
from audit.errors import InputError
from audit.images import png_bytes, resize
from audit.records import Template, caption_id
from audit.retrieval.build import build
from audit.retrieval.embedding import Embedder
from audit.retrieval.search import Retriever
from audit.targets.pipelines import load_component
from audit.verbatim.templates import TemplateLibrary


def picture(seed, size=64):
    return np.random.default_rng(seed).random((size, size, 3), dtype=np.float32)


def changed_box(top, bottom):
    """(64, 64) bool, True but for rows `top` to `bottom` over the left half."""
    mask = np.ones((64, 64), bool)
    mask[top:bottom, :32] = False
    return mask


def test_masks_by_hand(tmp_path):
    """One family found half as large as planted, one not at all."""
    (tmp_path / "corpus/masks").mkdir(parents=True)
    for name, mask in {"a": changed_box(0, 16), "b": changed_box(32, 48)}.items():
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"corpus/masks/{name}.png")
    found = np.repeat(np.repeat(changed_box(0, 8), 4, 0), 4, 1)
    library = TemplateLibrary(
        (
            Template("one-of-b", resize(picture(1)), found, ("b-0", "x"), "b-0"),
            Template("of-a", resize(picture(0)), found, ("a-0", "a-1", "x"), "a-0"),
        )
    )
    library.save(tmp_path / "templates")
    truth = pd.DataFrame(
        [
            {"kind": "template", "family": family, "image": f"{family}-{n}", "mask": f"{family}.png"}
            | {"split": split, "repeats": 25, "wide": family == "b"}
            for family, split in (("a", "test"), ("b", "calibration"))
            for n in range(2)
        ]
    )
    report = masks(tmp_path, truth)
    # 16 of 64 rows over half the width are planted, 8 found
    assert report["test"]["changed_iou"] == {"mean": 0.5, "min": 0.5}
    assert report["test"]["unchanged_iou"]["mean"] == pytest.approx(56 / 60, abs=1e-4)
    assert report["test"]["all_ones_changed_iou"]["mean"] == 0
    assert report["test"]["all_ones_unchanged_iou"]["mean"] == 56 / 64
    assert report["all"]["changed_iou"] == {"mean": 0.25, "min": 0}
    assert (report["all"]["families"], report["all"]["found"]) == (2, 1)
    assert report["wide"]["changed_iou"]["mean"] == 0
    a = report["families"][0]
    assert (a["members_planted"], a["members_found"], a["members_besides"]) == (2, 2, 1)


def truth_of_classes():
    rows = [
        ("own", "multimodal", "MV", "p0", "p0"),
        ("member", "template", "TV", "p1", "p1"),
        ("led", "retrieved", "RV", "p3", "p4"),
        ("dose", "multimodal", "", "p5", "p5"),
    ]
    rows += [(f"held {n}", "held_out", "N", f"h{n}", f"h{n}") for n in range(3)]
    table = pd.DataFrame(rows, columns=["caption", "kind", "expected", "image", "answer"])
    table["caption_id"] = table["caption"].map(caption_id)
    return table.assign(family=table["answer"], natural_family=False)


def test_each_caption_is_given_what_it_was_planted_with():
    shown = with_pictures(truth_of_classes()).set_index("caption")["shown"]
    assert shown[["own", "member", "led"]].to_dict() == {"own": "p0", "member": "p1", "led": "p4"}
    held_out = {name: shown[name] for name in shown.index if name.startswith("held")}
    assert set(held_out.values()) == {"h0", "h1", "h2"}
    assert all(image != f"h{name[-1]}" for name, image in held_out.items())
    assert "dose" not in shown.index


@pytest.fixture(scope="module")
def training_set(tiny_clip_dir, tmp_path_factory):
    """p1 and p2 are a template family; held-out pictures h0 to h2 are not indexed."""
    folder = tmp_path_factory.mktemp("measures")
    (folder / "corpus/images").mkdir(parents=True)
    pictures = {
        name: picture(seed) for seed, name in enumerate(["p0", "p1", "p3", "p4", "p5", "h0", "h1", "h2"])
    }
    pictures["p2"] = pictures["p1"].copy()
    pictures["p2"][:16, :32] = 1 - pictures["p2"][:16, :32]
    captions = truth_of_classes().set_index("image")["caption"].to_dict() | {"p2": "other", "p4": "answer"}
    rows = []
    for name, pixels in pictures.items():
        (folder / f"corpus/images/{name}.png").write_bytes(png_bytes(pixels))
        rows.append({"image_id": name, "file": f"images/{name}.png", "caption": captions[name]})
        rows[-1]["indexed"] = not name.startswith("h")
    pd.DataFrame(rows).to_parquet(folder / "corpus/corpus.parquet")
    build(folder / "corpus", folder / "index", Embedder(f"local-dir:{tiny_clip_dir}", device="cpu"))
    mask = np.repeat(np.repeat(changed_box(0, 18), 4, 0), 4, 1)
    library = TemplateLibrary((Template("family", resize(pictures["p1"]), mask, ("p1", "p2"), "p1"),))
    return Retriever.open(folder / "index", device="cpu"), library, pictures


def test_true_copies_get_their_class(training_set):
    retriever, library, pictures = training_set
    rows = with_pictures(truth_of_classes())
    shown = np.stack([pictures[name] for name in rows["shown"]])
    verdicts = decide_pictures(rows, shown, retriever, library)
    assert dict(zip(rows["caption"], verdicts["verdict"], strict=True)) == {
        "own": "MV", "member": "TV", "led": "RV", "held 0": "N", "held 1": "N", "held 2": "N",
    }  # fmt: skip
    assert verdicts.loc[verdicts["verdict"] == "TV", "template_id"].tolist() == ["family"]


def judged_rows():
    """An MV taken for a template that the corpus has by nature, and one for a planted one."""
    table = pd.DataFrame(
        [
            ("MV", "MV", None, "m0"),
            ("MV", "TV", "natural", "m1"),
            ("MV", "TV", "planted", "m2"),
            ("TV", "TV", "planted", "t0"),
            ("RV", "RV", None, "r0"),
            ("N", "N", None, "h0"),
            ("N", "TV", "natural", "h1"),
        ],
        columns=["expected", "verdict", "template_id", "shown"],
    )
    return table.assign(
        family=table["shown"], natural_family=False, neighbour_id=table["shown"], distance=np.arange(7.0)
    )


def test_natural_templates_count_only_for_their_members():
    ones, image = np.ones((256, 256), bool), resize(picture(0))
    library = TemplateLibrary(
        (
            Template("natural", image, ones, ("m1", "elsewhere"), "m1"),
            Template("planted", image, ones, ("t0", "m2"), "t0"),
        )
    )
    natural = by_natural_template(judged_rows(), library, planted={"t0"})
    assert natural.tolist() == [False, True, False, False, False, False, False]


def test_report_by_hand():
    judged = judged_rows()
    report = synthetic_report(judged.assign(natural=judged["shown"] == "m1"), {}, bootstraps=20)
    # accepted: MV 2 of 3, TV takes 1 right of 3, RV right, N 1 of 2
    by_class = {"MV": 0.8, "TV": 0.5, "RV": 1, "N": 2 / 3}
    f1 = {kind: row["per_caption"]["f1"]["value"] for kind, row in report["classes"].items()}
    assert f1 == pytest.approx(by_class, abs=1e-4)
    assert report["macro_f1"]["per_caption"]["value"] == pytest.approx(
        np.mean(list(by_class.values())), abs=1e-4
    )
    # as mistakes: MV 1 of 3, TV 1 right of 4
    strict = {"MV": 0.5, "TV": 0.4, "RV": 1, "N": 2 / 3}
    assert {kind: f["value"] for kind, f in report["natural_as_mistakes"]["f1"].items()} == pytest.approx(
        strict, abs=1e-4
    )
    assert report["natural"] == 1 and report["confusion"]["MV"] == {"MV": 1, "TV": 2, "RV": 0, "N": 0}
    assert report["distance_to_copied"] == {"median": 3.0, "p95": 5.7}


def test_copies_are_the_same_at_every_call_and_grow_apart(tiny_pipeline_dir):
    vae = load_component(tiny_pipeline_dir, "vae", allow_pickle=False).float().eval()
    originals = torch.from_numpy(np.stack([picture(0), picture(1)])).permute(0, 3, 1, 2) * 2 - 1
    clean = copies(vae, originals, Strength(0, 0, 100))
    assert clean.shape == (2, 64, 64, 3) and clean.dtype == np.float32
    apart = []
    for strength in STRENGTHS.values():
        pictures = copies(vae, originals, strength)
        assert np.array_equal(pictures, copies(vae, originals, strength))
        apart.append(float(np.square(pictures - clean).sum()))
    assert 0 < apart[0] < apart[1] < apart[2]


@pytest.mark.parametrize("pipeline", ["tiny_pipeline_dir", "tiny_v_pipeline_dir"])
def test_dcs_equals_diffusers(pipeline, request):
    report = dcs_against_diffusers(str(request.getfixturevalue(pipeline)), ["a red house", "the dog", ""])
    assert report["captions"] == 3 and 0 <= report["max_relative_difference"] < 1e-4


def test_half_precision_keeps_values(tiny_pipeline_dir):
    report = half_precision(str(tiny_pipeline_dir), ["a red house", "the dog", "blue star", "a small tree"])
    # bfloat16 has 8 bits: it cannot agree exactly, nor be far off
    assert 0 < report["median_relative_difference"] < 0.05 and report["captions"] == 4


def test_agreement_by_hand():
    values = agreement(np.array([1.0, 2.0, 4.0]), np.array([1.0, 5.0, 4.0]))
    # ranks 1 2 3 against 1 3 2: 1 - 6 * 2 / (3 * 8)
    assert values == {"spearman": pytest.approx(0.5), "median_relative_difference": 0}


def test_evenly():
    assert evenly(list("abcde"), 3) == ["a", "c", "e"]
    assert evenly(list("ab"), 3) == ["a", "b"]


def test_command(tmp_path, capsys):
    (tmp_path / "corpus").mkdir()
    assert main(["demo", "measure", "--demo", str(tmp_path)]) == 2
    assert "truth.parquet" in capsys.readouterr().err
    table = truth_of_classes().assign(repeats=25, split="test")
    table.to_parquet(tmp_path / "corpus/truth.parquet")
    assert main(["demo", "measure", "--demo", str(tmp_path), "--what", "mask"]) == 2
    assert "got mask" in capsys.readouterr().err
    assert main(["demo", "measure", "--demo", str(tmp_path), "--split", "half"]) == 2
    assert "it has test" in capsys.readouterr().err


def test_command_prints_json(tmp_path, capsys):
    (tmp_path / "corpus/masks").mkdir(parents=True)
    Image.fromarray(changed_box(0, 16).astype(np.uint8) * 255).save(tmp_path / "corpus/masks/a.png")
    table = truth_of_classes().assign(repeats=25, split="test", mask="a.png", wide=False)
    table.to_parquet(tmp_path / "corpus/truth.parquet")
    TemplateLibrary(()).save(tmp_path / "templates")
    assert main(["demo", "measure", "--demo", str(tmp_path), "--what", "masks"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["masks"]["test"]["families"] == 1 and report["masks"]["test"]["found"] == 0


def test_a_missing_library_is_said(tmp_path):
    with pytest.raises(InputError, match=r"templates\.parquet"):
        masks(tmp_path, truth_of_classes())
