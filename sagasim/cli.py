"""The command line: the only place that prints or exits. Results go to stdout, progress and errors to stderr."""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from sagasim.errors import ConfigError, SagasimError
from sagasim.options import Command, layers, make_parser

if TYPE_CHECKING:
    from sagasim.config import Config
    from sagasim.experiment import Run
    from sagasim.figures import Painter
    from sagasim.trace import Trace
    from sagasim.work import Work

__all__ = ["main", "process"]

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # nothing here multiplies matrices: NumPy need not start threads
_MOST_SEEDS = 10_000
_STARTED_S, _STARTED_CPU_S = time.perf_counter(), time.process_time()  # process_time began with the process


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 a gate that fails, 2 a mistake of the user, 130 interrupted."""
    # Tasks and logs are many and without cycles: the collector's default pace costs a tenth of a run.
    gc.set_threshold(1_000_000, 50, 50)
    try:
        with _terminable():
            args = make_parser(_COMMANDS).parse_args(argv)
            code = args.command(args) or 0
            sys.stdout.flush()
    except SagasimError as error:
        print(f"sagasim: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("sagasim: interrupted; nothing was written", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of stdout has left, as in `sagasim policies | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def process() -> NoReturn:
    """main() as all that a process does: it ends at once, without freeing what it holds piece by piece."""
    try:
        main()
    except SystemExit as ended:
        gc.freeze()  # nothing is worth collecting any more
        if not isinstance(ended.code, int) or threading.active_count() > 1:
            raise
        atexit._run_exitfuncs()
        with suppress(BrokenPipeError):
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code)


@contextmanager
def _terminable() -> Iterator[None]:
    """A polite kill cleans up as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _out(args: argparse.Namespace) -> str:
    if not args.out:
        raise ConfigError("no folder for the results", where="--out", expected="--out DIR")
    return str(args.out)


# --- run and compare ---------------------------------------------------------------------------------------------


