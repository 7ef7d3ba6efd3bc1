"""The documentation site: its examples run, its reference is complete, it builds, and its links lead somewhere."""

from __future__ import annotations

import functools
import html.parser
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

import sagasim
from sagasim.config import ABLATIONS, KINDS, PRESETS
from sagasim.seams import policies
from sagasim.workloads import workloads

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples" / "my_policies.py"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = ("index", "concepts", "policies", "python", "limits")  # written for the site; others have tests of their own


def blocks(page: str, language: str) -> list[str]:
    found = BLOCK.findall((DOCS / f"{page}.md").read_text(encoding="utf-8"))
    return [text for kind, text in found if kind == language]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "hooks" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_examples_of_policies_are_those_of_the_file() -> None:
    source = EXAMPLES.read_text(encoding="utf-8")
    shown = blocks("policies", "python")
    assert '"""One small policy' in source
    for text in shown:
        assert text in source
        source = source.replace(text, "", 1)
    assert len(source.strip().splitlines()) == 1  # its docstring: nothing is left out of the page


@pytest.mark.parametrize(
    ("kind", "name"), re.findall(r'^@policy\("(\w+)", "([\w-]+)"', EXAMPLES.read_text(encoding="utf-8"), re.MULTILINE)
)
def test_example_keeps_its_contract(kind: str, name: str) -> None:
    from sagasim.contract import check_policy

    assert check_policy(f"{EXAMPLES}:{name}").startswith(f"{kind} policy '{name}' keeps the contract")


def test_there_is_an_example_of_every_kind() -> None:
    from sagasim.seams import KINDS as kinds  # noqa: N811

    shown = re.findall(r'@policy\("(\w+)"', "".join(blocks("policies", "python")))
    assert shown == list(kinds)


@pytest.mark.parametrize("page", PAGES)
def test_commands_run(page: str, tmp_path: Path) -> None:
    shutil.copy(EXAMPLES, tmp_path)
    for text in blocks(page, "python"):
        if text.startswith("# mine.py"):
            (tmp_path / "mine.py").write_text(text)
    lines = [line for text in blocks(page, "sh") for line in text.replace("\\\n", " ").splitlines()]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "sagasim"
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stderr)


@pytest.mark.parametrize("page", ["index", "python"])
def test_python_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    shown = [text for text in blocks(page, "python") if not text.startswith("#")]
    assert shown
    for text in shown:
        exec(compile(text, f"{page}.md", "exec"), {"__name__": page})


def test_reference_names_every_option(reference: ModuleType) -> None:
    page = reference.commands_page()
    shown = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    assert len(shown) > 15
    for section in shown:
        words = section.split(" {")[0].split()
        done = subprocess.run(
            [sys.executable, "-m", *words, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
        )
        for option in set(re.findall(r"^\s+(?:-\w[^-\n]*, )?(--[a-z-]+)", done.stdout, re.MULTILINE)) - {"--help"}:
            assert f"<code>{option}" in section, (words, option)


def test_reference_names_every_key(reference: ModuleType) -> None:
    keys = reference.config_keys()
    assert [key for _, key, *_ in keys] == list(KINDS)
    for group, key, kind, default, _ in keys:
        assert group
        assert kind == KINDS[key].__name__
        value = getattr(sagasim.Config(), key)
        assert default == ("" if value is None else str(value).lower() if kind == "bool" else str(value))
    assert {key: comment for _, key, *_, comment in keys}["horizon_s"].startswith("the run is cut off then")
    page = reference.configuration_page()
    for preset in (*PRESETS, *ABLATIONS):
        assert f"<code>{preset}</code>" in page


def test_reference_names_every_policy_and_workload(reference: ModuleType) -> None:
    page = reference.policies_page()
    for found in policies():
        if found.factory.__module__.startswith("sagasim."):
            assert f"### {found.name} {{ #{found.kind}-{found.name} }}" in page
    page = reference.workloads_page()
    for workload in workloads():
        if workload.task.__module__.startswith("sagasim."):
            section = page.split(f"\n## {workload.name}\n")[1].split("\n## ")[0]
            for option in workload.options:
                assert f"<code>{option.replace('_', '&#95;')}</code>" in section


def test_text_is_no_markup(reference: ModuleType) -> None:
    assert reference._text("a_b * c < d `x|y`") == "a&#95;b &#42; c &lt; d <code>x&#124;y</code>"


def test_every_public_name_is_described() -> None:
    shown = re.findall(r"^::: ([\w.]+)$", (DOCS / "python.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name.rpartition(".")[2] for name in shown} >= set(sagasim.__all__) - {"__version__"}


# --- the site itself ----------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Anchors, links and what is loaded of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.anchors |= {found[key] for key in ("id", "name") if key in found}
        self._in_script = tag == "script"
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "link" and found.get("rel") != "canonical":
            self.loaded.append(found.get("href", ""))
        if tag in ("script", "img", "iframe", "source", "video", "object") and "src" in found:
            self.loaded.append(found["src"])

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, with notebooks that are not executed: tests/test_notebooks.py does that."""
    folder = tmp_path_factory.mktemp("site")
    env = os.environ | {"SAGASIM_DOCS_EXECUTE": "false", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@functools.cache
def page_of(path: Path) -> Page:
    return Page(path)


@pytest.mark.docs
def test_every_page_is_built_and_in_the_navigation(site: Path) -> None:
    home = page_of(site / "index.html").links
    sources = [path.relative_to(DOCS) for path in DOCS.glob("*.md")]
    sources += [path.relative_to(ROOT) for path in (ROOT / "notebooks").glob("*.ipynb")]
    sources += [Path("reference") / name for name in ("commands", "configuration", "policies", "workloads")]
    assert len(sources) > 20
    for source in sources:
        built = source.with_suffix(".html")
        assert (site / built).is_file()
        assert built.as_posix() in home


@pytest.mark.docs
def test_links_lead_somewhere(site: Path) -> None:
    checked = 0
    for path in site.rglob("*.html"):
        for link in page_of(path).links:
            parts = urlsplit(link)
            if parts.scheme or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), (path.name, link)
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in page_of(target).anchors | {"__skip"}, (path.name, link)
            checked += 1
    assert checked > 500


@pytest.mark.docs
def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        page = page_of(path)
        for loaded in page.loaded:
            assert not urlsplit(loaded).netloc, (path.name, loaded)
        for script in page.scripts:
            assert not re.search(r"import\s*\(?\s*[\"']https?:", script), path.name
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", path.read_text(encoding="utf-8")), path.name


@pytest.mark.docs
def test_pages_show_what_the_code_says(site: Path) -> None:
    assert "evictions" in (site / "python.html").read_text(encoding="utf-8").lower()
    assert "time_to_live" not in (site / "reference" / "commands.html").read_text(encoding="utf-8")
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert 'id="sagasim-trace-convert"' in commands
    assert "FILE|NAME" in commands  # a bar in a table is a bar
    assert not (site / "hooks").exists()
