"""The command line: everything that the pages do, without them.

Reports are JSON on stdout; progress and sentences for people go to stderr. Exit status: 0 done, 1 a failed
verification, 2 bad input, told in one line, 3 the disk is full, 130 stopped.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from tqdm import tqdm

from audit.errors import Cancelled, InputError
from audit.images import decode
from audit.settings import DEMO, settings, template_library
from audit.units import disk, duration

if TYPE_CHECKING:
    from audit.evidence.people import People
    from audit.retrieval.embedding import Embedder
    from audit.retrieval.search import Retriever
    from audit.retrieval.sscd import CopyDetector
    from audit.review.roles import Person
    from audit.review.store import Store
    from audit.runs.engine import Engine
    from audit.runs.verdicts import TrainingSet
    from audit.targets.base import Target
    from audit.targets.pipelines import PipelineTarget

FAILED, BAD_INPUT, DISK_FULL = 1, 2, 3
LARGEST_SEED = 2**63 - 1
SOURCES = (
    "folder with corpus.parquet, pictures with NAME.txt, img2dataset's tar or parquet, LAION metadata, or "
    "clip-retrieval's embeddings"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    asked = argparse.Namespace(command=None)
    try:
        asked = parser().parse_args(arguments)
        return asked.command(asked) or 0
    except InputError as error:
        print(f"audit: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except (KeyboardInterrupt, Cancelled):
        goes_on = asked.command in (run, score, verdict, exhibit, demo_build, index_build, index_publish)
        print(
            f"audit: stopped{'; the same command goes on where it was' if goes_on else ''}.", file=sys.stderr
        )
        return 130
    except Exception as error:
        from audit.runs.folder import disk_is_full

        if not disk_is_full(error):
            raise
        print("audit: the disk is full; make room and give the same command again.", file=sys.stderr)
        return DISK_FULL


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[:1].upper()}{message[1:]}; see `{self.prog} --help`.")


def parser() -> Parser:
    """All commands and their options."""
    root = Parser(
        prog="python -m audit", description="Which training images does a text-to-image model give back?"
    )
    commands = root.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_run(commands)
    add_score(commands)
    add_verdict(commands)
    add_calibrate(commands)
    add_evaluate(commands)
    add_index(commands)
    add_templates(commands)
    add_duplicates(commands)
    add_exhibit(commands)
    add_verify(commands)
    add_labels(commands)
    add_trail(commands)
    add_demo(commands)
    add_bench(commands)
    add_review(commands)
    return root


def add_score(commands: Any) -> None:
    command = commands.add_parser(
        "score", help="score captions by one denoising step, into a run that can be resumed"
    )
    add_scoring(command)
    add_model(command, default=settings().model)
    command.set_defaults(command=score)


def score(asked: argparse.Namespace) -> None:
    from audit.runs.captions import CaptionSource
    from audit.runs.run import score as score_run

    CaptionSource(asked.captions)  # refused before the model is loaded, if it is
    target = load_model(asked)
    noted("run_started", asked.out.name, step="score", captions=Path(asked.captions).name)
    with progress_bar("captions") as progress:
        report(
            score_run(
                target,
                asked.captions,
                asked.out,
                **scoring(asked),
                engine=engine(asked, target),
                progress=progress,
            )
        )


def add_scoring(command: argparse.ArgumentParser) -> None:
    """Options of the first step."""
    command.add_argument(
        "captions",
        help="file or folder, local or s3://, gs://, hf://, https://: .txt (one a line), .csv, .tsv, .jsonl, "
        ".parquet, webdataset .tar, or pictures with NAME.txt",
    )
    command.add_argument(
        "--out", type=Path, required=True, metavar="RUN", help="run folder; resumed when it exists"
    )
    command.add_argument("--seeds", type=seed_list, default=(0,), help="comma-separated (default: 0)")
    command.add_argument(
        "--scores",
        type=name_list,
        default=("dcs", "magnitude"),
        help="of dcs, magnitude, ecs, ecs_g1; the edge scores decode 4 pictures (default: dcs,magnitude)",
    )
    command.add_argument(
        "--guidance", type=float, default=7.5, help="classifier-free guidance (default: 7.5)"
    )
    command.add_argument("--limit", type=positive, help="look at the first N rows only")
    command.add_argument("--batch", type=positive, help="captions at once (default: as many as memory takes)")
    add_engine(command)


def scoring(asked: argparse.Namespace) -> dict[str, Any]:
    """What `add_scoring` asked for, as `audit.runs.run.score` takes it."""
    return {name: getattr(asked, name) for name in ("scores", "seeds", "guidance", "limit", "batch")}


def add_verdict(commands: Any) -> None:
    command = commands.add_parser("verdict", help="sample in full, retrieve, and decide for a run's captions")
    command.add_argument("run", type=Path, metavar="RUN", help="run folder made by score")
    add_deciding(command, "--seeds")
    which = command.add_mutually_exclusive_group()
    which.add_argument(
        "--top", type=positive, default=100, metavar="N", help="highest scores only (default: 100)"
    )
    which.add_argument("--all", action="store_true", help="every caption of the run")
    add_engine(command)
    add_model(command, default=None, help="as the run was scored by default")
    command.set_defaults(command=verdict)


def verdict(asked: argparse.Namespace) -> None:
    from audit.runs.folder import RunFolder
    from audit.runs.verdicts import decide_run

    asked.model = asked.model or RunFolder.open(asked.run).description["model"]
    training_set = open_training_set(asked)
    target = load_model(asked)
    noted("run_started", asked.run.name, step="verdict")
    with progress_bar("captions") as progress:
        report(
            decide_run(
                target,
                asked.run,
                training_set,
                seeds=asked.sample_seeds,
                steps=asked.steps,
                top=None if asked.all else asked.top,
                engine=engine(asked, target),
                progress=progress,
            )
        )


def add_deciding(command: argparse.ArgumentParser, seeds: str) -> None:
    """Options of the second step."""
    command.add_argument(
        "--index",
        default=settings().index,
        help="training set: an index folder, http(s)://HOST:PORT#INDICE of a clip-retrieval service, or "
        "milvus:URI#COLLECTION (default: as set, or the demo's)",
    )
    add_pictures(command)
    command.add_argument("--templates", type=Path, help="template library (default: the index's own)")
    command.add_argument(
        "--pieces",
        action="store_true",
        help="also look for moved pieces where nothing else holds; takes as long again, and needs `calibrate --pieces` once",
    )
    command.add_argument("--steps", type=positive, default=16, help="Heun steps (default: 16)")
    command.add_argument(
        seeds,
        dest="sample_seeds",
        type=seed_list,
        default=(0, 1, 2, 3),
        help="of full samples, comma-separated (default: 0,1,2,3)",
    )


def open_training_set(asked: argparse.Namespace) -> TrainingSet:
    from audit.runs.verdicts import TrainingSet
    from audit.verbatim.verdict import NO_LIBRARY

    opened = partial(
        TrainingSet.open, asked.index, asked.templates, device=asked.device, offline=settings().offline
    )
    if asked.pieces:
        with progress_bar("training pictures") as progress:
            training_set = opened(pieces=True, progress=progress)
    else:
        training_set = opened()
    retriever, library = training_set.retriever, training_set.library
    gap = library.gap(retriever.index.sha256, retriever.index) if library else NO_LIBRARY
    if gap:
        print(f"No verdict will be N: template copies cannot be ruled out. {gap}", file=sys.stderr)
    return training_set


def add_run(commands: Any) -> None:
    command = commands.add_parser(
        "run", help="a whole audit: score every caption, then decide for those that score highest"
    )
    add_scoring(command)
    add_deciding(command, "--sample-seeds")
    command.add_argument(
        "--top",
        type=top_share,
        default="1%",
        metavar="N",
        help="captions to generate in full: a number, a share such as 1%%, all, or 0 (default: 1%%)",
    )
    add_model(command, default=settings().model)
    command.set_defaults(command=run)


def run(asked: argparse.Namespace) -> None:
    from audit.runs.captions import CaptionSource
    from audit.runs.composed import audit_captions
    from audit.runs.plan import Plan, pace

    CaptionSource(asked.captions)
    training_set = open_training_set(asked) if asked.top != "0" else None
    target = load_model(asked)
    noted("run_started", asked.out.name, step="score and verdict", captions=Path(asked.captions).name)

    def planned(cost: Plan) -> None:
        print(
            f"{cost.captions:,} captions to score: {cost.scoring:,} evaluations of the network for the scores and "
            f"{cost.sampling:,} to generate {cost.sampled:,} in full, about "
            f"{duration(cost.seconds(pace(target)))} on {target.device}"
            f"{', divided by the workers' if asked.engine == 'ray' else ''}; {disk(cost.bytes)} on disk. "
            f"Full sampling alone would be {cost.baseline:,} evaluations.",
            file=sys.stderr,
        )

    with progress_bar("captions") as progress:
        report(
            audit_captions(
                target,
                asked.captions,
                asked.out,
                training_set,
                top=asked.top,
                **scoring(asked),
                sample_seeds=asked.sample_seeds,
                steps=asked.steps,
                engine=engine(asked, target),
                planned=planned,
                progress=progress,
            )
        )


def add_calibrate(commands: Any) -> None:
    command = commands.add_parser(
        "calibrate", help="score ordinary captions, so that scores can be placed among them"
    )
    command.add_argument("model", metavar="MODEL", help="demo, a known name, a folder or a hub id")
    command.add_argument(
        "--captions", type=Path, help="ordinary captions, 99 or more; a set that ships by default"
    )
    command.add_argument(
        "--seeds", type=seed_list, default=(0, 1, 2, 3), help="comma-separated (default: 0,1,2,3)"
    )
    command.add_argument(
        "--guidance", type=float, default=7.5, help="classifier-free guidance (default: 7.5)"
    )
    command.add_argument("--out", type=Path, help="file to write; by default where scoring looks for it")
    command.add_argument(
        "--pieces",
        action="store_true",
        help="generate the captions in full instead, and find from which score on a moved piece counts",
    )
    command.add_argument(
        "--index", default=settings().index, help="training set of --pieces: an index folder"
    )
    add_pictures(command)
    command.add_argument("--steps", type=positive, default=16, help="Heun steps of --pieces (default: 16)")
    command.add_argument("--limit", type=positive, help="so many captions only, evenly spaced")
    add_hardware(command)
    command.set_defaults(command=calibrate)


def calibrate(asked: argparse.Namespace) -> None:
    from audit.runs.calibrate import calibrate as calibrate_target
    from audit.runs.calibrate import default_path, ordinary_captions, require_enough
    from audit.runs.captions import read_captions

    given = read_captions(asked.captions) if asked.captions else None
    if given is not None:
        require_enough(given)
    target = load_model(asked)
    captions, source = (given, asked.captions.name) if given is not None else ordinary_captions(target)
    if asked.limit and asked.limit < len(captions):
        captions = [captions[place * len(captions) // asked.limit] for place in range(asked.limit)]
        require_enough(captions)
    if asked.pieces:
        calibrate_pieces(asked, target, captions, source)
        return
    with progress_bar("captions") as progress:
        calibration = calibrate_target(
            target, captions, source=source, seeds=asked.seeds, guidance=asked.guidance, progress=progress
        )
    out = asked.out or default_path(target, asked.guidance)
    calibration.save(out)
    report(
        {
            "calibration": str(out),
            "model": calibration.model,
            "model_sha256": calibration.model_sha256,
            "captions": calibration.captions,
            "source": calibration.source,
            "seeds": list(calibration.seeds),
            "guidance": calibration.guidance,
            "noise": calibration.noise,
            "threshold_1pct_fpr": {name: calibration.threshold(name, 0.01) for name in calibration.values},
        }
    )


def calibrate_pieces(asked: argparse.Namespace, target: Target, captions: Sequence[str], source: str) -> None:
    from audit.runs.pieces import FPR, Pieces, default_path, open_windows
    from audit.runs.pieces import calibrate as calibrate_target

    retriever = open_retriever(asked)
    with progress_bar("training pictures") as progress:
        windows = open_windows(retriever, progress)
    with progress_bar("captions") as progress:
        calibration = calibrate_target(
            target,
            captions,
            Pieces(windows, retriever),
            source=source,
            seeds=asked.seeds,
            steps=asked.steps,
            guidance=asked.guidance,
            progress=progress,
        )
    out = asked.out or default_path(target.sha256, retriever.index.sha256)
    calibration.save(out)
    report(
        {
            "calibration": str(out),
            "captions": calibration.captions,
            "false_positive_rate": FPR,
            "threshold": calibration.threshold,
        }
    )


def add_evaluate(commands: Any) -> None:
    command = commands.add_parser("evaluate", help="compare a run with the truth of what was planted")
    command.add_argument(
        "run", type=Path, metavar="RUN", help="run folder made by score, and verdict if there is one"
    )
    command.add_argument("--truth", type=Path, required=True, help="truth.parquet")
    command.add_argument("--split", default="test", help="half of the truth to report on (default: test)")
    command.set_defaults(command=evaluate)


def evaluate(asked: argparse.Namespace) -> None:
    from audit.runs.evaluate import evaluate as evaluate_run

    report(evaluate_run(asked.run, asked.truth, split=asked.split))


def add_index(commands: Any) -> None:
    index = commands.add_parser("index", help="build or search an index of a training set")
    kinds = index.add_subparsers(title="commands", required=True, metavar="COMMAND")

    build = kinds.add_parser("build", help="embed a training set's pictures")
    build.add_argument(
        "source",
        type=Path,
        help=f"training set: {SOURCES}",
    )
    build.add_argument("--out", type=Path, required=True, metavar="INDEX", help="folder to write")
    build.add_argument(
        "--kind",
        metavar="FAISS",
        help='faiss\'s name of the index, such as "OPQ64,IVF4096,PQ64" (default: by size)',
    )
    add_embedder(build)
    build.set_defaults(command=index_build)

    publish = kinds.add_parser(
        "publish", help="write an index's rows and vectors into Milvus, to be searched there"
    )
    publish.add_argument("index", type=Path, metavar="INDEX", help="index folder")
    publish.add_argument(
        "where",
        metavar="WHERE",
        help="milvus:FILE.db#COLLECTION (Milvus Lite) or milvus:http://HOST:PORT#COLLECTION",
    )
    add_pictures(publish)
    publish.set_defaults(command=index_publish)

    search = kinds.add_parser("search", help="nearest training images, one JSON object a line")
    search.add_argument(
        "index", metavar="INDEX", help="index folder, http(s)://HOST:PORT#INDICE, or milvus:URI#COLLECTION"
    )
    query = search.add_mutually_exclusive_group(required=True)
    query.add_argument("--text", help="words")
    query.add_argument("--image", type=Path, help="picture file")
    query.add_argument("--embedding", type=Path, help=".npy file with one vector")
    search.add_argument("-k", type=positive, default=10, help="how many (default: 10)")
    search.add_argument("--device", default=settings().device, help="auto, cpu, cuda, cuda:1 or mps")
    add_pictures(search)
    search.set_defaults(command=index_search)


class AsSet(argparse.Action):
    """An option that stands for the setting of its name."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(settings(), self.dest, values)


