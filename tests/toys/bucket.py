"""An S3 server on this machine (moto) whose answers can be spoiled, and the fixtures that start it."""

import socket
import threading
import time
import urllib.request
import uuid
from dataclasses import dataclass, field

import pytest


@dataclass
class Fault:
    """What goes wrong with requests whose method and path fit, for so many of them."""

    kind: str
    method: str
    part: str
    times: int = 1
    happened: int = 0


@dataclass
class Server:
    """The S3 server: its address, and faults that befall requests before or after moto has answered them."""

    application: object
    address: str = ""
    faults: list = field(default_factory=list)
    refused_key: str | None = None  # requests signed with this access key get 403 ExpiredToken
    requests: list = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, kind, method="PUT", part="", times=1):
        self.faults.append(Fault(kind, method, part, times))
        return self.faults[-1]

    def __call__(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        if self.refused_key and f"Credential={self.refused_key}/" in environ.get("HTTP_AUTHORIZATION", ""):
            return _error(environ, start_response, "403 Forbidden", "ExpiredToken")
        fault = self._take(method, path)
        if fault is None:
            return self.application(environ, start_response)
        if fault.kind in ("500", "503"):
            code = {"500": "InternalError", "503": "ServiceUnavailable"}[fault.kind]
            return _error(environ, start_response, f"{fault.kind} {code}", code)
        if fault.kind == "cut":  # in the middle of what the client sends, or before the answer
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0) // 2)
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        if fault.kind == "silence":
            time.sleep(3.0)
            return _error(environ, start_response, "500 InternalError", "InternalError")
        if fault.kind == "done, but no answer":
            b"".join(self.application(environ, lambda *_: None))
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        headers = []
        body = b"".join(self.application(environ, lambda *answer: headers.append(answer)))
        if fault.kind == "damage" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        status, fields = headers[0][0], headers[0][1]
        start_response(status, fields)  # with "short" the length stays what it was, and half of it comes
        return [body[: len(body) // 2]] if fault.kind == "short" else [body]

    def _take(self, method, path):
        with self.lock:
            for fault in self.faults:
                if fault.method == method and fault.part in path and fault.happened < fault.times:
                    fault.happened += 1
                    return fault
        return None


def _error(environ, start_response, status, code):
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body if environ["REQUEST_METHOD"] != "HEAD" else b""]


@pytest.fixture(scope="session")
def s3_server():
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_):
            pass

    server = Server(DomainDispatcherApplication(create_backend_app))
    http = make_server("127.0.0.1", 0, server, threaded=True, request_handler=Quiet)
    server.address = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield server
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def s3(s3_server, monkeypatch, tmp_path):
    """The server without faults, and an empty bucket: s3.url is a mirror's URL."""
    from fsspec.config import conf

    s3_server.faults, s3_server.refused_key, s3_server.requests = [], None, []
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "FIRSTKEYFORTESTS",
        "AWS_SECRET_ACCESS_KEY": "a-secret-for-tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server.address,
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(conf, "s3", {"config_kwargs": {"read_timeout": 1}})
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{s3_server.address}/{bucket}", method="PUT")).close()
    s3_server.url = f"s3://{bucket}/runs/one"
    return s3_server
