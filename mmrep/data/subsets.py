"""DataComp's subsets: files of uids that say which samples of a pool to train on, without writing any shard anew."""

import json
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmrep.config.checks import ConfigError
from mmrep.data.arrays import ARRAY_ERRORS
from mmrep.data.regular import regular_stat
from mmrep.data.shards import ShardIndex, read_member
from mmrep.data.tar import DataError

UID = np.dtype("u8,u8")
"""A uid of 128 bits: its first and its last 16 hexadecimal digits."""
_HEX = re.compile(r"[0-9a-fA-F]{32}")
_CHUNK = 1 << 20


def parse_uid(text: str) -> tuple[int, int]:
    """The two halves of a uid of 32 hexadecimal digits.

    Raises:
        ValueError: anything else.
    """
    if not _HEX.fullmatch(text):
        raise ValueError(f"expected a uid of 32 hexadecimal digits, got {text[:40]!r}")
    return int(text[:16], 16), int(text[16:], 16)


def read_subset(path: Path) -> NDArray:
    """The (uids,) of a subset, of dtype `UID`, ascending: mapped into memory, or a sorted copy of a file that isn't.

    Raises:
        ConfigError: no such file, not an .npy array of uids, nothing in it.
    """
    try:
        regular_stat(path)
        uids = np.load(path, allow_pickle=False, mmap_mode="r")
    except OSError as error:
        raise ConfigError(f"subset {path}: {error.strerror or error}") from error
    except ARRAY_ERRORS as error:
        raise ConfigError(f"subset {path}: not an .npy array of uids (dtype u8,u8)") from error
    if not isinstance(uids, np.ndarray) or uids.dtype != UID or uids.ndim != 1:
        got = f"{uids.dtype} {uids.shape}" if isinstance(uids, np.ndarray) else "an archive"
        raise ConfigError(f"subset {path}: expected uids (dtype u8,u8; one dimension), got {got}")
    if not len(uids):
        raise ConfigError(f"subset {path}: no uids in it")
    # numpy's sort compares structured values one by one; of two plain arrays it takes a quarter of the time.
    return uids if _ascending(uids) else uids[np.lexsort((uids["f1"], uids["f0"]))]


def _ascending(uids: NDArray) -> bool:
    for start in range(0, len(uids), _CHUNK):
        high, low = (np.ascontiguousarray(uids[name][start : start + _CHUNK + 1]) for name in ("f0", "f1"))
        if not ((high[:-1] < high[1:]) | ((high[:-1] == high[1:]) & (low[:-1] <= low[1:]))).all():
            return False
    return True


def shard_uids(index: ShardIndex) -> NDArray:
    """The (samples,) uids of a shard, of dtype `UID`, from the key `uid` of its json members.

    Raises:
        DataError: a sample without json member or uid.
    """
    uids = np.empty(len(index), dtype=UID)
    for row in range(len(index)):
        data = read_member(index, row, "json")
        try:
            uids[row] = parse_uid(str(json.loads(data)["uid"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = "no key 'uid'" if isinstance(error, KeyError) else str(error)
            key = index.keys[row].decode()
            raise DataError(
                f"{index.path}: sample {key!r}, member 'json': {reason}; a subset needs the uids that img2dataset keeps"
                " with --save_additional_columns '[\"uid\"]'"
            ) from error
    return uids


def select(uids: NDArray, subset: NDArray) -> NDArray[np.int64]:
    """The rows whose uid is in a subset, ascending.

    Args:
        uids: (samples,) of dtype `UID`, in any order.
        subset: (uids,) of dtype `UID`, ascending, at least one.
    """
    places = np.searchsorted(subset, uids)
    places[places == len(subset)] = 0
    return np.flatnonzero(subset[places] == uids)
