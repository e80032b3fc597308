"""A Kaggle on this machine that the REAL clients talk to: kaggle 2.2.4 and kagglehub 1.0.2, through a proxy variable.

    with KaggleServer(folder) as server:
        environment = server.environment(home)      # for a client's process
        server.faults.append(Fault("CreateDatasetVersion", "500"))

The clients are told that Kaggle is http://localhost and that the proxy is this server, so that each request arrives
here whatever its port. CONNECT is refused and noted: nothing that speaks https can reach anything. State lies in
kaggle_store and kaggle_sessions.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from toys.kaggle_sessions import Sessions
from toys.kaggle_store import Refused, Store, zipped

USER, KEY, TOKEN = "tester", "0123456789abcdef-not-a-real-key", "KGAT_abcdef0123456789-not-real"


@dataclass
class Fault:
    """What goes wrong with requests whose path contains `part`, the first `times` times (after `after` good ones).

    kind: a status ("403", "429", "500", "503"), "slow" (`seconds` late), "lost" (the connection breaks before anything
    is done), "done, but lost" (it breaks instead of the answer), "half" (of an upload arrives, then it breaks),
    "cut" (half of an upload is kept and called whole), "short" (half of the answer's bytes), "damage" (one bit of the
    answer's body differs).
    """

    part: str
    kind: str
    times: int = 1
    after: int = 0
    seconds: float = 1.0
    method: str = ""
    seen: int = 0
    happened: int = 0


class KaggleServer(ThreadingHTTPServer):
    """The server. `store` and `sessions` are its state, `requests` all that was asked, `refused` what was CONNECTed."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.store = Store()
        self.sessions = Sessions(Path(folder), self.store)
        self.sessions.address, self.sessions.token = self.address, TOKEN
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.refused: list[str] = []
        self.page_size = 20
        self.tells_md5 = False  # of hosted files, as Google's storage does
        self.other_output: list[str] = []  # names that every output has besides
        self.lock = threading.Lock()

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.thread.join()
        self.sessions.stop()
        self.server_close()

    def environment(self, home):
        """The variables that make a client of a process talk to this server, and to nothing else."""
        return {
            "HOME": str(home),
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "KAGGLE_USERNAME": USER,
            "KAGGLE_KEY": KEY,
            "KAGGLEHUB_CACHE": str(Path(home) / "kagglehub"),
            "http_proxy": self.address,
            "HTTP_PROXY": self.address,
            "https_proxy": self.address,
            "HTTPS_PROXY": self.address,
        }

    def take_fault(self, method, path):
        with self.lock:
            for fault in self.faults:
                if fault.part in path and fault.method in ("", method) and fault.happened < fault.times:
                    fault.seen += 1
                    if fault.seen > fault.after:
                        fault.happened += 1
                        return fault
        return None

    def handle_error(self, request, client_address):
        """A connection that a client or a fault broke is no news."""

    def count(self, part):
        """How many requests had this in their path."""
        return sum(part in path for _, path in self.requests)


class Lost(Exception):
    """The connection is to break here."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: KaggleServer

    def log_message(self, *_):
        pass

    def do_CONNECT(self):
        self.server.refused.append(self.path)
        self._answer(403, b"nothing outside can be reached from here", "text/plain")

    def do_GET(self):
        self._handle()

    def do_PUT(self):
        self._handle()

    def do_POST(self):
        self._handle()

    def _handle(self):
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.server.requests.append((self.command, path))
        fault = self.server.take_fault(self.command, path)
        try:
            if address.hostname not in (None, "localhost", "127.0.0.1"):
                self.server.refused.append(self.path)
                raise Refused(403, "nothing outside can be reached from here")
            body = self._body(fault)
            if fault is not None and fault.kind == "slow":
                time.sleep(fault.seconds)
            if fault is not None and fault.kind == "lost":
                raise Lost
            if fault is not None and fault.kind.isdigit():
                raise Refused(int(fault.kind), "on purpose", {"Retry-After": "0"} if fault.kind == "429" else {})
            status, data, kind, headers = self._route(path, body)
            if fault is not None and fault.kind == "done, but lost":
                raise Lost
            self._answer(status, data, kind, headers, fault)
        except Refused as error:
            answer = json.dumps({"code": error.status, "message": error.message}).encode()
            self._answer(error.status, answer, "application/json", error.headers)
        except Lost:
            self._break()

    def _body(self, fault):
        length = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.kind == "half":
            self._route(unquote(urlsplit(self.path).path), self.rfile.read(length // 2))
            raise Lost
        body = self.rfile.read(length)
        if fault is not None and fault.kind == "cut":
            token = urlsplit(self.path).path.rpartition("/")[2]
            self.server.store.uploads[token].length = len(body) // 2
            return body[: len(body) // 2]
        return body

    def _break(self):
        self.close_connection = True
        self.connection.close()

    def _answer(self, status, data, kind, headers=None, fault=None):
        if fault is not None and fault.kind == "damage":
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if fault is not None and fault.kind == "short":
            self.wfile.write(data[: len(data) // 2])
            self._break()
            return
        self.wfile.write(data)

    def _route(self, path, body):
        """(status, body, content type, headers) of a request."""
        if path.startswith("/upload/"):
            return self._receive(path.rpartition("/")[2], body)
        if path.startswith("/storage/"):
            return self._hosted(path)
        if path == "/api/v1/security.OAuthService/IntrospectToken":
            return _json({"active": json.loads(body).get("token") == TOKEN, "username": USER})
        found = re.fullmatch(r"/api/v1/([\w.]+)/(\w+)", path)
        method = getattr(self, f"_{found[2]}", None) if found else None
        if method is None:
            raise Refused(404, f"the loopback server has no {path}")
        self._check_credentials()
        with self.server.store.lock:
            return method(json.loads(body or b"{}"))

    def _check_credentials(self):
        basic = "Basic " + base64.b64encode(f"{USER}:{KEY}".encode()).decode()
        if self.headers.get("Authorization") not in (basic, f"Bearer {TOKEN}"):
            raise Refused(401, "Unauthenticated")

    # Uploads and hosted files.

    def _receive(self, token, body):
        upload = self.server.store.receive(token, body, self.headers.get("Content-Range"))
        if upload.complete:
            return 200, b"", "text/plain", {}
        arrived = {"Range": f"bytes=0-{len(upload.data) - 1}"} if upload.data else {}
        return 308, b"", "text/plain", arrived

    def _hosted(self, path):
        data = self.server.store.hosted.get(path)
        if data is None:
            raise Refused(404, "no such file")
        headers = {
            "Accept-Ranges": "bytes",
            "ETag": f'"{hashlib.sha256(data).hexdigest()[:16]}"',
            "Last-Modified": formatdate(time.time(), usegmt=True),
        }
        if self.server.tells_md5:
            headers["X-Goog-Hash"] = "md5=" + base64.b64encode(hashlib.md5(data).digest()).decode()
        wanted = self.headers.get("Range")
        if wanted is None or self.headers.get("If-Range", headers["ETag"]) != headers["ETag"]:
            return 200, data, "application/octet-stream", headers
        start = int(wanted.removeprefix("bytes=").partition("-")[0])
        if start >= len(data):
            raise Refused(416, "there is nothing from there on")
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return 206, data[start:], "application/octet-stream", headers

    def _url(self, data, name):
        return self.server.address + self.server.store.host(data, name)

    # The services that the clients ask, by the names of their methods.

    def _StartBlobUpload(self, asked):
        token = self.server.store.start_upload(asked["name"], asked.get("contentLength", 0))
        return _json({"token": token, "createUrl": f"{self.server.address}/upload/{token}"})

    def _CreateDataset(self, asked):
        ref = f"{asked['ownerSlug']}/{asked['slug']}"
        try:
            self.server.store.create(
                ref, asked["title"], asked.get("isPrivate", False), asked.get("files", []), asked.get("directories", [])
            )
        except Refused as error:
            if error.status == 409:  # said in an answer of status 200, as Kaggle does
                return _json({"status": "error", "error": error.message})
            raise
        return _json({"ref": ref, "url": f"https://www.kaggle.com/datasets/{ref}", "status": "ok"})

    def _CreateDatasetVersion(self, asked):
        ref, body = _ref(asked), asked["body"]
        self.server.store.add_version(
            ref, body.get("files", []), body.get("directories", []), body.get("versionNotes", "")
        )
        return _json({"ref": ref, "url": f"https://www.kaggle.com/datasets/{ref}", "status": "ok"})

    def _GetDatasetStatus(self, asked):
        return _json({"status": self.server.store.status(_ref(asked))})

    def _GetDataset(self, asked):
        dataset = self.server.store.dataset(_ref(asked))
        return _json({"ref": _ref(asked), "title": dataset.title, "currentVersionNumber": dataset.ready()})

    def _GetDatasetMetadata(self, asked):
        dataset = self.server.store.dataset(_ref(asked))
        return _json({"info": {"title": dataset.title, "licenses": [{"name": "unknown"}]}})

    def _DownloadDataset(self, asked):
        files = self.server.store.version(_ref(asked), asked.get("datasetVersionNumber")).files
        name = asked.get("fileName")
        if name is None:
            url = self._url(zipped(files), "archive.zip")
        elif name in files:
            url = self._url(files[name], name)
        else:
            raise Refused(404, f"no file {name}")
        return 302, b"", "text/plain", {"Location": url}

    def _DownloadDataFiles(self, asked):
        files = self.server.store.version(f"competitions/{asked['competitionName']}").files
        return 302, b"", "text/plain", {"Location": self._url(zipped(files), "archive.zip")}

    def _SaveKernel(self, asked):
        return _json(self.server.sessions.push(asked["slug"], asked))

    def _GetKernel(self, asked):
        ref, versions = self._kernel(asked)
        return _json(
            {
                "metadata": {
                    "ref": ref,
                    "title": ref,
                    "slug": asked["kernelSlug"],
                    "currentVersionNumber": len(versions),
                },
                "blob": {"source": versions[-1].request["text"], "slug": asked["kernelSlug"]},
            }
        )

    def _GetKernelSessionStatus(self, asked):
        session = self._kernel(asked)[1][-1]
        return _json({"status": session.status, **({"failureMessage": session.failure} if session.failure else {})})

    def _ListKernelSessionOutput(self, asked):
        session = self._kernel(asked)[1][-1]
        folder = session.output
        paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder is not None else []
        start = int(asked.get("pageToken") or 0)
        end = start + min(asked.get("pageSize") or self.server.page_size, self.server.page_size)
        files = [
            {"fileName": path.relative_to(folder).as_posix(), "url": self._url(path.read_bytes(), path.name)}
            for path in paths[start:end]
        ]
        files += [{"fileName": name, "url": self._url(b"", "x")} for name in self.server.other_output]
        following = {"nextPageToken": str(end)} if end < len(paths) else {}
        return _json({"files": files, "log": session.text(), **following})

    def _GetAcceleratorQuotaStatistics(self, asked):
        sessions = self.server.sessions
        used, total = sessions.quota_used_hours * 3600, sessions.quota_total_hours * 3600
        hours = {"timeUsed": f"{used:.3f}s", "totalTimeAllowed": f"{total:.3f}s"}
        return _json(
            {
                "quotaRefreshTime": "2030-01-05T00:00:00Z",
                "gpuQuota": hours,
                "tpuQuota": {"timeUsed": "0s", "totalTimeAllowed": "72000s"},
            }
        )

    def _kernel(self, asked):
        ref = f"{asked['userName']}/{asked['kernelSlug']}"
        versions = self.server.sessions.kernels.get(ref)
        if not versions:
            raise Refused(403, "Permission 'kernels.get' was denied")
        return ref, versions


def _ref(asked):
    return f"{asked['ownerSlug']}/{asked['datasetSlug']}"


def _json(value):
    return 200, json.dumps(value).encode(), "application/json", {}
