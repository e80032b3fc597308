"""Where a mirror lies: a folder, or any URL that fsspec opens (s3://, gs://, hf://, sftp://, ...).

Files there are written, read, listed and removed by name; nothing here knows what they mean. Listings are never taken
from a cache. A file in a folder is synced and renamed into place. Credentials that stand in the URL or in the
environment never get into what is shown, and so not into errors and records. What the many backends raise is left as
it is; `patiently` is where a failing connection is made anew and tried again.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from outlast.base.files import TEMPORARY, sync_path, write_bytes
from outlast.base.patience import delays
from outlast.base.secret import without_secrets
from outlast.errors import OutlastError, RunError, UsageError

PIECE_BYTES = 4 * 2**20
_PART_BYTES = 8 * 2**20  # of a large upload to S3; ten of them are on their way, and in memory, at a time
_CONNECT_SECONDS, _READ_SECONDS = 10, 60  # how long a server may keep silent
_CREDENTIALS = re.compile(r"://(?:[^/?#]*:(?!\d+(?:[/?#]|$))[^@]*|[^/?#]*)@")  # also a password with an unescaped /
_QUERY = re.compile(r"(://[^?#]*)[?#].*$")
# A release of these fits one release of fsspec only; another one would replace the fsspec that is installed.
_SAME_RELEASE = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_PACKAGES = {
    "hf": "huggingface_hub", "sftp": "paramiko", "ssh": "paramiko", "abfs": "adlfs", "az": "adlfs",
    "smb": "smbprotocol", "webdav": "webdav4", "oss": "ossfs",
}  # fmt: skip
# Here folders need not be made, and making one could create a bucket that was only mistyped.
_WITHOUT_FOLDERS = {"s3", "s3a", "gs", "gcs", "abfs", "az", "hf", "oss"}

Result = TypeVar("Result")


def shown(url: str) -> str:
    """The URL without the credentials that may stand in it: user and password, and all that follows a ?."""
    return _QUERY.sub(r"\1", _CREDENTIALS.sub("://", url))


class Place:
    """An open mirror's place. Raises UsageError for a URL that nothing installed here can open."""

    def __init__(self, url: str) -> None:
        self.url, self.shown = url, shown(url)
        self.connect()

    def connect(self) -> None:
        """Open the place anew, with connections and credentials as they are now."""
        self.protocol = protocol = _protocol(self.url)
        options: dict[str, Any] = {"skip_instance_cache": True}
        if protocol in ("s3", "s3a"):
            set_by_user = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
            timeouts = {"connect_timeout": _CONNECT_SECONDS, "read_timeout": _READ_SECONDS}
            # Attempts are ours to repeat: two that count independently would multiply.
            options |= {"config_kwargs": {**timeouts, "retries": {"total_max_attempts": 1}, **set_by_user}}
        url = str(Path(self.url).expanduser().absolute()) if protocol is None else self.url
        try:
            self.filesystem, root = url_to_fs(url, **options)
        except ImportError as error:
            raise UsageError(
                f"the mirror {self.shown} needs a package that is not installed: {self.masked(error)}",
                hint=f"pip install {_package(protocol)}" if _package(protocol) else "install it",
            ) from None
        except ValueError as error:
            raise UsageError(
                f"the mirror {self.shown} can't be opened: {self.masked(error)}",
                hint="give --mirror a folder, or a URL like s3://bucket/folder",
            ) from None
        self.root = root.rstrip("/")
        if protocol in ("s3", "s3a"):
            self.filesystem.retries = 1  # s3fs takes it from nowhere else
        self.folder = Path(self.root) if isinstance(self.filesystem, LocalFileSystem) else None

    def put(self, source: Path, name: str) -> None:
        """Write a file's contents under `name`."""
        target = self._path(name)
        if self.folder is not None:
            _copy(source, Path(target))
            return
        self._make_folder_of(target)
        parts = {"chunksize": _PART_BYTES} if self.protocol in ("s3", "s3a") else {}
        self.filesystem.put_file(str(source), target, **parts)

    def put_bytes(self, data: bytes, name: str) -> None:
        """Write `data` under `name`."""
        target = self._path(name)
        if self.folder is not None:
            write_bytes(Path(target), data)
            return
        self._make_folder_of(target)
        self.filesystem.pipe_file(target, data)

    def pieces(self, name: str) -> Iterator[bytes]:
        """The contents under `name`, read from the place itself. Raises FileNotFoundError.

        Where the place's own check finds them damaged they end early: whoever reads compares a hash of the whole.
        """
        self.filesystem.invalidate_cache()
        with self.filesystem.open(self._path(name), "rb") as stream:
            while piece := self._piece(stream):
                yield piece

    def sizes(self, folder: str) -> dict[str, int]:
        """{name: bytes} of all files below a folder; the names begin with it."""
        self.filesystem.invalidate_cache()
        found = self.filesystem.find(self._path(folder), detail=True)
        begin = f"{self.root}/"
        return {name.removeprefix(begin): int(about["size"]) for name, about in found.items() if name.startswith(begin)}

    def remove(self, name: str) -> None:
        """Remove a file; one that is gone already is no error."""
        try:
            self.filesystem.rm_file(self._path(name))
        except FileNotFoundError:
            return

    def masked(self, error: BaseException) -> str:
        """What an error says, in one line, without credentials."""
        text = " ".join(str(error).split()) or type(error).__name__
        text = without_secrets(text, _secrets(self.url))
        return text if len(text) <= 300 else f"{text[:300]}..."

    def patiently(self, work: Callable[[], Result], patience_seconds: float) -> Result:
        """Do the work; a failing connection is opened anew and tried again, for at most so long.

        Raises what is ours as it is, and RunError for what the place answered last. A refusal is not tried again.
        """
        began = time.monotonic()
        for delay in delays():
            try:
                return work()
            except OutlastError:
                raise
            except Exception as error:  # the edge to other people's code: each backend raises its own kinds
                if is_refusal(error) or time.monotonic() - began + delay > patience_seconds:
                    raise RunError(
                        f"the mirror {self.shown} can't be used: {self.masked(error)}",
                        hint="check the address, the credentials and the connection, or leave --mirror out",
                    ) from None
            time.sleep(delay)
            self.connect()
        raise AssertionError("delays never end")

    def _piece(self, stream: Any) -> bytes:
        try:
            return bytes(stream.read(PIECE_BYTES))
        except Exception as error:  # the edge again: botocore, whose class this is, need not be installed
            if type(error).__name__ != "FlexibleChecksumError":
                raise
            return b""

    def _make_folder_of(self, target: str) -> None:
        if self.protocol not in _WITHOUT_FOLDERS:
            self.filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"


