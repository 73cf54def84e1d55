"""A server that agents call: tells everybody the weather, and prints who asked, with what."""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Weather(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        sys.stdout.write(f"asked {self.path} {self.headers.get('Authorization')}\n")
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"fine")

    def log_message(self, *_: object) -> None: ...


if __name__ == "__main__":
    HTTPServer(("", 8000), Weather).serve_forever()
