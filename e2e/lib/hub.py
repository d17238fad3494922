"""A stand-in of the Hugging Face hub that speaks its protocol for one model: revisions, listing, files and ranges.

Tests run it in their own process and let it misbehave; ``python hub.py OWNER/NAME FOLDER PORT`` serves a model folder,
in a pod for instance. Standard library only, and this file alone.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Hub:
    """What the stand-in serves, what it does wrong, and what it was asked for."""

    model: str
    """OWNER/NAME; there is no other."""
    files: dict[str, bytes]
    commit: str
    """What every branch stands for."""
    url: str = ""
    claimed: dict[str, bytes] = field(default_factory=dict)
    """Contents that the listing describes where it differs from what is sent."""
    refuse: tuple[int, str] | None = None
    cut_after: int | None = None
    """Close the connection once, after so many bytes of a large file."""
    downloads: list[tuple[str, str]] = field(default_factory=list)
    """(file, Range header)."""

    def entry(self, path: str) -> dict[str, Any]:
        data = self.claimed.get(path, self.files[path])
        entry: dict[str, Any] = {"size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
        if path.endswith(".safetensors"):
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if hub.refuse:
                self.answer(hub.refuse[0], b"{}", {"X-Error-Code": hub.refuse[1]})
            elif path.startswith(f"/api/models/{hub.model}/revision/"):
                siblings = [{"rfilename": name, **hub.entry(name)} for name in hub.files]
                asked = path.rpartition("/")[2]
                commit = asked if len(asked) == 40 else hub.commit
                self.json({"id": hub.model, "sha": commit, "siblings": siblings})
            elif path.startswith(f"/api/models/{hub.model}/tree/"):
                self.json([self.leaf(name) for name in hub.files])
            elif path.startswith(f"/{hub.model}/resolve/"):
                self.commit, _, name = path.removeprefix(f"/{hub.model}/resolve/").partition("/")
                self.file(name)
            else:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def leaf(self, name: str) -> dict[str, Any]:
            entry = hub.entry(name)
            lfs = entry.pop("lfs", None)
            leaf = {"type": "file", "path": name, "size": entry["size"], "oid": entry["blobId"]}
            return leaf | ({"lfs": {"oid": lfs["sha256"], **lfs}} if lfs else {})

        def json(self, value: Any) -> None:
            self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def file(self, name: str) -> None:
            data, start = hub.files[name], 0
            etag = hashlib.sha256(hub.claimed.get(name, data)).hexdigest()
            if span := self.headers.get("Range"):
                start = int(span.removeprefix("bytes=").partition("-")[0])
            if self.command == "GET":
                hub.downloads.append((name, span or ""))
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self.commit, "Accept-Ranges": "bytes"}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.answer(206 if start else 200, data[start:], headers)

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.cut_after is not None and len(body) > hub.cut_after:
                cut, hub.cut_after = hub.cut_after, None
                self.wfile.write(body[:cut])
                self.close_connection = True
                return
            self.wfile.write(body)

    return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """On a free port of this machine, whose address is then `hub.url`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def of_folder(model: str, folder: Path) -> Hub:
    """A hub that has the files of `folder`, with a commit that follows from their bytes."""
    files = {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}
    digests = b"".join(name.encode() + hashlib.sha256(data).digest() for name, data in files.items())
    return Hub(model, files, commit=hashlib.sha1(digests).hexdigest())


def main() -> None:
    model, folder, port = sys.argv[1:]
    ThreadingHTTPServer(("", int(port)), _handler(of_folder(model, Path(folder)))).serve_forever()


if __name__ == "__main__":
    main()
