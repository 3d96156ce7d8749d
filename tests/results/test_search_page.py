"""The search page as a client of Flask sees it: results, pictures, refusals."""

import io
import re
import shutil

import numpy as np
import pytest
from pages import Page
from PIL import Image
from search_pages import make_client, open_page, upload

from lib.data.layout import read_lines
from lib.system.errors import InputError
from lib.system.images import encode_png

pytest.importorskip("flask", reason="flask is not installed: the search page was not tested")

PNG = encode_png(np.zeros((2, 3, 3), np.uint8))
HOSTILE = '<script>alert("1")</script> & </p>\'"><img src=x onerror=alert(1)> \x1b[31m'


@pytest.fixture(scope="module")
def page(finished, whole, tmp_path_factory):
    run = shutil.copytree(finished, tmp_path_factory.mktemp("page") / "run")
    return open_page(run, whole, "--topk", 4)


@pytest.fixture
def client(page):
    return make_client(page)


def results(response):
    """(kind, address, score) of each result on a page."""
    assert response.status_code == 200
    return [
        (kind, address, float(score))
        for kind, item in re.findall(r'<li class="(\w+)">(.*?)</li>', response.text)
        for address in re.findall(r'href="(/(?:image|caption)/[^"]*)"', item)
        for score in re.findall(r'"score">([^<]*)<', item)
    ]


def test_a_text_finds_pictures(client, page):
    found = results(client.get("/search?q=a+red+dog"))
    expected = page.searcher.images_of_text("a red dog", 4)
    assert found == [("miss", f"/image/{one.number}", round(one.score, 3)) for one in expected]


def test_a_caption_finds_pictures_and_its_image_is_marked(client, page):
    found = results(client.get("/caption/7?count=10"))
    assert len(found) == 10 and [address for kind, address, _ in found if kind == "hit"] == [
        "/image/1"
    ]
    typed = results(client.get("/search", query_string={"q": page.index.captions[7], "count": 10}))
    assert [kind for kind, *_ in typed].count("hit") == 1
    ranked = [address for _, address, _ in found]
    shown = results(client.get(f"/caption/7?count={ranked.index('/image/1') or 1}"))
    if ranked[0] != "/image/1":
        assert shown[-1][:2] == ("truth", "/image/1")


def test_an_image_finds_captions_and_its_own_are_marked(client, page):
    response = client.get("/image/3?count=50")
    found = results(response)
    assert [address for _, address, _ in found] == [
        f"/caption/{one.number}" for one in page.searcher.captions_of_image(3, 50)
    ]
    hits = {address for kind, address, _ in found if kind == "hit"}
    assert hits == {f"/caption/{caption}" for caption in range(15, 20)}
    assert page.index.label(3) in response.text and 'id="more"' not in response.text


def test_a_pair_shows_which_words_match_which_regions(client, page):
    text = page.index.captions[15]
    found = results(client.get("/image/3?count=50"))
    assert "/caption/15" in [address for _, address, _ in found]
    listed = Page(client.get("/image/3?count=50").text)
    links = [attributes["href"] for _, attributes, _ in listed.all("a", class_="why")]
    assert len(links) == 50 and all(link.startswith("/match/3?q=") for link in links)
    expected = page.searcher.matches(3, text)
    shown = Page(client.get("/match/3", query_string={"q": text}).text)
    labels = [label for label in shown.texts("label") if label in expected.words]
    assert labels == expected.words
    numbers = re.findall(r": (-?\d\.\d\d) with regions", client.get(links[0]).text)
    assert len(numbers) > 2
    best = shown.texts("p", class_="chosen")
    assert [line.split(": ")[1][:4] for line in best] == [
        f"{row.max():.2f}" for row in expected.cosines
    ]
    assert len(shown.all("rect", class_="rank1")) == len(labels)
    assert client.get("/match/3").status_code == client.get("/match/3?q=%20").status_code == 400
    assert client.get("/match/10?q=dog").status_code == 404


