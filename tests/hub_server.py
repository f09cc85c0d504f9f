"""A Hugging Face Hub on 127.0.0.1: the protocol that huggingface_hub speaks, kept in memory, with faults on demand.

Models, data sets and Spaces, private ones with tokens; create, preupload, LFS batch / PUT / multipart / verify, commits as NDJSON
with parent, branches and tags, tree, resolve with ETag, ranges and redirects of large files to a second port (the "CDN", which
must never see a token). `hub.faults` are applied to the requests they fit, `hub.requests` is the log.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import RLock, Thread
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".png", ".tar")
PART = 4 << 20  # larger uploads are asked for in parts of this size
REVISION = r"(?P<revision>[^/]+)"
PATTERNS = {  # of the API below /api/{models,datasets,spaces}/org/name
    "GET": {"info": f"(?:/revision/{REVISION})?", "tree": f"/tree/{REVISION}(?:/(?P<path>.*))?", "refs": "/refs"},
    "POST": {
        "preupload": f"/preupload/{REVISION}",
        "commit": f"/commit/{REVISION}",
        "tag": f"/tag/{REVISION}",
        "branch": "/branch/(?P<name>[^/]+)",
        "paths_info": f"/paths-info/{REVISION}",
    },
}


@dataclass
class Fault:
    """What happens to the next `times` requests of this method whose path fits the pattern, after `skip` that go well.

    action: a status code, with `headers`; "reset" before the answer (RST), "lost" after the request has been carried out, "cut"
    or "rst" in the middle of the body (FIN or RST), "flip" one bit in the middle of it, or a function to call first.
    """

    method: str
    pattern: str
    action: object
    times: int = 1
    skip: int = 0
    headers: dict = field(default_factory=dict)
    seen: int = 0


@dataclass
class User:
    name: str
    write: bool = True


class Repository:
    def __init__(self, private):
        self.private, self.commits, self.branches, self.tags = private, {}, {}, {}
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        self.commit("main", {".gitattributes": (attributes, False)}, "initial commit")

    def resolve(self, revision):
        """The hash of the commit that a branch, tag or hash names; None if there is none."""
        revision = self.branches.get(revision) or self.tags.get(revision) or revision
        return revision if revision in self.commits else None

    def commit(self, branch, files, message):
        parent = self.branches.get(branch)
        tree = sorted((path, _oid(*entry)) for path, entry in files.items())
        oid = hashlib.sha1(f"{parent}{message}{len(self.commits)}{tree}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid


class HubServer:
    """`with HubServer(port) as hub`. Tokens: `hub.tokens[token] = User(organisation)`; others are nobody's."""

    def __init__(self, port=0):
        self.repositories, self.blobs, self.tokens = {}, {}, {}
        self.faults, self.requests, self.lock = [], [], RLock()
        self.port, self.cdn_port = port, 0
        self.servers = []

    def clear(self):
        for kept in (self.repositories, self.blobs, self.tokens, self.faults, self.requests):
            kept.clear()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        self.servers = [_Server(("127.0.0.1", port), handler, self) for port, handler in
                        ((self.port, _Api), (self.cdn_port, _Cdn))]  # fmt: skip
        self.port, self.cdn_port = (server.server_port for server in self.servers)
        for server in self.servers:
            Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        """Nobody listens any more, open connections are reset; what was stored stays."""
        for server in self.servers:
            server.shutdown()
            server.server_close()
            for connection in list(server.connections):
                _reset(connection)

    def files(self, repo, revision="main", kind="models"):
        """Path -> content of a repository."""
        found = self.repositories[kind, repo]
        return {path: content for path, (content, _) in found.commits[found.resolve(revision)].items()}

    def add(self, repo, files, private=False, kind="models"):
        """Put a repository there: path -> content, each a commit of its own would be, in one."""
        found = self.repositories.setdefault((kind, repo), Repository(private))
        old = found.commits[found.branches["main"]]
        return found.commit("main", old | {path: (content, _is_large(path)) for path, content in files.items()}, "add")

    def calls(self, method="", pattern=""):
        return [r for r in self.requests if r["method"].startswith(method) and re.search(pattern, r["path"])]


class _Server(ThreadingHTTPServer):
    daemon_threads, allow_reuse_address, request_queue_size = True, True, 64

    def __init__(self, address, handler, hub):
        self.hub, self.connections = hub, set()
        super().__init__(address, handler)

    def process_request(self, request, client_address):
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        pass  # a client that is killed, or a connection that is reset on purpose


