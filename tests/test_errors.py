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
    for name, code in branches.items():
        assert f"{name} " in errors.__doc__
        assert str(code) in errors.__doc__


def test_every_class_stands_in_the_drawn_tree():
    for name, kind in vars(errors).items():
        if inspect.isclass(kind):
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
