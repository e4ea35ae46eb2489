"""Files of others with anything in any field: every reader returns, or says in one line what is wrong."""

import copy
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import colour_samples, png, write_tar

from mmrep.config.checks import MmrepError
from mmrep.config.data import DataConfig, SourceConfig
from mmrep.config.evaluation import SetConfig
from mmrep.data.catalog import catalog_of, read_catalog, write_catalog
from mmrep.data.check import check_shards
from mmrep.data.img2dataset import account, stats_of
from mmrep.data.indexing import load_index, sidecar, write_sidecar
from mmrep.data.inventory import name_difference, write_inventory
from mmrep.data.layouts import classes
from mmrep.data.layouts.captions import read_coco, read_karpathy, read_redcaps, read_table
from mmrep.data.layouts.classes import read_imagenet_val
from mmrep.data.ledger import check_ledger
from mmrep.data.shards import read_member
from mmrep.data.sources import Sources
from mmrep.data.subsets import UID, read_subset
from mmrep.evaluation.sources.ground_truth import read_ground_truth
from mmrep.evaluation.sources.pairs import read_pairs
from mmrep.evaluation.sources.webdataset import read_webdataset

STRANGE: list[Any] = [
    None, True, -1, 10**400, 1.5, float("nan"), "", "x" * 5000, "a\0b", "../../x", "/etc/passwd", "\ud800", "a\nb", [],
    [[]], [1], {}, {"a": 1}, ["\ud800"], [None],
]  # fmt: skip
Read = Callable[[Path], object]


def one_line(read: Read, path: Path, what: object) -> None:
    """The reader may return; else it must raise a message for users, of one short line that a terminal can show."""
    try:
        read(path)
    except MmrepError as error:
        text = str(error)
        assert "\n" not in text and len(text.replace(str(path.parent), "")) < 700, (what, text)
        text.encode("utf-8")
    except Exception as error:
        raise AssertionError(f"{str(what)[:200]}: {type(error).__name__}: {str(error)[:200]}") from error


def variants(value: Any) -> Iterator[tuple[object, Any]]:
    """A JSON value with one part replaced by something strange, or left out; with a description."""
    for strange in STRANGE:
        yield repr(strange)[:40], strange
    if isinstance(value, dict):
        for key in value:
            yield f"no {key}", {name: each for name, each in value.items() if name != key}
            for what, part in variants(value[key]):
                yield f"{key}: {what}", value | {key: part}
    elif isinstance(value, list) and value:
        yield "twice", [*value, copy.deepcopy(value[0])]
        for what, part in variants(value[0]):
            yield f"[0]: {what}", [part, *value[1:]]


