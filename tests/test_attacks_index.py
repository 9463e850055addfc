"""Hostile or broken indexes: no file outside the folder is ever opened, no tensor made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.attacks import Trap, victim
from tests.support.checkpoints import INDEX, write_checkpoint, write_index, write_json

SHARD_1, SHARD_2 = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
NAME_OF_INDEX = r"index\.json"


def sharded(trap: Trap, **changes: Any) -> dict[str, Any]:
    """A valid two-shard checkpoint whose index is changed as told (None: taken out)."""
    write_checkpoint(trap.bad, victim(), shards=2)
    weight_map = {"a.weight": SHARD_1, "b.weight": SHARD_2} | {
        key.replace("_", "."): value for key, value in changes.items()
    }
    return {name: file for name, file in weight_map.items() if file is not None}


def whole_model_outside(trap: Trap, *parts: str) -> Path:
    """A valid file with every tensor, outside the checkpoint's folder or below it."""
    place = trap.root.joinpath(*parts)
    return write_checkpoint(place.parent, victim(), file_name=place.name) / place.name


@pytest.mark.parametrize("name", ["../x.safetensors", "./../x.safetensors", "../../x.safetensors"])
def test_index_names_a_file_above_the_folder(trap: Trap, name: str) -> None:
    whole_model_outside(trap, "x.safetensors")
    write_index(trap.bad, sharded(trap, b_weight=name))
    trap.refused(r"x\.safetensors", "plain|path|folder")


def test_index_names_an_absolute_path(trap: Trap) -> None:
    outside = whole_model_outside(trap, "x.safetensors")
    write_index(trap.bad, sharded(trap, b_weight=str(outside)))
    trap.refused(r"x\.safetensors", "plain|path|folder")


@pytest.mark.parametrize("name", ["sub/x.safetensors", "./x.safetensors", "sub/../x.safetensors"])
def test_index_names_a_file_with_a_path_part(trap: Trap, name: str) -> None:
    whole_model_outside(trap, "bad", "sub", "x.safetensors")
    whole_model_outside(trap, "bad", "x.safetensors")
    write_index(trap.bad, sharded(trap, b_weight=name))
    trap.refused(r"x\.safetensors", "plain|path|folder")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "gone.safetensors",
        "..\\x.safetensors",
        "C:\\x.safetensors",
        "~/x.safetensors",
    ],
)
def test_index_names_a_file_that_is_not_there(trap: Trap, name: str) -> None:
    write_index(trap.bad, sharded(trap, b_weight=name))
    trap.refused(r"b\.weight|gone|x\.safetensors")


@pytest.mark.parametrize("name", ["x\x00.safetensors", f"{SHARD_2}\x00", "x\n.safetensors"])
def test_index_names_a_file_with_control_characters(trap: Trap, name: str) -> None:
    write_index(trap.bad, sharded(trap, b_weight=name))
    message = trap.refused("safetensors")
    assert "\x00" not in message


@pytest.mark.parametrize("name", ["x" * 5000, "é" * 200 + ".safetensors"])
def test_index_names_a_file_too_long_for_the_disk(trap: Trap, name: str) -> None:
    write_index(trap.bad, sharded(trap, b_weight=name))
    trap.refused("bad")


@pytest.mark.parametrize("value", [7, None, ["x"], {"file": "x"}, True], ids=str)
def test_index_places_a_tensor_in_what_is_no_name(trap: Trap, value: Any) -> None:
    weight_map = sharded(trap) | {"b.weight": value}
    write_index(trap.bad, weight_map)
    trap.refused(NAME_OF_INDEX)


def test_index_places_tensors_in_a_file_of_another_kind(trap: Trap) -> None:
    write_json(trap.bad / "config.json", {"model_type": "toy"})
    write_index(trap.bad, sharded(trap, b_weight="config.json"))
    trap.refused(r"config\.json")


def test_index_names_a_tensor_that_its_shard_lacks(trap: Trap) -> None:
    write_index(trap.bad, sharded(trap, c_weight=SHARD_1))
    trap.refused(r"c\.weight", SHARD_1)


def test_index_places_a_tensor_in_the_wrong_shard(trap: Trap) -> None:
    write_index(trap.bad, sharded(trap, b_weight=SHARD_1))
    trap.refused(r"b\.weight", SHARD_1)


def test_shard_holds_a_tensor_that_the_index_lacks(trap: Trap) -> None:
    more = victim() | {"c.weight": victim()["b.weight"]}
    write_checkpoint(trap.bad, more, shards=2)
    write_index(trap.bad, {"a.weight": SHARD_1, "b.weight": SHARD_2})
    trap.refused(r"c\.weight", SHARD_1)


def test_two_shards_hold_the_same_tensor(trap: Trap) -> None:
    weight_map = sharded(trap)
    write_checkpoint(trap.bad, victim(), file_name=SHARD_1)
    write_index(trap.bad, weight_map)
    trap.refused(r"b\.weight", SHARD_1)


def test_index_names_a_tensor_twice(trap: Trap) -> None:
    sharded(trap)
    places = f'"a.weight": "{SHARD_1}", "b.weight": "{SHARD_1}", "b.weight": "{SHARD_2}"'
    (trap.bad / INDEX).write_text(f'{{"metadata": {{}}, "weight_map": {{{places}}}}}')
    trap.refused(NAME_OF_INDEX, r"b\.weight")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": null, "metadata": {}}',
        "[" * 100_000,
        '{"weight_map": ' * 5_000,
        "\ufeff{}",
    ],
    ids=lambda t: t[:20],
)
def test_index_that_is_no_index(trap: Trap, text: str) -> None:
    write_checkpoint(trap.bad, victim(), shards=2)
    (trap.bad / INDEX).write_text(text)
    trap.refused(NAME_OF_INDEX)


def test_index_that_is_no_text(trap: Trap) -> None:
    write_checkpoint(trap.bad, victim(), shards=2)
    (trap.bad / INDEX).write_bytes(json.dumps({"weight_map": {}}).encode()[:-1] + b"\xff\xfe")
    trap.refused(NAME_OF_INDEX)


def test_one_bad_shard_is_named(trap: Trap) -> None:
    write_index(trap.bad, sharded(trap))
    (trap.bad / SHARD_2).write_bytes(b"\x00" * 100)
    trap.refused(SHARD_2)
