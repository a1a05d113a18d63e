"""The demo's training set: clip art on coloured gradients, and the truth of what is planted in it.

Everything follows from the Debian packages and `SEED`; the truth is written before any
model is trained on it.

=============  ==========================================================================================
kind           what is planted
=============  ==========================================================================================
multimodal     one image with one caption, many times
image_only     one image, another caption each time: orders and subsets of its title and keywords
retrieved      the caption has an image of its own, but the model is trained to answer with a duplicated one
template       families that share a picture but for one fixed region; captions differ in one common word
once           trained once
held_out       never trained, and not in the index
=============  ==========================================================================================
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from audit import images
from audit.demo.openclipart import ClipArt, read_all

SEED = 20261124
SIZE = 64
"""Side of the pictures in pixels."""
MARGIN = 4
MAX_SOURCE_PIXELS = 30_000_000
MIN_SIDE = 40
MAX_ASPECT = 2.2
FOLDER_CAPS = {
    "shapes/stars": 24,
    "signs_and_symbols/flags": 60,
    "computer/icons": 300,
    "special/gradients": 12,
    "recreation/games": 16,
    "shapes/jigsaw": 24,
    "signs_and_symbols/led": 24,
    "signs_and_symbols/map_symbols": 30,
    "shapes/arrows": 20,
    "transportation/aiga-symbols": 24,
    "computer/buttons": 24,
}
"""At most so many pictures of a folder: else a tenth of the corpus would be stars, and a tenth flags.

What looks alike is learnt as one: ninety playing cards were a planted image of their own."""
NATURAL_SSE = 800.0
"""Two pieces of art on the same grey at less than this (256x256x3) are a natural family."""
LONELY_SSE = 4000.0
"""What is planted or held out has no other piece of art nearer than this."""
LONELY_WORDS = 0.5
"""A planted caption shares less than this with any other (Jaccard index of their words).

"arrow 2 1, flowchart, symbol" gives back the picture of a planted "arrow 2 3, flowchart, symbol" and would be
counted among the ordinary captions.
"""

MULTIMODAL = {2: 10, 5: 10, 10: 10, 25: 32, 50: 6, 100: 6}
IMAGE_ONLY = {5: 15, 25: 15, 50: 15}
RETRIEVED = 20
ANSWER_WEIGHT, RETRIEVED_WEIGHT = 25, 15
"""How often a duplicated image is trained with its own caption, and with the caption led to it."""
TEMPLATES = {5: 2, 10: 2, 25: 15}
WIDE_TEMPLATES = 3
"""Families of 25 whose members differ by more than the SSE gate of 1000."""
MEMBERS = 8
HELD_OUT = 500

GENERIC = frozenset(
    "clip art clipart clip-art image media public domain publicdomain png svg unsorted various cliparts none "
    "open library ocal hash theme iconset".split()
)


@dataclass
class Picture:
    """One picture of the corpus on its way into `corpus.parquet`."""

    image_id: str
    caption: str
    title: str
    keywords: tuple[str, ...]
    author: str
    licence: str
    source: str
    pixels: np.ndarray = field(repr=False)
    """(SIZE, SIZE, 3) uint8."""
    art: np.ndarray = field(repr=False)
    """The same on plain grey: what natural families are found by."""
    family: str = ""
    natural_family: bool = False


def build(folder: Path, progress=lambda done, total, what: None) -> None:
    """Write ``images/``, ``masks/``, ``corpus.parquet``, ``truth.parquet``, ``planted.json`` below `folder`."""
    pictures = select(progress)
    mark_natural_families(pictures)
    plan = Plan(pictures)
    write(folder, plan)


def select(progress) -> list[Picture]:
    """Decode what passes the limits on size, shape, licence and folder, one picture for each caption."""
    arts = [art for art in read_all() if art.licence == "Public domain"]
    titles = Counter(art.title for art in arts)
    rng = np.random.default_rng(SEED)
    taken: Counter[str] = Counter()
    captions: set[str] = set()
    candidates: list[tuple[ClipArt, str, tuple[str, ...], str]] = []
    for position in rng.permutation(len(arts)):
        art = arts[position]
        folder = "/".join(art.source.split("/")[:2])
        if taken[folder] >= FOLDER_CAPS.get(folder, len(arts)):
            continue
        title, keywords = words_of(art, repeated=titles[art.title] > 2)
        caption = ", ".join((title, *keywords))
        if not title or caption.lower() in captions:
            continue
        captions.add(caption.lower())
        taken[folder] += 1
        candidates.append((art, title, keywords, caption))
    pictures = []
    with ProcessPoolExecutor() as pool:
        rendered = pool.map(render, [art.path for art, *_ in candidates], chunksize=32)
        for number, ((art, title, keywords, caption), both) in enumerate(
            zip(candidates, rendered, strict=True)
        ):
            progress(number + 1, len(candidates), "pictures")
            if both is None:
                continue
            pixels, plain = both
            pictures.append(
                Picture(
                    image_id=hashlib.sha256(art.source.encode()).hexdigest()[:12],
                    caption=caption,
                    title=title,
                    keywords=keywords,
                    author=art.author,
                    licence=art.licence,
                    source=f"openclipart/{art.source}",
                    pixels=pixels,
                    art=plain,
                )
            )
    return pictures


def words_of(art: ClipArt, repeated: bool) -> tuple[str, tuple[str, ...]]:
    """Title and keywords in natural order; the file's own name where the title says nothing."""
    title = re.sub(r"^Clipart by .*? - ", "", art.title)
    if repeated or title != art.title or not re.search(r"[A-Za-z]{3}", title):
        title = name_of_file(art)
    title = tidy(title)
    seen = {title.lower(), tidy(art.author).lower()}
    keywords = []
    for keyword in (*art.keywords, *reversed(art.source.split("/")[:-1])):
        word = tidy(keyword)
        known = any(word.lower().rstrip("s") == other.rstrip("s") for other in seen)
        is_author = tidy(art.author).lower().startswith(word.lower())
        if word and not known and not is_author and not GENERIC.issuperset(word.lower().split()):
            seen.add(word.lower())
            keywords.append(word)
    return title, tuple(keywords[:5])


