"""A real Chromium without a window, driven over its debugging pipe: no package, no port, one process for many pages.

with Browser(folder / "profile") as browser:
    page = browser.page(width=390, dark=True)
    page.open("http://127.0.0.1:7860/")
    page.wait("document.querySelector('h1')")
    page.drop("#caption", [Path("cat.jpg")])
    page.screenshot(folder / "phone.png")
    assert page.errors == []
"""

from __future__ import annotations

import base64
import json
import os
import re
import select
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""None: this machine has no browser, and what needs one is skipped."""
PATIENCE = 60
"""Seconds that something on a page may take; a slow machine is not a fault of the page."""

PASTE = """function (selector) {
  const given = new DataTransfer();
  for (const file of this.files) given.items.add(file);
  document.querySelector(selector).dispatchEvent(
    new ClipboardEvent("paste", { clipboardData: given, bubbles: true, cancelable: true }));
  this.remove();
}"""
LEAVE = "addEventListener('beforeunload', (event) => window.mayLeave && event.stopImmediatePropagation())"
"""Nobody is asked whether a page with texts that are not kept may be left, once its test is over."""
KEYS = {
    "Enter": ("\r", 13),
    "Escape": ("", 27),
    "Tab": ("", 9),
    "ArrowDown": ("", 40),
    "ArrowUp": ("", 38),
    "ArrowLeft": ("", 37),
    "ArrowRight": ("", 39),
    "Backspace": ("", 8),
    "Delete": ("", 46),
}
MODIFIERS = {"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}


class Browser:
    """One process; every page of it begins with an empty storage."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        commands_in, commands_out = os.pipe()
        answers_in, answers_out = os.pipe()

        def pipes() -> None:
            """File descriptors 3 and 4, where Chromium looks for them; none of ours lies there by then."""
            given, taken = os.dup(commands_in), os.dup(answers_out)
            given, taken = os.dup2(given, 100), os.dup2(taken, 101)
            os.dup2(given, 3)
            os.dup2(taken, 4)

        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        command += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--hide-scrollbars", "--disable-sync"]
        command += ["--force-color-profile=srgb", "--disable-component-update", "--no-first-run"]
        command += ["--disable-features=BackForwardCache,SpareRendererForSitePerProcess", "about:blank"]
        self.process = subprocess.Popen(
            command, preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands_in)
        os.close(answers_out)
        self._to, self._from = commands_out, answers_in
        self._buffer = b""
        self._number = 0
        self.events: deque[dict] = deque()
        self.free: list[tuple[str, str]] = []
        """Contexts with their empty tab, of pages that were closed: to begin a process anew takes most of a second."""

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            self.send("Browser.close")
            self.process.wait(timeout=10)
        except (OSError, EOFError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self._to)
        os.close(self._from)

    def page(self, width: int = 1280, height: int = 900, dark: bool = False, touch: bool = False) -> Page:
        """A page in a context of its own: no cookie, no storage of another page."""
        if self.free:
            context, target = self.free.pop()
        else:
            context = self.send("Target.createBrowserContext")["browserContextId"]
            target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, context, target, width, height, dark, touch)

    def send(self, method: str, session: str | None = None, **given: Any) -> dict:
        """A command of the DevTools protocol and its answer; what happens meanwhile is kept in `events`."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": given} | ({"sessionId": session} if session else {})
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        until = time.monotonic() + PATIENCE
        while True:
            answer = self.receive(until - time.monotonic())
            if answer is None:
                raise TimeoutError(f"{method} was not answered")
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def receive(self, seconds: float) -> dict | None:
        """The next message, or None where there is none in time."""
        until = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            data = os.read(self._from, 1 << 20)
            if not data:
                raise EOFError("Chromium has ended")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


class Page:
    """One tab: what it asked for (`requests`) and what went wrong in it (`errors`) are kept."""

    def __init__(
        self,
        browser: Browser,
        session: str,
        context: str,
        target: str,
        width: int,
        height: int,
        dark: bool,
        touch: bool,
    ) -> None:
        self.browser, self.session, self.context, self.target = browser, session, context, target
        self._errors: list[str] = []
        self._requests: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.send(f"{domain}.enable")
        self.send("Page.addScriptToEvaluateOnNewDocument", source=LEAVE)
        self.resize(width, height, touch)
        self.scheme("dark" if dark else "light")

    def send(self, method: str, **given: Any) -> dict:
        return self.browser.send(method, self.session, **given)

    def resize(self, width: int, height: int, touch: bool = False, scale: float = 1) -> None:
        """The window as the page sees it; touch: as on a phone."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=touch
        )

    def scheme(self, name: str, *, reduced_motion: bool = True) -> None:
        """light or dark, as the system would say."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        if reduced_motion:
            features.append({"name": "prefers-reduced-motion", "value": "reduce"})
        self.send("Emulation.setEmulatedMedia", features=features)

    def open(self, address: str) -> None:
        """Go there, and wait until all of it is loaded."""
        self.send("Page.navigate", url=address)
        shown = re.sub("//[^/@]*@", "//", address)  # a name and a password are not
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(shown)})")

    def run(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        done = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        if "exceptionDetails" in done:
            details = done["exceptionDetails"]
            raise AssertionError(details.get("exception", {}).get("description") or details["text"])
        return done["result"].get("value")

    def wait(self, script: str, seconds: float = PATIENCE) -> Any:
        """Until the expression is true; its value."""
        until = time.monotonic() + seconds
        shown = f"Promise.resolve({script}).then((value) => value instanceof Node || value)"  # a node has no JSON
        while True:
            try:
                if value := self.run(shown):
                    return value
            except (AssertionError, RuntimeError) as error:  # between two pages there is nothing to ask
                if time.monotonic() > until:
                    raise AssertionError(f"{script}: {error}") from error
            if time.monotonic() > until:
                raise AssertionError(f"never true: {script}; errors: {self.errors}")
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """What an element shows."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def click(self, selector: str) -> None:
        """A real click on the middle of an element, once it is shown."""
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def _middle(self, selector: str) -> tuple[float, float]:
        """Where an element's middle is, once it is shown: that of a view that is about to come is nowhere yet."""
        self.wait(f"document.querySelector({json.dumps(selector)})?.checkVisibility()")
        return self.run(f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            e.scrollIntoView({{ block: "center" }}); const r = e.getBoundingClientRect();
            return [r.x + r.width / 2, r.y + r.height / 2]; }})()""")

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """`press("j")`, `press("Control+Enter")`."""
        *held, name = key.split("+") if key != "+" else [key]
        bits = sum(MODIFIERS[one] for one in held)
        text, code = KEYS.get(name, (name, ord(name.upper()) if len(name) == 1 else 0))
        text = "" if bits & ~MODIFIERS["Shift"] else text
        event = {"key": name, "code": name if len(name) > 1 else "", "modifiers": bits, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **event)
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def fill(self, selector: str, value: str) -> None:
        """A field's value, told to the page as if it had been typed."""
        self.run(f"""(() => {{ const e = document.querySelector({json.dumps(selector)}); e.focus();
            if (e.type === "checkbox") e.checked = {json.dumps(bool(value))}; else e.value = {json.dumps(value)};
            for (const n of ["input", "change"]) e.dispatchEvent(new Event(n, {{ bubbles: true }})); }})()""")

    def choose(self, selector: str, files: Sequence[Path]) -> None:
        """Files into a file field."""
        node = self._object(f"document.querySelector({json.dumps(selector)})")
        self.send("DOM.setFileInputFiles", objectId=node, files=[str(file) for file in files])

    def drop(self, selector: str, files: Sequence[Path]) -> None:
        """Files dragged onto the middle of an element and let go of there, which the page has to take."""
        x, y = self._middle(selector)
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def paste(self, selector: str, files: Sequence[Path]) -> None:
        """Files put in from the clipboard."""
        field = self._object("Object.assign(document.createElement('input'), { type: 'file', multiple: true })")
        self.send("DOM.setFileInputFiles", objectId=field, files=[str(file) for file in files])
        self.send(
            "Runtime.callFunctionOn",
            objectId=field,
            functionDeclaration=PASTE,
            arguments=[{"value": selector}],
            userGesture=True,
        )

    def _object(self, script: str) -> str:
        return self.send("Runtime.evaluate", expression=script)["result"]["objectId"]

    def copied(self) -> str:
        """The text in the clipboard, which the page itself may not read but for this moment."""
        allowed = ["clipboardReadWrite", "clipboardSanitizedWrite"]
        self.browser.send("Browser.grantPermissions", permissions=allowed, browserContextId=self.context)
        text = self.run("navigator.clipboard.readText()")
        self.browser.send("Browser.resetPermissions", browserContextId=self.context)
        return text

    def downloads_into(self, folder: Path) -> None:
        """What the page hands out lands here under its own name."""
        self.browser.send(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), browserContextId=self.context
        )

    def screenshot(self, file: Path, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        file.write_bytes(base64.b64decode(data))

    @property
    def sticks_out(self) -> int:
        """By how many pixels the page could be scrolled sideways; 0 is right."""
        return self.run("Math.max(0, document.documentElement.scrollWidth - document.documentElement.clientWidth)")

    @property
    def errors(self) -> list[str]:
        """Exceptions, errors in the console and refused or missing resources."""
        self._collect()
        return self._errors

    @property
    def requests(self) -> list[str]:
        """Every address that was asked for."""
        self._collect()
        return self._requests

    def close(self) -> None:
        """Leave the tab to the next page, with nothing in it."""
        self._collect()
        for origin in {match[0] for address in self._requests if (match := re.match("https?://[^/]+", address))}:
            self.send("Storage.clearDataForOrigin", origin=origin, storageTypes="all")
        self.run("sessionStorage.clear()")
        self.run("window.mayLeave = true")
        self.run("location.replace('about:blank')")
        self.wait("location.href === 'about:blank'")
        self.send("Page.resetNavigationHistory")
        self.browser.send("Browser.setDownloadBehavior", behavior="default", browserContextId=self.context)
        self.browser.send("Target.detachFromTarget", sessionId=self.session)
        self.browser.free.append((self.context, self.target))

    def _collect(self) -> None:
        self.send("Runtime.evaluate", expression="0")  # so that what happened before has arrived
        others = [event for event in self.browser.events if event.get("sessionId") != self.session]
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            name, given = event["method"], event["params"]
            if name == "Network.requestWillBeSent":
                self._requests.append(given["request"]["url"])
            elif name == "Runtime.exceptionThrown":
                details = given["exceptionDetails"]
                self._errors.append(details.get("exception", {}).get("description") or details["text"])
            elif name == "Runtime.consoleAPICalled" and given["type"] in ("error", "assert"):
                self._errors.append(" ".join(str(one.get("value", one.get("description"))) for one in given["args"]))
            elif name == "Log.entryAdded" and given["entry"]["level"] == "error":
                self._errors.append(f"{given['entry']['text']} {given['entry'].get('url', '')}".strip())
        self.browser.events.clear()
        self.browser.events.extend(others)
