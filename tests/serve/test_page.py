"""The page in a real browser: it asks, streams, stops, shows trees, and takes nothing that a model writes for HTML."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ppd.runtime.model import Model
from tests.serve.servers import Server, serving

PAGE = Path(__file__).parents[2] / "ppd" / "serve" / "page"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
in_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no browser: apt-get install chromium chromium-driver"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1100,800",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=service.Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """What a person does with the page."""

    def __init__(self, driver: Any, server: Server) -> None:
        self.driver = driver
        driver.get(server.url)
        self.wait(lambda: "tiny" in self.all("#model")[0].text)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def wait(self, holds: Callable[[], bool]) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 30, 0.05).until(lambda _: holds())

    def set(self, name: str, value: str) -> None:
        self.driver.execute_script("document.querySelector(`[name=${arguments[0]}]`).value = arguments[1]", name, value)

    def press(self, selector: str, key: str) -> None:
        from selenium.webdriver.common.keys import Keys

        self.all(selector)[0].send_keys(getattr(Keys, key))

    def ask(self, question: str, tokens: int = 24) -> None:
        self.set("max_tokens", str(tokens))
        self.all("#question")[0].send_keys(question)
        self.press("#question", "ENTER")
        self.wait(lambda: bool(self.all("#stop")) and bool(self.all(".answer .figures")[-1].text))

    def finish(self) -> None:
        self.wait(lambda: self.all("#send")[0].is_displayed())

    def click(self, selector: str) -> None:
        self.all(selector)[0].click()

    def complaints(self) -> list[Any]:
        return [entry for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


@in_browser
def test_a_question_is_asked_and_its_answer_streams(browser: Any, server: Server, model: Model) -> None:
    page = Page(browser, server)
    question = "def area(width, height):"
    page.ask(question)
    page.finish()
    expected = model.generate(messages=[{"role": "user", "content": question}], max_new_tokens=24)
    shown = page.driver.execute_script("return document.querySelector('.answer .text').textContent")
    assert "".join(shown.split()) == "".join(expected.text.replace("*", "").split())
    assert "24 tokens" in page.all(".answer .figures")[0].text
    assert "tokens/s" in page.all(".answer .figures")[0].text
    assert page.all("#log")[0].get_attribute("role") == "log"
    assert not page.complaints()


@in_browser
def test_the_switch_shows_steps_sources_and_trees(browser: Any, server: Server) -> None:
    page = Page(browser, server)
    page.set("draft", "always")
    page.ask("for i in range(10):", tokens=40)
    page.finish()
    assert not page.all(".made")[0].is_displayed()
    page.click("#how")
    assert page.all(".made")[0].is_displayed()
    assert not page.all(".answer .text")[0].is_displayed()
    assert len(page.all(".token")) == 40
    assert len(page.all(".token.from-ppd")) > 0
    page.press(".steps", "ARROW_RIGHT")
    assert "the prompt decides it" in page.all(".tree")[0].text
    page.press(".steps", "ARROW_RIGHT")
    assert "guess" in page.all(".tree p")[0].text
    nodes, accepted = page.all(".tree svg g"), page.all(".tree svg g.yes")
    assert len(nodes) > 1
    assert 1 <= len(accepted) <= len(nodes)
    step = max(page.all(".step"), key=lambda found: len(found.find_elements("css selector", ".token")))
    step.click()
    inside = len(step.find_elements("css selector", ".token"))
    assert f"{inside} tokens in one pass" in page.all(".tree p")[0].text
    assert len(page.all(".tree svg g.yes")) == inside  # the root, and every token but the bonus token
    assert not page.complaints()


@in_browser
def test_the_same_question_without_drafting_stands_beside_it(browser: Any, server: Server) -> None:
    page = Page(browser, server)
    page.ask("class Queue:")
    page.finish()
    page.all(".tools button")[1].click()
    page.wait(lambda: len(page.all(".column")) == 2 and "tokens." in page.all(".column")[1].text)
    assert "The same tokens." in page.all(".column")[1].text
    assert "τ 1.00" in page.all(".column")[1].text
    page.all(".tools button")[0].click()  # regenerate
    page.wait(lambda: len(page.all(".column")) == 1 and len(page.all(".tools button")) == 2)
    assert len(page.all(".question")) == 1


@in_browser
@pytest.mark.parametrize("by", ["button", "key"])
@pytest.mark.usefixtures("hold")
def test_a_stop_stops(browser: Any, held_server: Server, by: str) -> None:
    page = Page(browser, held_server)
    page.ask("def f(x):", tokens=400)
    page.wait(lambda: page.all("#stop")[0].is_displayed())
    page.click("#stop") if by == "button" else page.press("body", "ESCAPE")
    page.finish()
    assert "Stopped." in page.all(".answer")[0].text
    page.wait(lambda: held_server.metric("ppd_requests_running") == 0)
    page.ask("x = 1", tokens=3)  # the conversation goes on
    page.finish()
    assert len(page.all(".question")) == 2


@in_browser
def test_what_a_model_writes_is_never_html(browser: Any, server: Server) -> None:
    page = Page(browser, server)
    text = (
        '<img src=x onerror=alert(1)> **<b>bold</b>** [x](javascript:alert(1)) [y](https://e.org/"onclick=1)\n'
        "```\n<script>1</script>\n```\n# <i>h</i>\n- <u>a</u>\n1. b\n> q"
    )
    found = page.driver.execute_async_script(
        "const done = arguments[1]; import('/page/markdown.js').then(({ markdown }) => { const box = "
        "document.createElement('div'); box.append(markdown(arguments[0])); document.body.append(box); "
        "done([[...box.querySelectorAll('*')].map((found) => found.localName), box.textContent, "
        "[...box.querySelectorAll('a')].map((found) => [...found.attributes].map((each) => each.name))]); })",
        text,
    )
    names, shown, attributes = found
    assert set(names) <= {"p", "strong", "a", "pre", "code", "h2", "h4", "ul", "ol", "li", "blockquote", "br", "em"}
    assert {"strong", "a", "pre", "code", "h2", "ul", "ol", "blockquote"} <= set(names)
    for part in ("<img src=x onerror=alert(1)>", "<b>bold</b>", "[x](javascript:alert(1))", "<script>1</script>"):
        assert part in shown
    assert attributes == [["href", "rel", "target"]]


@in_browser
def test_a_phone_has_nothing_beside_its_screen_and_dark_is_kept(browser: Any, server: Server) -> None:
    page = Page(browser, server)
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.ask("import " + "a" * 80)
        page.finish()
        page.click("#how")
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 360
        before = page.driver.execute_script("return document.documentElement.dataset.theme")
        page.click("#theme")
        page = Page(browser, server)
        assert page.driver.execute_script("return document.documentElement.dataset.theme") != before
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@in_browser
def test_a_key_is_asked_for_and_a_model_without_a_template_goes_on(
    browser: Any, tinypy_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("secret")
    with serving(tinypy_bundle, "--api-key-file", tmp_path / "key") as server:
        browser.get(server.url)
        page = Page.__new__(Page)
        page.driver = browser
        page.wait(lambda: "API key is missing" in page.all("#hint")[0].text)
        page.click("#open-settings")
        page.all("[name=key]")[0].send_keys("secret")
        page.press("[name=key]", "ENTER")
        page.wait(lambda: "no chat template" in page.all("#hint")[0].text)
        page.ask("def f(", tokens=8)
        page.finish()
        assert "8 tokens" in page.all(".answer .figures")[0].text
    browser.execute_script("sessionStorage.clear()")


def test_the_page_takes_nothing_from_other_hosts(server: Server) -> None:
    answer = httpx.get(server.url)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in answer.headers["content-security-policy"]
    for file in PAGE.iterdir():
        if file.suffix in (".html", ".css", ".js"):
            text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
            assert "http://" not in text, file
            assert "https://" not in text, file
            assert "innerHTML" not in text, file
            assert "eval(" not in text, file
            path = "" if file.name == "index.html" else f"page/{file.name}"
            assert httpx.get(f"{server.url}/{path}").status_code == 200
    assert httpx.get(f"{server.url}/page/__init__.py").status_code == 404
