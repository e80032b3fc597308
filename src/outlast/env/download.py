"""Large files from plain addresses, over connections that break: each attempt goes on where the last one broke off.

Promises: the file has its name only when it is whole: as long as the server says, and of the MD5 or SHA-256 that the
server or the caller knows, if either does. What has arrived outlives the process, unless the server's file has changed
since. What may pass is tried again with growing pauses; what is refused is a RunError.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlast.base.files import write_json
from outlast.base.patience import delays
from outlast.errors import RunError

PATIENCE_SECONDS = 300.0  # without a single new byte
_SILENCE_SECONDS = 60.0
_PIECE_BYTES = 2**20
_PASSING = {408, 429, 500, 502, 503, 504}

Arrived = Callable[[int, int], None]  # (bytes that are here, bytes of all)


@dataclass(frozen=True)
class Fetched:
    """A file that has arrived: its size, its SHA-256, and by what it was compared: "sha256", "md5" or "size"."""

    bytes: int
    sha256: str
    compared: str


def fetch(address: str, to: Path, *, sha256: str | None = None, arrived: Arrived = lambda here, all: None) -> Fetched:
    """Download a file to `to`, going on with what lies in `to`.part. Raises RunError."""
    part = to.with_name(f"{to.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    began, before = time.monotonic(), _size(part)
    for delay in delays():
        try:
            headers = _attempt(address, part, arrived)
            break
        except _Broken as error:
            if _size(part) > before:
                began, before = time.monotonic(), _size(part)
            if not error.passing or time.monotonic() - began + delay > PATIENCE_SECONDS:
                raise RunError(f"{address} can't be downloaded: {error}", hint=_hint(error, part)) from None
            time.sleep(delay)
    found = _compared(address, part, headers, sha256)
    part.replace(to)
    _note(part).unlink(missing_ok=True)
    return found


class _Broken(Exception):
    """An attempt that failed. passing: the next one may work."""

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


def _attempt(address: str, part: Path, arrived: Arrived) -> Mapping[str, str]:
    """Ask for what is missing, and append it. Returns the answer's headers, in lower case, of the whole file."""
    here, known = _size(part), _known(part, address)
    if here and known is None:
        part.unlink()  # of another address, or nobody knows of which
        here = 0
    asked = urllib.request.Request(address, headers={"User-Agent": "outlast", "Accept-Encoding": "identity"})
    if here and known is not None:
        if here == known["total"]:
            return dict(known["headers"])
        asked.add_header("Range", f"bytes={here}-")
        asked.add_header("If-Range", known["version"])
    try:
        # Not urlopen: it keeps the proxies that there were when it was first called.
        with urllib.request.build_opener().open(asked, timeout=_SILENCE_SECONDS) as answer:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            if answer.status != 206:
                here = 0  # the whole file: it has changed, or the server can't give a part
            total = _total(headers, here)
            _write_note(part, address, headers, total)
            _append(answer, part, here, total, arrived)
            return headers
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is here is no beginning of what is there
            part.unlink(missing_ok=True)
        raise _Broken(f"the server answers {error.code}", passing=error.code in _PASSING | {416}) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _Broken(f"the connection is lost ({reason or type(error).__name__})", passing=True) from None


def _append(answer: http.client.HTTPResponse, part: Path, here: int, total: int, arrived: Arrived) -> None:
    with part.open("r+b" if here else "wb") as stream:
        stream.seek(here)
        stream.truncate()
        while piece := answer.read(_PIECE_BYTES):
            try:
                here += stream.write(piece)
            except OSError as error:
                raise RunError(
                    f"{part} can't be written: {error.strerror or error}",
                    hint="free space on that disk, or give --to a folder on another one; what has arrived is kept",
                ) from error
            arrived(here, total)
    if here != total:
        raise _Broken(f"the connection is lost ({here} of {total} bytes are here)", passing=True)


def _total(headers: Mapping[str, str], here: int) -> int:
    """Bytes of the whole file."""
    if here:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("content-range", ""))
        if found is None or int(found[1]) != here:
            raise _Broken("the server gives another part than it was asked for", passing=False)
        return int(found[2])
    length = headers.get("content-length", "")
    if not length.isdecimal():
        raise _Broken("the server does not say how long the file is", passing=False)
    return int(length)


def _compared(address: str, part: Path, headers: Mapping[str, str], sha256: str | None) -> Fetched:
    """Compare what has arrived with what is known of it. Raises RunError, and then it is gone."""
    md5 = re.search(r"md5=([A-Za-z0-9+/=]+)", headers.get("x-goog-hash", ""))  # Google's storage says it so
    wanted = md5[1] if md5 else headers.get("content-md5", "")
    one, other = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with part.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            one.update(piece)
            other.update(piece)
    wrong = sha256 is not None and one.hexdigest() != sha256
    if wrong or (wanted and base64.b64encode(other.digest()).decode() != wanted):
        part.unlink()
        _note(part).unlink(missing_ok=True)
        raise RunError(
            f"{address} did not arrive as it was published ({'SHA-256' if wrong else 'MD5'} differs)",
            hint="download it again",
        )
    return Fetched(part.stat().st_size, one.hexdigest(), "sha256" if sha256 else "md5" if wanted else "size")


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _write_note(part: Path, address: str, headers: Mapping[str, str], total: int) -> None:
    """What is arriving: without a version of it nothing that is here can be gone on with."""
    version = headers.get("etag", "") or headers.get("last-modified", "")
    kept = {name: headers[name] for name in ("x-goog-hash", "content-md5") if name in headers}
    write_json(_note(part), {"address": address, "version": version, "total": total, "headers": kept})


def _known(part: Path, address: str) -> dict[str, Any] | None:
    try:
        known = json.loads(_note(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known if known.get("address") == address and known.get("version") else None


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _hint(error: _Broken, part: Path) -> str:
    if error.passing:
        return f"try again later: it goes on after the {_size(part)} bytes that are here"
    return "look at the page of the data set: its address may have changed"
