"""img2dataset's statistics: how many rows of the list were downloaded, and whether shards are still complete."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmrep.data.files import read_regular
from mmrep.data.tar import DataError

_REASONS_SHOWN = 3
_MOST = 2**53


class ShardStats(NamedTuple):
    """img2dataset's statistics of a shard.

    Attributes:
        path: the `_stats.json`.
        rows: rows of the list that the shard was to hold.
        successes: samples that it holds.
        failed: number of rows for each reason of failure, in img2dataset's words.
    """

    path: Path
    rows: int
    successes: int
    failed: dict[str, int]


def stats_of(shard: Path, samples: int) -> ShardStats | None:
    """Return the statistics beside a shard (`00000_stats.json` of `00000.tar`); None if there are none.

    Args:
        shard: the shard.
        samples: number of samples that it holds.

    Raises:
        DataError: the file can't be read, is not one of img2dataset's, its numbers contradict each other, or another
            number of samples was downloaded into the shard.
    """
    path = shard.with_name(f"{shard.stem}_stats.json")
    try:
        stats = json.loads(read_regular(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not JSON: {str(error)[:200]}; remove it if the download can't be accounted for"
        ) from error
    rows, successes, lost, shrunk = (
        _number(stats, name, path) for name in ("count", "successes", "failed_to_download", "failed_to_resize")
    )
    # The sum may be smaller: a row that makes img2dataset itself fail counts as neither.
    if successes + lost + shrunk > rows:
        raise DataError(f"{path}: {rows} rows, but {successes} + {lost} + {shrunk} succeeded or failed; remove it")
    if samples != successes:
        change = "samples were lost" if samples < successes else "samples were added"
        raise DataError(
            f"{path}: {successes:,} samples were downloaded, but the shard holds {samples:,}: {change}"
            " since; download the shard again, or remove this file if the change was meant"
        )
    return ShardStats(path, rows, successes, _reasons(stats, path, rows - successes))


def _number(stats: object, name: str, path: Path) -> int:
    value = stats.get(name) if isinstance(stats, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
        got = repr(value)[:40]
        raise DataError(f"{path}: expected a number under {name[:40]!r}, got {got}; is it img2dataset's?")
    return value


def _reasons(stats: dict[str, object], path: Path, missing: int) -> dict[str, int]:
    """Return the number of failures by reason; those without a reason are under `other`."""
    status = stats.get("status_dict")
    status = status if isinstance(status, dict) else {}
    failed: Counter[str] = Counter()
    for reason in status:
        if reason != "success":
            # The texts come from web servers: no control characters on the terminal.
            shown = "".join(character if character.isprintable() else "?" for character in reason[:80])
            failed[shown] += _number(status, reason, path)
    other = missing - sum(failed.values())
    return failed | ({"other": other} if other > 0 else {})


def account(stats: Sequence[ShardStats | None]) -> str | None:
    """Return the sums over shards in one line; None if no shard has statistics."""
    known = [each for each in stats if each is not None]
    if not known:
        return None
    rows, successes = sum(each.rows for each in known), sum(each.successes for each in known)
    failed: Counter[str] = Counter()
    for each in known:
        failed.update(each.failed)
    line = f"{successes:,} of {rows:,} rows were downloaded"
    if missing := rows - successes:
        shown = [f"{reason} {100 * n / rows:.1f}%" for reason, n in failed.most_common(_REASONS_SHOWN)]
        shown += ["…"] if len(failed) > _REASONS_SHOWN else []
        line += f" ({100 * missing / rows:.1f}% missing: {', '.join(shown)})"
    without = len(stats) - len(known)
    return line + (f"; {without:,} of {len(stats):,} shards have no statistics" if without else "")
