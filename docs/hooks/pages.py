"""Pages of the site that are made from the code, and the notebooks, which lie outside docs/."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))

from reference import PAGES  # noqa: E402 - it lies beside this file


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what docs/ does not hold."""
    for name, page in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=page()))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


# What the converter of notebooks adds for diagrams and formulas, which ours have not, would be fetched from elsewhere.
_FETCHED = re.compile(r'<script (?:type="module"|type="text/x-mathjax-config"|src="")>.*?</script>', re.DOTALL)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A notebook without scripts from elsewhere."""
    return _FETCHED.sub("", content) if page.file.src_path.endswith(".ipynb") else content
