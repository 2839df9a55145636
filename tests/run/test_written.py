"""Words of a command line and of a preset are read once the type of their option is known."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flowprior.errors import UserError
from flowprior.run.config import apply_overrides, build_config, option, to_dict
from flowprior.run.presets import config_from_command_line
from mar.config import MARStageConfig
from tokenizer.config import AEConfig
from tokenizer.prior.train_flowhead import FlowPriorConfig


@dataclass
class Section:
    name: str = option("", "a word")
    hold: Literal["auto", "no"] = option("auto", "one of two words")
    words: tuple[str, ...] = option((), "words")
    numbers: tuple[float, ...] = option((), "numbers")
    flag: bool = option(False, "yes or no")
    rate: float = option(1.0, "a number")
    limit: int | None = option(None, "a number or none")


@dataclass
class Config:
    run_dir: str = option("", "a folder")
    steps: int = option(1, "a number")
    section: Section = option(Section, "")


def read(*overrides: str) -> Config:
    return build_config(Config, apply_overrides({}, list(overrides)))


WORDS = [
    "/d/set #2", "#2", "a: b", "2026-01-02", "2001-99-99", "2026-01-02 10:00:00", "no", "yes", "on", "off", "true", "null", "~", "1e3",
    "010", "0x10", "1_000", "1:30", "1.50", ".5", ".inf", "[a]", "[a", "{a}", "{a: 1}", "{a: 1", "'quoted'", '"quoted"', "*a", "&a", "!tag",
    "!!python/object/apply:os.getcwd []", "- a", "a, b", " leading", "trailing ", "%a", "@a", "`a`", "|", ">", "?", "a=b", "a\tb", "\u00e9",
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_a_path_or_a_name_is_the_word_itself(word):
    assert read(f"run_dir={word}", f"section.name={word}") == Config(run_dir=word, section=Section(name=word))


@given(st.text())
def test_any_text_is_a_path(text):
    assert read(f"run_dir={text}").run_dir == text


@pytest.mark.parametrize(
    "config, name",
    [
        (AEConfig, "data.path"),
        (MARStageConfig, "data.path"),
        (FlowPriorConfig, "target.file.path"),
        (AEConfig, "prior"),
    ],
)
def test_a_folder_with_a_number_sign_reaches_every_stage_whole(config, name):
    made = build_config(config, apply_overrides({}, ["data.source=files", f"{name}=/d/set #2"]))
    for part in name.split("."):
        made = getattr(made, part)
    assert made == "/d/set #2"


def test_no_is_a_choice_where_it_is_one_and_an_answer_where_one_is_wanted():
    made = read("section.hold=no", "section.flag=no").section
    assert made.hold == "no" and made.flag is False
    assert [read(f"section.flag={word}").section.flag for word in ("yes", "on", "True", "TRUE", "off")] == [
        True
    ] * 4 + [False]


@pytest.mark.parametrize(
    "text, number",
    [
        ("1e3", 1000.0),
        ("1e-4", 1e-4),
        ("010", 10.0),
        ("-.5", -0.5),
        ("1_000", 1000.0),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("3", 3.0),
    ],
)
def test_numbers_are_decimal(text, number):
    assert read(f"section.rate={text}").section.rate == number
    if number == round(number) if math.isfinite(number) else False:
        assert read(f"steps={text}").steps == number and type(read(f"steps={text}").steps) is int


@pytest.mark.parametrize(
    "word",
    ["steps=5 #3", "steps=1:30", "steps=0x10", "steps=yes", "steps=2026-01-02", "section.rate=1 2", "section.rate=", "steps=null",
     "section.flag=yes #", "section.flag=1", "section.hold=maybe", "section.numbers=[1] #2", "section.numbers=[1", "section.words=a",
     "section.words=[a, null]", "section.numbers=[1, x]", "section.words=[{a: 1}]", "section={name: a} #2", "section=a", "run_dir.x=3",
     "section.words=[&a [*a]]", "section.numbers=" + "[" * 1000],
)  # fmt: skip
def test_what_is_no_value_of_the_type_is_refused_and_nothing_of_it_dropped(word):
    with pytest.raises(UserError) as refusal:
        read(word)
    assert word.split("=")[0].split(".")[-1] in str(refusal.value) and "\n" not in str(refusal.value)


def test_lists_and_sections_hold_words_as_they_are_written():
    made = read(
        "section={name: 2026-01-02, hold: no, words: [no, 1e3, 010, 'a #b'], numbers: [1e3, 010], limit: null, rate: 2}"
    )
    assert made.section == Section("2026-01-02", "no", ("no", "1e3", "010", "a #b"), (1000.0, 10.0), False, 2.0, None)


def test_an_option_over_a_section_that_was_written_whole_changes_that_option_alone():
    assert read("section={name: a, rate: 2}", "section.name={b}").section == Section(name="{b}", rate=2.0)
    with pytest.raises(UserError, match="run_dir"):
        read("run_dir={a: 1}", "run_dir.b=2")


@pytest.mark.parametrize("text", ["010", "1_000", "1.50", "1e3", "0x10", "1:30", "12"])
def test_a_number_in_a_preset_is_a_folders_name_as_it_is_written(text, tmp_path):
    (tmp_path / "digits.yaml").write_text(f"run_dir: {text}\nsection: {{name: {text}}}\n")
    made = config_from_command_line(Config, tmp_path, "", [])
    assert made.run_dir == made.section.name == text
    assert yaml.safe_load(yaml.safe_dump(to_dict(made)))["run_dir"] == text


def test_numbers_of_a_preset_are_plain_numbers_in_the_config(tmp_path):
    (tmp_path / "digits.yaml").write_text("steps: 12\nsection: {rate: 2, numbers: [1, 2.5], limit: 3}\n")
    made = config_from_command_line(Config, tmp_path, "", [])
    values = [made.steps, made.section.rate, *made.section.numbers, made.section.limit]
    assert values == [12, 2.0, 1.0, 2.5, 3] and [type(v) for v in values] == [int, float, float, float, int]


def test_a_date_in_a_preset_is_refused_where_a_word_is_wanted(tmp_path):
    (tmp_path / "digits.yaml").write_text("run_dir: 2026-01-02\n")
    with pytest.raises(UserError, match="'run_dir' is a word.*quotes"):
        config_from_command_line(Config, Path(tmp_path), "", [])
