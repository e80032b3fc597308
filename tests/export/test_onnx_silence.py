"""ONNX Runtime reports its use over the network unless it is told not to: exports tell it."""

import importlib.metadata
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from packaging.version import Version

SINCE = "1.29"  # its builds for Linux report from this version on
CODE = {
    "exports": "from outlast.export.onnx_library import library; library('onnxruntime')",
    "bare": "import onnxruntime",
}


class Listener(BaseHTTPRequestHandler):
    """A proxy that refuses, and remembers what was asked for."""

    def do_CONNECT(self):
        self.server.asked.append(self.path)
        self.send_error(403)

    def log_message(self, *args):
        pass


@pytest.fixture
def proxy():
    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def asked_by(code, proxy, seconds):
    """What a new process that runs `code` asks the network for."""
    hidden = ("no_proxy", "ort_disable_telemetry", "ci")
    environ = {name: value for name, value in os.environ.items() if name.lower() not in hidden}
    environ |= {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.server_port}"}
    environ["https_proxy"] = environ["HTTPS_PROXY"]
    process = subprocess.Popen([sys.executable, "-c", f"{code}; import time; time.sleep({seconds})"], env=environ)
    end = time.monotonic() + seconds + 30
    while process.poll() is None and not proxy.asked and time.monotonic() < end:
        time.sleep(0.05)
    process.kill()
    process.wait()
    return proxy.asked


@pytest.mark.skipif(
    Version(importlib.metadata.version("onnxruntime")) < Version(SINCE), reason=f"reports only since {SINCE}"
)
def test_an_export_reports_to_nobody(proxy):
    assert asked_by(CODE["exports"], proxy, seconds=8) == []
    assert asked_by(CODE["bare"], proxy, seconds=20), "the check itself no longer sees a report: look at it again"
