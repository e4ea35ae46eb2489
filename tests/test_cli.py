"""The command line: errors of one line with the right status before torch is imported, and the verbs themselves."""

import io
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY_MODEL, colour_samples, write_tar

from mmrep.cli import VERBS, main
from mmrep.cli.pack import FORMATS
from mmrep.cli.parsing import parse
from mmrep.cli.terminal import say
from mmrep.config.checks import ConfigError
from mmrep.config.tree import CompareConfig, TrainConfig
from mmrep.model.dual_encoder import DualEncoder

ROOT = Path(__file__).parents[1]

WRONG = {
    "unknown verb": ("trian", "unknown verb 'trian'; did you mean 'train'? (valid: train, compare"),
    "unknown key": ("train --config {config} --optim.lrr 3", "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
    "unknown key in the file": ("train --config {typo}", "unknown key 'trian'"),
    "wrong type": ("train --config {config} --optim.lr fast", "optim.lr: expected float, got 'fast'"),
    "unknown pooling": ("train --config {config} --model.pool gegem", "did you mean 'ggem'"),
    "unknown argument": ("train --config {config} --model.pool ggem --model.pool.args.group 3", "no argument 'group'"),
    "wrong argument type": ("train --config {config} --model.pool gem --model.pool.args.p no", "expected float, got"),
    "impossible value": ("train --config {config} --training.steps 0", "training.steps: expected a value ≥ 1, got 0"),
    "impossible rate": ("train --config {config} --optim.lr -1", "optim.lr: expected a value > 0, got -1.0"),
    "warm-up too long": ("train --config {config} --optim.warmup 99", "optim.warmup + optim.cooldown: expected at"),
    "batch": ("train --config {config} --training.micro_batch 3", "3 × 1 processes = 3 pairs, but global_batch is 8"),
    "no such config": ("train --config {root}/none.yaml", "--config: no such file: {root}/none.yaml"),
    "not YAML": ("train --config {broken}", "broken.yaml: not YAML (line 2"),
    "no model": ("train", "model: give model.name"),
    "no value": ("train --model.pool", "--model.pool: expected a value"),
    "missing shard": ("train --config {config} --data.train.shards {root}/{{0..3}}.tar", "{root}/0.tar (one of 4"),
    "no shards in a folder": ("train --config {config} --data.train.shards {root}", "no .tar file in folder"),
    "missing class names": ("train --config {config} --data.train.caption cls", "no classnames.txt beside"),
    "unknown caption": ("train --config {config} --data.train.caption text", "valid: txt, cls, json:KEY"),
    "missing set": ("train --config {config} --evaluation.sets '[{{path: {root}/none}}]'", "no such folder"),
    "study option": ("train --config {config} --study.seeds [0]", "studies are run by `mmrep compare`"),
    "empty output": ("train --config {config} --output_dir ''", "output_dir: expected a folder"),
    "output is a file": ("train --config {config} --output_dir {config}", "is a file, not a folder"),
    "no pooling": ("train --config {config} --model.pool ''", "--model.pool: expected a value"),
    "list as pooling": ("train --config {config} --model.pool [avg]", "--model.pool: expected a name"),
    "open brace": ("train --config {config} --model.pool {{{{", "not YAML (line 1"),
    "list as config": ("train --config {list}", "list.yaml: expected keys and values at the top, got list"),
    "empty config": ("train --config {empty}", "got an empty file"),
    "short option": ("train --config {config} --lr 1", "did you mean 'optim.lr'?"),
    "empty study": ("compare --config {study} --study.pools []", "study.pools: expected at least one head"),
    "seeds": ("compare --config {study} --study.seeds [0,0]", "each seed once"),
    "baseline": ("compare --config {study} --study.baseline map", "study.baseline: unknown value 'map'"),
    "resume": ("train --config {config} --resume {root}/none", "resume: no such checkpoint folder"),
    "eval without a set": ("eval --model {root}", "give --suite FILE or --data DIR"),
    "eval without a model": ("eval --data {root}", "--model"),
    "eval of nothing": ("eval --model {root} --data {root}/none", "no such folder"),
    "push name": ("push {root} --repo-id ggem --dry-run", "expected user/name"),
    "push nothing": ("push {root}/none --repo-id a/b --dry-run", "no such folder"),
    "report of a run": ("report {root}/a_run", "a_run: a run, not a study"),
    "report of nothing": ("report {root}/none", "results.json"),
    "sweep of nothing": ("sweep {root}/none", "not a run: it has no config.yaml"),
    "sweep of a p": ("sweep {root} --p 101", "--p: expected values from 0.01 to 100, got 101"),
    "unknown action": ("data pakc", "action: unknown value 'pakc'; did you mean 'pack'?"),
    "check of nothing": ("data check {root}/none.tar", "no such shard"),
    "scenes": ("data scenes --output_dir {root}/scenes --size 3", "scenes.size"),
    "a key twice": ("train --config {twice}", "twice.yaml: not YAML (line 2, column 1): key 'seed' stands twice"),
    "aliases without end": ("train --config {bomb}", "bomb.yaml: too many values or levels for a config"),
    "a name beside a trunk": ("train --config {config} --model.name ViT-B32", "each stand for a model: give one"),
    "which entry": ("train --config {config} --evaluation.sets '[{{path: a}}, {{path: b}}]' --evaluation.sets.split x",
        "--evaluation.sets.split: evaluation.sets is a list of 2: say which entry, as in --evaluation.sets[0].split"),
    "no such entry": ("train --config {config} --data.train[3].shards x", "data.train is a list of 1, numbered from 0"),
    "no list": ("train --config {config} --model.text[0].width 3", "model.text is no list in the files"),
    "a seed past 63 bits": ("train --config {config} --seed 18446744073709551616", "seed: expected"),
    "not a number": ("train --config {config} --optim.lr nan", "optim.lr: expected float, got 'nan'"),
    "an endless rate": ("train --config {config} --optim.lr inf", "optim.lr: expected float, got 'inf'"),
    "an endless prefetch": ("train --config {config} --data.prefetch 1000000000000000", "data.prefetch: expected"),
    "an endless number": ("train --config {config} --training.steps 99999999999999999999", "a value up to 9"),
    "a long value": ("train --config {config} --model.pool {long}", "…"),
    "open_clip's rate": ("train --config {config} --learning_rate 1", "'learning_rate'; use optim.lr"),
    "open_clip's batch": ("train --config {config} --batch-size 1", "use training.global_batch"),
    "open_clip's epochs": ("train --config {config} --epochs 1", "training.steps (steps = epochs × samples / global"),
    "open_clip's cache": ("train --config {config} --accum-freq 2", "this version has no gradient cache"),
    "a rate elsewhere": ("train --config {config} --model.learning_rate 1", "use optim.lr"),
    "a typo in a list": ("train --config {config} --data.train[0].captoin cls",
        "unknown key 'data.train[0].captoin'; did you mean 'caption'?"),
    "a stray word": ("train configs --config {config}", "unexpected 'configs': options begin with --"),
    "a flag's value": ("push {root} --repo_id a/b --dry_run maybe", "dry_run: expected bool, got 'maybe'"),
    "two values": ("eval --model {root} --split a b", "unexpected 'b': options begin with --"),
    "no plugin": ("train --config {config} --plugins no_such_module", "--plugins no_such_module: no such module here"),
    "unknown option": ("report {root} --fast", "unknown key 'fast'; valid: study"),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A right config and wrong ones."""
    root = tmp_path_factory.mktemp("cli")
    write_tar(root / "shards" / "train" / "0.tar", colour_samples(16))
    right: dict[str, Any] = {
        "output_dir": str(root / "run"),
        "model": {
            "pool": {"name": "ggem", "args": {"groups": 2}},
            "embed_dim": 16,
            "image": TINY_MODEL["image"],
            "text": TINY_MODEL["text"],
        },
        "data": {"train": [{"shards": str(root / "shards" / "train")}]},
        "training": {"steps": 2, "global_batch": 8, "log_every": 1},
    }  # fmt: skip
    files = {
        "config": right,
        "study": {**right, "study": {"pools": ["avg", "ggem"], "seeds": [0]}},
        "typo": {**right, "trian": 1},
    }
    for name, content in files.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(content))
    (root / "a_run").mkdir()
    (root / "a_run" / "metrics.jsonl").touch()
    (root / "broken.yaml").write_text("model: {pool: [avg\n")
    (root / "list.yaml").write_text("- a\n- b\n")
    (root / "empty.yaml").write_text("# nothing\n")
    (root / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    layers = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 12))
    (root / "bomb.yaml").write_text("l0: &l0 [x]\n" + layers)
    made = (*files, "broken", "list", "empty", "twice", "bomb")
    return {"root": str(root), "long": "x" * 5000} | {name: str(root / f"{name}.yaml") for name in made}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_clear_line_and_status_2(
    case: str, places: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, message = (text.format(**places) for text in WRONG[case])
    monkeypatch.chdir(places["root"])
    status = main(shlex.split(command))
    out, err = capsys.readouterr()
    assert status == 2, err
    assert err.count("\n") == 1, err
    assert err.startswith(f"mmrep {command.split()[0]}: error: ")
    assert message in err
    assert len(err) < 700
    assert out == ""


def test_errors_and_help_come_before_torch(places: dict[str, str]) -> None:
    commands = [shlex.split(command.format(**places)) for command, _ in WRONG.values()]
    code = f"""
import sys
from mmrep.cli import main
for command in {commands!r} + [["--help"], ["--version"], ["data", "--help"]]:
    status = main(command); assert "torch" not in sys.modules, command
    assert status == (0 if command[-1].startswith("--help") or command == ["--version"] else 2), command
for verb in ("train", "compare", "eval", "embed", "sweep", "push"):
    try:
        main([verb, "--help"])
    except SystemExit as end:
        assert not end.code
heavy = {{"torch", "open_clip", "timm", "accelerate"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=places["root"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_groups_that_do_not_divide_the_trunk_are_found_after_building_it(
    places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", places["config"], "--model.pool.args.groups", "5"]) == 2
    assert "groups must divide the trunk's width 32, got 5; divisors: [1, 2, 4, 8, 16, 32]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "name", "args"),
    [
        ("", "ggem", {"groups": 2}),
        ("--model.pool avg", "avg", {}),
        ("--model.pool.name avg", "avg", {}),
        ("--model.pool.name ggem", "ggem", {"groups": 2}),
        ("--model.pool=gem --model.pool.args.p=4.6", "gem", {"p": 4.6}),
        ("--model.pool.args.groups 4", "ggem", {"groups": 4}),
        ("--model.pool.args.negatives shift", "ggem", {"groups": 2, "negatives": "shift"}),
        ("--model.pool '{name: ggem, args: {groups: 8}}'", "ggem", {"groups": 8}),
    ],
)
def test_pool_options(places: dict[str, str], options: str, name: str, args: dict[str, Any]) -> None:
    config = parse(TrainConfig, "train", ["--config", places["config"], *shlex.split(options)])
    assert (config.model.pooling.name, config.model.pooling.args) == (name, args)


def test_an_unknown_option_of_a_pooling(places: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"--model.pool.groups: unknown option"):
        parse(TrainConfig, "train", ["--config", places["config"], "--model.pool.groups", "3"])


def test_print_config_is_the_resolved_config(places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "--config", places["config"], "--optim.lr", "0.25", "--print_config"])
    assert not end.value.code
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["optim"]["lr"] == 0.25
    assert shown["model"]["pool"] == {"name": "ggem", "args": {"groups": 2}}
    assert shown["training"]["steps"] == 2


def test_help_names_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--help"]) == 0
    shown = capsys.readouterr().out
    for option in ("--config", "--resume", "--model.pool", "--optim.lr", "--training.global_batch", "--study.seeds"):
        assert option in shown
    assert "Peak learning rate" in shown


def test_train_eval_report(
    places: dict[str, str], tmp_path: Path, colour_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", "--config", places["config"], "--output_dir", str(run)]) == 0
    assert main(["train", "--config", places["config"], "--output_dir", str(run)]) == 2
    assert "--resume auto" in capsys.readouterr().err
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump({"sets": [{"path": str(colour_set), "name": "colours"}], "batch_size": 7}))
    output = tmp_path / "out" / "eval.json"
    pairs = str(colour_set / "retrieval")
    assert main(["eval", "--model", str(run), "--suite", str(suite), "--data", pairs, "--output", str(output)]) == 0
    results = json.loads(output.read_text())["results"]
    assert [(r["model"], r["dataset"], r["task"], r["n"]) for r in results] == [
        ("run", "colours", "zeroshot", 16),
        ("run", "retrieval", "retrieval", 16),
    ]
    shown = capsys.readouterr().out
    assert "acc1" in shown and "25.00" in shown and str(output) in shown


def test_compare_and_report(places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--config", places["study"], "--output_dir", str(tmp_path / "study")]) == 0
    first = capsys.readouterr().out
    (tmp_path / "study" / "report.md").unlink()
    assert main(["report", str(tmp_path / "study")]) == 0
    again = capsys.readouterr().out
    assert (tmp_path / "study" / "report.md").is_file()
    assert first.split("written:")[0].strip() == again.split("written:")[0].strip()


def test_export_and_push_dry_run(
    tiny: Callable[..., DualEncoder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmrep.model.load import save_model

    save_model(tiny("cls"), tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "open_clip_config.json").is_file()
    assert main(["push", str(tmp_path / "model"), "--repo-id", "user/name", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for name in ("model.safetensors", "config.json", "tokenizer/vocab.json", "README.md", "nothing was uploaded"):
        assert name in shown


def test_data_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_tar(tmp_path / "good.tar", colour_samples(4))
    bad = write_tar(tmp_path / "bad.tar", [("7", {"jpg": b"no image", "txt": b" \n"})])
    assert main(["data", "check", str(good)]) == 0
    assert main(["data", "index", str(good)]) == 0
    assert (tmp_path / "good.tar.index.npz").is_file()
    assert main(["data", "check", str(good), str(bad)]) == 1
    out, err = capsys.readouterr()
    assert "sample '7', member 'jpg'" in out and "no caption in it" in out
    assert "2 problems found" in err
    spec = ["--train", "8", "--classes_test", "64", "--gallery", "4"]
    assert main(["data", "scenes", "--output_dir", str(tmp_path / "scenes"), *spec]) == 0
    assert (tmp_path / "scenes" / "captions" / "test" / "nshards.txt").is_file()


def test_bad_data_is_status_1(places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = write_tar(tmp_path / "0.tar", [*colour_samples(15), ("zz", {"png": b"no image", "txt": b"a thing"})])
    options = ["--data.train.shards", str(shard), "--output_dir", str(tmp_path / "run")]
    assert main(["train", "--config", places["config"], *options]) == 1
    err = capsys.readouterr().err
    assert f"error: {shard}: sample 'zz', member 'png': not an image" in err
    assert "Traceback" not in err


def test_several_processes_are_counted_early(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert main(["train", "--config", places["config"]]) == 2
    assert "global_batch: expected a multiple of the 3 processes, got 8" in capsys.readouterr().err


def test_a_study_config_trains_one_run(places: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", "--config", places["study"], "--model.pool", "max", "--output_dir", str(run)]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["pool"] == {"name": "max"}


def test_a_device_that_is_not_there(tiny: Callable[..., DualEncoder], colour_set: Path, capsys: Any) -> None:
    assert main(["eval", "--model", "x", "--data", str(colour_set), "--device", "tpux"]) == 2
    assert capsys.readouterr().err.startswith("mmrep eval: error: --device tpux: ")


def test_a_list_replaces_a_list_and_its_entries_can_be_addressed(places: dict[str, str]) -> None:
    def sources(*options: str) -> list[Any]:
        return parse(TrainConfig, "train", ["--config", places["config"], *options]).data.train

    whole = "[{shards: a.tar, caption: cls}, {shards: b.tar}]"
    assert [(each.shards, each.caption) for each in sources("--data.train", whole)] == [
        ("a.tar", "cls"),
        ("b.tar", "txt"),
    ]
    again = sources("--data.train", whole, "--data.train", "[{shards: c.tar}]")
    assert [(each.shards, each.caption) for each in again] == [("c.tar", "txt")]
    first = sources("--data.train", whole, "--data.train[0].shards", "c.tar", "--data.train[1].subset=b.npy")
    assert [(each.shards, each.caption, each.subset) for each in first] == [
        ("c.tar", "cls", None),
        ("b.tar", "txt", "b.npy"),
    ]
    assert sources("--data.train.shards", "c.tar")[0].shards == "c.tar"


def test_later_files_override_earlier_ones(places: dict[str, str], tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("data: {train: [{shards: other.tar}], flip: 0.5}\noptim: {lr: 1e-4}\n")
    config = parse(TrainConfig, "train", ["--config", places["config"], "--config", str(over), "--optim.eps", "1e-7"])
    assert [each.shards for each in config.data.train] == ["other.tar"]
    assert (config.data.flip, config.optim.lr, config.optim.eps, config.training.steps) == (0.5, 1e-4, 1e-7, 2)


def test_lists_are_words_and_flags_need_no_value() -> None:
    from mmrep.cli.evaluate import Options
    from mmrep.cli.sweep import Options as Sweep

    def options(text: str, kind: type = Options) -> Any:
        return parse(kind, "eval", shlex.split(text), "model")

    assert options("a b --data x").model == ["a", "b"]
    assert options("--model a --data x --model b c").model == ["a", "b", "c"]
    assert options("--model '[a, b]' --data x").model == ["a", "b"]
    assert options("--model 1 null").model == ["1", "null"], "words of a list of texts are texts"
    assert (options("a").cache, options("a --no_cache").cache, options("a --no-cache --split dev").cache) == (
        True, False, False,
    )  # fmt: skip
    assert options("a --allow-pickle --batch-size 3").allow_pickle
    for words in ("--p 1 2.5 4", "--p 1,2.5,4", "--p=1,2.5,4", "--p '[1, 2.5, 4]'"):
        assert options(f"run {words}", Sweep).p == [1.0, 2.5, 4.0]


def test_words_replace_a_list_of_the_file(places: dict[str, str]) -> None:
    argv = [
        "--config",
        places["study"],
        "--study.pools",
        "max",
        "{name: gem, args: {p: 2.0}}",
        "--study.seeds",
        "3",
        "4",
    ]
    config = parse(CompareConfig, "compare", argv)
    assert [pool.label for pool, _ in config.study.heads()] == ["max", "gem_p-2.0"] and config.study.seeds == [3, 4]


def test_a_head_of_ones_own_by_plugin(places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--config", places["config"], "--plugins", "toy_head", "--model.pool", "topk"]
    config = parse(TrainConfig, "train", argv)
    assert (config.plugins, config.model.pooling.name) == (["toy_head"], "topk")
    assert main(["pools", "topk", "--plugins", "toy_head"]) == 0
    assert "The mean of the k largest values of each channel" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*VERBS, *(f"data pack {each}" for each in FORMATS)])
def test_help_leads_with_what_matters_and_fits(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*name.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: mmrep {name}") and max(map(len, lines)) <= 140
    if name in ("train", "compare", "screen"):
        assert "The options that matter most:" in lines[:8]
    else:
        assert len(lines) <= 50


def test_a_terminal_without_utf8_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", shown)
    say("3 × 2 ≥ 5 – é")
    assert shown.buffer.getvalue() == b"3 x 2 >= 5 - ?\n"  # type: ignore[attr-defined]
