"""A Hub on the loopback: repositories, tokens, large files and commits over the real protocol, kept in memory."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

ID = r"(?P<id>[^/]+/[^/]+)"
ROUTES = [
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", rf"/api/models/{ID}/preupload/(?P<rev>[^/]+)", "preupload"),
    ("POST", rf"/{ID}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/storage/(?P<oid>[0-9a-f]{64})", "store"),
    ("POST", r"/storage/(?P<oid>[0-9a-f]{64})/verify", "verify"),
    ("POST", rf"/api/models/{ID}/commit/(?P<rev>[^/]+)", "commit"),
    ("GET", rf"/api/models/{ID}/tree/(?P<rev>[^/]+)", "tree"),
    ("GET", rf"/api/models/{ID}(/revision/(?P<rev>[^/]+))?", "info"),
    ("HEAD", rf"/{ID}/resolve/(?P<rev>[^/]+)/(?P<file>.+)", "resolve"),
    ("GET", rf"/{ID}/resolve/(?P<rev>[^/]+)/(?P<file>.+)", "resolve"),
]


@dataclass
class File:
    """One file of a repository; `lfs` where it came through the large-file storage."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repo:
    """A repository: its commits in order, each with all files as they stood."""

    private: bool
    commits: list[tuple[str, str, dict[str, File]]] = field(default_factory=list)

    @property
    def files(self) -> dict[str, File]:
        return self.commits[-1][2]

    def add(self, message: str, files: dict[str, File]) -> str:
        digest = hashlib.sha1(f"{len(self.commits)} {message}".encode())
        for name, file in sorted(files.items()):
            digest.update(f"{name} {file.sha256}".encode())
        self.commits.append((digest.hexdigest(), message, files))
        return digest.hexdigest()

    def at(self, revision: str) -> tuple[str, dict[str, File]] | None:
        if revision == "main":
            return self.commits[-1][0], self.files
        return next(((oid, files) for oid, _, files in self.commits if oid == revision), None)


