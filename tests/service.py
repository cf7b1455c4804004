"""`convnext serve` in a process of its own."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from io import BytesIO
from pathlib import Path

import httpx


class Service:
    """A running service. `client` talks to it; `stop()` is SIGTERM and gives the exit code."""

    def __init__(self, *arguments, code=None):
        command = [sys.executable, "-m", "convnext", "serve", "--port", "0", "--device", "cpu", *map(str, arguments)]
        if code is not None:
            command = [sys.executable, "-c", code, *map(str, arguments)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        self.said = ""

    def wait(self):
        """Until it is ready."""
        while not (found := re.search(r"on (http://([\d.]+):(\d+))", self.said)):
            line = self.process.stderr.readline()
            assert line, f"the service ended: {self.said}"
            self.said += line
        self.url, self.address = found[1], (found[2], int(found[3]))
        threading.Thread(target=self._read, daemon=True).start()
        self.client = httpx.Client(base_url=self.url, timeout=30)
        while self.client.get("/ready").status_code != 200:
            time.sleep(0.02)
        return self

    def _read(self):
        for line in self.process.stderr:
            self.said += line

    def metric(self, name):
        """The value of one sample, as `convnext_queue_length{model="w"}`."""
        found = re.search(rf"^{re.escape(name)} (.*)$", self.client.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def rss(self):
        """Bytes of memory that the process holds."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@asynccontextmanager
async def started(app, **options):
    """A client of a service in this process, whose models are warmed up."""
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x", timeout=30, **options)
    async with app.router.lifespan_context(app), client:
        until = time.monotonic() + 60
        while (await client.get("/ready")).status_code != 200:
            assert time.monotonic() < until, "it does not become ready"
            await asyncio.sleep(0.01)
        yield client


@contextmanager
def running(*arguments, code=None):
    """A service, ended in any case; of a program of its own where `code` has one."""
    service = Service(*arguments, code=code)
    try:
        yield service
    finally:
        service.process.kill()
        service.process.wait()


def encoded(image, kind="PNG", **options):
    """An image's file."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
