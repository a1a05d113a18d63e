"""What only a browser shows: deep links, themes, keys, the comparison view, many tabs at once."""

import re
from urllib.parse import parse_qs, urlparse

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

LAB = "/prompt_lab?seeds=0,1&steps=2&caption="


def query(page):
    return parse_qs(urlparse(page.url).query)


def luminance(page, selector):
    colour = page.eval_on_selector(selector, "node => getComputedStyle(node).backgroundColor")
    red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def wait_for_verdict(page):
    expect(page.get_by_text(re.compile("No copy found|Undetermined|Copy of")).first).to_be_visible()
    expect(page.get_by_role("heading", name="Compare")).to_be_visible()


def test_a_link_straight_to_a_page_opens_the_whole_app(address, tab):
    # the very first request to this server: Streamlit would run the page without its frame
    tab.goto(f"{address}{LAB}red+house")
    expect(tab.get_by_role("link", name="Training set")).to_be_visible()
    wait_for_verdict(tab)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/prompt_lab", "/training_set"])
def test_pages_load_in_both_themes(address, browser, scheme, path):
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(address + path)
    expect(page.get_by_role("heading", level=1)).to_be_visible(timeout=30_000)
    assert (luminance(page, "[data-testid=stApp]") > 128) == (scheme == "light")
    expect(
        page.get_by_text("pixel distance under its threshold, and under half that of one colour")
    ).to_be_visible()
    expect(page.get_by_test_id("stException")).to_have_count(0)
    context.close()


def test_enter_gives_pictures_scores_and_verdict(address, tab):
    tab.goto(f"{address}/prompt_lab?seeds=0,1&steps=2")
    field = tab.get_by_label("Caption", exact=True)
    field.fill("blue tree")
    field.press("Enter")
    expect(tab.get_by_alt_text("Picture after one denoising step from seed 0")).to_be_visible()
    wait_for_verdict(tab)
    expect(tab.get_by_alt_text("Full sample from seed 1")).to_be_visible()
    assert query(tab)["caption"] == ["blue tree"]


def test_every_picture_has_words(address, tab):
    tab.goto(f"{address}{LAB}red+house")
    wait_for_verdict(tab)
    without = tab.evaluate(
        "[...document.querySelectorAll('.stMain img')].filter(image => !image.hasAttribute('alt')).map(image => image.src)"
    )
    assert without == []


def test_keys_choose_the_way_of_comparing(address, tab):
    tab.goto(f"{address}{LAB}red+house&neighbour=p1")
    wait_for_verdict(tab)
    bar = tab.get_by_role("group", name="Way of comparing")
    names = ["Side by side", "Swipe", "Blink", "Onion skin", "Difference", "Masked difference"]
    for key, name in enumerate(names, start=1):
        tab.keyboard.press(str(key))
        expect(bar.get_by_role("button", name=re.compile(f"{name}$"), pressed=True)).to_be_visible()
    expect(tab.get_by_text("Inside the mask", exact=False).first).to_be_visible()
    tab.wait_for_url(re.compile("mode=masked"))
    field = tab.get_by_label("Caption", exact=True)
    field.click()
    tab.keyboard.type("2")
    expect(bar.get_by_role("button", name=re.compile("Masked difference$"), pressed=True)).to_be_visible()


def test_without_a_template_there_is_no_masked_view(address, tab):
    tab.goto(f"{address}{LAB}red+house&neighbour=p9")
    wait_for_verdict(tab)
    bar = tab.get_by_role("group", name="Way of comparing")
    expect(bar.get_by_role("button", name=re.compile("Masked difference$"))).to_be_disabled()


def test_a_heatmap_goes_into_the_link_and_comes_back(address, tab, browser):
    tab.goto(f"{address}{LAB}red+house")
    wait_for_verdict(tab)
    tab.get_by_role("group", name="Heatmap").get_by_role("button", name="ECS").click()
    tab.wait_for_url(re.compile("overlay=ecs"))
    other = browser.new_page()
    other.goto(tab.url)
    expect(
        other.get_by_role("group", name="Heatmap").get_by_role("button", name="ECS", pressed=True)
    ).to_be_visible(timeout=30_000)
    other.close()


