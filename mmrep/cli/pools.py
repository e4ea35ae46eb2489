"""`mmrep pools`, and the tables of heads in README and documentation."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import mmrep.config.pooling  # noqa: F401  # registers mmrep's own heads
from mmrep.cli.help import field_texts
from mmrep.cli.parsing import Verb
from mmrep.cli.terminal import say
from mmrep.config.pools import RegisteredPool, find_pool, registered_pools
from mmrep.markup import align, markdown_table


@dataclass(frozen=True)
class Options:
    """List the pooling heads, or describe one with its arguments.

    Attributes:
        name: Name of a head. Without it, all heads are listed.
        markdown: Print the list as a Markdown table.
        plugins: Modules that register heads of your own.
    """

    name: str | None = None
    markdown: bool = False
    plugins: list[str] = field(default_factory=list)


def run(options: Options, _: list[str]) -> None:
    """Print heads."""
    if options.name is not None:
        say(_described(find_pool(options.name)))
        return
    rows = pool_rows(registered_pools().values())
    say(markdown_table(rows, code=(0, 2)) if options.markdown else align(rows))


def pool_rows(pools: Any) -> list[list[str]]:
    """Return a table of heads: name, what it computes, names of its arguments."""
    rows = [["name", "what it computes", "arguments"]]
    for pool in pools:
        names = [each.name for each in dataclasses.fields(pool.args)]
        rows.append([pool.name, pool.summary.rstrip("."), ", ".join(names)])
    return rows


def _described(pool: RegisteredPool) -> str:
    texts = field_texts(pool.args)
    rows = [["argument", "default", "meaning"]]
    for each in dataclasses.fields(pool.args):
        made = each.default_factory
        default = each.default if made is dataclasses.MISSING else made()
        rows.append([each.name, str(default), texts[each.name]])
    return f"{pool.name}: {pool.summary}\n\n" + (align(rows) if len(rows) > 1 else "It has no arguments.")


VERB = Verb(
    Options,
    run,
    positional="name",
    examples=("mmrep pools", "mmrep pools ggem", "mmrep pools --plugins my_package.heads"),
)
