"""Which files an index may name: those of the folder that it was built of here, of its own, or of the one that is set."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from audit.cli import parser
from audit.corpus.stored import open_stored
from audit.errors import InputError
from audit.retrieval.build import build
from audit.retrieval.engines import open_index
from audit.settings import settings


def embeddings(folder):
    """One picture, with its vector as clip-retrieval leaves it."""
    for name in ("img_emb", "metadata", "images"):
        (folder / name).mkdir(parents=True)
    np.save(folder / "img_emb" / "img_emb_0.npy", np.eye(1, 8, dtype=np.float32))
    columns = {"image_id": ["a"], "image_path": ["images/a.png"], "caption": ["a"]}
    pq.write_table(pa.table(columns), folder / "metadata" / "metadata_0.parquet")
    Image.new("RGB", (8, 8), "red").save(folder / "images" / "a.png")
    return folder


@pytest.fixture
def index(tmp_path):
    build(embeddings(tmp_path / "set"), tmp_path / "index", None)
    return tmp_path / "index"


def says(index, **values):
    told = json.loads((index / "index.json").read_text()) | values
    (index / "index.json").write_text(json.dumps(told))


def names(index, path):
    table = pq.read_table(index / "metadata" / "metadata_0.parquet").to_pylist()
    pq.write_table(
        pa.Table.from_pylist([table[0] | {"image_path": path}]), index / "metadata" / "metadata_0.parquet"
    )


def shown(index):
    return open_stored(open_index(str(index)).rows[0]).shape == (8, 8, 3)


def refused(index):
    with pytest.raises(InputError, match="name that folder in VERBATIM_PICTURES"):
        shown(index)
    return True


def test_what_was_built_here_is_used_without_a_setting(index):
    assert shown(index)


@pytest.mark.parametrize("source", ["/", "../set", "..", "../index/.."])
def test_an_index_from_elsewhere_shows_no_picture_of_this_machine(index, tmp_path, source, caplog):
    names(index, str(tmp_path / "set" / "images" / "a.png"))
    says(index, source=source, left_out=1)
    assert refused(index) and "nothing here vouches for" in caplog.text


def test_what_this_one_built_vouches_for_its_own_source_only(index, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(index, elsewhere / "index")
    shutil.copytree(tmp_path / "set", elsewhere / "set")
    assert shown(index) and refused(elsewhere / "index")


def test_the_folder_that_is_set_is_not_left(index, tmp_path, monkeypatch):
    shutil.move(tmp_path / "set", tmp_path / "moved")
    assert refused(index)
    monkeypatch.setattr(settings(), "pictures", tmp_path / "moved")
    assert shown(index)
    names(index, "../moved/images/a.png")
    assert shown(index)
    for path in ("../index/a.png", "/etc/a.png"):
        names(index, path)
        assert refused(index)


def test_the_option_stands_for_the_setting(index, tmp_path, monkeypatch):
    monkeypatch.setattr(settings(), "pictures", None)
    parser().parse_args(["index", "search", str(index), "--text", "a", "--pictures", str(tmp_path)])
    assert settings().pictures == tmp_path


def test_an_index_shows_the_pictures_in_its_own_folder_and_no_link_leads_out(index, tmp_path):
    shutil.copytree(tmp_path / "set" / "images", index / "own" / "images")
    says(index, source="own")
    assert shown(index)
    shutil.rmtree(index / "own" / "images")
    (index / "own" / "images").symlink_to(tmp_path / "set" / "images")
    assert refused(index)
    (index / "own" / "images").unlink()
    (index / "own").rmdir()
    (index / "own").symlink_to(tmp_path / "set")
    assert refused(index)
