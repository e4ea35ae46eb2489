"""Names that others chose reach neither a terminal's escapes nor a page's markup."""

import pytest

from mmrep.cli.terminal import say
from mmrep.markup import align, markdown_cell, markdown_code, printable


def test_escapes_of_terminals_are_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    say("class \x1b]0;owned\x07\x1b[31mred\x9b0m \u202egnp.tac\n\tü 漢")
    out = capsys.readouterr().out
    assert out == "class \\x1b]0;owned\\x07\\x1b[31mred\\x9b0m \\u202egnp.tac\n\tü 漢\n"
    assert printable("é\n") == "é\n"


def test_nothing_in_a_cell_is_markup() -> None:
    cell = markdown_cell("<img src=x>|[a](b) `c` &lt; _x_\x1b\n2")
    assert cell == r"\<img src=x\>\|\[a\](b) \`c\` \&lt; \_x\_\\x1b 2"
    assert markdown_code("a`b|c\n\x00") == "`a'b\\|c \\x00`"


def test_signed_and_small_numbers_are_aligned_to_the_right() -> None:
    assert align([["p", "d", "n"], ["<0.001", "−0.20", "1,240"], ["0.5", "+1.0", "–"]]).splitlines()[2:] == [
        "<0.001  −0.20  1,240",
        "   0.5   +1.0      –",
    ]
