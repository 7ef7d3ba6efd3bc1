"""The engine as compiled code, from the same sources: `sagasim compile` runs mypyc over them, once.

What was compiled lies in the user's cache folder under a hash of the sources and of this Python, so that it is used
exactly while the sources are those it was made from, in a checkout as in an installation. Nothing else changes: results
are the same byte for byte. SAGASIM_PURE=1 in the environment runs the sources themselves.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from sagasim.errors import ConfigError

__all__ = ["MODULES", "activate", "active", "cache_folder", "compile_engine"]

MODULES = (
    "core", "expectation", "plan", "seen", "cost", "kvcache", "clock", "batching", "scheduler", "replica", "agent",
    "links", "tiers", "cluster", "movement", "epochs",
    "importers.lines", "importers.blocks", "importers.agentic_mooncake",
)  # fmt: skip
_SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
_HERE = Path(__file__).parent


class _Finder:
    """Finds the compiled modules before Python looks for their sources."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target  # asked for by Python's protocol
        file = self._files.get(name)
        return None if file is None else importlib.util.spec_from_file_location(name, file)


def cache_folder() -> Path:
    """The user's cache folder for sagasim; nothing is made here."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "sagasim"


def _folder() -> Path:
    sha = hashlib.sha256(_SUFFIX.encode())  # names the Python version and the machine
    for module in MODULES:
        sha.update(_source(_HERE, module).read_bytes())
    return cache_folder() / f"compiled-{sha.hexdigest()[:24]}"


def _source(package: Path, module: str) -> Path:
    return package.joinpath(*module.split(".")).with_suffix(".py")


def activate() -> bool:
    """Use what was compiled from these very sources, if there is any. Returns whether there is."""
    if os.environ.get("SAGASIM_PURE"):
        return False
    try:
        folder = _folder()
        files = {file.name.removesuffix(_SUFFIX): file for file in folder.iterdir() if file.name.endswith(_SUFFIX)}
    except OSError:
        return False
    sys.meta_path.insert(0, _Finder(files))
    return True


def active() -> bool:
    """Whether the engine runs compiled."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def compile_engine() -> Path:
    """Compile the engine for this Python; returns the folder. Takes about half a minute and a C compiler.

    Raises ConfigError with the reason if it cannot be done; the sources go on being used then.
    """
    import shutil
    import subprocess
    import tempfile

    folder = _folder()
    if folder.is_dir():
        return folder
    if importlib.util.find_spec("mypyc") is None or importlib.util.find_spec("setuptools") is None:
        raise ConfigError("mypyc is not installed", where="compile", expected="pip install 'sagasim[fast]'")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        shutil.copytree(_HERE, work / "sagasim", ignore=shutil.ignore_patterns("data", "__pycache__"))
        (work / "sagasim" / "__init__.py").write_text("", encoding="utf-8")  # or mypy would read all that it names
        (work / "mypy.ini").write_text("[mypy]\nignore_missing_imports = True\n", encoding="utf-8")
        sources = [str(_source(Path("sagasim"), module)) for module in MODULES]
        command = [sys.executable, "-m", "mypyc", *sources]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, encoding="utf-8", check=False)
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
            raise ConfigError(f"mypyc failed ({reason})", where="compile", expected="a C compiler and Python's headers")
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".partial"))
        for file in work.rglob(f"*{_SUFFIX}"):
            place = file.relative_to(work).parts
            if place[0] != "build":
                shutil.copy(file, staged / ".".join(place))
        try:
            staged.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(staged)
    return folder
