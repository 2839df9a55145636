"""A Hugging Face hub on this machine, as far as downloads talk to one, and a client that asks it."""

import contextlib
import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """``/<user>/<name>/resolve/<revision>/<file>`` and the list of a repository's files, as the hub answers them."""

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        if "/resolve/" in self.path:
            self.server.fetched.append(self.path)
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        if self.path.startswith("/api/models/"):
            data, headers = self.listed(*self.path.split("/")[3:5]), {"Content-Type": "application/json"}
            return self.reply(200, data, headers, with_body)
        repository, _, file = self.path.strip("/").partition("/resolve/")
        path = self.server.folder / repository / file.partition("/")[2]
        if not path.is_file():
            known = (self.server.folder / repository).is_dir()
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound"}, with_body)
        data = path.read_bytes()
        self.reply(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'}, with_body)

    def listed(self, user: str, name: str) -> bytes:
        """A repository's description, which holds the list of its files, or that list alone."""
        folder = self.server.folder / user / name
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        names = [str(file.relative_to(folder)) for file in files]
        if "/tree/" in self.path:
            sizes = [file.stat().st_size for file in files]
            answer = [{"type": "file", "path": n, "size": size, "oid": COMMIT} for n, size in zip(names, sizes)]
        else:
            answer = {"id": f"{user}/{name}", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
        return json.dumps(answer).encode()

    def reply(self, status: int, data: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in (headers | {"X-Repo-Commit": COMMIT, "Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, *arguments) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[ThreadingHTTPServer]:
    """A hub of the repositories ``<user>/<name>`` in ``folder``; its ``fetched`` holds the paths of the files that were."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.folder, server.fetched = folder, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@contextlib.contextmanager
def hub_client(**environment: str) -> Iterator[None]:
    """Within, the hub's client is a freshly imported one: it reads its environment once, when it is imported."""

    def take_out() -> dict:
        names = [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]
        return {name: sys.modules.pop(name) for name in names}

    before, variables = take_out(), dict(os.environ)
    for name in [name for name in os.environ if name.startswith("HF_")]:
        del os.environ[name]
    os.environ.update(environment, HF_HUB_DISABLE_PROGRESS_BARS="1")
    try:
        yield
    finally:
        take_out()
        sys.modules.update(before)
        os.environ.clear()
        os.environ.update(variables)