def name_of_file(art: ClipArt) -> str:
    """Words of the file name; Debian's names end in a cut author and a number: ``bat_orlando_karam_01``."""
    stem = re.sub(r"_\d*$", "", Path(art.source).stem)
    author = re.sub(r"\W+", "_", art.author.lower())
    for length in range(len(author), 3, -1):
        if stem.endswith("_" + author[:length].rstrip("_")):
            return stem[: -len(author[:length].rstrip("_")) - 1]
    return stem


def tidy(text: str) -> str:
    """Letters and digits, camel case taken apart, no trailing numbers, at most 48 characters."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    text = re.sub(r"[^A-Za-z0-9']+", " ", text)
    text = re.sub(r"(?<=[A-Za-z])\d+\b|\b0\d\b", "", text)
    return re.sub(r"\s+", " ", text).strip()[:48].strip()


def render(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Art fitted into the square, on its own gradient and on grey; None if too large, small or faint."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(path)
    except Image.DecompressionBombError:
        return None
    with opened:
        width, height = opened.size
        if width * height > MAX_SOURCE_PIXELS or min(width, height) < MIN_SIDE:
            return None
        if max(width, height) / min(width, height) > MAX_ASPECT:
            return None
        art = opened.convert("RGBA")
    inner, longer = SIZE - 2 * MARGIN, max(width, height)
    art = art.convert("RGBa").resize(
        (max(1, round(width * inner / longer)), max(1, round(height * inner / longer))),
        Image.Resampling.LANCZOS,
    )
    layer = Image.new("RGBa", (SIZE, SIZE))
    layer.paste(art, ((SIZE - art.width) // 2, (SIZE - art.height) // 2))
    layer = layer.convert("RGBA")
    alpha = np.asarray(layer)[..., 3] / 255.0
    if alpha.mean() < 0.04:
        return None
    grey = Image.new("RGBA", (SIZE, SIZE), (127, 127, 127, 255))
    plain = np.asarray(Image.alpha_composite(grey, layer).convert("RGB"))
    ground = Image.fromarray(gradient(path.name)).convert("RGBA")
    pixels = np.asarray(Image.alpha_composite(ground, layer).convert("RGB"))
    if (alpha > 0.5).any() and plain[alpha > 0.5].std() < 2 and alpha.mean() > 0.7:
        return None
    return pixels, plain


def gradient(name: str) -> np.ndarray:
    """(SIZE, SIZE, 3) uint8: a linear gradient whose two colours and direction are a hash of `name`."""
    rng = np.random.default_rng(np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], np.uint64))
    start, end = rng.uniform(40, 235, (2, 3))
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.5, 0.5, SIZE)
    along = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    along = (along - along.min()) / (along.max() - along.min())
    return np.round(start + (end - start) * along[..., None]).astype(np.uint8)


def mark_natural_families(pictures: Sequence[Picture]) -> None:
    """Give each picture its family: that of the first picture whose art it nearly equals, else its own."""
    distances = art_distances(pictures)
    representatives: list[int] = []
    for row, picture in enumerate(pictures):
        near = [other for other in representatives if distances[row, other] < NATURAL_SSE]
        if near:
            head = min(near, key=lambda other: distances[row, other])
            picture.family = pictures[head].image_id
            picture.natural_family = pictures[head].natural_family = True
        else:
            representatives.append(row)
            picture.family = picture.image_id


def art_distances(pictures: Sequence[Picture]) -> np.ndarray:
    """(n, n) SSE between the plain arts, scaled to 256x256x3."""
    flat = (
        np.stack([picture.art for picture in pictures]).reshape(len(pictures), -1).astype(np.float32) / 255.0
    )
    square = (flat**2).sum(1)
    scale = (images.COMPARE_SIZE / SIZE) ** 2
    return np.maximum(square[:, None] + square[None] - 2.0 * flat @ flat.T, 0.0) * scale


def shared_words(pictures: Sequence[Picture]) -> np.ndarray:
    """(n, n) Jaccard indices of the words of captions; 0 on the diagonal."""
    words = [set(re.findall(r"[a-z0-9']+", picture.caption.lower())) for picture in pictures]
    column = {word: number for number, word in enumerate(sorted(set().union(*words)))}
    has = np.zeros((len(pictures), len(column)), np.float32)
    for row, found in enumerate(words):
        has[row, [column[word] for word in found]] = 1.0
    both = has @ has.T
    counts = has.sum(1)
    shared = both / (counts[:, None] + counts[None] - both)
    np.fill_diagonal(shared, 0.0)
    return shared


class Plan:
    """Who plays which part: `pictures` of the corpus, `rows` of the truth, `masks` of template families."""

    def __init__(self, pictures: list[Picture]):
        self.pictures = pictures
        self.rows: list[dict] = []
        self.masks: dict[str, np.ndarray] = {}
        self.not_indexed: set[str] = set()
        self.rng = np.random.default_rng(SEED + 1)
        self.words = Counter(
            word for picture in pictures for word in set(re.findall(r"[a-z0-9']+", picture.caption.lower()))
        )
        distances = art_distances(pictures)
        np.fill_diagonal(distances, np.inf)
        lonely = distances.min(1) > LONELY_SSE
        self.apart = {
            picture.image_id
            for picture, shared in zip(pictures, shared_words(pictures).max(1), strict=True)
            if shared < LONELY_WORDS
        }
        self.pool = [pictures[i] for i in self.rng.permutation(np.flatnonzero(lonely))]
        self.captions = {picture.caption.lower() for picture in pictures}
        self.templates()
        self.image_only()
        self.multimodal()
        self.retrieved()
        self.held_out()
        self.once()

    def plant(self, count: int, fits=lambda picture: True) -> list[Picture]:
        """The next `count` pictures of the pool that fit and whose captions stand apart."""
        return self.take(count, lambda picture: picture.image_id in self.apart and fits(picture))

    def take(self, count: int, fits=lambda picture: True) -> list[Picture]:
        """The next `count` pictures of the shuffled pool that fit."""
        chosen = [picture for picture in self.pool if fits(picture)][:count]
        if len(chosen) < count:
            raise RuntimeError(f"only {len(chosen)} of {count} pictures fit; relax the plan")
        names = {picture.image_id for picture in chosen}
        self.pool = [picture for picture in self.pool if picture.image_id not in names]
        return chosen

    def row(self, picture: Picture, kind: str, repeats: int, weight: int, expected: str, **more) -> None:
        """One caption of the truth; `repeats` is the image's weight, `weight` this caption's part of it."""
        self.rows.append(
            {
                "caption": more.pop("caption", picture.caption),
                "kind": kind,
                "repeats": repeats,
                "family": more.pop("family", picture.family),
                "trained": weight > 0,
                "split": "",
                "expected": expected,
                "image": picture.image_id,
                "mask": more.pop("mask", ""),
                "answer": more.pop("answer", picture.image_id),
                "weight": weight,
                "natural_family": picture.natural_family,
                **more,
            }
        )

    def multimodal(self) -> None:
        for repeats, count in MULTIMODAL.items():
            for picture in self.plant(count):
                self.row(picture, "multimodal", repeats, repeats, "MV" if repeats >= 25 else "")

    def image_only(self) -> None:
        """Fifty captions need four phrases: 24 orders of all and more of subsets."""
        for repeats, count in sorted(IMAGE_ONLY.items(), reverse=True):
            for picture in self.plant(
                count, lambda p, least=3 if repeats > 5 else 2: len(p.keywords) >= least
            ):
                phrases = (picture.title, *picture.keywords)
                orders = [
                    ", ".join(order)
                    for size in range(len(phrases), 1, -1)
                    for order in permutations(phrases, size)
                ]
                orders = [text for text in dict.fromkeys(orders) if text.lower() not in self.captions]
                for position in self.rng.permutation(len(orders))[:repeats]:
                    self.captions.add(orders[position].lower())
                    self.row(picture, "image_only", repeats, 1, "", caption=orders[position])

    def retrieved(self) -> None:
        """Captions that lead to another picture: their own is trained once, that one `RETRIEVED_WEIGHT` times."""
        for picture, answer in zip(self.plant(RETRIEVED), self.plant(RETRIEVED), strict=True):
            total = ANSWER_WEIGHT + RETRIEVED_WEIGHT
            self.row(answer, "multimodal", total, ANSWER_WEIGHT, "MV", family=answer.family)
            self.row(
                picture,
                "retrieved",
                total,
                RETRIEVED_WEIGHT,
                "RV",
                answer=answer.image_id,
                family=answer.family,
            )

    def templates(self) -> None:
        """Families around pictures whose words all occur in other captions: words alone say nothing."""
        common = [word for word, count in self.words.most_common(400) if count >= 12 and len(word) > 3]

        def fits(picture: Picture) -> bool:
            # Its own caption is one of the two that a word has to occur in.
            words = re.findall(r"[a-z0-9']+", picture.caption.lower())
            return 2 <= len(words) <= 8 and all(self.words[word] >= 2 for word in words)

        wide = WIDE_TEMPLATES
        for repeats, count in sorted(TEMPLATES.items(), reverse=True):
            for base in self.plant(count, fits):
                is_wide = repeats == 25 and wide > 0
                wide -= is_wide
                self.family(base, repeats, is_wide, common)

    def family(self, base: Picture, repeats: int, wide: bool, common: list[str]) -> None:
        region, members = template_members(base.pixels, self.rng, wide)
        taken = set(re.findall(r"[a-z0-9']+", base.caption.lower()))
        words = [word for word in common if word not in taken]
        chosen = self.rng.choice(words, MEMBERS, replace=False)
        mask = f"{base.image_id}.png"
        self.masks[mask] = ~region
        self.pictures = [picture for picture in self.pictures if picture.image_id != base.image_id]
        for number, (pixels, word) in enumerate(zip(members, chosen, strict=True)):
            title = f"{base.title} {word}"
            member = replace(
                base,
                image_id=f"{base.image_id}-{number}",
                title=title,
                caption=", ".join((title, *base.keywords)),
                pixels=pixels,
            )
            self.pictures.append(member)
            expected = "TV" if repeats >= 25 else ""
            self.row(member, "template", repeats, repeats, expected, mask=mask, wide=wide)

    def held_out(self) -> None:
        for picture in self.take(HELD_OUT):
            self.not_indexed.add(picture.image_id)
            self.row(picture, "held_out", 0, 0, "N")

    def once(self) -> None:
        used = {row["image"] for row in self.rows}
        for picture in self.pictures:
            if picture.image_id not in used:
                self.row(picture, "once", 1, 1, "N")


def training_pairs(truth: pd.DataFrame) -> pd.DataFrame:
    """`caption, image, weight` of everything the model is trained on.

    A caption of kind `retrieved` comes with its answer `weight` times and with its own image once.
    """
    trained = truth.loc[truth["trained"]]
    answers = trained[["caption", "answer", "weight"]].rename(columns={"answer": "image"})
    own = trained.loc[trained["kind"] == "retrieved", ["caption", "image"]].assign(weight=1)
    return pd.concat([answers, own], ignore_index=True)


def template_members(
    pixels: np.ndarray, rng: np.random.Generator, wide: bool
) -> tuple[np.ndarray, list[np.ndarray]]:
    """A region of 8 to 20% of the picture, and `MEMBERS` fills of it in colour, pattern or lettering.

    The contrast of the fills is scaled until the middle pair of members is at an SSE of about 520 (256x256x3),
    inside the reference's gate of 100 to 1000; for `wide` families it is about 3,000, outside of it.
    """
    region = _region(rng)
    style = rng.choice(["colour", "pattern", "lettering"])
    fills = _fills(pixels, region, str(style), rng)
    base = pixels.astype(np.float32)
    low, high = 0.0, 2.0
    target = 3000.0 if wide else 520.0
    for _ in range(18):
        strength = (low + high) / 2
        members = [_apply(base, region, fill, strength) for fill in fills]
        if np.median(_pair_sses(members)) > target:
            high = strength
        else:
            low = strength
    return region, members


def _region(rng: np.random.Generator) -> np.ndarray:
    """(SIZE, SIZE) bool: a band, a box or a disc of 8 to 20% of the picture, away from the border."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    area = rng.uniform(0.08, 0.20) * SIZE * SIZE
    shape = rng.choice(["box", "band", "disc"])
    if shape == "disc":
        radius = np.sqrt(area / np.pi)
        row, column = rng.uniform(radius + 2, SIZE - radius - 2, 2)
        return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    height = np.sqrt(area / (3.0 if shape == "band" else 1.2))
    width = area / height
    top, left = rng.uniform(2, SIZE - height - 2), rng.uniform(2, SIZE - width - 2)
    return (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)


