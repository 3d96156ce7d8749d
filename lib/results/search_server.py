"""Serve the search page of a run on this computer until Ctrl-C.

The server listens on 127.0.0.1 only. Each connection has a thread, so that an idle connection
blocks nobody; queries are answered one at a time (lib/results/searcher.py).
"""

import argparse
import errno
import socket
from typing import TYPE_CHECKING

import torch

from ..system.console import one_line
from ..system.distributed import print_line
from ..system.errors import InputError
from .matches import boxes_of_split
from .pictures import open_pictures
from .runs import Run, open_similarity, use_model
from .search import build_index
from .search_page import SearchPage, make_app
from .searcher import Searcher

if TYPE_CHECKING:
    from flask import Flask
    from werkzeug.serving import BaseWSGIServer

ADDRESS = "127.0.0.1"
IDLE = 30  # seconds after which a silent connection is closed


def serve(run: Run, options: argparse.Namespace, device: torch.device) -> None:
    """Serve the search page of a run at the port in `options` until Ctrl-C. Raises InputError."""
    with listen(options.serve) as listener:
        page = open_page(run, options, device)
        server = make_server(make_app(page), listener)
        print_line(f"search page: http://{ADDRESS}:{server.port} (Ctrl-C ends it)")
        server.serve_forever()  # until KeyboardInterrupt
        print_line("search page: ended")


def listen(port: int) -> socket.socket:
    """A socket that listens at a port. Raises InputError if the port cannot be used."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((ADDRESS, port))
        listener.listen()
    except OSError as error:
        listener.close()
        in_use = error.errno == errno.EADDRINUSE
        found = "a port in use by another program" if in_use else str(error.strerror).lower()
        other = port + 1 if 1024 < port < 65535 else 8001
        raise InputError(
            f"--serve {port}: cannot listen there (found {found}, expected a free port). Use "
            f"another port, such as --serve {other}"
        ) from error
    return listener


def open_page(run: Run, options: argparse.Namespace, device: torch.device) -> SearchPage:
    """The page of a run, with its embeddings and pictures. Raises InputError."""
    index, data = build_index(run.data), run.data
    boxes_of_split(data)  # refused now, not in an answer
    pictures = open_pictures(index, data, run.dataset, options.images)
    if options.images:
        for image in range(len(index.ids)):
            pictures.find(image)
        if missing := pictures.missing_as_text():
            print_line(missing)
    searcher = Searcher(use_model(run, device), data, index, open_similarity(run, device))
    title = one_line(f"{run.dataset}, split {data.split}")
    return SearchPage(searcher, pictures, title, one_line(str(run.path)), options.topk)


def make_server(app: "Flask", listener: socket.socket) -> "BaseWSGIServer":
    """The server of an application at a listening socket. It logs errors of the program only."""
    from werkzeug import serving

    class Handler(serving.WSGIRequestHandler):
        timeout = IDLE

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

        def log_error(self, format: str, *args: object) -> None:
            pass

    port = listener.getsockname()[1]
    return serving.make_server(
        ADDRESS, port, app, threaded=True, request_handler=Handler, fd=listener.fileno()
    )
