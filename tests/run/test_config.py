import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowprior.errors import UserError
from flowprior.run.config import (
    apply_overrides,
    build_config,
    changed_options,
    list_options,
    option,
    registry_section,
    to_dict,
)
from flowprior.run.presets import config_from_command_line
from flowprior.run.written import read_yaml
from flowprior.training.config import TrainConfig
from flowprior.training.optim import OptimConfig
from tokenizer.config import AEConfig


@dataclass
class Inner:
    rate: float = option(0.5, "how fast")
    kind: Literal["round", "square"] = option("round", "which shape")
    sizes: tuple[int, ...] = option((1, 2), "how large")
    quiet: bool = option(False, "say less", changes_result=False)

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError("rate cannot be negative: write 0 to switch it off")


@dataclass
class Outer:
    run_dir: str = option("", "where to write")
    count: int = option(3, "how many")
    limit: int | None = option(None, "at most so many")
    pair: tuple[float, float] = option((0.9, 0.99), "two numbers")
    inner: Inner = option(Inner, "nested")


@pytest.fixture
def presets(tmp_path) -> Path:
    folder = tmp_path / "configs" / "stage"
    folder.mkdir(parents=True)
    (folder / "digits.yaml").write_text("count: 5\ninner:\n  rate: 1e-4\n")
    (folder / "large.yaml").write_text("inner:\n")
    return folder


def test_defaults_are_overlaid_by_the_preset_and_both_by_the_command_line(presets):
    config = config_from_command_line(Outer, presets, "", ["inner.kind=square", "pair=[0.5,1]"])
    assert config == Outer(run_dir="runs/digits", count=5, pair=(0.5, 1.0), inner=Inner(rate=1e-4, kind="square"))


def test_the_run_folder_is_named_after_the_preset_unless_it_is_given(presets):
    assert config_from_command_line(Outer, presets, "", ["--preset", "large"]).run_dir == "runs/large"
    assert config_from_command_line(Outer, presets, "", ["run_dir=elsewhere"]).run_dir == "elsewhere"
    assert (
        config_from_command_line(Outer, presets, "", ["--preset", str(presets / "large.yaml")]).run_dir == "runs/large"
    )


def test_a_section_that_the_preset_leaves_empty_can_be_overridden(presets):
    assert config_from_command_line(Outer, presets, "", ["--preset", "large", "inner.rate=2"]).inner.rate == 2.0


@pytest.mark.parametrize(
    "values, nearest",
    [
        ({"cout": 1}, "'count'"),
        ({"inner": {"rat": 1}}, "'inner.rate'"),
        ({"inner": {"Kinds": 1}}, "'inner.kind'"),
        ({7: 1}, "'"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(values, nearest):
    with pytest.raises(UserError, match="has no option") as refusal:
        build_config(Outer, values)
    assert f"nearest is {nearest}" in str(refusal.value)


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"count": 4.0}, ("count", 4)),
        ({"count": "12"}, ("count", 12)),
        ({"count": 1e3}, ("count", 1000)),
        ({"count": 2**62 + 1}, ("count", 2**62 + 1)),
        ({"limit": 7}, ("limit", 7)),
        ({"limit": None}, ("limit", None)),
        ({"pair": [1, "2e-1"]}, ("pair", (1.0, 0.2))),
        ({"run_dir": 12}, ("run_dir", "12")),
        ({"inner": None}, ("inner", Inner())),
    ],
)
def test_a_value_becomes_the_annotated_type_where_nothing_is_lost(values, expected):
    value = getattr(build_config(Outer, values), expected[0])
    assert value == expected[1] and type(value) is type(expected[1])


def test_scientific_notation_that_yaml_takes_for_a_word_is_a_number():
    assert yaml.safe_load("1e-4") == "1e-4"
    assert build_config(Inner, yaml.safe_load("rate: 1e-4")).rate == 1e-4