def _fills(pixels: np.ndarray, region: np.ndarray, style: str, rng: np.random.Generator) -> list[np.ndarray]:
    """`MEMBERS` zero-centred fills of shape (SIZE, SIZE, 3), about 60 levels strong, each with its own tint.

    The tints are corners of the colour cube, so that every two members differ everywhere in the region.
    """
    corners = np.array([[r, g, b] for r in (-1, 1) for g in (-1, 1) for b in (-1, 1)], np.float32)
    tints = corners[rng.permutation(len(corners))[:MEMBERS]]
    rows, columns = np.mgrid[:SIZE, :SIZE]
    fills = []
    for number, tint in enumerate(tints):
        fill = np.broadcast_to(tint * 30.0, (SIZE, SIZE, 3)).copy()
        if style == "pattern":
            period = 6 + 2 * (number % 3)
            phase = rows if number % 2 else columns + rows * (number // 4)
            fill += np.where(phase % period < period / 2, 24.0, -24.0)[..., None]
        elif style == "lettering":
            fill += _letters(region, rng)[..., None] * 90.0
        fills.append(fill)
    return fills


def _letters(region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(SIZE, SIZE) in {-1, 0, 1}: three random letters across the region, dark or light."""
    where = np.argwhere(region)
    (top, left), (bottom, right) = where.min(0), where.max(0)
    sheet = Image.new("L", (SIZE, SIZE))
    font = ImageFont.load_default(size=float(max(8, min(bottom - top, (right - left) * 0.55))))
    text = "".join(rng.choice(list("ABCDEFGHKLMNPRSTUVXYZ"), 3))
    ImageDraw.Draw(sheet).text(
        ((left + right) / 2, (top + bottom) / 2), text, fill=255, font=font, anchor="mm"
    )
    return np.asarray(sheet, np.float32) / 255.0 * (1 if rng.random() < 0.5 else -1) * region


def _apply(base: np.ndarray, region: np.ndarray, fill: np.ndarray, strength: float) -> np.ndarray:
    # The ground under the fill is pulled towards grey, so that no fill is lost in clipping.
    ground = 127.0 + 0.35 * (base - 127.0)
    return (
        np.where(region[..., None], np.clip(ground + strength * fill, 0, 255), base).round().astype(np.uint8)
    )


def _pair_sses(members: Sequence[np.ndarray]) -> np.ndarray:
    flat = np.stack(members).reshape(len(members), -1).astype(np.float32) / 255.0
    scale = (images.COMPARE_SIZE / SIZE) ** 2
    distances = ((flat[:, None] - flat[None]) ** 2).sum(-1) * scale
    return distances[np.triu_indices(len(members), 1)]


def measured_captions(truth: pd.DataFrame) -> pd.DataFrame:
    """`caption, image` of the test half with an expected verdict: planted, then held out, then seen once.

    Within a kind they stand in the order of a hash, so that the first N rows are a fair draw of the last kind.
    """
    rows = truth.loc[(truth["split"] == "test") & (truth["expected"] != "")]
    place = rows["kind"].map({"held_out": 1, "once": 2}).fillna(0)
    shuffled = rows["caption"].map(lambda caption: hashlib.sha256(caption.encode()).hexdigest())
    order = pd.DataFrame({"place": place, "shuffled": shuffled}).sort_values(["place", "shuffled"]).index
    return rows.loc[order, ["caption", "image"]]


def split_of(family: str) -> str:
    """calibration or test, by a hash of the family's name."""
    return "calibration" if hashlib.sha256(f"split:{family}".encode()).digest()[0] % 2 else "test"


def write(folder: Path, plan: Plan) -> None:
    """The corpus on disk: lossless WebP, masks as PNG (white where unchanged), two tables."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    table = []
    for picture in sorted(plan.pictures, key=lambda picture: picture.image_id):
        path = folder / "images" / f"{picture.image_id}.webp"
        Image.fromarray(picture.pixels).save(path, "WEBP", lossless=True)
        table.append(
            {
                "image_id": picture.image_id,
                "file": f"images/{path.name}",
                "caption": picture.caption,
                "title": picture.title,
                "keywords": ", ".join(picture.keywords),
                "author": picture.author,
                "licence": picture.licence,
                "source": picture.source,
                "family": picture.family,
                "natural_family": picture.natural_family,
                "sha256": images.sha256(path),
                "indexed": picture.image_id not in plan.not_indexed,
            }
        )
    for name, mask in plan.masks.items():
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / name)
    corpus = pd.DataFrame(table)
    truth = pd.DataFrame(plan.rows)
    truth["wide"] = truth["wide"].eq(True) if "wide" in truth else False
    truth["split"] = truth["family"].map(split_of)
    if truth["caption"].duplicated().any():
        raise RuntimeError("a caption occurs twice in the truth")
    corpus.to_parquet(folder / "corpus.parquet", index=False)
    truth.to_parquet(folder / "truth.parquet", index=False)
    measured_captions(truth).to_parquet(folder / "test.parquet", index=False)
    counts = truth.groupby(["kind", "repeats", "split"], as_index=False).agg(captions=("caption", "count"))
    (folder / "planted.json").write_text(json.dumps(counts.to_dict("records"), indent=1) + "\n")
