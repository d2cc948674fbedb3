"""How the page looks: leather and paper, and styles as the spines of books. Needs gradio, like `page_events.py`."""

import gradio as gr

# the spines of the picture book, one colour a style
SPINES = {
    "everyday": "#c98a3c",
    "romance": "#c2416b",
    "adventure": "#2f7d4f",
    "science_fiction": "#2b6cb0",
    "mystery": "#5b4b8a",
    "horror": "#8b1e1e",
    "fairy_tale": "#d4a017",
}
BOOK_FACE = '"Iowan Old Style", Palatino, "Palatino Linotype", "Book Antiqua", Georgia, serif'
SPINE_RULES = "\n".join(
    f"#style label:nth-of-type({place}) {{border-left-color: {colour}}}"
    for place, colour in enumerate(SPINES.values(), 1)
)
CSS = f"""
.gradio-container {{width: 100%; min-width: 0; max-width: 1180px !important; margin: 0 auto !important}}
@media (max-width: 640px) {{
  .gradio-container .main.fillable {{padding: 1rem .8rem}}
}}
h1, #story .passage {{font-family: {BOOK_FACE}}}
#style .wrap {{display: grid; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr))}}
#style label {{border-left: 8px solid #8a8178; border-radius: 2px 6px 6px 2px; padding: 1.1rem .6rem;
  font-family: {BOOK_FACE}; font-size: 1.02rem}}
{SPINE_RULES}
body:not(.dark) button[role=tab].selected {{color: var(--primary-800)}}
#style input, #words input {{position: absolute; opacity: 0}}
#style label span, #words label span {{margin-left: 0}}
#style label:focus-within, #words label:focus-within {{outline: 2px solid var(--color-accent)}}
#story .passage {{font-size: 1.15rem; line-height: 1.75; overflow-wrap: anywhere}}
#story .own {{font-style: italic}}
#story .empty {{padding: 3rem 0; text-align: center; color: var(--body-text-color-subdued)}}
#more button.lg {{white-space: nowrap; padding-left: .4rem; padding-right: .4rem}}
#story figure img {{border-radius: 4px; max-height: 200px}}
.origin, figcaption, #story figcaption {{font-size: .8rem; color: var(--body-text-color-subdued); margin: .3rem 0}}
#captions ol {{padding-left: 1.3rem; list-style: decimal}}
#beams .wrap {{flex-direction: column}}
#heat img {{max-width: 100%; max-height: 560px; border-radius: 4px}}
.strip {{display: grid; grid-template-columns: repeat(auto-fill, minmax(110px, 1fr)); gap: .6rem}}
.strip figure {{margin: 0}}
.table {{overflow-x: auto}}
.table th, .table td {{border-color: var(--border-color-primary) !important; padding: .4rem .7rem !important}}
.table td {{vertical-align: top}}
#why td:first-child, #scores td:first-child, #rows td:nth-child(2) {{min-width: 14rem}}
#rows progress::-webkit-progress-value {{background: var(--color-accent)}}
#rows progress::-moz-progress-bar {{background: var(--color-accent)}}
#examples .gallery {{display: grid; grid-template-columns: repeat(auto-fill, minmax(72px, 1fr))}}
#examples .container {{width: 100%; max-width: none; height: auto; max-height: none}}
#examples img {{aspect-ratio: 1; object-fit: cover; width: 100%}}
"""


def theme() -> gr.themes.Base:
    """Leather and paper. The font is one that gradio brings along: nothing is fetched from elsewhere."""
    leather, paper = "*primary_800", "#faf7f1"
    return gr.themes.Soft(
        primary_hue="amber",
        neutral_hue="stone",
        font=[gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif"],
    ).set(
        body_background_fill=paper,
        background_fill_primary=paper,
        button_primary_background_fill=leather,
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark=leather,
        button_primary_background_fill_hover_dark="*primary_700",
        block_label_background_fill="*primary_50",
        block_label_background_fill_dark="*neutral_700",
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        block_label_text_color=leather,
        block_title_text_color=leather,
        checkbox_label_background_fill_selected=leather,
        checkbox_label_background_fill_selected_dark=leather,
        checkbox_background_color_selected="*primary_700",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
        checkbox_border_color_selected="*primary_700",
    )
