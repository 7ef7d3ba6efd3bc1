"""How a workload is named, found and given options; files of users."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from sagasim.core import check_task
from sagasim.errors import ConfigError
from sagasim.workloads import find, generate, workload, workloads
from sagasim.workloads.spec import Option, parse_options

NAMES = [
    "browser-real",
    "chat",
    "coding-real",
    "multi-agent",
    "multi-tenant",
    "swe-bench",
    "tool-calling",
    "webarena",
]
FILE = """
from sagasim.core import Call, Task
from sagasim.rng import Stream
from sagasim.workloads import workload


@workload("NAME")
def task(index, seed, *, calls: int = 2, share: float = 0.5, deep: bool = False, model: str = "m"):
    \"\"\"Two calls.

    calls: how many
    \"\"\"
    stream = Stream(seed, "NAME", index)
    made = tuple(Call(str(n), stream.integer(1, 9), 1) for n in range(calls))
    return Task(f"NAME/{index}", made, agent=model)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE.replace("NAME", f"mine-{tmp_path.name.replace('_', '-')}"))
    return path


def spec_of(file: Path) -> str:
    return f"{file}:mine-{file.parent.name.replace('_', '-')}"


def test_what_comes_with_sagasim() -> None:
    """Whatever else was put on the list in this process: other tests read files of workloads."""
    ours = [w.name for w in workloads() if w.task.__module__.startswith("sagasim.") and "/" not in w.name]
    assert ours == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_help_and_every_workload_a_line(name: str) -> None:
    found = find(name)
    assert found.help.endswith(".")
    for key, option in found.options.items():
        assert option.help, key
        assert type(option.default) in (int, float, str, bool, tuple)
    documented = [line.split(":")[0] for line in (inspect.getdoc(found.task) or "").splitlines() if ": " in line]
    assert set(found.options) <= set(documented)


def test_a_specification_is_the_same_as_keywords() -> None:
    text = generate("swe-bench:mean_steps=5,output_tokens=50|200,tool_mix=1|0|0|0", 4, 3)
    keywords = generate("swe-bench", 4, 3, mean_steps=5, output_tokens=(50, 200), tool_mix=(1, 0, 0, 0))
    assert list(text.tasks()) == list(keywords.tasks())
    assert text.sha256 == keywords.sha256
    assert text.name == "swe-bench"
    over = generate("swe-bench:mean_steps=5", 4, 3, mean_steps=6.0)
    assert list(over.tasks()) == list(generate("swe-bench", 4, 3, mean_steps=6.0).tasks())


def test_a_file_of_the_user(file: Path) -> None:
    trace = generate(f"{spec_of(file)}:calls=3,deep=true,model=large", 5, 1)
    tasks = list(trace.tasks())
    assert [len(task.calls) for task in tasks] == [3] * 5
    assert tasks[0].agent == "large"
    assert tasks == list(generate(spec_of(file), 5, 1, calls=3, deep=True, model="large").tasks())
    assert generate(spec_of(file), 5, 1).sha256 != trace.sha256


def test_the_digest_of_a_file_follows_its_text(file: Path, tmp_path: Path) -> None:
    before = generate(spec_of(file), 5, 1).sha256
    other = tmp_path / "other" / file.parent.name / "mine.py"
    other.parent.mkdir(parents=True)
    other.write_text(file.read_text().replace("1, 9", "1, 8"))
    assert generate(spec_of(other), 5, 1).sha256 != before


