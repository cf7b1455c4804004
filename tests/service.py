"""`convnext serve` in a process of its own."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import httpx


class Service:
    """A running service. `client` talks to it; `stop()` is SIGTERM and gives the exit code."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "convnext", "serve", *map(str, arguments), "--port", "0", "--device", "cpu"]
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


@contextmanager
def running(*arguments):
    """A service, ended in any case."""
    service = Service(*arguments)
    try:
        yield service
    finally:
        service.process.kill()
        service.process.wait()


def encoded(picture, kind="PNG", **options):
    """A picture's file."""
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