@pytest.mark.parametrize(
    "values, words",
    [
        ({"count": 1.5}, "'count' is a whole number"),
        ({"count": True}, "whole number"),
        ({"count": "many"}, "whole number"),
        ({"count": float("inf")}, "whole number"),
        ({"count": None}, "whole number"),
        ({"count": [1]}, "whole number"),
        ({"inner": {"rate": "fast"}}, "'inner.rate' is a number"),
        ({"inner": {"rate": True}}, "is a number"),
        ({"inner": {"kind": "oval"}}, "'inner.kind' is one of round, square, not 'oval'"),
        ({"inner": {"kind": ["round"]}}, "is one of"),
        ({"inner": {"quiet": 1}}, "true or false"),
        ({"inner": {"quiet": "yes"}}, "true or false"),
        ({"inner": {"sizes": 3}}, "is a list"),
        ({"inner": {"sizes": [1, 2.5]}}, "whole number"),
        ({"pair": [1]}, "list of 2 values"),
        ({"pair": "12"}, "is a list"),
        ({"run_dir": {"a": 1}}, "a word"),
        ({"inner": 3}, "'inner' must be a mapping"),
        ([1], "must be a mapping"),
        ({"inner": {"rate": -1}}, "section 'inner': rate cannot be negative: write 0"),
    ],
)
def test_a_value_of_another_type_is_refused_in_one_line_that_names_the_option(values, words):
    with pytest.raises(UserError) as refusal:
        build_config(Outer, values)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_preset_that_is_not_there_is_answered_with_those_that_are(presets):
    with pytest.raises(UserError, match="no preset 'huge'.*choose one of digits, large"):
        config_from_command_line(Outer, presets, "", ["--preset", "huge"])
    with pytest.raises(UserError, match="no preset file .*own.yaml"):
        config_from_command_line(Outer, presets, "", ["--preset", "own.yaml"])


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b"a: [",
        b"- 1\n",
        b"word",
        b"a: 2001-99-99",
        b"!!python/object/apply:os.getcwd []",
        b"[" * 1000,
    ],
)
def test_a_file_that_is_no_config_is_named(content, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        read_yaml(file)
    assert str(file) in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "count",
        "=3",
        "",
        "count.deep=1",
        "run_dir.x=1",
        "--count=3",
        "count=[",
        "count=2001-99-99",
        "inner=3",
        "inner.=1",
        ".count=1",
    ],
)
def test_a_malformed_override_is_a_user_error(text, presets):
    with pytest.raises(UserError):
        config_from_command_line(Outer, presets, "", [text])


names = st.sampled_from(
    [
        "count",
        "run_dir",
        "limit",
        "pair",
        "inner",
        "inner.rate",
        "inner.kind",
        "inner.sizes",
        "inner.quiet",
        "inner.",
        "x",
    ]
)
values = st.text() | st.sampled_from(
    ["1e-4", "2001-99-99", "0x_", "[1, 2]", "{a: 1}", "null", ".nan", "*a", "&a [*a]", "!!set {1}", "1:99", "0b"]
)


@settings(max_examples=200)
@given(st.lists(st.text() | st.builds("{}={}".format, names, values), max_size=3))
@example(["count=0x_"])
@example(["count=" + "[" * 1000])
@example(["inner.sizes=&a [*a]"])
def test_any_override_is_either_read_or_refused_with_a_user_error(texts):
    try:
        config = build_config(Outer, apply_overrides({}, texts))
    except UserError:
        return
    assert isinstance(config, Outer) and type(config.count) is int and type(config.inner.rate) is float