def _reset(connection):
    """Close so that the other side sees ECONNRESET and not the end of the stream."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
    except OSError:
        pass
    connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except (ConnectionError, ValueError, OSError):
            self.close_connection = True

    def _serve(self):
        hub = self.server.hub
        url = urlsplit(self.path)
        self.route, self.query = unquote(url.path), parse_qs(url.query)
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        entry = {"method": self.command, "path": self.route, "token": self.token, "range": self.headers.get("Range")}
        with hub.lock:
            hub.requests.append(entry)
            fault = next(
                (f for f in hub.faults if f.method == self.command and re.search(f.pattern, self.route)), None
            )
            if fault is not None:
                fault.seen += 1
                if fault.seen <= fault.skip:
                    fault = None
                elif fault.seen == fault.skip + fault.times:
                    hub.faults.remove(fault)
        self.action = fault.action if fault else None
        if callable(self.action):
            self.action()
        if self.action == "reset":
            return self._break()
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        if len(self.body) < length:  # the client has ended
            return self._break()
        if isinstance(self.action, int):
            return self._answer(self.action, b"the Hub is unwell", fault.headers)
        with hub.lock:
            answer = self.respond()
        if self.action == "lost":
            return self._break()
        self._answer(*answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _break(self):
        self.close_connection = True
        self.server.connections.discard(self.connection)
        _reset(self.connection)

    def _answer(self, status, body=b"", headers=()):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": len(body)} | dict(headers)
        if self.action == "flip":
            body = body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 1]) + body[len(body) // 2 + 1 :]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.action in ("cut", "rst"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if self.action == "rst":
                time.sleep(0.1)  # else the half would be thrown away with the connection
                return self._break()
            self.close_connection = True
            return None
        self.wfile.write(body)
        return None

    def _ranged(self, content, headers):
        """200 with all, or 206 with the asked range."""
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"} | headers
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return 200, content, headers
        first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        if first >= len(content):
            return 416, b"", {"Content-Range": f"bytes */{len(content)}"}
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return 206, content[first : last + 1], headers

    def log_message(self, *args):
        pass


class _Cdn(_Handler):
    """Large files: uploads to signed addresses, downloads."""

    def respond(self):
        hub, parts = self.server.hub, self.route.strip("/").split("/")
        if self.command == "PUT" and parts[0] == "upload":
            hub.blobs["/".join(parts[1:])] = self.body
            return 200, b"", {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'}
        if self.command in ("GET", "HEAD") and parts[1] in hub.blobs:
            return self._ranged(hub.blobs[parts[1]], {})
        return 404, b"", {}


class _Api(_Handler):
    def respond(self):
        hub = self.server.hub
        if self.route == "/api/repos/create":
            return self._create()
        if self.route == "/api/validate-yaml":
            return self._validate_yaml()
        if self.route == "/api/whoami-v2":
            user = hub.tokens.get(self.token)
            return (
                (200, {"type": "user", "name": user.name, "orgs": []}, {}) if user else (401, {"error": "Invalid"}, {})
            )
        if lfs := re.fullmatch(
            r"/(datasets/|spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/(batch|verify|complete)", self.route
        ):
            refused, self.repo_id = None, lfs[2]
            if lfs[3] != "complete":  # whose address is signed, as those of the parts are
                _, refused = self._repository((lfs[1] or "models").rstrip("/"), lfs[2], write=True)
            return refused or getattr(self, f"_lfs_{lfs[3]}")(self.route.rsplit("/", 1)[0])
        if resolve := re.fullmatch(r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.route):
            found, refused = self._repository((resolve[1] or "models").rstrip("/"), resolve[2])
            return refused or self._resolve(found, resolve[3], resolve[4])
        if api := re.match(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)", self.route):
            for name, pattern in PATTERNS.get(self.command, {}).items():
                if rest := re.fullmatch(pattern, self.route[api.end() :]):
                    write = name in ("preupload", "commit", "tag", "branch")
                    found, refused = self._repository(api[1], api[2], write)
                    self.repo_id = api[2]
                    return refused or getattr(self, f"_{name}")(found, **rest.groupdict())
        return 404, {"error": "Not found"}, {}

    # -- who may do what ---------------------------------------------------------------------------------------------

    def _repository(self, kind, repo_id, write=False):
        """(the repository, None) or (None, the answer that refuses it)."""
        hub, user = self.server.hub, self.server.hub.tokens.get(self.token)
        found = hub.repositories.get((kind, repo_id))
        mine = user is not None and user.name == repo_id.split("/")[0]
        if self.token and user is None:
            return None, (
                401,
                {"error": "Invalid credentials"},
                {"X-Error-Message": "Invalid credentials in Authorization header"},
            )
        if found is None or (found.private and not mine):
            status = 404 if user else 401
            return None, (status, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if write and not (mine and user.write):
            return None, (
                403 if user else 401,
                {"error": "Forbidden"},
                {"X-Error-Message": "you must have write access"},
            )
        return found, None

    def _create(self):
        hub, user, asked = self.server.hub, self.server.hub.tokens.get(self.token), json.loads(self.body)
        if user is None:
            return 401, {"error": "Invalid username or password."}, {}
        repo_id = f"{asked.get('organization') or user.name}/{asked['name']}"
        if repo_id.split("/")[0] != user.name or not user.write:
            return (
                403,
                {"error": "Forbidden"},
                {"X-Error-Message": "you don't have the rights to create a model there"},
            )
        if asked.get("type") == "space" and not asked.get("sdk"):
            return 400, {"error": "A Space needs an sdk"}, {}
        key = (asked.get("type", "model") + "s", repo_id)
        exists = key in hub.repositories
        hub.repositories.setdefault(key, Repository(asked.get("visibility") == "private"))
        return 409 if exists else 200, {"url": f"{hub.url}/{repo_id}", "name": repo_id}, {}

    def _validate_yaml(self):
        from huggingface_hub import ModelCard

        try:
            ModelCard(json.loads(self.body)["content"], ignore_metadata_errors=False)
        except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            return 400, {"errors": [{"message": str(error)}], "warnings": []}, {}
        return 200, {"errors": [], "warnings": []}, {}

    # -- reading -----------------------------------------------------------------------------------------------------

    def _at(self, found, revision):
        """(commit, its files, None), or the answer that there is none."""
        commit = found.resolve(unquote(revision or "main"))
        if commit is None:
            return None, None, (404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        return commit, found.commits[commit], None

    def _info(self, found, revision):
        commit, files, missing = self._at(found, revision)
        siblings = [{"rfilename": path} for path in files or ()]
        info = {
            "id": self.repo_id,
            "sha": commit,
            "private": found.private,
            "siblings": siblings,
            "tags": [],
            "downloads": 0,
        }
        return missing or (200, info, {})

    def _tree(self, found, revision, path):
        commit, files, missing = self._at(found, revision)
        if missing:
            return missing
        below, deep = f"{path}/" if path else "", self.query.get("recursive", ["False"])[0].lower() == "true"
        inside = {name: entry for name, entry in files.items() if name.startswith(below)}
        if path and not inside:
            return 404, {"error": "Not found"}, {"X-Error-Code": "EntryNotFound"}
        folders = {
            name[: i + 1] for name in inside for i, letter in enumerate(name) if letter == "/" and i >= len(below)
        }
        rows = [
            {"type": "directory", "path": f[:-1], "oid": hashlib.sha1(f.encode()).hexdigest(), "size": 0}
            for f in sorted(folders)
        ]
        rows += [_describe(name, *entry) for name, entry in inside.items()]
        if not deep:
            rows = [row for row in rows if "/" not in row["path"][len(below) :]]
        return 200, rows, {}

    def _paths_info(self, found, revision):
        commit, files, missing = self._at(found, revision)
        asked = self.body.decode()
        asked = json.loads(asked)["paths"] if asked.startswith("{") else parse_qs(asked)["paths"]
        asked = [asked] if isinstance(asked, str) else asked
        return missing or (200, [_describe(path, *files[path]) for path in asked if path in files], {})

    def _refs(self, found):
        named = lambda names, kind: [  # noqa: E731
            {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit} for name, commit in names.items()
        ]
        return 200, {"branches": named(found.branches, "heads"), "tags": named(found.tags, "tags"), "converts": []}, {}

    def _resolve(self, found, revision, path):
        commit, files, missing = self._at(found, revision)
        if missing:
            return missing
        headers = {"X-Repo-Commit": commit}
        if path not in files:
            return 404, {"error": "Entry not found"}, headers | {"X-Error-Code": "EntryNotFound"}
        content, large = files[path]
        if not large:
            return self._ranged(content, headers | {"ETag": f'"{_git_hash(content)}"'})
        sha256 = hashlib.sha256(content).hexdigest()
        self.server.hub.blobs[sha256] = content
        headers |= {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": len(content)}
        return 302, b"", headers | {"Location": f"http://127.0.0.1:{self.server.hub.cdn_port}/blob/{sha256}/{path}"}

    # -- writing -----------------------------------------------------------------------------------------------------

    def _preupload(self, found, revision):
        commit, files, missing = self._at(found, revision)
        rows = []
        for asked in json.loads(self.body)["files"] if not missing else ():
            entry, path = files.get(asked["path"]), asked["path"]
            oid = _oid(*entry) if entry else None
            rows.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if _is_large(path) else "regular",
                    "shouldIgnore": False,
                    "oid": oid,
                }
            )
        return missing or (200, {"files": rows}, {})

    def _key(self, oid):
        """Where an uploaded object lies: each repository has its own."""
        return f"{self.repo_id}/{oid}"

    def _lfs_batch(self, base):
        hub, rows = self.server.hub, []
        cdn = f"http://127.0.0.1:{hub.cdn_port}/upload/{self.repo_id}"
        for asked in json.loads(self.body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            row = {"oid": oid, "size": size}
            if self._key(oid) not in hub.blobs:
                upload = {"href": f"{cdn}/{oid}"}
                if size > PART:
                    parts = {f"{n + 1:05d}": f"{cdn}/{oid}/{n + 1}" for n in range(-(-size // PART))}
                    upload = {"href": f"{hub.url}{base}/complete", "header": {"chunk_size": str(PART)} | parts}
                row["actions"] = {"upload": upload, "verify": {"href": f"{hub.url}{base}/verify"}}
            rows.append(row)
        return 200, {"transfer": "basic", "objects": rows}, {}

    def _lfs_complete(self, base):
        hub, asked = self.server.hub, json.loads(self.body)
        key = self._key(asked["oid"])
        hub.blobs[key] = b"".join(hub.blobs.pop(f"{key}/{part['partNumber']}") for part in asked["parts"])
        return 200, {}, {}

    def _lfs_verify(self, base):
        asked = json.loads(self.body)
        found = self.server.hub.blobs.get(self._key(asked["oid"]))
        whole = found is not None and hashlib.sha256(found).hexdigest() == asked["oid"]
        return (200, {}, {}) if whole else (422, {"error": "the uploaded object is not what was announced"}, {})

    def _commit(self, found, revision):
        hub, revision = self.server.hub, unquote(revision)
        if revision not in found.branches:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, head = lines[0]["value"], found.branches[revision]
        if header.get("parentCommit") not in (None, head):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}, {}
        files = dict(found.commits[head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = (base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if self._key(value["oid"]) not in hub.blobs:
                    return 400, {"error": f"the LFS object of {value['path']} was not uploaded"}, {}
                files[value["path"]] = (hub.blobs[self._key(value["oid"])], True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                files = {
                    path: entry
                    for path, entry in files.items()
                    if not path.startswith(value["path"].rstrip("/") + "/")
                }
        oid = found.commit(revision, files, header["summary"])
        return 200, {"commitUrl": f"{hub.url}/{self.repo_id}/commit/{oid}", "commitOid": oid, "hookOutput": ""}, {}

    def _tag(self, found, revision):
        name, commit = json.loads(self.body)["tag"], found.resolve(unquote(revision))
        if name in found.tags:
            return 409, {"error": "Tag exists"}, {}
        found.tags[name] = commit
        return 200, {}, {}

    def _branch(self, found, name):
        if name in found.branches:
            return 409, {"error": "Branch exists"}, {}
        found.branches[name] = found.branches["main"]
        return 200, {}, {}


def _is_large(path):
    return path.endswith(LFS_SUFFIXES)


def _git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _oid(content, large):
    return hashlib.sha256(content).hexdigest() if large else _git_hash(content)


def _describe(path, content, large):
    """A file's row in a tree."""
    row = {"type": "file", "path": path, "size": len(content), "oid": _git_hash(content)}
    if large:
        sha256 = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
        row |= {"oid": _git_hash(pointer), "lfs": {"oid": sha256, "size": len(content), "pointerSize": len(pointer)}}
    return row
