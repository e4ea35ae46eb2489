"""The list of a run's shards, by which a later difference of the data is named."""

from collections import Counter
from pathlib import Path

from mmrep.data.sources import Sources

_NAMED = 3


def write_inventory(sources: Sources, place: Path) -> None:
    """Writes a line for each shard: source, name, samples, digest of its index."""
    # Renamed when complete: a run that is killed here must find the old list or the new one.
    temporary = place.with_name(f"{place.name}.tmp")
    temporary.write_text("".join(f"{line}\n" for line in _lines(sources)), encoding="utf-8")
    temporary.replace(place)


def name_difference(place: Path, sources: Sources) -> str:
    """What differs between the shards of an inventory and those of now; empty where nothing does, or nobody knows."""
    if not place.is_file():
        return ""
    try:
        before = _table(place.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    except ValueError:
        return f"{place} is damaged, so that nobody knows which"
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
        found.append("the shards stand in another order")
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return "; ".join(sorted(found)[:_NAMED]) + more


def _lines(sources: Sources) -> list[str]:
    catalog = sources.catalog
    return [
        f"{sources.source_of(i)}/{catalog.name(i)}\t{catalog.samples[i]}\t{catalog.digests[i].decode()}"
        for i in range(len(catalog))
    ]


def _table(lines: list[str]) -> dict[str, tuple[str, str]]:
    """Samples and digest by name; of shards with one name in several folders the later ones are numbered."""
    seen: Counter[str] = Counter()
    table = {}
    for line in lines:
        name, samples, digest = line.rsplit("\t", 2)
        seen[name] += 1
        table[name if seen[name] == 1 else f"{name} (number {seen[name]} of that name)"] = samples, digest
    return table
