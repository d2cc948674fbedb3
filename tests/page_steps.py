"""What the tests of the page do in the browser, again and again."""

import contextlib
from pathlib import Path


@contextlib.contextmanager
def visit(browser, url, width=1280, permissions=(), color_scheme="light"):
    """A fresh visit, which must end without an error in the browser's console."""
    context = browser.new_context(
        viewport={"width": width, "height": 850}, permissions=list(permissions), color_scheme=color_scheme
    )
    context.set_default_timeout(120_000)  # a busy machine takes long to open a page
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    page.get_by_role("button", name="Tell me a story").wait_for()
    yield page
    context.close()
    assert not errors


def upload(page, path: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(path)


def wait_for_story(page, pattern: str) -> str:
    page.wait_for_function(
        "pattern => new RegExp(pattern, 's').test(document.querySelector('#story')?.innerText)", arg=pattern
    )
    return page.locator("#story").inner_text()


def tell(page, photo: Path | None = None) -> str:
    """A whole story, its page at rest."""
    if photo is not None:
        upload(page, photo)
        page.locator("#captions li").first.wait_for()
    page.get_by_role("button", name="Tell me a story").click()
    return end_of_story(page)


def end_of_story(page) -> str:
    page.get_by_role("button", name="Stop").wait_for()
    page.get_by_role("button", name="Stop").wait_for(state="hidden")
    page.get_by_role("button", name="Tell me a story").wait_for()
    return page.locator("#story").inner_text()


def open_tab(page, name: str) -> None:
    """On a narrow screen the last tabs wait behind three dots."""
    shown = page.get_by_role("tab", name=name, exact=True)
    if shown.count() == 0:
        page.locator(".overflow-menu > button").click()
        shown = page.locator(".overflow-dropdown button", has_text=name)
    shown.click()
    page.wait_for_timeout(300)


def passages(page) -> list[str]:
    return page.locator("#story .passage").all_inner_texts()


def wait_for_passages(page, count: int) -> None:
    page.wait_for_function("count => document.querySelectorAll('#story .passage').length == count", arg=count)
