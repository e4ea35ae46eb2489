"""The model card says what the run's files say, and nothing that they don't."""

from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from mmrep.config.checks import ConfigError
from mmrep.config.data import DataConfig, SourceConfig
from mmrep.config.model import ImageConfig, ModelConfig, TextConfig
from mmrep.config.training import OptimConfig, TrainingConfig
from mmrep.config.tree import TrainConfig
from mmrep.hub.card import model_card

RESULTS: list[dict[str, Any]] = [
    {
        "model": "runs/x/final",
        "dataset": "cifar10",
        "task": "zeroshot",
        "n": 10000,
        "metrics": {"acc1": 0.43215, "acc5": 0.91},
        "chance": {"acc1": 0.1, "acc5": 0.5},
    },
    {"dataset": "photos", "task": "retrieval", "n": 200, "metrics": {"image_retrieval_recall@5": 0.25}},
]


def config(*sources: SourceConfig, pool: Any = None) -> dict[str, Any]:
    return TrainConfig(
        seed=7,
        model=ModelConfig(
            pool=pool or {"name": "ggem", "args": {"groups": 12, "negatives": "signed"}},
            embed_dim=64,
            image=ImageConfig(trunk="vit_tiny_patch16_224", args={"img_size": 32}),
            text=TextConfig(width=64, heads=2, layers=2),
        ),
        data=DataConfig(train=list(sources) or [SourceConfig("cc3m/{000..331}.tar")]),
        optim=OptimConfig(lr=1e-3, warmup=50),
        training=TrainingConfig(steps=300, global_batch=128, precision="bf16"),
    ).to_dict()


def rows(card: str) -> list[list[str]]:
    """Cells of all table rows."""
    lines = [line for line in card.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines]


def test_recipe_names_what_the_config_says() -> None:
    table = {row[0]: row[1] for row in rows(model_card("jane/x", config(), None, version="0.1.0")) if len(row) == 2}
    assert table["pooling"] == "`ggem` (groups 12, negatives signed)"
    assert table["trunk"] == "`vit_tiny_patch16_224` (img_size 32)"
    assert table["trunk's pretrained weights"] == "no"
    assert table["loss"] == "`infonce` (duplicates auto)"
    assert table["data"] == "`cc3m/{000..331}.tar` (captions: `txt`)"
    assert table["steps"] == "300" and table["global batch"] == "128" and table["pairs seen"] == "38,400"
    assert table["learning rate"] == "0.001" and table["schedule"] == "`cosine` (warmup 50)"
    assert table["precision"] == "bf16" and table["seed"] == "7" and table["mmrep"] == "0.1.0"
    assert "model" not in table, "no model was named"


def test_results_come_with_chance_and_sample_count() -> None:
    table = rows(model_card("jane/x", config(), RESULTS))
    assert ["cifar10", "zeroshot", "10000", "`acc1`", "0.4321", "0.1000"] in table
    assert ["cifar10", "zeroshot", "10000", "`acc5`", "0.9100", "0.5000"] in table
    assert ["photos", "retrieval", "200", "`image_retrieval_recall@5`", "0.2500", "–"] in table


@pytest.mark.parametrize("license", [None, "apache-2.0"])
def test_metadata_as_the_hub_reads_it(license: str | None) -> None:
    card = ModelCard(model_card("jane/x", config(), RESULTS, license))
    data = card.data.to_dict()
    assert data["library_name"] == "mmrep"
    assert data["pipeline_tag"] == "zero-shot-image-classification"
    assert data["tags"] == ["clip", "image-text", "pooling-ggem"]
    assert [(r.dataset_name, r.task_type, r.metric_type, r.metric_value) for r in card.data.eval_results or []] == [
        ("cifar10", "zeroshot", "acc1", 0.43215),
        ("cifar10", "zeroshot", "acc5", 0.91),
        ("photos", "retrieval", "image_retrieval_recall@5", 0.25),
    ]
    assert data.get("license") == license
    assert ("No licence is stated" in card.text) is (license is None)


def test_only_numbers_go_into_the_metadata() -> None:
    entry = {"dataset": "photos", "task": "retrieval", "n": 3, "metrics": {"a": float("nan"), "b": None, "c": 0.5}}
    card = ModelCard(model_card("jane/x", None, [entry, {"metrics": {"d": 1.0}}]))
    assert [(each.metric_type, each.metric_value) for each in card.data.eval_results or []] == [("c", 0.5)]
    assert {row[3] for row in rows(card.content)[2:]} == {"`a`", "`b`", "`c`", "`d`"}


