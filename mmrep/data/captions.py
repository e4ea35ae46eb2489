"""The text of a sample: from a text member, a json key, or its class."""

import hashlib
import json
import re
from bisect import bisect_right
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrep.config.checks import ConfigError
from mmrep.config.data import SourceConfig
from mmrep.data.draws import below
from mmrep.data.files import is_blank
from mmrep.data.paths import find_beside, read_lines
from mmrep.data.shards import ShardIndex, read_member
from mmrep.data.tar import DataError

_LABEL = re.compile(rb"\s*[+-]?[0-9]{1,18}\s*")


class Caption(NamedTuple):
    """The text drawn for a sample.

    Attributes:
        text: the caption.
        choice: which of the sample's captions (or templates) it is.
        group: a number that samples share if they match each other's texts too.
    """

    text: str
    choice: int
    group: int


def group_id(text: str) -> int:
    """Return a non-negative 63-bit number that equal texts share."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def text_lines(index: ShardIndex, sample: int, kind: str) -> list[str]:
    """Return all captions of a sample. Lines without a visible character are left out.

    Args:
        index: index of its shard.
        sample: its position in the shard.
        kind: `txt` or `json:KEY`.

    Raises:
        DataError: no such member or key, not UTF-8, no text in it.
    """
    return kept_lines(index, sample, kind)[0]


def kept_lines(index: ShardIndex, sample: int, kind: str) -> tuple[list[str], int]:
    """Return the captions of a sample, and how many lines were left out; see `text_lines`."""
    lines = _lines(index, sample, kind)
    kept = [line.strip() for line in lines if not is_blank(line)]
    if not kept:
        raise DataError(f"{index.sample(sample)}, member {kind.partition(':')[0]!r}: no caption in it")
    return kept, len(lines) - len(kept)


def _lines(index: ShardIndex, sample: int, kind: str) -> list[str]:
    extension, _, field = kind.partition(":")
    data = read_member(index, sample, extension)
    where = f"{index.sample(sample)}, member {extension!r}"
    try:
        text = data.decode("utf-8")
        if extension == "txt":
            return text.splitlines()
        value = json.loads(text)[field]
        lines = [value] if isinstance(value, str) else value
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise TypeError(f"expected a text or a list of texts, got {str(value)[:40]}")
        "".join(lines).encode()  # JSON can spell lone surrogates, which no text has
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text (byte {error.start})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: no text under key {field!r}: {type(error).__name__}: {error}") from error
    return lines


def class_label(index: ShardIndex, sample: int, classes: int) -> int:
    """Return the label of a sample.

    Raises:
        DataError: no `cls` member, not an integer, not below `classes`.
    """
    data = read_member(index, sample, "cls")
    where = f"{index.sample(sample)}, member 'cls'"
    # int() would accept underscores, and digits of other scripts.
    if not _LABEL.fullmatch(data):
        raise DataError(f"{where}: expected an integer, got {data[:20]!r}")
    label = int(data)
    if not 0 <= label < classes:
        raise DataError(f"{where}: label {label}, but there are {classes} class names (labels count from 0)")
    return label


class Captioner:
    """Random captions for the samples of one source.

    Args:
        source: config of the source.
        shard: path or address of one of its shards. Class names and templates are looked for beside it.
        where: the config field, for messages.

    Attributes:
        kinds: kinds of caption.
        kind: the kind with the largest weight, which evaluation on held-out samples uses.
        digest: digest of kinds, weights, class names and templates.

    Raises:
        ConfigError: class names or templates are missing or malformed.
    """

    def __init__(self, source: SourceConfig, shard: str, where: str) -> None:
        shares = source.caption_shares()
        self.kinds = list(shares)
        self.kind = max(self.kinds, key=lambda kind: shares[kind])
        # A word has 2^64 values; each bound is the share of the kinds up to one of them.
        self._bounds = [int(2**64 * bound) for bound in accumulate(shares.values())][:-1]
        self._where = where
        self.classnames: list[str] = []
        self.templates: list[str] = []
        if "cls" in self.kinds:
            self.classnames = self._read(source.classnames, shard, "classnames.txt", f"{where}.classnames")
            self.templates = self._read(
                source.templates, shard, "zeroshot_classification_templates.txt", f"{where}.templates"
            )
            for template in self.templates:
                if "{c}" not in template:
                    raise ConfigError(f"{where}.templates: {template[:80]!r} has no {{c}} for the class name")
            self.groups = [group_id(name) for name in self.classnames]
        self.digest = group_id(repr((self.kinds, self._bounds, self.classnames, self.templates)))

    @staticmethod
    def _read(path: str | None, shard: str, name: str, where: str) -> list[str]:
        place = path or find_beside(shard, name)
        if place is None:
            raise ConfigError(
                f"{where}: caption 'cls' needs it, and there is no {name} beside {shard} or one folder up"
            )
        return read_lines(place, where)

    def groups_of(self, index: ShardIndex, sample: int) -> set[int]:
        """Return all groups that a sample may be drawn with; see `draw` for the errors."""
        groups: set[int] = set()
        for kind in self.kinds:
            if kind == "cls":
                groups.add(self.groups[class_label(index, sample, len(self.classnames))])
            else:
                groups.update(map(group_id, text_lines(index, sample, kind)))
        return groups

    def draw(self, index: ShardIndex, sample: int, bits: NDArray[np.uint64]) -> Caption:
        """Return the caption that two 64-bit words choose: the first among captions, the second among kinds.

        Raises:
            DataError: the sample has no caption of the kind that was drawn.
        """
        kind = self.kinds[bisect_right(self._bounds, int(bits[1]))]
        try:
            if kind == "cls":
                label = class_label(index, sample, len(self.classnames))
                choice = int(below(bits[:1], len(self.templates))[0])
                text = self.templates[choice].replace("{c}", self.classnames[label])
                return Caption(text, choice, self.groups[label])
            lines = text_lines(index, sample, kind)
        except DataError as error:
            if kind.partition(":")[0] in index.members:
                raise
            raise DataError(f"{error}; {self._other_kinds(index, sample)}") from error
        choice = int(below(bits[:1], len(lines))[0])
        return Caption(lines[choice], choice, group_id(lines[choice]))

    def _other_kinds(self, index: ShardIndex, sample: int) -> str:
        """Return what to do about a shard that has no captions of a kind at all."""
        kinds: list[str] = [kind for kind in ("txt", "cls") if kind in index.members]
        try:
            record = json.loads(read_member(index, sample, "json"))
            kinds += [f"json:{key}" for key, value in record.items() if value and isinstance(value, str)]
        except (DataError, ValueError, AttributeError, RecursionError):
            pass  # no json, or none with keys
        if not kinds:
            return "no member of it holds a caption; `mmrep data pack` writes shards with captions"
        return f"choose another kind of caption: {' or '.join(f'{self._where}.caption: {kind}' for kind in kinds[:4])}"
