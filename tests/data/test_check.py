"""`mmrep data check` finds every problem of a bad shard, and tells it from what is merely unusual."""

import io
import json
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from conftest import colour_samples, png, write_tar
from PIL import Image

from mmrep.cli import main
from mmrep.data.check import Check, check_shards
from mmrep.data.indexing import sidecar, write_sidecar

GOOD = png((1, 2, 3))
TEXT = {"txt": b"fine"}


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.new("RGB", (8, 6)), "JPEG", exif=exif)


def bomb() -> bytes:
    """A whole PNG file of 60,000 × 60,000 pixels, by its header."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), (90 * i, 0, 0)) for i in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], loop=0)


GRADIENT = encoded(Image.radial_gradient("L"), "JPEG")
RGB = Image.new("RGB", (8, 8), (200, 10, 10))
UNUSUAL: dict[str, tuple[str, bytes, str]] = {
    "cmyk": ("jpg", encoded(RGB.convert("CMYK"), "JPEG"), "CMYK, converted to RGB without a colour profile"),
    "deep": ("png", encoded(Image.new("I;16", (8, 8), 40_000), "PNG"), "16-bit, scaled to 8"),
    "gif": ("webp", animated("GIF"), "animated (3 frames, first used)"),
    "webp": ("webp", animated("WEBP"), "animated (3 frames, first used)"),
    "exif": ("jpg", rotated(), "EXIF orientation 6, not applied"),
    "alpha": ("png", encoded(Image.new("RGBA", (8, 8), (9, 9, 9, 9)), "PNG"), "transparency, which is dropped"),
    "clear": (
        "png", encoded(RGB.convert("P"), "PNG", transparency=bytes(256)),
        "palette with transparency, which is dropped",
    ),
    "junk": (
        "jpg", GRADIENT[:-2] + bytes(4) + GRADIENT[-2:],
        "libjpeg says: Corrupt JPEG data: 3 extraneous bytes before marker 0xd9",
    ),
}  # fmt: skip
PLAIN: dict[str, tuple[str, bytes]] = {
    "palette": ("png", encoded(RGB.convert("P"), "PNG")),
    "grey": ("png", encoded(RGB.convert("L"), "PNG")),
    "misnamed": ("jpg", GOOD),
    "progressive": ("jpeg", encoded(RGB, "JPEG", progressive=True)),
}
BROKEN: dict[str, tuple[dict[str, bytes], str]] = {
    "empty": ({"png": b"", **TEXT}, "member 'png': empty: 0 bytes"),
    "bomb": ({"png": bomb(), **TEXT}, "member 'png': 60000 × 60000 pixels, more than data.max_pixels 89478485"),
    "cut": ({"png": GOOD[:-40], **TEXT}, "member 'png': can't decode image: truncated within the PNG's chunk 'IDAT'"),
    "half": (
        {"jpg": GRADIENT[: len(GRADIENT) // 2], **TEXT},
        "member 'jpg': can't decode image: truncated or damaged: ",
    ),
    "html": ({"jpg": b"<html>404</html>", **TEXT}, "member 'jpg': not an image (JPEG, PNG, WEBP, GIF, BMP, TIFF)"),
    "blank": ({"png": GOOD, "txt": b" \n\n"}, "member 'txt': no caption in it"),
    "latin": ({"png": GOOD, "txt": b"caf\xe9"}, "member 'txt': not UTF-8 text (byte 3)"),
    "untold": ({"png": GOOD, "json": b"{}"}, " has no member 'txt' (it has json, png)"),
    "unseen": (TEXT, " has no image (jpg, jpeg, png, webp); it has txt"),
}


def sample_lines(path: Path) -> tuple[list[str], list[str]]:
    """Problems and notes of the shard of everything, but for what follows their words above."""
    problems = [f"{path}: sample {key!r}{'' if words[0] == ' ' else ', '}{words}" for key, (_, words) in BROKEN.items()]
    notes = [f"{path}: sample {key!r}, member {kind!r}: {words}" for key, (kind, _, words) in UNUSUAL.items()]
    return problems, notes


def everything(path: Path) -> Path:
    """A shard with one sample of each sort."""
    samples = [(key, {kind: data, **TEXT}) for key, (kind, data, _) in UNUSUAL.items()]
    samples += [(key, {kind: data, **TEXT}) for key, (kind, data) in PLAIN.items()]
    return write_tar(path, [*samples, *((key, members) for key, (members, _) in BROKEN.items())])


def linked(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    return path


def check(*arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit status and report of `mmrep data check`."""
    output = Path(str(arguments[0])).parent / "report.json"
    status = main(["data", "check", *map(str, arguments), "--output", str(output)])
    return status, json.loads(output.read_text(encoding="utf-8"))


