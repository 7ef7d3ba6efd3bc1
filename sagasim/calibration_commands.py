"""The commands `calibrate fit|check|show` and `validate`: their options, and what they have to say as text.

Nothing is printed here; files that a command writes are named in its text.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagasim.errors import CalibrationError, ConfigError, ResultsError, nearest
from sagasim.hardware import DTYPES, data_dir, gpu_ids, model_ids

if TYPE_CHECKING:
    from sagasim.recorded import RecordedRun

__all__ = ["add_options", "check_command", "fit_command", "show_command", "validate_command"]

COMMANDS = {
    "calibrate fit": "fit a calibration to tables of measurements",
    "calibrate check": "errors of a calibration, term by term and for whole steps",
    "calibrate show": "what a calibration says, and where it has it from",
}


def add_options(name: str, parser: argparse.ArgumentParser) -> None:
    """The options of one of these commands."""
    if name == "calibrate fit":
        parser.add_argument("folder", metavar="DIR", help="tables in the layout of the source")
        sources = "aiconfigurator, llmservingsim, vidur or measured (our own kernels' CSV)"
        parser.add_argument("--source", metavar="NAME", required=True, help=sources)
        parser.add_argument("--gpu", metavar="NAME|TOML", required=True, help="see `sagasim gpus`, or a description")
        parser.add_argument(
            "--model", metavar="NAME|TOML", required=True, help="see `sagasim models`, or a description"
        )
        parser.add_argument("--tp", metavar="N", default="1", help="GPUs that share the model (default 1)")
        parser.add_argument("--dtype", metavar="NAME", default="bf16", help=f"{', '.join(DTYPES)} (default bf16)")
        parser.add_argument("-o", "--out", metavar="FILE", required=True, help="calibration file to write")
        return
    if name in ("calibrate check", "calibrate show"):
        parser.add_argument("file", metavar="FILE|NAME", help="a calibration file, or the name of an embedded one")
    if name == "calibrate check":
        parser.add_argument("--against", metavar="DIR", help="other tables of the same source's layout")
    if name == "validate":
        parser.add_argument("run", metavar="RUN_DIR", nargs="?", help="folder of a recorded vLLM run")
        parser.add_argument(
            "--calibration", metavar="FILE|NAME", action="append", default=[], help="default: the embedded one"
        )
        parser.add_argument("--curve", metavar="CSV", help="concurrency curves in place of a run")
        parser.add_argument("--fit", action="store_true", help="with --curve: also predict each curve from the others")
        parser.add_argument("--gpu", metavar="NAME|TOML", default="", help="description in place of the calibration's")
        parser.add_argument(
            "--model", metavar="NAME|TOML", default="", help="description in place of the calibration's"
        )
        parser.add_argument("--json", metavar="FILE", help="write all numbers")
    if name in ("calibrate check", "validate"):
        parser.add_argument("--figure", metavar="PNG", help="where to draw (default: in this folder)")
        parser.add_argument("--no-figures", action="store_true", help="draw no figure")


def fit_command(args: argparse.Namespace) -> str:
    from sagasim.calibrate import fit, write_calibration
    from sagasim.calibrate.check import Report
    from sagasim.calibrate.text import check_text
    from sagasim.cost import checked_calibration
    from sagasim.report import aligned

    if not args.tp.isdigit() or int(args.tp) < 1:
        raise ConfigError(f"{args.tp!r} does not fit", where="--tp", expected="a whole number >= 1")
    calibration = fit(args.source, Path(args.folder), args.gpu, args.model, int(args.tp), args.dtype)
    checked = checked_calibration(calibration, args.out)
    named = _named("calibration", Path(args.out))
    write_calibration(Path(args.out), checked)
    carried = Report(Path(args.out).stem, args.folder, [], calibration["provenance"]["residuals"])
    return f"{check_text(carried, aligned)}\n{named}"


def _named(what: str, path: Path) -> str:
    """What stands in which file, and whether another file makes way for it."""
    return f"{what} in {path}{', in place of an older file' if path.is_file() else ''}"


def check_command(args: argparse.Namespace) -> str:
    from sagasim.calibrate.check import check
    from sagasim.calibrate.text import check_text
    from sagasim.cost import load_calibration
    from sagasim.report import aligned
    from sagasim.validate_figures import draw_check

    path = _calibration_path(args.file)
    try:
        report = check(load_calibration(path), None if args.against is None else Path(args.against), path.stem)
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    text = check_text(report, aligned)
    if args.no_figures or not report.compared:
        return text
    figure = Path(args.figure or f"check-{path.stem}.png")
    named = _named("figure", figure)
    draw_check(report, figure)
    return f"{text}\n{named}"


def show_command(args: argparse.Namespace) -> str:
    from sagasim.calibrate.text import show_text
    from sagasim.cost import load_calibration
    from sagasim.report import aligned

    path = _calibration_path(args.file)
    return show_text(load_calibration(path), path.stem, aligned)


def validate_command(args: argparse.Namespace, progress: Callable[[int, int], None] | None = None) -> str:
    """progress: called with the number of simulated points and of all points of a curve."""
    if (args.run is None) == (args.curve is None):
        raise ConfigError("a run or curves", where="validate", expected="one of RUN_DIR and --curve CSV")
    paths = [_calibration_path(name) for name in args.calibration]
    try:
        text, document, draw, name = _curves(args, paths, progress) if args.curve is not None else _run(args, paths)
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    lines = [text]
    if args.json is not None:
        lines.append(_named("numbers", Path(args.json)))
        _write_json(Path(args.json), document)
    if not args.no_figures:
        figure = Path(args.figure or name)
        lines.append(_named("figure", figure))
        draw(figure)
    return "\n".join(lines)


_Told = tuple[str, dict[str, Any], Callable[[Path], None], str]


def _run(args: argparse.Namespace, paths: list[Path]) -> _Told:
    from sagasim.cost import load_calibration
    from sagasim.recorded import read_run_folder
    from sagasim.report import aligned
    from sagasim.validate import validate_run, validation_text
    from sagasim.validate_figures import draw_validation

    if len(paths) > 1:
        raise ConfigError(f"{len(paths)} calibrations of one run", where="--calibration", expected="one")
    path = paths[0] if paths else _embedded_for(read_run_folder(Path(args.run)))
    validation = validate_run(Path(args.run), load_calibration(path), model=args.model, gpu=args.gpu)
    document = {**validation.document(), "calibration": str(path)}
    text = f"{validation_text(validation, aligned)}\ncalibration: {path.name}"
    return text, document, lambda figure: draw_validation(validation, figure), f"validation-{path.stem}.png"


def _embedded_for(run: RecordedRun) -> Path:
    """The embedded calibration of a run's hardware and model."""
    from sagasim.calibrate.tables import plain_name

    tp = int(run.option("tensor_parallel_size") or run.instance.get("tp_size") or 1)
    gpu, model = (
        max((name for name in ids() if plain_name(name) in plain_name(told)), key=len, default="")
        for told, ids in ((run.hardware, gpu_ids), (run.model, model_ids))
    )
    path = data_dir() / "calibration" / f"{gpu}-{model}-tp{tp}-bf16.json"
    if not path.is_file():
        named = f"'{run.model or 'an unnamed model'}' on {tp} '{run.hardware or 'an unnamed GPU'}'"
        expected = "--calibration FILE, written by `sagasim calibrate fit`"
        raise CalibrationError(f"no embedded calibration of {named}", where=str(run.folder), expected=expected)
    return path


