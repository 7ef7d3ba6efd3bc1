"""People who chat with a model: turns, gaps and lengths of a production trace (Mooncake's conversation trace).

Fitted to its requests and to the parents inferred from their block ids; docs/workloads.md compares. The source is a
sample of requests, so its conversations are cut short; gaps are from request to request, of which an assumed 10 ms per
output token are the model's. A share of the tasks can be single requests with the lengths of Azure's conversation
trace instead.
"""

from __future__ import annotations

from sagasim.core import Call, Task
from sagasim.errors import ConfigError
from sagasim.rng import Stream
from sagasim.workloads import workload
from sagasim.workloads.sessions import FILLED, Changes, make_session
from sagasim.workloads.tables import Table, fit_digest, load_fit, phi

__all__ = ["task"]


@workload("chat", filled=FILLED, sources=lambda options: fit_digest(options["fit"]))
def task(
    index: int,
    seed: int,
    *,
    fit: str = "chat",
    azure_share: float = 0.0,
    steps_factor: float = 1.0,
    first_factor: float = 1.0,
    added_factor: float = 1.0,
    output_factor: float = 1.0,
    gap_factor: float = 1.0,
    share_prefixes: bool = True,
    reuse_output: bool = False,
) -> Task:
    """Conversations of people with a model, drawn from a fit to Mooncake's production trace.

    fit: name of a fit, or a file made by python -m sagasim.workloads.fit from traces of your own
    azure_share: part of the tasks that are single requests with the lengths of Azure's conversation trace
    steps_factor: factor on the number of turns
    first_factor: factor on the first prompt without what is shared
    added_factor: factor on what users add to the prompt
    output_factor: factor on outputs
    gap_factor: factor on the time that users take
    share_prefixes: whether conversations share the beginning of their prompts
    reuse_output: whether outputs are found again in the next prompt
    """
    if azure_share > 1:
        raise ConfigError(f"azure_share is {azure_share}", expected="a share from 0 to 1")
    if azure_share:
        stream = Stream(seed, "chat", "azure", index)
        if stream.uniform() < azure_share:
            return _single(index, stream, fit, output_factor, first_factor)
    changes = Changes(
        steps_factor=steps_factor,
        first_factor=first_factor,
        added_factor=added_factor,
        output_factor=output_factor,
        gap_factor=gap_factor,
        share_prefixes=share_prefixes,
        reuse_output=reuse_output,
    )
    return make_session("chat", index, seed, fit, changes)


def _single(index: int, stream: Stream, name: str, output_factor: float, first_factor: float) -> Task:
    """One request: prompt and output with the correlation of their ranks."""
    fit = load_fit(name, "sessions").get("single")
    if fit is None:
        raise ConfigError("azure_share without lengths of single requests", where=name, expected="azure_share=0")
    first, second, correlation = stream.normal(), stream.normal(), fit["correlation"]
    prompt = Table(fit["prompt_tokens"]).at(phi(first)) * first_factor
    score = correlation * first + (1 - correlation * correlation) ** 0.5 * second
    output = Table(fit["output_tokens"]).at(phi(score)) * output_factor
    return Task(f"chat/{index}", (Call("0", max(1, round(prompt)), max(1, round(output))),), agent="chat")
