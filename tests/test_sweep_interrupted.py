"""Sweeps that are killed, interrupted or run out of disk, and go on with nothing lost and nothing done twice."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import pytest

from sagasim.sweeping.interrupts import undisturbed
from sagasim.sweeping.local import LocalEngine
from sagasim.sweeping.runner import run_sweep
from sagasim.sweeping.table import content_digest, read_results

ROOT = Path(__file__).parents[1]
SPEC = """
workload = "tool-calling"
tasks = 6
gpus = 4
rate = 60
seeds = {seeds}

[grid]
preset = ["vllm-0.6", "vllm-0.15"]
"""


def begin(
    folder: Path, seeds: int, prepare: Callable[[], None] | None = None, above: str = ""
) -> subprocess.Popen[str]:
    """A sweep of 2 * seeds points in a process group of its own, as a terminal would start it."""
    file = folder / "sweep.toml"
    file.write_text(above + SPEC.format(seeds=seeds))
    return subprocess.Popen(
        [sys.executable, "-m", "sagasim", "sweep", str(file), "--out", str(folder / "out"), "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=prepare,
    )


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "out" / "points").glob("*.json")}


def at_work(folder: Path, more_than: int, process: subprocess.Popen[str]) -> None:
    """Wait until more points than that are kept, or the sweep has ended."""
    limit = time.monotonic() + 60
    while len(stamps(folder)) <= more_than and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.002)


def workers_of(group: int) -> list[int]:
    """Processes of a group that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def gone(group: int) -> None:
    """See that no process of a group is left, once those that wait for the end of another have seen it."""
    limit = time.monotonic() + 10
    while left := workers_of(group):
        if time.monotonic() > limit:
            os.killpg(group, signal.SIGKILL)
            pytest.fail(f"processes {left} outlived the sweep")
        time.sleep(0.02)


def killed_again_and_again(folder: Path, seeds: int, kills: int) -> None:
    """The table after so many kill -9 is that of an undisturbed run, and no point was written twice."""
    chance = random.Random(1)
    known: dict[str, int] = {}
    for _ in range(kills):
        process = begin(folder, seeds)
        at_work(folder, len(known) + chance.randrange(max(1, 2 * seeds // kills)), process)
        time.sleep(chance.random() * 0.1)
        process.kill()
        process.communicate(timeout=30)
        now = stamps(folder)
        assert {name: now[name] for name in known} == known
        known = now
    assert 0 < len(known) < 2 * seeds
    process = begin(folder, seeds)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"{2 * seeds} of {2 * seeds} points, {2 * seeds - len(known)} of them new" in out
    assert {name: stamp for name, stamp in stamps(folder).items() if name in known} == known
    undisturbed = run_sweep(folder / "sweep.toml", folder / "undisturbed")
    assert content_digest(read_results(folder / "out")) == undisturbed.digest
    assert read_results(folder / "out").equals(undisturbed.table())


def test_a_sweep_that_is_killed_goes_on(tmp_path: Path) -> None:
    killed_again_and_again(tmp_path, seeds=12, kills=2)


@pytest.mark.slow
def test_two_hundred_points_killed_ten_times(tmp_path: Path) -> None:
    killed_again_and_again(tmp_path, seeds=100, kills=10)


def test_workers_do_not_outlive_a_killed_sweep(tmp_path: Path) -> None:
    process = begin(tmp_path, 200)
    at_work(tmp_path, 1, process)
    process.kill()
    gone(process.pid)
    process.communicate(timeout=30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_says_how_to_go_on(number: signal.Signals, tmp_path: Path) -> None:
    process = begin(tmp_path, 200)
    at_work(tmp_path, 2, process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to all of them
    else:
        process.send_signal(number)
    before = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - before < 10
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    (line,) = [line for line in err.splitlines() if " left" not in line and "sweep: " not in line]
    assert line.startswith("sagasim: interrupted; ")
    assert f"of 400 points are kept in {tmp_path / 'out'}; the same command goes on from there" in line
    assert out == ""
    gone(process.pid)
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_a_point_that_takes_long_is_not_waited_for(tmp_path: Path) -> None:
    policy = "import time\nfrom sagasim.seams import policy\n"
    policy += '@policy("order", "slow")\ndef slow(request, now_ps):\n    """Slow."""\n'
    policy += f"    open({str(tmp_path / 'begun')!r}, 'w').close()\n    time.sleep(60)\n    return 0\n"
    (tmp_path / "slow.py").write_text(policy)
    process = begin(tmp_path, 2, above=f'order = "{tmp_path}/slow.py:slow"')
    limit = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < limit
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    before = time.monotonic()
    _, err = process.communicate(timeout=50)
    assert time.monotonic() - before < 20
    assert process.returncode == 130
    assert "0 of 4 points are kept" in err
    gone(process.pid)


def test_what_is_half_begun_is_not_interrupted() -> None:
    done = []

    def interrupted_twice() -> None:
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
    assert done == ["all of it"]
    with pytest.raises(KeyboardInterrupt):  # and as before afterwards
        signal.raise_signal(signal.SIGINT)


def test_what_workers_are_forked_from_is_deaf_to_a_terminal() -> None:
    """Ctrl-C reaches every process of a terminal: it is blocked from the first moment on, and in all that is forked."""
    LocalEngine(1).close()
    status = Path(f"/proc/{forkserver._forkserver._forkserver_pid}/status").read_text()
    (blocked,) = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigBlk:")]
    assert blocked & 1 << (signal.SIGINT - 1)


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.25, 0.4])
def test_an_interruption_while_workers_start_is_one_line(delay: float, tmp_path: Path) -> None:
    """Whenever it comes: in the half second after the folder is there, in which processes are started."""
    process = begin(tmp_path, 200)
    limit = time.monotonic() + 60
    while not (tmp_path / "out" / "sweep.lock").exists():
        assert time.monotonic() < limit
        time.sleep(0.002)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    lines = [line for line in err.splitlines() if not line.startswith("sweep: ")]
    assert len(lines) == 1, err
    assert lines[0].startswith("sagasim: interrupted; ")


def test_a_full_disk_is_one_line_and_the_sweep_goes_on(tmp_path: Path) -> None:
    """No file may grow beyond 3000 bytes: the operating system refuses to write a point, as a full disk does."""
    process = begin(tmp_path, 3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "cannot be written: File too large; expected room" in err
    assert "the same command then goes on from here" in err
    assert not list((tmp_path / "out").rglob("*.partial"))
    process = begin(tmp_path, 3)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "6 of 6 points, 6 of them new" in out


def test_a_script_sweeps_without_guarding_itself(tmp_path: Path) -> None:
    """Workers do not import the running program, so that a script needs no `if __name__ == "__main__"`."""
    spec = {"workload": "tool-calling", "tasks": 2, "gpus": 4, "seeds": 2}
    text = f"from sagasim.sweeping.runner import run_sweep\nprint(run_sweep({spec!r}, 'out').done)\n"
    (tmp_path / "script.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")
