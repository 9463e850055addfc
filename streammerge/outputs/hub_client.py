"""The names of huggingface_hub that it does not publish, all of them here.

`CommitOperationAdd` computes the sha256 of its file, but takes one that is known. Once a file is
uploaded the operation needs no content, so one can be made for a file that is gone from this disk.
What the Hub answered for a file (kept in git or as a large file; left out by the repository's
.gitignore) stands in attributes with an underscore.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info

from streammerge.outputs import WrittenShard

_BATCH = 256  # files in one question, the most that the client itself asks for


def addition(path: str, source: Path | bytes, sha256: str) -> CommitOperationAdd:
    """Return the operation that adds a file whose sha256 is known; the file is not read."""
    operation = CommitOperationAdd(path_in_repo=path, path_or_fileobj=source)
    operation.upload_info.sha256 = bytes.fromhex(sha256)
    return operation


def uploaded_addition(shard: WrittenShard) -> CommitOperationAdd:
    """Return the operation that adds a large file which the Hub has and this machine has not."""
    operation = CommitOperationAdd(path_in_repo=shard.file, path_or_fileobj=b"")
    digest = bytes.fromhex(shard.sha256)
    operation.upload_info = UploadInfo(size=shard.bytes, sample=b"", sha256=digest)
    operation._upload_mode, operation._is_uploaded = "lfs", True
    return operation


def is_uploaded(operation: CommitOperationAdd) -> bool:
    """Whether the content is on the Hub, so that the commit needs its name and digest only."""
    return operation._is_uploaded


def is_left_out(operation: CommitOperationAdd) -> bool:
    """Whether the .gitignore of the repository would silently keep the file out of a commit."""
    return bool(operation._should_ignore)


def find_stored(client: HfApi, repo: str, shards: Sequence[WrittenShard]) -> list[WrittenShard]:
    """Return those files whose content the Hub holds for a repository, committed or not."""
    stored: set[str] = set()
    infos = [UploadInfo(size=s.bytes, sample=b"", sha256=bytes.fromhex(s.sha256)) for s in shards]
    headers = client._build_hf_headers()
    for begin in range(0, len(infos), _BATCH):
        objects, _, _ = post_lfs_batch_info(
            infos[begin : begin + _BATCH],
            None,
            "model",
            repo,
            endpoint=client.endpoint,
            headers=headers,
        )
        # What is there already needs no action; only what is missing comes with a place to send it.
        stored |= {found["oid"] for found in objects if not found.get("actions")}
    return [shard for shard in shards if shard.sha256 in stored]


def git_id(content: bytes) -> str:
    """Return the id that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
