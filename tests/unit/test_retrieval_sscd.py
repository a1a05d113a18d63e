"""A TorchScript embedder: only the file that was allowed is ever loaded."""

import numpy as np
import pytest
import torch

from audit.errors import InputError
from audit.images import sha256
from audit.retrieval.embedding import open_embedder


class Means(torch.nn.Module):
    """Means of colours and of halves: seven numbers that a copy shares."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.mean((2, 3)), x[:, :, :160].mean((2, 3)), torch.ones_like(x[:, :1, 0, 0])], dim=1)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("sscd") / "means.torchscript.pt"
    torch.jit.script(Means()).save(str(path))
    return path


def test_an_allowed_file_gives_unit_vectors(path):
    embedder = open_embedder(f"sscd:{path}", device="cpu", torchscript_sha256=sha256(path).upper())
    images = [np.full((9, 9, 3), value, np.float32) for value in (0.1, 0.5, 0.9)]
    vectors = embedder.images(images)
    assert vectors.shape == (3, 7) and embedder.dimensions == 7 and embedder.sha256 == sha256(path)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert vectors[0] @ vectors[0] > vectors[0] @ vectors[2]
    with pytest.raises(InputError, match="pictures only"):
        embedder.texts(["a"])


@pytest.mark.parametrize("allowed", ["", "0" * 64])
def test_another_file_is_never_loaded(path, allowed, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: pytest.fail("the file was loaded"))
    with pytest.raises(InputError, match="is not allowed"):
        open_embedder(f"sscd:{path}", device="cpu", torchscript_sha256=allowed)


def test_what_is_no_network_is_one_sentence(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="no TorchScript network"):
        open_embedder(f"sscd:{path}", device="cpu", torchscript_sha256=sha256(path))
    with pytest.raises(InputError, match="There is no file"):
        open_embedder(f"sscd:{tmp_path}/none.pt", device="cpu")
