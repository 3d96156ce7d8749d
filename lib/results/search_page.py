"""The search page: a Flask application that answers queries with HTML.

The page is made from search_page.html, report.css, search_page.css and search_page.js. Pictures are
requested by image number, never by path. Every address works without the script.
"""

# flask is imported where the application is made: it is optional

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.picture_files import DAMAGED, upright
from ..system import images
from ..system.console import one_line, printable
from ..system.errors import InputError
from .html_report import templates
from .matches import matched_pair
from .pictures import Picture, Pictures
from .search import SearchResult
from .searcher import Searcher

if TYPE_CHECKING:
    from flask import Flask
    from PIL import Image

HOSTS = "127.0.0.1", "localhost"  # another name in a request may be a rebound DNS name
MOST_BYTES, MOST_PIXELS = 16 * 2**20, 50_000_000  # of an uploaded picture
LONGEST_TEXT, MOST_RESULTS, EXAMPLES = 1000, 100, 10
PICTURE_TYPES = "JPEG", "PNG", "WEBP", "GIF"
THUMBNAIL = 480  # pixels of the longer side
ASSETS = {
    "report.css": "text/css",
    "search_page.css": "text/css",
    "search_page.js": "text/javascript",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; "
    "script-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class SearchPage:
    """What the addresses of the page answer.

    title: of the page, the data set and the split; run: one line about the model; topk: results per
    query, unless an address asks for more.
    """

    def __init__(
        self, searcher: Searcher, pictures: Pictures, title: str, run: str, topk: int
    ) -> None:
        self.searcher, self.pictures, self.index = searcher, pictures, searcher.index
        self.title, self.run, self.topk = title, run, min(topk, MOST_RESULTS)
        self.template = templates().get_template("search_page.html")

    def start(self) -> str:
        """The page before the first query, with examples from the whole split."""
        numbers = np.linspace(0, len(self.index.ids) - 1, min(EXAMPLES, len(self.index.ids)))
        chosen = sorted(set(numbers.astype(int).tolist()))
        captions = [int(np.argmax(self.index.caption_images == image)) for image in chosen]
        return self._render(
            pictures=[(image, self.picture(image)) for image in chosen],
            captions=[(caption, self.index.captions[caption]) for caption in captions],
        )

    def text(self, text: str, count: int) -> str:
        """The best images for a text. Raises InputError if it is no query."""
        check_text(text)
        return self._render(
            text=text,
            query="text",
            unknown=self.searcher.unknown_words(text),
            results=self._images(self.searcher.images_of_text(text, count)),
            more=self._more(count, len(self.index.ids)),
        )

    def caption(self, caption: int, count: int) -> str:
        """The best images for a caption of the split."""
        return self._render(
            text=self.index.captions[caption],
            query="caption",
            results=self._images(self.searcher.images_of_caption(caption, count)),
            more=self._more(count, len(self.index.ids)),
        )

    def image(self, image: int, count: int) -> str:
        """The best captions for an image of the split."""
        return self._render(
            query="image",
            picture=self.picture(image),
            name=self.index.label(image),
            number=image,
            results=self._captions(self.searcher.captions_of_image(image, count)),
            more=self._more(count, len(self.index.captions)),
        )

    def match(self, image: int, text: str) -> str:
        """Which words of a text match which regions of an image. Raises InputError if it is no
        query."""
        check_text(text)
        found = self.searcher.matches(image, text)
        pair = matched_pair(found, self.index.label(image), self.picture(image))
        return self._render(text=text, query="match", pair=pair, number=image)

    def upload(self, content: bytes) -> str:
        """The best captions for a new picture. Raises InputError if it cannot be searched."""
        picture = read_picture(content)
        found = self.searcher.captions_of_picture(picture, self.topk)
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        address = images.data_uri("image/png", images.encode_png(np.asarray(picture)))
        return self._render(
            query="image",
            picture=Picture("Your picture", photograph=address),
            name="Your picture",
            results=self._captions(found),
        )

    def refusal(self, message: str, text: str = "") -> str:
        """The page with the reason why a request was refused."""
        return self._render(message=one_line(message), text=text[:LONGEST_TEXT])

    def picture(self, image: int) -> Picture:
        """The picture of an image."""
        return self.pictures.linked(image, f"/photograph/{image}")

    def _images(self, found: list[SearchResult]) -> list[tuple[SearchResult, str, Picture]]:
        return [(one, self.index.label(one.number), self.picture(one.number)) for one in found]

    def _captions(self, found: list[SearchResult]) -> list[tuple[SearchResult, str]]:
        return [(one, self.index.captions[one.number]) for one in found]

    def _more(self, count, available):
        """The number of results that "More results" shows, or None if there are no more."""
        return (
            min(max(2 * count, 10), MOST_RESULTS) if count < min(available, MOST_RESULTS) else None
        )

    def _render(self, **values: Any) -> str:
        defaults: dict[str, Any] = dict(
            message="", text="", query="", unknown=[], results=[], more=None, name="",
            picture=None, pictures=[], captions=[], pair=None, number=None,
        )  # fmt: skip
        num_images, num_captions = len(self.index.ids), len(self.index.captions)
        return self.template.render(
            **defaults | values, title=self.title, run=self.run, most_bytes=MOST_BYTES,
            is_slow=self.searcher.similarity is None, num_images=num_images,
            num_captions=num_captions, has_pictures=bool(self.pictures),
        )  # fmt: skip


def check_text(text: str) -> None:
    """Raise InputError if a text is no query."""
    if not text.strip():
        raise InputError("the query is empty. Type a sentence")
    if len(text) > LONGEST_TEXT or text != printable(text):
        found = f"{len(text)} characters" if text == printable(text) else "control characters"
        raise InputError(
            f"the query cannot be searched (found {found}, expected plain text of at most "
            f"{LONGEST_TEXT} characters). Type another one"
        )


def read_picture(content: bytes) -> "Image.Image":
    """The RGB picture in the bytes of a file, upright. Raises InputError if there is none."""
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(content), formats=PICTURE_TYPES)
        if picture.width * picture.height > MOST_PIXELS:
            raise InputError(
                f"the picture is too large (found {picture.width} x {picture.height} pixels, "
                f"expected at most {MOST_PIXELS // 10**6} million). Make it smaller"
            )
        return upright(picture)
    except InputError:
        raise
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise InputError(
            "the picture cannot be read (found a damaged file or another type of file, expected a "
            "JPEG, PNG, WebP or GIF picture). Select another file"
        ) from error


