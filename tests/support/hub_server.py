"""A small Hub: the endpoints that huggingface_hub and transformers call to push and to load models, in memory.

Stands in for a self-hosted Hub: of those on PyPI (November 2026) hf-local-hub ships its command line without its
server, and the others are names without code. Paths, payloads, status codes and headers are those that huggingface_hub
1.33 to 2.4 sends and reads (`hf_api.py`, `_commit_api.py`, `lfs.py`, `file_download.py`). Xet is not spoken: clients
are started with HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_test"
LFS_SUFFIXES = (".safetensors", ".onnx", ".jpg", ".png")


@dataclass(frozen=True)
class File:
    """A file of a commit: its own bytes, or where they are among the large files."""

    content: bytes | None = None
    sha256: str | None = None
    size: int = 0

    @property
    def oid(self) -> str:
        """Git's name of the blob, or the sha256 of a large file."""
        return self.sha256 or hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def length(self) -> int:
        return self.size if self.content is None else len(self.content)


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)

    def commit_of(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    def add_commit(self, files: dict[str, File], message: str, ref: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)}{message}{sorted(files)}".encode()).hexdigest()
        self.commits[oid] = files
        self.refs[ref] = oid
        self.messages.append(message)
        return oid


class Hub:
    """What the server knows; `requests` lists every call as "METHOD path"."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.endpoint = ""
        self.lock = threading.RLock()


class Refusal(Exception):
    def __init__(self, status: int, code: str):
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_any(self) -> None:
        address = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {address.path}")
        length = int(self.headers.get("Content-Length") or 0)
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        body = b"".join(self.chunks()) if chunked else self.rfile.read(length)
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        try:
            with self.hub.lock:
                self.route(parts, body, parse_qs(address.query))
        except Refusal as refusal:
            self.answer(refusal.status, {"error": refusal.code}, {"X-Error-Code": refusal.code})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().strip(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    @property
    def authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, name: str) -> Repository:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self.authorized):
            raise Refusal(401 if not self.authorized else 404, "RepoNotFound")
        return found

    def files(self, repository: Repository, revision: str) -> tuple[str, dict[str, File]]:
        commit = repository.commit_of(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound")
        return commit, repository.commits[commit]

    def route(self, parts: list[str], body: bytes, query: dict[str, list[str]]) -> None:
        if self.command == "PUT":
            return self.put_large(parts[-1], body)
        match parts:
            case ["api", "whoami-v2"] if self.authorized:
                return self.answer(200, {"type": "user", "name": "tester", "orgs": []})
            case ["api", "validate-yaml"]:
                return self.answer(200, {"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                return self.create(json.loads(body))
            case [owner, repo, "info", "lfs", "objects", "batch"]:
                return self.lfs_batch(f"{owner}/{repo.removesuffix('.git')}", json.loads(body))
            case ["large", sha256]:
                return self.answer(200, self.hub.large[sha256])
            case [owner, name, "resolve", revision, *path]:
                return self.resolve(f"{owner}/{name}", revision, "/".join(path))
            case ["api", "models", owner, name, *rest]:
                return self.model(f"{owner}/{name}", rest, body, query)
        raise Refusal(404, "EntryNotFound")

    def model(self, name: str, rest: list[str], body: bytes, query: dict[str, list[str]]) -> None:
        repository = self.repository(name)
        match rest:
            case [] | ["revision", _]:
                commit, files = self.files(repository, rest[1] if rest else "main")
                siblings = [{"rfilename": path} for path in files]
                info = {"id": name, "sha": commit, "private": repository.private, "siblings": siblings, "tags": []}
                return self.answer(200, info | {"lastModified": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")})
            case ["tree", revision, *folder]:
                return self.answer(200, self.tree(self.files(repository, revision)[1], "/".join(folder)))
            case ["refs"]:
                branches = [
                    {"name": r, "ref": f"refs/heads/{r}", "targetCommit": c} for r, c in repository.refs.items()
                ]
                return self.answer(200, {"branches": branches, "tags": [], "converts": []})
            case ["tag", revision]:
                commit, _ = self.files(repository, revision)
                repository.refs[json.loads(body)["tag"]] = commit
                return self.answer(200, {})
            case ["preupload", revision]:
                return self.preupload(repository, revision, json.loads(body))
            case ["commit", revision]:
                return self.commit(name, revision, body, "create_pr" in query)
        raise Refusal(404, "EntryNotFound")

    def create(self, wanted: dict[str, Any]) -> None:
        if not self.authorized:
            raise Refusal(401, "Unauthorized")
        name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
        url = {"url": f"{self.hub.endpoint}/{name}", "id": name, "name": name}
        if name in self.hub.repositories:
            return self.answer(409, url)
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        repository = self.hub.repositories[name] = Repository(private=private)
        repository.add_commit({".gitattributes": File(b"*.safetensors filter=lfs\n")}, "initial commit", "main")
        self.answer(200, url)

    def tree(self, files: dict[str, File], folder: str) -> list[dict[str, Any]]:
        entries = []
        for path, file in files.items():
            if not folder or path.startswith(f"{folder}/"):
                entry = {"type": "file", "path": path, "oid": file.oid, "size": file.length}
                if file.content is None:
                    entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
                entries.append(entry)
        return entries

    def preupload(self, repository: Repository, revision: str, wanted: dict[str, Any]) -> None:
        _, present = self.files(repository, revision)
        answers = []
        for file in wanted["files"]:
            mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular"
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in present:
                answer["oid"] = present[file["path"]].oid
            answers.append(answer)
        self.answer(200, {"files": answers})

    def lfs_batch(self, name: str, wanted: dict[str, Any]) -> None:
        self.repository(name)
        objects = []
        for item in wanted["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.large:
                entry["actions"] = {"upload": {"href": f"{self.hub.endpoint}/large/{item['oid']}"}}
            objects.append(entry)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def put_large(self, sha256: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != sha256:
            raise Refusal(422, "WrongContent")
        self.hub.large[sha256] = body
        self.answer(200)

    def commit(self, name: str, revision: str, body: bytes, create_pr: bool) -> None:
        repository = self.repository(name)
        if not self.authorized:
            raise Refusal(403, "Forbidden")
        _, present = self.files(repository, revision)
        files, message = dict(present), ""
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                message = value["summary"]
            elif operation["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]))
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    raise Refusal(400, "LfsObjectMissing")
                files[value["path"]] = File(None, value["oid"], len(self.hub.large[value["oid"]]))
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        ref = f"refs/pr/{len(repository.commits)}" if create_pr else revision
        oid = repository.add_commit(files, message, ref)
        url = f"{self.hub.endpoint}/{name}"
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}"}
        if create_pr:
            answer["pullRequestUrl"] = f"{url}/discussions/{ref.rsplit('/', 1)[1]}"
        self.answer(200, answer)

    def resolve(self, name: str, revision: str, path: str) -> None:
        commit, files = self.files(self.repository(name), revision)
        headers = {"X-Repo-Commit": commit}
        file = files.get(path)
        if file is None:
            return self.answer(404, {"error": "Entry not found"}, headers | {"X-Error-Code": "EntryNotFound"})
        if file.content is not None:
            return self.answer(200, file.content, headers | {"ETag": f'"{file.oid}"'})
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        elsewhere = self.hub.endpoint.replace("127.0.0.1", "localhost")  # its store is another host
        self.answer(302, b"", headers | {"Location": f"{elsewhere}/large/{file.sha256}"})


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub on a free port of this machine, until the block ends."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
