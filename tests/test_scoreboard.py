"""The scoreboard: its frame tells red from green, and a slice of every family runs here, each with the mutant that it must catch."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.trust import (
    board,
    f1b_stores,
    f2_generation_kills,
    f3_bad_inputs,
    f6_recovery,
    f8_switches,
    f12_upgrades,
    f13_advisories,
    f14_bans,
    recovery_stores,
)
from benchmarks.trust.figure import Figure, Tally, families

BREACHES = {
    "eval(word)": "eval",
    "from pickle import loads": "bare name",
    "archive.extractall(folder)": "extractall",
    "subprocess.run(line, shell=True)": "shell=True",
    "load(path, weights_only=False)": "weights_only=False",
    "Pipeline.from_pretrained(name, custom_pipeline=given)": "custom_pipeline",
    "try:\n    work()\nexcept Exception:\n    pass": "swallows",
    "try:\n    work()\nexcept Exception as error:\n    logger.warning('%s', error)": "swallows",
    "try:\n    work()\nexcept (ValueError, BaseException):\n    return None": "swallows",
}


def figure(*, passed: bool, **details: object) -> Figure:
    return Figure("F0", "a | name", 3, 3 if passed else 2, details, 1.0, "3 of 3", passed)


def test_every_family_is_a_module_that_runs() -> None:
    assert {"F1", "F1b", "F2", "F3", "F6", "F8", "F11", "F12", "F13", "F14"} <= set(families())
    assert list(board.chosen("f14, F14")) == ["F14"]
    with pytest.raises(ValueError, match="F99 is no family"):
        board.chosen("F99")


def test_a_tally_remembers_what_failed() -> None:
    tally = Tally()
    for number in range(3):
        with tally.case(f"case {number}"):
            assert number != 1, "one is wrong"
    made = tally.figure("F0", "name", "all")
    assert (made.tried, made.survived, made.passed) == (3, 2, False)
    assert made.details["failures"] == ["case 1: AssertionError: one is wrong\nassert 1 != 1"]
    assert not Tally().figure("F0", "name", "all").passed  # nothing tried is nothing shown


def test_a_family_that_breaks_is_red_and_never_a_caught_mutant() -> None:
    broken = board.figure_of("F0", "benchmarks.trust.no_such_module", full=False, mutant=False)
    assert not broken.passed and "ModuleNotFoundError" in broken.details["error"]
    assert not board.report([broken], full=False, mutants=True)["ok"]
    assert board.report([figure(passed=False)], full=False, mutants=True)["ok"]
    assert not board.report([figure(passed=True)], full=False, mutants=True)["ok"]
    assert not board.report([figure(passed=True), figure(passed=False)], full=False, mutants=False)["ok"]


def test_the_file_says_what_was_measured_where(tmp_path: Path) -> None:
    result = board.report([figure(passed=False, seed=7)], full=True, mutants=False)
    board.keep(tmp_path / "board.json", result)
    kept = json.loads((tmp_path / "board.json").read_text())
    assert kept == json.loads(json.dumps(result))
    assert kept["version"] and kept["date"] and kept["machine"]["python"] and kept["figures"][0]["details"]["seed"] == 7
    text = (tmp_path / "board.md").read_text()
    assert "| F0 | a \\| name | 2 / 3 | 3 of 3 | **red** |" in text and '{"seed": 7}' in text


@pytest.mark.parametrize("line", BREACHES)
def test_a_ban_is_seen(line: str) -> None:
    (found,) = f14_bans.breaches("studio.some", f"import os\ndef f():\n    {line.replace(chr(10), chr(10) + '    ')}\n")
    assert BREACHES[line] in found


def test_handlers_that_tell_are_no_breach() -> None:
    for end in ("raise Other from error", "tell(error, job)", "logger.exception('x')\n    y = 1"):
        assert not list(f14_bans.breaches("m", f"try:\n    x()\nexcept Exception as error:\n    {end}\n"))
    assert not list(f14_bans.breaches("m", "try:\n    x()\nexcept ValueError:\n    pass\n"))
    assert not list(f14_bans.breaches("studio.convert_main", "torch.load(x, weights_only=True)"))


def test_the_command_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trust", "--only", "F14", "--mutants"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["mutants"] and not result["figures"][0]["passed"] and result["figures"][0]["survived"] == 0


# ---- a slice of the families


def test_f1b_every_write_path_survives_faults_and_power_cuts() -> None:
    figure = f1b_stores.run(False, only=["trash", "remove", "token"])
    assert figure.passed and figure.tried > 150, figure
    naive = f1b_stores.run(False, mutant=True, only=["picture", "token"])
    assert not naive.passed and 0 < naive.survived < naive.tried


def test_f12_past_versions_are_opened() -> None:
    figure = f12_upgrades.run(False)
    assert figure.passed and figure.tried >= 13, figure
    careless = f12_upgrades.run(False, mutant=True)
    assert not careless.passed and "the queue is lost" in str(careless.details)


def test_f3_bad_inputs_are_sentences() -> None:
    figure = f3_bad_inputs.run(False, only=["archives", "configs"])
    assert figure.passed and figure.tried >= 70, figure
    trusting = f3_bad_inputs.run(False, mutant=True)
    assert not trusting.passed and trusting.survived < trusting.tried


def test_f2_killed_while_drawing() -> None:
    figure = f2_generation_kills.run(False, trials=3)
    assert figure.passed and figure.tried == 3, figure
    hasty = f2_generation_kills.run(False, mutant=True, trials=1)
    assert not hasty.passed and hasty.survived == 0


def test_f6_what_fails_leaves_nothing_behind() -> None:
    here = ["R7", "R8", "R10", "R11", "R22", *recovery_stores.QUICK]
    figure = f6_recovery.run(False, only=here)
    assert figure.passed and figure.tried == len(here), figure
    assert not f6_recovery.run(False, mutant=True).passed


def test_f6_knows_every_class_of_failure() -> None:
    known = {one.strip() for name in f6_recovery.CLASSES for one in name.split(",")}
    assert known == {f"R{number}" for number in range(1, 31)}


def test_f8_a_lora_leaves_the_model_as_it_was() -> None:
    assert f8_switches.run(False, times=3).passed
    assert f8_switches.run(False, mutant=True, times=1).survived == 0


def test_f13_an_advisory_is_red_and_no_network_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not f13_advisories.run(False, mutant=True).passed
    monkeypatch.setattr(f13_advisories, "audit", lambda: "no network")
    figure = f13_advisories.run(False)
    assert not figure.passed and board.report([figure], full=False, mutants=False)["ok"]
    assert "not run" in board.line_of(figure)