def _curves(args: argparse.Namespace, paths: list[Path], progress: Callable[[int, int], None] | None) -> _Told:
    from sagasim.curves import curves_text, validate_curves
    from sagasim.report import aligned
    from sagasim.validate_figures import draw_curves

    report = validate_curves(Path(args.curve), calibrations=paths, fit=args.fit, progress=progress)
    text = curves_text(report, aligned)
    return text, report.document(), lambda figure: draw_curves(report, figure), "validation-curves.png"


def _calibration_path(name: str) -> Path:
    """A file, or an embedded calibration by its name."""
    path = Path(name)
    embedded = data_dir() / "calibration" / f"{name.removesuffix('.json')}.json"
    if path.is_file() or not embedded.is_file():
        if not path.is_file() and path.suffix != ".json" and path.parent == Path():
            known = [file.stem for file in (data_dir() / "calibration").glob("*.json")]
            raise CalibrationError(f"no calibration '{name}'", expected=f"a file, or {nearest(name, known)}")
        return path
    return embedded


def _write_json(path: Path, document: dict[str, Any]) -> None:
    from sagasim.calibrate.files import write_whole

    try:
        write_whole(path, (json.dumps(document, indent=1) + "\n").encode())
    except OSError as error:
        raise ResultsError(f"cannot be written ({error.strerror})", where=str(path)) from error


def _missing(error: ModuleNotFoundError) -> CalibrationError:
    expected = "pip install scipy"
    return CalibrationError(f"{error.name} is not installed", where="calibrate", expected=expected)
