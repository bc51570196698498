"""The wire protocol of the small Hub in hub_double.py: routes and answers. All state is in `hub`."""

import base64
import dataclasses
import hashlib
import json
import re
import socket
import struct
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from hub_double import Repo

RETRY_AFTER = "1"  # seconds, with 429
LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".pt", ".pkl")

# How a request may fail: a status; "cut" in the middle of what is sent; "half" of an answer to what was done; "stall",
# no answer to what was not done; "lost", no answer to what was.
FAULTS = ("429", "500", "503", "cut", "half", "stall", "lost", "401")


class Refusal(Exception):
    """An answer of the Hub that is not a success: status, X-Error-Code, X-Error-Message."""

    def __init__(self, status: int, message: str, code: str = ""):
        self.status, self.message, self.code = status, message, code


@dataclasses.dataclass
class Seen:
    """A request as it came in, and how it was answered (0: the connection was cut)."""

    method: str
    path: str
    token: str | None
    status: int


def entry(path: str, data: bytes) -> dict:
    """A file as `tree` and `paths-info` describe it."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    info = {"type": "file", "path": path, "size": len(data), "oid": blob}
    if path.endswith(LFS_SUFFIXES):
        info["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return info


def content_id(path: str, files: dict[str, bytes]) -> str | None:
    """What tells a client whether a file would change; None for a new one."""
    described = entry(path, files[path]) if path in files else {"oid": None}
    return described.get("lfs", described)["oid"]


class Handler(BaseHTTPRequestHandler):
    """One connection. Subclassed with `hub` set, because http.server makes handlers itself."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub = None

    def log_message(self, *args) -> None:
        """Keep the test's output quiet."""
        pass

    def answer(self) -> None:
        """Answer one request, or break it as `hub.cuts` and `hub.stalls` say."""
        split = urlsplit(self.path)
        self.query, path = parse_qs(split.query), unquote(split.path)
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        seen = Seen(self.command, path, self.token, 0)
        self.hub.seen.append(seen)
        if any(method == self.command and part in path for method, part in self.hub.stalls):
            self.hub.closing.wait()
            return self.hang_up()
        how = self.fault(path)
        if how == "stall":
            self.hub.closing.wait()
        if how in ("stall", "cut") or self.is_next(self.hub.cuts, path):
            return self.hang_up()
        self.body = self.read_body()
        try:
            if how.isdigit():
                raise Refusal(int(how), "This request has to fail.")
            seen.status, headers, content = self.route(path)
        except Refusal as refusal:
            seen.status, content = refusal.status, json.dumps({"error": refusal.message}).encode()
            headers = {"X-Error-Message": refusal.message, "X-Error-Code": refusal.code}
            headers |= {"Retry-After": RETRY_AFTER} if how == "429" else {}
        if how == "lost" or self.is_next(self.hub.deaf, path):
            return self.hang_up()
        self.send_response(seen.status)
        for key, value in ({"Content-Length": str(len(content))} | headers).items():
            if value:
                self.send_header(key, value)
        self.end_headers()
        if how == "half":
            self.wfile.write(content[: len(content) // 2])
            return self.hang_up()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def is_next(self, wanted: list[tuple[str, str]], path: str) -> bool:
        """Whether this request is among those wanted, which it is only once."""
        found = next((w for w in wanted if w[0] == self.command and w[1] in path), None)
        if found:
            wanted.remove(found)
        return bool(found)

    def fault(self, path: str) -> str:
        """What this request meets by `hub.fail`; an empty text for nothing."""
        if self.hub.is_expired:
            return "401"
        if not self.hub.fault:
            return ""
        number, how, forever = self.hub.fault
        this = (self.command, path)
        if len(self.hub.seen) != number and this != self.hub.failing:
            return ""
        self.hub.failing = this if forever else None
        self.hub.is_expired = how == "401"
        return how

    def hang_up(self) -> None:
        """Reset the connection after the first bytes of the body, as a network does that goes away."""
        if not hasattr(self, "body"):
            self.rfile.read(min(16, int(self.headers.get("Content-Length", 0))))
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def read_body(self) -> bytes:
        """The request's body, whether its length was announced or it comes in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def route(self, path: str) -> tuple[int, dict, bytes]:
        """Status, headers and body from the first route that matches. Raises Refusal."""
        self.user = self.hub.users.get(self.token)
        if self.token and self.user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, handle in ROUTES:
            if wanted == method and (match := re.fullmatch(pattern, path)):
                with self.hub.lock:
                    result = handle(self, **match.groupdict())
                if isinstance(result, tuple):
                    return result
                return 200, {"Content-Type": "application/json"}, json.dumps(result).encode()
        raise Refusal(404, f"Sorry, we can't find {method} {path}")

    def gpu_quota(self) -> dict:
        """What is left of the user's GPU minutes."""
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        return self.hub.gpu_quota

    # -- who may do what

    def readable(self, kind: str | None, name: str) -> "Repo":
        """The repository, if this user may read it. Raises Refusal."""
        repo = self.hub.repos.get((kind.strip("/") if kind else "models", name))
        owners = (self.user.name, *self.user.orgs) if self.user else ()
        if repo is None or (repo.private and name.split("/")[0] not in owners):
            message = "Repository not found" if self.user else "Invalid username or password."
            raise Refusal(404 if self.user else 401, message, "RepoNotFound")
        return repo

    def check_terms(self, repo: "Repo") -> None:
        """Raise Refusal if the repository is gated and this user has not accepted its terms."""
        if repo.gated and not (self.user and self.user.name in (*repo.readers, repo.name.split("/")[0])):
            raise Refusal(403 if self.user else 401, f"Access to {repo.name} is restricted.", "GatedRepo")

    def auth_check(self, kind: str, name: str) -> dict:
        """Whether this user may read a repository's files."""
        self.check_terms(self.readable(kind, name))
        return {}

    def writable(self, kind: str | None, name: str) -> "Repo":
        """The repository, if this token may write to it. Raises Refusal."""
        repo = self.readable(kind, name)
        if not self.user or not self.user.may_write(name.split("/")[0], name):
            raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
        return repo

    # -- the account

    def whoami(self) -> dict:
        """The account that the token belongs to."""
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        return self.user.as_json()

    def validate_yaml(self) -> dict | tuple:
        """Whether a card has front matter."""
        content = json.loads(self.body)["content"]
        if re.match(r"---\n.*?\n---\n", content, re.DOTALL):
            return {"errors": [], "warnings": []}
        errors = {"errors": [{"message": "empty or missing yaml metadata in repo card"}], "warnings": []}
        return 400, {"Content-Type": "application/json"}, json.dumps(errors).encode()

    def create(self) -> dict:
        """Create a repository."""
        requested = json.loads(self.body)
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        owner, kind = requested.get("organization") or self.user.name, requested.get("type", "model") + "s"
        name = f"{owner}/{requested['name']}"
        if name in self.hub.refused:
            raise Refusal(400, "Invalid repo name: this name is reserved.")
        if not self.user.may_write(owner, name):
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if (kind, name) in self.hub.repos:
            raise Refusal(409, f"You already created this {kind[:-1]} repo: {name}")
        attributes = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
        self.hub.add(kind, name, attributes, private=requested.get("visibility") == "private")
        prefix = "" if kind == "models" else f"{kind}/"
        return {"url": f"{self.hub.url}/{prefix}{name}", "name": name, "id": name}

    def delete(self) -> dict:
        """Delete a repository."""
        requested = json.loads(self.body)
        kind = requested.get("type", "model") + "s"
        name = f"{requested.get('organization') or self.user.name}/{requested['name']}"
        self.writable(kind, name)
        del self.hub.repos[kind, name]
        return {}

    # -- reading

    def info(self, kind: str, name: str, revision: str = "main") -> dict:
        """A repository's metadata."""
        repo = self.readable(kind, name)
        return repo.as_json(repo.resolve(revision), "blobs" in self.query)

    def tree(self, kind: str, name: str, revision: str, path: str | None = None) -> list[dict]:
        """Files and folders below a path."""
        repo = self.readable(kind, name)
        files, prefix = repo.commits[repo.resolve(revision)], f"{path}/" if path else ""
        entries = [entry(file, data) for file, data in sorted(files.items()) if file.startswith(prefix)]
        if not entries and prefix:
            raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
        if self.query.get("recursive", [""])[0].lower() in ("true", "1"):
            return entries
        folders = {prefix + item["path"][len(prefix) :].split("/")[0] for item in entries}
        here = [item for item in entries if item["path"] in folders]
        inside = folders - {item["path"] for item in here}
        return here + [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(inside)]

    def paths_info(self, kind: str, name: str, revision: str) -> list[dict]:
        """Files and folders by their paths."""
        repo = self.readable(kind, name)
        files = repo.commits[repo.resolve(revision)]
        paths = [path.strip("/") for path in parse_qs(self.body.decode()).get("paths", [])]
        folders = [path for path in paths if any(file.startswith(f"{path}/") for file in files)]
        here = [entry(path, files[path]) for path in paths if path in files]
        return here + [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in folders]

    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> tuple[int, dict, bytes]:
        """A file's content, or the range of it that was requested."""
        repo = self.readable(kind, name)
        sha = repo.resolve(revision)
        if path != "README.md":
            self.check_terms(repo)
        if path not in repo.commits[sha]:
            code = {"X-Repo-Commit": sha, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return 404, code, b"Entry not found"
        data = repo.commits[sha][path]
        described = entry(path, data)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{described["oid"]}"', "Accept-Ranges": "bytes"}
        if "lfs" in described:
            headers |= {"X-Linked-Etag": f'"{described["lfs"]["oid"]}"', "X-Linked-Size": str(len(data))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted or self.command == "HEAD":
            return 200, headers, data
        start, stop = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        return 206, headers | {"Content-Range": f"bytes {start}-{stop}/{len(data)}"}, data[start : stop + 1]

    # -- writing

    def preupload(self, kind: str, name: str, revision: str) -> dict:
        """Which files of a commit have to go through LFS."""
        repo = (self.readable if "create_pr" in self.query else self.writable)(kind, name)
        held = repo.commits[repo.resolve(revision)]
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": content_id(file["path"], held),
            }
            for file in json.loads(self.body)["files"]
        ]
        return {"files": files}

    def lfs_batch(self, kind: str | None, name: str) -> dict:
        """Where to upload the large files that are not here yet."""
        self.readable(kind, name)
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        if self.hub.full:
            raise Refusal(403, "Private repository storage limit reached, please upgrade your plan.")
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.hub.blobs:
                href = f"{self.hub.url}/lfs/{item['oid']}"
                item["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str) -> dict:
        """Store a large file."""
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "The content's SHA256 is not the one announced.")
        self.hub.blobs[oid] = self.body
        return {}

    def lfs_verify(self, oid: str) -> dict:
        """Whether a large file arrived in full."""
        if len(self.hub.blobs.get(oid, b"")) != json.loads(self.body)["size"]:
            raise Refusal(404, "Object not found")
        return {}

    def commit(self, kind: str, name: str, revision: str) -> dict:
        """Add a commit of added and deleted files."""
        is_pull_request = "create_pr" in self.query
        repo = (self.readable if is_pull_request else self.writable)(kind, name)
        if revision not in repo.heads:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files, title = dict(repo.commits[repo.heads[revision]]), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile" and value["oid"] in self.hub.blobs:
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif item["key"] == "deletedFile" and value["path"] in files:
                del files[value["path"]]
            elif item["key"] == "deletedFolder":
                files = {path: data for path, data in files.items() if not path.startswith(value["path"])}
            else:
                raise Refusal(400, f"Cannot do {item['key']} of {value['path']}")
        number = len(repo.titles) + 1
        if is_pull_request:
            repo.titles[number] = title
        sha = repo.commit(files, f"refs/pr/{number}" if is_pull_request else revision)
        made = {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"}
        address = f"{self.hub.url}/{name}/discussions/{number}"
        return made | ({"pullRequestUrl": address} if is_pull_request else {})

    def create_branch(self, kind: str, name: str, branch: str) -> dict:
        """Begin a branch where the main one is."""
        repo = self.writable(kind, name)
        if branch in repo.heads:
            raise Refusal(409, f"Reference already exists: {branch}")
        repo.heads[branch] = repo.sha
        return {}

    def delete_branch(self, kind: str, name: str, branch: str) -> dict:
        """Delete a branch."""
        repo = self.writable(kind, name)
        if repo.heads.pop(branch, None) is None:
            raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        return {}

    def discussions(self, kind: str, name: str) -> dict:
        """The repository's pull requests."""
        repo = self.readable(kind, name)
        facts = {"author": {"name": "somebody"}, "createdAt": "2026-01-01T00:00:00.000Z", "status": "open"}
        facts |= {"isPullRequest": True, "repo": {"name": name, "type": "model"}}
        found = [{"num": number, "title": title} | facts for number, title in repo.titles.items()]
        return {"discussions": found, "count": len(found), "start": 0}


_REPO = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+(?:/[^/]+)?)"
_REVISION = r"(?P<revision>refs/[^/]+/[^/]+|[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("GET", r"/api/spaces/zero-gpu/quota", Handler.gpu_quota),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("POST", r"/api/repos/create", Handler.create),
    ("DELETE", r"/api/repos/delete", Handler.delete),
    ("GET", rf"{_REPO}/auth-check", Handler.auth_check),
    ("GET", rf"{_REPO}/revision/{_REVISION}", Handler.info),
    ("GET", rf"{_REPO}/tree/{_REVISION}(?:/(?P<path>.+))?", Handler.tree),
    ("POST", rf"{_REPO}/paths-info/{_REVISION}", Handler.paths_info),
    ("POST", rf"{_REPO}/preupload/{_REVISION}", Handler.preupload),
    ("POST", rf"{_REPO}/commit/{_REVISION}", Handler.commit),
    ("POST", rf"{_REPO}/branch/(?P<branch>[^/]+)", Handler.create_branch),
    ("DELETE", rf"{_REPO}/branch/(?P<branch>[^/]+)", Handler.delete_branch),
    ("GET", rf"{_REPO}/discussions", Handler.discussions),
    ("GET", _REPO, Handler.info),
    (
        "POST",
        r"/(?P<kind>(?:datasets|spaces)/)?(?P<name>[^/]+(?:/[^/]+)?)\.git/info/lfs/objects/batch",
        Handler.lfs_batch,
    ),
    ("PUT", r"/lfs/(?P<oid>\w+)", Handler.lfs_put),
    ("POST", r"/lfs/(?P<oid>\w+)/verify", Handler.lfs_verify),
    (
        "GET",
        rf"/(?P<kind>(?:datasets|spaces)/)?(?P<name>[^/]+(?:/[^/]+)?)/resolve/{_REVISION}/(?P<path>.+)",
        Handler.resolve,
    ),
]
