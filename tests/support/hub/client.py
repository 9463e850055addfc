"""Points huggingface_hub at the stand-in, in this process and in subprocesses.

The client reads its environment once, when it is imported. So the environment is changed first,
the client's module of constants is run once more beside the real one, and every value that came
out differently is put in the place of the old one, wherever the client holds it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, hf_api, hf_file_system
from huggingface_hub.utils import _http, _xet

from tests.support.hub.access import WRITE
from tests.support.hub.hub import Hub

OTHER = (
    *("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ASSETS_CACHE", "HUGGINGFACE_ASSETS_CACHE"),
    *("HF_XET_CACHE", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_OFFLINE"),
    "SSL_CERT_FILE",
)


def settings(hub: Hub, home: Path, token: str | None) -> dict[str, str | None]:
    """Environment variables of a client of the stand-in; None for one that must not be set."""
    return {
        **dict.fromkeys(OTHER),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1" if hub.chunks is None else "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        # Nothing here is encrypted, and to load the system's certificates costs 60 ms a client;
        # but hf_xet does not start without any.
        "SSL_CERT_DIR": str(home) if hub.chunks is None else None,
    }


def hub_environment(hub: Hub, home: Path, token: str | None = WRITE) -> dict[str, str]:
    """The environment for a subprocess that shall take the stand-in for the Hub."""
    values = settings(hub, home, token)
    kept = {name: value for name, value in os.environ.items() if name not in values}
    return kept | {name: value for name, value in values.items() if value is not None}


@contextmanager
def pointed_at(hub: Hub, home: Path, token: str | None = WRITE) -> Iterator[None]:
    """Let the client in this process take the stand-in for the Hub."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings(hub, home, token).items():
            patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
        _renew_constants(patch)
        patch.setattr(_http, "_HUB_ORIGINS", _http._HUB_ORIGINS | {_http._url_origin(hub.url)})
        patch.setattr(_xet, "XET_CONNECTION_INFO_CACHE", {})
        patch.setattr(_xet, "_GLOBAL_XET_HOLDER", _xet.XetSessionHolder())
        for api in (hf_api.api, hf_file_system.hffs._api, hf_file_system.hffs):
            patch.setattr(api, "endpoint", hub.url)
        _forget()
        yield
        _forget()


@contextmanager
def running_hub(folder: Path, *, xet: bool = False) -> Iterator[Hub]:
    """A stand-in at which the client in this process points, until the block ends."""
    hub = Hub(folder, xet=xet)
    try:
        with pointed_at(hub, folder / "home"):
            yield hub
    finally:
        hub.stop()


def _renew_constants(patch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("renewed_constants", constants.__file__)
    assert spec is not None
    assert spec.loader is not None
    renewed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(renewed)
    changed = {
        name: (old, vars(renewed)[name])
        for name, old in vars(constants).items()
        if isinstance(old, str | int | frozenset | None) and vars(renewed)[name] != old
        if not name.startswith("__")
    }
    for module in _modules("huggingface_hub"):
        for name, (old, new) in changed.items():
            if module.__dict__.get(name, new) == old:
                patch.setattr(module, name, new)


def _modules(package: str) -> list[ModuleType]:
    return [m for name, m in list(sys.modules.items()) if name.split(".")[0] == package]


def _forget() -> None:
    """Close the connections of the client, and forget what it knows of repositories."""
    _http.close_session()
    hf_file_system.HfFileSystem.clear_instance_cache()
    hf_api.api._whoami_cache.clear()


@contextmanager
def waits_taken_away() -> Iterator[list[float]]:
    """Let the client retry at once; gives the seconds that it would have waited."""
    from huggingface_hub import file_download

    seconds: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (_http, file_download):
            time: Any = SimpleNamespace(**vars(module.time))
            time.sleep = seconds.append
            patch.setattr(module, "time", time)
        yield seconds
