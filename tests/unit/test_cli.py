"""The command line on real tiny models: JSON on stdout, one line on stderr for bad input, exit status."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from audit.cli import main, parser
from audit.runs.folder import RunFolder
from audit.settings import settings


@pytest.fixture(autouse=True)
def offline(own_data_folder, monkeypatch):
    monkeypatch.setattr(settings(), "offline", True)


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a red house\na cat\na red house\n\nשלום 🦄\n")
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    rows = []
    for i, caption in enumerate(["a red house", "a cat", "a blue tree", "a dog"]):
        blocks = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(folder / f"images/p{i}.png")
        rows.append({"image_id": f"p{i}", "file": f"images/p{i}.png", "caption": caption, "author": "N. N."})
    pd.DataFrame(rows).to_parquet(folder / "corpus.parquet")
    return folder


@pytest.fixture(scope="module")
def index(corpus, tiny_clip_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("index") / "index"
    embedder = f"local-dir:{tiny_clip_dir}"
    assert (
        main(["index", "build", str(corpus), "--out", str(out), "--embedder", embedder, "--device", "cpu"])
        == 0
    )
    return out


def succeed(capsys, *arguments):
    """Run a command; the JSON it reports."""
    status = main([*map(str, arguments)])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return json.loads(captured.out)


def refused(capsys, match, *arguments):
    """Run a command that is refused with status 2, one line, and nothing on stdout."""
    status = main([*map(str, arguments)])
    captured = capsys.readouterr()
    assert status == 2 and captured.out == ""
    lines = [line for line in captured.err.splitlines() if line and not line.startswith("Loading ")]
    assert len(lines) == 1, lines
    assert match in lines[0]


def test_score_and_resume(capsys, captions, tmp_path, tiny_pipeline_dir):
    command = ["score", captions, "--out", tmp_path / "run", "--model", tiny_pipeline_dir, "--seeds", "0,3"]
    first = succeed(capsys, *command, "--engine", "local", "--noise", "cpu")
    assert (first["captions"], first["scored_now"], first["empty"], first["seeds"]) == (3, 3, 1, [0, 3])
    assert succeed(capsys, *command)["scored_now"] == 0
    assert len(RunFolder.open(tmp_path / "run").table("scores")) == 6
    refused(capsys, "was made with guidance 7.5 and not 2.0", *command, "--guidance", "2")


def test_score_by_name_of_scores_and_limit(capsys, captions, tmp_path, tiny_pipeline_dir):
    out = tmp_path / "run"
    succeed(
        capsys,
        "score",
        captions,
        "--out",
        out,
        "--model",
        tiny_pipeline_dir,
        "--scores",
        "ecs,dcs",
        "--limit",
        2,
    )
    table = RunFolder.open(out).table("captions")
    assert len(table) == 2 and {"dcs", "ecs"} <= set(table.columns) and "magnitude" not in table.columns
    assert table["ecs"].between(0, 1).all()


def test_calibrate_then_score_with_percentiles(capsys, captions, tmp_path, tiny_pipeline_dir):
    ordinary = tmp_path / "ordinary.txt"
    ordinary.write_text("\n".join(f"a {i} tree" for i in range(99)))
    report = succeed(capsys, "calibrate", tiny_pipeline_dir, "--captions", ordinary, "--seeds", "0")
    assert report["captions"] == 99 and set(report["threshold_1pct_fpr"]) == {
        "dcs",
        "magnitude",
        "ecs",
        "ecs_g1",
    }
    scored = succeed(capsys, "score", captions, "--out", tmp_path / "run", "--model", tiny_pipeline_dir)
    assert scored["calibrated"]
    assert RunFolder.open(tmp_path / "run").table("captions")["dcs_percentile"].between(0, 100).all()
    ordinary.write_text("a tree")
    refused(capsys, "1 ordinary captions are too few", "calibrate", tiny_pipeline_dir, "--captions", ordinary)


def test_evaluate(capsys, captions, tmp_path, tiny_pipeline_dir):
    run = tmp_path / "run"
    succeed(capsys, "score", captions, "--out", run, "--model", tiny_pipeline_dir)
    truth = pd.DataFrame(
        {
            "caption": ["a red house", "a cat"],
            "kind": ["multimodal", "held_out"],
            "repeats": [50, 0],
            "family": ["x", "y"],
            "split": "test",
            "expected": ["MV", "N"],
        }
    )
    truth.to_parquet(tmp_path / "truth.parquet")
    report = succeed(capsys, "evaluate", run, "--truth", tmp_path / "truth.parquet")
    assert report["scores"]["dcs"]["memorised"] == {"captions": 1, "clusters": 1}
    assert "verdicts" not in report
    assert "0 ordinary captions are too few" in report["scores"]["dcs"]["dose_response"]["not_available"]
    refused(
        capsys,
        "no captions of split 'x'",
        "evaluate",
        run,
        "--truth",
        tmp_path / "truth.parquet",
        "--split",
        "x",
    )


def search(capsys, *arguments):
    assert main(["index", "search", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_index_search_by_image_text_and_embedding(capsys, corpus, index, tmp_path):
    found = search(capsys, index, "--image", corpus / "images/p2.png", "-k", 3)
    assert len(found) == 3
    assert (found[0]["image_id"], found[0]["sse"], found[0]["author"]) == ("p2", 0, "N. N.")
    assert len(search(capsys, index, "--text", "a cat")) == 4
    from audit.retrieval.index import Index

    np.save(tmp_path / "v.npy", 7 * Index.open(index).vectors()[1])
    by_vector = search(capsys, index, "--embedding", tmp_path / "v.npy", "-k", 1)
    assert by_vector[0]["image_id"] == "p1" and by_vector[0]["similarity"] == pytest.approx(1, abs=1e-5)


def test_templates_of_an_index(capsys, tmp_path, tiny_clip_dir):
    """Three pictures that differ in one square are a family; the library is looked for beside its index."""
    (tmp_path / "corpus").mkdir()
    generator = np.random.default_rng(3)
    shared = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for place in range(5):
        picture = shared.copy() if place < 3 else generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        picture[8:24, 8:24] = generator.integers(0, 256, 3)
        Image.fromarray(picture).resize((256, 256), Image.Resampling.NEAREST).save(
            tmp_path / f"corpus/p{place}.png"
        )
        (tmp_path / f"corpus/p{place}.txt").write_text(f"picture {place}")
    index = tmp_path / "index"
    embedder = ["--embedder", f"local-dir:{tiny_clip_dir}", "--device", "cpu"]
    succeed(capsys, "index", "build", tmp_path / "corpus", "--out", index, *embedder)
    report = succeed(capsys, "templates", index)
    assert (report["templates"], report["count"], report["members"]) == (str(index / "templates"), 1, 3)
    from audit.retrieval.index import Index
    from audit.runs.templates import library_of

    library, opened = library_of(index), Index.open(index)
    assert set(library.templates[0].members) == {"p0", "p1", "p2"}
    assert library.gap(opened.sha256, opened) == ""
    assert library_of(tmp_path / "elsewhere") is None
    succeed(capsys, "templates", index, "--out", tmp_path / "other")
    assert library_of(index, tmp_path / "other").index_sha256 == opened.sha256
    refused(capsys, "something else", "templates", index, "--out", tmp_path / "corpus")
    refused(capsys, "There is no index folder", "templates", tmp_path / "nowhere")
    for command in ("templates", "duplicates"):
        refused(capsys, "does not list what it holds", command, "milvus:nowhere.db")
        refused(capsys, "does not list what it holds", command, "http://127.0.0.1:1")


def test_bad_searches(capsys, index, tmp_path):
    picture = tmp_path / "x.png"
    picture.write_bytes(b"\x89PNG nonsense")
    refused(capsys, "is not a JPEG, PNG, WebP or GIF", "index", "search", index, "--image", picture)
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused(capsys, "is no .npy array", "index", "search", index, "--embedding", tmp_path / "object.npy")
    np.save(tmp_path / "many.npy", np.ones((2, 16)))
    refused(
        capsys, "one vector other than zero", "index", "search", index, "--embedding", tmp_path / "many.npy"
    )
    np.save(tmp_path / "zero.npy", np.zeros(16))
    refused(
        capsys, "one vector other than zero", "index", "search", index, "--embedding", tmp_path / "zero.npy"
    )
    np.save(tmp_path / "wide.npy", np.ones(17))
    refused(capsys, "16 dimensions", "index", "search", index, "--embedding", tmp_path / "wide.npy")
    refused(capsys, "There is no file", "index", "search", index, "--embedding", tmp_path / "nowhere.npy")
    refused(capsys, "One of the arguments --text --image --embedding is required", "index", "search", index)
    refused(capsys, "There is no index folder", "index", "search", tmp_path / "nowhere", "--text", "a")


def test_bad_input_is_one_line_and_status_2(capsys, captions, tmp_path, tiny_pipeline_dir):
    model = ["--model", tiny_pipeline_dir]
    out = ["--out", tmp_path / "run"]
    refused(capsys, "There is no file", "score", tmp_path / "nowhere.txt", *out, *model)
    refused(capsys, "no model folder", "score", captions, *out, "--model", tmp_path / "nowhere")
    refused(capsys, "offline mode is on", "score", captions, *out, "--model", "nobody/nothing-here")
    refused(capsys, "got bright", "score", captions, *out, *model, "--scores", "bright")
    refused(capsys, "not a list of seeds", "score", captions, *out, *model, "--seeds", "0;1")
    refused(capsys, "not a list of seeds", "score", captions, *out, *model, "--seeds", str(2**64))
    refused(capsys, "whole number of 1 or more", "score", captions, *out, *model, "--limit", "0")
    refused(capsys, "invalid choice: 'spark'", "score", captions, *out, *model, "--engine", "spark")
    refused(capsys, "arguments are required: captions, --out", "score")
    refused(capsys, "arguments are required: COMMAND")
    refused(capsys, "is no run", "evaluate", tmp_path, "--truth", captions)
    refused(capsys, "is no run", "verdict", tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n")
    refused(capsys, "holds no captions", "score", tmp_path / "empty.txt", *out, *model)
    assert not (tmp_path / "run").exists()


def test_process_status_and_streams(captions, tmp_path, tiny_pipeline_dir):
    def run(*arguments):
        command = [sys.executable, "-m", "audit", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)

    done = run("score", captions, "--out", tmp_path / "run", "--model", tiny_pipeline_dir)
    assert done.returncode == 0 and json.loads(done.stdout)["scored_now"] == 3
    assert "Traceback" not in done.stderr
    bad = run("score", tmp_path / "nowhere.txt", "--out", tmp_path / "run2")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == f"audit: There is no file {tmp_path / 'nowhere.txt'}; check the path.\n"


def test_every_option_has_help():
    def walk(command):
        for action in command._actions:
            if isinstance(action.choices, dict):
                for child in action.choices.values():
                    walk(child)
            else:
                assert action.help, f"{command.prog} {action.dest}"

    walk(parser())


def test_index_of_tar_shards_and_of_embeddings(capsys, corpus, tmp_path, tiny_clip_dir):
    import io
    import tarfile

    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards/00000.tar", "w") as shard:
        for number in range(3):
            for name, data in (
                (f"00000{number}.png", (corpus / f"images/p{number}.png").read_bytes()),
                (f"00000{number}.txt", f"caption {number}".encode()),
            ):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                shard.addfile(entry, io.BytesIO(data))
    embedder = ["--embedder", f"local-dir:{tiny_clip_dir}", "--device", "cpu"]
    report = succeed(capsys, "index", "build", tmp_path / "shards", "--out", tmp_path / "tars", *embedder)
    assert (report["count"], report["left_out"], report["recall_at_10"]) == (3, 0, 1.0)
    found = search(capsys, tmp_path / "tars", "--image", corpus / "images/p2.png", "-k", 1)
    assert (found[0]["image_id"], found[0]["sse"], found[0]["caption"]) == ("000002", 0, "caption 2")

    for name in ("img_emb", "metadata"):
        (tmp_path / "emb" / name).mkdir(parents=True)
    np.save(tmp_path / "emb/img_emb/img_emb_0.npy", np.eye(5, 8, dtype=np.float16))
    columns = {"image_path": [f"{n}.jpg" for n in range(5)], "caption": list("abcde")}
    pq.write_table(pa.table(columns), tmp_path / "emb/metadata/metadata_0.parquet")
    report = succeed(capsys, "index", "build", tmp_path / "emb", "--out", tmp_path / "vectors")
    assert (report["count"], report["embedder"]) == (5, None)
    np.save(tmp_path / "v.npy", np.eye(5, 8, dtype=np.float32)[3])
    assert (
        search(capsys, tmp_path / "vectors", "--embedding", tmp_path / "v.npy", "-k", 1)[0]["caption"] == "d"
    )
    refused(capsys, "VERBATIM_EMBEDDER", "index", "search", tmp_path / "vectors", "--text", "a")
    refused(capsys, "no place to publish to", "index", "publish", tmp_path / "vectors", "/somewhere")


def test_templates_in_the_references_form(capsys, tmp_path, index):
    from audit.records import Template
    from audit.verbatim.templates import TemplateLibrary

    generator = np.random.default_rng(0)
    image = generator.random((256, 256, 3), dtype=np.float32)
    mask = np.ones((256, 256), bool)
    mask[:64, :64] = False
    TemplateLibrary((Template("t", image, mask, ("p0", "p1"), "p0"),)).save(tmp_path / "library")
    report = succeed(
        capsys, "templates", index, "--out", tmp_path / "library", "--export", tmp_path / "reference"
    )
    assert (report["templates"], report["count"]) == (str(tmp_path / "reference"), 1)
    assert (tmp_path / "reference/metadata.parquet").is_file()
    report = succeed(
        capsys, "templates", index, "--import", tmp_path / "reference", "--out", tmp_path / "back"
    )
    assert (report["count"], report["index_sha256"]) == (1, "imported")
    taken = TemplateLibrary.load(tmp_path / "back").templates[0]
    assert taken.image_id == "p0" and (taken.mask == mask).all()
    refused(capsys, "give a template library", "templates", index, "--import", tmp_path / "nothing")


def test_a_picture_removed_from_view_is_in_no_export_of_templates(capsys, tmp_path, index):
    from audit.records import Template
    from audit.retrieval.index import Index
    from audit.verbatim.templates import TemplateLibrary

    image = np.random.default_rng(0).random((256, 256, 3), dtype=np.float32)
    mask = np.ones((256, 256), bool)
    mask[:64, :64] = False
    templates = [Template(name, image, mask, (name, "p2"), name) for name in ("p0", "p1")]
    TemplateLibrary(tuple(templates)).save(tmp_path / "library")
    digest = Index.open(index).row("p0").sha256
    to = ("templates", index, "--out", tmp_path / "library", "--export", tmp_path / "reference")
    refused(capsys, "is no sha256", "labels", "hide", "p0", "--reason", "asked", "--who", "ann")
    report = succeed(capsys, "labels", "hide", digest, "--reason", "its author asked", "--who", "ann")
    assert report["sha256"] == digest and report["hidden"]
    assert succeed(capsys, *to)["count"] == 1
    refused(capsys, "may not remove", "labels", "show", digest, "--reason", "why not", "--who", "bob")
    assert not succeed(capsys, "labels", "show", digest, "--reason", "a mistake", "--who", "ann")["hidden"]
    assert succeed(capsys, *to)["count"] == 2
