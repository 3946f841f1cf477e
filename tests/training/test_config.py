from pathlib import Path
from typing import get_args

import pytest

from speakerlens.training.config import Activation, InterferenceKind, dump_config, load_config, parse_config
from speakerlens.training.data.mixing import KINDS
from speakerlens.training.errors import UserError
from speakerlens.training.model.network import STAGES
from tests.training.toy import TOY_CONFIG, toy_config, write_config

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
WRITTEN = """\
network:
  blocks: [1, 1, 1, 1]
  width: 2
  embedding: 8
  mel_bins: 16
  block: basic
updates: 6
seed: 3
head: {kind: aam, scale: 16.0, margin: 0.1, margin_from: 0.0, margin_until: 0.5}
data: {crop_seconds: 0.3, batch_size: 6, read_ahead: 2, readers: 1, cache_megabytes: 512.0}
compute: {precision: auto, channels_last: true, compile: false}
interference:
  share: 0.5
  snr_db:
    noise: [-5.0, 20.0]
    music: [-5.0, 20.0]
    babble: [-5.0, 20.0]
    speaker: [-5.0, 20.0]
    reverb: [-5.0, 20.0]
  weights: {}
  talkers: [3, 7]
  combine: 0.0
perturbation:
  speed: 0.0
  factors: [0.95, 1.05]
  codec: 0.0
  codecs: [mu-law, a-law, gsm, vorbis]
objective:
  align: [embedding]
  distance: mse
  weight: 1.0
  clean_gradient: false
optimiser: {kind: adamw, learning_rate: 0.01, final_learning_rate: 1.0e-05, warmup: 0.1, decay: cosine, momentum: 0.9, weight_decay: 0.0001,
  clip_norm: 5.0, average_last: 0.0}
intervals: {log: 1, dev: 3, checkpoint: 2, dev_utterances: 6}
"""  # noqa: E501
"""The toy configuration as version 0.1 wrote it into checkpoints."""


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configuration_is_equal_after_dump_and_parse(path: Path) -> None:
    config = load_config(path)
    assert parse_config(dump_config(config), "copy") == config


def test_configuration_in_an_existing_run_still_loads(tmp_path: Path) -> None:
    assert parse_config(WRITTEN, "config.yaml") == toy_config(tmp_path)
    assert dump_config(toy_config(tmp_path)) == WRITTEN


def test_full_size_configuration_is_resnet34() -> None:
    network = load_config(CONFIGS / "voxceleb1.yaml").network
    assert (network.blocks, network.width, network.embedding, network.mel_bins) == ((3, 4, 6, 3), 32, 256, 80)


def test_kinds_and_activations_match_the_modules() -> None:
    assert get_args(InterferenceKind) == KINDS
    assert set(STAGES) < set(get_args(Activation))


def test_file_overrides_and_defaults_are_combined(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), ["optimiser.weight_decay=1e-3", "interference.snr_db={noise: [0, 5]}"])
    assert config.network.blocks == (1, 1, 1, 1)
    assert config.head.scale == 16.0
    assert config.optimiser.weight_decay == 1e-3  # YAML 1.1 would call this a word
    assert dict(config.interference.snr_db) == {"noise": (0.0, 5.0)}
    assert config.objective.align == ("embedding",)
    assert config.objective.clean_gradient is False


