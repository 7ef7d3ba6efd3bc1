"""Files of users: whether there are any, and Python with policies and workloads of their own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from sagasim.errors import SagasimError

__all__ = ["is_there", "run_file"]


def is_there(path: Path) -> bool:
    """Whether there is anything of this name; False too for a name that no file can have."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def run_file(path: Path, what: str, error_type: type[SagasimError]) -> None:
    """Run a file, so that what it declares is registered; `what` it should hold, for messages.

    Raises error_type for a file that cannot be read, is no Python or imports what is not installed. What else it raises
    is its author's to read.
    """
    try:
        compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except FileNotFoundError:
        raise error_type("no such file", where=str(path), expected=f"a Python file with {what} in it") from None
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        raise error_type(reason, where=str(path), expected=f"a Python file with {what} in it") from None
    except SyntaxError as error:
        raise error_type(f"{error.msg}", where=f"{path}:{error.lineno or 1}", expected="valid Python") from None
    except (ValueError, RecursionError, MemoryError) as error:  # a NUL; thousands of brackets
        raise error_type(f"{error}", where=str(path), expected="valid Python") from None
    name = f"sagasim_{what.split()[-1]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise error_type("not a Python file", where=str(path), expected="a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise error_type(f"{error}", where=str(path), expected="imports that are installed") from None
