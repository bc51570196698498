"""Upload files to repositories of the Hub: one commit each, and nothing new is left if any of them fails.

All repositories and branches are made first, then all large files are uploaded, then all commits follow each other:
what takes long comes before anything can be seen. What the Hub has in the end is looked up where its answer was lost.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner import hub_errors
from tuner.hub.contents import TOKENIZER, Files
from tuner.hub_retry import Retries
from tuner.names import MAIN, PULL_REQUEST

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

log = logging.getLogger(__name__)
Tell = Callable[[dict], None]


@dataclass(frozen=True)
class Present:
    """What a repository holds before the push, in the revision that is pushed to."""

    files: frozenset[str]
    sha: str | None
    has_branch: bool  # whether that revision exists; if not, it begins as a copy of the main one


class Upload:
    """One push to one or more repositories."""

    def __init__(self, api: "HfApi", into: str, private: bool, message: str, retry: Retries, tell: Tell) -> None:
        self.api, self.private, self.message, self.retry, self.tell = api, private, message, retry, tell
        self.is_pull_request = into == PULL_REQUEST
        self.revision = MAIN if self.is_pull_request else into
        self.made: list[tuple[str, str | None]] = []  # repository, and the branch if only that is new
        self.committed: list[str] = []

    def run(self, pushes: dict[str, Files], present: dict[str, Present | None]) -> str:
        """Upload the files of each repository; returns the address of the last one's commit or pull request."""
        for name in pushes:
            self._make(name, present[name])
        additions = {name: _additions(files) for name, files in pushes.items()}
        self._send(additions)
        address = ""
        for name, files in additions.items():
            address = self._commit(name, files, present[name])
            self.committed.append(name)
        return address

    def undo(self) -> list[str]:
        """Delete what this push has made; a sentence for each that may be left."""
        left = []
        for name, branch in reversed(self.made):
            try:
                self.retry(lambda name=name, branch=branch: self._delete(name, branch))
            except Exception as error:
                log.warning("%s can't be deleted: %s", name, type(error).__name__)
                what = f"The branch '{branch}' of {name}" if branch else name
                left.append(
                    f"{what} may have been created, and could not be deleted again. Push to it once more, or delete "
                    f"it at {self.api.endpoint}/{name}/{f'tree/{branch}' if branch else 'settings'}."
                )
        made = {name for name, _ in self.made}
        return left + [f"{name} has its new commit already." for name in self.committed if name not in made]

    def _delete(self, name: str, branch: str | None) -> None:
        from huggingface_hub.errors import HfHubHTTPError

        if not branch:
            return self.api.delete_repo(name, missing_ok=True)
        try:
            self.api.delete_branch(name, branch=branch)
        except HfHubHTTPError as error:
            if error.response.status_code != 404:
                raise

    def _make(self, name: str, present: Present | None) -> None:
        """Create the repository, or the branch, if it is missing."""
        if present and present.has_branch:
            return
        branch = self.revision if present else None

        def create() -> bool:
            if branch:
                self.api.create_branch(name, branch=branch)
            else:
                self.api.create_repo(name, private=self.private)
            return True

        try:
            self.retry(create, lambda: self._is_ours(name, branch))
        except BaseException as error:
            # Without an answer, it may have been made; if it holds anything, somebody else made it.
            if not hub_errors.is_answer(error) and self._may_be_ours(name, branch):
                self.made.append((name, branch))
            raise
        self.made.append((name, branch))

    def _is_ours(self, name: str, branch: str | None) -> bool | None:
        """True if the repository or branch is there now and nobody has put anything into it, None if it is not."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            info = self.retry(lambda: self.api.model_info(name, revision=branch))
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None
        return True if branch or not _names(info) - {".gitattributes"} else None

    def _may_be_ours(self, name: str, branch: str | None) -> bool:
        try:
            return bool(self._is_ours(name, branch))
        except Exception as error:
            log.info("%s can't be looked at: %s", name, type(error).__name__)
            return True

    def _send(self, additions: dict[str, list["CommitOperationAdd"]]) -> None:
        """Upload what the Hub keeps as large files, and tell how much was sent of all after each file."""
        sizes = [(addition.upload_info.size, addition) for files in additions.values() for addition in files]
        total, sent = sum(size for size, _ in sizes), 0
        options = {"revision": self.revision, "create_pr": self.is_pull_request, "free_memory": False}
        for name, files in additions.items():
            small = [addition for addition in files if isinstance(addition.path_or_fileobj, bytes)]
            large = [addition for addition in files if addition not in small]
            # huggingface_hub itself repeats these requests. The small ones in one, the large ones one by one.
            for group in ([small] if small else []) + [[addition] for addition in large]:
                file = group[0].path_in_repo
                self.tell({"event": "push", "repo": name, "file": file, "sent": sent, "bytes": total})
                self.api.preupload_lfs_files(name, group, **options)
                sent += sum(addition.upload_info.size for addition in group)
        self.tell({"event": "push", "repo": name, "file": "", "sent": sent, "bytes": total})

    def _commit(self, name: str, additions: list["CommitOperationAdd"], present: Present | None) -> str:
        from huggingface_hub import CommitOperationDelete

        held, paths = present.files if present else frozenset(), {addition.path_in_repo for addition in additions}
        # Tokenizer files left over from an earlier push would be loaded together with the new ones.
        stale = sorted(held & set(TOKENIZER) - paths)
        before = self._pull_requests(name) if self.is_pull_request else {}

        def commit() -> str:
            operations = [*additions, *map(CommitOperationDelete, stale)]
            options = {"revision": self.revision, "create_pr": self.is_pull_request, "commit_message": self.message}
            made = self.api.create_commit(name, operations, **options)
            return made.pr_url or made.commit_url

        def landed() -> str | None:
            if self.is_pull_request:
                new = {number: title for number, title in self._pull_requests(name).items() if number not in before}
                number = next((number for number, title in new.items() if title == self.message), None)
                return number and f"{self.api.endpoint}/{name}/discussions/{number}"
            info = self.retry(lambda: self.api.model_info(name, revision=self.revision))
            is_new = info.sha != (present and present.sha) and paths <= _names(info)
            return f"{self.api.endpoint}/{name}/commit/{info.sha}" if is_new else None

        return self.retry(commit, landed)

    def _pull_requests(self, name: str) -> dict[int, str]:
        """Number and title of each open pull request."""
        options = {"discussion_type": "pull_request", "discussion_status": "open"}
        return self.retry(lambda: {d.num: d.title for d in self.api.get_repo_discussions(name, **options)})


def _additions(files: Files) -> list["CommitOperationAdd"]:
    from huggingface_hub import CommitOperationAdd

    return [CommitOperationAdd(path, content) for path, content in files.items()]


def _names(info) -> set[str]:
    return {file.rfilename for file in info.siblings or []}
