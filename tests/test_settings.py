"""Settings from TOML and YAML: values, and errors that name file, line and key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from speakerlens.settings import (
    Settings,
    SettingsError,
    Tree,
    override_yaml,
    parse_yaml,
    read_toml,
    read_yaml,
    text_value,
    validate,
)


class Network(Settings):
    blocks: tuple[int, int] = (1, 1)
    width: Annotated[int, Field(ge=1)]
    path: Path | None = None


class Run(Settings):
    network: Network
    rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    kind: Literal["sgd", "adamw"] = "adamw"
    decay: bool = True
    snr_db: Mapping[Literal["noise", "music"], tuple[float, float]] = {}

    @model_validator(mode="after")
    def check(self) -> "Run":
        if self.rate == 0.25:
            raise ValueError("rate must not be a quarter")
        return self


GOOD_YAML = "network:\n  blocks: [1, 2]\n  width: 4\nrate: 1e-3\nsnr_db: {noise: [0, 5]}\n"
GOOD_TOML = 'rate = 0.001\nsnr_db.noise = [0, 5]\n[network]\nblocks = [1, 2]\nwidth = 4\npath = "a/b"\n'


def test_yaml_becomes_a_model() -> None:
    run = validate(Run, parse_yaml(GOOD_YAML, "run.yaml"))
    assert run == Run(network=Network(blocks=(1, 2), width=4), rate=1e-3, snr_db={"noise": (0.0, 5.0)})


def test_toml_becomes_a_model(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(GOOD_TOML, encoding="utf-8")
    run = validate(Run, read_toml(path))
    network = Network(blocks=(1, 2), width=4, path=Path("a/b"))
    assert run == Run(network=network, rate=1e-3, snr_db={"noise": (0.0, 5.0)})


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("rate: 1e-3", "rat: 1", 4, 'unknown key "rat" in the file; did you mean rate?'),
        ("  width: 4", "  widht: 4", 3, 'unknown key "widht" in network; did you mean width?'),
        (
            "rate: 1e-3",
            "zebra: 1",
            4,
            'unknown key "zebra" in the file; known keys: network, rate, kind, decay',
        ),
        ("  width: 4\n", "", 2, 'the key "width" is missing in network'),
        ("  width: 4", "  width: 4\n  width: 5", 4, 'the key "width" is given twice in network'),
        ("  width: 4", "  width: 4.5", 3, "network.width must be a whole number, not 4.5"),
        ("  width: 4", "  width: true", 3, "network.width must be a whole number, not true"),
        ("  width: 4", "  width: 0", 3, "network.width must be at least 1, not 0"),
        ("  width: 4", "  width: '4'", 3, "network.width must be a whole number, not '4'"),
        ("  width: 4", "  width: {a: 1}", 3, "network.width must be a whole number, not a section"),
        ("[1, 2]", "[1]", 2, "network.blocks has too few values"),
        ("[1, 2]", "[1, 2, 3]", 2, "network.blocks has too many values"),
        ("[1, 2]", "3", 2, "network.blocks must be a list, not 3"),
        ("[1, 2]", "\n  - 1\n  - x", 4, "network.blocks[1] must be a whole number, not 'x'"),
        ("rate: 1e-3", "rate: 2", 4, "rate must be at most 1, not 2"),
        ("rate: 1e-3", "rate: 0", 4, "rate must be above 0, not 0"),
        ("rate: 1e-3", "rate: .nan", 4, "rate must be a finite number, not nan"),
        ("rate: 1e-3", "rate: 0.25", None, "rate must not be a quarter"),
        ("rate: 1e-3", "kind: sdg", 4, "kind must be one of sgd, adamw, not 'sdg'"),
        ("rate: 1e-3", "decay: 1", 4, "decay must be true or false, not 1"),
        ("{noise:", "{nose:", 5, 'unknown key "nose" in snr_db; did you mean noise?'),
        ("{noise: [0, 5]}", "[]", 5, "snr_db must be a section of keys, not []"),
        ("rate: 1e-3", "rate: {1", 5, "not valid YAML"),
        ("rate: 1e-3", "? [a]\n: 1", 4, "a key in the file is not a plain word"),
    ],
)
def test_wrong_yaml_is_named_with_its_line(old: str, new: str, line: int | None, message: str) -> None:
    assert old in GOOD_YAML
    with pytest.raises(SettingsError) as error:
        validate(Run, parse_yaml(GOOD_YAML.replace(old, new), "run.yaml"))
    place = "run.yaml" if line is None else f"run.yaml, line {line}"
    assert str(error.value).startswith(f"{place}: {message}")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("width = 4", "widht = 4", 5, 'unknown key "widht" in network; did you mean width?'),
        ("[network]", "[netwrok]", 3, 'unknown key "netwrok" in the file; did you mean network?'),
        ("noise = [0, 5]", "noise = [0, true]", 2, "snr_db.noise[1] must be a number, not true"),
        ("rate = 0.001", "rate = 2020-01-01", 1, "rate must be a number, not '2020-01-01'"),
        ("rate = 0.001", "rate: 1", None, "not valid TOML: Expected '='"),
    ],
)
def test_wrong_toml_is_named_with_its_line(tmp_path: Path, old: str, new: str, line: int | None, message: str) -> None:
    assert old in GOOD_TOML
    path = tmp_path / "run.toml"
    path.write_text(GOOD_TOML.replace(old, new), encoding="utf-8")
    with pytest.raises(SettingsError) as error:
        validate(Run, read_toml(path))
    place = f"{path}" if line is None else f"{path}, line {line}"
    assert str(error.value).startswith(f"{place}: {message}")


def test_overrides_are_laid_over_the_file() -> None:
    tree = parse_yaml(GOOD_YAML, "run.yaml")
    for override in ("network.blocks=[3, 4]", "rate=1e-2", "snr_db={music: [1, 2]}"):
        override_yaml(tree, override)
    wanted = Run(network=Network(blocks=(3, 4), width=4), rate=0.01, snr_db={"music": (1.0, 2.0)})
    assert validate(Run, tree) == wanted


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rat=1", 'unknown key "rat" in the file; did you mean rate?'),
        ("network.blocks=[1, x]", "network.blocks[1] must be a whole number, not 'x'"),
        ("network.width.x=1", '"x" cannot be set inside a single value'),
        ("rate", "expected section.key=value"),
        ("rate=", "no value after the equals sign"),
        ("rate=[", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    tree = parse_yaml(GOOD_YAML, "run.yaml")
    with pytest.raises(SettingsError) as error:
        override_yaml(tree, override)
        validate(Run, tree)
    assert str(error.value).startswith(f"--set {override}")
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["", "- 1\n", "words\n"])
def test_yaml_without_keys_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^run\.yaml"):
        parse_yaml(text, "run.yaml")


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml: No such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"x\.toml: not UTF-8 text"):
        read_toml(tmp_path / "x.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("a: " + "{b: " * 60 + "1" + "}" * 60, "nested too deeply"),
        ("a: &a [*a]", "nested too deeply"),
        (
            "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)),
            "too many",
        ),
    ],
    ids=["unclosed", "closed", "circle", "aliases"],
)
def test_yaml_that_is_too_deep_or_large_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=rf"run\.yaml: not valid YAML: {message}"):
        parse_yaml(text, "run.yaml")


def test_toml_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("a = " + "[" * 100_000, encoding="utf-8")
    with pytest.raises(SettingsError, match=r"x\.toml: not valid TOML: nested too deeply"):
        read_toml(tmp_path / "x.toml")


def test_text_of_flags_becomes_a_value_of_the_type() -> None:
    assert text_value(int, "3") == 3
    assert text_value(bool, "off") is False
    assert text_value(float | None, "1e-3") == 1e-3
    assert text_value(Path | None, "a") == Path("a")
    assert text_value(int, "3.5") == "3.5"


def test_a_label_names_places_in_messages() -> None:
    tree = Tree()
    tree.set(["network"], {"width": 0}, "")
    with pytest.raises(SettingsError, match=r"^--width must be at least 1, not 0$"):
        validate(Run, tree, lambda place: f"--{place[-1]}")
