"""The report as GitHub-flavoured Markdown, with complete tables. Figures are in report.html."""

import re

from mmrep.markup import markdown_cell, markdown_table, one_line
from mmrep.study.report.figures import Forest
from mmrep.study.report.model import Block, Bullets, Code, Gallery, Panels, Report, Sheet, Table, shown


def markdown_text(report: Report) -> str:
    """Return the report as Markdown."""
    parts = [f"# {_line(report.title)}", _line(report.subtitle), _bullets([answer.text for answer in report.answers])]
    parts.append(_bullets([f"{badge.label}: {badge.text}" for badge in report.badges]))
    for section in report.sections:
        body = [text for block in section.blocks for text in _block(block)]
        if body or section.text:
            parts += [f"## {section.title}", *map(_line, section.text), *body]
    parts += ["## Glossary", _bullets([f"{title}: {text}" for title, text in report.terms.values()])]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> list[str]:
    if isinstance(block, Table):
        rows = [[shown(column, row.get(column.key)) for column in block.columns] for row in block.rows]
        table = markdown_table([[column.heading for column in block.columns], *rows])
        return [*_heading(block.title), *([_line(block.note)] if block.note else []), table]
    if isinstance(block, Bullets):
        return [_bullets(block.items)]
    if isinstance(block, Code):
        return [*_heading(block.title), _fenced(block)]
    if isinstance(block, Sheet):
        file = block.file if re.fullmatch(r"[\w.-]+", block.file) else ""
        return [*_heading(block.title), _line(block.caption), *([f"![{_line(block.title)}]({file})"] if file else [])]
    if isinstance(block, Gallery):
        return [*_heading(block.title), "The pictures are in report.html.", _bullets(_scenes(block))]
    if isinstance(block, Panels):
        found = [each for each in block.figures if not isinstance(each, Forest)]
        return (
            [*_heading(block.title), _bullets([f"{each.title} (figure): {each.summary}" for each in found])]
            if found
            else []
        )
    return []


def _scenes(block: Gallery) -> list[str]:
    lines = []
    for scene in block.scenes:
        answers = [f"{name}: {shots[0].text if shots else ''}{remark}" for name, shots, remark in scene.rows]
        lines.append(f"{scene.caption} ({'; '.join(answer for answer in answers if not answer.endswith(': '))})")
    return lines


def _heading(title: str) -> list[str]:
    return [f"### {_line(title)}"] if title else []


def _line(text: str) -> str:
    return markdown_cell(text)


def _bullets(items: list[str]) -> str:
    return "\n".join(f"- {_line(item)}" for item in items)


def _fenced(code: Code) -> str:
    """Return code in a fence that is longer than any run of backticks in it."""
    lines = "\n".join(
        one_line(line) if not line.startswith(" ") else "  " + one_line(line) for line in code.text.splitlines()
    )
    longest = max((len(run) for run in re.findall(r"`+", lines)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{code.language}\n{lines}\n{fence}"