def damaged(data: bytes, count: int, seed: int = 0) -> Iterator[tuple[object, bytes]]:
    """A file cut, or with bytes changed, from a fixed list of draws."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        bad = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            bad[rng.integers(len(bad))] = rng.integers(256)
        yield number, bytes(bad[: rng.integers(len(bad))] if number % 4 == 0 else bad)
    yield "empty", b""
    yield "zeros", bytes(1000)
    yield "deep", b"[" * 100_000
    yield "deep object", b'{"a":' * 100_000


def karpathy(folder: Path) -> Read:
    return lambda path: read_karpathy(path, folder, ["test", "train"])


SENTENCE = {"raw": "a cat"}
PICTURE = {"filename": "a.png", "filepath": "x", "split": "test", "sentences": [SENTENCE]}
TRUTH = {
    "imlist": ["a", "b"], "qimlist": ["q"], "gnd": [{"bbx": [1, 2, 3, 4], "easy": [0], "hard": [1], "junk": []}],
}  # fmt: skip
SUGAR = {"0": {"filename": "a.png", "caption": "a", "negative_caption": ["b"]}}
WINOGROUND = [
    {"id": 1, "image_0": "a", "image_1": "a", "caption_0": "x", "caption_1": "y", "tag": "t", "num_main_preds": 1}
]
STATS = {
    "count": 3, "successes": 2, "failed_to_download": 1, "failed_to_resize": 0,
    "status_dict": {"success": 2, "HTTP Error 404": 1},
}  # fmt: skip
JSON: dict[str, tuple[Any, Callable[[Path], Read]]] = {
    "coco.json": (
        {
            "images": [{"id": 1, "file_name": "a.png"}],
            "annotations": [{"id": 5, "image_id": 1, "caption": "a cat"}],
        },
        lambda folder: lambda path: read_coco(path, folder, "train"),
    ),
    "karpathy.json": (
        {"images": [PICTURE, PICTURE | {"filename": "b.png", "split": "train"}]}, karpathy,
    ),
    "redcaps.json": (
        {"annotations": [{"image_id": "a", "subreddit": "r", "caption": "a cat", "url": "u"}]},
        lambda folder: lambda path: read_redcaps([path], folder, "train"),
    ),
    "0_stats.json": (STATS, lambda folder: _account),
    "truth.json": (TRUTH, lambda folder: read_ground_truth),
    "sugar.json": (SUGAR, lambda folder: _pairs),
    "wino.json": (WINOGROUND, lambda folder: _pairs),
    "ledger/plan.json": ({"starts": [0, 4], "sizes": [4, 2], "global_batch": 2}, lambda folder: _ledger),
}  # fmt: skip


def _account(path: Path) -> None:
    account([stats_of(path.with_name("0.tar"), 2)])


def _pairs(path: Path) -> None:
    read_pairs(SetConfig(str(path), task="pairs", images=str(path.parent)))


def _ledger(path: Path) -> None:
    rows = np.array([[0, 0, 0], [1, 1, 1], [2, 4, 4], [3, 2, 2]], "<i8")
    path.with_name("rank_0.bin").write_bytes(rows.tobytes())
    check_ledger(path.parent.parent).text()


@pytest.mark.parametrize("name", JSON)
def test_json(name: str, tmp_path: Path) -> None:
    good, reader = JSON[name]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    (tmp_path / "a.png").write_bytes(png((1, 2, 3)))
    read = reader(tmp_path)
    path.write_text(json.dumps(good), encoding="utf-8")
    read(path)
    for what, content in variants(good):
        path.write_text(json.dumps(content), encoding="utf-8")
        one_line(read, path, what)
    for number, data in damaged(json.dumps(good).encode(), 100):
        path.write_bytes(data)
        one_line(read, path, number)


def arrays_of(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data)) as arrays:
        return {name: arrays[name] for name in arrays.files}


def packed(arrays: dict[str, Any], **more: bytes) -> bytes:
    """An .npz file; `more` are raw members."""
    out = io.BytesIO()
    np.savez(out, **arrays)
    with zipfile.ZipFile(out, "a") as archive:
        for name, data in more.items():
            archive.writestr(f"{name}.npy", data)
    return out.getvalue()


def header(shape: str, descr: str = "'<i8'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def array_variants(good: dict[str, np.ndarray]) -> Iterator[tuple[object, bytes]]:
    """An .npz file with one array left out, or of other type, shape or values, or that claims 40 GB."""
    for name, array in good.items():
        others = {each: values for each, values in good.items() if each != name}
        yield f"no {name}", packed(others)
        for kind in ("float64", "S3", "U3", "bool", "int8", ">i8", "uint64", "complex64"):
            yield f"{name} as {kind}", packed(others | {name: np.zeros(array.shape, kind)})
        for shape in ((), (0,), (1,), (*array.shape, 2), (7,), array.shape[1:]):
            yield f"{name} of {shape}", packed(others | {name: np.ones(shape, array.dtype)})
        for value in (-1, -(2**63), 2**62) if array.dtype == np.int64 else ():
            yield f"{name} {value}", packed(others | {name: np.full(array.shape, value)})
        if array.dtype.kind == "S":
            yield f"{name} not UTF-8", packed(others | {name: np.full(array.shape, b"\xff")})
        for shape in ("(5000000000,)", "(-1,)", "(2, 9223372036854775807)", "(1.5,)", "'x'", "(" + "1," * 100 + ")"):
            yield f"{name} claims {shape}", packed(others, **{name: header(shape) + bytes(64)})
        for descr in ("'O'", "'V0'", "[('a', '<i8')]", "1", "'M8[ns]'"):
            yield f"{name} of {descr}", packed(others, **{name: header("(1,)", descr) + bytes(8)})
    compressed = io.BytesIO()
    np.savez_compressed(compressed, **good, bomb=np.zeros(10**7))
    yield "compressed", compressed.getvalue()


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_tar(tmp_path_factory.mktemp("shard") / "0.tar", colour_samples(4))
    write_sidecar(path)
    return path


def _use_index(shard: Path) -> None:
    index = load_index(shard)
    for extension in index.members:
        assert read_member(index, 0, extension)
    assert len(index) == 4


def test_index_files(shard: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that can't be used is named once, and the tar is walked instead."""
    monkeypatch.setenv("MMREP_CACHE", str(tmp_path))
    good = sidecar(shard).read_bytes()
    for what, data in (*array_variants(arrays_of(good)), *damaged(good, 150)):
        sidecar(shard).write_bytes(data)
        one_line(lambda path: _use_index(shard), sidecar(shard), what)
    sidecar(shard).write_bytes(good)