@dataclass
class FakeHub:
    """The server; use as a context manager.

    Attributes:
        tokens: account of every valid token.
        readers: tokens that may only read.
        ignored: names that the repositories' .gitignore leaves out.
        refuse: status that is answered on a route by the route's name.
        repos: the repositories.
        storage: large files by sha256.
        requests: (method, path, headers, body) of every request so far.
    """

    tokens: dict[str, str] = field(default_factory=dict)
    readers: set[str] = field(default_factory=set)
    ignored: set[str] = field(default_factory=set)
    refuse: dict[str, int] = field(default_factory=dict)
    repos: dict[str, Repo] = field(default_factory=dict)
    storage: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def __enter__(self) -> "FakeHub":
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def make(self, repo_id: str, files: dict[str, bytes] | None = None, private: bool = False) -> Repo:
        """A repository that is there already."""
        repo = self.repos[repo_id] = Repo(private)
        first = {".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})}
        repo.add("initial commit", {name: File(content, False) for name, content in first.items()})
        return repo

    def paths(self, method: str) -> list[str]:
        """Paths of the requests of one method, in order."""
        return [path for name, path, _, _ in self.requests if name == method]


class Handler(BaseHTTPRequestHandler):
    """One request: checks the token, finds the route, answers."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Keeps the tests' output quiet."""

    def serve(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self.read_chunks()
        path = unquote(url.path)
        self.hub.requests.append((self.command, path, dict(self.headers), body))
        self.query = parse_qs(url.query)
        for method, pattern, name in ROUTES:
            found = re.fullmatch(pattern, path)
            if method == self.command and found:
                if name in self.hub.refuse:
                    return self.error(self.hub.refuse[name], "not now")
                return getattr(self, name)(body, **{k: v for k, v in found.groupdict().items() if v is not None})
        return self.error(404, f"no route {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = serve

    def read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def error(self, status: int, message: str, code: str | None = None) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer({"error": message}, status, headers)

    def account(self) -> str | None:
        """The account of the request's token; None without one; an answer of 401 (and "") for a wrong one."""
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if given and given not in self.hub.tokens:
            self.error(401, "Invalid credentials in Authorization header")
            return ""
        return self.hub.tokens.get(given)

    def writable(self, namespace: str) -> bool:
        """Whether the request may write below the namespace; answers 401 or 403 if not."""
        account = self.account()
        if account == "":
            return False
        if account is None:
            self.error(401, "Invalid username or password.")
            return False
        reader = self.headers["Authorization"].removeprefix("Bearer ") in self.hub.readers
        if account != namespace or reader:
            self.error(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
            return False
        return True

    def readable(self, id: str, rev: str = "main") -> tuple[Repo, str, dict[str, File]] | None:
        """Repository, commit and files; answers like the Hub and returns None where the request may not see them."""
        account = self.account()
        if account == "":
            return None
        repo = self.hub.repos.get(id)
        if repo is None or (repo.private and account != id.split("/")[0]):
            self.error(404 if account else 401, "Repository not found", "RepoNotFound")
            return None
        found = repo.at(rev)
        if found is None:
            self.error(404, f"Invalid rev id: {rev}", "RevisionNotFound")
            return None
        return repo, *found

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        id = f"{asked['organization']}/{asked['name']}"
        if not self.writable(asked["organization"]):
            return
        status = 409 if id in self.hub.repos else 200
        if status == 200:
            self.hub.make(id, private=asked.get("visibility") == "private")
        told = {"url": f"{self.hub.url}/{id}", "name": id}
        self.answer(told | ({"error": "You already created this model repo"} if status == 409 else {}), status)

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        bad = not content.startswith("---\n") or "license: not-a-licence" in content
        errors = [{"message": '"license" must be one of [apache-2.0, mit, ...]'}] if bad else []
        self.answer({"errors": errors, "warnings": []}, 400 if bad else 200)

    def preupload(self, body: bytes, id: str, rev: str) -> None:
        if not self.writable(id.split("/")[0]):
            return
        there = self.hub.repos[id].files
        answer = []
        for asked in json.loads(body)["files"]:
            name, old = asked["path"], there.get(asked["path"])
            large = name.endswith(".safetensors") or asked["size"] > 10_000_000
            oid = {"oid": old.sha256 if old.lfs else old.oid} if old else {}
            ignore = name in self.hub.ignored
            answer.append({"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": ignore} | oid)
        self.answer({"files": answer})

    def batch(self, body: bytes, id: str) -> None:
        if not self.writable(id.split("/")[0]):
            return
        objects = []
        for asked in json.loads(body)["objects"]:
            href = f"{self.hub.url}/storage/{asked['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(asked | ({} if asked["oid"] in self.hub.storage else {"actions": actions}))
        self.answer({"transfer": "basic", "objects": objects})

    def store(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.error(400, "the content does not match its digest")
        self.hub.storage[oid] = body
        return self.answer({})

    def verify(self, body: bytes, oid: str) -> None:
        whole = len(self.hub.storage.get(oid, b"")) == json.loads(body)["size"]
        self.answer({}, 200 if whole else 404)

    def commit(self, body: bytes, id: str, rev: str) -> None:
        if not self.writable(id.split("/")[0]):
            return None
        repo = self.hub.repos[id]
        files, message = dict(repo.files), ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.storage:
                    return self.error(400, f"large file {value['path']} was never uploaded")
                files[value["path"]] = File(self.hub.storage[value["oid"]], lfs=True)
            elif item["key"] == "deletedFile" and files.pop(value["path"], None) is None:
                return self.error(404, "A file with this name doesn't exist", "EntryNotFound")
        oid = repo.add(message, files)
        return self.answer({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{id}/commit/{oid}"})

    def tree(self, body: bytes, id: str, rev: str) -> None:
        if (found := self.readable(id, rev)) is None:
            return
        entries = []
        for name, file in found[2].items():
            lfs = {"lfs": {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}} if file.lfs else {}
            entries.append({"type": "file", "oid": file.oid, "size": len(file.content), "path": name} | lfs)
        self.answer(entries)

    def info(self, body: bytes, id: str, rev: str = "main") -> None:
        if (found := self.readable(id, rev)) is not None:
            repo, oid, files = found
            siblings = [{"rfilename": name} for name in files]
            self.answer({"id": id, "private": repo.private, "sha": oid, "siblings": siblings, "tags": []})

    def resolve(self, body: bytes, id: str, rev: str, file: str) -> None:
        if (found := self.readable(id, rev)) is None:
            return None
        _, oid, files = found
        if file not in files:
            return self.error(404, "Entry not found", "EntryNotFound")
        got = files[file]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{got.sha256 if got.lfs else got.oid}"'}
        if got.lfs:
            headers |= {"X-Linked-Etag": f'"{got.sha256}"', "X-Linked-Size": str(len(got.content))}
        return self.answer(got.content, 200, headers)
