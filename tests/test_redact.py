import pytest

from robustgen.redact import redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see https://me:hunter2@host/x", "see https://[...]@host/x"),
        ("s3://key@bucket/x and s3://bucket/x", "s3://[...]@bucket/x and s3://bucket/x"),
        ("GET /x?a=1&token=abc123&b=2", "GET /x?a=1&token=[...]&b=2"),
        ("--out s3://b/x?X-Amz-Signature=abcdef", "--out s3://b/x?X-Amz-Signature=[...]"),
        ("aws_secret_access_key=abc/def+", "aws_secret_access_key=[...]"),
        ("NaN at sample 3 = 4; tokens of words", "NaN at sample 3 = 4; tokens of words"),
        ("mail me@host", "mail me@host"),
    ],
)
def test_secrets_leave_the_text_and_words_stay(text: str, expected: str):
    assert redact(text) == expected


def test_values_of_variables_that_are_named_like_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("MY_PASSWORD", "abc")  # too short to be told from a word
    monkeypatch.setenv("EDITOR", "nanonano")
    assert redact("401 for hf_abcdefgh, abc, nanonano") == "401 for [HF_TOKEN], abc, nanonano"
