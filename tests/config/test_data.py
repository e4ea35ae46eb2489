"""Options of the data: what is refused, in words that name the field."""

from typing import Any

import pytest

from mmrep.config.checks import ConfigError
from mmrep.config.data import DataConfig, SourceConfig, ValidationConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shards": ""}, "a source needs `shards`"),
        ({"shards": []}, "a source needs `shards`"),
        ({"caption": "text"}, r"data\.train caption: unknown value 'text' \(valid: txt, cls, json:KEY\)"),
        ({"caption": "json:"}, "unknown value 'json:'"),
        ({"caption": {}}, "expected at least one kind"),
        ({"caption": {"txt": 0.5, "alt": 0.5}}, "unknown value 'alt'"),
        ({"caption": {"txt": 0.0, "cls": 1.0}}, r"caption txt: expected a value > 0, got 0\.0"),
        ({"weight": 0.0}, "weight: expected a value > 0"),
        ({"shards": "https://me:secret@host/0.tar"}, "a password in an address"),
        ({"shards": ["0.tar", "s3::ftp://me:secret@host/0.tar"]}, "a password in an address"),
    ],
)
def test_sources(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        SourceConfig(**({"shards": "0.tar"} | fields))
    assert "secret" not in str(error.value)


def test_addresses_with_an_at_sign_are_no_passwords() -> None:
    address = "abfs://container@account.host/0.tar"
    assert SourceConfig(address).shards == address


def test_caption_shares_sum_to_one() -> None:
    assert SourceConfig("0.tar", caption={"txt": 3, "json:b": 1}).caption_shares() == {"txt": 0.75, "json:b": 0.25}
    assert SourceConfig("0.tar", caption="cls").caption_shares() == {"cls": 1.0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": "centre"}, r"data\.crop: unknown value 'centre'"),
        ({"min_scale": 0.0}, r"data\.min_scale: expected a value from 0\.01 to 1"),
        ({"flip": 1.5}, r"data\.flip"),
        ({"max_bad_fraction": 0.6}, r"data\.max_bad_fraction: expected a value from 0 to 0\.5"),
        ({"shuffle_block": 0}, r"data\.shuffle_block: expected a value ≥ 1"),
        ({"decoded_gb": -1.0}, r"data\.decoded_gb"),
        ({"cache_gb": 0.0}, r"data\.cache_gb: expected a value > 0"),
        ({"sizes": {}}, r"data\.sizes: expected the size from step 0 on"),
        ({"sizes": {10: 32}}, r"data\.sizes: expected the size from step 0 on"),
        ({"sizes": {0: 0}}, r"data\.sizes: a size"),
        ({"sizes": {-1: 8, 0: 8}}, r"data\.sizes: a step"),
        ({"train": [SourceConfig("a"), SourceConfig("b", weight=1.0)]}, "give every source a weight, or none"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_data(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(**fields)


def test_validation() -> None:
    with pytest.raises(ConfigError, match=r"data\.validation\.fraction: expected a value from 0 to 0\.5"):
        ValidationConfig(fraction=0.9)
    with pytest.raises(ConfigError, match=r"data\.validation\.max_samples"):
        ValidationConfig(max_samples=0)