def add_pictures(command: argparse.ArgumentParser) -> None:
    """Option of where the pictures of an index lie that cannot say it."""
    command.add_argument(
        "--pictures",
        type=Path,
        action=AsSet,
        metavar="FOLDER",
        help="folder that the training pictures' paths start from, and outside of which none is opened: of a service, of "
        "Milvus, or of an index that was not built here (default: as set)",
    )


def add_embedder(command: argparse.ArgumentParser) -> None:
    """Options of what makes vectors of a training set."""
    command.add_argument(
        "--embedder",
        help="local-dir:FOLDER, hf-hub:OWNER/NAME or MODEL/PRETRAINED of open_clip, or sscd:FILE (default: the demo's; "
        "of embeddings, the one that made them, if it is known)",
    )
    command.add_argument(
        "--torchscript-sha256",
        default=settings().torchscript_sha256,
        metavar="HEX",
        help="allows the file of sscd:FILE with this sha256: loading it runs the code in it",
    )
    command.add_argument("--device", default=settings().device, help="auto, cpu, cuda, cuda:1 or mps")


def embedder_of(asked: argparse.Namespace) -> Embedder | CopyDetector | None:
    """The embedder that was asked for, the demo's by default; None for embeddings of which nobody says what made them."""
    from audit.corpus.sources import Kind, open_source

    if not asked.embedder and open_source(asked.source).kind is Kind.EMBEDDINGS:
        return None
    from audit.retrieval.embedding import open_embedder

    return open_embedder(
        asked.embedder or f"local-dir:{DEMO / 'clip'}",
        device=asked.device,
        offline=settings().offline,
        torchscript_sha256=asked.torchscript_sha256,
    )


