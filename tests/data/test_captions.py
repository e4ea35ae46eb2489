"""Texts of samples: every kind, fair draws, groups, and errors that say where."""

from collections import Counter
from pathlib import Path

import pytest
from conftest import write_tar

from mmrep.config.checks import ConfigError
from mmrep.config.data import SourceConfig
from mmrep.data.captions import Caption, Captioner, class_label, group_id, kept_lines, text_lines
from mmrep.data.draws import Purpose, random_bits
from mmrep.data.indexing import build_index
from mmrep.data.shards import ShardIndex
from mmrep.data.tar import DataError


def shard(folder: Path, **members: bytes | str) -> ShardIndex:
    """A shard of one sample `k`."""
    encoded = {e: data.encode() if isinstance(data, str) else data for e, data in members.items()}
    return build_index(write_tar(folder / "s.tar", [("k", encoded)]))


def draws(captioner: Captioner, index: ShardIndex, count: int) -> list[Caption]:
    return [captioner.draw(index, 0, bits) for bits in random_bits(0, Purpose.CAPTION, 0, count, 2)]


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    (tmp_path / "classnames.txt").write_text("red fox\ncrane\ncrane\n", encoding="utf-8")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}.\na photo of {c}, a {c}\n")
    return tmp_path


def cls_captioner(folder: Path, **fields: str) -> Captioner:
    return Captioner(SourceConfig("x", caption="cls", **fields), str(folder / "s.tar"), "data.train[0]")


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n", ""])
def test_txt_lines_are_captions(tmp_path: Path, ending: str) -> None:
    index = shard(tmp_path, txt=f" one café {ending or chr(10)}\ntwo{ending}")
    assert text_lines(index, 0, "txt") == ["one café", "two"]


def test_lines_that_show_nothing_are_left_out(tmp_path: Path) -> None:
    index = shard(tmp_path, txt="a cat\n\n\0\0\n \x1b\n猫\n\0 dog\n")
    assert kept_lines(index, 0, "txt") == (["a cat", "猫", "\0 dog"], 3)


@pytest.mark.parametrize(
    ("value", "expected"),
    [('"a\\nb"', ["a\nb"]), ('["a", " b "]', ["a", "b"]), ('["a", ""]', ["a"])],
)
def test_json_key_is_a_text_or_a_list(tmp_path: Path, value: str, expected: list[str]) -> None:
    index = shard(tmp_path, json=f'{{"caption": {value}, "other": "x"}}')
    assert text_lines(index, 0, "json:caption") == expected


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"cls": "1"}, r"has no member 'txt' \(it has cls\); choose .* caption: data\.train\[0\]\.caption: cls$"),
        ({"json": '{"caption": "a", "n": 3}'}, r"choose another kind .*: data\.train\[0\]\.caption: json:caption$"),
        ({"cls": "1", "json": '{"a": "x"}'}, r"data\.train\[0\]\.caption: cls or data\.train\[0\]\.caption: json:a$"),
        ({"json": "[]"}, r"\(it has json\); no member of it holds a caption; `mmrep data pack` writes shards with"),
    ],
)
def test_a_shard_without_the_kind_suggests_another(tmp_path: Path, members: dict[str, str], expected: str) -> None:
    index = shard(tmp_path, **members)
    with pytest.raises(DataError, match=expected):
        draws(Captioner(SourceConfig("x"), str(index.path), "data.train[0]"), index, 1)


BAD_TEXTS = {
    "missing": ("txt", {"cls": b"1"}, r"has no member 'txt' \(it has cls\)"),
    "not UTF-8": ("txt", {"txt": b"ab\xff"}, r"member 'txt': not UTF-8 text \(byte 2\)"),
    "empty": ("txt", {"txt": b""}, r"member 'txt': no caption in it"),
    "blank": ("txt", {"txt": b" \n\t\n"}, r"member 'txt': no caption in it"),
    "no json": ("json:c", {"txt": b"x"}, r"has no member 'json'"),
    "zeros": ("txt", {"txt": b"\0\0\0\n\0"}, r"member 'txt': no caption in it"),
    "control characters": ("txt", {"txt": b"\x01\x1b\x7f \xc2\xad\xe2\x80\x8b"}, r"member 'txt': no caption in it"),
    "json of zeros": ("json:c", {"json": b'{"c": ["\\u0000", ""]}'}, r"member 'json': no caption in it"),
    "bad json": ("json:c", {"json": b"{"}, r"member 'json': no text under key 'c': JSONDecodeError"),
    "json not UTF-8": ("json:c", {"json": b'{"c": "\xff"}'}, r"member 'json': not UTF-8 text \(byte 7\)"),
    "no key": ("json:c", {"json": b'{"d": "x"}'}, r"member 'json': no text under key 'c': KeyError"),
    "null": ("json:c", {"json": b'{"c": null}'}, r"no text under key 'c'.*got None"),
    "number": ("json:c", {"json": b'{"c": 3}'}, r"no text under key 'c'.*got 3"),
    "object": ("json:c", {"json": b'{"c": {"en": "x"}}'}, r"no text under key 'c'.*expected a text or a list"),
    "list with null": ("json:c", {"json": b'{"c": ["x", null]}'}, r"no text under key 'c'.*expected a text or a list"),
    "empty list": ("json:c", {"json": b'{"c": []}'}, r"member 'json': no caption in it"),
    "a list above": ("json:c", {"json": b'[{"c": "x"}]'}, r"no text under key 'c'"),
    "huge number": ("json:c", {"json": b'{"c": ' + b"1" * 5000 + b"}"}, r"no text under key 'c'"),
    "too deep": ("json:c", {"json": b"[" * 100_000}, r"no text under key 'c'"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_bad_texts_are_named(tmp_path: Path, case: str) -> None:
    kind, members, message = BAD_TEXTS[case]
    with pytest.raises(DataError, match=rf"s\.tar: sample 'k'.*{message}") as error:
        text_lines(shard(tmp_path, **members), 0, kind)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("data", "label"), [(b"0", 0), (b"4\n", 4), (b" 3 ", 3)])
def test_labels(tmp_path: Path, data: bytes, label: int) -> None:
    assert class_label(shard(tmp_path, cls=data), 0, 5) == label


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"5", "label 5, but there are 5 class names"),
        (b"-1", "label -1, but there are 5 class names"),
        (b"cat", "expected an integer, got b'cat'"),
        (b"", "expected an integer, got b''"),
        (b"1.0", "expected an integer"),
        (b"0_1", "expected an integer"),
        ("٣".encode(), "expected an integer"),
    ],
)
def test_bad_labels_are_named(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"s\.tar: sample 'k', member 'cls': {message}"):
        class_label(shard(tmp_path, cls=data), 0, 5)