def make_app(page: SearchPage) -> "Flask":
    """The Flask application of a page. It refuses requests to other hosts and from other sites."""
    from flask import Flask, Response, abort, request, send_file
    from werkzeug.exceptions import HTTPException

    app = Flask("hrem", static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MOST_BYTES + 2**16  # and the parts around the picture

    @app.before_request
    def refuse_strangers():
        origin = request.headers.get("Origin")
        if request.host.rpartition(":")[0] not in HOSTS and request.host not in HOSTS:
            abort(
                Response("Wrong Host header. Open http://127.0.0.1\n", 421, mimetype="text/plain")
            )
        if origin not in (None, f"http://{request.host}"):
            abort(Response("Request from another site.\n", 403, mimetype="text/plain"))

    @app.after_request
    def add_headers(response):
        response.headers.update(HEADERS)
        return response

    @app.errorhandler(InputError)
    def refuse(error):
        return page.refusal(str(error), request.args.get("q", "")), 400

    @app.errorhandler(HTTPException)
    def fail(error):
        if error.response is not None:
            return error.response
        message = FAILURES.get(error.code, error.description or error.name)
        return page.refusal(message), error.code or 500

    def count() -> int:
        given = request.args.get("count", str(page.topk))
        found = find_number(given)
        if not found or found > MOST_RESULTS:
            raise InputError(
                f"count={given:.60}: not a number of results (found {given[:60]!r}, expected a "
                f"whole number from 1 to {MOST_RESULTS}). Search again"
            )
        return found

    def known(text: str, available: int) -> int:
        found = find_number(text)
        return found if found is not None and found < available else abort(404)

    @app.get("/")
    def start():
        return page.start()

    @app.get("/search")
    def search_text():
        return page.text(request.args.get("q", ""), count())

    @app.get("/caption/<number>")
    def search_caption(number):
        return page.caption(known(number, len(page.index.captions)), count())

    @app.get("/image/<number>")
    def search_image(number):
        return page.image(known(number, len(page.index.ids)), count())

    @app.get("/match/<number>")
    def match(number):
        return page.match(known(number, len(page.index.ids)), request.args.get("q", ""))

    @app.post("/picture")
    def search_picture():
        file = request.files.get("picture")
        return page.upload(file.read() if file else b"")

    @app.get("/photograph/<number>")
    def photograph(number):
        found = page.pictures.find(known(number, len(page.index.ids)))
        return send_file(found.path, found.mime_type) if found else abort(404)

    @app.get("/static/<name>")
    def asset(name):
        if name not in ASSETS:
            abort(404)
        return send_file(Path(__file__).parent / name, ASSETS[name])

    return app


FAILURES = {
    400: "the request cannot be read. Search again",
    404: "there is no such page, image or caption. Search again",
    405: "this address answers no such request. Search again",
    413: "the request is too large (expected a picture of at most "
    f"{MOST_BYTES // 2**20} MB). Make it smaller",
    500: "the search failed. The terminal of the program shows why",
}


def find_number(text: str) -> int | None:
    """A number from 0 written with at most nine ASCII digits, or None."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
