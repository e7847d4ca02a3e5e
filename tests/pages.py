"""Pages as a browser would read them."""

from __future__ import annotations

import json
from html.parser import HTMLParser


class Reader(HTMLParser):
    """Collects what a browser would see: elements, the text outside scripts, and each script."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts, self.text, self._script = [], [], "", False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._script = True
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = False

    def handle_data(self, data):
        if self._script:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        else:
            self.text += data

    @property
    def figures(self):
        return [json.loads(text) for attrs, text in self.scripts if attrs.get("type") == "application/json"]
