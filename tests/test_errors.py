"""The tree of errors is what the docs and the exit codes say."""

import inspect

from xray_opt import errors


def test_exit_codes_are_one_a_branch_and_documented():
    codes = {
        kind.__name__: kind.exit_code
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, errors.XrayError)
    }
    assert codes["XrayError"] == 1
    branches = {name: code for name, code in codes.items() if getattr(errors, name).__base__ is errors.XrayError}
    assert sorted(branches.values()) == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert errors.TooManyFailures.exit_code == 11
    for name, code in (branches | {"TooManyFailures": 11}).items():
        assert f"{name} " in errors.__doc__
        assert str(code) in errors.__doc__


def test_every_class_stands_in_the_drawn_tree():
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and not name.startswith("_"):
            assert name in errors.__doc__


def test_training_errors_carry_their_reason():
    assert (errors.TrainingError.reason, errors.NotFinite.reason, errors.OutOfMemory.reason) == ("error", "nan", "oom")


def test_pruned_is_no_error_of_the_user():
    assert not issubclass(errors.Pruned, errors.XrayError)
    assert errors.Pruned(3).epoch == 3
    assert "epoch 3" in str(errors.Pruned(3))


def test_other_libraries_errors_fit_on_one_line():
    assert errors.one_line(ValueError("a\n  b"), 10) == "a b"
    assert errors.one_line(ValueError("x" * 500)) == "x" * 160
    assert errors.one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_names_and_foreign_texts_cannot_break_the_line():
    line = str(errors.DataError("a\nb\x1b[2J\u202ec \udcff\0 é漢"))
    assert line == "a b\\x1b[2J\\u202ec \\udcff\\x00 é漢"
    assert errors.one_line(ValueError("a\x1b\n b")) == "a\\x1b b"


def test_a_value_is_shown_short_whatever_it_holds():
    laughs = ["ha"] * 9
    for _ in range(30):
        laughs = [laughs] * 9
    assert len(errors.brief(laughs)) <= 160
    assert len(errors.brief([["x" * 99] * 9] * 9)) == 160
    assert errors.brief(1 << 20_000) == "a whole number of 20001 bits"  # Python refuses to spell it
    assert errors.brief("x" * 10_000)[:5] == "'xxxx"
    assert len(errors.brief("x" * 10_000)) == 80
    assert errors.brief("a\nb") == "'a\\nb'"


def test_a_long_name_keeps_its_beginning_and_its_end():
    assert errors.shortened("films/" + "x" * 300 + ".jpeg", 21) == "films/xxxx…xxxxx.jpeg"
    assert errors.shortened("short.jpeg", 10) == "short.jpeg"
