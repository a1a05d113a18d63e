"""How often a picture was trained with which caption: the rows of a training set, or a table that counts them.

Two duplications are told apart (Webster 2023). *Multimodal*: the same picture with the same caption.
*Image-only*: the same picture with other captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from audit.corpus.reader import CAPTION_NAMES, URL_NAMES, utf8
from audit.errors import InputError

IMAGE_NAMES = ("image_id", "answer", "image")
"""Columns that name a picture, the first there is; ``answer`` is what the demo's model was trained to show."""
TIMES_NAMES = ("times", "weight", "count")
"""Columns that say how often a row was trained; a row counts once where there is none."""
COLUMNS = ("place", "caption", "times")


def of_rows(captions: Sequence[str]) -> pd.DataFrame:
    """``place, caption, times``: each of the n rows of a training set once."""
    return pd.DataFrame({"place": np.arange(len(captions)), "caption": list(captions), "times": 1})


def of_table(
    path: Path, image_ids: Sequence[str], urls: Sequence[str], captions: Sequence[str]
) -> tuple[pd.DataFrame, int]:
    """``place, caption, times`` as a table has them, and how many of its rows name no picture of the training set.

    The table is parquet, a file or a folder of parts such as LAION's metadata, and is read in a stream. It has a
    column for the caption, one for the picture's name (`IMAGE_NAMES`) or address, and may have one of `TIMES_NAMES`.
    A picture that it does not name keeps the row it has in the training set; one that was trained 0 times by it has none.

    Parameters
    ----------
    image_ids, urls, captions
        Of the n rows of the training set; empty where not known.
    """
    try:
        table = ds.dataset(path, format="parquet")
        names = table.schema.names
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path} is no readable parquet file or folder; name a table of captions."
        ) from error
    caption = next((name for name in CAPTION_NAMES if name in names), None)
    image = next((name for name in (*IMAGE_NAMES, *URL_NAMES) if name in names), None)
    times = next((name for name in TIMES_NAMES if name in names), None)
    if caption is None or image is None:
        raise InputError(
            f"{path} needs a caption ({', '.join(CAPTION_NAMES)}) and a picture "
            f"({', '.join((*IMAGE_NAMES, *URL_NAMES))}) in each row; found {', '.join(names)[:300]}."
        )
    known: dict[str, int] = {}
    for place, name in enumerate(urls if image in URL_NAMES else image_ids):
        if name:
            known.setdefault(name, place)
    found, unknown = [], 0
    alone = np.ones(len(captions), bool)
    for batch in table.to_batches(columns=[name for name in (caption, image, times) if name]):
        place = np.array([known.get(str(name), -1) for name in utf8(batch[image]).to_pylist()], int)
        usable = (place >= 0) & batch[caption].is_valid().to_numpy(zero_copy_only=False)
        number = _times(batch[times], f"{times} of {path}") if times else np.ones(len(batch), np.int64)
        alone[place[usable]] = False  # one that was trained no times is named, too
        unknown += int((~usable & (number > 0)).sum())
        kept = usable & (number > 0)
        texts = utf8(batch[caption]).filter(pa.array(kept)).to_pylist()
        found.append(pd.DataFrame({"place": place[kept], "caption": map(str, texts), "times": number[kept]}))
    named = pd.concat(found, ignore_index=True) if found else of_rows([])
    return pd.concat([named, of_rows(captions).loc[alone]], ignore_index=True), unknown


def counted(occurrences: pd.DataFrame, group: np.ndarray) -> pd.DataFrame:
    """``group, caption, times, image_only``: for each caption of each group of places how it is duplicated.

    ``times`` is the multimodal duplication, the group with this caption; ``image_only`` the group with any other.

    Parameters
    ----------
    occurrences
        ``place, caption, times``.
    group
        (n,) to which group each place belongs, -1 for none.

    Examples
    --------
    >>> rows = pd.DataFrame({"place": [0, 1, 1], "caption": ["a", "a", "b"], "times": [2, 3, 1]})
    >>> counted(rows, np.array([0, 0])).to_dict("list")
    {'group': [0, 0], 'caption': ['a', 'b'], 'times': [5, 1], 'image_only': [1, 5]}
    """
    rows = occurrences.assign(group=group[occurrences["place"].to_numpy(int)])
    with duckdb.connect() as database:
        return (
            database.register("rows", rows)
            .execute(
                'SELECT "group", caption, sum(times)::BIGINT AS times, '
                '(sum(sum(times)) OVER (PARTITION BY "group") - sum(times))::BIGINT AS image_only '
                'FROM rows WHERE "group" >= 0 GROUP BY "group", caption ORDER BY "group", caption'
            )
            .df()
        )


def _times(column: pa.Array, what: str) -> np.ndarray:
    try:
        return column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise InputError(f"The column {what} has to hold whole numbers.") from error
