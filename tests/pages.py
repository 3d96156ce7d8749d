"""The report page as the tests read it."""

import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

import eval as evaluation

OPTIONS = (
    "--dataset demo --num_epochs 2 --batch_size 20 "
    "--embed_size 16 --nhead 2 --workers 0 --warmup 12"
).split()
VOID = {"meta", "img", "br", "link", "input"}
SHAPES = {"path", "rect", "circle", "line", "polyline", "use"}


class Page(HTMLParser):
    """A page read strictly: elements as (name, attributes, text inside);
    what is not well-formed fails."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.ids = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, name, attributes):
        names = [key for key, _ in attributes]
        assert len(set(names)) == len(names), (name, names)
        element = (name, dict(attributes), [])
        self.elements.append(element)
        self.ids += [value for key, value in attributes if key == "id"]
        if name not in VOID:
            self.open.append(element)

    def handle_startendtag(self, name, attributes):
        assert name in SHAPES, name
        self.handle_starttag(name, attributes)
        self.open.pop()

    def handle_endtag(self, name):
        assert self.open and self.open[-1][0] == name, (name, [element[0] for element in self.open])
        self.open.pop()

    def handle_data(self, data):
        for _, _, text in self.open:
            text.append(data)

    def all(self, name, **attributes):
        """Elements of a name with these attributes; class_ stands for class."""
        wanted = {key.strip("_"): value for key, value in attributes.items()}
        return [
            element
            for element in self.elements
            if element[0] == name
            and all(element[1].get(key) == value for key, value in wanted.items())
        ]

    def texts(self, name, **attributes):
        return ["".join(element[2]) for element in self.all(name, **attributes)]


def write(run, *more):
    """The text of the report that eval.py --report writes."""
    evaluation.main(["--model_path", str(run), "--report", *map(str, more)])
    found = run.glob("report*.html")  # that of other data has another name
    return max(found, key=lambda path: path.stat().st_mtime_ns).read_text()


def cells(page, table):
    """Rows of a table by their heading."""
    found, text = {}, page
    body = re.search(rf'<table id="{table}">.*?<tbody>(.*?)</tbody>', text, re.DOTALL)[1]
    for row in re.findall(r"<tr.*?</tr>", body):
        found[re.search(r'<th scope="row">(.*?)</th>', row)[1]] = re.findall(r"<td>(.*?)</td>", row)
    return found


def read_png(content):
    """Pixels of a PNG: (rows, columns) of a grey one, (rows, columns, 3) of one in colours."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return np.asarray(Image.open(io.BytesIO(content)))
