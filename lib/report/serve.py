"""A workdir in a browser, with runs in progress: ``python -m lib.report serve WORKDIR``.

Pages are made when they are asked for, in memory; nothing is written into the workdir. A page asks every five seconds
whether what it shows has changed, and can be told not to. Only this machine can see it.
"""

import argparse
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lib.errors import ArtifactError, ConfigError
from lib.files import digest
from lib.report.blocks import Cell, Chapter, DataTable, Words
from lib.report.contents import read
from lib.report.page import render, render_list
from lib.report.units import experiments

ADDRESS, PORT = "127.0.0.1", 8765
WATCHED = ("manifest.json", "log.jsonl", "unit.json", "decode.json", "figures.json", "seen.json", "findings.csv")
"""Files whose change changes a page."""


class Pages:
    """Makes the pages of a workdir and keeps each until something that it shows has changed."""

    def __init__(self, workdir: Path):
        """Raises ArtifactError where there is no such folder."""
        experiments(workdir)
        self.workdir = workdir
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[str, str]] = {}

    def mark(self, name: str) -> str:
        """Return what changes when a page does: names, sizes and times of the files it is made from.

        name: of an experiment, "" for the list. Raises ArtifactError for one that is not there.
        """
        folders = {folder.name: folder for folder in experiments(self.workdir)}
        if name and name not in folders:
            raise ArtifactError(f"{self.workdir}: holds no experiment {name}")
        states = []
        for folder in [folders[name]] if name else folders.values():
            for path in sorted(path for path in folder.rglob("*") if path.name in WATCHED):
                try:
                    state = path.stat()
                except OSError:  # a unit is being renamed
                    continue
                states.append([str(path), state.st_size, state.st_mtime_ns])
        return digest(states)

    def page(self, name: str) -> str:
        """Return a page as HTML; arguments and errors as of ``mark``."""
        mark = self.mark(name)
        with self._lock:  # matplotlib draws for one at a time
            if self._kept.get(name, ("", ""))[0] != mark:
                now = time.strftime("%H:%M:%S")
                made = render([read(self.workdir / name)], mark, now) if name else self._list(mark, now)
                self._kept[name] = mark, made
            return self._kept[name][1]

    def _list(self, mark: str, now: str) -> str:
        rows: list[tuple[Cell, ...]] = []
        for folder in experiments(self.workdir):
            try:
                one = read(folder)
                epochs = sum(len(log) for log in one.logs.values())
                score = None if one.decision is None else one.decision.score
                expected = None if one.decision is None else one.decision.expected
                rows.append((folder.name, one.standing, len(one.manifests), epochs, score, expected))
            except ArtifactError as error:
                rows.append((folder.name, f"damaged: {error}", None, None, None, None))
        found = [DataTable("How far each is", ("name", "how far", "units done", "epochs", "score", "expected"), rows)]
        empty = [Words("There are no experiments yet.", absent=True)]
        return render_list(str(self.workdir), Chapter("experiments", "Experiments", [found if rows else empty]),
                           [row[0] for row in rows], mark, now)  # fmt: skip


def handler(pages: Pages, port: int) -> type[BaseHTTPRequestHandler]:
    """Return what answers requests for pages."""

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "report", ""

        def do_GET(self) -> None:
            if self.headers.get("Host", "") not in {f"{host}:{port}" for host in (ADDRESS, "localhost")}:
                return self._answer(HTTPStatus.FORBIDDEN, "this server answers to its own address alone", "text/plain")
            asked = urlsplit(self.path)
            name = unquote(asked.path).strip("/")
            try:
                if asked.query == "mark":
                    return self._answer(HTTPStatus.OK, pages.mark(name), "text/plain")
                self._answer(HTTPStatus.OK, pages.page(name), "text/html")
            except ArtifactError as error:
                self._answer(HTTPStatus.NOT_FOUND, str(error), "text/plain")

        def _answer(self, status: HTTPStatus, text: str, kind: str) -> None:
            content = text.encode(errors="backslashreplace")
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing of each request."""

    return Handler


def open_server(workdir: Path, port: int = PORT) -> ThreadingHTTPServer:
    """Return a server on this machine's own address; port 0: any that is free.

    Raises ArtifactError without a workdir, ConfigError where the port is taken.
    """
    pages = Pages(workdir)
    try:
        server = ThreadingHTTPServer((ADDRESS, port), BaseHTTPRequestHandler)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--port {port}: expected a free port, 0 for any ({error})") from error
    server.RequestHandlerClass = handler(pages, server.server_address[1])
    server.daemon_threads = True
    return server


def main(arguments: list[str]) -> int:
    """Serve until Ctrl-C."""
    flags = argparse.ArgumentParser(prog="python -m lib.report serve", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    flags.add_argument("workdir", type=Path, nargs="?", default=Path("workdir"), help="where results lie")
    flags.add_argument("--port", type=int, default=PORT, help=f"0: any that is free (default: {PORT})")
    args = flags.parse_args(arguments)
    with open_server(args.workdir, args.port) as server:
        print(f"{args.workdir}: http://{ADDRESS}:{server.server_address[1]}/ (Ctrl-C ends it)", flush=True)
        server.serve_forever()
    return 0
