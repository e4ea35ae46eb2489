"""Every head of the registry: shapes, gradients, precision, one token, order of patches, a float64 reference, saving,
export, compilation, wrong use."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax
from torch import Tensor

import mmrep
from mmrep.config.checks import ConfigError
from mmrep.config.pooling import PoolConfig
from mmrep.config.pools import ENTRY_POINTS, load_plugins, registered_pools
from mmrep.pooling import Pooled, PoolingHead, Tokens, build_pool, list_pools
from mmrep.pooling.registry import build_configured

WIDTH, HEADS_OF_TRUNK = 24, 4
OWN = [name for name, pool in registered_pools().items() if pool.head.startswith("mmrep.")]
EVERY = pytest.mark.parametrize("name", list_pools())

CHANGED: dict[str, dict[str, Any]] = {
    "gem": {"p": 4.0, "eps": 0.1, "negatives": "signed", "learn": False, "lr_scale": 5.0},
    "ggem": {"groups": "channel", "p": 4.0, "negatives": "shift", "grouping": "random", "grouping_seed": 3},
    "rgem": {"p": 3.0, "eps": 0.1, "regional_p": 2.0, "kernel": 3, "negatives": "shift"},
    "relu_avg": {"eps": 0.5},
    "lse": {"r": 2.0, "learn": False, "lr_scale": 3.0},
    "avg_mlp": {"params": 700},
    "map": {"num_heads": 3, "mlp_ratio": 2.0},
    "simpool": {"heads": 2, "gamma": 2.0, "eps": 1e-3},
    "cap": {"num_heads": 3, "ffn_ratio": 0.0},
    "mcap": {"tokens": 8, "distill": False},
    "mmcap": {"tokens": 2, "stages": 1},
    "mmcap_light": {"tokens": 2, "stages": 1},
    "concat": {"heads": [{"name": "ggem", "args": {"groups": 2}}, "map"]},
}
"""Other values than the defaults, for heads that take any."""


def changed(name: str) -> dict[str, Any]:
    """Other values than the defaults; for a head that this file does not know, the smallest whole numbers."""
    fields = dataclasses.fields(registered_pools()[name].args)
    return CHANGED.get(name) or {field.name: 1 for field in fields if field.type in (int, "int")}


def build(name: str, **args: object) -> PoolingHead:
    """A head with drawn values, those that begin at zero or one too."""
    torch.manual_seed(0)
    head = build_pool(name, dim=WIDTH, num_heads=HEADS_OF_TRUNK, **args)
    for parameter in head.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(torch.randn(parameter.shape), alpha=0.1)
    return head


def tokens(
    head: PoolingHead, grid: tuple[int, int] = (3, 3), dtype: torch.dtype = torch.float32, grad: bool = False
) -> Tokens:
    generator = torch.Generator().manual_seed(1)

    def drawn(count: int) -> Tensor:
        return torch.randn(3, count, WIDTH, generator=generator).to(dtype).requires_grad_(grad)

    prefix, patches = drawn(1), drawn(grid[0] * grid[1])
    return Tokens(prefix, patches, grid, None, tuple(drawn(grid[0] * grid[1]) for _ in range(head.num_stages)))


def embeddings(pooled: Pooled) -> tuple[Tensor, ...]:
    return pooled.embedding, *pooled.auxiliary


@EVERY
@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (2, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_shape_type_and_finiteness(name: str, grid: tuple[int, int], dtype: torch.dtype, training: bool) -> None:
    head = build(name).train(training).to(dtype)
    pooled = head(tokens(head, grid, dtype))
    assert pooled.embedding.shape == (3, head.out_dim)
    assert [tuple(x.shape) for x in pooled.auxiliary] == [(3, width) for width in head.auxiliary_dims if training]
    for embedding in embeddings(pooled):
        assert embedding.dtype == dtype
        assert embedding.isfinite().all()


@EVERY
def test_bf16_tokens_under_autocast_give_about_the_same(name: str) -> None:
    head = build(name)
    rounded = tokens(head, dtype=torch.bfloat16)
    same = Tokens(
        rounded.prefix.float(), rounded.patches.float(), rounded.grid, None, tuple(x.float() for x in rounded.stages)
    )
    with torch.autocast("cpu", torch.bfloat16):
        rough = head(rounded)
    for found, expected in zip(embeddings(rough), embeddings(head(same)), strict=True):
        torch.testing.assert_close(found.float(), expected, atol=0.04, rtol=0.04)


@EVERY
def test_every_parameter_and_input_receives_a_gradient(name: str) -> None:
    head = build(name).train()
    x = tokens(head, grad=True)
    sum(embedding.square().sum() for embedding in embeddings(head(x))).backward()
    for label, parameter in head.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.isfinite().all(), label
        assert parameter.grad.abs().sum() > 0, label
    sources = (*([x.prefix] if head.needs_class_token else []), *([] if name == "cls" else [x.patches]), *x.stages)
    for source in sources:
        assert source.grad is not None and source.grad.isfinite().all() and source.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["avg", "max", "avgmax", "lse"])
def test_one_patch_is_its_own_pool(name: str) -> None:
    head = build(name)
    x = tokens(head, (1, 1))
    torch.testing.assert_close(head(x).embedding, x.patches[:, 0])


@EVERY
def test_order_of_patches_matters_where_said_and_nowhere_else(name: str) -> None:
    head = build(name).eval()
    x, order = tokens(head), torch.randperm(9, generator=torch.Generator().manual_seed(3))
    shuffled = x._replace(patches=x.patches[:, order], stages=tuple(stage[:, order] for stage in x.stages))
    assert torch.allclose(head(x).embedding, head(shuffled).embedding, atol=1e-5) == head.invariant


@EVERY
def test_deterministic(name: str) -> None:
    first, second = (build(name) for _ in range(2))
    for a, b in zip(embeddings(first(tokens(first))), embeddings(second(tokens(second))), strict=True):
        assert torch.equal(a, b)


def power_mean(x: np.ndarray, p: np.ndarray | float) -> np.ndarray:
    return np.mean(x**p, axis=1) ** (1 / p)


def linear(weights: dict[str, np.ndarray], layer: str, x: np.ndarray) -> np.ndarray:
    return x @ weights[f"{layer}.weight"].T + weights.get(f"{layer}.bias", 0.0)


def norm(weights: dict[str, np.ndarray], layer: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * weights[f"{layer}.weight"] + weights[f"{layer}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / np.sqrt(2))) / 2


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    """One query (width) or one an image (batch, width), over (batch, count, width)."""
    outputs = []
    for q_head, k_head, v_head in zip(*(np.split(x, heads, -1) for x in (q, k, v)), strict=True):
        logits = (k_head * np.expand_dims(q_head, -2)).sum(-1) / np.sqrt(q_head.shape[-1])
        outputs.append((softmax(logits, 1)[..., None] * v_head).sum(1))
    return np.concatenate(outputs, -1)


def rgem(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """On a grid of 3 by 3, where a window of 5 reaches over all that reflection gives."""
    images = np.maximum(x, 1e-6).reshape(len(x), 3, 3, -1)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), (1, 2))
    local = np.mean(windows**2.5, axis=(-1, -2)) ** (1 / 2.5)
    return power_mean((0.5 * local + 0.5 * images).reshape(x.shape), np.exp(weights["log_exponent"]))


def lse(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    r = np.exp(weights["log_sharpness"])
    return np.log(np.mean(np.exp(r * x), axis=1)) / r


def avg_mlp(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    a = x.mean(1)
    return a + linear(weights, "mlp.3", gelu(linear(weights, "mlp.1", norm(weights, "mlp.0", a))))


def map_pool(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    own = {name.removeprefix("attn_pool."): value for name, value in weights.items()}
    k, v = np.split(linear(own, "kv", x), 2, -1)
    y = linear(own, "proj", attend(linear(own, "q", own["latent"][0, 0]), k, v, HEADS_OF_TRUNK))
    return y + linear(own, "mlp.fc2", gelu(linear(own, "mlp.fc1", norm(own, "norm", y))))


def simpool(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    normed = norm(weights, "norm", x)
    values = normed - normed.min((1, 2), keepdims=True) + 1e-6
    return attend(linear(weights, "query", x.mean(1)), linear(weights, "key", normed), values**1.25, 1) ** (1 / 1.25)


def cap(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    own = {name.removeprefix("block."): value for name, value in weights.items()}
    token = own["tokens"]
    seen = np.concatenate([np.broadcast_to(token, (len(x), 1, WIDTH)), x], axis=1)
    k, v = np.split(linear(own, "kv", norm(own, "norm1", seen)), 2, -1)
    y = token + linear(own, "proj", attend(linear(own, "q", norm(own, "norm1", token[0])), k, v, HEADS_OF_TRUNK))
    return y + linear(own, "ffn.2", gelu(linear(own, "ffn.0", norm(own, "norm2", y))))


REFERENCES: dict[str, Callable[[dict[str, np.ndarray], np.ndarray, np.ndarray], np.ndarray]] = {
    "cls": lambda _, prefix, x: prefix[:, 0],
    "avg": lambda _, prefix, x: x.mean(1),
    "max": lambda _, prefix, x: x.max(1),
    "avgmax": lambda _, prefix, x: (x.mean(1) + x.max(1)) / 2,
    "gem": lambda w, prefix, x: power_mean(np.maximum(x, 1e-6), np.exp(w["log_exponent"])),
    "ggem": lambda w, prefix, x: power_mean(np.maximum(x, 1e-6), np.repeat(np.exp(w["log_exponent"]), 6)),
    "rgem": lambda w, prefix, x: rgem(w, x),
    "relu_avg": lambda _, prefix, x: np.maximum(x, 1e-6).mean(1),
    "lse": lambda w, prefix, x: lse(w, x),
    "avg_mlp": lambda w, prefix, x: avg_mlp(w, x),
    "map": lambda w, prefix, x: map_pool(w, x),
    "simpool": lambda w, prefix, x: simpool(w, x),
    "cap": lambda w, prefix, x: cap(w, x),
    "concat": lambda _, prefix, x: np.concatenate([prefix[:, 0], x.mean(1)], axis=1),
}


def test_every_head_of_one_depth_has_a_float64_reference() -> None:
    assert set(REFERENCES) == {name for name in OWN if name not in ("mcap", "mmcap", "mmcap_light")}


@pytest.mark.parametrize("name", REFERENCES)
def test_agrees_with_a_float64_reference(name: str) -> None:
    head = build(name)
    x = tokens(head)
    weights = {label: value.double().numpy() for label, value in head.state_dict().items()}
    expected = REFERENCES[name](weights, x.prefix.double().numpy(), x.patches.double().numpy())
    np.testing.assert_allclose(head(x).embedding.detach().numpy(), expected, rtol=2e-5, atol=2e-6)


@EVERY
def test_state_dict_round_trip(name: str) -> None:
    head, other = build(name), build_pool(name, dim=WIDTH, num_heads=HEADS_OF_TRUNK)
    other.load_state_dict(head.state_dict())
    for a, b in zip(embeddings(head(tokens(head))), embeddings(other(tokens(head))), strict=True):
        assert torch.equal(a, b)


def test_changed_arguments_are_tried_for_every_head_that_takes_any() -> None:
    assert set(CHANGED) == {name for name in OWN if dataclasses.fields(registered_pools()[name].args)}


@EVERY
@pytest.mark.parametrize("other", [False, True])
def test_config_round_trip_gives_the_same_head(name: str, other: bool) -> None:
    config = PoolConfig(name, changed(name) if other else {})
    again = PoolConfig.parse(json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    pooled = []
    for each in (config, again):
        torch.manual_seed(0)
        head = build_configured(each, WIDTH, HEADS_OF_TRUNK)
        pooled.append(embeddings(head(tokens(head))))
    assert all(torch.equal(a, b) for a, b in zip(*pooled, strict=True))


@pytest.mark.parametrize(("name", "argument"), [(name, each) for name in list_pools() for each in changed(name)])
def test_every_argument_changes_the_head(name: str, argument: str) -> None:
    """An argument changes the result or, where it begins the same, the training."""
    needed = {"grouping": {"groups": 4}, "grouping_seed": {"groups": 4, "grouping": "random"}}.get(argument, {})
    traces = []
    for args in (needed, {**needed, argument: changed(name)[argument]}):
        torch.manual_seed(0)
        head = build_configured(PoolConfig(name, args), WIDTH, HEADS_OF_TRUNK)
        trained = [(parameter.shape, parameter.requires_grad) for parameter in head.parameters()]
        pooled = [x.tolist() for x in embeddings(head(tokens(head)))]
        if argument in ("grouping", "grouping_seed"):
            pooled.append(head.group_of_channel.tolist())
        traces.append((pooled, trained, head.lr_scales()))
    assert traces[0] != traces[1]


@EVERY
def test_no_parameter_is_without_dimensions(name: str) -> None:
    assert all(parameter.ndim > 0 for parameter in build(name).parameters())


@EVERY
def test_parameters_treated_apart_exist(name: str) -> None:
    head = build(name)
    parameters = dict(head.named_parameters())
    assert head.no_weight_decay() <= set(parameters)
    assert set(head.lr_scales()) <= set(parameters)


SCRIPT = """
import torch
import toy_head
from mmrep.pooling import Tokens, build_pool, list_pools

