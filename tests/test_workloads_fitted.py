"""Workloads fitted to recordings: distributions, correlations that matter for caches, options, files of fits."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagasim.core import Task, check_task
from sagasim.errors import ConfigError
from sagasim.hardware import data_dir
from sagasim.trace import open_trace
from sagasim.workloads import find, generate
from sagasim.workloads.compare import compare_browser, compare_fit
from sagasim.workloads.fit_rows import Rows
from sagasim.workloads.fit_scores import normal_scores
from sagasim.workloads.measure import distance, main_calls, measure

FITTED = ("coding-real", "tool-calling", "chat", "multi-agent", "browser-real")
SESSIONS = ("coding-real", "tool-calling", "chat")
WEKA = data_dir() / "traces" / "weka_claude_code.sessions.jsonl.gz"


@pytest.fixture(scope="module")
def recorded() -> list[Task]:
    return list(open_trace("weka").tasks(0))


@pytest.fixture(scope="module")
def drawn() -> list[Task]:
    return list(generate("coding-real", 700, 2).tasks())


@pytest.fixture(scope="module")
def both(recorded: list[Task], drawn: list[Task]) -> tuple[Rows, Rows]:
    return Rows(recorded), Rows(drawn)


# ---- the recording and what is drawn


@pytest.mark.parametrize(
    "name",
    [
        "steps",
        "first_input_tokens",
        "prompt_tokens",
        "output_tokens",
        "growth_tokens",
        "growth_after_tool_tokens",
        "growth_after_user_tokens",
        "gap_after_tool_s",
        "gap_after_user_s",
        "prefix_share",
    ],
)
def test_distributions_of_coding_real(recorded: list[Task], drawn: list[Task], name: str) -> None:
    assert distance(measure(recorded)[name], measure(drawn)[name]) <= 0.1


def within(rows: Rows, scores: Any, lag: int) -> float:
    """Correlation of scores some steps apart within sessions."""
    same = rows.session[lag:] == rows.session[:-lag]
    one, other = scores[:-lag][same], scores[lag:][same]
    known = ~np.isnan(one) & ~np.isnan(other)
    return float(np.corrcoef(one[known], other[known])[0, 1])


def scored(rows: Rows, which: str) -> Any:
    """Normal scores of growth, outputs or gaps after tools where the prefix is kept."""
    values = {"growth": rows.longer - rows.prompt, "output": rows.output, "gap": rows.gap_s}[which]
    wanted = rows.clean if which == "growth" else ~np.isnan(values)
    found = np.full(len(values), np.nan)
    if which == "gap":
        wanted = wanted & (rows.user == 0)
    found[wanted] = normal_scores(values[wanted])
    return found


def with_gaps(rows: Rows, tasks: list[Task]) -> Rows:
    """Rows whose gaps are there whether drawn or recorded."""
    gaps = []
    for task in tasks:
        calls = main_calls(task)
        gaps += [(c.tool_ps + after.delay_ps) / 1e12 or np.nan for c, after in pairwise(calls)]
        gaps.append(np.nan)
    rows.gap_s = np.array(gaps)
    return rows


@pytest.mark.parametrize("which", ["growth", "output", "gap"])
@pytest.mark.parametrize("lag", [1, 2, 5, 10])
def test_correlation_from_step_to_step(
    both: tuple[Rows, Rows], recorded: list[Task], drawn: list[Task], which: str, lag: int
) -> None:
    real, made = with_gaps(both[0], recorded), with_gaps(both[1], drawn)
    expected = within(real, scored(real, which), lag)
    assert expected > 0.1
    assert within(made, scored(made, which), lag) == pytest.approx(expected, abs=0.08)


def test_growth_follows_output_and_trigger(both: tuple[Rows, Rows]) -> None:
    for user in (0, 1):
        medians, correlations = [], []
        for rows in both:
            cell = rows.clean & (rows.user == user)
            growth = (rows.longer - rows.prompt)[cell]
            medians.append(np.median(growth))
            correlations.append(np.corrcoef(normal_scores(growth), normal_scores(rows.output[cell]))[0, 1])
        assert medians[1] == pytest.approx(medians[0], rel=0.1)
        assert correlations[1] == pytest.approx(correlations[0], abs=0.08)
        assert correlations[0] > 0.3


def test_prompts_grow_fast_at_first(both: tuple[Rows, Rows]) -> None:
    for low, high, rel in ((0, 1, 0.35), (1, 6, 0.2), (6, 30, 0.1), (30, 10_000, 0.1)):
        means = [
            float((rows.longer - rows.prompt)[rows.clean & (rows.step >= low) & (rows.step < high)].mean())
            for rows in both
        ]
        assert means[1] == pytest.approx(means[0], rel=rel)


def test_how_often_the_prefix_is_lost(both: tuple[Rows, Rows]) -> None:
    real, made = both
    assert made.reset[made.plain].mean() == pytest.approx(real.reset[real.plain].mean(), rel=0.25)
    assert made.compaction[made.inner].mean() == pytest.approx(real.compaction[real.inner].mean(), rel=0.35)
    for rows in both:  # compaction belongs to a full window and to users, reset to long gaps after tools
        near = (rows.prompt > 140_000) & (rows.prompt < 175_000) & rows.inner
        far = (rows.prompt < 120_000) & rows.inner
        assert rows.compaction[near].mean() > 8 * rows.compaction[far].mean()
        assert rows.user[rows.compaction].mean() > 0.5


def test_resets_follow_long_gaps_after_tools(both: tuple[Rows, Rows], recorded: list[Task], drawn: list[Task]) -> None:
    found = []
    for rows, tasks in zip(both, (recorded, drawn), strict=True):
        rows = with_gaps(rows, tasks)
        tool = rows.plain & (rows.user == 0) & (rows.step > 0)
        found.append(
            [rows.reset[tool & (rows.gap_s >= a) & (rows.gap_s < b)].mean() for a, b in ((0, 60), (300, 3600))]
        )
    assert found[0][1] > 10 * found[0][0]
    assert found[1] == pytest.approx(found[0], rel=0.4)


def test_what_is_left_and_what_follows_a_loss(both: tuple[Rows, Rows]) -> None:
    for event in ("compaction", "reset"):
        left = [np.median((rows.keep - rows.shared)[getattr(rows, event)]) for rows in both]
        assert left == pytest.approx([0, 0], abs=300)  # tools and system prompt, to a block or so
        ratio = [np.median((rows.longer / rows.prompt)[getattr(rows, event)]) for rows in both]
        assert ratio[1] == pytest.approx(ratio[0], abs=0.06)


@pytest.mark.parametrize("kind", ["/tools/", "/system/"])
def test_tools_and_system_prompts_are_shared_in_clusters(recorded: list[Task], drawn: list[Task], kind: str) -> None:
    def clusters(tasks: list[Task]) -> tuple[float, float]:
        """(part of the tasks in the largest cluster, part that shares with no other)."""
        counts = Counter(p.name for task in tasks for p in task.prefixes if kind in p.name)
        return max(counts.values()) / len(tasks), sum(n == 1 for n in counts.values()) / len(tasks)

    largest, alone = clusters(drawn[: len(recorded)])
    expected = clusters(recorded)
    assert largest == pytest.approx(expected[0], abs=0.05)
    assert alone == pytest.approx(expected[1], abs=0.08)


def test_sizes_of_tools_and_system_prompts(recorded: list[Task], drawn: list[Task]) -> None:
    shared = [
        [sum(p.new_tokens for p in task.prefixes if "sub-agent" not in p.name) for task in tasks]
        for tasks in (recorded, drawn)
    ]
    assert distance(*shared) <= 0.08


def test_sub_agents_run_beside_and_are_waited_for() -> None:
    tasks = list(generate("coding-real", 150, 1, subagent_factor=40.0).tasks())
    share = sum(any(call.agent for call in task.calls) for task in tasks) / len(tasks)
    assert share > 0.9
    plain = list(generate("coding-real", 150, 1, subagent_factor=0.0).tasks())
    assert not any(call.agent for task in plain for call in task.calls)
    for task, alone in zip(tasks, plain, strict=True):
        check_task(task)
        assert [c.prompt_tokens for c in main_calls(task)] == [c.prompt_tokens for c in main_calls(alone)]
        last = {call.agent: call.name for call in task.calls if call.agent}
        for agent, name in last.items():
            assert any(name in call.after for call in main_calls(task)), agent


# ---- the other workloads


@pytest.mark.parametrize(
    ("name", "tasks", "aim"), [("tool-calling", 2500, 0.12), ("chat", 4000, 0.07), ("multi-agent", 1500, 0.15)]
)
def test_distributions_of_the_others(name: str, tasks: int, aim: float) -> None:
    found = compare_fit(name, tasks)
    assert found.worst.apart <= aim
    exact = {row.name: row.apart for row in found.rows}
    for metric in ("steps", "first_input_tokens", "output_tokens"):
        assert exact[metric] <= 0.05, metric


def test_browsers_have_the_published_quantiles() -> None:
    for comparison in compare_browser(5000):
        apart = {row.name: row.apart for row in comparison.rows}
        for name in ("steps", "first_input_tokens", "prompt_tokens", "output_tokens", "prefix_share"):
            assert apart[name] <= 0.05, (comparison.workload, name)
        assert apart.get("cycle_s", 0) <= 0.07  # the P99 of few thousand draws


def test_tool_calling_only_appends() -> None:
    tasks = list(generate("tool-calling", 200, 1).tasks())
    names = {tool.name for task in tasks for call in task.calls for tool in call.tools}
    assert {"user", "book_reservation"} <= names
    kept = [b.keep_tokens - a.prompt_tokens - a.output_tokens for t in tasks for a, b in pairwise(t.calls)]
    assert np.mean(np.array(kept) == 0) > 0.95
    assert max(kept) <= 0


def test_chat_with_azure() -> None:
    tasks = list(generate("chat", 4000, 1, azure_share=1.0).tasks())
    assert {len(task.calls) for task in tasks} == {1}
    prompts = [task.calls[0].prompt_tokens for task in tasks]
    assert np.quantile(prompts, [0.5, 0.95]) == pytest.approx([1016, 4085], rel=0.08)  # published trace, first 2/3
    outputs = [task.calls[0].output_tokens for task in tasks]
    assert np.quantile(outputs, [0.5, 0.95]) == pytest.approx([115, 447], rel=0.08)
    mixed = list(generate("chat", 300, 1, azure_share=0.5).tasks())
    alone = list(generate("chat", 300, 1).tasks())
    assert 0.35 < np.mean([one == other for one, other in zip(mixed, alone, strict=True)]) < 0.65


def test_agents_send_the_same_prompts_again() -> None:
    tasks = list(generate("multi-agent", 300, 1).tasks())
    again = [call.new_tokens == 0 for task in tasks for call in task.calls[4:]]
    assert np.mean(again) == pytest.approx(0.87, abs=0.06)


# ---- options, determinism, validity


@pytest.mark.parametrize("name", FITTED)
def test_a_task_depends_on_seed_and_options_alone(name: str) -> None:
    few, many = generate(name, 3, seed=4), generate(name, 12, seed=4)
    assert list(few.tasks()) == list(islice(many.tasks(), 3)) == list(few.tasks(99))
    assert list(few.tasks()) != list(generate(name, 3, seed=5).tasks())
    for task in many.tasks():
        check_task(task)
        assert task.arrival_ps is None
        assert all(tool.filled and tool.duration_ps % 10**6 == 0 for call in task.calls for tool in call.tools)


def totals(name: str, metric: str, **options: Any) -> float:
    return float(measure(generate(name, 150, 3, **options).tasks())[metric].mean())


@pytest.mark.parametrize(
    ("name", "option", "metric", "factor"),
    [
        ("coding-real", "output_factor", "output_tokens", 2),
        ("coding-real", "first_factor", "first_input_tokens", None),
        ("coding-real", "gap_factor", "gap_after_tool_s", 2),
        ("coding-real", "steps_factor", "steps", None),
        ("tool-calling", "steps_factor", "steps", None),
        ("tool-calling", "gap_factor", "gap_after_user_s", 2),
        ("chat", "gap_factor", "gap_after_user_s", 2),
        ("multi-agent", "steps_factor", "steps", 2),
        ("multi-agent", "output_factor", "output_tokens", 2),
        ("browser-real", "prompt_factor", "prompt_tokens", 2),
        ("browser-real", "output_factor", "output_tokens", 2),
    ],
)
def test_factors(name: str, option: str, metric: str, factor: float | None) -> None:
    ratio = totals(name, metric, **{option: 2.0}) / totals(name, metric)
    assert ratio == pytest.approx(factor, rel=0.12) if factor else ratio > 1.3


def test_options_of_losses_and_sharing() -> None:
    def rows(**options: Any) -> Rows:
        return Rows(list(generate("coding-real", 200, 3, **options).tasks()))

    assert not rows(compaction_factor=0.0, reset_factor=0.0).loss.any()
    assert rows(reset_factor=3.0).reset.mean() > 1.8 * rows().reset.mean()
    for task in generate("coding-real", 40, 3, share_prefixes=False, subagent_factor=0.0).tasks():
        assert task.prefixes == ()
    usual, reused = (list(generate("coding-real", 20, 3, reuse_output=r).tasks()) for r in (False, True))
    assert [c.prompt_tokens for t in usual for c in t.calls] == [c.prompt_tokens for t in reused for c in t.calls]
    assert sum(c.keep_tokens for t in reused for c in t.calls) > sum(c.keep_tokens for t in usual for c in t.calls)


def test_a_browser_of_ones_choice() -> None:
    tasks = list(generate("browser-real", 40, 1, agent_mix=(0, 1), max_steps=5, shared_prefix_tokens=2000).tasks())
    assert {task.agent for task in tasks} == {"browser-real/Convergence"}
    assert max(len(task.calls) for task in tasks) == 5
    assert {task.calls[0].keep_tokens for task in tasks} == {2000}


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(FITTED),
    index=st.integers(0, 10**6),
    seed=st.integers(0, 10**6),
    factors=st.lists(st.sampled_from([0.0, 0.01, 0.5, 1.0, 3.0, 50.0]), min_size=8, max_size=8),
    flags=st.lists(st.booleans(), min_size=2, max_size=2),
)
def test_whatever_the_factors_tasks_can_be_replayed(
    name: str, index: int, seed: int, factors: list[float], flags: list[bool]
) -> None:
    found = find(name)
    options: dict[str, Any] = {}
    values = iter(factors)
    for key, option in found.options.items():
        if key.endswith("_factor"):
            options[key] = min(next(values), 2.0) if key == "steps_factor" else next(values)
            if key in ("steps_factor", "prompt_factor"):
                options[key] = max(options[key], 0.01)
        elif isinstance(option.default, bool):
            options[key] = flags[len(options) % 2]
    task = found.task(index, seed, **options)
    check_task(task)
    assert task == found.task(index, seed, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("coding-real", {"steps_factor": 0.0}),
        ("coding-real", {"gap_factor": -1.0}),
        ("chat", {"azure_share": 1.5}),
        ("chat", {"azure_share": 1.0, "fit": "tool-calling"}),
        ("multi-agent", {"steps_factor": 0}),
        ("browser-real", {"agent_mix": (0, 0)}),
        ("browser-real", {"prompt_factor": 0.0}),
        ("tool-calling", {"reset_factor": 1.0}),
    ],
)
def test_options_that_make_no_sense(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        list(generate(name, 50, 0, **options).tasks())
