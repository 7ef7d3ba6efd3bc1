"""sagasim: a simulator of LLM-agent serving on GPU clusters.

Names are imported when they are first used, so that the command line starts fast.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagasim.config import Config, resolve
    from sagasim.core import Call, Prefix, Task, Tool
    from sagasim.errors import SagasimError
    from sagasim.interface import Comparison, Evictions, Simulation, Sweep, compare, oracle, policy, simulate, sweep
    from sagasim.metrics import summary
    from sagasim.results import read_run
    from sagasim.simulate import Result
    from sagasim.trace import open_trace

from sagasim.compiled import activate

__version__ = "0.1.0"

__all__ = [
    "Call",
    "Comparison",
    "Config",
    "Evictions",
    "Prefix",
    "Result",
    "SagasimError",
    "Simulation",
    "Sweep",
    "Task",
    "Tool",
    "__version__",
    "compare",
    "open_trace",
    "oracle",
    "policy",
    "read_run",
    "resolve",
    "simulate",
    "summary",
    "sweep",
]

_HOME = {
    "Call": "core",
    "Comparison": "interface",
    "Config": "config",
    "Evictions": "interface",
    "Prefix": "core",
    "Result": "simulate",
    "SagasimError": "errors",
    "Simulation": "interface",
    "Sweep": "interface",
    "Task": "core",
    "Tool": "core",
    "compare": "interface",
    "open_trace": "trace",
    "oracle": "interface",
    "policy": "interface",
    "read_run": "results",
    "resolve": "config",
    "simulate": "interface",
    "summary": "metrics",
    "sweep": "interface",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps `sagasim.simulate` a function: importing the module of that name would put the module in its place.

    So it is for every name above that a module or package has, too; modules are found by their imports all the same.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
activate()