def tokens(head, batch=3):
    generator = torch.Generator().manual_seed(batch)
    def drawn(count):
        return torch.randn(batch, count, 24, generator=generator, requires_grad=True)
    return Tokens(drawn(1), drawn(9), (3, 3), None, tuple(drawn(9) for _ in range(head.num_stages)))

def gradients(head, call, x):
    pooled = call(x)
    loss = sum(e.square().sum() for e in (pooled.embedding, *pooled.auxiliary))
    inputs = [x.prefix if name == "cls" else x.patches, *x.stages, *head.parameters()]
    return [pooled.embedding, *pooled.auxiliary, *torch.autograd.grad(loss, inputs)]

for name in list_pools():
    head = build_pool(name, dim=24, num_heads=4)
    torch._dynamo.reset()
    compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
    for eager, traced in zip(*(gradients(head, call, tokens(head)) for call in (head, compiled)), strict=True):
        torch.testing.assert_close(traced, eager, msg=lambda text: f"{name}: {text}")
    head.eval()
    batch = {0: torch.export.Dim.AUTO}
    shapes = Tokens(batch, batch, (None, None), None, tuple(batch for _ in range(head.num_stages)))
    program = torch.export.export(head, (tokens(head),), dynamic_shapes=(shapes,))
    with torch.no_grad():
        other = tokens(head, 5)
        torch.testing.assert_close(program.module()(other).embedding, head(other).embedding)
    print(name)
