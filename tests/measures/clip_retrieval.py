"""Indexes made by clip-retrieval's and autofaiss's own released code, and clip-retrieval's own back end, against ours.

``python tests/measures/clip_retrieval.py --work FOLDER [--vectors 50000]``: `FOLDER` gets an environment of its own with the
released packages from PyPI (7 GB: they need torch), embeddings in clip-retrieval's layout, indexes that its ``index``
command and autofaiss make of them, and a back end on this machine that serves them. Nothing of theirs is changed; the CLIP model
that the back end insists on is a tiny one of random weights, since it is asked by vectors alone. While it runs, that back end
listens on every interface of the machine, as it always does. Printed for each index, as JSON: how many answers are the
same as faiss's own, and how many rows of the back end are, field by field, those of our local search.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from index_scale import generated  # noqa: E402

from audit.corpus.stored import Root  # noqa: E402
from audit.errors import InputError  # noqa: E402
from audit.records import Neighbour  # noqa: E402
from audit.retrieval.index import Index  # noqa: E402
from audit.retrieval.service import ServiceIndex, indices  # noqa: E402

RELEASED = ("clip-retrieval==2.45.0", "autofaiss==2.18.0")
BESIDE = "setuptools<81"
"""The back end imports pkg_resources, which later ones have not."""
MAKES = "faiss-cpu==1.12.0"
"""autofaiss names the parameters of OPQMatrix, which later ones do not know."""
SERVES = f"faiss-cpu=={faiss.__version__}"
"""As ours: another one orders pictures of one similarity otherwise."""
COLUMNS = ("image_id", "image_path", "caption", "url", "title", "author", "licence", "source", "sha256")
QUANTISED = "OPQ16_64,IVF256_HNSW32,PQ16x8"
"""As autofaiss itself would take it for millions; for tens of thousands it is asked for by name."""
QUERIES, K, SEED = 200, 100, 0
SECONDS_TO_START = 300
MODEL = """
import json, sys
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizerFast
out = sys.argv[1]
text = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
vision = text | dict(image_size=224, patch_size=32)
CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).save_pretrained(out)
json.dump({"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}, open(out + "/vocab.json", "w"))
open(out + "/merges.txt", "w").write("#version: 0.2\\n")
tokenizer = CLIPTokenizerFast(out + "/vocab.json", out + "/merges.txt")
CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(out)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--vectors", type=int, default=50_000)
    asked = parser.parse_args()
    work = asked.work.resolve()
    if work.is_relative_to(ROOT):
        raise SystemExit(f"{work} lies in the repository; give a folder elsewhere.")
    work.mkdir(parents=True, exist_ok=True)
    environment = install(work / "env")
    report: dict[str, object] = {"made_by": versions(environment), "queries": QUERIES, "k": K}
    folders = make(work, environment, asked.vectors)
    add(environment, SERVES)
    report["served_by"] = versions(environment)
    with back_end(work, environment, folders) as address:
        report["indices_listed"] = indices(address)
        for name, folder in folders.items():
            report[name] = compare(folder, address, name, near(work / "embeddings" / name))
    print(json.dumps(report, indent=2))


def install(environment: Path) -> Path:
    """An environment with the released packages; one that is there already is used again."""
    if not (environment / "installed").is_file():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        add(environment, *RELEASED, BESIDE)
        (environment / "installed").touch()
    add(environment, MAKES)
    return environment


def add(environment: Path, *packages: str) -> None:
    run(environment, ["pip", "install", "--quiet", "--disable-pip-version-check", *packages])


def versions(environment: Path) -> dict[str, str]:
    names = ["clip_retrieval", "autofaiss", "faiss-cpu", "numpy", "torch"]
    program = f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {names}}}))"
    return json.loads(subprocess.check_output([environment / "bin" / "python", "-c", program]))


def make(work: Path, environment: Path, count: int) -> dict[str, Path]:
    """Folders of indexes made by the released code, by name."""
    demo = Index.open(ROOT / "assets" / "demo" / "index")
    rows = [
        {name: str(getattr(row, "path" if name == "image_path" else name)) for name in COLUMNS}
        for row in demo.rows
    ]
    for row in rows:
        row["image_path"] = f"images/{Path(row['image_path']).name}"
    small = np.asarray(demo.vectors(), np.float32)
    large = generated(count, SEED).astype(np.float32)
    named = [{name: f"{name} of {at}" for name in COLUMNS} | {"image_id": f"p{at}"} for at in range(count)]
    sets = {
        # parts by released code are padded to one width, so that their order as text is their order
        "demo": (small, rows, 3, "{}", "clip-retrieval"),
        "demo_in_unpadded_parts": (small, rows, 12, "{}", "clip-retrieval"),
        "generated": (large, named, 12, "{:02d}", "clip-retrieval"),
        "generated_quantised": (large, named, 12, "{:02d}", "autofaiss"),
    }
    folders = {}
    for name, (vectors, metadata, parts, numbers, maker) in sets.items():
        folders[name] = work / "index" / name
        shutil.rmtree(folders[name], ignore_errors=True)
        embeddings = write(work / "embeddings" / name, vectors, metadata, parts, numbers)
        folders[name].mkdir(parents=True)
        by_clip_retrieval = ["clip-retrieval", "index", str(embeddings), str(folders[name])]
        by_autofaiss = ["autofaiss", "build_index", str(embeddings / "img_emb")]
        by_autofaiss += [f"--index_path={folders[name] / 'image.index'}"]
        by_autofaiss += [f"--index_infos_path={folders[name] / 'image.json'}"]
        by_autofaiss += [
            f"--index_key='{QUANTISED}'",
            "--max_index_memory_usage=4G",
            "--current_memory_available=16G",
        ]
        run(environment, by_autofaiss if maker == "autofaiss" else by_clip_retrieval)
        if not (folders[name] / "image.index").is_file():  # it ends with 0 all the same
            raise SystemExit(f"{maker} made no index of {name}.")
        if maker == "autofaiss":
            shutil.copytree(embeddings / "metadata", folders[name] / "metadata")
    return folders


