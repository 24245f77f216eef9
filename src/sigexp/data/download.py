"""One published file by HTTPS alone: pinned by its SHA-256, bounded in size, resumed where it was cut off.

What arrives grows in `.NAME.part` beside its place, survives an interruption, and is moved there when its digest is
right. Nothing else than HTTPS is spoken, also where a server sends the client elsewhere; certificates are checked
against the system's, or those of $SSL_CERT_FILE.
"""

import contextlib
import hashlib
import os
import ssl
import sys
import urllib.request as web
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, NamedTuple
from urllib.error import HTTPError, URLError

TIMEOUT_S = 60  # without a byte
CHUNK_BYTES = 1 << 20
NETWORK_ERRORS = (URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError)


class Remote(NamedTuple):
    """One original file: name, SHA-256 and number of its bytes, and addresses to try in turn."""

    name: str
    sha256: str
    size: int
    mirrors: tuple[str, ...]


class Refused(ValueError):
    """A server's answer that is not the file."""


def https() -> web.HTTPSHandler:
    return web.HTTPSHandler(context=ssl.create_default_context())


def opener() -> web.OpenerDirector:
    """What opens addresses by HTTPS, redirections among them, and refuses every other kind."""
    found = web.OpenerDirector()
    for handler in (
        web.ProxyHandler(), https(), web.HTTPRedirectHandler(), web.HTTPErrorProcessor(), web.HTTPDefaultErrorHandler(),
        web.UnknownHandler(),
    ):  # fmt: skip
        found.add_handler(handler)
    return found


def download(remote: Remote, url: str, folder: Path) -> Path:
    """Bring a file into a folder and return its path. Raises `Refused` or one of `NETWORK_ERRORS` where this address
    does not give it, and OSError where the disk refuses."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / remote.name
    part = folder / f".{remote.name}.part"
    with part.open("ab") as file, alone(file):
        if path.is_file():  # another process was quicker
            part.unlink(missing_ok=True)
            return path
        if file.tell() > remote.size:
            file.truncate(0)
        if file.tell() < remote.size:
            receive(remote, url, file)
        file.flush()
        os.fsync(file.fileno())
        with part.open("rb") as whole:
            digest = hashlib.file_digest(whole, "sha256").hexdigest()
        if digest != remote.sha256:
            part.unlink()
            raise Refused(
                f"another file than the published one (SHA-256 {digest[:16]}..., not {remote.sha256[:16]}...)"
            )
        os.replace(part, path)
    return path


def receive(remote: Remote, url: str, file: IO[bytes]) -> None:
    """Append what is missing of a file; where the server does not resume, all of it anew."""
    start = file.seek(0, os.SEEK_END)
    headers = {"User-Agent": "sigexp", **({"Range": f"bytes={start}-"} if start else {})}
    print(f"sigexp: downloading {remote.name}, {remote.size / 1e6:.2g} MB, from {url}", file=sys.stderr)
    try:
        answer: HTTPResponse = opener().open(web.Request(url, headers=headers), timeout=TIMEOUT_S)
    except HTTPError as error:
        if error.code == 416:  # what is there is not a part of it
            file.truncate(0)
        raise
    with answer:
        goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if start and not goes_on:
            file.truncate(0)
            start = 0
        while piece := answer.read(CHUNK_BYTES):
            start += len(piece)
            if start > remote.size:
                file.truncate(0)
                raise Refused(f"more than the published {remote.size:,} bytes")
            file.write(piece)
    if start < remote.size:
        raise ConnectionError(f"cut off after {start:,} of {remote.size:,} bytes")


@contextlib.contextmanager
def alone(file: IO[bytes]) -> Iterator[None]:
    """Wait until no other process writes the file, where the system can tell."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    file.seek(0, os.SEEK_END)
    yield
