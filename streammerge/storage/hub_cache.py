"""The cache of huggingface_hub on this machine: what it holds, and what was found right in it.

Its layout is documented (https://huggingface.co/docs/huggingface_hub/guides/manage-cache):
`models--org--name/` with `refs/<revision>` (a commit), `snapshots/<commit>/<path>` (links) and
`blobs/<id>` (content, named by its sha256 or git's id). The client checks the size of what it
downloads and nothing else (huggingface_hub#3643), so the digests are compared here. Each file is
read for it once: its size, time and inode are noted then, outside the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Event

from streammerge.storage.hub_files import RemoteFile
from streammerge.storage.retrying import Stopped

_PIECE = 4 * 1024**2


def repository_folder(repo_id: str) -> Path:
    """Return the folder of a repository in the cache, there or not."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")


def find_file(repo_id: str, commit: str, path: str) -> Path | None:
    """Return where a file of a commit lies; None where it does not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, path, revision=commit)
    return Path(found) if isinstance(found, str) else None


def find_commit(repo_id: str, revision: str) -> str | None:
    """Return the commit that a branch or tag meant when it was last asked for; None: never."""
    try:
        return (repository_folder(repo_id) / "refs" / revision).read_text().strip() or None
    except OSError:
        return None


def note_commit(repo_id: str, revision: str, commit: str) -> None:
    """Keep what a branch or tag means, for times without network, as the client itself does."""
    ref = repository_folder(repo_id) / "refs" / revision
    with contextlib.suppress(OSError):  # a cache that cannot be written to is none
        ref.parent.mkdir(parents=True, exist_ok=True)
        _replace(ref, commit)


def list_snapshot(repo_id: str, commit: str) -> dict[str, RemoteFile] | None:
    """Return the files of a commit that are in the cache; None where there are none."""
    root = repository_folder(repo_id) / "snapshots" / commit
    if not root.is_dir():
        return None
    return {
        path.relative_to(root).as_posix(): RemoteFile(path.stat().st_size, _linked_digest(path))
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _linked_digest(path: Path) -> str:
    """Return the digest that the name of a blob tells; "" where files are copied, not linked."""
    name = os.path.basename(os.readlink(path)) if path.is_symlink() else ""
    kind = {64: "sha256", 40: "git"}.get(len(name))
    return f"{kind}:{name}" if kind else ""


def discard(path: Path) -> None:
    """Delete a file of a snapshot with all that its links lead to."""
    while path.is_symlink():
        target = path.parent / os.readlink(path)
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def is_checked(path: Path, digest: str) -> bool:
    """Whether a file was found right before, and has not changed since."""
    with contextlib.suppress(OSError):
        return _note(path, digest).read_text() == _state(path)
    return False


def check(path: Path, digest: str, stop: Event | None = None) -> bool:
    """Read a file and say whether it has this digest; if so, that is noted.

    Raises:
        OSError: it cannot be read.
        Stopped: `stop` was set meanwhile.
    """
    state = _state(path)
    with open(path, "rb") as file:
        found = digest_of(file.readinto, os.fstat(file.fileno()).st_size, digest, stop)
    if found != digest:
        return False
    with contextlib.suppress(OSError):  # it will be read again next time, then
        _replace(_note(path, digest), state)
    return True


def digest_of(
    readinto: Callable[[memoryview], int], size: int, like: str, stop: Event | None = None
) -> str:
    """Return the digest of what is read, of the kind of another: "sha256:…" or "git:…"."""
    kind = like.partition(":")[0]
    if kind == "git":
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    else:
        digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_PIECE, max(1, size))))
    while count := readinto(buffer):
        if stop is not None and stop.is_set():
            raise Stopped
        digest.update(buffer[:count])
    return f"{kind}:{digest.hexdigest()}"


def digest_of_bytes(content: bytes, like: str) -> str:
    """Return the digest of bytes, of the kind of another."""
    return digest_of(io.BytesIO(content).readinto, len(content), like)


def _state(path: Path) -> str:
    info = os.stat(path)
    return f"{info.st_dev} {info.st_ino} {info.st_size} {info.st_mtime_ns}"


def _note(path: Path, digest: str) -> Path:
    from huggingface_hub import cached_assets_path

    folder = cached_assets_path("streammerge", namespace="hub", subfolder="checked")
    place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    return folder / f"{digest.replace(':', '-')}-{place}"


def _replace(path: Path, text: str) -> None:
    """Write a small file so that no reader ever sees half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(temporary, path)
