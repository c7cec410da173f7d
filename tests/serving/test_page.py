"""The page of `convoy serve` in headless Chromium."""

import base64
import fnmatch
import re
import tomllib

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import expect

from browser import keep, opened
from convoy.core import params as params_file
from convoy.serving import occlusion, page_files
from convoy.serving.model import open_model
from convoy.serving.service import create_app
from convoy.serving.settings import ServeParams
from pages import pictures, running

SHIPPED = params_file.default_at(ServeParams, [])
PHONE_PX = 375


@pytest.fixture(scope="module")
def served(verified):
    return open_model(str(verified[0].model))


@pytest.fixture(scope="module")
def address(served):
    params = ServeParams.model_validate(SHIPPED | {"threads": 1, "min_confidence": 0.99, "max_body_mb": 0.1})
    with running(create_app(served, params)) as address:
        yield address


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    path.write_bytes(pictures(1)[0][1])
    return path


def answered(page):
    expect(page.locator("#bars li")).to_have_count(3)


def test_an_image_is_answered_with_bars_the_square_and_a_heat_map(address, served, photo):
    with opened(address) as page:
        expect(page.locator("#model")).to_contain_text(served.sha256[:12])
        page.set_input_files("#file", photo)
        answered(page)
        best = page.locator("#class strong").inner_text()
        assert best in served.model.classes
        assert page.locator("#bars span").first.inner_text() == best
        expect(page.get_by_text("uncertain", exact=True)).to_be_visible()
        assert page.evaluate("document.getElementById('seen').width") == 12
        expect(page.locator("#details")).to_contain_text("Answered by")
        page.get_by_role("button", name="Compute heat map").click()
        heat = page.get_by_role("img", name=re.compile("Heat map"))
        expect(heat).to_be_visible()
        colours = "() => new Set(document.getElementById('heat').getContext('2d').getImageData(0, 0, 480, 480).data).size"
        assert page.evaluate(colours) > 20
        keep(page, "serve", 1500, 900)


GIVE = """([name, text, how]) => {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const data = new DataTransfer();
  if (bytes.length) data.items.add(new File([bytes], name, { type: "image/jpeg" }));
  const options = { bubbles: true, cancelable: true };
  if (how === "drop") document.body.dispatchEvent(new DragEvent("drop", { ...options, dataTransfer: data }));
  else document.body.dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: data }));
}"""


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_an_image_is_dropped_or_pasted_anywhere(address, photo, how):
    content = base64.b64encode(photo.read_bytes()).decode()
    with opened(address) as page:
        page.evaluate(GIVE, ["", "", how])
        expect(page.get_by_role("alert")).to_contain_text(
            "No file was dropped" if how == "drop" else "no image"
        )
        page.evaluate(GIVE, [photo.name, content, how])
        answered(page)
        expect(page.get_by_role("alert")).to_be_empty()


def test_the_reason_of_the_service_is_shown(address, photo):
    with opened(address, strict=False) as page:
        page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"<html>"})
        expect(page.get_by_role("alert")).to_contain_text("web page")
        page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"0" * 200_000})
        expect(page.get_by_role("alert")).to_contain_text("the limit is 100,000")
        expect(page.locator("#answer")).to_be_hidden()
        page.set_input_files("#file", photo)
        answered(page)
        expect(page.get_by_role("alert")).to_be_empty()


def test_the_keyboard_suffices(address, photo):
    with opened(address) as page:
        page.on("filechooser", lambda chooser: chooser.set_files(photo))
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "file"
        outline = "getComputedStyle(document.getElementById('drop')).outlineStyle"
        assert page.evaluate(outline) == "solid"
        page.keyboard.press("Space")
        answered(page)
        for _ in range(8):
            if page.evaluate("document.activeElement.id") == "explain-button":
                break
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.get_by_role("img", name=re.compile("Heat map"))).to_be_visible()


