"""Calls of Kaggle's own clients, in a process of its own: a request per line of standard input, an answer per line of
standard output, both JSON. `kaggle_process` starts it; nothing imports it.

A process of its own because importing `kaggle` asks the network and may call exit(), because its requests wait for
ever, and because it prints. It imports nothing of Outlast, so that it also runs from a copy that is not installed.

Data sets go through `kaggle` or through `kagglehub`, which the first argument says; the rest only `kaggle` can do.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

_TIMEOUT_SECONDS = (15.0, 90.0)  # to connect; that a server may keep silent
_PIECE_BYTES = 2**20
_METADATA = "dataset-metadata.json"


def push(api: Any, folder: str, seconds: int | None, accelerator: str | None) -> dict[str, Any]:
    """Push the kernel in a folder: a new version of it, which runs."""
    answer = api.kernels_push(folder, str(seconds) if seconds else None, accelerator)
    if answer.error:
        raise ValueError(answer.error)
    unknown = (answer.invalid_dataset_sources, answer.invalid_kernel_sources, answer.invalid_competition_sources)
    return {
        "version": answer.version_number,
        "url": answer.url,
        "unknown": [source for sources in unknown for source in sources],
    }


def kernel_version(api: Any, kernel: str) -> int:
    """The number of the kernel's newest version; 0 if there is none."""
    from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest
    from requests.exceptions import HTTPError

    request = ApiGetKernelRequest()
    request.user_name, request.kernel_slug, _ = api.parse_kernel_string(kernel)
    with api.build_kaggle_client() as client:
        try:
            answer = client.kernels.kernels_api_client.get_kernel(request)
        except HTTPError as error:
            if error.response is not None and error.response.status_code in (403, 404):
                return 0  # to somebody who may not see it, a kernel that isn't there is forbidden
            raise
    return int(answer.metadata.current_version_number or 0)


def status(api: Any, kernel: str) -> dict[str, Any]:
    """How the newest session of a kernel stands."""
    answer = api.kernels_status(kernel)
    return {"state": answer.status.name, "message": answer.failure_message or ""}


def logs(api: Any, kernel: str) -> str:
    """What the newest session printed, as Kaggle keeps it."""
    return str(api.kernels_logs(kernel))


def quota(api: Any) -> dict[str, Any]:
    """The accelerator quota of the week, in seconds."""
    answer = api.quota_view()
    refresh = answer.quota_refresh_time.isoformat() if answer.quota_refresh_time else None
    found = {"gpu": answer.gpu_quota, "tpu": answer.tpu_quota}
    return {
        name: {
            "used": item.time_used.total_seconds() if item.time_used else 0.0,
            "total": item.total_time_allowed.total_seconds() if item.total_time_allowed else 0.0,
            "refresh_at": refresh,
        }
        for name, item in found.items()
        if item is not None
    }


