"""The points of a sweep: each a resolved configuration of the work and one of the system, under a content hash.

The work is prepared as in a comparison: tasks, arrivals and load are those of the default preset whatever is swept, and
the same seed gives every system the same tasks. What describes the cluster belongs to the work here: a load is a
fraction of what that cluster can do.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sagasim import seams
from sagasim.capacity import capacity_config
from sagasim.config import Config, check_config
from sagasim.errors import PolicyError, SagasimError
from sagasim.experiment import OF_THE_WORK, Variant, variants
from sagasim.hardware import load_gpu, load_model
from sagasim.simulate import calibration_of
from sagasim.sources import open_sources
from sagasim.sweeping.spec import Asked
from sagasim.work import FILES, SPECS, with_whole_paths

__all__ = ["Failure", "Fingerprints", "Point", "planned"]

Layer = dict[str, Any]

OF_THE_CLUSTER = {"gpus", "gpu", "model", "tp", "dtype", "calibration"}
_HOME = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a sweep. work, config: resolved, as experiment.variants makes them; base, own: what was said of it.

    hash: of all that determines its result; modules: to import before it runs, for policies that no file holds.
    """

    hash: str
    work: Config
    config: Config
    base: Layer
    own: Layer
    label: str | None
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A point without a result, and why, in one line. hash: empty where no run can be made of it at all."""

    hash: str
    label: str
    seed: int
    reason: str


def planned(asked: Sequence[Asked]) -> tuple[list[Point], list[Failure]]:
    """The points of a sweep, none twice, and the combinations that make no sense.

    A value that makes no sense in any combination is a mistake, and so is a point of a list: raises SagasimError.
    """
    many = len({seed for one in asked for seed in one.seeds}) > 1
    prints = Fingerprints()
    points: dict[str, Point] = {}
    failures: list[Failure] = []
    good: Counter[tuple[str, int]] = Counter()
    bad: dict[tuple[str, int], tuple[Asked, SagasimError]] = {}
    for one in asked:
        try:
            found = _points(one, many, prints)
        except SagasimError as error:
            if not one.choices:
                raise _located(one, error) from None
            label = one.label or " ".join(f"{key}={value}" for key, value in one.own.items())
            failures.extend(Failure("", label, seed, str(error)) for seed in one.seeds)
            for choice in one.choices:
                bad.setdefault(choice, (one, error))
            continue
        good.update(one.choices)
        for point in found:
            points.setdefault(point.hash, point)
    for choice, (first, reason) in bad.items():
        if not good[choice]:
            raise _located(first, reason)
    return list(points.values()), failures


def _located(one: Asked, error: SagasimError) -> SagasimError:
    return type(error)(error.what, where=f"{one.where}: {error.where}".rstrip(": "), expected=error.expected)


def _points(one: Asked, many: bool, prints: Fingerprints) -> list[Point]:
    """The points of one combination, one for each seed."""
    base = {key: value for key, value in one.base.items() if key != "preset"}
    of_the_work = {key: value for key, value in one.own.items() if key in OF_THE_WORK | OF_THE_CLUSTER}
    preset = of_the_work.pop("preset", one.base.get("preset"))
    of_the_system = {key: value for key, value in one.own.items() if key not in OF_THE_WORK}
    layers = [{"resample": many and "workload" not in base | of_the_work}, base | of_the_work]
    works, configs = variants(layers, [Variant("", {"preset": preset, **of_the_system})], 1)
    (work,), ((_, config),) = works.values(), configs
    for seed in (min(one.seeds), max(one.seeds)):
        check_config(replace(config, seed=seed))
    prints.of_source(work)  # a name that is none is told as it was given
    work, config = with_whole_paths(work), with_whole_paths(config)
    said, own = ({k: _as_resolved(k, v, config) for k, v in layer.items()} for layer in (one.base, one.own))
    found = []
    for seed in one.seeds:
        of_seed = replace(work, seed=seed), replace(config, seed=seed)
        modules = prints.modules(config)
        found.append(Point(prints.of_point(*of_seed), *of_seed, said, own | {"seed": seed}, one.label, modules))
    return found


def _as_resolved(key: str, value: Any, config: Config) -> Any:
    return getattr(config, key) if key in (*SPECS, *FILES, "trace", "mix") else value


class Fingerprints:
    """Hashes of all that determines results, each file read once: for one sweep, as files may change after it."""

    def __init__(self) -> None:
        self._sources: dict[tuple[Any, ...], str] = {}
        self._files: dict[Path, str] = {}
        self._machines: dict[tuple[str, str], str] = {}
        self._calibrations: dict[tuple[Any, ...], str] = {}
        self._policies: dict[tuple[str, str], tuple[str, str]] = {}
        self._own = ""

    def of_point(self, work: Config, config: Config) -> str:
        """32 hex digits, the same on every machine: files count by their content, not by their place.

        Raises SagasimError for a trace, policy or calibration that cannot be used.
        """
        parts: dict[str, Any] = {
            "config": self._neutral(config),
            "source": self.of_source(work),
            "calibration": self._calibration(config),
            "hardware": self._hardware(config),
            "policies": [self._policy(kind, getattr(config, kind)) for kind in seams.KINDS],
            "sagasim": self._sagasim(),
        }
        if work.load is not None and work.rate_per_min is None:
            parts["capacity"] = self.of_capacity(work)
        return _digest(parts)

    def of_capacity(self, work: Config) -> str:
        """Hash of what determines the capacity that a load is a fraction of."""
        fixed = capacity_config(work)
        return _digest([self._neutral(fixed), self.of_source(fixed), self._calibration(fixed), self._hardware(fixed)])

    def of_source(self, config: Config) -> str:
        """SHA-256 of the trace, or of the generator and its options."""
        key: tuple[Any, ...] = (config.trace, config.turns, config.block_tokens)
        if config.trace is None:
            key = (config.workload, config.mix, config.tasks, config.seed, config.resample)
        if key not in self._sources:
            self._sources[key] = open_sources(config).sha256
        return self._sources[key]

    def modules(self, config: Config) -> tuple[str, ...]:
        """Modules with policies that neither sagasim nor a file of the configuration brings along."""
        found = (self._policy(kind, getattr(config, kind))[1] for kind in seams.KINDS)
        return tuple(sorted(set(filter(None, found))))

    def _neutral(self, config: Config) -> dict[str, Any]:
        """The configuration with the content of files in place of their names."""
        values = asdict(config)
        for key in ("trace", "mix", *SPECS):  # hashed as source and policies
            del values[key]
        for key in FILES:
            if values[key] is not None and Path(values[key]).is_file():
                values[key] = self._file(Path(values[key]))
        return values

    def _hardware(self, config: Config) -> str:
        key = (config.gpu, config.model)
        if key not in self._machines:
            self._machines[key] = _digest([asdict(load_gpu(config.gpu)), asdict(load_model(config.model))])
        return self._machines[key]

    def _calibration(self, config: Config) -> str:
        key = (config.calibration, config.gpu, config.model, config.tp, config.dtype)
        if key not in self._calibrations:
            self._calibrations[key] = _digest(calibration_of(config))
        return self._calibrations[key]

    def _policy(self, kind: str, spec: str) -> tuple[str, str]:
        """A policy with its options and the hash of the file that defines it, and the module to import for it."""
        known = self._policies.get((kind, spec))
        if known is None:
            path, colon, rest = spec.rpartition(".py:")
            if spec == "none":
                known = (spec, "")
            elif colon:
                seams.find(kind, spec)
                known = (f"{self._file(Path(f'{path}.py'))}:{self._options(rest)}", "")
            else:
                module = seams.find(kind, spec).factory.__module__
                own = module.startswith("sagasim.")
                known = (self._options(spec), "") if own else self._published(kind, spec, module)
            self._policies[kind, spec] = known
        return known

    def _options(self, spec: str) -> str:
        """A specification with the content of files among its options in place of their names."""
        for file in seams.option_files(spec):
            spec = spec.replace(f"={file}", f"={self._file(Path(file))}")
        return spec

    def _published(self, kind: str, spec: str, module: str) -> tuple[str, str]:
        """A policy of another package; one that lives in the running program alone cannot be found by workers."""
        file = inspect.getsourcefile(seams.find(kind, spec).factory)
        if module == "__main__" or file is None or not Path(file).is_file():
            what = "defined by the running program, where no worker finds it"
            raise PolicyError(what, where=f"{kind} {spec}", expected="./file.py:name, or a module that can be imported")
        return f"{self._file(Path(file))}:{spec}", module

    def _file(self, path: Path) -> str:
        if path not in self._files:
            self._files[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._files[path]

    def _sagasim(self) -> str:
        """Hash of sagasim's own sources: another version may give other results."""
        if not self._own:
            sha = hashlib.sha256()
            for path in sorted(_HOME.rglob("*.py")):
                sha.update(f"{path.relative_to(_HOME)}\0".encode() + path.read_bytes())
            self._own = sha.hexdigest()
        return self._own


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()[:32]
