"""python -m sagasim.calibrate DIR: fit every embedded calibration again and write it there."""

from __future__ import annotations

import sys
from pathlib import Path

from sagasim.calibrate.embedded import regenerate
from sagasim.errors import SagasimError


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m sagasim.calibrate DIR\n")
        return 2
    try:
        for path in regenerate(Path(sys.argv[1])):
            sys.stderr.write(f"{path}\n")
    except OSError as error:
        sys.stderr.write(f"{error.filename}: cannot be written ({error.strerror})\n")
        return 2
    except SagasimError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