def test_help_lists_every_leaf_with_its_default_and_meaning(presets, capsys):
    with pytest.raises(SystemExit) as end:
        config_from_command_line(Outer, presets, "What this stage does.", ["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "What this stage does." in text
    leaves = {"run_dir", "count", "limit", "pair", "inner.rate", "inner.kind", "inner.sizes", "inner.quiet"}
    assert {name for name, _, _ in list_options(Outer)} == leaves
    for name, default, meaning in list_options(Outer):
        assert any(
            line.split()[0] == name and f"{meaning} [{default}]" in line for line in text.splitlines() if line.strip()
        )


@pytest.mark.parametrize("cls", [TrainConfig, OptimConfig])
def test_every_option_of_the_loop_has_a_meaning(cls):
    assert all(meaning for _, _, meaning in list_options(cls)) and len(list_options(cls)) == len(
        dataclasses.fields(cls)
    )


def test_changed_options_names_what_changes_the_result_and_nothing_else():
    old = to_dict(Outer())
    new = to_dict(Outer(count=4, inner=Inner(kind="square", quiet=True)))
    assert changed_options(Outer, old, new) == ["count: 3 -> 4", "inner.kind: round -> square"]
    assert changed_options(Outer, old, to_dict(Outer(inner=Inner(quiet=True)))) == []


@given(st.integers(), st.floats(0, 1e300), st.lists(st.integers(), max_size=4), st.none() | st.integers())
def test_a_config_written_as_yaml_and_read_again_is_the_same(count, rate, sizes, limit):
    config = Outer(count=count, limit=limit, inner=Inner(rate=rate, sizes=tuple(sizes)))
    again = yaml.safe_load(yaml.safe_dump(to_dict(config)))
    assert build_config(Outer, again) == config and changed_options(Outer, again, to_dict(config)) == []


def test_an_option_that_an_old_run_did_not_know_counts_as_its_default():
    old = to_dict(TrainConfig())
    del old["precision"]
    assert changed_options(TrainConfig, old, to_dict(TrainConfig())) == []
    assert changed_options(TrainConfig, old, to_dict(TrainConfig(precision="float32"))) == [
        "precision: auto -> float32"
    ]


@dataclasses.dataclass
class Later:
    SWITCH: ClassVar[str] = "weight"
    weight: float = option(0.0, "0: off")
    recipe: bool = option(False, "another recipe", before=True)
    shape: float = option(2.0, "what could not be chosen", before="round, which is gone")


def test_an_option_may_say_what_an_old_run_that_did_not_know_it_counts_as():
    new = to_dict(Later(weight=1.0))
    recipe, shape = changed_options(Later, {"weight": 1.0}, new, "part")
    assert recipe == "part.recipe: True -> False, where part.recipe=true goes on with it"
    assert shape == "part.shape: round, which is gone -> 2.0"
    assert changed_options(Later, {"weight": 1.0, "shape": 2.0}, to_dict(Later(1.0, True))) == []
    assert changed_options(Later, new, new) == []


def test_a_word_of_an_earlier_version_is_read_and_is_no_change():
    @dataclass
    class Shape:
        kind: Literal["square", "disc"] = option("square", "which", former_words={"circle": "disc"})

    for values in ({"kind": "circle"}, apply_overrides({}, ["kind=circle"])):
        assert build_config(Shape, values).kind == "disc"
    assert changed_options(Shape, {"kind": "circle"}, {"kind": "disc"}) == []
    assert changed_options(Shape, {"kind": "circle"}, {"kind": "square"}) == ["kind: disc -> square"]
    with pytest.raises(UserError, match="square, disc, not 'ring'"):
        build_config(Shape, {"kind": "ring"})


def test_a_section_that_is_switched_off_before_and_after_does_not_count():
    assert (
        changed_options(Later, {"weight": 0.0}, to_dict(Later())) == changed_options(Later, {}, to_dict(Later())) == []
    )
    assert "weight: 1.0 -> 0.0" in changed_options(Later, {"weight": 1.0}, to_dict(Later()))
    assert len(changed_options(Later, {}, to_dict(Later(weight=1.0)))) == 3


def test_sections_of_a_registry_count_only_where_they_are_chosen():
    section = registry_section("Chooser", "name", "inner", {"inner": TrainConfig, "other": OptimConfig}, "which")
    old, new = to_dict(section()), to_dict(section(other=OptimConfig(lr=7.0)))
    assert changed_options(section, old, new) == []
    assert changed_options(section, old, to_dict(section(inner=TrainConfig(steps=7)))) == ["inner.steps: 1000 -> 7"]
    with pytest.raises(ValueError, match="one of inner, other"):
        section(name="third")


def test_options_of_a_part_that_is_not_there_to_choose_are_answered_with_the_sections_that_are():
    section = registry_section("Chooser", "name", "inner", {"inner": TrainConfig, "other": OptimConfig}, "which")
    with pytest.raises(UserError, match="no section 'model.third': there is model.inner, model.other"):
        build_config(section, {"third": {"steps": 3}}, "model")
    with pytest.raises(UserError, match="the nearest is 'model.name'"):
        build_config(section, {"naem": "inner"}, "model")


@dataclasses.dataclass
class WithSwitch:
    run_dir: str = option("", "")
    try_only: bool = option(False, "a switch")
    steps: int = option(1, "")


def test_a_yes_or_no_option_of_the_top_level_is_a_flag_as_well(tmp_path):
    (tmp_path / "digits.yaml").write_text("steps: 3\n")
    read = [
        config_from_command_line(WithSwitch, tmp_path, "", words)
        for words in ([], ["--try-only"], ["steps=4", "--try-only"])
    ]
    assert [(c.try_only, c.steps) for c in read] == [(False, 3), (True, 3), (True, 4)]


def test_a_preset_on_the_command_line_may_be_based_on_another(tmp_path):
    (tmp_path / "digits.yaml").write_text("steps: 3\n")
    (tmp_path / "other.yaml").write_text("base: digits\ntry_only: true\n")
    config = config_from_command_line(WithSwitch, tmp_path, "", ["--preset", "other"])
    assert (config.steps, config.try_only, config.run_dir) == (3, True, "runs/other")


def test_a_word_for_a_section_that_is_chosen_by_name_is_asked_back():
    with pytest.raises(UserError, match=r"did you mean regulariser.name=kl\?"):
        build_config(AEConfig, {"regulariser": "kl"})
