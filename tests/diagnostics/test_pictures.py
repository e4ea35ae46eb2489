"""Heat maps and sheets of patch weights: the right colours in the right places, a legend, a note without weights."""

import importlib.util
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from mmrep.config.checks import ConfigError
from mmrep.diagnostics import pictures
from mmrep.diagnostics.maps import patch_weights
from mmrep.diagnostics.pictures import heat_map_picture, weights_sheet
from mmrep.model.dual_encoder import DualEncoder

GREY = torch.full((3, 16, 16), 128, dtype=torch.uint8)


def test_a_patch_is_coloured_where_it_lies() -> None:
    weights = torch.zeros(2, 4)
    weights[0, 3], weights[1, 0] = 1.0, -1.0
    picture = np.asarray(heat_map_picture(GREY, weights)).astype(int)
    rows, columns = picture.shape[0] // 2, picture.shape[1] // 4
    red, blue = picture[rows // 2, 3 * columns + columns // 2], picture[rows + rows // 2, columns // 2]
    assert red[0] > red[2] + 50 and blue[2] > blue[0] + 50
    pale = picture[rows // 2, columns // 2]
    assert pale.max() - pale.min() < 15


def test_a_shared_limit_makes_pictures_comparable() -> None:
    weak, strong = torch.full((2, 2), 0.1), torch.full((2, 2), 0.4)
    alone = [np.asarray(heat_map_picture(GREY, w)) for w in (weak, strong)]
    shared = [np.asarray(heat_map_picture(GREY, w, limit=0.4)) for w in (weak, strong)]
    assert (alone[0] == alone[1]).all() and (shared[1] == alone[1]).all()
    assert (shared[0] != shared[1]).any()


def test_normalised_pixels_look_like_stored_ones() -> None:
    """As `model.preprocess` returns them."""
    stored = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    normalised = (stored.float() / 255 - 0.5) / 0.25
    first, second = (np.asarray(heat_map_picture(image, torch.zeros(2, 2))) for image in (stored, normalised))
    assert abs(first.astype(int) - second.astype(int)).max() <= 1


def test_what_preprocess_returns_is_drawn(tiny: Callable[..., DualEncoder]) -> None:
    model = tiny("avg")
    image = model.preprocess(Image.new("RGB", (40, 30), (200, 30, 30)))
    weights = patch_weights(model, image[None])
    assert heat_map_picture(image, weights[0]).mode == "RGB"


def test_weights_of_zero_and_images_that_are_not_square() -> None:
    picture = heat_map_picture(torch.zeros(3, 8, 16, dtype=torch.uint8), torch.zeros(2, 4))
    assert picture.width == 2 * picture.height


def test_a_sheet_has_a_title_a_legend_and_a_word_for_heads_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    figures, rendered = [], pictures._rendered
    monkeypatch.setattr(pictures, "_rendered", lambda figure: figures.append(figure) or rendered(figure))
    weights_sheet([GREY, GREY], [("avg", torch.full((2, 4, 4), 0.1)), ("cls", torch.zeros(2, 4, 4))])
    (figure,) = figures
    assert figure.get_suptitle() == pictures.TITLE
    assert [axes.get_ylabel() for axes in figure.axes] == ["image", "", "", "avg", "", "weight", "cls", "", ""]
    said = {axes.get_ylabel(): axes.texts[0].get_text() for axes in figure.axes if axes.texts}
    assert said == {"cls": pictures.NOTHING}


def test_a_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="no images"):
        weights_sheet([], [])


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^pictures need matplotlib: pip install 'mmrep\[plots\]'$"):
        heat_map_picture(GREY, torch.zeros(2, 2))
