"""The words of docs/workloads.md."""

from __future__ import annotations

__all__ = ["AFTER", "BEFORE", "NOTES"]

BEFORE = """# Workloads

Generators of tasks, and how close they are to what they stand for. `python -m sagasim.workloads.page` writes this page
and its figures anew from the fits in `traces/fits`; `python -m sagasim.workloads.fit --traces DIR --out traces/fits`
makes the fits from traces. Nothing here is edited by hand.

```sh
sagasim run --workload coding-real --tasks 50 --over-length extend --out results/coding
sagasim run --workload 'swe-bench:mean_steps=20,output_tokens=50|200' --out results/short
sagasim run --workload ./mine.py:nightly:jobs=3 --out results/mine
```

| workload | stands for | made from |
|---|---|---|
| `swe-bench` | software engineering tasks (500 in the paper) | statistics of the SAGA paper and its artifact |
| `webarena` | tasks on web sites (812 in the paper) | the same |
| `multi-tenant` | three heavy, four medium, three light tenants, `heavy-1` to `light-3` | the same |
| `coding-real` | Claude Code sessions | 464 recorded sessions |
| `browser-real` | Browser-Use and Convergence on WebVoyager | published quantiles of 447 runs |
| `tool-calling` | a customer-service agent (tau-bench, airline) | 136 recorded sessions |
| `multi-agent` | Magentic-One runs | 16 recorded runs |
| `chat` | people who chat (Mooncake's conversation trace; `azure_share` mixes in Azure's) | 7,689 recorded requests |

Task i of a workload depends on the seed and the options, not on how many tasks there are. When tasks arrive is not a
matter of the generator; the tenants' published rates are weights that decide whose task each one is. All options are
the keyword parameters of the workload's function, with their help in its docstring; the items of a tuple are separated
by `|`.

**How to read the tables.** Where a recording is known, KS is the largest gap between its distribution function and
that of the generated tasks (0.1 is the aim for `coding-real`). Where only statistics are published, it is the largest
relative difference of any number given (5 % is the aim). What misses its aim is on top.
"""

NOTES = {
    "coding-real": """
Each session draws its tools and system prompt (shared by name with those that have the same), its first prompt, its
share of requests that a user starts, and its own level of outputs, added tokens and gaps; each step draws these
three anew, correlated with each other and from step to step. Prompts grow faster in the first six steps and below
40,000 tokens. Two windows (175,000 tokens and longer) decide where prompts are compacted and sessions end. After
long gaps the prefix is often not found again (78 % of gaps of over an hour after a tool), as recorded. Not
modelled: that 9 % of the losses return to an older prompt of the session (here they keep the tools and system
prompt, mostly), and that sessions use several models. Only prompts are found again, not outputs, since the source
knows the blocks of prompts alone; `reuse_output=true` changes that.
""",
    "tool-calling": """
The same model fitted to tau-bench; contexts only grow. The source has no times, so that of tools and users is drawn
as for any such source (`sagasim/fill.py`) and not compared.
""",
    "multi-agent": """
Sixteen runs are few: the quantiles of the recording are themselves uncertain. A run opens with four calls of a
plan, then sends few prompts again and again. Drafts between a restart and the next main prompt are left out.
""",
    "chat": """
The same model with users only. Conversations are those inferred from the block ids of a sample of requests, so they
are short (1.45 requests on average), as in the source. Its blocks have 512 tokens and prefixes are known to a
block, which shows in the share that repeats.
""",
    "browser-real": """
Only p5, p50, p95, p99 and means are published. Steps, prompts, outputs, prefix shares and step times are drawn
through them. The order of prompts has four constants to match growth and last prompts, which is not enough:
recorded prompts grow steadily and now and then shrink, generated ones go up and down more. Published times of tasks
are longer than their steps; the mean of the difference is waited for before the first call, exponentially, an
assumption. For Convergence no step time is published: it has the shape of Browser-Use's and the mean that its task
times imply.
""",
    "published": """
Steps are geometric, cut at the largest number, with the stated mean after the cut; prompts and outputs uniform;
observations Gamma(2). Latencies of tools are piecewise linear between P50, P95 and P99 in the normal quantile, so
all three hold. For the tenants no largest number of steps is published; 140, 120 and 40 are assumed, so that
contexts stay below 131,072 tokens. Branches (`branch_probability`, `branch_width`), several tools at once
(`parallel_tool_probability`, `parallel_tools`), sub-agents (`subagent_probability`, `subagent_steps`) and a shared
system prompt (`shared_prefix_tokens`) are off unless asked for. The quantiles of tools are measured over a million
draws of each, for a P99 of few draws says little.
""",
}

AFTER = """## A workload of your own

A file with one decorated function. Its keyword-only parameters, each with a default, are its options.

```python
# mine.py
from sagasim.core import Call, Task, Tool
from sagasim.rng import Stream
from sagasim.workloads import workload


@workload("nightly")
def task(index, seed, *, jobs: int = 2, tool_s: float = 5.0):
    \"\"\"Jobs that look at one report each.

    jobs: calls of a task
    tool_s: mean time of a job in seconds
    \"\"\"
    stream = Stream(seed, "nightly", index)
    calls = []
    for job in range(jobs):
        before = calls[-1] if calls else None
        tool = Tool("job", round(stream.exponential(tool_s) * 1e6) * 10**6, True)
        kept = before.prompt_tokens + before.output_tokens if before else 0
        calls.append(
            Call(
                name=str(job),
                new_tokens=stream.integer(500, 2000),
                output_tokens=stream.integer(50, 300),
                extends=before.name if before else None,
                keep_tokens=kept,
                after=(before.name,) if before else (),
                tools=(tool,),
            )
        )
    return Task(f"nightly/{index}", tuple(calls))
```

A fit to traces of your own, in any format that `sagasim trace validate` accepts as sessions with gaps:

```sh
python -m sagasim.workloads.fit --traces my-traces --out my-fits
sagasim run --workload coding-real:fit=my-fits/coding-real.json --over-length extend --out results/ours
```
"""
