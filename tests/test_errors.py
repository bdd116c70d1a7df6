import pickle

from robustgen.errors import UnsupportedError, UserError, describe_error, missing_package, unknown_name


def test_a_message_says_what_where_expected_got_remedy_in_this_order():
    error = UserError("it broke", where="here", expected=1, got=2, remedy="mend it")
    assert str(error).splitlines() == [
        "it broke",
        "  where:    here",
        "  expected: 1",
        "  got:      2",
        "  remedy:   mend it",
    ]


def test_parts_that_are_not_given_are_left_out():
    assert str(UserError("it broke", got=0)) == "it broke\n  got:      0"


def test_an_unknown_name_comes_with_the_nearest_ones():
    error = unknown_name("protocol", "quik", ["quick", "clean"])
    assert "did you mean quick?" in str(error)
    assert "clean, quick" in str(error)


def test_an_unknown_name_far_from_all_points_to_the_list():
    assert "robustgen list models" in str(unknown_name("model", "zzz", ["softmax-digits"]))


def test_a_missing_package_names_the_exact_remedy():
    assert "pip install 'robustgen[timm]'" in str(missing_package("timm", "timm", "timm:resnet18"))


def test_errors_survive_the_way_home_from_a_worker():
    error = pickle.loads(pickle.dumps(UnsupportedError("no", where="x", remedy="y")))
    assert isinstance(error, UnsupportedError)
    assert str(error) == "no\n  where:    x\n  remedy:   y"


def test_an_exception_in_words_is_one_line_and_survives_one_without_a_message():
    assert describe_error(ValueError("first\nsecond")) == "ValueError: first"
    assert describe_error(EOFError()) == "EOFError"
    assert len(describe_error(ValueError("x" * 500))) == 200
