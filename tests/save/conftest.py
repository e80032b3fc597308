"""A real S3 server with an empty bucket for each test, and accidents in this process."""

import threading
import urllib.request
import uuid

import pytest

from outlast.base import accident
from toys.accident import Accident
from toys.bucket import Server


@pytest.fixture(scope="session")
def _server():
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
def s3(_server, monkeypatch, tmp_path):
    """The server without faults, and an empty bucket: s3.url is a mirror's URL."""
    from fsspec.config import conf

    _server.faults, _server.refused_key, _server.requests = [], None, []
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "FIRSTKEYFORTESTS",
        "AWS_SECRET_ACCESS_KEY": "a-secret-for-tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": _server.address,
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(conf, "s3", {"config_kwargs": {"read_timeout": 1}})
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{_server.address}/{bucket}", method="PUT")).close()
    _server.url = f"s3://{bucket}/runs/one"
    return _server


@pytest.fixture
def accidents(monkeypatch):
    """A list of places: coming to one of them raises, as often as it stands in the list."""
    places = []

    def happen(place):
        if place in places:
            places.remove(place)
            raise Accident(place)

    monkeypatch.setattr(accident, "happen", happen)
    return places
