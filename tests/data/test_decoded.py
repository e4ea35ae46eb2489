"""Decoded images are those that were put, in every process, after every kind of death; the folder stays bounded."""

import io
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import colour_samples, png, write_tar
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmrep.config.checks import ConfigError
from mmrep.data.decode import decode_image, read_image
from mmrep.data.decoded import DecodedImages, Sizes, image_sizes
from mmrep.data.indexing import build_index
from mmrep.data.shards import image_extension, read_member
from mmrep.data.tar import DataError

SHAPES = [(4, 6), (5, 5), (0, 0), (1, 9), (7, 2)]
MANY = 1 << 30


def sizes_of(shapes: list[tuple[int, int]]) -> Sizes:
    heights, widths = np.array(shapes, np.int32).T.copy()
    return heights, widths


def picture(number: int, shapes: list[tuple[int, int]] = SHAPES) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (*shapes[number], 3), generator=generator, dtype=torch.uint8).permute(2, 0, 1)


def open_store(root: Path, digest: str = "set", shapes: list[tuple[int, int]] = SHAPES) -> DecodedImages:
    store = DecodedImages.open(root, digest, sizes_of(shapes), MANY)
    assert store is not None
    return store


def got(store: DecodedImages, number: int) -> Tensor:
    image = store.get(number)
    assert image is not None
    return image


def in_child(job: Callable[[], Any]) -> int:
    """Runs `job` in a forked process; its exit code, negative for a signal."""
    process = multiprocessing.get_context("fork").Process(target=job)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # fork beside torch's threads
        process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def filled(store: DecodedImages) -> int:
    """The number of decoded images."""
    return int(np.count_nonzero(store._checks))