def test_fits_are_part_of_the_digest(tmp_path: Path) -> None:
    source = Path(inspect.getfile(find)).parents[2] / "traces" / "fits" / "tool-calling.json"
    copy = tmp_path / "fit.json"
    copy.write_text(source.read_text())
    other = tmp_path / "other.json"
    other.write_text(source.read_text().replace('"n": 136', '"n": 137'))
    one, two = (generate("tool-calling", 3, 0, fit=str(path)) for path in (copy, other))
    assert list(one.tasks()) == list(two.tasks()) == list(generate("tool-calling", 3, 0).tasks())
    assert one.sha256 != two.sha256


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("swe-bnch", "'swe-bench' perhaps"),
        ("coding_real", "'coding-real' perhaps"),
        ("swe-bench:mean_step=3", "'mean_steps' perhaps"),
        ("swe-bench:mean_steps", "'mean_steps' perhaps"),
        ("swe-bench:mean_steps=many", "a number from 0"),
        ("swe-bench:max_steps=1.5", "a whole number"),
        ("swe-bench:output_tokens=5", "2 values"),
        ("swe-bench:output_tokens=5|6|7", "2 values"),
        ("swe-bench:output_tokens=5|-6", "a whole number from 0"),
        ("swe-bench:mean_steps=nan", "a number from 0"),
        ("coding-real:share_prefixes=yes", "true or false"),
        ("coding-real:fit=nowhere.json", "no fit"),
        ("coding-real:fit=chatt", "'chat' perhaps"),
        ("coding-real:fit=multi-agent", "kind 'sessions'"),
        ("./nowhere.py:mine", "a Python file"),
        ("mine.py", "mine.py:NAME"),
    ],
)
def test_mistakes_are_one_line_with_the_nearest_name(spec: str, said: str) -> None:
    from sagasim.errors import SagasimError

    with pytest.raises(SagasimError) as caught:
        generate(spec, 1)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_workloads(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("def task(:\n")
    with pytest.raises(ConfigError, match="valid Python"):
        find(f"{broken}:x")
    missing = tmp_path / "missing.py"
    missing.write_text("import nothing_like_this\n")
    with pytest.raises(ConfigError, match="imports that are installed"):
        find(f"{missing}:x")
    empty = tmp_path / "empty.py"
    empty.write_text("")
    with pytest.raises(ConfigError, match="unknown workload"):
        find(f"{empty}:x")


def test_a_workload_must_have_a_name_and_defaults() -> None:
    with pytest.raises(ConfigError, match="letters"):
        workload("a:b")
    with pytest.raises(ConfigError, match="a default"):

        @workload("no-default")
        def task(index: int, seed: int, *, size: int) -> None:  # type: ignore[type-var]
            ...

    assert "no-default" not in [w.name for w in workloads()]


def test_incomplete_fits_are_told(tmp_path: Path) -> None:
    from sagasim.errors import TraceError

    for number, text in enumerate(
        ("", "[1]", "{}", '{"kind": "sessions"}', '{"kind": "sessions", "session": {}, "step": 1}')
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        with pytest.raises(TraceError, match=r"sagasim\.workloads\.fit"):
            generate("coding-real", 1, 0, fit=str(path))
    for name, kind in (("browser-real", "browser"), ("multi-agent", "multi-agent")):
        path = tmp_path / f"{name}.json"
        path.write_text(f'{{"kind": "{kind}"}}')
        with pytest.raises(TraceError, match=r"sagasim\.workloads\.fit"):
            generate(name, 1, 0, fit=str(path))


def test_options_of_every_type() -> None:
    options = {
        "whole": Option(3, ""),
        "real": Option(0.5, ""),
        "flag": Option(False, ""),
        "text": Option("a", ""),
        "pair": Option((1, 0.5), ""),
    }
    parsed = parse_options("whole=4,real=2,flag=TRUE,text=b,pair=7|1e-3", options, "x")
    assert parsed == {"whole": 4, "real": 2, "flag": True, "text": "b", "pair": (7, 0.001)}
    assert parse_options("", options, "x") == {}


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "workloads.md").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(page.split("```python\n# mine.py\n")[1].split("```")[0])
    monkeypatch.chdir(tmp_path)
    tasks = list(generate("./mine.py:nightly:jobs=3", 20, 1).tasks())
    assert {len(task.calls) for task in tasks} == {3}
    for task in tasks:
        check_task(task)
