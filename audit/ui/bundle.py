"""Everything shown, as one zip: pictures, numbers and a list of hashes. Bytes only, no interface."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Mapping, Sequence

from audit.cells import safe_cell
from audit.images import sha256

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Every member's date, so that equal content gives an equal file."""


def csv_bytes(rows: Sequence[Mapping[str, object]]) -> bytes:
    """Rows as CSV with the columns of the first one, UTF-8 with a mark so that spreadsheets read it."""
    stream = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows({name: safe_cell(value) for name, value in row.items()} for row in rows)
    return stream.getvalue().encode("utf-8-sig")


def json_bytes(value: object) -> bytes:
    """Indented JSON, UTF-8."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str).encode()


def zip_bytes(files: Mapping[str, bytes]) -> bytes:
    """A zip of the files and of ``SHA256SUMS``, which ``sha256sum -c`` reads; equal files give equal bytes."""
    sums = "".join(f"{sha256(data)}  {name}\n" for name, data in sorted(files.items()))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in [*sorted(files.items()), ("SHA256SUMS", sums.encode())]:
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
