"""A real headless Chromium, with a profile of its own, that remembers everything its page complained about."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.integration.webui_node import wait_for

ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # root in a container
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--mute-audio",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
)

SET_VALUE = """
const field = document.getElementById(arguments[0]);
field.value = arguments[1];
field.dispatchEvent(new Event("input", { bubbles: true }));
"""


def require_chromium() -> tuple[str, str]:
    found = shutil.which("chromium"), shutil.which("chromedriver")
    if found[0] and found[1]:
        return found[0], found[1]
    message = "needs Debian's chromium and chromium-driver (.ci/run installs them)"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


class Browser:
    def __init__(self, profile: Path, size: tuple[int, int] = (1280, 900)) -> None:
        binary, driver = require_chromium()
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for argument in (*ARGUMENTS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(driver))

    def open(self, url: str) -> None:
        self.driver.get(url)

    def close(self) -> None:
        self.driver.quit()

    def find(self, identity: str) -> WebElement:
        return self.driver.find_element(By.ID, identity)

    def text(self, identity: str) -> str:
        return self.script("return document.getElementById(arguments[0]).textContent", identity)

    def is_shown(self, identity: str) -> bool:
        return self.find(identity).is_displayed()

    def fill(self, **fields: Any) -> None:
        for name, value in fields.items():
            field = self.find(name)
            field.clear()
            field.send_keys(str(value))

    def value(self, identity: str) -> str:
        return str(self.script("return document.getElementById(arguments[0]).value", identity))

    def set_value(self, identity: str, value: Any) -> None:
        """For what a keyboard sets clumsily, as sliders."""
        self.script(SET_VALUE, identity, value)

    def click(self, selector: str) -> None:
        """Every element that the selector means, visible or not."""
        self.script("document.querySelectorAll(arguments[0]).forEach((one) => one.click())", selector)

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def wait_until(self, identity: str, text: str, seconds: float = 20) -> None:
        """Also for an element that is only made when it has something to say, as a field's error is."""
        asked = "return document.getElementById(arguments[0])?.textContent.includes(arguments[1])"
        wait_for(lambda: self.script(asked, identity, text), seconds)

    def complaints(self) -> list[str]:
        """Everything in the console: errors, warnings, refused content."""
        return [entry["message"] for entry in self.driver.get_log("browser")]