def is_refusal(error: BaseException) -> bool:
    """Whether an error says no, rather than not now: no permission, no such bucket, no credentials."""
    return isinstance(error, PermissionError | FileNotFoundError) or type(error).__name__ == "NoCredentialsError"


def _protocol(url: str) -> str | None:
    """The protocol of a URL; None for a plain folder. Raises UsageError for a chain of several."""
    if "::" in url:
        raise UsageError(
            f"the mirror {shown(url)} is a chain of file systems; what a cache gives back proves nothing",
            hint="give the last part of it alone",
        )
    protocol, found, _ = url.partition("://")
    return protocol.lower() if found else None


def _package(protocol: str | None) -> str | None:
    if protocol in _SAME_RELEASE:
        release = ".".join(fsspec.__version__.split(".")[:2])
        return f'"{_SAME_RELEASE[protocol]}=={release}.*"'
    return _PACKAGES.get(protocol or "")


def _secrets(url: str) -> set[str]:
    """The parts of the URL that `shown` leaves out."""
    found: set[str] = set()
    for match in _CREDENTIALS.finditer(url):
        whole = match[0].removeprefix("://").removesuffix("@")
        found |= {whole, *whole.partition(":")[::2]}
    if query := url.partition("?")[2]:
        found |= {query, *(pair.partition("=")[2] for pair in query.split("&"))}
    return {form for secret in found for form in (secret, unquote(secret)) if len(form) >= 3}


def _copy(source: Path, target: Path) -> None:
    """Write a copy that is wholly there or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f"{TEMPORARY}mirror-", dir=target.parent)
    os.close(descriptor)
    try:
        shutil.copyfile(source, name)
        sync_path(Path(name))
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_path(target.parent)
