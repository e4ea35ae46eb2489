"""A web server on loopback that misbehaves as told, for tests of downloads."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

CHUNK = 16384


class Server:
    """Serves `files`, each as its `faults` say.

    Attributes:
        files: path (with a leading slash) → content.
        faults: path → how it misbehaves: `status` (answered instead), `truncate` (bytes after which the connection
            breaks), `stall` (bytes after which nothing comes any more), `lie` (bytes added to the true Content-Length),
            `no_length`, `no_ranges`, `no_tag`, `rate` (bytes a second and connection), `times` (only the first so many
            requests), `after` (called with the number of bytes sent, after each chunk).
        requests: path → number of GET requests.
        ranges: (path, Range header) of each GET request.
        sent: path → bytes sent.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, dict[str, Any]] = {}
        self.requests: Counter[str] = Counter()
        self.ranges: list[tuple[str, str | None]] = []
        self.sent: Counter[str] = Counter()
        self.open = threading.Event()
        self.lock = threading.Lock()
        self.running = 0
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are the point
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.open.set()
        self._http.shutdown()
        self._http.server_close()


def _handler(server: Server) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            self.close_connection = True
            with server.lock:
                server.requests[path] += 1
                server.ranges.append((path, self.headers["Range"]))
                count = server.requests[path]
                server.running += 1
            fault = server.faults.get(path, {})
            if count > fault.get("times", count):
                fault = {}
            try:
                self._answer(path, fault)
            finally:
                with server.lock:
                    server.running -= 1

        def _answer(self, path: str, fault: dict[str, Any]) -> None:
            if path not in server.files or "status" in fault:
                self.send_response(fault.get("status", 404))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data, start = server.files[path], 0
            tag = f'"{hash(data)}"'
            wanted, condition = self.headers["Range"], self.headers["If-Range"]
            if wanted and not fault.get("no_ranges") and condition in (None, tag):
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
                if start >= len(data):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(data)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            else:
                self.send_response(200)
            if not fault.get("no_length"):
                self.send_header("Content-Length", str(len(data) - start + fault.get("lie", 0)))
            if not fault.get("no_tag"):
                self.send_header("ETag", tag)
            self.send_header("Connection", "close")
            if path.endswith("/"):
                self.send_header("Content-Type", "text/html")
            self.end_headers()
            self._send(path, data[start:], fault)

        def _send(self, path: str, data: bytes, fault: dict[str, Any]) -> None:
            for begin in range(0, len(data), CHUNK):
                if begin >= fault.get("truncate", len(data)):
                    return
                if begin >= fault.get("stall", len(data)):
                    server.open.wait(30)
                    return
                piece = data[begin : begin + CHUNK]
                self.wfile.write(piece)
                with server.lock:
                    server.sent[path] += len(piece)
                if "rate" in fault:
                    time.sleep(len(piece) / fault["rate"])
                if "after" in fault:
                    fault["after"](begin + len(piece))

    return Handler