class _Progress:
    """One line on stderr: at once on a terminal, after 2 s and then every 10 s elsewhere."""

    def __init__(self, label: str = "") -> None:
        self._label = f"{label}: " if label else ""
        self._terminal = sys.stderr.isatty()
        self._next = time.monotonic() + (0.2 if self._terminal else 2.0)
        self._shown = False

    def __call__(self, calls: int, now_ps: int) -> None:
        self.show(lambda: f"{calls:,} calls finished, {now_ps / 10**12:,.0f} s simulated")

    def show(self, say: Callable[[], str]) -> None:
        """Show what there is to say, if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (0.2 if self._terminal else 10.0)
        text = self._label + say()
        print(
            f"\r{text}\x1b[K" if self._terminal else text,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )
        self._shown = True

    def done(self) -> None:
        if self._shown and self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class _Several:
    """Progress of one thing after another, each under its name."""

    def __init__(self) -> None:
        self._now: _Progress | None = None

    def __call__(self, label: str) -> _Progress:
        self.done()
        self._now = _Progress(label)
        return self._now

    def done(self) -> None:
        if self._now is not None:
            self._now.done()


def _run(args: argparse.Namespace) -> None:
    from sagasim.config import resolve

    config = resolve(*layers(args))
    out = _out(args)
    timeline = _timeline(args, out)
    from sagasim.report import config_label, length_note, run_report, work_label

    with _painter(args) as painter, _staging(out) as folder:
        start_up_s = _STARTED_CPU_S + time.perf_counter() - _STARTED_S
        work, reading_s = _work(config, _Progress("capacity"))
        run = _simulated(work, _Progress())
        if painter is not None:
            from sagasim.metrics import figure_entry

            entry = figure_entry(config_label(run.result.config), run.result, run.summary)
            painter.send(
                folder / "figure.png", work_label(work.config, run.summary["tasks"]), [entry], length_note(run.summary)
            )
        from sagasim.results import write_timed

        write_timed(folder, run, start_up_s=start_up_s, reading_s=reading_s)
        _await_figure(painter)
        if timeline is not None:
            within = timeline.parent.absolute() == Path(out).absolute()
            _draw_timeline(run, folder / timeline.name if within else timeline)
    print(run_report(run.result.config, run.summary))
    print(f"results in {out}" + ("" if timeline is None else f", timeline in {timeline}"))


def _timeline(args: argparse.Namespace, out: str) -> Path | None:
    """Where to write a timeline; checked before anything is simulated."""
    if args.timeline is None:
        return None
    from sagasim.timeline import check_timeline_path

    return check_timeline_path(args.timeline, out)


def _draw_timeline(run: Run, path: Path) -> None:
    from sagasim.timeline import write_timeline

    drawn = write_timeline(run.result, path)
    if drawn.left_out:
        print(f"sagasim: the timeline shows {drawn.left_out}", file=sys.stderr)


def _compare(args: argparse.Namespace) -> None:
    from sagasim.config import parse_value

    seeds = parse_value("seed", args.seeds, "--seeds")  # a whole number too
    if not 1 <= seeds <= _MOST_SEEDS:
        expected = f"a whole number from 1 to {_MOST_SEEDS}"
        raise ConfigError(f"{seeds} is out of range", where="--seeds", expected=expected)
    from sagasim.experiment import parse_variant, variants

    presets = [name.strip() for name in args.presets.split(",")] if args.presets is not None else []
    systems = [parse_variant(text) for text in (*presets, *args.variant)]
    if not systems:
        raise ConfigError("nothing to compare", where="compare", expected="--presets A,B or --variant NAME=PRESET ...")
    if len({system.name for system in systems}) < len(systems):
        raise ConfigError("two systems of one name", where="--presets and --variant", expected="each name once")
    works, configs = variants(layers(args), systems, seeds)
    out = _out(args)
    from sagasim.report import comparison_report

    with _painter(args) as painter, _staging(out) as folder:
        from sagasim.comparison import compare
        from sagasim.results import write_json, write_timed

        shown = _Several()

        def finished(name: str, run: Run, reading_s: float) -> None:
            write_timed(folder / name, run, reading_s=reading_s)

        compared = compare(works, configs, slo=not args.no_slo, progress=shown, finished=finished)
        shown.done()
        content = compared.content
        if painter is not None:
            note = ". ".join(filter(None, [content["window"].capitalize(), content["length"]]))
            painter.send(folder / "figure.png", content["work"], compared.entries, note, content)
        write_json(folder / "comparison.json", content)
        _await_figure(painter)
    print(comparison_report(content))
    print(f"results in {out}" + ("" if painter is None else f", figure in {Path(out) / 'figure.png'}"))


def _sweep(args: argparse.Namespace) -> int:
    from sagasim.config import parse_value
    from sagasim.sweeping.interrupts import undisturbed

    with undisturbed():
        from sagasim.sweeping.report import failure_line, interrupted_line, progress_line, sweep_report
        from sagasim.sweeping.runner import Progress, run_sweep

    out = _out(args)
    jobs = None if args.jobs is None else parse_value("gpus", args.jobs, "--jobs")  # a whole number too
    shown, last = _Progress("sweep"), None

    def progress(now: Progress) -> None:
        nonlocal last
        last = now
        shown.show(lambda: progress_line(now))

    try:
        swept = run_sweep(args.file, out, jobs=jobs, engine=args.engine, address=args.address, progress=progress)
    except (KeyboardInterrupt, SystemExit) as stop:
        shown.done()
        print(f"sagasim: {interrupted_line(last, out)}", file=sys.stderr)
        raise SystemExit(stop.code if isinstance(stop, SystemExit) else 130) from None
    shown.done()
    print(sweep_report(swept))
    if swept.failed:
        print(f"sagasim: {failure_line(swept)}", file=sys.stderr)
    return int(bool(swept.failed))


def _merge(args: argparse.Namespace) -> None:
    from sagasim.sweeping.report import sweep_report
    from sagasim.sweeping.runner import merge_sweeps

    print(sweep_report(merge_sweeps(args.folders, _out(args))))


def _work(config: Config, progress: _Progress) -> tuple[Work, float]:
    """The tasks, and the seconds that it took to get them."""
    from sagasim.work import prepare

    started = time.perf_counter()
    work = prepare(config, progress)
    progress.done()
    return work, time.perf_counter() - started


def _simulated(work: Work, progress: _Progress) -> Run:
    from sagasim.experiment import execute

    run = execute(work, progress)
    progress.done()
    return run


def _staging(out: str) -> AbstractContextManager[Path]:
    from sagasim.results import staging  # imports NumPy: only now, while the painter is starting

    return staging(out)


def _painter(args: argparse.Namespace) -> AbstractContextManager[Painter | None]:
    from sagasim.figures import Painter

    return nullcontext() if args.no_figures else Painter()


def _await_figure(painter: Painter | None) -> None:
    """Wait for the figure; one that fails is no more than a warning."""
    problem = painter.wait() if painter is not None else None
    if problem is not None:
        print(f"sagasim: warning: no figure: {problem}", file=sys.stderr)


# --- everything else ---------------------------------------------------------------------------------------------


def _policies(args: argparse.Namespace) -> None:
    del args
    from sagasim.report import policy_list
    from sagasim.seams import policies

    print(policy_list(policies()))


def _workloads(args: argparse.Namespace) -> None:
    del args
    from sagasim.report import workload_list
    from sagasim.workloads import workloads

    print(workload_list(workloads()))


def _check(args: argparse.Namespace) -> None:
    from sagasim.contract import check_policy

    print(check_policy(args.spec))


def _trace_validate(args: argparse.Namespace) -> None:
    from sagasim.trace import validate

    trace, seed = _opened(args)
    print(validate(trace, seed))


def _trace_stats(args: argparse.Namespace) -> None:
    from sagasim.report import stats_report
    from sagasim.trace_figures import check_figure_path, draw_stats
    from sagasim.trace_stats import TraceStats

    if args.figure is not None:
        check_figure_path(args.figure)
    trace, seed = _opened(args)
    stats = TraceStats()
    for task in trace.tasks(seed):
        stats.add(task)
    summary = stats.summary()
    if args.json:
        import json

        print(json.dumps({"trace": trace.name, "sha256": trace.sha256} | summary | {"filled": trace.filled}, indent=2))
    else:
        print(stats_report(summary, trace.filled))
    if args.figure is not None:
        title = f"{trace.name}: {summary['tasks']:,} tasks, {summary['calls']:,} calls"
        drawn = draw_stats(args.figure, title, stats, [f"Not in the source: {k}: {v}" for k, v in trace.filled.items()])
        print(f"figure in {drawn}", file=sys.stderr if args.json else sys.stdout)


def _trace_convert(args: argparse.Namespace) -> None:
    from sagasim.trace import convert

    trace, seed = _opened(args)
    tokens = _block_tokens(args)
    lost = convert(trace, args.out, args.to, 512 if tokens is None else tokens, seed)
    print(f"{trace.name} written to {args.out}, {args.to}; " + ("lost:" if lost else "nothing is lost"))
    for what, number in lost.items():
        print(f"  {what}: {number}")


def _opened(args: argparse.Namespace) -> tuple[Trace, int]:
    """The trace that a command names, read as its options say, and the seed of what is drawn."""
    from sagasim.config import parse_value
    from sagasim.trace import format_of, open_trace

    options = {key: value for key in ("share", "turns") if (value := vars(args)[key]) is not None}
    tokens = _block_tokens(args)
    written = vars(args).get("to") == "agentic_mooncake"  # then the blocks may be those of the file to write
    if tokens is not None and not (written and format_of(args.trace) != "agentic_mooncake"):
        options["block_tokens"] = tokens
    seed = 0 if args.seed is None else parse_value("seed", args.seed, "--seed")
    if seed < 0:
        raise ConfigError(f"{seed} is out of range", where="--seed", expected="a whole number from 0")
    return open_trace(args.trace, **options), seed


def _block_tokens(args: argparse.Namespace) -> int | None:
    from sagasim.config import parse_value

    return None if args.block_tokens is None else parse_value("block_tokens", args.block_tokens, "--block-tokens")


def _oracle(args: argparse.Namespace) -> None:
    from sagasim.oracle.command import oracle_command

    progress = _Progress()

    def replayed(what: str, done: int, total: int) -> None:
        progress.show(lambda: f"{what}: {done:,}" + (f" of {total:,}" if total else ""))

    text = oracle_command(args, layers(args), replayed, progress)
    progress.done()
    print(text)


def _report(args: argparse.Namespace) -> None:
    import shutil

    from sagasim.html_report.command import report_command

    bars = sys.stdout.isatty() and sys.stdout.encoding.lower().startswith("utf")
    print(report_command(args, shutil.get_terminal_size().columns if bars else 0))


def _gate(args: argparse.Namespace) -> int:
    from sagasim.gate.command import gate_command

    progress = _Progress()
    text, code = gate_command(args, lambda done, total: progress.show(lambda: f"{done} of {total} runs"))
    progress.done()
    print(text)
    return code


def _calibrate_fit(args: argparse.Namespace) -> None:
    from sagasim.calibration_commands import fit_command

    print(fit_command(args))


def _calibrate_check(args: argparse.Namespace) -> None:
    from sagasim.calibration_commands import check_command

    print(check_command(args))


def _calibrate_show(args: argparse.Namespace) -> None:
    from sagasim.calibration_commands import show_command

    print(show_command(args))


def _validate(args: argparse.Namespace) -> None:
    from sagasim.calibration_commands import validate_command

    print(validate_command(args))


def _gpus(args: argparse.Namespace) -> None:
    del args
    from sagasim.hardware import gpu_ids, load_gpu
    from sagasim.report import aligned

    rows = [["GPU", "name", "memory (GiB)", "bandwidth (TB/s)", "BF16 (TFLOP/s)", "GPUs a node"]]
    for gpu in map(load_gpu, gpu_ids()):
        facts = (gpu.memory_bytes / 2**30, gpu.mem_bandwidth_bytes_per_s / 1e12, gpu.bf16_flops / 1e12, gpu.node_size)
        rows.append([gpu.id, gpu.name, *(f"{fact:.4g}" for fact in facts)])
    print(aligned(rows, left=2))


def _models(args: argparse.Namespace) -> None:
    del args
    from sagasim.hardware import load_model, model_ids
    from sagasim.report import aligned

    rows = [["model", "name", "parameters", "weights (GiB)", "KV (bytes a token)", "longest context"]]
    for model in map(load_model, model_ids()):
        weights = f"{model.weight_bytes / 2**30:.1f}"
        facts = (model.kv_bytes_per_token, model.max_model_len)
        rows.append([model.id, model.name, f"{model.params / 1e9:.1f} B", weights, *(f"{fact:,}" for fact in facts)])
    print(aligned(rows, left=2))


def _compile(args: argparse.Namespace) -> None:
    del args
    from sagasim.compiled import compile_engine

    print("compiling the engine, about half a minute", file=sys.stderr)
    print(f"compiled, in {compile_engine()}; used from now on")


_COMMANDS: dict[str, Command] = {
    "run": _run,
    "compare": _compare,
    "sweep": _sweep,
    "merge": _merge,
    "policies": _policies,
    "workloads": _workloads,
    "check": _check,
    "oracle": _oracle,
    "gate": _gate,
    "report": _report,
    "trace validate": _trace_validate,
    "trace stats": _trace_stats,
    "trace convert": _trace_convert,
    "calibrate fit": _calibrate_fit,
    "calibrate check": _calibrate_check,
    "calibrate show": _calibrate_show,
    "validate": _validate,
    "gpus": _gpus,
    "models": _models,
    "compile": _compile,
}
