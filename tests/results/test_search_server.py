"""The search page as it is served: addresses, broken connections, Ctrl-C, a browser."""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import threading
import urllib.request

import pytest
from browser import BROWSER, Browser
from helpers import PROCESS_TIMEOUT
from PIL import Image
from processes import Program
from search_pages import open_page

import arguments
import eval as evaluation
from lib.results import search_page, search_server
from lib.system.errors import InputError

needs_flask = pytest.mark.skipif(
    not importlib.util.find_spec("flask"), reason="flask is not installed: no page was served"
)


def test_without_flask_the_command_that_installs_it_is_told(monkeypatch, refusal):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "flask" else find(n))
    expected = ["--serve: ", "found no flask", "pip install flask"]
    refusal(evaluation.main, "runs/x", "--serve", expected=expected)


@needs_flask
def test_the_port_is_8000_or_the_given_one():
    ports = [
        arguments.parse_evaluation(line.split()).serve
        for line in ("runs/x --serve", "runs/x --serve 9", "--serve 9 runs/x", "runs/x")
    ]
    assert ports == [8000, 9, 9, None]


def test_a_port_in_use_is_refused_with_another_one():
    with search_server.listen(0) as first:
        address, port = first.getsockname()
        assert address == "127.0.0.1"
        with pytest.raises(InputError) as error:
            search_server.listen(port)
    assert f"--serve {port}: " in str(error.value) and "in use" in str(error.value)
    assert re.search(r"such as --serve \d+$", str(error.value)) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def page(finished, whole, tmp_path_factory):
    pytest.importorskip("flask", reason="flask is not installed: no page was served")
    run = shutil.copytree(finished, tmp_path_factory.mktemp("page") / "run")
    found = open_page(run, whole)
    regions = found.searcher.data.image_regions(3)[None]
    found.searcher.trained.picture_regions = lambda pictures: regions
    return found


@pytest.fixture
def served(page):
    """The address at which a thread serves the page."""
    with search_server.listen(0) as listener:
        server = search_server.make_server(search_page.make_app(page), listener)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.port}"
        finally:
            server.shutdown()
            thread.join()


