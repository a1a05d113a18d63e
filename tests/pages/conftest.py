"""The real app on a tiny model with random weights and a tiny training set, with AppTest."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from streamlit.runtime.pages_manager import PagesManager

HOSTILE = "<script>alert(1)</script> **bold** :red[x] $a$ [link](http://x.invalid)"
CAPTIONS = ["red house", "blue tree", "green star", "small cat", HOSTILE, "שלום עולם 🏠"]


def build_clip(folder: Path) -> Path:
    """An open_clip folder with random weights: 32 px pictures, 16 dimensions."""
    import open_clip
    import torch
    from safetensors.torch import save_file
    from tokenizers import pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPTokenizer

    folder.mkdir()
    backend = CLIPTokenizer().backend_tokenizer
    backend.model = BPE(continuing_subword_prefix="", end_of_word_suffix="</w>")
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CAPTIONS, trainer)
    model = json.loads(backend.to_str())["model"]
    tokenizer = CLIPTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    tokenizer.save_pretrained(folder)
    text = {"context_length": 12, "vocab_size": len(tokenizer), "hf_tokenizer_name": ".", "width": 32}
    text |= {"heads": 2, "layers": 1, "pool_type": "eos", "eos_id": tokenizer.eos_token_id}
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = open_clip.create_model(f"local-dir:{folder}", load_weights=False).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    return folder


def build_corpus(folder: Path) -> Path:
    """Thirty pictures; the first four are one family, and one file is damaged after indexing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    rows = []
    for place in range(30):
        blocks = base.copy() if place < 4 else rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        if place < 4:
            blocks[2:4, 2:4] = rng.integers(0, 256, 3)
        Image.fromarray(blocks.repeat(4, 0).repeat(4, 1)).save(folder / "images" / f"p{place}.png")
        rows.append(
            {
                "image_id": f"p{place}",
                "file": f"images/p{place}.png",
                "caption": CAPTIONS[place] if place < len(CAPTIONS) else f"picture {place}",
                "title": f"Title {place}",
                "author": "A. Nonymous",
                "licence": "Public domain",
                "source": "made for a test",
                "family": "fam" if place < 4 else f"p{place}",
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "corpus.parquet")
    return folder


@pytest.fixture(scope="session")
def tiny_training_set(tmp_path_factory) -> Path:
    """A folder with ``index`` and ``templates``, built by the library."""
    from audit.images import decode, resize
    from audit.records import Template
    from audit.retrieval.build import build
    from audit.retrieval.embedding import Embedder
    from audit.verbatim.templates import TemplateLibrary

    folder = tmp_path_factory.mktemp("training_set")
    corpus = build_corpus(folder / "corpus")
    build(corpus, folder / "index", Embedder(f"local-dir:{build_clip(folder / 'clip')}", device="cpu"))
    mask = np.ones((256, 256), dtype=bool)
    mask[64:128, 64:128] = False
    image = resize(decode(corpus / "images" / "p0.png"))
    template = Template("template-p0", image, mask, ("p0", "p1", "p2", "p3"), "p0")
    TemplateLibrary((template,)).save(folder / "templates")
    return folder


class Site:
    """The tiny training set's pictures on loopback; each request waits as long as the gate is shut."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.gate = threading.Event()
        self.gate.set()
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                site.gate.wait(60)
                path = site.folder / "images" / self.path.rpartition("/")[2]
                with contextlib.suppress(OSError):  # nobody waits for it any more
                    self.send_response(200 if path.is_file() else 404)
                    self.end_headers()
                    self.wfile.write(path.read_bytes() if path.is_file() else b"")

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.host = f"127.0.0.1:{self.server.server_port}"

    def url(self, name):
        return f"http://{self.host}/{name}.png"

    def settings(self) -> dict[str, str]:
        return {
            "VERBATIM_INDEX": str(self.folder / "index"),
            "VERBATIM_OFFLINE": "0",
            "VERBATIM_FETCH_HOSTS": json.dumps([self.host]),
        }

    def close(self):
        self.gate.set()
        self.server.shutdown()


@pytest.fixture
def addresses_only(tiny_training_set, tmp_path):
    """The tiny training set as LAION metadata, indexed, its pictures no longer at hand; p29 died since."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from audit.corpus.fetch import RemoteImages
    from audit.corpus.reader import read_corpus
    from audit.retrieval.build import build
    from audit.retrieval.embedding import Embedder

    folder = tmp_path / "elsewhere"
    shutil.copytree(tiny_training_set / "corpus" / "images", folder / "images")
    site = Site(folder)
    rows = [
        {
            "image_id": row.image_id,
            "URL": site.url(row.image_id),
            "TEXT": row.caption,
            "author": row.author,
            "licence": row.licence,
        }
        for row in read_corpus(tiny_training_set / "corpus").rows
    ]
    (folder / "laion").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "laion" / "part-0.parquet")
    embedder = Embedder(f"local-dir:{tiny_training_set / 'clip'}", device="cpu")
    with RemoteImages(folder / "before", allowed_hosts=[site.host]) as remote:
        build(folder / "laion", folder / "index", embedder, remote=remote)
    (folder / "images" / "p29.png").unlink()
    yield site
    site.close()


@pytest.fixture
def environment(tiny_pipeline_dir, tiny_training_set, data_folder, tmp_path, monkeypatch):
    """Settings that name the tiny model and training set; no cache left over from another test."""
    import streamlit as st

    from audit.settings import settings

    monkeypatch.setenv("VERBATIM_MODEL", str(tiny_pipeline_dir))
    monkeypatch.setenv("VERBATIM_INDEX", str(tiny_training_set / "index"))
    monkeypatch.setenv("VERBATIM_TEMPLATES", str(tiny_training_set / "templates"))
    monkeypatch.setenv("VERBATIM_DATA_DIR", str(tmp_path))
    (tmp_path / "built").symlink_to(data_folder / "built")  # by whoever runs the dashboard
    monkeypatch.setenv("VERBATIM_DEVICE", "cpu")
    monkeypatch.setenv("VERBATIM_OFFLINE", "1")

    # AppTest forgets before each run that the app calls st.navigation, and would run a page without app.py
    monkeypatch.setattr(PagesManager, "__init__", navigated(PagesManager.__init__))

    def clear():
        settings.cache_clear()
        st.cache_resource.clear()
        st.cache_data.clear()

    clear()
    yield monkeypatch
    monkeypatch.undo()
    clear()


def navigated(init):
    def made(self, *args, **kwargs):
        init(self, *args, **kwargs)
        PagesManager.uses_pages_directory = False

    return made


@pytest.fixture
def app(environment):
    """Opens a page of the app with query parameters, once model and training set are there."""
    return Opener()


class Opener:
    def __call__(self, name: str = "", /, **params):
        from streamlit.testing.v1 import AppTest

        test = AppTest.from_file(str(Path(__file__).parents[2] / "app.py"), default_timeout=60)
        test.run()
        self.wait()
        for key, value in params.items():
            test.query_params[key] = value
        if name:
            test.switch_page(f"pages/{name}.py")
        return test.run()

    def wait(self):
        from audit.ui import bench

        for job in list(bench.owner().holding.values()):
            job.future.exception(timeout=60)


@pytest.fixture
def words():
    """Everything readable of a page, in one text."""
    return read_words


def read_words(test) -> str:
    kinds = (
        "title",
        "header",
        "subheader",
        "markdown",
        "caption",
        "info",
        "warning",
        "error",
        "success",
        "text",
    )
    parts = [str(element.value) for kind in kinds for element in getattr(test, kind)]
    parts += [element.proto.body for element in test.get("html")]
    return "\n".join(parts)