def test_images_come_back_as_they_were_put(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert all(store.get(number) is None for number in range(len(SHAPES)))
    kept = [4, 0, 3, 1]
    for done, number in enumerate(kept, 1):
        store.put(number, picture(number))
        assert filled(store) == done
    for number in kept:
        assert torch.equal(got(store, number), picture(number))
    assert store.get(2) is None


def test_layout_in_memory_is_the_decoders(tmp_path: Path) -> None:
    image = decode_image(png((200, 100, 50), (6, 4)))
    store = open_store(tmp_path)
    store.put(0, image.contiguous())
    assert torch.equal(got(store, 0), image)
    assert got(store, 0).stride() == image.stride()


def test_get_copies_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put(0, picture(0))
    image = got(store, 0)
    store.put(0, 255 - picture(0))
    assert torch.equal(image, 255 - picture(0))
    assert got(store, 0).data_ptr() == image.data_ptr()


def test_an_image_may_outlive_the_store(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put(1, picture(1))
    image = got(store, 1)
    del store
    assert torch.equal(image, picture(1))


def test_later_runs_and_copies_share_the_images(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put(0, picture(0))
    copy = pickle.loads(pickle.dumps(store))
    copy.put(1, picture(1))
    assert in_child(lambda: store.put(3, picture(3))) == 0
    for other in (store, copy, open_store(tmp_path)):
        assert filled(other) == 3
        assert all(torch.equal(got(other, number), picture(number)) for number in (0, 1, 3))


def test_other_digest_or_sizes_is_another_set(tmp_path: Path) -> None:
    open_store(tmp_path).put(0, picture(0))
    turned = [(width, height) for height, width in SHAPES]
    assert filled(open_store(tmp_path, "another")) == 0
    assert filled(open_store(tmp_path, shapes=turned)) == 0


def test_too_large_or_empty_is_none(tmp_path: Path) -> None:
    heights, widths = sizes_of(SHAPES)
    exact = int(3 * (heights * widths).sum())
    assert DecodedImages.open(tmp_path / "a", "set", (heights, widths), exact - 1) is None
    assert DecodedImages.open(tmp_path / "a", "set", (heights * 0, widths * 0), exact) is None
    assert DecodedImages.open(tmp_path / "a", "set", (heights[:0], widths[:0]), exact) is None
    assert not (tmp_path / "a").exists()
    assert DecodedImages.open(tmp_path / "a", "set", (heights, widths), exact) is not None


def test_more_than_32_bits_of_pixels_are_counted(tmp_path: Path) -> None:
    side = np.full(3, 40_000, np.int32)
    assert DecodedImages.open(tmp_path, "set", (side, side), MANY) is None


def test_another_size_than_announced_is_named(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(DataError, match=r"image 1: 4 × 6 pixels \(height × width\) .* announced 5 × 5"):
        store.put(1, picture(0))
    store.put(2, picture(0))  # 0 × 0: its header could not be read beforehand, and it is not kept
    assert filled(store) == 0 and store.get(2) is None


def test_killed_in_the_middle_of_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    write = os.pwrite

    def half(descriptor: int, data: memoryview, offset: int) -> int:
        write(descriptor, data[: len(data) // 2], offset)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        assert in_child(lambda: store.put(0, picture(0))) == -signal.SIGKILL
    half_written = picture(0).permute(1, 2, 0).flatten()[:10].numpy().tobytes()
    assert half_written in store.path.read_bytes()
    assert store.get(0) is None
    assert filled(store) == 0
    store.put(0, picture(0))
    assert torch.equal(got(store, 0), picture(0))


def test_pixels_go_before_the_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, order, write = open_store(tmp_path), [], os.pwrite

    def noted(descriptor: int, data: memoryview, offset: int) -> int:
        order.append(offset)
        return write(descriptor, data[:5], offset)  # the system may write less than it is asked to

    monkeypatch.setattr(os, "pwrite", noted)
    store.put(1, picture(1))
    assert len(order) > 2
    assert order[-1] == 4
    assert min(order[:-1]) >= 4 * len(SHAPES)
    assert torch.equal(got(store, 1), picture(1))


@pytest.mark.parametrize("part", ["pixels", "checksum"])
def test_what_a_stopped_machine_leaves_counts_as_not_decoded(tmp_path: Path, part: str) -> None:
    store = open_store(tmp_path)
    for number in (0, 1):
        store.put(number, picture(number))
    path = store.path
    del store
    data = bytearray(path.read_bytes())
    place = 4 * len(SHAPES) if part == "pixels" else 0
    data[place : place + 3] = b"\0\1\2"
    path.write_bytes(data)
    store = open_store(tmp_path)
    assert store.get(0) is None
    assert torch.equal(got(store, 1), picture(1))
    store.put(0, picture(0))
    assert torch.equal(got(store, 0), picture(0))


def test_killed_in_creation_leaves_nothing_that_others_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", killed)
        assert in_child(lambda: open_store(tmp_path)) == -signal.SIGKILL
    assert [path.name[:9] for path in tmp_path.iterdir() if path.name != "lock"] == [".writing-"]
    store = open_store(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "lock", store.path])
    assert filled(store) == 0


def test_a_file_of_another_length_is_made_anew(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    length, path = store.path.stat().st_size, store.path
    del store
    os.truncate(path, 7)
    assert filled(open_store(tmp_path)) == 0
    assert path.stat().st_size == length


def test_processes_open_and_fill_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(4)
    shapes = [(3 + number % 5, 4) for number in range(40)]
    reserve = os.posix_fallocate

    def slowly(descriptor: int, offset: int, size: int) -> None:
        time.sleep(0.05)  # all the others arrive while the first one creates the file
        reserve(descriptor, offset, size)

    def work(rank: int) -> None:
        gate.wait(20)
        store = open_store(tmp_path, shapes=shapes)
        for number in [*range(rank, 40, 4), *range(10)]:
            image = store.get(number)
            assert image is None or torch.equal(image, picture(number, shapes))
            store.put(number, picture(number, shapes))
            assert torch.equal(got(store, number), picture(number, shapes))

    monkeypatch.setattr(os, "posix_fallocate", slowly)
    workers = [context.Process(target=work, args=(rank,)) for rank in range(4)]
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        for worker in workers:
            worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    store = open_store(tmp_path, shapes=shapes)
    assert all(torch.equal(got(store, number), picture(number, shapes)) for number in range(40))
    assert [path.suffix for path in tmp_path.iterdir() if path.name != "lock"] == [".pixels"]


class Pictures(Dataset[Tensor]):
    """Images through the store: kept on the first use."""

    def __init__(self, store: DecodedImages, shard: Path) -> None:
        self.store, self.index = store, build_index(shard)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Tensor:
        image = self.store.get(number)
        if image is None:
            image = read_image(self.index, number)
            self.store.put(number, image)
        return image.clone()


def test_loader_workers_fill_one_store(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", colour_samples(12))
    index = build_index(shard)
    sizes = image_sizes(lambda number: read_member(index, number, image_extension(index, number)), len(index))
    store = DecodedImages.open(tmp_path / "decoded", index.digest, sizes, MANY)
    assert store is not None
    expected = [read_image(index, number) for number in range(len(index))]
    for _ in range(2):
        images = list(DataLoader(Pictures(store, shard), batch_size=None, num_workers=2))
        assert all(torch.equal(a, b) for a, b in zip(images, expected, strict=True))
        assert filled(store) == len(index)


def used_at(root: Path, digest: str, second: int) -> Path:
    """A file that no process has open, last used at that second."""
    path = open_store(root, digest).path
    os.utime(path, (second, second))
    return path


def test_longest_unused_files_make_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, older, recent = (used_at(tmp_path, name, second) for name, second in (("b", 2), ("a", 1), ("c", 3)))
    size = old.stat().st_size
    with caplog.at_level(logging.INFO, "mmrep"):
        store = DecodedImages.open(tmp_path, "new", sizes_of(SHAPES), 2 * size)
    assert store is not None
    assert {recent, store.path} == set(tmp_path.glob("*.pixels"))
    assert [record.getMessage().split()[1] for record in caplog.records] == [str(older), str(old)]


def test_opening_is_use(tmp_path: Path) -> None:
    first, second = used_at(tmp_path, "a", 1), used_at(tmp_path, "b", 2)
    open_store(tmp_path, "a")
    assert DecodedImages.open(tmp_path, "new", sizes_of(SHAPES), 2 * first.stat().st_size) is not None
    assert first.exists()
    assert not second.exists()


def test_a_file_in_use_stays(tmp_path: Path) -> None:
    store = open_store(tmp_path, "a")
    store.put(0, picture(0))
    image, path = got(store, 0), store.path
    os.utime(path, (1, 1))
    unused = used_at(tmp_path, "b", 2)
    limit = path.stat().st_size
    assert in_child(lambda: DecodedImages.open(tmp_path, "new", sizes_of(SHAPES), limit)) == 0
    assert path.exists()
    assert not unused.exists()
    del store
    DecodedImages.open(tmp_path, "newer", sizes_of(SHAPES), limit)
    assert path.exists()  # an image still looks at it
    del image
    DecodedImages.open(tmp_path, "newest", sizes_of(SHAPES), limit)
    assert not path.exists()


def lowest_free_descriptor() -> int:
    descriptor = os.dup(2)
    os.close(descriptor)
    return descriptor


def test_descriptors_are_closed(tmp_path: Path) -> None:
    before = lowest_free_descriptor()
    for _ in range(3):
        open_store(tmp_path)
    assert lowest_free_descriptor() == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"can't mount a small tmpfs: {error}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_no_space_is_said_at_the_start(small_disk: Path) -> None:
    shapes = [(300, 400)]
    root = small_disk / "decoded"
    with pytest.raises(ConfigError, match=r"No space left on device \(0.4 MB of decoded images\); MMREP_CACHE") as info:
        open_store(root, shapes=shapes)
    assert str(root) in str(info.value)
    assert "\n" not in str(info.value)
    assert [path.name for path in root.iterdir()] == ["lock"]


def test_full_disk_where_space_cannot_be_reserved(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    shapes = [(100, 100), (300, 400)]

    def work() -> None:
        store = open_store(small_disk / "decoded", shapes=shapes)
        store.put(0, picture(0, shapes))
        with pytest.raises(ConfigError, match="No space left on device .* MMREP_CACHE"):
            store.put(1, picture(1, shapes))
        assert torch.equal(got(store, 0), picture(0, shapes))
        assert store.get(1) is None

    assert in_child(work) == 0  # a child: a write through the map would be its death by SIGBUS


def test_no_access_names_the_place(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file where a folder is needed")
    with pytest.raises(ConfigError, match=r"taken/decoded: Not a directory .*; MMREP_CACHE moves the cache"):
        open_store(taken / "decoded")


def encoded(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (9, 90, 200)).save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6  # orientation: a quarter turn
    return exif


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("options", [{}, {"exif": turned()}], ids=["plain", "turned"])
def test_headers_announce_what_the_decoder_gives(kind: str, options: dict[str, Any]) -> None:
    data = encoded(kind, **options)
    heights, widths = image_sizes(lambda _: data, 1)
    assert (heights.dtype, widths.dtype) == (np.int32, np.int32)
    assert (int(heights[0]), int(widths[0])) == tuple(decode_image(data).shape[1:])


def test_unreadable_headers_are_left_to_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    good = png((1, 2, 3), (6, 4))
    files = [good, b"no image", good[:20], b"", png((1, 2, 3), (11, 10)), png((1, 2, 3), (30, 30)), None, good]

    def reader(number: int) -> bytes:
        data = files[number]
        if data is None:
            raise DataError("no such member")
        return data

    heights, widths = image_sizes(reader, len(files))
    assert heights.tolist() == [4, 0, 0, 0, 0, 0, 0, 4]
    assert widths.tolist() == [6, 0, 0, 0, 0, 0, 0, 6]


def test_other_errors_of_the_reader_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        image_sizes(lambda number: bytes(1 // number), 1)