def send(address, content):
    """What the server answers to raw bytes before it closes the connection."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PROCESS_TIMEOUT) as connection:
        with contextlib.suppress(OSError):  # the server may close before it has read all
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))
    return b""


HOST = b"Host: 127.0.0.1\r\n"
RAW = [
    b"", b"\r\n", b"\0" * 100, b"\xff\xfe\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/1.1\r\n" + b"a" * 70000,
    b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n",
    b"POST /picture HTTP/1.1\r\n" + HOST + b"Content-Length: x\r\n\r\n",
    b"POST /picture HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
    b"POST /picture HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999\r\n\r\nabc",
    b"POST /picture HTTP/1.1\r\n" + HOST + b"Content-Type: multipart/form-data; boundary=x\r\n"
    b"Content-Length: 5000\r\n\r\n--x\r\nContent-Disposition: form-data; name=picture; filename=a",
    b"POST /picture HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n",
    b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n", b"\x1b]0;title\x07 / HTTP/1.1\r\n\r\n",
]  # fmt: skip


def test_broken_requests_leave_the_server_as_it_was(served, capfd):
    for content in RAW:
        answer = send(served, content)
        status = answer.partition(b"\r\n")[0]
        assert b" 200 " not in status and b" 500 " not in status, (content, status)
    with urllib.request.urlopen(f"{served}/caption/7", timeout=PROCESS_TIMEOUT) as answer:
        assert answer.status == 200
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""


def test_an_idle_connection_blocks_nobody(served):
    host, port = served.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))), socket.create_connection((host, int(port))):
        with urllib.request.urlopen(served, timeout=PROCESS_TIMEOUT) as answer:
            assert answer.status == 200


@needs_flask
def test_the_program_serves_until_it_is_interrupted(finished, whole, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    with search_server.listen(0) as free:
        port = free.getsockname()[1]
    process = Program("eval.py", run, "--data_path", whole, "--serve", port)
    started = f"search page: http://127.0.0.1:{port} (Ctrl-C ends it)\n"
    try:
        process.wait_for("\n")
        assert process.printed() == started
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/caption/7") as answer:
            assert answer.status == 200
        with pytest.raises(OSError):  # another address of this computer
            socket.create_connection(("127.0.0.2", port), timeout=5)
        os.kill(process.pid, signal.SIGINT)
        ended = process.wait()
    finally:
        process.kill()
    assert ended == (0, f"{started}search page: ended\n", "")


@pytest.fixture
def browser(tmp_path):
    if not BROWSER:
        pytest.skip("no chromium found: the page was not opened in a browser")
    with Browser(tmp_path / "profile") as found:
        yield found


RESULTS = "[...document.querySelectorAll('main ol a:not(.why)')].map(a => a.getAttribute('href'))"
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"


def test_a_query_is_typed_in_a_browser_and_results_are_selected(served, page, browser):
    browser.resize(1300, 900)
    browser.open(f"{served}/")
    browser.evaluate("document.getElementById('q').focus()")
    browser.type("a red dog & a cat")
    browser.wait("location.pathname == '/search'")
    found = page.searcher.images_of_text("a red dog & a cat", 5)
    assert browser.evaluate(RESULTS) == [f"/image/{one.number}" for one in found]
    assert browser.evaluate("document.getElementById('q').value") == "a red dog & a cat"
    assert browser.evaluate("document.querySelectorAll('svg.picture').length") == 5
    browser.click("ol.images a")
    browser.wait(f"location.pathname == '/image/{found[0].number}'")
    captions = page.searcher.captions_of_image(found[0].number, 5)
    assert browser.evaluate(RESULTS) == [f"/caption/{one.number}" for one in captions]
    browser.click("ol.captions a")
    browser.wait(f"location.pathname == '/caption/{captions[0].number}'")
    browser.click("ol.images a.why")
    browser.wait("location.pathname.startsWith('/match/')")
    shown = "getComputedStyle(document.querySelector('input:checked + .overlay')).display"
    assert browser.evaluate(shown) == "block" and browser.evaluate(FITS)
    chosen = "[...document.querySelectorAll('.chosen')].filter(p => p.offsetHeight).length"
    browser.click(".matched label:last-child")
    assert browser.evaluate(chosen) == 1
    assert browser.evaluate("document.querySelector('.stage input:last-of-type').checked")
    assert browser.complaints == []


@pytest.mark.parametrize("way", ["selected", "dropped"])
def test_a_picture_is_sent_by_a_browser(served, page, browser, tmp_path, way):
    Image.new("RGB", (3, 2)).save(tmp_path / "picture.png")
    (tmp_path / "text.png").write_text("not a picture")
    expected = [f"/caption/{one.number}" for one in page.searcher.captions_of_image(3, 5)]
    for name, done in (("picture.png", ".query img"), ("text.png", "#status:not(:empty)")):
        browser.open(f"{served}/")
        if way == "selected":
            browser.select_file("#picture", tmp_path / name)
        else:
            browser.drop_file(tmp_path / name)
        browser.wait(f"location.pathname == '/picture' && document.querySelector('{done}')")
        if name == "picture.png":
            assert browser.evaluate(RESULTS) == expected
            assert browser.evaluate("document.querySelector('.query img').naturalWidth") == 3
        else:
            assert "cannot be read" in browser.evaluate("document.body.innerText")
    # the browser lists an answer with status 400 as an error of the network
    assert {each["entry"]["source"] for each in browser.complaints} <= {"network"}


@pytest.mark.parametrize("width", [390, 320, 1300])
def test_the_page_fits_a_telephone(served, browser, width):
    long = "w" * 300
    for scheme in ("light", "dark"):
        browser.resize(width, 844, scheme)
        for path in ("/", "/image/3", "/caption/7", f"/search?q={long}"):
            browser.open(served + path)
            assert browser.evaluate("innerWidth") == width and browser.evaluate(FITS), path
            assert browser.evaluate("document.querySelector('#q').getClientRects()[0].height") > 40
    assert browser.complaints == []


def test_the_page_is_dark_where_the_reader_wants_it(served, browser):
    colours = set()
    for scheme in ("light", "dark"):
        browser.resize(390, 844, scheme)
        browser.open(f"{served}/")
        colours.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2