def test_lines_are_drawn_alike(tmp_path: Path) -> None:
    index = shard(tmp_path, txt="a\nb\nc\nd\n")
    captions = draws(Captioner(SourceConfig("x"), str(index.path), "w"), index, 4000)
    counts = Counter(caption.text for caption in captions)
    # Four standard deviations of a count of 4,000 draws at 1/4.
    assert all(abs(counts[text] - 1000) < 4 * 750**0.5 for text in "abcd")
    assert all("abcd"[caption.choice] == caption.text for caption in captions)
    assert all(caption.group == group_id(caption.text) for caption in captions)


def test_json_captions_are_drawn(tmp_path: Path) -> None:
    index = shard(tmp_path, json='{"c": ["a", "b"]}')
    captions = draws(Captioner(SourceConfig("x", caption="json:c"), str(index.path), "w"), index, 50)
    assert {(caption.text, caption.choice) for caption in captions} == {("a", 0), ("b", 1)}


def test_class_names_within_templates(classes: Path) -> None:
    captions = draws(cls_captioner(classes), shard(classes, cls="0"), 300)
    assert {caption.text for caption in captions} == {"a red fox", "the red fox.", "a photo of red fox, a red fox"}
    counts = Counter(caption.choice for caption in captions)
    assert all(abs(counts[i] - 100) < 4 * (300 * 2 / 9) ** 0.5 for i in range(3))
    assert len({caption.group for caption in captions}) == 1


def test_groups_follow_class_names(classes: Path) -> None:
    captioner = cls_captioner(classes)
    groups = [draws(captioner, shard(classes, cls=str(label)), 1)[0].group for label in range(3)]
    assert groups[0] != groups[1] == groups[2]


def test_group_ids() -> None:
    texts = [f"text {i}" for i in range(10_000)]
    groups = {group_id(text) for text in texts}
    assert len(groups) == len(texts)
    assert all(0 <= group < 2**63 for group in groups)
    assert group_id("text 3") == 8972231255394715525


def test_names_and_templates_elsewhere(classes: Path, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("cat\n")
    (tmp_path / "templates").write_text("{c}!\n")
    captioner = cls_captioner(
        tmp_path / "far/away", classnames=str(tmp_path / "names"), templates=str(tmp_path / "templates")
    )
    assert draws(captioner, shard(tmp_path, cls="0"), 1)[0].text == "cat!"


def test_names_one_folder_up(classes: Path) -> None:
    assert cls_captioner(classes / "train").classnames == ["red fox", "crane", "crane"]


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        (
            None,
            "{c}\n",
            r"data\.train\[0\]\.classnames: .* there is no classnames\.txt beside",
        ),
        ("cat\n", None, r"data\.train\[0\]\.templates: .* no zeroshot_classification_templates\.txt beside"),
        ("cat\n", "a {c}\na photo\n", r"data\.train\[0\]\.templates: 'a photo' has no \{c\} for the class name"),
        ("\n", "{c}\n", r"data\.train\[0\]\.classnames: .*classnames\.txt has no lines"),
        ("cat\n\ndog\n", "{c}\n", r"data\.train\[0\]\.classnames: .*classnames\.txt: line 2 is blank"),
    ],
)
def test_bad_names_and_templates(tmp_path: Path, names: str | None, templates: str | None, message: str) -> None:
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    if names is not None:
        (folder / "classnames.txt").write_text(names)
    if templates is not None:
        (folder / "zeroshot_classification_templates.txt").write_text(templates)
    with pytest.raises(ConfigError, match=message):
        cls_captioner(folder)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigError, match=r"data\.train\[0\]\.classnames: .*names is not UTF-8 text \(byte 3\)"):
        cls_captioner(tmp_path, classnames=str(tmp_path / "names"))


def test_digest_tells_texts_apart(classes: Path) -> None:
    digests = [cls_captioner(classes).digest, Captioner(SourceConfig("x"), str(classes / "s.tar"), "w").digest]
    digests.append(Captioner(SourceConfig("x", caption="json:c"), str(classes / "s.tar"), "w").digest)
    (classes / "classnames.txt").write_text("red fox\ncrane\nheron\n")
    digests.append(cls_captioner(classes).digest)
    (classes / "zeroshot_classification_templates.txt").write_text("an {c}\n")
    digests.append(cls_captioner(classes).digest)
    assert len(set(digests)) == 5
    assert cls_captioner(classes).digest == digests[-1]
