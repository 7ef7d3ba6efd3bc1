"""The contract test of policies: every policy passes, and each way of breaking it is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagasim.contract import check_policy
from sagasim.errors import PolicyError
from sagasim.seams import find, policies

MINE = str(Path(__file__).parent / "policies" / "mine.py")
SPECS = [p.name for p in policies()] + [
    f"{MINE}:{n}" for n in ("cheapest:queue_tokens=7", "roomiest", "shortest", "largest", "ageing")
]


@pytest.mark.parametrize("spec", SPECS)
def test_every_policy_keeps_the_contract(spec: str) -> None:
    assert "keeps the contract" in check_policy(spec)


BROKEN = {
    "outside": ("return len(replicas)", "index from 0 to"),
    "text": ("return 'first'", "index from 0 to"),
    "moody": ("import os\n    return os.urandom(1)[0] % len(replicas)", "two runs differ|differ"),
    "counting": ("return next(COUNT) % len(replicas)", "differ"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_policy_is_found(name: str, tmp_path: Path) -> None:
    body, message = BROKEN[name]
    file = tmp_path / f"broken_{name}.py"
    file.write_text(
        "import itertools\nfrom sagasim.seams import policy\nCOUNT = itertools.count()\n\n\n"
        f"@policy('route', '{name}')\ndef broken(request, replicas, now_ps, rng):\n    {body}\n"
    )
    with pytest.raises(PolicyError, match=message):
        check_policy(f"{file}:{name}")


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("route", "round-robbin", "'round-robin' perhaps"),
        ("route", "prefix-affinity:treshold=1", "'threshold' perhaps"),
        ("route", "prefix-affinity:threshold=high", "not of type float"),
        ("route", "prefix-affinity:threshold=-0.1", r"threshold: -0.1 is out of range; expected 0 to 1"),
        ("route", "prefix-affinity:threshold=1.5", r"threshold: 1.5 is out of range; expected 0 to 1"),
        ("balance", "steal:most=0", r"most: 0 is out of range; expected 1 to 1e\+06"),
        ("route", "round-robin:x=1", "has none"),
        ("route", "./nowhere.py:x", "no such file"),
        ("evict", "round-robin", "unknown evict policy"),
        ("order", "", "unknown order policy"),
    ],
)
def test_a_wrong_specification_is_told_in_one_line(kind: str, spec: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message) as caught:
        find(kind, spec)
    assert "\n" not in str(caught.value)


def test_every_number_of_a_built_in_policy_has_a_range_with_its_default_inside() -> None:
    for found in policies():
        if found.factory.__module__.startswith("sagasim."):
            numbers = {name: p.default for name, p in found.parameters.items() if type(p.default) in (int, float)}
            assert set(found.limits) == set(numbers), found.name
            assert all(found.limits[name][0] <= value <= found.limits[name][1] for name, value in numbers.items())


def test_a_file_that_is_no_python(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("def (:\n")
    with pytest.raises(PolicyError, match=r"bad\.py:1"):
        find("route", f"{file}:x")


def test_a_file_that_is_refused_leaves_no_policy_behind(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    head = "from sagasim.seams import policy\n"
    file.write_text(f"{head}@policy('evict', 'left-behind')\nclass Left:\n    def __call__(self, idle): return 0\n")
    before = policies()
    with pytest.raises(PolicyError, match="cannot be called"):
        find("evict", f"{file}:left-behind")
    assert policies() == before