def test_every_page_is_well_formed_and_its_links_work(client):
    for address in ("/", "/search?q=a+dog%26cat", "/image/3", "/caption/7", "/match/3?q=a+dog"):
        found = Page(client.get(address).text)
        assert len(found.all("h1")) == 1 and len(set(found.ids)) == len(found.ids)
        links = {attributes["href"] for _, attributes, _ in found.all("a")}
        base = address.partition("?")[0]
        for link in links:
            assert client.get(base + link if link.startswith("?") else link).status_code == 200
        assert len(links) > 4 or address.startswith("/match/") and "/image/3" in links


def test_more_results_show_more_of_the_same_query(client):
    first = client.get("/search?q=a+dog%26cat")
    link = re.search(r'id="more" href="([^"]*)"', first.text)[1].replace("&amp;", "&")
    more = results(client.get("/search" + link))
    assert len(more) == 10 and more[:4] == results(first)


def test_the_start_page_shows_examples_and_what_is_searched(client, page):
    text = client.get("/").text
    assert "demo, split test: 10 images, 50 captions" in text
    assert text.count('<svg class="picture"') == 10 and page.index.captions[0] in text
    assert "cross-attention" not in text


def test_words_that_the_model_does_not_know_are_named(client):
    assert "Not in the vocabulary: ☃" in client.get("/search?q=a+☃").text
    assert "Not in the vocabulary" not in client.get("/search?q=a+dog").text


def test_a_slow_model_is_called_slow(page, monkeypatch):
    monkeypatch.setattr(page.searcher, "similarity", None)
    assert "scores each pair of an image and a caption by cross-attention" in page.start()


@pytest.fixture
def with_hostile_captions(finished, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "data") / "demo_precomp"
    captions = read_lines(folder / "test_caps.txt")
    (folder / "test_caps.txt").write_text("".join(f"{HOSTILE} {caption}\n" for caption in captions))
    (folder / "test_ids.txt").write_text("".join(f"../{HOSTILE}{n}\n" for n in range(10)))
    (tmp_path / "pictures").mkdir()
    run = shutil.copytree(finished, tmp_path / "run")
    return open_page(run, tmp_path / "data", "--images", tmp_path / "pictures")


def test_markup_and_control_characters_are_escaped(with_hostile_captions):
    client = make_client(with_hostile_captions)
    addresses = ["/", "/image/3", "/caption/7", "/search?q=a+dog"]
    responses = [client.get(address) for address in addresses]
    responses.append(client.get("/search", query_string={"q": HOSTILE, "count": HOSTILE}))
    assert responses[-1].status_code == 400
    for response in responses:
        found = Page(response.text)  # every tag is ours and closed
        assert len(found.all("script")) == 1 and "\x1b" not in response.text
        assert "<script>" not in response.text and "<img" not in response.text


def photographs(page, folder):
    """A JPEG, a PNG and a text file by the names of images 0, 1 and 2, beside a secret."""
    folder.mkdir()
    ids = page.index.ids
    (folder / f"{ids[0]}.jpg").write_bytes(b"\xff\xd8\xff\xe0 some bytes")
    (folder / f"{ids[1]}.png").write_bytes(PNG)
    (folder / f"{ids[2]}.jpg").write_text("<script>alert(1)</script>")
    (folder / "secret.png").write_bytes(PNG)
    return folder


def test_photographs_are_given_by_number_byte_for_byte(page, finished, whole, tmp_path, capsys):
    folder = photographs(page, tmp_path / "pictures")
    run = shutil.copytree(finished, tmp_path / "run")
    client = make_client(open_page(run, whole, "--images", folder))
    assert "found 3 of 10 in" in capsys.readouterr().out
    for image, kind in ((0, "image/jpeg"), (1, "image/png")):
        response = client.get(f"/photograph/{image}")
        (file,) = folder.glob(f"{page.index.ids[image]}.*")
        assert (response.content_type, response.data) == (kind, file.read_bytes())
    for image in (2, 3):  # not a picture, no such file
        assert client.get(f"/photograph/{image}").status_code == 404
    start = client.get("/").text
    assert start.count('src="/photograph/') == 2 and start.count('class="picture none"') == 8


