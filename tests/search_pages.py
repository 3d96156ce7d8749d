"""The search page as the tests open and read it."""

import io

import torch

import arguments
from lib.model import checkpoint
from lib.results import search_page, search_server
from lib.results.runs import open_run


def open_page(run, data_path, *more):
    """The `SearchPage` of a run."""
    argv = [str(run), "--data_path", str(data_path), "--serve", *map(str, more)]
    options = arguments.parse_evaluation(argv)
    opened = open_run(checkpoint.find(run), options, torch.device("cpu"))
    return search_server.open_page(opened, options, torch.device("cpu"))


def make_client(page):
    return search_page.make_app(page).test_client()


def upload(client, content, headers=None):
    """The answer to a picture that is sent as the form of the page sends it."""
    data = {"picture": (io.BytesIO(content), "picture.png")}
    kind = "multipart/form-data"
    return client.post("/picture", data=data, content_type=kind, headers=headers)
