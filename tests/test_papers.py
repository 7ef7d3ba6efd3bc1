"""What the papers say holds: README's examples run, names exist, the changelog knows the version."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sagasim

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = [(language, text) for language, text in BLOCK.findall(README)]


def of_language(language: str) -> list[str]:
    return [text for found, text in BLOCKS if found == language]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with README's own policy and set in it."""
    monkeypatch.chdir(tmp_path)
    for _, text in BLOCKS:
        if text.startswith(("# mine.py", "# gate.toml", "# pressure.toml")):
            Path(text.split()[1]).write_text(text)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_python_examples_run() -> None:
    examples = [text for text in of_language("python") if not text.startswith("#")]
    assert examples
    for text in examples:
        exec(compile(text, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.usefixtures("folder")
def test_commands_run() -> None:
    commands = [shlex.split(line) for text in of_language("sh") for line in text.replace("\\\n", " ").splitlines()]
    own = [words for words in commands if words and words[0] == "sagasim"]
    assert own
    for words in own:
        env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(Path.cwd())}
        done = subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, timeout=120, check=False, env=env
        )
        assert done.returncode == 0, (words, done.stderr)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    papers = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in re.findall(r"^    make ([a-z-]+)", papers, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_linked_files_exist() -> None:
    for paper in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / paper).read_text(encoding="utf-8")):
            assert (ROOT / link).exists(), (paper, link)


def test_versions_agree() -> None:
    assert sagasim.__version__ == PROJECT["version"]
    assert f"## {sagasim.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_all_names_exist() -> None:
    assert sorted(sagasim.__all__) == sagasim.__all__
    for name in sagasim.__all__:
        assert getattr(sagasim, name) is not None
    package = Path(sagasim.__file__).parent
    for path in package.rglob("*.py"):
        module = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        if module.endswith("__main__"):
            continue
        loaded = sys.modules[module] if module in sys.modules else importlib.import_module(module)
        for name in getattr(loaded, "__all__", []):
            assert hasattr(loaded, name), f"{module}.{name}"


def test_simulate_is_the_function_however_it_was_imported() -> None:
    code = "import sagasim.simulate, sagasim; from sagasim import simulate; assert callable(simulate)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        sagasim.simulat  # noqa: B018


@pytest.mark.parametrize("module", ["sagasim", "sagasim.cli", "sagasim.figures"])
def test_start_up_imports_little(module: str) -> None:
    heavy = {"numpy", "pandas", "pyarrow", "matplotlib", "simpy", "scipy"}
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert heavy & set(done.stdout.split()) == set()


def test_notice_names_every_source() -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for source in ("kv-cache-tester", "mini-swe-agent", "tau-bench", "lmcache-agent-trace", "aiconfigurator"):
        assert source in notice
