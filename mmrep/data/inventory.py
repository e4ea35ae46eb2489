"""The list of a run's shards, which names later differences of the data."""

from collections import Counter
from pathlib import Path

from mmrep.data.sources import Sources
from mmrep.files import write_text

_NAMED = 3


def write_inventory(sources: Sources, place: Path) -> None:
    """Write a line for each shard: source, name, number of samples, digest of its index."""
    write_text(place, "".join(f"{line}\n" for line in _lines(sources)))


def name_difference(place: Path, sources: Sources) -> str:
    """Return how the shards of an inventory differ from the present ones; empty if they don't, or it is missing."""
    if not place.is_file():
        return ""
    try:
        before = _table(place.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    except ValueError:
        return f"{place} is damaged, so the difference is unknown"
    now = _table(_lines(sources))
    found = [f"{name} is gone" for name in before if name not in now]
    found += [f"{name} is new" for name in now if name not in before]
    for name in before.keys() & now.keys():
        (samples, digest), (samples_now, digest_now) = before[name], now[name]
        if samples != samples_now:
            found.append(f"{name} had {samples} samples, has {samples_now}")
        elif digest != digest_now:
            found.append(f"{name} has other members")
    if not found and list(before) != list(now):
        found.append("the order of the shards has changed")
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return "; ".join(sorted(found)[:_NAMED]) + more


def _lines(sources: Sources) -> list[str]:
    catalog = sources.catalog
    return [
        f"{sources.source_of(i)}/{catalog.name(i)}\t{catalog.samples[i]}\t{catalog.digests[i].decode()}"
        for i in range(len(catalog))
    ]


def _table(lines: list[str]) -> dict[str, tuple[str, str]]:
    """Return number of samples and digest by name. Equal names from several folders are numbered."""
    seen: Counter[str] = Counter()
    table = {}
    for line in lines:
        name, samples, digest = line.rsplit("\t", 2)
        seen[name] += 1
        table[name if seen[name] == 1 else f"{name} (number {seen[name]} of that name)"] = samples, digest
    return table
