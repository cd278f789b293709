from dev import check_words

_READS_WELL = """
    \"\"\"Return what is known. There is no file here, it is no longer read; besides, it depends on
    whether the dataset is recommended or amended; what a stage does is told above.\"\"\"
"""


def test_each_wording_is_found_with_its_line() -> None:
    bad = ['"""Which of them."""', "the file is no image", "a data set", "written Anew", "whatever"]
    found = list(check_words.findings("\n".join(["fine", *bad])))
    assert [finding.partition(":")[0] for finding in found] == ["2", "3", "4", "5", "6"]
    assert found[1] == """3: 'is no': "is not a\""""


def test_good_wording_passes() -> None:
    assert not list(check_words.findings(_READS_WELL))


def test_this_checkout_is_read() -> None:
    names = {path.relative_to(check_words.ROOT).as_posix() for path in check_words.files()}
    assert {"setup.py", "d2_plugins/errors.py"} <= names
    assert "dev/check_words.py" not in names


def test_the_better_form_is_that_of_the_wording() -> None:
    text = "\n".join(['"""Args:', "it is no file", "beside it", "told in a line"])
    forms = [finding.rpartition("': ")[2] for finding in check_words.findings(text)]
    assert forms == [
        "begin with a sentence",
        '"is not a"',
        '"next to", "compared with"',
        '"reported in one line"',
    ]