PATHS = [
    "/photograph/../../../etc/passwd", "/photograph/..%2f..%2fsecret.png",
    "/photograph/secret.png", "/static/search_page.py", "/static/../search_page.py",
    "/static/..%2foptions.py", "/static//etc/passwd", "/static/report.html", "/search_page.css",
    "/etc/passwd", "//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/photograph/%00", "/static/%00",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_other_file_is_given(page, finished, whole, tmp_path, path):
    folder = photographs(page, tmp_path / "pictures")
    run = shutil.copytree(finished, tmp_path / "run")
    response = make_client(open_page(run, whole, "--images", folder)).get(path)
    assert response.status_code in (308, 404, 421) and b"root:" not in response.data
    assert b"import" not in response.data and PNG not in response.data


def test_an_id_with_a_path_names_no_photograph(with_hostile_captions):
    with_hostile_captions.index.ids[0] = "../secret"
    secret = with_hostile_captions.pictures.folder.parent / "secret.png"
    secret.write_bytes(PNG)
    assert make_client(with_hostile_captions).get("/photograph/0").status_code == 404


BAD_ADDRESSES = [
    *(f"/image/{n}" for n in ("10", "-1", "1.5", "x", "", "9" * 5000, "١")),
    *(f"/image/{n}" for n in ("1e3", "0x1", " 1", "+1")),
    *(f"/caption/{n}" for n in ("50", "-1", "nan", "9" * 5000)),
    *(f"/photograph/{n}" for n in ("10", "-1", "9" * 5000, "%FF", "0\x00")),
    *(f"/image/1?count={n}" for n in ("0", "-1", "101", "x", "", "9" * 5000, "1.5", "%FF")),
    *(f"/search?q={q}" for q in ("", "+", "%00", "%1b[31m", "a%E2%80%AEb", "x" * 1001)),
    "/search", "/nothing", "/search?count=3",
]  # fmt: skip


@pytest.mark.parametrize("address", BAD_ADDRESSES, ids=lambda address: f"{address[:24]!a}")
def test_malformed_addresses_are_refused_on_the_page(client, address):
    response = client.get(address)
    assert response.status_code in (400, 404), response.text
    found = Page(response.text)
    (message,) = found.texts("p", id="status")
    assert message and "\n" not in message and len(message) < 400
    assert found.all("input", id="q")  # the page can still be used


def test_bytes_that_are_not_text_are_searched_as_question_marks(client):
    assert client.get("/search?q=%FF%FEdog").status_code == 200
    assert client.get("/search?q=%ED%A0%80dog").status_code == 200


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch", "options"])
def test_other_methods_change_nothing(client, method):
    for address in ("/", "/search?q=a", "/image/1", "/photograph/1", "/static/report.css"):
        assert getattr(client, method)(address).status_code in (200, 405)
    assert client.get("/picture").status_code == 405


HOSTS = [
    "evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example:80",
    "127.0.0.2:8000", "[::1]:8000", "127.0.0.1:8000@evil.example", "127.0.0.1:x", "",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_other_hosts_are_refused(client, host):
    response = client.get("/search?q=dog", headers={"Host": host})
    assert response.status_code in (400, 421) and "captions" not in response.text


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "localhost", "127.0.0.1"])
def test_names_of_this_computer_are_answered(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 200


def test_other_sites_cannot_send_pictures(client):
    for origin in ("http://evil.example", "null", "http://[", "http://localhost:1"):
        assert upload(client, PNG, headers={"Origin": origin}).status_code == 403
    assert upload(client, PNG, headers={"Origin": "http://localhost"}).status_code == 400


def test_every_answer_forbids_scripts_and_embedding(client):
    for address in ("/", "/nothing", "/image/1", "/static/search_page.js", "/search?q="):
        headers = client.get(address).headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
    assert not re.search(r"<script>|\son\w+=|style=|https?:", client.get("/").text)


@pytest.fixture
def extractor(page, monkeypatch):
    """Stands for the feature extractor of a run: every picture is image 3 of the split."""
    seen = []

    def picture_regions(pictures):
        seen.extend(pictures)
        return page.searcher.data.image_regions(3)[None]

    monkeypatch.setattr(page.searcher.trained, "picture_regions", picture_regions)
    return seen


def test_an_uploaded_picture_finds_captions(client, page, extractor):
    response = upload(client, PNG)
    assert [address for _, address, _ in results(response)] == [
        f"/caption/{one.number}" for one in page.searcher.captions_of_image(3, 4)
    ]
    assert "Your picture" in response.text and 'src="data:image/png;base64,' in response.text
    assert [(picture.size, picture.mode) for picture in extractor] == [((3, 2), "RGB")]


def saved(form, picture=None, **settings):
    file = io.BytesIO()
    (picture or Image.new("RGB", (3, 2))).save(file, form, **settings)
    return file.getvalue()


def test_pictures_of_every_type_are_read_upright_in_colour(client, extractor):
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    uploads = [saved(form) for form in ("JPEG", "PNG", "WEBP", "GIF")]
    uploads += [saved("JPEG", exif=turned), saved("PNG", Image.new("RGBA", (3, 2)))]
    uploads += [saved("PNG", Image.new(mode, (3, 2))) for mode in ("1", "L", "P", "I;16")]
    for content in uploads:
        assert upload(client, content).status_code == 200
    assert {picture.mode for picture in extractor} == {"RGB"}
    assert [picture.size for picture in extractor] == [(3, 2)] * 4 + [(2, 3)] + [(3, 2)] * 5


BROKEN = {
    "nothing": b"",
    "text": b"not a picture",
    "a cut PNG": PNG[:40],
    "a cut JPEG": saved("JPEG")[:200],
    "a damaged PNG": PNG[:30] + b"\xff" * 20 + PNG[50:],
    "a damaged GIF": saved("GIF")[:20] + b"\0" * 50,
    "another type": saved("BMP"),
    "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "a huge size": PNG[:16] + b"\x7f\xff\xff\xff" * 2 + PNG[24:],
    "a large size": saved("PNG", Image.new("1", (10_000, 6_000))),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_picture_is_refused(client, extractor, content):
    response = upload(client, content)
    (message,) = Page(response.text).texts("p", id="status")
    assert response.status_code == 400 and message.startswith("the picture ") and not extractor


def test_a_run_without_an_extractor_says_so_and_hides_nothing(client, page, monkeypatch):
    def refuse(pictures):
        raise InputError("run: no <extraction> record. Train again")

    monkeypatch.setattr(page.searcher.trained, "picture_regions", refuse)
    response = upload(client, PNG)
    found = Page(response.text)
    assert response.status_code == 400 and len(found.all("form")) == 2
    assert found.texts("p", id="status") == ["run: no <extraction> record. Train again"]


def test_uploads_that_are_no_file_or_too_large_are_refused(client):
    kind = "multipart/form-data; boundary=x"
    for data in (b"", b"--x", b"--x\r\n\r\n\r\n--x--", b"\0" * 1000):
        assert client.post("/picture", data=data, content_type=kind).status_code == 400
    assert client.post("/picture", data={"picture": "text"}).status_code == 400
    assert client.post("/picture", json={"picture": 1}).status_code == 400
    response = upload(client, b"\0" * (17 * 2**20))
    assert response.status_code == 413 and "at most 16 MB" in response.text


def test_an_error_of_the_program_is_a_page(client, page, monkeypatch):
    monkeypatch.setattr(page.searcher, "captions_of_image", lambda *_: 1 / 0)
    response = client.get("/image/1")
    assert response.status_code == 500 and "The terminal of the program" in response.text
    monkeypatch.undo()
    assert client.get("/image/1").status_code == 200
