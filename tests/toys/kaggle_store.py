"""What the loopback Kaggle keeps: uploads, data sets with versions that take time to process, hosted files.

Nothing here speaks HTTP (kaggle_server does) or runs anything (kaggle_sessions does).
"""

from __future__ import annotations

import io
import secrets
import threading
import time
import zipfile
from dataclasses import dataclass, field


class Refused(Exception):
    """An answer with a status of 400 or more."""

    def __init__(self, status, message, headers=()):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers)


@dataclass
class Upload:
    """A file that is being uploaded; `data` is what has arrived."""

    name: str
    length: int
    data: bytes = b""
    complete: bool = False


@dataclass
class Version:
    """One version of a data set: its files by their paths. failed: processing ends with FAILED."""

    files: dict[str, bytes]
    notes: str
    ready_at: float
    failed: bool = False


@dataclass
class Dataset:
    """A data set with all its versions."""

    title: str
    private: bool
    versions: list[Version] = field(default_factory=list)

    def ready(self, number=None):
        """The number of the newest version that can be downloaded (or whether this one can); 0 if there is none."""
        numbers = range(1, len(self.versions) + 1) if number is None else [number]
        good = [n for n in numbers if (v := self.versions[n - 1]).ready_at <= time.time() and not v.failed]
        return max(good, default=0)


class Store:
    """Uploads, data sets, hosted files."""

    def __init__(self):
        self.processing_seconds = 0.1
        self.fail_processing = 0  # so many versions that are created next fail to be processed
        self.uploads: dict[str, Upload] = {}
        self.datasets: dict[str, Dataset] = {}
        self.hosted: dict[str, bytes] = {}
        self.lock = threading.RLock()

    # Uploads: one PUT, or several that go on where the one before broke off (as cloud storage does it).

    def start_upload(self, name, length):
        token = secrets.token_hex(8)
        self.uploads[token] = Upload(name, length)
        return token

    def receive(self, token, data, content_range):
        """Take bytes. Returns how many are there now; the upload is complete when all are."""
        upload = self._upload(token)
        if content_range is None:
            upload.data = data
        else:
            begin = content_range.removeprefix("bytes ").partition("/")[0]
            if begin != "*":  # with * the client only asks how far it is
                start = int(begin.partition("-")[0])
                if start > len(upload.data):
                    raise Refused(400, "a gap in the upload")
                upload.data = upload.data[:start] + data
        upload.complete = len(upload.data) == upload.length
        return upload

    def _upload(self, token):
        if token not in self.uploads:
            raise Refused(404, "no such upload")
        return self.uploads[token]

    # Data sets.

    def create(self, ref, title, private, files, directories):
        if ref in self.datasets:
            raise Refused(409, "the slug is in use")
        version = self._version(files, directories, "Initial release")
        self.datasets[ref] = Dataset(title, private, [version])

    def add_version(self, ref, files, directories, notes):
        dataset = self.dataset(ref)
        if dataset.versions[-1].ready_at > time.time():
            raise Refused(403, "the version before is still being processed")
        dataset.versions.append(self._version(files, directories, notes))
        return len(dataset.versions)

    def dataset(self, ref):
        if ref not in self.datasets:
            raise Refused(404, "no such data set")
        return self.datasets[ref]

    def status(self, ref):
        version = self.dataset(ref).versions[-1]
        if version.ready_at > time.time():
            return "BLOBS_RECEIVED"
        return "FAILED" if version.failed else "READY"

    def version(self, ref, number=None):
        """A version that is ready; without a number the newest one of these."""
        dataset = self.dataset(ref)
        number = dataset.ready() if number is None else number
        if not 1 <= number <= len(dataset.versions):
            raise Refused(404, "no such version")
        if not dataset.ready(number):
            raise Refused(403, "it is not processed")
        return dataset.versions[number - 1]

    def _version(self, files, directories, notes):
        failed = self.fail_processing > 0
        self.fail_processing -= failed
        return Version(self._contents("", files, directories), notes, time.time() + self.processing_seconds, failed)

    def _contents(self, folder, files, directories):
        found = {}
        for item in files:
            upload = self._upload(item.get("token"))
            if not upload.complete:
                raise Refused(400, f"{upload.name} is not uploaded completely")
            found |= _unpacked(folder, upload) if upload.name.endswith(".zip") else {folder + upload.name: upload.data}
        for inner in directories:
            found |= self._contents(f"{folder}{inner['name']}/", inner.get("files", []), inner.get("directories", []))
        return found

    # Files behind an address of their own.

    def host(self, data, name):
        address = f"/storage/{secrets.token_hex(8)}/{name}"
        self.hosted[address] = data
        return address


def zipped(files):
    """The bytes of an archive of {path: bytes}."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def _unpacked(folder, upload):
    """Kaggle unpacks archives; what the clients themselves called archive.zip stands for its contents."""
    stem = "" if upload.name == "archive.zip" else upload.name.removesuffix(".zip") + "/"
    with zipfile.ZipFile(io.BytesIO(upload.data)) as archive:
        return {f"{folder}{stem}{name}": archive.read(name) for name in archive.namelist() if not name.endswith("/")}
