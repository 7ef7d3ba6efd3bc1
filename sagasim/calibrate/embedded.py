"""The calibrations that sagasim carries, and what each is fitted on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sagasim.calibrate import fit, write_calibration
from sagasim.hardware import data_dir

__all__ = ["EMBEDDED", "Embedded", "regenerate"]

SPLITS = (1, 2, 4, 8)


class Embedded(NamedTuple):
    """One file of calibration/ and the folder in calibration/sources/ that it is fitted on."""

    source: str
    folder: str
    gpu: str
    model: str
    tp: int
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.gpu}-{self.model}-tp{self.tp}-{self.dtype}.json"


def _listed() -> Iterator[Embedded]:
    for gpu in ("h200", "h100"):
        for model in ("llama-3.1-8b", "llama-3.1-70b", "qwen3-32b"):
            for tp in SPLITS:
                for dtype in ("bf16", "fp8"):
                    yield Embedded("aiconfigurator", f"{gpu}_sxm", gpu, model, tp, dtype)
    for tp in SPLITS:
        yield Embedded("aiconfigurator", "h200_sxm", "h200", "llama-3.1-70b", tp, "fp8-kvfp8")
    yield Embedded("vidur", "vidur", "a100", "llama-3-70b", 4, "bf16")  # scaled from h100, so after it
    for gpu in ("RTX4090", "RTXPRO6000"):
        folder = f"llmservingsim/{gpu}/Llama-3.1-8B"
        yield Embedded("llmservingsim", folder, gpu.lower(), "llama-3.1-8b", 1, "bf16")


EMBEDDED = tuple(_listed())


def regenerate(out: Path) -> Iterator[Path]:
    """Fit and write every embedded calibration; yields each path once it is written."""
    out.mkdir(parents=True, exist_ok=True)
    for one in EMBEDDED:
        folder = data_dir() / "calibration" / "sources" / one.folder
        path = out / one.name
        write_calibration(path, fit(one.source, folder, one.gpu, one.model, one.tp, one.dtype))
        yield path
