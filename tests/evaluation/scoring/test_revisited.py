"""The protocol of Revisited Oxford and Paris: cases with known answers, a reference written out, and chance."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmrep.evaluation.scoring.order import QueryScores
from mmrep.evaluation.scoring.revisited import score_queries
from mmrep.evaluation.sources.ground_truth import GroundTruth, Query

K = (1, 5, 10)


def query(easy: list[int], hard: list[int], junk: list[int]) -> Query:
    return Query("q", None, *(np.array(part, dtype=np.int64) for part in (easy, hard, junk)))


def truth(gallery: int, *queries: Query) -> GroundTruth:
    return GroundTruth(tuple(map(str, range(gallery))), queries)


def in_order(order: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A query, and a gallery that it gets in this order."""
    angles = torch.empty(len(order))
    angles[order] = torch.linspace(0.1, 3, len(order))
    return torch.tensor([[1.0, 0.0]]), torch.stack([angles.cos(), angles.sin()], dim=1)


def scored(order: list[int], *queries: Query) -> QueryScores:
    one, gallery = in_order(order)
    return score_queries(one.repeat(len(queries), 1), gallery, truth(len(order), *queries))


def by_the_rule(order: list[int], right: set[int], junk: set[int]) -> list[float]:
    """Average precision by trapezoids and precision at 1, 5, 10, as the paper's section 3 and its evaluation define."""
    counted = [each for each in order if each not in junk]
    places = [place for place, each in enumerate(counted) if each in right]
    area = 0.0
    for nth, place in enumerate(places):
        before = 1.0 if place == 0 else nth / place
        area += (before + (nth + 1) / (place + 1)) / 2 / len(right)
    at = [min(places[-1] + 1, k) for k in K]
    return [area, *(sum(place < k for place in places) / k for k in at)]


def test_junk_before_the_positives_is_taken_out() -> None:
    found = scored([5, 4, 0, 3, 1, 2], query(easy=[0, 1], hard=[2], junk=[4, 5])).values
    # Easy: 4, 5 and the hard 2 are out, which leaves 0 3 1.
    assert found["easy_map"][0] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert [found[f"easy_mp@{k}"][0] for k in K] == pytest.approx([1, 2 / 3, 2 / 3])
    # Medium: 0 3 1 2.
    assert found["medium_map"][0] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2 + (2 / 3 + 3 / 4) / 2) / 3)
    # Hard: 3 2, with the easy ones out.
    assert found["hard_map"][0] == pytest.approx((0 + 1 / 2) / 2)
    assert [found[f"hard_mp@{k}"][0] for k in K] == pytest.approx([0, 1 / 2, 1 / 2])


def test_a_query_without_positives_is_left_out() -> None:
    found = scored([0, 1, 2], query([0], [], [1]), query([], [2], []), query([], [], [0]))
    assert [math.isnan(value) for value in found.values["easy_map"]] == [False, True, True]
    assert [math.isnan(value) for value in found.values["medium_mp@5"]] == [False, False, True]
    assert [math.isnan(value) for value in found.values["hard_map"]] == [True, False, True]
    for part in found:
        assert all(np.array_equal(np.isnan(part[name]), np.isnan(found.values[name])) for name in found.values)


def test_any_order_is_scored_by_the_rule() -> None:
    generator = np.random.default_rng(0)
    for _ in range(30):
        count = int(generator.integers(5, 40))
        order = generator.permutation(count).tolist()
        grades = generator.integers(0, 4, count)
        grades[:2] = 0, 1
        easy, hard, junk = ({i for i in range(count) if grades[i] == g} for g in range(3))
        found = scored(order, query(sorted(easy), sorted(hard), sorted(junk))).values
        for setup, right, out in (
            ("easy", easy, junk | hard), ("medium", easy | hard, junk), ("hard", hard, junk | easy),
        ):  # fmt: skip
            names = (f"{setup}_map", *(f"{setup}_mp@{k}" for k in K))
            assert [found[name][0] for name in names] == pytest.approx(by_the_rule(order, right, out))


def test_ties_count_against_the_right_answer_beside_the_figures() -> None:
    gallery = F.normalize(torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0]]), dim=1)
    found = score_queries(gallery[:1], gallery, truth(4, query([0], [], [1])))
    assert (found.values["easy_mp@1"][0], found.pessimistic["easy_mp@1"][0]) == (1, 0)
    assert found.pessimistic["easy_map"][0] == pytest.approx(0.25)
    # Junk that ties with the right one is out either way.
    found = score_queries(gallery[:1], gallery, truth(4, query([0], [], [1, 3])))
    assert found.pessimistic["easy_map"][0] == 1
    # What ties with junk alone does not tie with the right one before it.
    gallery = F.normalize(torch.tensor([[1.0, 0], [1, 1], [1, 1]]), dim=1)
    assert score_queries(gallery[:1], gallery, truth(3, query([0], [], [1]))).pessimistic["easy_map"][0] == 1


@pytest.mark.parametrize(("easy", "junk", "gallery"), [(1, 2, 7), (3, 0, 6), (2, 1, 8), (1, 0, 1), (2, 0, 2)])
def test_chance_is_the_mean_over_all_orders(easy: int, junk: int, gallery: int) -> None:
    own = query(list(range(easy)), [], list(range(easy, easy + junk)))
    chance = scored(list(range(gallery)), own).chance
    right, out = set(range(easy)), set(range(easy, easy + junk))
    # All sets of places that the right ones may take among those that count.
    counted = [each for each in range(gallery) if each not in out]
    rules = []
    for places in itertools.combinations(range(len(counted)), easy):
        order, others = [-1] * len(counted), iter(each for each in counted if each not in right)
        for nth, place in enumerate(places):
            order[place] = nth
        order = [next(others) if each < 0 else each for each in order]
        rules.append(by_the_rule(order, right, out))
    expected = np.mean(rules, axis=0)
    assert [chance["easy_map"][0], *(chance[f"easy_mp@{k}"][0] for k in K)] == pytest.approx(expected.tolist())
