"""Heat maps and sheets: the right colours in the right places."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmrep.config.checks import ConfigError
from mmrep.diagnostics.pictures import colours, contact_sheet, heat_map_picture, original_picture

GREY = torch.full((3, 16, 16), 128, dtype=torch.uint8)


def test_colours_run_from_blue_over_grey_to_red() -> None:
    found = colours(torch.tensor([[-2.0, -1.0, 0.0, 0.5, 1.0, 2.0]]), 1.0)[0].astype(int)
    assert (found[0] == found[1]).all() and (found[4] == found[5]).all()
    assert found[1, 2] > found[1, 0] + 100 and found[4, 0] > found[4, 2] + 100
    assert len(set(found[2].tolist())) == 1
    assert (abs(2 * found[3] - found[2] - found[4]) <= 1).all()


def test_a_patch_is_coloured_where_it_lies() -> None:
    weights = torch.zeros(2, 4)
    weights[0, 3], weights[1, 0] = 1.0, -1.0
    picture = np.asarray(heat_map_picture(GREY, weights, side=80)).astype(int)
    assert picture.shape == (80, 80, 3)
    red, blue = picture[:40, 60:].reshape(-1, 3), picture[40:, :20].reshape(-1, 3)
    assert (red == red[0]).all() and red[0, 0] > red[0, 2] + 50
    assert (blue == blue[0]).all() and blue[0, 2] > blue[0, 0] + 50
    pale = picture[:40, :60].reshape(-1, 3)
    assert (pale.max(1) - pale.min(1) == 0).all()


def test_a_shared_limit_makes_pictures_comparable() -> None:
    weak, strong = torch.full((2, 2), 0.1), torch.full((2, 2), 0.4)
    alone = [np.asarray(heat_map_picture(GREY, w)) for w in (weak, strong)]
    shared = [np.asarray(heat_map_picture(GREY, w, limit=0.4)) for w in (weak, strong)]
    assert (alone[0] == alone[1]).all() and (shared[1] == alone[1]).all()
    assert (shared[0] != shared[1]).any()


def test_weights_of_zero_and_images_that_are_not_square() -> None:
    image = torch.zeros(3, 8, 16, dtype=torch.uint8)
    assert heat_map_picture(image, torch.zeros(2, 4), side=64).size == (64, 32)
    assert original_picture(image, side=64).size == (64, 32)


def test_a_sheet_shows_every_picture_behind_its_label() -> None:
    red, blue = Image.new("RGB", (50, 40), (255, 0, 0)), Image.new("RGB", (50, 40), (0, 0, 255))
    sheet = contact_sheet([("avg", [red, blue]), ("a much longer label", [blue])], titles=["one", "two"], limit=0.1)
    pixels = np.asarray(sheet)
    counts = [(pixels == colour).all(2).sum() for colour in ((255, 0, 0), (0, 0, 255))]
    assert counts == [50 * 40, 2 * 50 * 40]
    left = np.argwhere((pixels == (255, 0, 0)).all(2))[:, 1].min()
    text = (pixels.max(2) < 120)[:, :left].any(0)
    assert text.sum() > 50 and not text[:8].any()


def test_a_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="no pictures"):
        contact_sheet([])
    with pytest.raises(ConfigError, match="expected 1 titles or none, got 2"):
        contact_sheet([("a", [Image.new("RGB", (4, 4))])], titles=["x", "y"])
