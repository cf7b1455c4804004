"""A server of files, for tests of what is downloaded."""

import hashlib
import http.server
import threading


class Server(http.server.ThreadingHTTPServer):
    """Files over HTTP with entity tags and ranges, as the stores do; cuts the next `cuts` answers off after `most` bytes."""

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cuts, self.most, self.log = files, 0, 0, []
        self.type, self.logins, self.commit = "application/octet-stream", [], "c0ffee"
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, wanted = self.path.lstrip("/"), self.headers.get("Range")
        self.server.log.append((path, wanted))
        if login := self.headers.get("Authorization"):
            self.server.logins.append(login)
        content = self.server.files.get(path)
        if not isinstance(content, bytes):
            self.send_response(content or 404)
            self.send_header("Content-Length", "0")
            self.send_header("X-Repo-Commit", self.server.commit)
            self.send_header("X-Error-Code", "EntryNotFound")
            return self.end_headers()
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        if self.headers.get("If-Range", tag) != tag:
            start = 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", tag)
        self.send_header("Content-Type", self.server.type)
        self.send_header("X-Repo-Commit", self.server.commit)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET" and self.server.cuts:
            self.server.cuts -= 1
            return self.wfile.write(content[start : start + self.server.most])  # and the connection is closed
        return self.command == "GET" and self.wfile.write(content[start:])

    def log_message(self, *_):
        pass
