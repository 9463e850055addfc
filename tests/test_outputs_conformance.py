"""What every output promises, whatever its kind: see `streammerge.outputs.Output`."""

from __future__ import annotations

from pathlib import Path

import pytest

from streammerge.buffers import allocate
from streammerge.errors import OutputError, StreammergeError
from tests.support.hub import Hub
from tests.support.targets import (
    KINDS,
    REPO,
    Merged,
    Place,
    carry_out,
    files_of,
    merge_once,
    place_of,
    publish,
    write_all_shards,
    write_shard,
)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Merged:
    return merge_once(tmp_path_factory.mktemp("merged"))


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Merged:
    return merge_once(tmp_path_factory.mktemp("another"), seed=100)


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path, hub: Hub, merged: Merged) -> Place:
    return place_of(request.param, tmp_path, hub, merged)


def test_checking_changes_nothing(place: Place, merged: Merged, hub: Hub) -> None:
    target = place.make()
    target.check()
    target.check_space(merged.plan)
    _, nbytes = target.space(merged.plan)
    assert 0 < nbytes <= merged.plan.nbytes + 10_000
    assert not hub.repositories
    assert place.views() == [{} for _ in place.views()]
    assert target.pushed is None


def test_nothing_is_visible_before_it_is_published(place: Place, merged: Merged) -> None:
    target = place.make()
    kept = target.begin(merged.plan)
    assert kept == []
    for shard in merged.shards:
        write_shard(target, merged, shard)
        assert all(view == {} for view in place.views())
    publish(target, merged)
    assert place.views() == [files_of(merged.folder) for _ in place.views()]
    assert place.staged() == []


def test_shards_may_be_written_at_the_same_time(place: Place, merged: Merged) -> None:
    target = place.make()
    target.begin(merged.plan)
    buffer = allocate(8192)
    contents = {s.file: (merged.folder / s.file).read_bytes() for s in merged.shards}
    files = {name: target.create(name, len(content)) for name, content in contents.items()}
    for offset in range(0, max(map(len, contents.values())), 8192):
        for name, file in files.items():
            piece = contents[name][offset : offset + 8192]
            if piece:
                buffer[: len(piece)] = piece
                file.write(offset, buffer, len(piece))
    for shard in merged.shards:
        files[shard.file].finish()
        files[shard.file].close()
        target.complete(shard)
    publish(target, merged)
    assert place.views() == [files_of(merged.folder) for _ in place.views()]


def test_abandoned_without_a_finished_shard_it_leaves_no_trace(
    place: Place, merged: Merged
) -> None:
    target = place.make()
    target.begin(merged.plan)
    target.create(merged.shards[0].file, merged.shards[0].bytes).close()
    assert target.abandon() is False
    assert all(view == {} for view in place.views())
    assert place.staged() == []


def test_abandoned_before_it_began_it_does_nothing(place: Place) -> None:
    assert place.make().abandon() is False
    assert all(view == {} for view in place.views())


@pytest.mark.parametrize("finished", [1, 2, 3])
def test_finished_shards_are_kept_for_another_run(
    place: Place, merged: Merged, hub: Hub, finished: int
) -> None:
    target = place.make()
    target.begin(merged.plan)
    for shard in merged.shards[:finished]:
        write_shard(target, merged, shard)
    place.settle()
    if finished < len(merged.shards):
        target.create(merged.shards[finished].file, merged.shards[finished].bytes).close()
    assert target.abandon() is True
    assert all(view == {} for view in place.views())
    again = place.make()
    kept = again.begin(merged.plan)
    assert sorted(kept, key=lambda s: s.file) == merged.shards[:finished]
    write_all_shards(again, merged, kept)
    publish(again, merged)
    assert place.views() == [files_of(merged.folder) for _ in place.views()]
    assert hub.log.uploaded_twice() == []
    assert hub.log.commits() <= 1


def test_shards_of_another_plan_are_never_kept(
    place: Place, merged: Merged, another: Merged
) -> None:
    target = place.make()
    target.begin(another.plan)
    write_shard(target, another, another.shards[0])
    place.settle()
    assert target.abandon() is True
    assert place.make().begin(merged.plan) == []


def test_a_second_writer_of_the_same_is_refused(place: Place, merged: Merged) -> None:
    first = place.make()
    first.begin(merged.plan)
    write_shard(first, merged, merged.shards[0])
    second = place.make()
    with pytest.raises(OutputError, match=r"process .* is writing to"):
        second.begin(merged.plan)
    second.abandon()
    write_all_shards(first, merged, merged.shards[:1])
    publish(first, merged)
    assert place.views() == [files_of(merged.folder) for _ in place.views()]


def test_an_older_output_stays_whole_until_the_new_one_replaces_all_of_it(
    place: Place, merged: Merged, another: Merged
) -> None:
    carry_out(place, another)
    old = files_of(another.folder)
    assert place.views() == [old for _ in place.views()]
    target = place.make()
    write_all_shards(target, merged, target.begin(merged.plan))
    assert place.views() == [old for _ in place.views()]
    publish(target, merged)
    assert place.views() == [files_of(merged.folder) for _ in place.views()]


def test_a_failure_to_publish_leaves_the_older_output(
    place: Place, merged: Merged, another: Merged, hub: Hub
) -> None:
    carry_out(place, another)
    old = files_of(another.folder)
    target = place.make()
    write_all_shards(target, merged, target.begin(merged.plan))
    outside = {"../outside.json": b"{}"}
    with pytest.raises((StreammergeError, ValueError)):
        target.publish({**merged.documents, **outside}, merged.last)
    assert target.abandon() is True
    assert place.views() == [old for _ in place.views()]
    again = place.make()
    kept = again.begin(merged.plan)
    assert sorted(kept, key=lambda s: s.file) == merged.shards
    publish(again, merged)
    assert place.views() == [files_of(merged.folder) for _ in place.views()]


def test_what_was_pushed_is_said(place: Place, merged: Merged, hub: Hub) -> None:
    target = carry_out(place, merged)
    if place.kind == "directory":
        assert target.pushed is None
        assert len(hub.log) == 0
        return
    assert target.pushed is not None
    assert target.pushed.commit == hub.head(REPO)
    assert target.pushed.new
    assert hub.log.commits(REPO) == 1
    assert hub.log.uploaded_twice() == []
    assert [c.title for c in hub.history(REPO)][-1] == "initial commit"
    assert len(hub.history(REPO)) == 2
