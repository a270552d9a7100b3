"""Makes docs/console.png: the page of an edge that catches up, in Debian's Chromium.

.venv/bin/python tests/picture.py
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from browser import browser
from PIL import Image
from serving import Client, app_of, serving

import nearlite
from nearlite.applications import RelayApp
from nearlite.relay import Relay

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "console.png"
SIZE = {"width": 1100, "height": 700}
QUERY = "SELECT name, people FROM city ORDER BY people DESC LIMIT 4"
CITIES = [("Lima", 10_300_000), ("Oslo", 720_000), ("Kyoto", 1_440_000), ("Accra", 2_660_000)]


@contextmanager
def writing(url: str) -> Iterator[None]:
    """Somebody writes until the block ends, in waves."""
    ends = threading.Event()

    def write() -> None:
        connection = nearlite.connect(url)
        number = 0
        while not ends.wait(0.015 if number % 200 < 150 else 0.1):
            number += 1
            connection.execute("UPDATE city SET people = people + 1 WHERE name = 'Lima'")
            connection.commit()
        connection.close()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def main(picture: Path) -> None:
    """Write it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        top = stack.enter_context(serving(app_of(folder / "cities.db")))
        above = f"http://127.0.0.1:{top}"
        client = Client(top)
        client.run("CREATE TABLE city(name TEXT PRIMARY KEY, people INTEGER)")
        client.run(*(f"INSERT INTO city VALUES('{name}', {people})" for name, people in CITIES))

        def open_relay(name: str, url: str, region: str, interval: float | None) -> Relay:
            return Relay.open(folder / name, url, region=region, sync_interval=interval)

        def edge(name: str, url: str, region: str, interval: float | None) -> str:
            app = RelayApp(
                folder / name,
                lambda: open_relay(name, url, region, interval),
                console=True,
                edge=True,
                region=region,
            )
            return f"http://127.0.0.1:{stack.enter_context(serving(app))}"

        here = edge("cities.db.ams", above, "ams", 4.0)
        below = edge("cities.db.waw", here, "waw", None)
        for number, (url, interval) in enumerate(((here, "live"), (here, 9.0), (below, "live"))):
            replica = nearlite.connect(
                folder / f"replica{number}.db",
                sync_url=url,
                sync_interval=interval,  # type: ignore[arg-type]
            )
            stack.callback(replica.close)
        Client(int(below.rpartition(":")[2])).request("GET", "/nl/v1/status")
        seen = stack.enter_context(browser())
        stack.enter_context(writing(above))
        seen.open("edge", here + "/", **SIZE)
        seen.fill("edge", "#sql", QUERY)
        # Errors are part of the story, too.
        Client(int(here.rpartition(":")[2])).request("GET", "/nl/v1/changes/nowhere")
        seen.when("edge", "looks.length > 40 && looks.at(-1).lag > 1.5")
        seen.press("edge", "#sql", "Control+Enter")
        seen.until("edge", "#outcome", "^4 rows")
        seen.screenshot("edge", str(picture))
    with Image.open(picture) as image:
        image.convert("RGB").quantize(256).save(picture, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