def index_publish(asked: argparse.Namespace) -> None:
    from audit.retrieval.engines import publish
    from audit.retrieval.index import Index

    with progress_bar("pictures") as progress:
        count = publish(Index.open(asked.index), asked.where, progress)
    report({"index": str(asked.index), "published": asked.where, "count": count})


def index_build(asked: argparse.Namespace) -> None:
    from audit.corpus.remote import remote_images
    from audit.retrieval.build import build

    embedder = embedder_of(asked)
    with progress_bar("pictures") as progress:
        built = build(
            asked.source,
            asked.out,
            embedder,
            progress,
            remote=remote_images(),
            description=asked.kind,
            tell=lambda sentence: tqdm.write(sentence, file=sys.stderr),
        )
    report(
        {
            "index": str(asked.out),
            "count": built.count,
            "embedder": embedder.name if embedder else None,
            "embedder_sha256": embedder.sha256 if embedder else None,
            "recall_at_10": built.recall_at_10,
            "left_out": built.left_out,
            "left_out_first": [asdict(error) for error in built.errors],
        }
    )


def index_search(asked: argparse.Namespace) -> None:
    from audit.retrieval.engines import open_index

    if asked.embedding:
        vector = read_vector(asked.embedding)
        found = open_index(asked.index, vector.shape[1]).search(vector, asked.k)[0]
    elif asked.image:
        image = decode(asked.image, str(asked.image))
        found = open_retriever(asked).nearest(image, asked.k)
    else:
        found = open_retriever(asked).by_text(asked.text, asked.k)
    for neighbour in found:
        print(json.dumps(asdict(neighbour)))


