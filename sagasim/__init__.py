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
    from sagasim.metrics import summary
    from sagasim.results import read_run
    from sagasim.simulate import Result, simulate
    from sagasim.trace import open_trace

from sagasim.compiled import activate

__version__ = "0.1.0"

__all__ = [
    "Call",
    "Config",
    "Prefix",
    "Result",
    "SagasimError",
    "Task",
    "Tool",
    "__version__",
    "open_trace",
    "read_run",
    "resolve",
    "simulate",
    "summary",
]

_HOME = {
    "Call": "core",
    "Config": "config",
    "Prefix": "core",
    "Result": "simulate",
    "SagasimError": "errors",
    "Task": "core",
    "Tool": "core",
    "open_trace": "trace",
    "read_run": "results",
    "resolve": "config",
    "simulate": "simulate",
    "summary": "metrics",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps `sagasim.simulate` the function: importing the module of that name would put the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "simulate" and isinstance(value, ModuleType):
            value = value.simulate
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
activate()