@pytest.mark.parametrize("workers", [1, 2])
def test_everything_is_named(workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = everything(tmp_path / "0.tar")
    twice = write_tar(tmp_path / "1.tar", [*colour_samples(2), *colour_samples(1)])
    link = linked(tmp_path / "2.tar")
    torn = write_tar(tmp_path / "3.tar", colour_samples(4))
    torn.write_bytes(torn.read_bytes()[:3000])
    fine = write_tar(tmp_path / "4.tar", colour_samples(4))
    status, report = check(path, twice, link, torn, fine, "--deep", "--workers", workers)
    assert status == 1
    samples = len(UNUSUAL) + len(PLAIN) + len(BROKEN)
    assert (report["schema"], report["samples"], report["problems"]) == (1, samples + 4, len(BROKEN) + 3)
    shards = report["shards"]
    assert [shard["path"] for shard in shards] == [str(each) for each in (path, twice, link, torn, fine)]
    assert [(shard["samples"], shard["bad"]) for shard in shards] == [(samples, len(BROKEN)), *[(0, 0)] * 3, (4, 0)]
    problems, notes = sample_lines(path)
    assert len(shards[0]["problems"]) == len(problems) and shards[0]["notes"] == notes
    for found, expected in zip(shards[0]["problems"], problems, strict=True):
        assert found.startswith(expected)
    assert shards[1]["problems"] == [
        f"{twice}: the members of key '000000' are not together (a duplicate key, or a wrong order)"
    ]
    assert shards[2]["problems"] == [f"{link}: member 'a.png' is a link; store whole files"]
    assert shards[3]["problems"][0].startswith(f"{torn}: ") and "unexpected end of data" in shards[3]["problems"][0]
    assert shards[4]["problems"] == shards[4]["notes"] == []
    shown = capsys.readouterr()
    every = [problem for shard in shards for problem in shard["problems"]]
    assert shown.out.splitlines()[: len(every)] == every
    assert f"5 shards, 3 of them unreadable, {samples + 4} samples, 12 problems, 9 bad samples" in shown.out
    assert "12 problems found" in shown.err


def test_good_shards(colour_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = check_shards(sorted((colour_set / "train").glob("*.tar")))
    assert report.text() == "3 shards, 48 samples, 0 problems"
    assert main(["data", "check", str(colour_set / "train"), "--deep", "--caption", "cls", "--classes", "4"]) == 0
    unusual = write_tar(tmp_path / "0.tar", [(key, {kind: data, **TEXT}) for key, (kind, data, _) in UNUSUAL.items()])
    assert check(unusual, "--deep")[0] == 0
    assert f"note: {unusual}: sample 'cmyk', member 'jpg': CMYK" in capsys.readouterr().out


def test_without_deep_headers_are_read_only(tmp_path: Path) -> None:
    status, report = check(everything(tmp_path / "0.tar"))
    named = {key for key in BROKEN for problem in report["shards"][0]["problems"] if f"sample {key!r}" in problem}
    assert (status, named, report["shards"][0]["notes"]) == (1, BROKEN.keys() - {"half"}, [])


def test_captions_that_are_asked_for(tmp_path: Path) -> None:
    jsons = [b'{"caption": "a"}', b'{"caption": ["a", "b"]}', b"{}", b'{"caption": 3}', b"{", b'{"caption": " "}']
    samples = [(str(i), {"png": GOOD, "txt": b"a", "json": text}) for i, text in enumerate(jsons)]
    path = write_tar(tmp_path / "0.tar", [*samples, ("6", {"png": GOOD, "txt": b"a"})])
    assert check(path)[0] == 0
    status, report = check(path, "--caption", "json:caption")
    words = ["KeyError: 'caption'", "expected a text or a list of texts, got 3", "JSONDecodeError", "no caption in it"]
    for problem, (row, word) in zip(
        report["shards"][0]["problems"], enumerate([*words, "no member 'json'"], start=2), strict=True
    ):
        assert f"sample '{row}'" in problem and word in problem
    assert (status, report["shards"][0]["bad"]) == (1, 5)
    assert check(path, "--caption", "json:caption", "--caption", "cls")[1]["problems"] == 5 + 7
    assert main(["data", "check", str(path), "--caption", "json"]) == 2


def test_labels(tmp_path: Path) -> None:
    labels = [b"0", b" 3\n", b"4", b"-1", b"one", b""]
    path = write_tar(tmp_path / "0.tar", [(str(i), {"png": GOOD, "cls": label}) for i, label in enumerate(labels)])
    assert check(path)[1]["shards"][0]["bad"] == 3
    problems = check(path, "--classes", 4)[1]["shards"][0]["problems"]
    assert [problem.split("member 'cls': ")[1] for problem in problems] == [
        "label 4, but there are 4 class names (labels count from 0)",
        "label -1, but there are 4 class names (labels count from 0)",
        "expected an integer, got b'one'",
        "expected an integer, got b''",
    ]


def test_captions_that_few_samples_have_are_noted(tmp_path: Path) -> None:
    samples = [(str(i), {"png": GOOD, "cls": b"1", **(TEXT if i < 2 else {})}) for i in range(5)]
    status, report = check(write_tar(tmp_path / "0.tar", samples))
    assert (status, report["problems"]) == (0, 0)
    assert "only 2 of 5 samples have a member 'txt': not checked, unless asked for" in report["shards"][0]["notes"][0]


def test_what_clip_benchmark_reads_in_another_way_is_counted(tmp_path: Path) -> None:
    both, text = {"png": GOOD, "jpg": encoded(RGB, "JPEG")}, {"txt": b"a cat\n\n\0\ntwo cats\n"}
    path = write_tar(tmp_path / "0.tar", [("a", both | TEXT), ("b", both | text), ("c", {"png": GOOD} | text)])
    status, report = check(path)
    assert (status, report["shards"][0]["notes"]) == (
        0,
        [
            f"{path}: 2 samples, the first 'a', have several images; the first of jpg, jpeg, png, webp is used "
            "(CLIP_benchmark: of webp, png, jpg, jpeg)",
            f"{path}: 2 samples, the first 'b', have blank lines among their captions, which are left out "
            "(CLIP_benchmark: captions too)",
        ],
    )


def test_labels_are_held_against_the_names_beside_the_shard(tmp_path: Path) -> None:
    """As training does."""
    path = write_tar(tmp_path / "0.tar", [(str(label), {"png": GOOD, "cls": b"%d" % label}) for label in range(3)])
    assert check(path)[0] == 0
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    problem = f"{path}: sample '2', member 'cls': label 2, but there are 2 class names (labels count from 0)"
    assert check(path)[1]["shards"][0]["problems"] == [problem]
    assert check(path, "--classes", "3")[0] == 0


def test_limit_of_pixels(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", colour_samples(2))
    status, report = check(path, "--max_pixels", 255)
    assert status == 1 and "16 × 16 pixels, more than data.max_pixels 255" in report["shards"][0]["problems"][0]
    assert check(path, "--max_pixels", 256)[0] == 0


def test_damage_since_indexing_is_found_by_deep_only(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", colour_samples(4))
    assert main(["data", "index", str(path)]) == 0
    path.write_bytes(path.read_bytes().replace(b"a blue square", b"a blue sqvare"))
    assert check(path)[0] == 0
    status, report = check(path, "--deep")
    reason = "damaged since it was indexed (CRC-32 differs)"
    assert status == 1
    assert report["shards"][0]["problems"] == [f"{path}: sample '000002', member 'txt': {reason}"]
    path.write_bytes(path.read_bytes().replace(b"sqvare", b"square").replace(b'"url": "u1"', b'"url": "u7"'))
    problems = check(path, "--deep")[1]["shards"][0]["problems"]  # of members that no caption is read from, too
    assert problems == [f"{path}: sample '000001', member 'json': {reason}"]
    write_tar(path, [(f"x{key[1:]}", members) for key, members in colour_samples(4)])
    problems = check(path, "--deep")[1]["shards"][0]["problems"]
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}: names, sizes or order of its members differ from 0.tar.index.npz")
    write_tar(path, colour_samples(9))
    problems = check(path, "--deep")[1]["shards"][0]["problems"]
    assert len(problems) == 1 and "the shard is truncated or replaced" in problems[0]


def test_a_damaged_index_file_is_noted(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", colour_samples(4))
    write_sidecar(path)
    sidecar(path).write_bytes(sidecar(path).read_bytes()[:-50])
    report = check_shards([path], Check(deep=True))
    assert report.problems == []
    assert report.notes[0].startswith(f"{path}: bytes not compared: 0.tar.index.npz holds no CRCs, or is damaged")


def test_downloads_are_accounted_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, samples in (("00000", 4), ("00001", 3)):
        write_tar(tmp_path / f"{name}.tar", colour_samples(samples))
        stats: dict[str, Any] = {"count": 6, "successes": 4, "failed_to_download": 2, "failed_to_resize": 0}
        stats["status_dict"] = {"success": 4, "HTTP Error 404": 2}
        (tmp_path / f"{name}_stats.json").write_text(json.dumps(stats))
    status, report = check(tmp_path / "00000.tar")
    line = "4 of 6 rows were downloaded (33.3% missing: HTTP Error 404 33.3%)"
    assert (status, report["downloads"]) == (0, line)
    assert line in capsys.readouterr().out
    status, report = check(tmp_path / "00000.tar", tmp_path / "00001.tar")
    assert (status, report["shards"][1]["samples"]) == (1, 3)
    assert "4 samples were downloaded, but the shard holds 3: samples were lost" in report["shards"][1]["problems"][0]


def test_a_shard_that_is_gone(tmp_path: Path) -> None:
    report = check_shards([tmp_path / "gone.tar"])
    assert report.problems == [f"{tmp_path / 'gone.tar'}: No such file or directory"]
