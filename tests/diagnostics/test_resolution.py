"""Latency and accuracy over image sizes: of an image, in order."""

from collections.abc import Callable

import pytest

from mmrep.config.checks import ConfigError
from mmrep.diagnostics.resolution import latency, over_resolution
from mmrep.model.dual_encoder import DualEncoder


@pytest.fixture
def model(tiny: Callable[..., DualEncoder]) -> DualEncoder:
    return tiny("ggem", seed=1).eval()


def test_latency_is_of_an_image(model: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    ticks = iter([0.0, 0.5, 100.0, 100.5, 200.0, 205.0, 210.0, 211.0, 220.0, 222.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    hook = model.image.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    seconds = latency(model, batch=4, repeats=3)
    hook.remove()
    assert shapes == [(4, 3, 16, 16)] * 5
    # Batches that count take 5, 1 and 2 s; the two before them, 0.5 s each, are warm-up.
    assert seconds == 0.25
    with pytest.raises(ConfigError, match="latency: repeats: expected a value ≥ 1"):
        latency(model, repeats=0)


def test_points_come_in_the_order_of_sizes(model: DualEncoder) -> None:
    points = over_resolution(model, [24, 8, (16, 8)], lambda m: m.image.patches / 100, batch=2, repeats=1)
    assert [point.size for point in points] == [(24, 24), (8, 8), (16, 8)]
    assert [point.patches for point in points] == [36, 4, 8]
    assert [point.accuracy for point in points] == [0.36, 0.04, 0.08]
    assert all(point.ms > 0 for point in points)
