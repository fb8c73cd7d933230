"""Chromium without a screen, through the protocol of its developer tools."""

import base64
import contextlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

from websockets.sync import client

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find():
  """The browser of this machine, None without one.

  STEPPO_CHROMIUM may name the folder of another one, which `make test-browser`
  unpacks where the system has none.
  """
  folder = os.environ.get("STEPPO_CHROMIUM")
  if folder:
    return str(pathlib.Path(folder).resolve() / "chromium")
  return next(filter(None, map(shutil.which, NAMES)), None)


def _environment():
  """For a browser that brings its libraries and fonts."""
  folder = pathlib.Path(find()).parent
  if not (folder / "fonts.conf").is_file():
    return None
  return {
    **os.environ,
    "LD_LIBRARY_PATH": str(folder / "lib"),
    "FONTCONFIG_FILE": str(folder / "fonts.conf"),
  }


class Page:
  """One page; `errors` holds what its console complained of."""

  def __init__(self, socket):
    self._socket = socket
    self._numbers = itertools.count(1)
    self.errors = []
    self.requests = []
    for name in ("Page", "Runtime", "Log", "Network"):
      self.send(f"{name}.enable")

  def send(self, method, **parameters):
    """Calls a method of the protocol; takes in events that come meanwhile."""
    number = next(self._numbers)
    self._socket.send(
      json.dumps({"id": number, "method": method, "params": parameters})
    )
    while True:
      told = json.loads(self._socket.recv(timeout=60))
      if told.get("id") == number:
        if "error" in told:
          raise RuntimeError(f"{method}: {told['error']}")
        return told["result"]
      self._take(told)

  def _take(self, told):
    parameters = told.get("params", {})
    kind = told.get("method")
    if kind == "Runtime.exceptionThrown":
      details = parameters["exceptionDetails"]
      self.errors.append(json.dumps(details)[:500])
    elif kind == "Log.entryAdded" and parameters["entry"]["level"] == "error":
      self.errors.append(parameters["entry"]["text"])
    elif kind == "Runtime.consoleAPICalled" and parameters["type"] == "error":
      self.errors.append(json.dumps(parameters["args"])[:500])
    elif kind == "Network.requestWillBeSent":
      self.requests.append(parameters["request"]["url"])

  def run(self, code):
    """The value of an expression, awaited if it is a promise."""
    found = self.send(
      "Runtime.evaluate", expression=code, awaitPromise=True,
      returnByValue=True,
    )  # fmt: skip
    if "exceptionDetails" in found:
      raise RuntimeError(json.dumps(found["exceptionDetails"])[:500])
    return found["result"].get("value")

  def open(self, url):
    self.send("Page.navigate", url=url)

  def until(self, code, seconds=30.0):
    """Waits until an expression holds; returns the seconds that it took."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
      with contextlib.suppress(RuntimeError):
        if self.run(f"(async () => Boolean(await ({code})))()"):
          return time.monotonic() - start
      time.sleep(0.005)
    shown = self.run("document.body ? document.body.innerText : ''")
    raise AssertionError(
      f"{code} does not hold; the page shows {shown[:800]} "
      f"and complains {self.errors}"
    )

  def size(self, width, height, *, dark=False):
    self.send(
      "Emulation.setDeviceMetricsOverride", width=width, height=height,
      deviceScaleFactor=1, mobile=width < 600,
    )  # fmt: skip
    scheme = {
      "name": "prefers-color-scheme", "value": "dark" if dark else "light"
    }  # fmt: skip
    self.send("Emulation.setEmulatedMedia", features=[scheme])

  def key(self, name, text=""):
    codes = {"ArrowRight": 39, "ArrowLeft": 37, "Tab": 9, "Enter": 13}
    more = {"windowsVirtualKeyCode": codes[name]} if name in codes else {}
    if name == "Enter":
      text = "\r"
    self.send("Input.dispatchKeyEvent", type="keyDown", key=name, text=text,
              **more)  # fmt: skip
    self.send("Input.dispatchKeyEvent", type="keyUp", key=name, **more)

  def picture(self, path):
    found = self.send("Page.captureScreenshot", format="png")
    pathlib.Path(path).write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def page():
  """A page of a browser of its own, with a profile that is gone afterwards."""
  with contextlib.ExitStack() as stack:
    profile = pathlib.Path(stack.enter_context(
      tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    ))  # fmt: skip
    browser = subprocess.Popen(
      [
        find(), "--headless=new", "--no-sandbox", "--disable-gpu",
        "--disable-dev-shm-usage", "--remote-debugging-port=0",
        f"--user-data-dir={profile}", "--no-first-run",
        "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "about:blank",
      ],
      env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    stack.callback(_end, browser)
    place = profile / "DevToolsActivePort"
    for _ in range(600):
      if place.is_file() and "\n" in place.read_text():
        break
      time.sleep(0.05)
    port = place.read_text().split()[0]
    yield Page(stack.enter_context(_connect(port)))


def _connect(port):
  import http.client

  there = http.client.HTTPConnection("localhost", int(port), timeout=30)
  there.request("GET", "/json/list")
  targets = json.loads(there.getresponse().read())
  there.close()
  url = next(t for t in targets if t["type"] == "page")["webSocketDebuggerUrl"]
  return client.connect(url, max_size=None, open_timeout=30)


def _end(browser):
  browser.terminate()
  try:
    browser.wait(10)
  except subprocess.TimeoutExpired:
    browser.kill()
    browser.wait()