def test_an_index_file_is_not_read_where_it_is_larger_than_its_shard(
    shard: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MMREP_CACHE", str(tmp_path))
    good = sidecar(shard).read_bytes()
    with sidecar(shard).open("r+b") as file:
        file.truncate(40 << 30)
    try:
        _use_index(shard)
    finally:
        sidecar(shard).write_bytes(good)
    assert "0.tar.index.npz is not used: 42,949,672,960 bytes, more than the" in caplog.text


def test_the_field_of_an_index_file_is_named(
    shard: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MMREP_CACHE", str(tmp_path))
    good = sidecar(shard).read_bytes()
    arrays = arrays_of(good)
    sidecar(shard).write_bytes(packed(arrays | {"member:png": np.full(arrays["member:png"].shape, 2**62)}))
    _use_index(shard)
    sidecar(shard).write_bytes(good)
    assert "0.tar.index.npz is not used: damaged: unexpected content under 'member:png'" in caplog.text


def test_catalogs(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMREP_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "catalog.npz"
    write_catalog(catalog_of([shard]), place)
    good = place.read_bytes()

    def read(path: Path) -> None:
        catalog = read_catalog(str(path))
        assert [catalog.name(i) for i in range(len(catalog))]
        sources = Sources(DataConfig([SourceConfig(str(path))]))
        sources.sample(0)

    read(place)
    for what, data in (*array_variants(arrays_of(good)), *damaged(good, 100)):
        place.write_bytes(data)
        one_line(read, place, what)
    for address in (b"/dev/zero", b"/dev/null", str(tmp_path).encode(), b"a\0b", b"x" * 5000, b""):
        place.write_bytes(packed(arrays_of(good) | {"addresses": np.array([address])}))
        one_line(read, place, address)


def test_cached_tables_are_made_anew(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catalogs, indexes and selections in the cache are nobody's files but ours; damaged ones are not used."""
    monkeypatch.setenv("MMREP_CACHE", str(tmp_path))
    uids = np.array([(1, 2), (3, 4)], UID)
    np.save(tmp_path / "subset.npy", uids)
    samples = [
        (str(i), {"png": png((1, 2, 3)), "txt": b"x", "json": b'{"uid": "%016x%016x"}' % (1, i)}) for i in range(4)
    ]
    source = SourceConfig(str(write_tar(tmp_path / "s.tar", samples)), subset=str(tmp_path / "subset.npy"))
    assert len(Sources(DataConfig([source]))) == 1
    cached = [path for path in tmp_path.rglob("*.np?") if path.name != "subset.npy"]
    assert len(cached) == 3
    for path in cached:
        for data in (b"", b"x" * 200, path.read_bytes()[:-9]):
            path.write_bytes(data)
            assert len(Sources(DataConfig([source]))) == 1


def test_subsets(tmp_path: Path) -> None:
    path = tmp_path / "subset.npy"
    np.save(path, np.zeros(3, UID))
    good = path.read_bytes()
    files = [*damaged(good, 100), *((shape, header(shape, "'<u8,<u8'")) for shape in ("(5000000000,)", "(-1,)", "x"))]
    for what, data in files:
        path.write_bytes(data)
        one_line(read_subset, path, what)


def test_inventories(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMREP_CACHE", str(tmp_path))
    sources = Sources(DataConfig([SourceConfig(str(shard))]))
    path = tmp_path / "shards.tsv"
    write_inventory(sources, path)
    assert name_difference(path, sources) == ""
    for what, data in damaged(path.read_bytes(), 100):
        path.write_bytes(data)
        one_line(lambda place: name_difference(place, sources), path, what)


@pytest.mark.parametrize("name", ["nshards.txt", "dataset_type.txt", "classnames.txt", "templates.txt"])
def test_files_of_clip_benchmark(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMREP_CACHE", str(tmp_path / "cache"))
    write_tar(tmp_path / "test/0.tar", colour_samples(4))
    places = {"nshards.txt": tmp_path / "test/nshards.txt"}
    places["templates.txt"] = tmp_path / "zeroshot_classification_templates.txt"
    contents = {"nshards.txt": "1\n", "classnames.txt": "a\nb\nc\nd\n", "templates.txt": "a {c}\n"}
    contents["dataset_type.txt"] = ""
    for each, text in contents.items():
        places.setdefault(each, tmp_path / each).write_text(text)

    def read(_: Path) -> None:
        read_webdataset(SetConfig(str(tmp_path)))

    read(tmp_path)
    odd = [
        b"99999999999999999999",
        b"1" * 5000,
        "١".encode(),
        b"\xff\xfe",
        b"-1",
        b"1.5",
        b"a\0b",
        b"\x1b[2J",
        b"retrieval",
    ]
    for what, data in (*enumerate(odd), *damaged(contents[name].encode() + b"x", 30)):
        places[name].write_bytes(data)
        one_line(read, places[name], what)


TABLES: dict[str, tuple[bytes, Callable[[Path], Read]]] = {
    "csv": (
        b"filepath,title\na.png,a cat\nb.png,\"a dog, sitting\"\n",
        lambda folder: lambda path: read_table(path, folder, "train"),
    ),
    "labels": (
        b"a.png 1\nb.png n01440764\n", lambda folder: lambda path: read_imagenet_val(folder, path, "test"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wnids = [f"n0144{i:04}" for i in range(1000)]
    for each in ("imagenet_wnids", "imagenet_names", "imagenet_templates"):  # the real ones take seconds to import
        monkeypatch.setattr(classes, each, lambda: [f"{wnid} {{c}}" for wnid in wnids])
    monkeypatch.setattr(classes, "imagenet_wnids", lambda: wnids)
    good, reader = TABLES[name]
    (tmp_path / "a.png").write_bytes(png((1, 2, 3)))
    path = tmp_path / "table"
    odd = [
        b"filepath,title\n" + b"x" * 200_000 + b",y\n",
        b"\xff\xfe\0",
        b"a.png " + b"9" * 5000,
        "a.png ٣".encode(),
        b"a.png \xb2",
    ]
    for what, data in (("good", good), *enumerate(odd), *damaged(good, 100)):
        path.write_bytes(data)
        one_line(reader(tmp_path), path, what)


@pytest.mark.parametrize("name", ["/dev/zero", "pipe", "folder"])
def test_only_regular_files_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("MMREP_CACHE", str(tmp_path / "cache"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    path = Path(name) if name.startswith("/") else tmp_path / name
    readers: list[Read] = [
        load_index, read_subset, read_ground_truth,
        lambda path: read_catalog(str(path)),
        lambda path: read_table(path, tmp_path, "train"),
        lambda path: read_coco(path, tmp_path, "train"),
        lambda path: SourceConfig(str(path)) and Sources(DataConfig([SourceConfig(f"{path}")])),
    ]  # fmt: skip
    for read in readers:
        with pytest.raises(MmrepError) as error:
            read(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)
    if name != "folder":
        report = check_shards([path])
        assert [problem for problem in report.problems if "not a regular file" in problem]