"""


@pytest.mark.long
def test_every_head_compiles_whole_and_is_exported() -> None:
    """In a process of its own, without run-time type checks, which neither can trace."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=root, env={**os.environ, "PYTHONPATH": str(root / "tests")},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.split() == list_pools(), done.stderr[-3000:]


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("gegem", {}, "did you mean 'ggem'"),
        ("avg", {"p": 3.0}, "has no argument 'p' (valid: none)"),
        ("ggem", {"group": 3}, "has no argument 'group'; did you mean 'groups'? (valid: p, eps"),
        ("ggem", {"groups": 5}, "groups must divide the trunk's width 24, got 5; divisors: [1, 2, 3, 4, 6, 8, 12, 24]"),
        ("ggem", {"groups": 5.5}, "got 5.5"),
        ("gem", {"p": 0.0}, "expected a value > 0"),
        ("gem", {"p": 1000.0}, "use pool 'max'"),
        ("gem", {"negatives": "abs"}, "expected one of clamp, shift, signed, got 'abs'"),
        ("gem", {"lr_scale": 0.0}, "lr_scale: expected a value > 0"),
        ("rgem", {"kernel": 4}, "kernel: expected an odd number, got 4"),
        ("rgem", {"regional_p": 101.0}, "regional_p: expected at most 100"),
        ("lse", {"r": 0.0}, "r: expected a value > 0"),
        ("map", {"mlp_ratio": -1.0}, "expected a value > 0"),
        ("simpool", {"gamma": 0.0}, "gamma: expected a value > 0"),
        ("avg_mlp", {"params": 3}, "params must be at least 121"),
        ("concat", {"heads": ["cls"]}, "expected two heads, got 1"),
        ("concat", {"heads": ["cls", "avgg"]}, "did you mean 'avg'"),
        ("concat", {"heads": ["cls", "concat"]}, "'concat' within 'concat'"),
    ],
)
def test_wrong_use_is_one_clear_line(name: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_pool(name, dim=WIDTH, num_heads=HEADS_OF_TRUNK, **args)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ggem", "map", "cap", "mcap", "mmcap", "mmcap_light"])
def test_heads_that_need_a_number_of_groups_or_heads_say_so(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}': .*num_heads"):
        build_pool(name, dim=WIDTH)


def test_groups_come_from_the_trunks_heads_unless_given() -> None:
    assert build_pool("ggem", dim=WIDTH, num_heads=6).groups == 6
    assert build_pool("ggem", dim=WIDTH, num_heads=6, groups=3).groups == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t._replace(patches=t.patches[:, :, :5]), "expected patches of shape"),
        (lambda t: t._replace(patches=t.patches[:, :0]), "expected patches of shape"),
        (lambda t: t._replace(prefix=t.prefix[:, :0]), "class token"),
        (lambda t: t._replace(stages=(t.patches,)), "expected the tokens of 0 earlier stages, got 1"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(change: Callable[[Tokens], Tokens], message: str) -> None:
    head = build("cls")
    with pytest.raises(ValueError, match=message):
        head(change(tokens(head)))


@EVERY
def test_dropped_patches_are_refused_by_heads_that_need_the_grid_and_by_no_other(name: str) -> None:
    head = build(name)
    x = tokens(head, (2, 2))._replace(grid=(3, 3), index=torch.tensor([0, 2, 3, 8]).expand(3, -1))
    if head.needs_grid:
        with pytest.raises(ValueError, match="patch dropout"):
            head(x)
    else:
        assert head(x).embedding.isfinite().all()


@dataclasses.dataclass(frozen=True)
class NoArgs:
    """Nothing."""


@pytest.mark.parametrize(
    ("name", "args", "head", "message"),
    [
        ("top-k", NoArgs, "toy_head:TopK", "expected a name of letters, digits and underscores"),
        ("avg", NoArgs, "toy_head:TopK", "'avg' is mmrep.pooling.mean:Average already"),
        ("mine", dict, "toy_head:TopK", "expected a frozen dataclass of arguments"),
        ("mine", NoArgs, "toy_head.TopK", "expected 'module:Class'"),
    ],
)
def test_a_wrong_registration_is_refused(name: str, args: type, head: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mmrep.register_pool(name, args, head)
    assert "mine" not in list_pools()


def test_a_head_that_can_not_be_imported_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrep.config.pools._REGISTERED", {})
    mmrep.register_pool("mine", NoArgs, "no_such_module:Head")
    with pytest.raises(ConfigError, match=r"pool 'mine': can't import 'no_such_module:Head': No module named"):
        build_pool("mine", dim=4)


PLUGIN = """
from dataclasses import dataclass
from mmrep import register_pool
from mmrep.pooling import PoolingHead
@dataclass(frozen=True)
class Args:
    'Nothing much.'
class Head(PoolingHead):
    def pool(self, tokens):
        return tokens.patches[:, 0]
register_pool("{name}", Args, "{module}:Head")
"""


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, in a process whose registry and paths are as before afterwards."""
    monkeypatch.setattr("mmrep.config.pools._REGISTERED", dict(registered_pools()))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_plugins_are_found_in_the_current_folder(own_folder: Path) -> None:
    (own_folder / "my_plugin.py").write_text(PLUGIN.format(name="first", module="my_plugin"))
    load_plugins(["my_plugin"])
    assert build_pool("first", dim=3)(Tokens(torch.zeros(1, 0, 3), torch.ones(1, 2, 3), (1, 2))).embedding.sum() == 3


def test_a_plugin_that_is_missing_or_broken_says_so(own_folder: Path) -> None:
    with pytest.raises(ConfigError, match="--plugins no_plugin: no such module here or among the installed packages"):
        load_plugins(["no_plugin"])
    (own_folder / "broken_plugin.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match="--plugins broken_plugin: ZeroDivisionError: division by zero"):
        load_plugins(["broken_plugin"])


def test_heads_of_installed_packages_are_found(own_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("packed", "damaged"):
        about = own_folder / f"{name}-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Name: {name}\nVersion: 1\n")
        (about / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n{name} = {name}_heads\n")
    (own_folder / "packed_heads.py").write_text(PLUGIN.format(name="packed", module="packed_heads"))
    (own_folder / "damaged_heads.py").write_text("import no_such_package")
    sys.path.insert(0, str(own_folder))
    assert PoolConfig("packed").label == "packed"
    assert "packed" in list_pools()
    assert "entry point damaged_heads of damaged can't be loaded (ModuleNotFoundError" in caplog.text
