"""What whoever runs Verbatim may set: through the environment (``VERBATIM_...``) or a ``.env`` file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "assets" / "demo"


class Settings(BaseSettings):
    """Folders, device and limits; each can be set as ``VERBATIM_<NAME>``."""

    model_config = SettingsConfigDict(env_prefix="VERBATIM_", env_file=".env", extra="ignore")

    data_dir: Path = Field(Path.home() / ".local/share/verbatim", description="Runs, indexes and caches.")
    model: str = Field(
        "demo", description="Model that is loaded at start: demo, a known name, a folder, a hub id."
    )
    index: str = Field(
        str(DEMO / "index"),
        description="Training set: an index folder, http(s)://HOST:PORT#INDICE of a clip-retrieval service, or "
        "milvus:FILE.db#COLLECTION, milvus:http://HOST:PORT#COLLECTION.",
    )
    embedder: str = Field(
        "",
        description="Embedder of an index that does not name its own: local-dir:FOLDER, MODEL/PRETRAINED ...",
    )
    pictures: Path | None = Field(
        None,
        description="Folder of the training pictures of a service, of Milvus, or of an index that was not built here: "
        "their paths start there, and nothing outside of it is opened.",
    )
    milvus_token: str = Field("", description="Of a Milvus cluster: TOKEN, or USER:PASSWORD.")
    templates: Path | None = Field(
        None, description="Template library; by default the folder templates in the index, or the demo's own."
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps.")
    dtype: str = Field("auto", description="auto, float32, bfloat16 or float16.")
    offline: bool = Field(False, description="Never ask a model hub, nor fetch pictures.")
    fetch: bool = Field(
        True, description="Whether pictures of training sets that hold addresses only are fetched."
    )
    model_choice: bool = Field(
        True,
        description="Whether people at the dashboard may load another model: a typed path reads the server's files.",
    )
    fetched_bytes: int = Field(
        20_000_000_000,
        description="Disk that fetched pictures may take; those not asked for longest go, what came of asking stays.",
    )
    fetch_hosts: list[str] = Field(
        [],
        description='Hosts with ports that are asked although they are not public, as JSON: ["10.0.0.7:8000"].',
    )
    torchscript_sha256: str = Field(
        "",
        description="sha256 of a TorchScript file that may be loaded as an embedder (sscd:FILE): loading one runs code.",
    )
    blur: bool = Field(False, description="Blur pictures until asked for.")
    max_caption_chars: int = Field(2_000, description="A longer caption is refused.")
    max_captions: int = Field(16, description="Captions at once in the prompt lab; more belong into a run.")
    max_captions_bytes: int = Field(
        500_000_000, description="A larger file of captions is refused by the page."
    )
    quota_bytes: int = Field(
        50_000_000_000, description="Disk that runs may take before the dashboard asks to clean up."
    )
    max_upload_bytes: int = Field(20_000_000, description="A larger picture is refused.")
    database: str = Field(
        "",
        description="Label store: sqlite:///FILE or postgresql://USER@HOST/DATABASE; by default review.db in the data folder.",
    )
    who: str = Field(
        "", description="Name under which commands stand in the audit trail; by default the system's user."
    )
    register_file: Path | None = Field(
        None,
        description="Register of exported exhibits; by default register.jsonl in the data folder. Best kept on another disk.",
    )
    sign_key: Path | None = Field(
        None,
        description="ssh key with which exhibits made at the dashboard can be signed: one that an agent holds, or without a "
        "passphrase.",
    )
    annotators: int = Field(2, ge=1, description="Different people who answer each item of a queue.")
    show_others: bool = Field(
        False,
        description="Whether the machine's verdict and others' labels are shown before one has answered.",
    )
    roles: dict[str, Literal["auditor", "annotator", "adjudicator", "reader"]] = Field(
        {},
        description='Of people who log in, by e-mail address, as JSON: {"ann@example.org": "auditor"}; '
        "others have the role that an auditor gave them, or are readers.",
    )


def default_templates(index: str | Path) -> Path:
    """Where the template library of an index is looked for."""
    folder = Path(index)
    return (DEMO if folder.resolve() == (DEMO / "index").resolve() else folder) / "templates"


def template_library() -> Path:
    """Folder of the template library of the training set that is set."""
    return settings().templates or default_templates(settings().index)


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()  # pyright: ignore[reportCallIssue]
