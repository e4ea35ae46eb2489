"""Damage done to small shards, of every sort that disks, copies and tools do, and what can be known of it."""

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmrep.data.tar import split_name

UNCHECKED = frozenset({"jpg", "jpeg", "webp", "txt", "json", "cls"})
"""Members without a checksum of their own: another byte may be another, valid, content."""
WORDS = ("amber", "birch", "cedar", "dahlia", "elm", "fern")
"""Keys that no few flipped bits turn into each other."""

Member = tuple[str, bytes]


class Mutant(NamedTuple):
    """A damaged shard.

    Attributes:
        kind: of damage.
        data: the file.
        silent: keys of which nothing within the shard can show that they are altered, or gone: payload without a
            checksum was hit, or what is left is a well-formed shard of fewer samples.
        named: keys that have to be named, or the shard refused.
        refused: the shard has to be refused.
    """

    kind: str
    data: bytes
    silent: frozenset[str] = frozenset()
    named: frozenset[str] = frozenset()
    refused: bool = False


class Base(NamedTuple):
    """A good shard: its members in order, the file, and where in it they lie."""

    tar_format: int
    members: list[Member]
    data: bytes
    places: list[tarfile.TarInfo]

    @property
    def end(self) -> int:
        """Where the end-of-archive marker begins."""
        last = self.places[-1]
        return last.offset_data + -(-last.size // 512) * 512


def encoded(image: Image.Image, kind: str, **options: bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def members() -> list[Member]:
    """Six samples of an image, a text of two lines, a json and a label."""
    found = []
    for i, word in enumerate(WORDS):
        coarse = np.random.default_rng(i).integers(0, 256, (3, 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((24, 18), Image.Resampling.BICUBIC)
        extension, picture = [
            ("png", encoded(image, "PNG")),
            ("jpg", encoded(image, "JPEG")),
            ("webp", encoded(image, "WEBP", lossless=True)),
            ("png", encoded(image.quantize(32), "PNG")),
            ("jpeg", encoded(image, "JPEG", progressive=True)),
            ("webp", encoded(image, "WEBP")),
        ][i]
        found += [
            (f"{word}.{extension}", picture),
            (f"{word}.txt", f"a tree named {word}, photo {i}\nbark of {word} — café\n".encode()),
            (f"{word}.json", f'{{"caption": "{word} in spring", "url": "u{i}"}}'.encode()),
            (f"{word}.cls", str(i).encode()),
        ]
    return found


def tar(content: list[Member], tar_format: int, kinds: dict[int, bytes] | None = None) -> bytes:
    """A tar file; `kinds` gives members another tar type."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as opened:
        for i, (name, data) in enumerate(content):
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), (kinds or {}).get(i, tarfile.REGTYPE)
            info.linkname = content[0][0] if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            opened.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def base(tar_format: int, folder: str) -> Base:
    content = [(folder + name, data) for name, data in members()]
    data = tar(content, tar_format)
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        return Base(tar_format, content, data, opened.getmembers())


def key_of(name: str) -> str:
    return split_name(name)[0]


def hit(shard: Base, begin: int, end: int) -> frozenset[str]:
    """Keys of the members without a checksum whose bytes lie between two places of the file."""
    return frozenset(
        key_of(place.name)
        for place in shard.places
        if place.offset_data < end and begin < place.offset_data + place.size and split_name(place.name)[1] in UNCHECKED
    )


def replaced(data: bytes, begin: int, new: bytes) -> bytes:
    return data[:begin] + new + data[begin + len(new) :]


def flipped(data: bytes, begin: int, end: int, bits: int, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for place in draw.sample(range(8 * begin, 8 * end), bits):
        changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def truncated(shard: Base, draw: random.Random) -> Iterator[Mutant]:
    cuts = {0, 1, 100, 511, shard.end + 1, shard.end + 511}
    for place in shard.places:
        end = place.offset_data + place.size
        cuts |= {place.offset, place.offset + draw.randrange(512), place.offset_data, place.offset_data + 1}
        cuts |= {end - 1, end, -(-end // 512) * 512}
    yield from (Mutant("truncated", shard.data[:cut], refused=True) for cut in sorted(cuts))
    yield from (Mutant("end marker cut", shard.data[: shard.end + more]) for more in (512, 700, 1024))


def headers_flipped(shard: Base, draw: random.Random) -> Iterator[Mutant]:
    for place in shard.places:
        for block in range(place.offset, place.offset_data, 512):
            for bits in (1, 1, 1, 1, 2, 9):
                data = flipped(shard.data, block, block + 512, bits, draw)
                # All that a tar has is the sum of a header's bytes.
                same = sum(data[block : block + 512]) == sum(shard.data[block : block + 512])
                yield Mutant("header bits", data, frozenset({key_of(place.name)} if same else ()))


def data_flipped(shard: Base, draw: random.Random) -> Iterator[Mutant]:
    for place in shard.places:
        begin, end = place.offset_data, place.offset_data + place.size
        for bits in (1, 1, 1, 5) * (8 if place.name.endswith(".png") else 1):
            yield Mutant("data bits", flipped(shard.data, begin, end, bits, draw), hit(shard, begin, end))


def zeroed(shard: Base, draw: random.Random) -> Iterator[Mutant]:
    first: dict[str, int] = {}
    for place in shard.places:
        first.setdefault(key_of(place.name), place.offset)
    for begin in range(0, shard.end, 512):
        end = min(shard.end, begin + 512 * draw.randrange(2, 5))
        yield Mutant("zeroed block", replaced(shard.data, begin, bytes(512)), hit(shard, begin, begin + 512))
        if end < shard.end:
            yield Mutant("zeroed blocks", replaced(shard.data, begin, bytes(end - begin)), hit(shard, begin, end))
        gone = frozenset(key for key, offset in first.items() if offset >= begin)
        rest = replaced(shard.data, begin, bytes(len(shard.data) - begin))
        yield Mutant("zeroed to the end", rest, gone | hit(shard, begin, shard.end))


def rearranged(shard: Base, draw: random.Random) -> Iterator[Mutant]:
    content, form = shard.members, shard.tar_format
    for i, (name, data) in enumerate(content):
        key, extension = split_name(name)
        own = frozenset({key})
        without = content[:i] + content[i + 1 :]
        yield Mutant("removed member", tar(without, form), named=own)
        yield Mutant("duplicate member", tar([*content[:i], content[i], *content[i:]], form), refused=True)
        yield Mutant("member again at the end", tar([*content, content[i]], form), refused=True)
        yield Mutant("member moved", tar([*without[: (i + 9) % 23], content[i], *without[(i + 9) % 23 :]], form))
        swapped = [*content]
        swapped[i], swapped[i - 1] = content[i - 1], content[i]
        yield Mutant("swapped", tar(swapped, form))
        for new in (f"{key}x.{extension}", f"{key}.{extension}x", f"{key}.{extension}.bak", f"./{name}"):
            yield Mutant("renamed", tar([*content[:i], (new, data), *content[i + 1 :]], form), named=own)
        for new in (key, f"/{name}", f"../{name}", f"a/../../{name}", f".{extension}", f"{key}."):
            yield Mutant("bad name", tar([*content[:i], (new, data), *content[i + 1 :]], form), refused=True)
        for kind in (b"1", b"2", b"3", b"4", b"6", b"Z", b"S"):
            # An empty member: tar readers skip links and devices, whatever else goes with them.
            typed = tar([*content[:i], (name, b""), *content[i + 1 :]], form, {i: kind})
            yield Mutant("tar type", typed, refused=True)
        yield Mutant("a folder", tar([*content[:i], (name, b""), *content[i + 1 :]], form, {i: b"5"}), named=own)
    for i in range(0, len(content), 4):
        rest, own = content[:i] + content[i + 4 :], content[i : i + 4]
        yield Mutant("removed sample", tar(rest, form), frozenset({key_of(own[0][0])}))
        yield Mutant("sample moved", tar([*own, *rest], form))
        yield Mutant("duplicate sample", tar([*content, *own], form), refused=True)
        yield Mutant("shuffled members", tar(draw.sample(content, len(content)), form), refused=True)


def resized(shard: Base, _: random.Random) -> Iterator[Mutant]:
    """Another size in a header with a right checksum."""
    for place in shard.places:
        size = place.size
        at = place.offset_data - 512
        for new in (0, size - 1, size + 1, size + 512, size - 512, max(size - 40, 1), 1 << 33, -1, -512, -4096):
            octal = 0 <= new < 8**11
            field = b"%011o\0" % new if octal else (b"\x80\0\0\0", b"\xff" * 4)[new < 0] + struct.pack(">q", new)
            header = bytearray(replaced(shard.data[at : at + 512], 124, field))
            header[148:156] = b"        "
            header[148:156] = b"%06o\0 " % sum(header)
            yield Mutant("size", replaced(shard.data, at, bytes(header)), hit(shard, at + 512, at + 513 + size))


def extended(shard: Base, _: random.Random) -> Iterator[Mutant]:
    """Records before a member that tarfile trips over, or that turn its name into another."""
    records = [
        b"path=a\0b.txt", b"path=", b"path=/etc/x.txt", b"path=../x.txt", b"path=x.\xff", b"hdrcharset=\xff",
        b"GNU.sparse.size=x", b"GNU.sparse.map=a,b", b"GNU.sparse.major=1\n", b"size=-9", b"path=x." + b"y" * 9000,
    ]  # fmt: skip
    for i, place in enumerate(shard.places):
        for record in records:
            line = b"%d %s\n" % (len(record) + len(str(len(record) + 5)) + 2, record)
            for kind in b"xg":
                info = tarfile.TarInfo("header")
                info.size, info.type = len(line), bytes([kind])
                block = info.tobuf(tarfile.USTAR_FORMAT) + line + bytes(-len(line) % 512)
                data = shard.data[: place.offset] + block + shard.data[place.offset :]
                if i % 8 == records.index(record) % 8:
                    yield Mutant("extended header", data)


def files(shard: Base, draw: random.Random) -> Iterator[Mutant]:
    data = shard.data
    wholes = [b"", bytes(1024), bytes(10240), b"not a tar\n" * 99, shard.members[0][1], gzip.compress(data)]
    wholes += [bz2.compress(data), lzma.compress(data), zlib.compress(data), data[1:], b"\0" + data]
    yield from (Mutant("no tar", whole, refused=True) for whole in wholes)
    for more in (b"x", draw.randbytes(512), data, data[:512], b"\0" * 700 + b"!"):
        yield Mutant("appended", data + more, refused=True)
        yield Mutant("instead of the end", data[: shard.end] + more, refused=True)


BAD: dict[str, list[bytes]] = {
    "txt": [b"", b" \n\t\r\n", b"caf\xe9", b"\xff\xfet\0", b"\xed\xa0\x80", "café".encode("utf-16"), b"ok\n\x80"],
    "cls": [b"", b"x", b"-1", b"10", b"1.0", b"\xb2", b"0x1", b"1 2", b"9" * 5000],
    "json": [
        b"", b"{", b"[]", b"null", b"{}", b'{"caption": ""}', b'{"caption": 3}', b'{"caption": []}', b"[" * 99_999,
        b'{"caption": ["a", 1]}', b'{"caption": "caf\xe9"}', b'{"caption": "\\ud800"}', b'{"Caption": "a"}', b"\xff",
    ],
}  # fmt: skip


def bombs() -> list[bytes]:
    """Small files that call themselves 60,000 × 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    small = Image.new("RGB", (8, 8))
    jpeg, webp = encoded(small, "JPEG"), encoded(small, "WEBP", lossless=True)
    frame = jpeg.index(b"\xff\xc0")
    return [
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk,
        replaced(jpeg, frame + 5, struct.pack(">HH", 60_000, 60_000)),
        replaced(webp, 21, struct.pack("<I", 16_000 | 16_000 << 14)),
        replaced(encoded(small, "GIF"), 6, struct.pack("<HH", 60_000, 60_000)),
    ]


def contents(shard: Base, draw: random.Random) -> Iterator[Mutant]:
    for i, (name, data) in enumerate(shard.members):
        key, extension = split_name(name)
        bad = BAD.get(extension) or [
            b"", b"GIF89a", b"<html>404</html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", *bombs(),
            *(data[:cut] for cut in (1, 20, len(data) // 2, len(data) - 30, *draw.sample(range(1, len(data) - 2), 4))),
        ]  # fmt: skip
        for new in bad:
            changed = tar([*shard.members[:i], (name, new), *shard.members[i + 1 :]], shard.tar_format)
            yield Mutant(f"bad {extension}", changed, named=frozenset({key}))


MUTATORS: list[Callable[[Base, random.Random], Iterator[Mutant]]] = [
    truncated, headers_flipped, data_flipped, zeroed, rearranged, resized, extended, files, contents
]  # fmt: skip
BASES = {
    "ustar": (tarfile.USTAR_FORMAT, ""),
    "gnu": (tarfile.GNU_FORMAT, "trees of the northern forest/" * 4),
    "pax": (tarfile.PAX_FORMAT, "forêt/"),
}
