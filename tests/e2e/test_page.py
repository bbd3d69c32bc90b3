"""The page at `/`, in a real Chromium that can reach nothing but the service."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.ui import WebDriverWait

from tests.e2e.conftest import Serve, Served
from tests.e2e.services import surface

SERVICES = Path(surface.__file__).parent
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--window-size=1200,1600",
)
_SECONDS = 30


class Page:
    """The page as a person uses it."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser = browser
        browser.get(url)
        self.wait(".opblock")

    def wait(self, selector: str, inside: WebElement | None = None) -> WebElement:
        waiting = WebDriverWait(self.browser, _SECONDS)
        found: WebElement = waiting.until(
            lambda browser: (inside or browser).find_element(By.CSS_SELECTOR, selector),
            f"{selector} did not appear: {self.browser.find_element(By.TAG_NAME, 'body').text}",
        )
        return found

    def operations(self) -> list[str]:
        return [
            f"{block.find_element(By.CLASS_NAME, 'opblock-summary-method').text} {path_of(block)}"
            for block in self.browser.find_elements(By.CLASS_NAME, "opblock")
        ]

    def open(self, path: str) -> WebElement:
        """Unfold an operation."""
        block = next(b for b in self.browser.find_elements(By.CLASS_NAME, "opblock") if path_of(b) == path)
        block.find_element(By.CLASS_NAME, "opblock-summary-control").click()
        self.wait(".execute", block)
        return block

    def execute(self, block: WebElement) -> tuple[str, str]:
        """Press "Execute", and return the status and the body that the page shows."""
        block.find_element(By.CLASS_NAME, "execute").click()
        status = self.wait(".live-responses-table tr.response .response-col_status", block).text
        code = block.find_elements(By.CSS_SELECTOR, ".live-responses-table tr.response .highlight-code code")
        return status, (code[0].get_attribute("textContent") or "") if code else ""

    def log(self) -> list[str]:
        """What the browser complained of: a script's error, a file that was refused."""
        return [entry["message"] for entry in self._entries("browser")]

    def addresses(self) -> set[str]:
        """Where the page asked for something, as scheme and host."""
        messages = [json.loads(entry["message"])["message"] for entry in self._entries("performance")]
        sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        urls = [each["request"]["url"] for each in sent if each.get("documentURL", "").startswith("http")]
        return {url.split(",")[0].split(";")[0] if url.startswith("data:") else url for url in urls}

    def _entries(self, kind: str) -> list[dict[str, Any]]:
        browser: Any = self.browser  # get_log has no types
        entries: list[dict[str, Any]] = browser.get_log(kind)
        return entries


def path_of(block: WebElement) -> str:
    path = block.find_element(By.CLASS_NAME, "opblock-summary-path").get_attribute("data-path")
    assert path is not None
    return path


@pytest.fixture(scope="module")
def served(serve: Serve) -> Served:
    return serve("surface.py:svc", "--development", working_dir=SERVICES)


@pytest.fixture(scope="module")
def page(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    driver = shutil.which("chromedriver")
    assert driver, "This test needs Chromium: `apt-get install chromium chromium-driver`."
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, Driver(driver, env={**os.environ, "no_proxy": "*"})) as browser:
        yield Page(browser, served.url)


def test_page_lists_every_operation_of_the_document(page: Page, served: Served) -> None:
    document = served.get("/docs.json").json()
    described = [f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item]
    assert sorted(page.operations()) == sorted(described)
    assert page.browser.title == "surface"
    assert page.browser.find_element(By.CSS_SELECTOR, ".info .title").text.startswith("surface")


def test_page_sends_json_that_it_made_up_itself(page: Page) -> None:
    status, body = page.execute(page.open("/pick"))
    assert status == "200"
    assert json.loads(body) == {"name": "string", "petals": [0]}


def test_page_fills_in_the_parameters_of_a_path(page: Page) -> None:
    block = page.open("/v3/{item}/x")
    block.find_element(By.CSS_SELECTOR, ".parameters input").send_keys("größe 1")
    status, body = page.execute(block)
    assert (status, json.loads(body)["item"]) == ("200", "größe 1")


def test_page_sends_a_form_of_several_parts(page: Page) -> None:
    status, body = page.execute(page.open("/join"))
    assert status == "200"
    assert json.loads(body) == {"sum": 3.0, "name": "string", "note": "string"}


def test_page_sends_a_file_and_offers_the_one_that_comes_back(page: Page, tmp_path: Path) -> None:
    picture = tmp_path / "red.png"
    PIL.Image.new("RGB", (40, 20), "red").save(picture)
    block = page.open("/turn")
    block.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(picture))
    assert page.execute(block)[0] == "200"
    assert page.wait(".live-responses-table a[download]", block).get_attribute("href")


def test_page_shows_the_schema_of_a_model(page: Page) -> None:
    titles = page.browser.find_elements(By.CSS_SELECTOR, "section.models .json-schema-2020-12__title")
    assert {"Flower", "Error", "Item"} <= {title.text for title in titles}


def test_page_needed_nothing_but_the_service_and_complained_of_nothing(page: Page, served: Served) -> None:
    assert page.log() == []
    asked = page.addresses()
    own = ("data:image/", f"blob:{served.url}/", f"{served.url}/")
    assert [url for url in asked if not url.startswith(own)] == []
    assert f"{served.url}/static_content/swagger-ui-bundle.js" in asked


def test_page_of_a_server_with_tokens_asks_for_one_and_sends_it(page: Page, serve: Serve) -> None:
    env = {"ADAPTER_API_TOKENS": "first,second"}
    guarded = serve("surface.py:svc", "--development", working_dir=SERVICES, env=env)
    page.browser.get(guarded.url)
    for token, refusal in (("first,second", "none that this server takes"), ("größe 漢", "ISO-8859-1"), ("second", "")):
        field = page.wait("input[name=token]")
        field.clear()
        field.send_keys(token)
        page.wait("form button").click()
        if refusal:
            said = expected_conditions.text_to_be_present_in_element((By.TAG_NAME, "output"), refusal)
            WebDriverWait(page.browser, _SECONDS).until(said)
    page.wait(".opblock")
    status, body = page.execute(page.open("/pick"))
    assert (status, json.loads(body)["name"]) == ("200", "string")
    block = page.open("/livez")
    assert page.execute(block)[0] == "200"
    assert "authorization" not in page.wait(".curl", block).text.lower()
    assert page.browser.find_elements(By.CSS_SELECTOR, ".authorize.locked"), "the page does not show its token as given"
    assert not [line for line in page.log() if "401" not in line]  # of the page itself, and of the wrong token
    assert {url.split("?")[0] for url in page.addresses() if "second" in url} == set()
