"""What a source does not record, drawn from stated distributions.

Every draw comes from a stream named after the task, so that a fill depends on the seed and the task alone. Whatever is
drawn is marked `filled` on the tool; the texts below say from what.
"""

from __future__ import annotations

import math

from sagasim.core import MAX_DURATION_PS
from sagasim.rng import Stream
from sagasim.units import ps_from_s

__all__ = [
    "CAP_OF_P99",
    "GAP_TEXT",
    "LATENCY_MS",
    "LLM_S_PER_OUTPUT_TOKEN",
    "LOG_TEXT",
    "SHELL_FITS",
    "SHELL_NEAREST",
    "SHELL_TEXT",
    "TOOL_TEXT",
    "USER_TEXT",
    "gap_ps",
    "latency_ps",
    "shell_ps",
    "user_ps",
]

# P50, P95, P99 in milliseconds per type of tool; SAGA paper, tool latencies of its set-up.
LATENCY_MS: dict[str, tuple[float, float, float]] = {
    "code": (180.0, 2400.0, 28000.0),
    "file": (45.0, 320.0, 1200.0),
    "web": (850.0, 4500.0, 45000.0),
    "database": (120.0, 890.0, 3500.0),
}
CAP_OF_P99 = 10.0  # no latency is longer than this many times the P99
_Z95, _Z99 = 1.6448536269514722, 2.3263478740408408  # quantiles of the standard normal

# Log-normal (mu, sigma) of seconds per class of shell command: Claude Haiku 4.5 agents on SWE-rebench tasks.
SHELL_FITS: dict[str, tuple[float, float]] = {
    "test": (0.928, 1.071),
    "install": (1.053, 0.778),
    "python": (-0.245, 0.822),
    "git": (-1.850, 0.680),
    "explore": (-1.852, 0.912),
}
SHELL_NEAREST = {"write": "explore", "edit": "explore", "fs": "explore", "submit": "git", "wait": "install"}
SHELL_OTHER = "python"  # any class not named above

GAP_FITS = {"tool": (2.513, 1.266), "user": (4.963, 1.740)}  # log-normal, seconds; Claude Code sessions
USER_FIT = (math.log(3.0), 0.5)  # a customer played by an LLM; an assumption
LLM_S_PER_OUTPUT_TOKEN = 0.010  # an assumption, used where only the times of completions are known

SHELL_TEXT = (
    "log-normal seconds per class of shell command (mu, sigma: test .928, 1.071; install 1.053, .778; python -.245, "
    ".822; git -1.850, .680; explore -1.852, .912; write, edit and fs as explore, submit as git, wait as install, any "
    "other as python), never more than the recorded time of the whole step"
)
GAP_TEXT = "log-normal seconds (mu, sigma: after a tool 2.513, 1.266; after a user 4.963, 1.740), at most one day"
TOOL_TEXT = (
    "log-latency linear in the normal quantile through P50 120 ms, P95 890 ms, P99 3500 ms (a database call), at most "
    "10 x P99"
)
USER_TEXT = "log-normal with median 3 s and sigma .5: an assumption for a customer played by an LLM"
LOG_TEXT = "time between two completions less 10 ms per output token of the later one, at least 0: an assumption"


def latency_ps(stream: Stream, quantiles_ms: tuple[float, float, float], cap_of_p99: float = CAP_OF_P99) -> int:
    """A latency in ps whose P50, P95 and P99 are the given ones.

    The logarithm of the latency is a piecewise linear function of a standard normal: one line through P50 and P95, used
    below P50 too, and one through P95 and P99, used above P99 too; cut at cap_of_p99 * P99.
    """
    p50, p95, p99 = quantiles_ms
    z = stream.normal()
    if z <= _Z95:
        log_ms = math.log(p50) + z / _Z95 * math.log(p95 / p50)
    else:
        log_ms = math.log(p95) + (z - _Z95) / (_Z99 - _Z95) * math.log(p99 / p95)
    return ps_from_s(min(math.exp(log_ms), cap_of_p99 * p99) / 1000)


def _lognormal_ps(stream: Stream, fit: tuple[float, float]) -> int:
    return min(ps_from_s(stream.lognormal(*fit)), MAX_DURATION_PS // 10**6 * 10**6)


def shell_ps(stream: Stream, shell_class: str, limit_ps: int | None = None) -> int:
    """Duration of a shell command of a class in ps, at most limit_ps where the length of the whole step is known."""
    fitted = shell_class if shell_class in SHELL_FITS else SHELL_NEAREST.get(shell_class, SHELL_OTHER)
    drawn = _lognormal_ps(stream, SHELL_FITS[fitted])
    return drawn if limit_ps is None else min(drawn, limit_ps)


def gap_ps(stream: Stream, trigger: str) -> int:
    """Time between two requests of a coding session in ps; trigger: user, or anything else for a tool."""
    return _lognormal_ps(stream, GAP_FITS["user" if trigger == "user" else "tool"])


def user_ps(stream: Stream) -> int:
    """Time until a simulated customer answers in ps."""
    return _lognormal_ps(stream, USER_FIT)