def test_everything_has_a_name_and_changes_are_announced(address, photo):
    with opened(address) as page:
        page.set_input_files("#file", photo)
        answered(page)
        page.get_by_role("button", name="Draw").click()
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll("input, button, canvas, img, video, meter")].filter(one =>
                one.checkVisibility() && !(one.ariaLabel || one.alt || one.textContent.trim() || one.labels?.length)
            ).map(one => one.outerHTML)"""
        )
        assert unnamed == []
        assert page.get_by_role("status").count() == page.get_by_role("alert").count() == 1
        assert page.locator("h1").count() == 1
        assert page.locator("html").get_attribute("lang") == "en"


def luminance(page, selector, which):
    """Relative luminance by WCAG 2.2 of a colour of an element."""
    colour = page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{which}")
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways_in_light_and_dark(address, photo, scheme):
    with opened("about:blank") as page:
        page.set_viewport_size({"width": PHONE_PX, "height": 800})
        page.emulate_media(color_scheme=scheme)
        page.goto(address)
        page.get_by_role("button", name="Draw").click()
        page.set_input_files("#file", photo)
        answered(page)
        page.get_by_role("button", name="Compute heat map").click()
        expect(page.locator("#heat")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE_PX
        low = page.locator("button:visible").evaluate_all(
            "buttons => buttons.filter(one => one.getBoundingClientRect().height < 44).map(one => one.textContent)"
        )
        assert low == []
        paper = luminance(page, "section", "backgroundColor")
        assert (paper < 0.2) == (scheme == "dark")
        for selector in ("h2", "#explain-text", "#details"):
            ink = luminance(page, selector, "color")
            dark, light = sorted((ink, paper))
            assert (light + 0.05) / (dark + 0.05) >= 4.5
        keep(page, f"serve-phone-{scheme}", 2600, PHONE_PX)


def test_a_heat_map_that_takes_too_long_is_made_coarser(address, photo, monkeypatch):
    whole = occlusion.heat_map

    def slow(served, image_u8, label, grid, deadline):
        if grid > 4:
            raise occlusion.OutOfTime
        return whole(served, image_u8, label, grid, deadline)

    monkeypatch.setattr(occlusion, "heat_map", slow)
    with opened(address, strict=False) as page:
        page.set_input_files("#file", photo)
        answered(page)
        page.get_by_role("button", name="Compute heat map").click()
        expect(page.get_by_role("img", name=re.compile("Heat map"))).to_have_attribute(
            "aria-label", re.compile("of 4|No covered part")
        )


def test_a_token_is_typed_once_and_then_sent(served, photo):
    params = ServeParams.model_validate(SHIPPED | {"threads": 1})
    app = create_app(served, params, token="hush")  # noqa: S106 (of a test)
    with running(app) as address, opened(address, strict=False) as page:
        field = page.get_by_label("This service needs a token")
        field.fill("wrong")
        field.press("Enter")
        expect(field).to_be_visible()
        field.fill("hush")
        field.press("Enter")
        expect(page.locator("#model")).to_contain_text("3 classes")
        page.set_input_files("#file", photo)
        answered(page)
        expect(field).to_be_hidden()


def test_the_files_have_headers_and_no_address_of_another_host(served):
    params = ServeParams.model_validate(SHIPPED | {"threads": 1})
    app = create_app(served, params, token="hush")  # noqa: S106 (of a test)
    with TestClient(app) as client:
        html = client.get("/")
        assert html.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in html.headers["content-security-policy"]
        assert "'wasm-unsafe-eval'" not in html.headers["content-security-policy"]
        again = client.get("/", headers={"if-none-match": html.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        for name in page_files.SERVICE:
            answer = client.get(f"/page/{name}")
            assert answer.status_code == 200
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert not re.findall(r"https?://", answer.text)
        assert client.get("/page/demo.js").status_code == 404
        assert client.get("/page/..%2fservice.py").status_code == 404
        assert "/page/" not in client.get("/openapi.json", headers={"authorization": "Bearer hush"}).text


def test_every_file_of_the_page_is_installed_with_the_package(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["convoy"]
    folder = repository / "src/convoy"
    used = {page_files.HTML, *page_files.SERVICE, *page_files.DEMO} - {page_files.BASE}
    there = {path.name for path in (folder / "serving/page").iterdir()}
    assert used == there
    for name in used:
        assert any(fnmatch.fnmatch(f"serving/page/{name}", pattern) for pattern in patterns)
