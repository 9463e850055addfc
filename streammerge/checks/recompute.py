"""Do the inputs give these bits? Tensors are merged again and compared with what was written.

The pipeline of the merge does it, with windows of another size, into an output that compares. So
memory is bounded as in a merge, and no tensor is held whole.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from streammerge.budget import Layout, make_layout
from streammerge.checkpoint import Checkpoint, HubAccess, as_read, open_checkpoint
from streammerge.checks import CheckProgress, Finding
from streammerge.checks.comparing import ComparingOutput
from streammerge.errors import StreammergeError, listing
from streammerge.execute import Pipeline
from streammerge.formats.safetensors import Header
from streammerge.inputs import open_inputs
from streammerge.outputs.manifest import MANIFEST, Manifest
from streammerge.plan import ARITHMETIC, OutputShard, OutputTensor, Plan, PlanInput
from streammerge.planning import make_plan
from streammerge.storage import ALIGNMENT
from streammerge.storage.local import LocalStorage
from streammerge.tensors import layout_key

_WINDOWS = (257 * ALIGNMENT, 61 * ALIGNMENT)  # primes: pieces and blocks begin where none did
_NO_LIMIT = 2**63


def check_recomputed(
    storage: LocalStorage,
    manifest: Manifest,
    headers: Mapping[str, Header],
    count: int | None,
    progress: CheckProgress,
) -> tuple[int, list[Finding]]:
    """Merge tensors again and compare them bit by bit with the output.

    Args:
        storage, manifest, headers: the output.
        count: how many tensors, chosen by the fingerprint and so the same every time; None for all.
        progress: called with bytes read and computed.

    Returns:
        how many tensors were computed again, and what was found.
    """
    if manifest.arithmetic != ARITHMETIC:
        what = f"streammerge {manifest.streammerge} rounds otherwise: recompute with that version"
        return 0, [Finding(MANIFEST, what)]
    checkpoints, findings = _open_inputs(manifest)
    if len(checkpoints) < len(manifest.inputs):
        return 0, findings
    try:
        planned = make_plan(manifest.recipe, checkpoints, _NO_LIMIT)
        plan, coverage = _as_written(planned, manifest, headers)
        chosen = _choose(plan, manifest.fingerprint, count)
        findings += coverage + _compare(storage, chosen, checkpoints, headers, progress)
    except StreammergeError as error:
        return 0, [*findings, Finding("recompute", error.message)]
    return len(chosen.tensors), findings


def _open_inputs(manifest: Manifest) -> tuple[list[Checkpoint], list[Finding]]:
    """Return the inputs that hold what they held when they were merged, and what is to be said."""
    recipe, opened, findings = manifest.recipe, dict[str, Checkpoint](), list[Finding]()
    pinned = dict(zip(recipe.inputs, (record.pinned for record in manifest.inputs), strict=True))
    for reference in recipe.references:
        try:
            # A few tensors of a large model: what the cache lacks is not downloaded for them.
            opened[reference] = open_checkpoint(
                pinned.get(reference) or reference, HubAccess("stream")
            )
            opened[reference].label = reference
        except StreammergeError as error:
            absolute = reference.startswith("/") or pinned.get(reference)
            hint = "" if absolute else " (paths count from where the merge ran)"
            findings.append(Finding(reference, error.message + hint))
    inputs: list[Checkpoint | None] = [opened.get(reference) for reference in recipe.inputs]
    if len(opened) == len(recipe.references):
        try:
            inputs = list(open_inputs(recipe, opened.__getitem__))
        except StreammergeError as error:
            findings.append(Finding("recompute", error.message))
    same = []
    for name, checkpoint, recorded in zip(recipe.inputs, inputs, manifest.inputs, strict=True):
        if checkpoint is not None:
            changes, unchanged = _changes(checkpoint, recorded)
            findings += [Finding(name, change) for change in changes]
            same += [checkpoint] if unchanged else []
    return same, findings


def _changes(checkpoint: Checkpoint, recorded: PlanInput) -> tuple[list[str], bool]:
    """Return how an input differs from what was merged, and whether it can still be computed with.

    A file of the same size and header may be a copy: whether its data are the same will show.
    """
    now, then = checkpoint.identity(), {file.name: file for file in recorded.files}
    changes = [f"{name} was not there when it was merged" for name in sorted(now.keys() - then)]
    changes += [f"{name} is not there any more" for name in sorted(then.keys() - now)]
    touched = []
    for name in sorted(now.keys() & then):
        identity, digest = now[name]
        if identity.size != then[name].size:
            size = then[name].size
            changes.append(f"{name} was changed: {identity.size:,} bytes instead of {size:,}")
        elif digest != then[name].header_sha256:
            changes.append(f"{name} was changed: it has another header")
        elif identity.version != then[name].version:
            touched.append(f"{name} was modified or copied since it was merged")
    return changes + touched, not changes


def _as_written(
    plan: Plan, manifest: Manifest, headers: Mapping[str, Header]
) -> tuple[Plan, list[Finding]]:
    """Return the plan with the tensors and shards that the output has, and how they differ.

    The fingerprint then proves that recipe, inputs and coverage are those of the merge.
    """
    by_name = {tensor.name: tensor for tensor in plan.tensors}
    shards, present, wrong = [], set(), []
    for record in manifest.shards:
        tensors: list[OutputTensor] = []
        for info in headers[record.file].tensors.values() if record.file in headers else ():
            planned = by_name.get(info.name)
            if planned is not None and planned.info == info:
                tensors.append(planned)
            else:
                wrong.append(f"{info.name}: {info.dtype} {list(info.shape)}, not as planned")
        present |= {tensor.name for tensor in tensors}
        tensors.sort(key=lambda tensor: layout_key(tensor.info))
        shards.append(OutputShard(file=record.file, tensors=tuple(tensors)))
    made = plan.model_copy(update={"inputs": manifest.inputs, "shards": tuple(shards)})
    if len(headers) < len(manifest.shards):
        return made, []  # told already
    wrong += [f"{name}: missing" for name in by_name if name not in present]
    if wrong:
        what = f"{len(wrong)} tensors are not what the inputs give:\n{listing(sorted(wrong))}"
        return made, [Finding("coverage", what)]
    if made.fingerprint() != manifest.fingerprint:
        return made, [Finding(MANIFEST, "recipe, inputs and fingerprint do not belong together")]
    return made, []


def _choose(plan: Plan, fingerprint: str, count: int | None) -> Plan:
    """Return the plan of some tensors, in the files where they are."""
    names = sorted(tensor.name for tensor in plan.tensors)
    if count is not None and count < len(names):
        names = random.Random(fingerprint).sample(names, count)
    wanted = set(names)
    shards = [
        OutputShard(file=s.file, tensors=tuple(t for t in s.tensors if t.name in wanted))
        for s in plan.shards
    ]
    return plan.model_copy(update={"shards": tuple(shard for shard in shards if shard.tensors)})


def _compare(
    storage: LocalStorage,
    plan: Plan,
    checkpoints: Sequence[Checkpoint],
    headers: Mapping[str, Header],
    progress: CheckProgress,
) -> list[Finding]:
    if not plan.shards:
        return []
    reads = sum(
        as_read(checkpoints[model], tensor.name).nbytes
        for tensor in plan.tensors
        for model in plan.steps[tensor.step].sources
    )
    total = reads + sum(shard.file_size for shard in plan.shards)
    output = ComparingOutput(storage, plan, headers)
    layout = _layout(plan, checkpoints)
    Pipeline(
        plan,
        checkpoints,
        layout,
        output,
        allow_nonfinite=True,
        progress=lambda nbytes: progress("merging again", nbytes, total),
    ).run()
    return output.findings()


def _layout(plan: Plan, checkpoints: Sequence[Checkpoint]) -> Layout:
    """Return a layout whose windows no merge has."""
    layout = make_layout(plan, checkpoints, None)
    return replace(layout, window=next(w for w in _WINDOWS if w < layout.window))
