"""Pictures that two arms answer differently, as typed scenes. Only images that are part of results.json are taken."""

import re

from mmrep.study.report.facts import Facts
from mmrep.study.report.model import Gallery, Scene, Section, Shot
from mmrep.study.results import Picture, PictureSet

_DATA = re.compile(r"data:image/(jpeg|png|webp);base64,[A-Za-z0-9+/=]+")


def _safe(uri: str | None) -> str:
    """Return a data-URI of a picture, or an empty text for any other address."""
    return uri if uri and _DATA.fullmatch(uri) else ""


def _classified(item: Picture, pools: list[str], right: str) -> Scene:
    """Return a classified image: above it the picture, below it each arm's weights and answer."""
    caption = item.get("caption", "")
    image = Shot("image", _safe(item.get("image")), f"Test image: {caption}") if item.get("image") else None
    maps, answers = item.get("maps", {}), item.get("answers", {})
    rows = []
    for pool in dict.fromkeys([*pools, *answers, *maps]):
        answer = answers.get(pool, "")
        shot = Shot(
            pool, _safe(maps.get(pool)), f"Patch weights of {pool} on the image: {caption}", answer, pool == right
        )
        rows.append((pool, [shot], ""))
    return Scene(caption, image, rows)


def _retrieved(item: Picture, pools: list[str]) -> Scene:
    """Return a query with each arm's first images."""
    query, rows = item.get("query") or item.get("caption", ""), []
    for pool in dict.fromkeys([*pools, *item.get("tops", {})]):
        tops, rank = item.get("tops", {}).get(pool, []), item.get("right", {}).get(pool)
        shots = [
            Shot(
                str(i + 1),
                _safe(uri),
                f"{pool}, rank {i + 1}{': the right image' if i == rank else ''}",
                right=i == rank,
            )
            for i, uri in enumerate(tops)
        ]
        found = rank is not None and 0 <= rank < len(tops)
        remark = (
            "" if found else f"right one at rank {rank + 1}" if rank is not None else f"not among the first {len(tops)}"
        )
        rows.append((pool, shots, remark))
    image = Shot("query", _safe(item.get("image")), f"Query image: {query}") if item.get("image") else None
    return Scene(query, image, rows)


def _gallery(group: PictureSet) -> Gallery:
    pools = [group["a"], group["b"]]
    if group.get("kind") == "retrieval":
        caption = "The first images that each head returns for a caption. The right one has a frame and a tick."
        return Gallery(group["title"], caption, [_retrieved(item, pools) for item in group["items"]])
    caption = (
        "Chosen because the two heads differ, so they do not show how often that happens; the tables do. Below each "
        "image: where each head looks, and what it answers."
    )
    return Gallery(group["title"], caption, [_classified(item, pools, group["a"]) for item in group["items"]])


def section(facts: Facts) -> Section | None:
    """Return the section of pictures."""
    groups = facts.results.get("pictures") or []
    none = [f"{group['title']}." for group in groups if not group["items"]]
    blocks = [_gallery(group) for group in groups if group["items"]]
    return Section("pictures", "Pictures", none, [*blocks]) if groups else None
