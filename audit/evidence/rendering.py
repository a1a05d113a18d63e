"""What a report is set with: where any of it is another, equal facts give another report, and the two are not compared."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import audit
from audit.evidence.words import ASSETS

CODE = ("document.py", "html.py", "report.py", "words.py")


@lru_cache(maxsize=1)
def rendered_with() -> dict[str, str]:
    """Versions, and as ``report`` a hash of the texts, the template, the style, the fonts and the code that lays them out."""
    here = Path(__file__).parent
    files = [*sorted(path for path in ASSETS.rglob("*") if path.is_file()), *(here / name for name in CODE)]
    digest = hashlib.sha256()
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return {
        "verbatim": audit.__version__,
        "report": digest.hexdigest()[:16],
        **{name: version(name) for name in ("typst", "pillow")},
    }