@pytest.mark.parametrize(
    ("schedule", "says"),
    [("constant", "`constant`"), ("cosine", "`cosine`"), ("cooldown", "`cooldown` (cooldown 0.3)")],
)
def test_the_schedule_is_told_with_the_options_that_it_reads(schedule: str, says: str) -> None:
    recipe = {**config(), "optim": {"schedule": schedule, "cooldown": 0.3, "warmup": 0}}
    assert ["schedule", says] in rows(model_card("jane/x", recipe, None))


@pytest.mark.parametrize("license", ["MIT License", "mit\nlibrary_name: evil", ""])
def test_license_is_an_identifier(license: str) -> None:
    with pytest.raises(ConfigError, match=r"license: expected an identifier such as apache-2\.0"):
        model_card("jane/x", config(), None, license)


def test_labels_do_not_pass_for_captions() -> None:
    named, written = SourceConfig("cifar/{0..9}.tar", caption="cls"), SourceConfig("cc3m/{000..331}.tar")
    assert "class-name contrast" in model_card("jane/x", config(named), None)
    assert "class-name contrast" not in model_card("jane/x", config(written), None)
    assert "class-name contrast" not in model_card("jane/x", config(named, written), None)


def test_short_form_of_a_pool_and_a_named_model() -> None:
    recipe = TrainConfig(model=ModelConfig(name="ViT-B-16", pool="avg"), data=DataConfig([SourceConfig("a.tar")]))
    card = model_card("jane/x", recipe.to_dict(), None)
    assert "pooling-avg" in card and "that of `ViT-B-16`, pools with `avg`" in card


def test_a_swapped_head_is_told() -> None:
    fresh = ModelConfig(name="ViT-B-16", pool="map", weights="runs/x")
    swapped = ModelConfig(name="ViT-B-16", pool="map", weights="runs/x", pool_init="preserve")
    data = DataConfig([SourceConfig("a.tar")])
    cards = [model_card("jane/x", TrainConfig(model=model, data=data).to_dict(), None) for model in (fresh, swapped)]
    assert ["preserved the trained embedding" in card for card in cards] == [False, True]


def test_loading_names_the_repository() -> None:
    card = model_card("jane/x", None, None)
    assert 'mmrep.load("hf-hub:jane/x")' in card
    assert "open_clip" not in card
    exported = model_card("jane/x", None, None, files=["open_clip_config.json"])
    assert 'open_clip.create_model_and_transforms("hf-hub:jane/x")' in exported
    assert "open_clip" in ModelCard(exported).data.to_dict()["tags"]


def test_unknown_recipe_and_results_are_said_to_be_unknown() -> None:
    card = model_card("jane/x", None, None)
    assert "The recipe is not recorded" in card and "No results are recorded" in card
    assert rows(card) == []


def test_markup_in_values_stays_inert() -> None:
    sources = SourceConfig(["a|b`c.tar", "<script>.tar"])
    bad = [{"dataset": "<b>|x\n# _y_ a_b", "task": "zeroshot", "n": 1, "metrics": {"acc1": 1.0}, "chance": {}}]
    card = model_card("jane/x", config(sources), bad)
    assert r"`a\|b'c.tar`, `<script>.tar`" in card
    assert r"| \<b\>\|x \# \_y\_ a_b | zeroshot | 1 |" in card


def test_damaged_entry_is_named() -> None:
    with pytest.raises(ConfigError, match=r'results: entry \{"dataset": "cifar10"\} has no metrics'):
        model_card("jane/x", None, [{"dataset": "cifar10"}])


def test_partial_config_gives_a_partial_recipe() -> None:
    card = model_card("jane/x", {"model": {"pool": 3}, "training": {"steps": 5}}, None)
    assert [row for row in rows(card) if row[0] == "steps"] == [["steps", "5"]]
    assert yaml.safe_load(card.split("---")[1])["tags"] == ["clip", "image-text"]


def test_a_head_of_ones_own_is_named() -> None:
    card = model_card("user/x", {"plugins": ["my_heads"]}, None)
    assert "Before you load the model, import `my_heads`." in card
    assert "Before you load" not in model_card("user/x", {"plugins": []}, None)