WRONG = [
    ("updates: 6", "updats: 6", 6, 'unknown key "updats" in the file; did you mean updates?'),
    ("  width: 2", "  width: two", 3, "network.width must be a whole number, not 'two'"),
    ("  width: 2", "  width: 2.5", 3, "network.width must be a whole number, not 2.5"),
    ("  width: 2", "  width: 0", 3, "network.width must be at least 1, not 0"),
    ("  width: 2", "  width: [2]", 3, "network.width must be a whole number, not [2]"),
    ("  blocks: [1, 1, 1, 1]", "  blocks: [1, 1, 1]", 2, "network.blocks has too few values"),
    ("  blocks: [1, 1, 1, 1]", "  blocks: [1, 1, 1, x]", 2, "network.blocks[3] must be a whole number, not 'x'"),
    ("  embedding: 8\n", "", 2, 'the key "embedding" is missing in network'),
    ("  embedding: 8", "  embedding: 8\n  embedding: 9", 5, 'the key "embedding" is given twice in network'),
    ("kind: aam", "kind: arc", 8, "head.kind must be one of aam, softmax, not 'arc'"),
    ("margin: 0.1", "margin: .nan", 8, "head.margin must be a finite number, not nan"),
    ("scale: 16", "scale: 1.0e-300", 8, "head.scale must be at least 0.001, not 1e-300"),
    ("margin: 0.1", "margin_from: 0.9", 8, "margin_until (0.5) must not be below margin_from (0.9)"),
    ("head: {kind: aam, scale: 16, margin: 0.1}", "head: aam", 8, "head must be a section of keys, not 'aam'"),
    (
        "updates: 6",
        "updates: 6\nobjective: {clean_gradient: 1}",
        7,
        "objective.clean_gradient must be true or false, not 1",
    ),
    ("updates: 6", "updates: 6\nobjective: {align: [s1, s5]}", 7, "objective.align[1] must be one of s1, s2, s3, s4"),
    ("updates: 6", "updates: 6\nobjective: {align: [s1, s1]}", 7, "align must list at least one activation, and none"),
    (
        "updates: 6",
        "updates: 6\ninterference:\n  snr_db: {nose: [0, 1]}",
        8,
        'unknown key "nose" in interference.snr_db; did you mean noise?',
    ),
    ("updates: 6", "updates: 6\ninterference:\n  snr_db: {noise: [1, 0]}", 8, "snr_db.noise must be [lowest, highest]"),
    ("updates: 6", "updates: 6\ninterference: {snr_db: {}}", 7, "snr_db must list at least one kind"),
    ("updates: 6", "updates: 6\ninterference: {talkers: [7, 3]}", 7, "talkers must be [fewest, most], not [7, 3]"),
    (
        "updates: 6",
        "updates: 6\ninterference: {talkers: [1, 3]}",
        7,
        "interference.talkers[0] must be at least 2, not 1",
    ),
    (
        "updates: 6",
        "updates: 6\ninterference: {weights: {noise: 0}}",
        7,
        "interference.weights.noise must be above 0, not 0",
    ),
    (
        "updates: 6",
        "updates: 6\ninterference: {snr_db: {noise: [0, 1]}, weights: {music: 2}}",
        7,
        "weights lists music, which snr_db does not",
    ),
    (
        "updates: 6",
        "updates: 6\ninterference: {snr_db: {noise: [0, 1]}, combine: 0.5}",
        7,
        "combine needs two kinds in snr_db",
    ),
    (
        "updates: 6",
        "updates: 6\nperturbation: {factors: [0.8]}",
        7,
        "perturbation.factors[0] must be at least 0.9, not 0.8",
    ),
    (
        "updates: 6",
        "updates: 6\nperturbation: {codecs: []}",
        7,
        "codecs must list at least one value, and none of them",
    ),
    ("updates: 6", "updates: 6\ninterference: {share: 1.5}", 7, "interference.share must be at most 1, not 1.5"),
    ("updates: 6", "updates: {6: 1", 7, "not valid YAML"),
]


@pytest.mark.parametrize(("right", "wrong", "line", "message"), WRONG, ids=[row[1].strip()[:30] for row in WRONG])
def test_invalid_value_is_reported_with_its_line(
    tmp_path: Path, right: str, wrong: str, line: int, message: str
) -> None:
    assert right in TOY_CONFIG
    path = write_config(tmp_path, TOY_CONFIG.replace(right, wrong))
    with pytest.raises(UserError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}, line {line}: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.learning_rat=1", 'unknown key "learning_rat" in optimiser; did you mean learning_rate?'),
        ("network.width=-1", "network.width must be at least 1, not -1"),
        ("network.width.x=1", '"x" cannot be set inside a single value'),
        ("updates", "expected section.key=value"),
        ("updates=", "no value after the equals sign"),
        ("updates=[", "not valid YAML"),
    ],
)
def test_invalid_override_is_reported(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(write_config(tmp_path), [override])
    assert f"--set {override}" in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"- 1\n- 2\n", b"just words\n"])
def test_file_without_keys_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.yaml"):
        load_config(path)


def test_device_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"x\.yaml: larger than 16,777,216 bytes"):
        load_config(tmp_path / "x.yaml")


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: No such file"):
        load_config(tmp_path / "nowhere.yaml")