def open_retriever(asked: argparse.Namespace) -> Retriever:
    from audit.retrieval.search import Retriever

    return Retriever.open(asked.index, device=asked.device, offline=settings().offline)


def add_templates(commands: Any) -> None:
    command = commands.add_parser(
        "templates", help="find the template families of an index, so that verdicts can look for their copies"
    )
    command.add_argument("index", metavar="INDEX", help="index folder")
    add_pictures(command)
    command.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder to write; a library there is replaced whole (default: INDEX/templates)",
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument(
        "--import",
        dest="imported",
        type=Path,
        metavar="FOLDER",
        help="take the templates of a library, ours or the reference's (metadata.parquet), instead of finding them",
    )
    form.add_argument(
        "--export",
        dest="exported",
        type=Path,
        metavar="FOLDER",
        help="write the index's library in the reference's form instead: metadata.parquet with url, mask_file, img_file",
    )
    command.set_defaults(command=templates)


def templates(asked: argparse.Namespace) -> None:
    from audit.retrieval.engines import open_listed
    from audit.review.store import Store
    from audit.runs.templates import export_templates, find_templates, import_templates, in_view, library_of
    from audit.settings import default_templates
    from audit.verbatim.templates import check_replaceable
    from audit.verbatim.verdict import NO_LIBRARY

    out = asked.exported or asked.out or default_templates(asked.index)
    check_replaceable(out)  # before minutes of looking for families
    index = open_listed(asked.index)
    if asked.exported:
        library = library_of(asked.index, asked.out)
        if library is None:
            raise InputError(NO_LIBRARY)
        with closing(Store.open()) as store:
            library = replace(library, templates=in_view(library.templates, index, store.hidden()))
        export_templates(library, index, out)
        noted("exported", library.index_sha256 or "-", what="templates", file=out.name)
    elif asked.imported:
        library = import_templates(asked.imported, index)
        library.save(out)
    else:
        with progress_bar("pictures") as progress:
            library = find_templates(index, progress)
        library.save(out)
    report(
        {
            "templates": str(out),
            "count": len(library.templates),
            "refused": library.refused,
            "members": sum(len(template.members) for template in library.templates),
            "training_images": len(index),
            "index_sha256": library.index_sha256,
        }
    )


def add_duplicates(commands: Any) -> None:
    command = commands.add_parser(
        "duplicates",
        help="what repeats in a training set: equal files, near-duplicates, template families; with a run, how often "
        "it is given back",
    )
    command.add_argument(
        "source",
        metavar="SOURCE",
        help=f"index folder, or a training set: {SOURCES}",
    )
    add_pictures(command)
    command.add_argument(
        "--captions",
        type=Path,
        metavar="TABLE",
        help="parquet file or folder that says with which captions each picture was trained, a row each time or with a "
        "column times; by default each row of the training set counts once",
    )
    command.add_argument(
        "--templates", type=Path, help="template library (default: the index's own, or found now)"
    )
    command.add_argument(
        "--run", type=Path, metavar="RUN", help="run folder: how often each cluster came back in it"
    )
    command.add_argument("--out", type=Path, metavar="FOLDER", help="folder for the tables and the report")
    add_embedder(command)
    command.set_defaults(command=duplicates)


def duplicates(asked: argparse.Namespace) -> None:
    from audit.corpus.remote import remote_images
    from audit.retrieval.engines import is_index, open_listed
    from audit.runs.duplicates import find_duplicates, library_templates
    from audit.runs.folder import RunFolder
    from audit.runs.pictures import Pictures
    from audit.runs.regurgitation import regurgitation

    run = RunFolder.open(asked.run) if asked.run else None
    if asked.out and asked.out.exists() and not asked.out.is_dir():
        raise InputError(f"{asked.out} is a file; name a folder for the tables.")

    with progress_bar("pictures") as progress:
        if is_index(asked.source):
            have = Pictures.of_index(open_listed(asked.source), progress)
        else:
            have = Pictures.of_source(Path(asked.source), embedder_of(asked), remote_images(), progress)
        # what lies in a training set's folder templates is no library, but pictures of it
        own = asked.templates or is_index(asked.source)
        library = library_templates(have, asked.source, asked.templates) if own else None
        found = find_duplicates(have, library, captions=asked.captions, progress=progress)
    if run:
        came_back = regurgitation(found, run)
        clusters = found.clusters.merge(came_back.clusters, on="cluster_id")
        found = replace(found, clusters=clusters, report=found.report | {"run": came_back.report})
    if asked.out:
        found.save(asked.out)
    report({"source": asked.source, **found.report} | ({"out": str(asked.out)} if asked.out else {}))


