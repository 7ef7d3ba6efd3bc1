"""sagasim from Python: functions that return objects to look at, in a notebook or a script.

    simulate(workload="swe-bench", tasks=100, load=0.8, route=mine) -> Simulation      as `sagasim run`
    compare(["vllm-0.6", "vllm-0.15"], workload="swe-bench", seeds=5) -> Comparison    as `sagasim compare`
    oracle(policies=["wa-lru", mine], trace="tau-bench") -> Evictions                  as `sagasim oracle`
    sweep({"gpus": [8, 16, 32]}, workload="swe-bench", rate=20, seeds=5) -> Sweep      as `sagasim sweep`

given         keywords and policies of Python as layers of a configuration
frames        the log and the metrics as pandas frames
plots         panels of the figures, side by side
headlines     what the objects show of themselves
runs, compared, evictions, swept     the four functions and what they return
"""

from sagasim.interface.compared import Comparison, compare
from sagasim.interface.evictions import Evictions, oracle
from sagasim.interface.given import policy
from sagasim.interface.runs import Simulation, simulate
from sagasim.interface.swept import Sweep, sweep

__all__ = ["Comparison", "Evictions", "Simulation", "Sweep", "compare", "oracle", "policy", "simulate", "sweep"]
