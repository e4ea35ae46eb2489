"""Latency and accuracy over image sizes: of an image, in order."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from torch.utils.benchmark import Timer

from mmrep.config.checks import ConfigError
from mmrep.diagnostics.resolution import latency, over_resolution
from mmrep.model.dual_encoder import DualEncoder


@pytest.fixture
def model(tiny: Callable[..., DualEncoder]) -> DualEncoder:
    return tiny("ggem", seed=1).eval()


def test_latency_is_of_an_image_in_the_fastest_batch(model: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    asked: list[float] = []

    def measure(timer: Timer, min_run_time: float) -> SimpleNamespace:
        timer.timeit(1)
        asked.append(min_run_time)
        assert not model.training
        return SimpleNamespace(times=[5.0, 1.0, 2.0])

    monkeypatch.setattr(Timer, "blocked_autorange", measure)
    hook = model.image.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    model.train()
    assert latency(model, batch=4, seconds=0.01) == 0.25
    hook.remove()
    assert set(shapes) == {(4, 3, 16, 16)} and asked == [0.01] and model.training
    model.eval()
    with pytest.raises(ConfigError, match="latency: batch: expected a value ≥ 1"):
        latency(model, batch=0)


def test_points_come_in_the_order_of_sizes(model: DualEncoder) -> None:
    points = over_resolution(model, [24, 8, (16, 8)], lambda m: m.image.patches / 100, batch=2, seconds=0.0)
    assert [point.size for point in points] == [(24, 24), (8, 8), (16, 8)]
    assert [point.patches for point in points] == [36, 4, 8]
    assert [point.accuracy for point in points] == [0.36, 0.04, 0.08]
    assert all(point.ms > 0 for point in points)
