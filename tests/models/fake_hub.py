"""A hub that is never really asked: what its library would find and fetch, without a network."""

from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import errors
from huggingface_hub.utils._paths import filter_repo_objects

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_error(kind: type[Exception], message: str = "what the server said\nand more") -> Exception:
    """An error of the library without the HTTP response that its constructor wants."""
    return kind.__new__(kind, message)


class ConnectError(Exception):
    """Stands in for what an HTTP library raises: no subclass of OSError, and none of the hub's own errors."""


@dataclass
class FakeHub:
    """Stands in for the three calls that reach the hub; `cached` is what an earlier download left."""

    root: Path
    repositories: dict[str, list[str]] = field(default_factory=dict)
    cached: dict[str, list[str]] = field(default_factory=dict)
    failure: Exception | None = None
    downloads: int = 0

    def hf_hub_download(self, repo_id: str, filename: str) -> str:
        available = self.cached if self.failure is not None else self.repositories
        if repo_id not in available:
            raise self.failure or hub_error(errors.RepositoryNotFoundError)
        if filename not in available[repo_id]:
            raise hub_error(errors.LocalEntryNotFoundError if self.failure else errors.RemoteEntryNotFoundError)
        file = self.root / ("models--" + repo_id.replace("/", "--")) / "snapshots" / COMMIT / filename
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
        self.downloads += 1
        return str(file)

    def list_repo_files(self, _api: object, repo_id: str) -> list[str]:
        if self.failure is not None:
            raise self.failure
        if repo_id not in self.repositories:
            raise hub_error(errors.RepositoryNotFoundError)
        return self.repositories[repo_id]

    def snapshot_download(
        self, repo_id: str, *, allow_patterns: list[str], ignore_patterns: list[str], local_files_only: bool = False
    ) -> str:
        available = self.cached.get(repo_id) if local_files_only else self.repositories[repo_id]
        if available is None:
            raise hub_error(errors.LocalEntryNotFoundError)
        if not local_files_only:
            self.downloads += 1
        folder = self.root / ("models--" + repo_id.replace("/", "--")) / "snapshots" / COMMIT
        folder.mkdir(parents=True, exist_ok=True)
        wanted = filter_repo_objects(available, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        for name in available if local_files_only else wanted:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"")
        return str(folder)


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