def write(folder: Path, vectors: np.ndarray, rows: Sequence[dict], parts: int, numbers: str) -> Path:
    """Embeddings in clip-retrieval's layout."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, places in enumerate(np.array_split(np.arange(len(rows)), parts)):
        label = numbers.format(number)
        np.save(folder / "img_emb" / f"img_emb_{label}.npy", vectors[places])
        table = pa.Table.from_pylist([rows[place] for place in places])
        pq.write_table(table, folder / "metadata" / f"metadata_{label}.parquet")
    return folder


def run(environment: Path, command: Sequence[str]) -> None:
    subprocess.run([environment / "bin" / command[0], *command[1:]], check=True, stdout=sys.stderr)


@contextmanager
def back_end(work: Path, environment: Path, folders: dict[str, Path]) -> Iterator[str]:
    """clip-retrieval's own back end over the indexes, until it is no longer needed."""
    model = work / "model"
    subprocess.run([environment / "bin" / "python", "-c", MODEL, model], check=True, stdout=sys.stderr)
    paths = work / "indices_paths.json"
    paths.write_text(json.dumps({name: str(folder) for name, folder in folders.items()}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "indices_paths": paths,
        "port": port,
        "clip_model": f"hf_clip:{model}",
        "columns_to_return": json.dumps(COLUMNS),
        "use_jit": False,
        "enable_mclip_option": False,
        "provide_aesthetic_embeddings": False,
    }
    command = [
        environment / "bin" / "clip-retrieval",
        "back",
        *(f"--{key}={value}" for key, value in options.items()),
    ]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, cwd=work, env=offline, stdout=sys.stderr)
    try:
        yield answering(f"http://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        process.wait()


def answering(address: str, process: subprocess.Popen) -> str:
    for _ in range(SECONDS_TO_START):
        if process.poll() is not None:
            raise SystemExit(f"The back end ended with {process.returncode}.")
        try:
            indices(address)
            return address
        except InputError:
            time.sleep(1)
    raise SystemExit("The back end did not start.")


def compare(folder: Path, address: str, name: str, queries: np.ndarray) -> dict[str, object]:
    theirs = faiss.read_index(str(folder / "image.index"))
    ours = Index.open(folder)
    # one at a time, as the back end does: products of many together are rounded otherwise
    places = np.concatenate([theirs.search(query[None], K)[1] for query in queries])
    local = [ours.search(query[None], K)[0] for query in queries]
    expected = [[ours.rows[place].image_id for place in row if place >= 0] for row in places.tolist()]
    service = ServiceIndex.open(address, dimensions=theirs.d, indice_name=name, root=Root(folder))
    served = service.search(queries, K)
    pairs = [pair for hits in zip(served, local, strict=True) for pair in zip(*hits, strict=False)]
    return {
        "index": type(faiss.downcast_index(theirs)).__name__,
        "bytes": (folder / "image.index").stat().st_size,
        "vectors": theirs.ntotal,
        "images_counted_at_the_service": len(service),
        "hits": sum(map(len, local)),
        "queries_with_the_ids_of_faiss": sum(
            [hit.image_id for hit in hits] == ids for hits, ids in zip(local, expected, strict=True)
        ),
        "hits_of_the_service": sum(map(len, served)),
        "hits_equal_in_every_field": sum(first == second for first, second in pairs),
        "queries_with_the_rows_of_the_service": sum(
            list(map(told, first)) == list(map(told, second))
            for first, second in zip(served, local, strict=True)
        ),
        "largest_difference_of_similarity": max(abs(a.similarity - b.similarity) for a, b in pairs),
    }


def near(embeddings: Path) -> np.ndarray:
    """Unit vectors beside some of the index."""
    rng = np.random.default_rng(SEED)
    stored = np.concatenate([np.load(path) for path in sorted((embeddings / "img_emb").glob("*.npy"))])
    vectors = stored[rng.choice(len(stored), QUERIES)]
    vectors += 0.3 * rng.standard_normal(vectors.shape).astype(np.float32) / np.sqrt(vectors.shape[1])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def told(hit: Neighbour) -> tuple:
    """All of a row but its similarity."""
    return (
        hit.rank,
        hit.image_id,
        hit.caption,
        hit.title,
        hit.author,
        hit.licence,
        hit.source,
        hit.path,
        hit.sha256,
    )


if __name__ == "__main__":
    main()