def output(api: Any, kernel: str, to: str, names: list[str] | None, pattern: str | None) -> list[str]:
    """Fetch the files of a kernel's output: those that are named, or that a regular expression finds, or all."""
    import re

    import requests

    wanted = re.compile(pattern) if pattern else None
    fetched = []
    for name, url in list(_output_files(api, kernel)):
        if (names is not None and name not in names) or (wanted is not None and not wanted.search(name)):
            continue
        parts = PurePosixPath(name).parts
        if PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name or "\0" in name or not parts:
            raise ValueError(f"the output of {kernel} names a file outside its folder: {name!r}")
        target = Path(to, *parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with requests.get(url, stream=True) as answer, target.open("wb") as stream:
            for piece in answer.iter_content(_PIECE_BYTES):
                stream.write(piece)
        fetched.append(name)
    return fetched


def _output_files(api: Any, kernel: str) -> Iterator[tuple[str, str]]:
    """(name, address) of each file of the output; the addresses expire."""
    from kagglesdk.kernels.types.kernels_api_service import ApiListKernelSessionOutputRequest

    request = ApiListKernelSessionOutputRequest()
    request.user_name, request.kernel_slug, _ = api.parse_kernel_string(kernel)
    request.page_size = 100
    with api.build_kaggle_client() as client:
        while True:
            answer = client.kernels.kernels_api_client.list_kernel_session_output(request)
            yield from ((item.file_name, item.url) for item in answer.files or [])
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token


def dataset_state(client: Any, ref: str) -> dict[str, Any]:
    """How the newest version of a data set stands, and the number of the newest that can be downloaded."""
    from kagglesdk.datasets.types.dataset_api_service import ApiGetDatasetRequest, ApiGetDatasetStatusRequest
    from requests.exceptions import HTTPError

    found: dict[str, Any] = {"state": "missing", "version": 0}
    with client.build_kaggle_client() as connection:
        service = connection.datasets.dataset_api_client
        for name, request in (("state", ApiGetDatasetStatusRequest()), ("version", ApiGetDatasetRequest())):
            request.owner_slug, _, request.dataset_slug = ref.partition("/")
            try:
                if name == "state":
                    found[name] = service.get_dataset_status(request).status.name
                else:
                    found[name] = int(service.get_dataset(request).current_version_number or 0)
            except HTTPError as error:
                if error.response is None or error.response.status_code not in (403, 404):
                    raise
    return found


def dataset_create(client: Any, folder: str, ref: str) -> None:
    """Make a private data set of the files in a folder, which hold its metadata."""
    if _is_hub(client):
        _upload_by_kagglehub(folder, ref, "")
        return
    answer = client.dataset_create_new(folder, public=False, quiet=True)
    if answer.error or str(answer.status).lower() != "ok":
        raise ValueError(answer.error or f"Kaggle answered {answer.status}")


def dataset_version(client: Any, folder: str, ref: str, notes: str) -> None:
    """Make the files in a folder the newest version of a data set."""
    if _is_hub(client):
        _upload_by_kagglehub(folder, ref, notes)
        return
    answer = client.dataset_create_version(folder, notes, quiet=True)
    if answer.error or str(answer.status).lower() != "ok":
        raise ValueError(answer.error or f"Kaggle answered {answer.status}")


def dataset_file(client: Any, ref: str, version: int, file: str, to: str) -> None:
    """Download one file of one version of a data set."""
    if _is_hub(client):
        import kagglehub

        own = Path(to, ".kagglehub")  # it keeps notes of its own beside what it fetches
        kagglehub.dataset_download(f"{ref}/versions/{version}", path=file, force_download=True, output_dir=str(own))
        (own / file).replace(Path(to, PurePosixPath(file).name))
        shutil.rmtree(own)
        return
    client.dataset_download_file(f"{ref}/{version}", file, path=to, force=True, quiet=True)
    _unpack_one(Path(to), file)


def dataset_files(client: Any, ref: str, version: int, to: str) -> None:
    """Download all files of one version of a data set."""
    if _is_hub(client):
        import kagglehub

        kagglehub.dataset_download(f"{ref}/versions/{version}", force_download=True, output_dir=to)
        shutil.rmtree(Path(to, ".complete"))  # its own notes
        return
    client.dataset_download_files(f"{ref}/{version}", path=to, force=True, quiet=True, unzip=True)


def public_dataset(client: Any, ref: str, to: str) -> str:
    """Download the newest version of a public data set below `to`; the folder of its files. It needs no credentials."""
    import kagglehub

    os.environ["KAGGLEHUB_CACHE"] = to  # where what has arrived of a download that breaks outlives this process
    return str(kagglehub.dataset_download(ref))


def public_competition(client: Any, ref: str, to: str) -> str:
    """Download the files of a competition below `to`; the folder that they are in."""
    import kagglehub

    os.environ["KAGGLEHUB_CACHE"] = to
    return str(kagglehub.competition_download(ref))


def _unpack_one(folder: Path, file: str) -> None:
    """A large file may arrive as an archive of itself."""
    import zipfile

    name = PurePosixPath(file).name
    packed = folder / f"{name}.zip"
    if not (folder / name).exists() and zipfile.is_zipfile(packed):
        with zipfile.ZipFile(packed) as archive:
            archive.extract(name, folder)
        packed.unlink()


def _upload_by_kagglehub(folder: str, ref: str, notes: str) -> None:
    import kagglehub

    kagglehub.dataset_upload(ref, folder, version_notes=notes, ignore_patterns=[_METADATA])


CALLS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        push, kernel_version, status, logs, quota, output, dataset_state, dataset_create, dataset_version, dataset_file,
        dataset_files, public_dataset, public_competition,
    )
}  # fmt: skip


