"""Layers of configuration: what wins, what is filled in, and the round trip through TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from sagasim.config import KINDS, PRESETS, Config, merge, parse_assignment, read_config, resolve, to_toml
from sagasim.errors import ConfigError

WEKA = {"trace": "weka"}


def test_defaults_are_those_of_the_newer_preset() -> None:
    config = resolve(WEKA)
    assert config.preset == "vllm-0.15"
    assert {key: getattr(config, key) for key in PRESETS["vllm-0.15"]} == PRESETS["vllm-0.15"]


@pytest.mark.parametrize(("gpu", "tokens", "seqs"), [("h200", 8192, 1024), ("h100", 8192, 1024), ("a100", 2048, 256)])
def test_batch_defaults_depend_on_the_gpu(gpu: str, tokens: int, seqs: int) -> None:
    config = resolve({**WEKA, "gpu": gpu})
    assert (config.max_num_batched_tokens, config.max_num_seqs) == (tokens, seqs)


def test_model_length_is_the_models() -> None:
    assert resolve(WEKA).max_model_len == 131072
    assert resolve({**WEKA, "max_model_len": 4096}).max_model_len == 4096


@pytest.mark.parametrize(
    ("layer", "arrivals"),
    [({}, "auto"), ({"rate_per_min": 3.0}, "poisson"), ({"load": 0.8}, "poisson"), ({"concurrency": 4}, "closed")],
)
def test_arrivals_follow_from_the_numbers(layer: dict[str, object], arrivals: str) -> None:
    assert resolve(WEKA, layer).arrivals == arrivals


def test_a_later_layer_wins() -> None:
    assert resolve(WEKA, {"gpus": 8}, {"gpus": 16}).gpus == 16


def test_a_key_wins_over_the_preset_of_its_layer() -> None:
    config = resolve({**WEKA, "preset": "vllm-0.6", "route": "round-robin"})
    assert (config.route, config.prefix_caching) == ("round-robin", False)


def test_a_later_preset_wins_over_earlier_keys() -> None:
    config = resolve({**WEKA, "preset": "vllm-0.6", "route": "round-robin"}, {"preset": "vllm-0.15"})
    assert (config.route, config.prefix_caching) == ("prefix-affinity", True)


def test_a_new_way_of_arriving_replaces_the_old_one() -> None:
    earlier = {**WEKA, "arrivals": "poisson", "rate_per_min": 5.0, "load": 0.5}
    config = resolve(earlier, {"concurrency": 3})
    assert (config.arrivals, config.rate_per_min, config.load) == ("closed", None, None)
    assert resolve(earlier, {"load": 0.7}).rate_per_min is None
    assert resolve(earlier, {"seed": 3}).rate_per_min == 5.0


def test_a_new_source_replaces_the_old_one() -> None:
    config = resolve(WEKA, {"workload": "swe-bench"})
    assert (config.trace, config.workload, config.tasks) == (None, "swe-bench", 100)


def test_a_rate_with_its_load_is_kept_as_it_is() -> None:
    config = resolve({**WEKA, "rate_per_min": 5.0, "load": 0.5})
    assert (config.rate_per_min, config.load) == (5.0, 0.5)


def test_whole_numbers_stand_for_numbers() -> None:
    rate = resolve({**WEKA, "rate_per_min": 5}).rate_per_min
    assert isinstance(rate, float)
    assert rate == 5


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("gpus=8", ("gpus", 8)),
        ("max-num-seqs = 4", ("max_num_seqs", 4)),
        ("load=.5", ("load", 0.5)),
        ("prefix_caching=False", ("prefix_caching", False)),
        ("route=least-loaded:x=1", ("route", "least-loaded:x=1")),
    ],
)
def test_assignments(item: str, expected: tuple[str, object]) -> None:
    assert parse_assignment(item) == expected


def test_toml_round_trip(tmp_path: Path) -> None:
    config = resolve({**WEKA, "load": 0.1, "rate_per_min": 1 / 3, "preset": "vllm-0.6", "evict": 'a"b\\c'})
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert resolve(read_config(path)) == config
    assert None not in tomllib.loads(path.read_text(encoding="utf-8")).values()


def test_every_key_has_a_type() -> None:
    assert set(KINDS.values()) == {str, int, float, bool}
    assert merge({}) == Config(preset="vllm-0.15")


def test_an_extended_model_is_allowed_only_on_request() -> None:
    with pytest.raises(ConfigError, match="max_model_len: 200000 is beyond"):
        resolve({**WEKA, "max_model_len": 200000})
    assert resolve({**WEKA, "max_model_len": 200000, "over_length": "extend"}).max_model_len == 200000
