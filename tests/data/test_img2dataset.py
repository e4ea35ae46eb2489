"""img2dataset's statistics: sums that add up, samples lost since named, malformed files refused."""

import json
from pathlib import Path
from typing import Any

import originals
import pytest
from originals import put

from mmrep.data.img2dataset import account, stats_of
from mmrep.data.indexing import build_index
from mmrep.data.tar import DataError

GOOD: dict[str, Any] = {
    "count": 10,
    "successes": 6,
    "failed_to_download": 3,
    "failed_to_resize": 1,
    "duration": 2.0,
    "status_dict": {"success": 6, "HTTP Error 404: Not Found": 2, "timed out": 1, "image decoding error": 1},
}


def stats(tmp_path: Path, **changes: Any) -> Path:
    put(tmp_path / "00007_stats.json", {key: value for key, value in (GOOD | changes).items() if value is not ...})
    return tmp_path / "00007.tar"


def test_read(tmp_path: Path) -> None:
    found = stats_of(stats(tmp_path), 6)
    assert found is not None
    assert (found.path.name, found.rows, found.successes) == ("00007_stats.json", 10, 6)
    assert found.failed == {"HTTP Error 404: Not Found": 2, "timed out": 1, "image decoding error": 1}
    assert stats_of(tmp_path / "00008.tar", 6) is None


def test_rows_without_a_reason(tmp_path: Path) -> None:
    """img2dataset caps its reasons, and a row that it stumbles over itself counts as neither success nor failure."""
    capped = stats_of(stats(tmp_path, status_dict={"success": 6, "timed out": 1}), 6)
    assert capped is not None and capped.failed == {"timed out": 1, "other": 3}
    stumbled = stats_of(stats(tmp_path, count=12), 6)
    assert stumbled is not None and sum(stumbled.failed.values()) == 6
    none = stats_of(stats(tmp_path, status_dict=...), 6)
    assert none is not None and none.failed == {"other": 4}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"count": ...}, "expected a number under 'count', got None"),
        ({"successes": -1}, "under 'successes', got -1"),
        ({"successes": "6"}, "under 'successes', got '6'"),
        ({"failed_to_resize": True}, "under 'failed_to_resize', got True"),
        ({"successes": 7}, "10 rows, but 7 . 3 . 1 succeeded or failed"),
        ({"status_dict": {"timed out": 1.5}}, "under 'timed out', got 1.5"),
    ],
)
def test_malformed(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"00007_stats.json: .*{reason}"):
        stats_of(stats(tmp_path, **changes), 6)


@pytest.mark.parametrize("content", ["", "{", "[]", b"\xff", "[" * 100_000])
def test_not_json(content: str | bytes, tmp_path: Path) -> None:
    put(tmp_path / "1_stats.json", content)
    with pytest.raises(DataError, match=r"1_stats\.json"):
        stats_of(tmp_path / "1.tar", 6)


def test_samples_lost_since(tmp_path: Path) -> None:
    shard = stats(tmp_path)
    with pytest.raises(DataError, match=r"00007_stats.json: 6 samples were downloaded, but the shard holds 5: .* lost"):
        stats_of(shard, 5)
    with pytest.raises(DataError, match=r"holds 7: samples were added"):
        stats_of(shard, 7)


def test_account(tmp_path: Path) -> None:
    originals.downloaded(tmp_path, ["0" * 32] * 4)
    assert account([]) is None and account([None]) is None
    found = [stats_of(shard, len(build_index(shard))) for shard in sorted(tmp_path.glob("*.tar"))]
    expected = (
        "4 of 10 rows were downloaded (60.0% missing: HTTP Error 404: Not Found 40.0%, image decoding error 20.0%)"
    )
    assert account(found) == expected
    assert account([*found, None]) == f"{expected}; 1 of 3 shards have no statistics"


def test_account_of_whole_and_of_many_reasons(tmp_path: Path) -> None:
    whole = stats(tmp_path, count=1_234_567, successes=1_234_567, failed_to_download=0, failed_to_resize=0,
                  status_dict={"success": 1_234_567})  # fmt: skip
    assert account([stats_of(whole, 1_234_567)]) == "1,234,567 of 1,234,567 rows were downloaded"
    many = stats(tmp_path, status_dict={"d": 1, "success": 6, "a": 1, "c": 1, "b": 1})
    assert account([stats_of(many, 6)]) == (
        "6 of 10 rows were downloaded (40.0% missing: d 10.0%, a 10.0%, c 10.0%, …)"
    )
    put(tmp_path / "0_stats.json", json.dumps(GOOD | dict.fromkeys(list(GOOD)[:4], 0) | {"status_dict": {}}))
    assert account([stats_of(tmp_path / "0.tar", 0)]) == "0 of 0 rows were downloaded"