def read_vector(path: Path) -> np.ndarray:
    """One vector out of a .npy file, as (1, dimensions)."""
    try:
        vector = np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}; check the path.") from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"The file {path} is no .npy array of numbers; save one vector with numpy.save."
        ) from error
    vector = np.atleast_2d(vector)
    norm = float(np.linalg.norm(vector))
    if len(vector) != 1 or not np.isfinite(norm) or norm == 0:
        raise InputError(
            f"The file {path} holds {vector.shape} numbers; one vector other than zero is searched for."
        )
    return vector / norm


def add_exhibit(commands: Any) -> None:
    command = commands.add_parser(
        "exhibit", help="write exhibits that others can read and check: pictures, report, numbers, hashes"
    )
    command.add_argument("run", type=Path, metavar="RUN", help="run folder with verdicts")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--caption", nargs="+", metavar="ID", help="caption_id of one caption or more")
    which.add_argument(
        "--selection", type=Path, metavar="FILE", help="parquet file with caption_id, such as a selection"
    )
    which.add_argument("--verdicts", type=name_list, metavar="KINDS", help="all of these, such as MV,TV,RV")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the exhibits")
    command.add_argument("--zip", action="store_true", help="write a zip of each exhibit beside its folder")
    command.add_argument("--sign", type=Path, metavar="KEY", help="ssh key to sign the manifests with")
    command.add_argument(
        "--no-copy",
        action="store_true",
        help="leave training images out, and what they could be made of again; hashes and sources stay",
    )
    command.add_argument(
        "--licences",
        type=name_list,
        default=(),
        metavar="LIST",
        help="copy only training images whose licence in the training set's records is one of these, such as CC0,CC-BY",
    )
    command.add_argument("--language", default="en", help="of the reports (default: en)")
    add_register(command, "to append to")
    command.add_argument(
        "--index",
        default=settings().index,
        help="training set of the verdicts (default: as set, or the demo's)",
    )
    add_pictures(command)
    command.add_argument("--templates", type=Path, help="template library (default: the index's own)")
    command.add_argument("--workers", type=positive, help="processes (default: one for each processor)")
    command.set_defaults(command=exhibit)


def exhibit(asked: argparse.Namespace) -> None:
    from audit.evidence.export import Asked, export
    from audit.evidence.register import Register, register_path
    from audit.evidence.sources import Sources
    from audit.evidence.words import words
    from audit.review.trail import command_line_user

    # the page's way to stop it; SIGINT may be ignored by whatever started the dashboard
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    words(asked.language)  # refused before anything is opened
    sources = Sources(asked.run, asked.index, asked.templates, people())
    if asked.verdicts:
        captions = sources.chosen(asked.verdicts)
    else:
        captions = asked.caption or selected(asked.selection)
    with progress_bar("exhibits") as progress:
        done = export(
            sources,
            captions,
            Asked(
                asked.out,
                copy=not asked.no_copy,
                licences=asked.licences,
                language=asked.language,
                zipped=asked.zip,
                key=asked.sign,
            ),
            Register(asked.register or register_path()),
            who=command_line_user(),
            workers=asked.workers,
            progress=progress,
        )
    noted("exported", done["root"], what="exhibits", run=asked.run.name, exhibits=len(done["exhibits"]))
    report(done)
    print(
        f"Root of this export: {done['root']}. Keep it elsewhere too: it shows later that nothing was changed.",
        file=sys.stderr,
    )


def people() -> People:
    """Labels of the store; nobody's where there is none."""
    from audit.evidence.people import NO_PEOPLE, People
    from audit.review.store import Store, database_url

    where = database_url()
    if where.get_backend_name() == "sqlite" and not Path(where.database or "").is_file():
        return NO_PEOPLE
    store = Store.open()
    try:
        return People.of_store(store)
    finally:
        store.close()