def _kaggle() -> Any:
    """The API of the `kaggle` package, signed in; its uploads are all or nothing."""
    import kaggle

    api = kaggle.api
    if not getattr(api, "_authenticated", False):
        raise PermissionError("no credentials")
    whole = api.upload_files

    def upload_files(request: Any, resources: Any, folder: str, *arguments: Any) -> None:
        """A file that can't be uploaded is left out by the client, and the version made without it."""
        whole(request, resources, folder, *arguments)
        expected = len([path for path in Path(folder).iterdir() if path.name != _METADATA])
        if len(request.files) != expected:
            raise ConnectionError(f"only {len(request.files)} of {expected} files could be uploaded")

    retried = api.with_retry

    def with_retry(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
        """A version whose answer is lost is not made again by the client: who asked looks first whether it is there."""
        return function if function.__name__.startswith("create_dataset") else retried(function, *arguments)

    api.upload_files, api.with_retry = upload_files, with_retry
    return api


def _is_hub(client: Any) -> bool:
    return getattr(client, "__name__", "") == "kagglehub.clients"


def _kagglehub() -> Any:
    """What builds the client of the `kagglehub` package; downloads go through the API, not through mounts."""
    os.environ["DISABLE_KAGGLE_CACHE"] = "true"
    os.environ.setdefault("KAGGLEHUB_VERBOSITY", "error")
    from kagglehub import clients

    return clients


def _require_credentials() -> None:
    from kagglehub.config import get_kaggle_credentials

    if get_kaggle_credentials() is None:
        raise PermissionError("no credentials")


def _never_wait_for_ever() -> None:
    """Give each request a time limit, which the clients leave out, and don't take an error page for a file."""
    import requests

    send = requests.Session.send

    def with_limit(self: Any, request: Any, **settings: Any) -> Any:
        settings["timeout"] = settings.get("timeout") or _TIMEOUT_SECONDS
        answer = send(self, request, **settings)
        if request.method == "GET":
            answer.raise_for_status()
        return answer

    requests.Session.send = with_limit  # type: ignore[method-assign]


def _said(error: BaseException) -> dict[str, Any]:
    """What went wrong, for the process that asked."""
    from requests import exceptions

    response = getattr(error, "response", None)
    if isinstance(error, exceptions.HTTPError) and response is not None:
        wait = response.headers.get("Retry-After", "")
        return {
            "kind": "http",
            "status": response.status_code,
            "wait": float(wait) if wait.replace(".", "", 1).isdigit() else 0.0,
        }
    lost = (
        ConnectionError,
        TimeoutError,
        exceptions.ConnectionError,
        exceptions.Timeout,
        exceptions.ChunkedEncodingError,
    )
    if isinstance(error, lost) or type(error).__module__.startswith("urllib3"):
        return {"kind": "lost"}
    if isinstance(error, PermissionError) and str(error) == "no credentials":
        return {"kind": "credentials"}
    return {"kind": "refused", "type": type(error).__name__}


def main(package: str) -> int:
    """Do what each line of standard input asks, until there are no more."""
    _never_wait_for_ever()
    client: Any = None
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any]
        with contextlib.redirect_stdout(sys.stderr):
            try:
                tempfile.tempdir = asked["temporary"]
                client = client or (_kagglehub() if package == "kagglehub" else _kaggle())
                if package == "kagglehub" and asked["call"] != public_dataset.__name__:
                    _require_credentials()
                answer = {"value": CALLS[asked["call"]](client, **asked["arguments"])}
            except ImportError as error:
                answer = {"error": {"kind": "missing", "message": str(error)}}
            except (Exception, SystemExit) as error:  # the edge of this process: the one that asked tells people
                answer = {"error": {**_said(error), "message": str(error)}}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
