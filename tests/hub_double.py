"""A small Hugging Face Hub on loopback, for tests that use the real clients.

It answers what huggingface_hub, transformers, peft and datasets request: who am I, create, preupload, LFS, commit,
revisions by name and by sha, tree, paths-info, resolve. Everything is in memory; a revision is a dict of files. It
knows nothing about xet, pull requests or branches.

    def test_push(hub, tmp_path):
        token = hub.user("alice")                        # role="read", "oauth", "fineGrained" with scopes={...}
        hub.add_model("Qwen/Qwen3-0.6B", folder)         # or {path: bytes}; private=True, gated=True, readers=("bob",)
        hub.add_dataset("owner/name", {"train.jsonl": b"..."})
        # HF_ENDPOINT is read at import, so a real client runs in its own process, or is told the endpoint.
        fresh.run([...], tmp_path, env=hub.env(tmp_path))
        HfApi(endpoint=hub.url, token=token)
        # What it holds, and every request with the token that it carried.
        hub.repo("alice/x").files["README.md"], hub.seen, hub.tokens("/lfs/")
        # How it misbehaves.
        hub.refused.add("alice/no"); hub.full = True; hub.cut("PUT", "/lfs/"); hub.stall("GET", "/api/whoami")
        hub.deafen("POST", "/commit/"); hub.fail("POST", "/api/models/alice/x/commit/main", 429, times=2)
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from hub_wire import Handler, Refusal, Seen, entry


@dataclasses.dataclass
class User:
    """An account, as the owner of one token sees it."""

    name: str
    role: str
    orgs: tuple[str, ...]
    scopes: dict[str, list[str]]

    def may_write(self, owner: str, repo: str) -> bool:
        """Whether the token may write to this repository."""
        if self.role == "fineGrained":
            return any("repo.write" in self.scopes.get(entity, ()) for entity in (owner, repo))
        return self.role in ("write", "oauth") and owner in (self.name, *self.orgs)

    def as_json(self) -> dict:
        """The answer to whoami."""
        auth = {"type": "oauth"} if self.role == "oauth" else {"type": "access_token"}
        if self.role != "oauth":
            auth["accessToken"] = {"displayName": "test", "role": self.role}
        if self.role == "fineGrained":
            scoped = [
                {"entity": {"type": "model" if "/" in entity else "user", "name": entity}, "permissions": permissions}
                for entity, permissions in self.scopes.items()
            ]
            auth["accessToken"]["fineGrained"] = {"global": [], "scoped": scoped}
        return {"type": "user", "name": self.name, "auth": auth, "orgs": [{"name": name} for name in self.orgs]}


@dataclasses.dataclass
class Repo:
    """A repository with all its commits."""

    kind: str
    name: str
    private: bool = False
    gated: bool = False
    readers: tuple[str, ...] = ()  # of a gated one: who has accepted its terms
    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)

    @property
    def sha(self) -> str:
        """The newest commit's."""
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        """Paths and contents at the newest commit."""
        return self.commits[self.sha]

    def commit(self, files: Mapping[str, bytes]) -> str:
        """Add a commit that holds just these files; returns its sha."""
        content = "".join(f"{path} {hashlib.sha1(data).hexdigest()}\n" for path, data in sorted(files.items()))
        sha = hashlib.sha1(f"{self.kind} {self.name} {len(self.commits)}\n{content}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        return sha

    def resolve(self, revision: str) -> str:
        """The sha of a revision. Raises Refusal if there is none."""
        sha = self.sha if revision in ("main", "refs/heads/main") else revision
        if sha not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def as_json(self, sha: str, blobs: bool = False) -> dict:
        """The answer to a question for its metadata at a commit; with `blobs`, the files' sizes and hashes, too."""
        names = {"id": self.name, "modelId": self.name} if self.kind == "models" else {"id": self.name}
        siblings = []
        for path, data in sorted(self.commits[sha].items()):
            described = entry(path, data)
            file = {"rfilename": path} | ({"size": len(data), "blobId": described["oid"]} if blobs else {})
            if blobs and "lfs" in described:
                file["lfs"] = {"sha256": described["lfs"]["oid"], "size": len(data), "pointerSize": 134}
            siblings.append(file)
        facts = {"private": self.private, "gated": "auto" if self.gated else False, "disabled": False}
        with contextlib.suppress(KeyError, ValueError):
            config = json.loads(self.commits[sha]["config.json"])
            known = ("architectures", "model_type", "quantization_config")
            facts["config"] = {key: config[key] for key in known if key in config}
        facts["cardData"] = _front_matter(self.commits[sha].get("README.md", b"").decode(errors="replace"))
        return names | facts | {"_id": "0", "sha": sha, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}


def _front_matter(card: str) -> dict:
    """The facts at the beginning of a card."""
    _, _, rest = card.partition("---\n") if card.startswith("---\n") else ("", "", "")
    try:
        return dict(yaml.safe_load(rest.partition("\n---")[0]) or {})
    except (yaml.YAMLError, TypeError, ValueError, RecursionError):
        return {}


class Hub:
    """The server and its contents. `refused` names can't be created; a `full` Hub accepts no more large files."""

    def __init__(self):
        self.users: dict[str, User] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.seen: list[Seen] = []
        self.refused: set[str] = set()
        self.full = False
        self.gpu_quota: dict = {}
        self.cuts: list[tuple[str, str]] = []
        self.deaf: list[tuple[str, str]] = []
        self.stalls: list[tuple[str, str]] = []
        self.pause = "1"  # the Retry-After of an answer with the status 429
        self.faults: dict[tuple[str, str], tuple[int | str, int]] = {}
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop the server, and let stalled requests go."""
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def user(self, name: str, role: str = "write", orgs: tuple[str, ...] = (), scopes: dict | None = None) -> str:
        """A user's new token. role: "read", "write", "oauth", or "fineGrained" with scopes, such as
        {"alice": ["repo.write"]}: a user, an org or a repository and what may be done there."""
        token = f"hf_{name}{role}{len(self.users):04d}"
        self.users[token] = User(name, role, orgs, scopes or {})
        return token

    def add_model(self, name: str, files: Path | Mapping[str, bytes], **facts) -> Repo:
        """Add a public model; `facts` such as private=True, gated=True."""
        return self.add("models", name, files, **facts)

    def add_dataset(self, name: str, files: Path | Mapping[str, bytes], **facts) -> Repo:
        """Add a public dataset; `facts` as for a model."""
        return self.add("datasets", name, files, **facts)

    def add(self, kind: str, name: str, files: Path | Mapping[str, bytes], **facts) -> Repo:
        """Add a repository of this kind, models, datasets or spaces, with one commit."""
        if not isinstance(files, Mapping):
            paths = [path for path in sorted(Path(files).rglob("*")) if path.is_file()]
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        repo = self.repos[kind, name] = Repo(kind, name, **facts)
        repo.commit(files)
        return repo

    def repo(self, name: str, kind: str = "models") -> Repo:
        """The repository of this name."""
        return self.repos[kind, name]

    def cut(self, method: str, part: str, times: int = 1) -> None:
        """Break the next connections that ask by this method for a path with this part, in the middle of the body."""
        self.cuts += [(method, part)] * times

    def deafen(self, method: str, part: str) -> None:
        """Do what the next such request asks for, and lose the answer."""
        self.deaf.append((method, part))

    def stall(self, method: str, part: str) -> None:
        """From now on never answer such requests."""
        self.stalls.append((method, part))

    def fail(self, method: str, path: str, how: int | str, times: int) -> None:
        """Fail the next so many of these very requests: with the status 429 or 500, with half of the answer's body
        ("half"), with no answer to what was done ("lost"), or with nothing at all, done or said ("nothing")."""
        self.faults[method, path] = how, times

    def fault_of(self, method: str, path: str) -> int | str | None:
        """How this request is to fail, if it is."""
        how, times = self.faults.get((method, path), (None, 0))
        self.faults[method, path] = how, times - 1
        return how if times > 0 else None

    def tokens(self, part: str = "") -> set[str | None]:
        """The tokens (None: no token) on the requests with this part in their path."""
        return {seen.token for seen in self.seen if part in seen.path}

    def env(self, home: Path | str) -> dict[str, str]:
        """The environment of a process whose Hub is this one, whose cache is `home`, and which is not logged in."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE_"))}
        offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "0")
        silent = dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"), "1")
        login = {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "0", "HF_TOKEN_PATH": f"{home}/token"}  # where there may be one
        here = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
        return kept | offline | silent | login | here


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub of one test's own, which clients in this process may ask too where they are told its address."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    server = Hub()
    yield server
    server.close()