def selected(path: Path) -> list[str]:
    """Captions of a selection."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=["caption_id"]).column("caption_id").to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} is no parquet file with caption_id; give a selection's file.") from error


def add_register(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument(
        "--register",
        type=Path,
        metavar="FILE",
        help=f"register of exports {what} (default: as set, or the data folder's)",
    )


def add_verify(commands: Any) -> None:
    command = commands.add_parser(
        "verify", help="check an exhibit, its zip, or a folder of exhibits, without a network"
    )
    command.add_argument("path", type=Path, metavar="DIR|ZIP", help="exhibit, its zip, or exhibits")
    add_register(command, "that vouches for it")
    command.add_argument("--root", metavar="HEX", help="root that was shown at the export")
    command.add_argument(
        "--signers", type=Path, metavar="FILE", help="allowed signers, as ssh-keygen reads them"
    )
    command.add_argument("--regenerate", action="store_true", help="make the pictures again from their seeds")
    add_model(command, default=settings().model)
    command.set_defaults(command=verify)


def verify(asked: argparse.Namespace) -> int:
    from audit.evidence.verify import Anchor
    from audit.evidence.verify import verify as verify_exhibits

    anchor = Anchor.open(asked.register, asked.root, asked.signers)
    found = verify_exhibits(asked.path, anchor, load_model(asked) if asked.regenerate else None)
    report(found)
    for each in found["findings"]:
        print(f"{each['file']}: {each['change']}. {each['sentence']}", file=sys.stderr)
    for each in found["not_checked"]:
        print(f"Not checked: {each}", file=sys.stderr)
    if found["signed_by"]:
        print(f"Signed by {found['signed_by']}.", file=sys.stderr)
    count = len(found["findings"])
    told = f"Not verified: {count} finding{'s' if count != 1 else ''}."
    print(
        "Verified: everything that was checked is as exported." if found["verified"] else told,
        file=sys.stderr,
    )
    return 0 if found["verified"] else FAILED


def add_labels(commands: Any) -> None:
    labels = commands.add_parser("labels", help="people's labels: export, import, verify, back up, restore")
    kinds = labels.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_labels_exchange(kinds)
    add_labels_keeping(kinds)


def add_labels_exchange(kinds: Any) -> None:
    export = kinds.add_parser(
        "export", help="write everybody's labels, with the end of the chain that they are of"
    )
    export.add_argument("file", type=Path, metavar="FILE", help=".parquet, .csv or .jsonl")
    form = export.add_mutually_exclusive_group()
    form.add_argument(
        "--format", choices=["parquet", "csv", "jsonl"], help="form (default: what the file's name ends with)"
    )
    form.add_argument(
        "--reference",
        action="store_true",
        help="write a ground truth as the reference does, parquet with caption, overfit_type, gen_seeds ...",
    )
    export.add_argument(
        "--run", type=Path, metavar="RUN", help="with --reference: run that gives scores and distances"
    )
    export.add_argument(
        "--base",
        metavar="NAME",
        help="with --reference: which file that came in is written again (default: the only one)",
    )
    add_who(export)
    export.set_defaults(command=labels_export)

    imported = kinds.add_parser(
        "import", help="take labels out of a file, also the reference's; twice changes nothing"
    )
    imported.add_argument("file", type=Path, metavar="FILE", help=".parquet, .csv or .jsonl")
    imported.add_argument(
        "--format", choices=["parquet", "csv", "jsonl"], help="form (default: what the file's name ends with)"
    )
    add_who(imported)
    imported.set_defaults(command=labels_import)


def add_who(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--who", metavar="NAME", help="who does it (default: VERBATIM_WHO, else the login's name)"
    )


def labels_export(asked: argparse.Namespace) -> None:
    from audit.review.exchange import export_labels
    from audit.review.reference import export_reference

    if (asked.run or asked.base) and not asked.reference:
        raise InputError(f"{'--run' if asked.run else '--base'} belongs to --reference; give it too.")
    with label_store(asked) as (store, person):
        done = (
            export_reference(store, person, asked.file, asked.run, asked.base or "")
            if asked.reference
            else export_labels(store, person, asked.file, asked.format or "")
        )
    report({"file": str(asked.file), **asdict(done)})
    if done.left_out:
        print(
            f"{done.left_out} captions were left out: people disagree, one only has answered, the reference has no word "
            "for it, or they are of another file of the reference.",
            file=sys.stderr,
        )


def labels_import(asked: argparse.Namespace) -> None:
    from audit.review.exchange import import_labels
    from audit.review.reference import import_reference, is_reference

    with label_store(asked) as (store, person):
        if is_reference(asked.file):
            done = import_reference(store, person, asked.file)
        else:
            done = import_labels(store, person, asked.file, asked.format or "")
    report({"file": str(asked.file), "added": done.added, "there": done.there, "left_out": len(done.bad)})
    for each in done.bad:
        print(f"Row {each.row}{', ' + each.column if each.column else ''}: {each.message}", file=sys.stderr)


@contextmanager
def label_store(asked: argparse.Namespace) -> Iterator[tuple[Store, Person]]:
    """The label store, and who is at it."""
    from audit.review.store import Store
    from audit.review.trail import command_line_user

    store = Store.open()
    try:
        yield store, store.enter(asked.who or command_line_user())
    finally:
        store.close()


def add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="make the embedded demo")
    kinds = demo.add_subparsers(title="commands", required=True, metavar="COMMAND")
    build = kinds.add_parser(
        "build", help="corpus, model, index, templates and calibration from Debian's packages"
    )
    build.add_argument("--out", type=Path, default=DEMO, help="folder to write (default: the shipped one)")
    build.add_argument(
        "--work",
        type=Path,
        default=settings().data_dir / "demo-build",
        help="folder for checkpoints, so that a stopped build goes on (default: in the data folder)",
    )
    build.add_argument("--seeds", type=seed_list, help="training seeds (default: the shipped one)")
    build.add_argument("--threads", type=positive, help="CPU threads (default: all)")
    build.set_defaults(command=demo_build)

    measure = kinds.add_parser(
        "measure",
        help="masks, verdicts on known copies, and numerics of the demo; a run is measured by evaluate",
    )
    measure.add_argument("--demo", type=Path, default=DEMO, help="folder (default: the shipped one)")
    measure.add_argument(
        "--what",
        type=name_list,
        help="comma-separated, of masks, synthetic, dcs, half, duplicates, pieces (default: all these); or weights, the weights that pieces are told by",
    )
    measure.add_argument("--split", default="test", help="half of the truth to report on (default: test)")
    measure.set_defaults(command=demo_measure)


def demo_build(asked: argparse.Namespace) -> None:
    from audit.demo.build import SHIPPED
    from audit.demo.build import main as build_demo

    report(build_demo(asked.out, asked.work, seeds=asked.seeds or (SHIPPED,), threads=asked.threads or 0))


def demo_measure(asked: argparse.Namespace) -> None:
    from audit.demo.build import bar
    from audit.demo.measures import WHAT, measure

    with bar() as progress:
        measures = measure(asked.demo, what=asked.what or WHAT, split=asked.split, progress=progress)
    report(measures)


def add_bench(commands: Any) -> None:
    command = commands.add_parser(
        "bench", help="captions a second, side by side with a faithful one-at-a-time loop"
    )
    command.add_argument(
        "--architecture",
        choices=["model", "sd1"],
        default="model",
        help="model: the one of --model; sd1: Stable Diffusion 1's with random weights, for a GPU",
    )
    command.add_argument("--captions", type=positive, default=512, help="how many (default: 512)")
    command.add_argument("--rounds", type=positive, default=3, help="of each, alternating (default: 3)")
    command.add_argument("--batch", type=positive, help="captions at once (default: as many as memory takes)")
    add_model(command, default=settings().model)
    command.set_defaults(command=bench)


def bench(asked: argparse.Namespace) -> None:
    from audit.runs.bench import bench as measure
    from audit.runs.bench import sd1, some_captions

    if asked.architecture == "sd1":
        target = sd1(asked.device, asked.dtype)
        if asked.compile:
            target.compile()
    else:
        target = load_model(asked)
    with progress_bar("rounds") as progress:
        report(
            measure(
                target,
                some_captions(asked.captions),
                rounds=asked.rounds,
                batch=asked.batch,
                progress=progress,
            )
        )


def add_review(commands: Any) -> None:
    review = commands.add_parser("review", help="queues of captions that people are asked about")
    kinds = review.add_subparsers(title="commands", required=True, metavar="COMMAND")
    filling = kinds.add_parser("fill", help="put captions of a run or a selection into a queue")
    filling.add_argument(
        "source", metavar="RUN|SELECTION", help="a run's folder, a selection's file, or the name of either"
    )
    filling.add_argument("--queue", required=True, metavar="NAME", help="made when there is none")
    filling.add_argument("--limit", type=positive, default=1000, help="captions at most (default: 1000)")
    filling.add_argument(
        "--gold",
        type=Path,
        metavar="FILE",
        help="parquet or CSV with caption and label: up to a tenth of the queue are known ones",
    )
    add_who(filling)
    filling.set_defaults(command=review_fill)


def add_labels_keeping(kinds: Any) -> None:
    """Verification and back-up of the label store."""
    root = kinds.add_parser("root", help="the end of the chain of events, to be kept elsewhere")
    root.set_defaults(command=labels_root)
    verify = kinds.add_parser("verify", help="whether every event is still what was written")
    verify.add_argument(
        "--root", type=Path, metavar="FILE", help="what `labels root` printed, kept elsewhere"
    )
    verify.set_defaults(command=labels_verify)
    for name, told in (("hide", "remove a training picture from view"), ("show", "bring it back")):
        view = kinds.add_parser(name, help=f"{told}: an event; its file is not touched")
        view.add_argument("sha256", metavar="SHA256", help="of the picture's file")
        view.add_argument("--reason", required=True, metavar="TEXT", help="who asked for it, and why")
        add_who(view)
        view.set_defaults(command=labels_view, hide=name == "hide")
    backup = kinds.add_parser("backup", help="the whole store into one file")
    backup.add_argument("file", type=Path, metavar="FILE", help="file to write, replaced whole")
    add_who(backup)
    backup.set_defaults(command=labels_backup)
    restore = kinds.add_parser("restore", help="a back-up into an empty store, of either kind")
    restore.add_argument("file", type=Path, metavar="FILE", help="what `labels backup` wrote")
    restore.set_defaults(command=labels_restore)


def review_fill(asked: argparse.Namespace) -> None:
    from audit.review.fill import fill, find_source, read_gold

    source = find_source(asked.source)
    gold = read_gold(asked.gold) if asked.gold else None
    with label_store(asked) as (store, person):
        report(asdict(fill(store, person, source, asked.queue, limit=asked.limit, gold=gold)))


def labels_root(asked: argparse.Namespace) -> None:
    from audit.review.store import Store

    with closing(Store.open()) as store:
        report(asdict(store.root()))


def labels_verify(asked: argparse.Namespace) -> int:
    from audit.review.masks import mask_findings
    from audit.review.store import Store
    from audit.review.verify import read_root

    root = read_root(asked.root) if asked.root else None
    with closing(Store.open()) as store:
        findings, now = store.verify(root), store.root()
        if not findings:  # else there is no event to hold a mask against
            findings = list(mask_findings(store, template_library()))
    if root is None:
        print(
            "Checked without a root: a chain that somebody computed anew is not told from the true one. Keep what "
            "`labels root` prints elsewhere, and give it with --root.",
            file=sys.stderr,
        )
    report(
        {
            "events": now.count,
            "sha256": now.sha256,
            "root": asdict(root) if root else None,
            "findings": [asdict(each) for each in findings],
        }
    )
    return FAILED if findings else 0


def labels_view(asked: argparse.Namespace) -> None:
    with label_store(asked) as (store, person):
        told = store.remove_from_view if asked.hide else store.restore_to_view
        event = told(person, asked.sha256, asked.reason)
        report({"sha256": event.subject, "hidden": asked.hide, "event": event.sha256})


def labels_backup(asked: argparse.Namespace) -> None:
    from audit.review.backup import backup
    from audit.runs.templates import versions_of

    with label_store(asked) as (store, person):
        done = backup(store, person, asked.file, versions_of(template_library()))
    noted("exported", "labels", what="back-up", file=asked.file.name)
    report({"file": str(asked.file), **asdict(done)})


def labels_restore(asked: argparse.Namespace) -> None:
    from audit.review.backup import restore
    from audit.runs.templates import versions_of

    done = restore(asked.file, versions_of(template_library()))
    report({"file": str(asked.file), **asdict(done)})


def add_trail(commands: Any) -> None:
    trail = commands.add_parser("trail", help="who loaded, ran, viewed, labelled and exported what, and when")
    kinds = trail.add_subparsers(title="commands", required=True, metavar="COMMAND")
    export = kinds.add_parser("export", help="write every event, chained by hash, with the root at the end")
    export.add_argument("file", type=Path, metavar="FILE", help="file to write, JSON lines")
    add_who(export)
    export.set_defaults(command=trail_export)
    verify = kinds.add_parser("verify", help="whether an exported trail is still what was written; offline")
    verify.add_argument("file", type=Path, metavar="FILE", help="what `trail export` wrote")
    verify.add_argument(
        "--root",
        type=Path,
        metavar="FILE",
        help="what `trail export` or `labels root` printed, kept elsewhere",
    )
    verify.set_defaults(command=trail_verify)


def trail_export(asked: argparse.Namespace) -> None:
    from audit.review.trail import export_trail

    with label_store(asked) as (store, person):
        root = export_trail(store, person, asked.file)
    noted("exported", root.sha256, what="audit trail", file=asked.file.name)
    report({"file": str(asked.file), **asdict(root)})


def trail_verify(asked: argparse.Namespace) -> int:
    from audit.review.trail import verify_trail
    from audit.review.verify import read_root

    findings, own = verify_trail(asked.file, read_root(asked.root) if asked.root else None)
    for finding in findings:
        print(f"audit: {finding.sentence}", file=sys.stderr)
    report(
        {
            "verified": not findings,
            **asdict(own),
            "against_root": bool(asked.root),
            "findings": list(map(asdict, findings)),
        }
    )
    return FAILED if findings else 0


def noted(kind: str, subject: str, **body: Any) -> None:
    """Record in the audit trail what this command does."""
    from audit.review.events import EventKind
    from audit.review.trail import note_command

    note_command(EventKind(kind), subject, body)


def add_model(
    command: argparse.ArgumentParser, *, default: str | None, help: str = "(default: %(default)s)"
) -> None:
    command.add_argument("--model", default=default, help=f"demo, a known name, a folder or a hub id {help}")
    add_hardware(command)


def add_hardware(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default=settings().device, help="auto, cpu, cuda, cuda:1 or mps")
    command.add_argument("--dtype", default=settings().dtype, help="auto, float32, bfloat16 or float16")
    command.add_argument(
        "--noise",
        choices=["cpu", "device"],
        default="cpu",
        help="where noise is drawn; device: as published CUDA runs",
    )
    command.add_argument(
        "--compile",
        action="store_true",
        help="compile the network, with CUDA graphs on a GPU: minutes before the first caption, for long runs",
    )
    command.add_argument(
        "--allow-pickle",
        action="store_true",
        help="take weights that are pickle files: they can run code when read",
    )


def add_engine(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="local: this process; ray: any number of GPUs and machines (default: local)",
    )
    command.add_argument(
        "--ray-address", help="of a running Ray cluster, auto for the one here (default: one is started)"
    )
    command.add_argument("--workers", type=positive, help="of Ray (default: one for each GPU)")


def engine(asked: argparse.Namespace, target: PipelineTarget) -> Engine:
    """Where the blocks of a run are worked on."""
    from audit.runs.engine import LOCAL
    from audit.runs.ray_engine import RayEngine
    from audit.targets.pipelines import load

    if asked.engine == "local":
        if asked.ray_address or asked.workers:
            raise InputError("--ray-address and --workers belong to --engine ray; give it too.")
        return LOCAL
    there = partial(
        load,
        str(Path(asked.model).resolve()) if Path(asked.model).is_dir() else asked.model,
        device=asked.device,
        dtype=str(target.dtype).removeprefix("torch."),  # the run's, whatever a node would choose
        noise=asked.noise,
        allow_pickle=asked.allow_pickle,
        offline=settings().offline,
        compiled=asked.compile,
    )
    return RayEngine(there, asked.ray_address, asked.workers)


def load_model(asked: argparse.Namespace) -> PipelineTarget:
    from audit.targets.pipelines import load

    print(f"Loading {asked.model} ...", file=sys.stderr)
    target = load(
        asked.model,
        device=asked.device,
        dtype=asked.dtype,
        noise=asked.noise,
        allow_pickle=asked.allow_pickle,
        offline=settings().offline,
        compiled=asked.compile,
    )
    noted(
        "model_loaded", target.name, sha256=target.sha256, device=str(target.device), dtype=str(target.dtype)
    )
    return target


def report(content: Any) -> None:
    """JSON on stdout."""
    print(json.dumps(content, indent=2))


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, moved by calls with (done, total)."""
    with tqdm(unit=f" {unit}", file=sys.stderr, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def top_share(text: str) -> str:
    """A number of captions, a share of them, or ``all``."""
    try:
        valid = text.strip().lower() == "all" or 0 <= float(text.strip().removesuffix("%")) < 1e12
        valid = valid and (text.strip().endswith(("%", "all")) or text.strip().isdigit())
    except ValueError:
        valid = False
    if not valid:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of captions; write 100, 1% or all")
    return text.strip()


def seed_list(text: str) -> tuple[int, ...]:
    """Comma-separated seeds, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) <= LARGEST_SEED for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of seeds such as 0,1,2,3")
    return tuple(dict.fromkeys(int(part) for part in parts))


def name_list(text: str) -> tuple[str, ...]:
    """Comma-separated names, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
