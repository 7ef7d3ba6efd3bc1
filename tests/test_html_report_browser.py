"""The page in a browser: it renders without errors, sorts, fits a laptop, and prints. Needs Chromium; no network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from report_cases import make_sweep

from sagasim.cli import main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

LISTEN = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("securitypolicyviolation", (event) => errors.push(event.blockedURI));
</script>"""
ASK = """<script>
const [table] = document.querySelectorAll("table");
const rows = () => [...table.tBodies[0].rows];
const column = (n) => rows().map((row) => row.cells[n].firstChild.textContent);
const heads = [...table.tHead.rows[0].cells];
const state = () => heads.map((head) => head.getAttribute("aria-sort"));
const found = { heads: heads.map((head) => head.textContent), sorted: [], state: [] };
for (const n of [4, 4, 0, 5]) {
  heads[n].querySelector("button").focus();
  found.focused = document.activeElement === heads[n].querySelector("button");
  document.activeElement.click();
  found.sorted.push(column(n));
  found.state.push(state()[n]);
}
found.marked = state().filter((way) => way !== null).length;
found.width = [document.documentElement.scrollWidth, innerWidth];
found.beyond = [...document.querySelectorAll("main > *, section > *, figure > svg")]
  .filter((one) => one.getBoundingClientRect().right > innerWidth).map((one) => one.outerHTML.slice(0, 80));
found.clipped = [...document.querySelectorAll("figure svg")].flatMap((svg) => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter((text) => {
    const box = text.getBoundingClientRect();
    return box.left < frame.left - 3 || box.right > frame.right + 3 || box.top < frame.top - 3 ||
      box.bottom > frame.bottom + 3;
  }).map((text) => text.textContent);
});
const box = document.querySelector(".scroll");
box.scrollTop = 60;
const [first, frame] = [heads[0], box].map((one) => one.getBoundingClientRect().top);
found.sticky = box.scrollTop === 60 && Math.abs(first - frame) < 3;
found.errors = errors;
const out = document.createElement("pre");
out.id = "found";
out.textContent = JSON.stringify(found);
document.body.append(out);
</script>"""


def tct_s(keys: Mapping[str, Any], seed: int) -> float:
    return (9.0 if keys["preset"] == "saga" else 10.0) * keys["concurrency"] * (1 + 0.01 * seed * seed)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser") / "sweep"
    points = [
        ({"preset": preset, "concurrency": count, "num_gpu_blocks_override": blocks}, None)
        for preset in ("vllm-0.15", "saga")
        for count in (2, 11, 100, 20)
        for blocks in (1000, 2000, 4000)
    ]
    make_sweep(folder, points, range(3), tct_s)
    with pytest.raises(SystemExit):
        main(["report", str(folder)])
    return folder / "report.html"


def chromium(*options: str) -> str:
    assert CHROMIUM is not None
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    done = subprocess.run([CHROMIUM, *quiet, *options], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_it_sorts_and_fits_a_laptop_without_errors(page: Path, tmp_path: Path) -> None:
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'unsafe-inline'\">"  # nothing is loaded
    text = page.read_text().replace("<head>", f"<head>{policy}{LISTEN}", 1)
    asked = tmp_path / "asked.html"
    asked.write_text(text.replace("</body>", f"{ASK}</body>"))
    dumped = chromium("--window-size=1280,800", "--dump-dom", asked.as_uri())
    written = re.search(r'<pre id="found">(.*?)</pre>', dumped, re.DOTALL)
    assert written is not None
    found = json.loads(unescape(written[1]))
    assert found["errors"] == []
    up, down, concurrency, mean = found["sorted"]
    numbers = [[float(cell.replace(",", "")) for cell in cells] for cells in (up, concurrency, mean)]
    assert all(values == sorted(values) for values in numbers)  # as numbers: 9 before 10, 2 before 100
    assert concurrency[:7] == ["2"] * 6 + ["11"]
    assert down == up[::-1]
    assert len(set(up)) > 5
    assert found["state"] == ["ascending", "descending", "ascending", "ascending"]
    assert found["marked"] == 1
    assert found["focused"]
    assert found["sticky"]
    assert found["width"][0] <= found["width"][1] == 1280
    assert found["beyond"] == found["clipped"] == []


def printed(page: Path, out: Path) -> list[tuple[float, float]]:
    """Width and height of each page."""
    chromium("--no-pdf-header-footer", f"--print-to-pdf={out}", page.as_uri())
    content = out.read_bytes()
    assert content.startswith(b"%PDF")
    sizes = re.findall(rb"/MediaBox\s*\[0 0 ([\d.]+) ([\d.]+)\]", content)
    return [(float(width), float(height)) for width, height in sizes]


def test_it_prints_in_sections_on_landscape_pages(page: Path, tmp_path: Path) -> None:
    pages = printed(page, tmp_path / "page.pdf")
    assert all(width > height for width, height in pages)
    flowing = tmp_path / "flowing.html"
    flowing.write_text(page.read_text().replace("break-before: page", "break-before: auto"))
    assert len(pages) > len(printed(flowing, tmp_path / "flowing.pdf")) > 1
