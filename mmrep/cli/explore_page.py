"""The page of `mmrep explore`, made with Gradio. All searching is done by `mmrep.study.explore`."""

import html
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from mmrep.config.checks import ConfigError, MmrepError
from mmrep.study.explore import Description, Explorer, Hit
from mmrep.study.shots import data_uri

if TYPE_CHECKING:
    import gradio

HOST = "127.0.0.1"
"""No other machine can reach the page."""
_EXAMPLES = 4
_MAPS = (
    "{}: the patches that support the {} (red) or speak against it (blue). Each picture has a scale of its own, and no "
    "colours where a head does not read the patches. Numbers are cosines."
)
_CSS = """
.pool {display: flex; gap: 14px; padding: 12px 0; border-top: 1px solid var(--border-color-primary)}
.pool > h3 {width: 110px; flex: none; margin: 0; overflow-wrap: anywhere; font-weight: 600}
.shots {display: flex; flex-wrap: wrap; gap: 12px}
.shots figure {width: 132px; margin: 0}
.shots img {width: 132px; height: 132px; object-fit: contain; border-radius: 4px; margin: 0 0 4px; display: block}
.shots figcaption {font-size: 12px; line-height: 1.3; overflow-wrap: anywhere}
.pool ol {list-style: none; margin: 0; padding: 0; flex: 1; max-width: 640px}
.pool li {display: flex; justify-content: space-between; gap: 12px; padding: 3px 0; font-size: 14px}
.score {opacity: 0.75; font-variant-numeric: tabular-nums}
.note {opacity: 0.75; font-size: 13px; margin: 8px 0; max-width: 900px}
@media (max-width: 640px) {.pool {display: block} .pool > h3 {width: auto; margin-bottom: 8px}}
"""


def safe(text: str) -> str:
    """Return a text as HTML in which nothing is markup, nor a placeholder of Gradio's template."""
    return html.escape(text).replace("$", "&#36;")


def _image(picture: Image.Image | None, alt: str) -> str:
    return "" if picture is None else f'<img src="{data_uri(picture)}" alt="{safe(alt)}">'


def found_html(found: Mapping[str, Sequence[Hit]]) -> str:
    """Return the images that each head finds, and their heat maps, a row for each head."""
    rows = []
    for label, hits in found.items():
        figures = "".join(
            f"<figure>{_image(hit.picture, hit.text)}{_image(hit.map, f'Patch weights of {label}: {hit.text}')}"
            f'<figcaption>{safe(hit.text)} <span class="score">{hit.score:.3f}</span></figcaption></figure>'
            for hit in hits
        )
        rows.append(f'<section class="pool"><h3>{safe(label)}</h3><div class="shots">{figures}</div></section>')
    return "".join(rows) + f'<p class="note">{_MAPS.format("Below each image", "text")}</p>'


def described_html(found: Mapping[str, Description]) -> str:
    """Return the texts that each head ranks first, next to the heat map for the first, a row for each head."""
    rows = []
    for label, each in found.items():
        lines = "".join(
            f'<li><span>{safe(text)}</span><span class="score">{score:.3f}</span></li>' for text, score in each.answers
        )
        figure = _image(each.map, f"Patch weights of {label} for: {each.answers[0][0]}")
        shot = f'<div class="shots"><figure>{figure}</figure></div>' if figure else ""
        rows.append(f'<section class="pool"><h3>{safe(label)}</h3>{shot}<ol>{lines}</ol></section>')
    return "".join(rows) + f'<p class="note">{_MAPS.format("Pictures", "first text")}</p>'


def page_of(explorer: Explorer, study: str) -> "gradio.Blocks":
    """Return the page."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported
    import gradio

    def find(text: str, count: float) -> str:
        try:
            return found_html(explorer.find(text, int(count)))
        except (ConfigError, MmrepError) as error:
            raise gradio.Error(str(error), print_exception=False) from error

    def describe(picture: Image.Image | None, count: float) -> str:
        try:
            return described_html(explorer.describe(picture, int(count)))
        except (ConfigError, MmrepError) as error:
            raise gradio.Error(str(error), print_exception=False) from error

    images = len(explorer.context.evalset.records)
    about = f"{', '.join(explorer.models)}, seed {explorer.seed}; {images:,} images of {explorer.name}"
    what = "classes" if explorer.context.evalset.classnames else "captions"
    with gradio.Blocks(title=f"{study}: mmrep explore", analytics_enabled=False) as page:
        gradio.HTML(
            f'<h1 style="font-size: 22px; font-weight: 700">{safe(study)}</h1><p class="note">{safe(about)}</p>'
        )
        with gradio.Tab("Images for a text"):
            with gradio.Row(equal_height=True):
                hint = explorer.texts[0]
                text = gradio.Textbox(label="Text", placeholder=hint, submit_btn="Search", scale=5, min_width=320)
                count = gradio.Slider(1, 12, 5, step=1, label="Images", scale=2, min_width=320)
            step = max(1, len(explorer.texts) // _EXAMPLES)
            gradio.Examples([[each] for each in explorer.texts[::step][:_EXAMPLES]], [text], cache_examples=False)
            answer = gradio.HTML()
            text.submit(find, [text, count], answer, api_name="find")
        with gradio.Tab(f"{what.capitalize()} for an image"):
            with gradio.Row():
                picture = gradio.Image(type="pil", label="Image", height=260, sources=["upload", "clipboard"], scale=2)
                with gradio.Column(scale=3):
                    most = gradio.Slider(1, 12, 5, step=1, label=what.capitalize())
                    again = gradio.Button("Describe", variant="primary")
            texts = gradio.HTML()
            again.click(describe, [picture, most], texts, api_name="describe")
            picture.upload(describe, [picture, most], texts, api_visibility="private")
    return page


def serve(explorer: Explorer, study: str, port: int, share: bool) -> tuple[Any, str]:
    """Start to serve the page, and return it and its address."""
    page = page_of(explorer, study)
    import gradio

    fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # those of Gradio come from elsewhere
    theme = gradio.themes.Default(font=fonts[0], font_mono=fonts[1])
    _, local, public = page.launch(
        server_name=HOST, server_port=port, share=share, quiet=True, prevent_thread_lock=True, footer_links=[],
        theme=theme, css=_CSS, show_error=True,
    )  # fmt: skip
    return page, public or local
