"""Signatures of manifests by OpenSSH's ``ssh-keygen -Y``, which everybody who has ssh can check."""

from __future__ import annotations

import base64
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from audit.errors import InputError

NAMESPACE = "verbatim-exhibit"
FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
BEGIN, END, WIDTH = b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----", 70
"""Of the armour around a signature, with the letters of its lines."""
SECONDS = 30.0


def sign(data: bytes, key: Path) -> bytes:
    """A signature of `data` with a private key's file, or with a public one whose private half an agent holds."""
    if not key.is_file():
        raise InputError(f"There is no key {key}; give the file of an ssh key, such as ~/.ssh/id_ed25519.")
    done = _ssh_keygen(["-Y", "sign", "-f", str(key), "-n", NAMESPACE], data)
    if done.returncode:
        raise InputError(
            f"The key {key} does not sign: {_reason(done)}; give one without a passphrase, or add it to ssh-agent."
        )
    return done.stdout


def signed_by(data: bytes, signature: bytes, signers: Path | None = None) -> str:
    """Who signed `data`: the key's fingerprint, after the signer's name where a file of allowed signers has the key.

    Parameters
    ----------
    signers
        As ``man ssh-keygen`` describes under ALLOWED SIGNERS.

    Raises
    ------
    InputError
        If the signature is not of this data, or of nobody in the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signature"
        path.write_bytes(signature)
        checked = ["-n", NAMESPACE, "-s", str(path)]
        done = _ssh_keygen(["-Y", "check-novalidate", *checked], data)
        fingerprint = FINGERPRINT.search(done.stdout.decode("utf-8", "replace"))
        if done.returncode or fingerprint is None:
            raise InputError("The signature is not of this manifest.")
        if signers is None:
            return fingerprint[0]
        found = _ssh_keygen(["-Y", "find-principals", "-s", str(path), "-f", str(signers)], data)
        name = found.stdout.decode("utf-8", "replace").split("\n")[0]
        if found.returncode or not name:
            raise InputError(f"The key {fingerprint[0]} that signed this is of nobody in {signers}.")
        done = _ssh_keygen(["-Y", "verify", "-f", str(signers), "-I", name, *checked], data)
        if done.returncode:
            raise InputError(f"The signature does not hold for {name} in {signers}: {_reason(done)}.")
        return f"{name}, {fingerprint[0]}"


def armoured(signature: bytes) -> bool:
    """Whether a signature's file is exactly as ``ssh-keygen`` writes it: what it skips in reading could be changed."""
    lines = signature.split(b"\n")
    if len(lines) < 4 or (lines[0], lines[-2], lines[-1]) != (BEGIN, END, b""):
        return False
    try:
        body = base64.b64decode(b"".join(lines[1:-2]), validate=True)
    except ValueError:
        return False
    text = base64.b64encode(body)
    return lines[1:-2] == [text[start : start + WIDTH] for start in range(0, len(text), WIDTH)]


def _ssh_keygen(arguments: Sequence[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        # a session of its own has no terminal on which it could wait for a passphrase
        return subprocess.run(
            ["ssh-keygen", *arguments],
            input=data,
            capture_output=True,
            timeout=SECONDS,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise InputError("ssh-keygen was not found; install OpenSSH's client to sign or check.") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(f"ssh-keygen gave no answer in {SECONDS:.0f} seconds.") from error


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200].rstrip(".") if lines else "it gave no reason"