def test_hostile_captions_are_text(address, tab):
    evil = "<img src=x onerror=document.title='owned'> **bold** :red[x]"
    tab.goto(f"{address}/prompt_lab?seeds=0,1&steps=2")
    field = tab.get_by_label("Caption", exact=True)
    field.fill(evil)
    field.press("Enter")
    wait_for_verdict(tab)
    expect(tab.locator(".verbatim-title")).to_have_text(evil)
    assert tab.title() != "owned"


def test_the_back_button_brings_back_the_caption_before(address, tab):
    tab.goto(f"{address}{LAB}red+house")
    wait_for_verdict(tab)
    field = tab.get_by_label("Caption", exact=True)
    field.fill("green star")
    field.press("Enter")
    expect(tab.locator(".verbatim-title")).to_have_text("green star")
    wait_for_verdict(tab)
    tab.go_back()
    expect(tab.locator(".verbatim-title")).to_have_text("red house")
    expect(field).to_have_value("red house")


def test_another_page_and_back_keeps_the_caption(address, tab):
    tab.goto(f"{address}{LAB}red+house")
    wait_for_verdict(tab)
    tab.get_by_role("link", name="Training set").first.click()
    expect(tab.get_by_role("heading", name="Training set", level=1)).to_be_visible()
    tab.get_by_role("link", name="Prompt lab").first.click()
    expect(tab.locator(".verbatim-title")).to_have_text("red house")
    assert query(tab)["caption"] == ["red house"]


def test_eight_tabs_at_once_get_their_own_pictures(address, browser):
    captions = [
        "red house",
        "blue tree",
        "green star",
        "small cat",
        "picture 6",
        "picture 7",
        "picture 8",
        "picture 9",
    ]

    def pictures(page):
        # for a moment the picture stands twice, alone and in the column that has the full sample too
        return page.get_by_alt_text("Picture after one denoising step from seed 11").first.get_attribute(
            "src"
        )

    contexts = [browser.new_context() for _ in captions]
    pages = [context.new_page() for context in contexts]
    for page, caption in zip(pages, captions, strict=True):
        page.set_default_timeout(60_000)
        page.goto(
            f"{address}/prompt_lab?seeds=11&steps=2&caption={caption.replace(' ', '+')}", wait_until="commit"
        )
    together = []
    for page, caption in zip(pages, captions, strict=True):
        expect(page.locator(".verbatim-title")).to_have_text(caption, timeout=60_000)
        together.append(pictures(page))
    assert len(set(together)) == len(captions)
    alone = browser.new_page()
    for caption, picture in list(zip(captions, together, strict=True))[:3]:
        alone.goto(f"{address}/prompt_lab?seeds=11&steps=2&caption={caption.replace(' ', '+')}")
        expect(alone.locator(".verbatim-title")).to_have_text(caption, timeout=60_000)
        assert pictures(alone) == picture
    alone.close()
    for context in contexts:
        context.close()


def test_narrow_screens_need_no_sideways_scrolling(address, browser):
    page = browser.new_page(viewport={"width": 420, "height": 800})
    page.goto(f"{address}{LAB}red+house")
    expect(page.get_by_role("heading", name="Compare")).to_be_visible(timeout=60_000)
    assert page.evaluate("document.querySelector('.stMain').scrollWidth") <= 420
    page.close()


def test_blurred_pictures_never_leave_the_server_sharp(address, tab):
    tab.goto(f"{address}/training_set")
    expect(tab.locator(".stMain img").first).to_be_visible()
    sharp = tab.locator(".stMain img").first.get_attribute("src")
    tab.get_by_text("Blur pictures").click()
    expect(tab.locator(".stMain img[alt$='(blurred)']").first).to_be_visible()
    assert tab.locator(".stMain img").first.get_attribute("src") != sharp
