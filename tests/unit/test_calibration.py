"""Calibration: windows are pieces of the text, whole, apart, framed as the tokenizer says, and the same for a seed."""

from __future__ import annotations

import lzma
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from farout.data.calibration import calibration, token_windows
from farout.data.texts import text, text_names
from farout.errors import BadInput, UnknownName
from farout.io._tokens import PieceTokenizer

torch = pytest.importorskip("torch")

LETTERS = [chr(i) for i in range(33, 127)]


def letters(bos=None):
    return PieceTokenizer(["<s>", "?", *LETTERS], [0.0] * 96, [], {0}, bos, unknown=1)


class Framed:
    """A tokenizer that puts a token on either side, as encoders have it."""

    bos = None

    def encode(self, text):
        return [ord(mark) for mark in text]

    def framed(self, text, most=None):
        return [1, *self.encode(text), 2]


def ids_of(batches):
    return torch.cat([batch["input_ids"] for batch in batches]).numpy()


def opened(**changes):
    facts = {"vocabulary": 96, "positions": 64}
    return SimpleNamespace(**({"name": "m", "tokenizer": letters(), "keywords": True, "facts": facts} | changes))


def test_windows_are_cut_from_the_text_side_by_side_and_drawn_once():
    line = "".join(LETTERS[i % 90] for i in np.random.default_rng(0).integers(94, size=205))
    cut = token_windows([line], letters(), 10)
    assert cut.tolist() == np.array(letters().encode(line))[:200].reshape(20, 10).tolist()
    batches = calibration([line], letters(), samples=20, length=10, batch_size=6)
    assert [batch["input_ids"].shape for batch in batches] == [(6, 10)] * 3 + [(2, 10)]
    assert all(bool((batch["attention_mask"] == 1).all()) for batch in batches)
    assert sorted(ids_of(batches).tolist()) == sorted(cut.tolist())  # all of them, none twice
    assert ids_of(batches).tolist() != cut.tolist()


def test_a_seed_says_what_is_drawn():
    draw = lambda seed: ids_of(calibration("ascii", letters(), samples=8, length=16, seed=seed)).tolist()  # noqa: E731
    assert draw(0) == draw(0) != draw(1)


def test_special_tokens_stand_around_every_window_and_count():
    line = "abcdefghijklmnopqrstuvwxyz"
    found = token_windows([line], letters(bos=0), 6)
    assert (found.shape, set(found[:, 0].tolist())) == ((5, 6), {0})
    assert found[:, 1:].flatten().tolist() == letters().encode(line)[:25]
    framed = token_windows([line], Framed(), 7)
    assert framed[:, [0, -1]].tolist() == [[1, 2]] * 5
    assert framed[:, 1:-1].flatten().tolist() == [ord(mark) for mark in line[:25]]
    assert token_windows([line], letters(), 6, stride=10).tolist() == [
        letters().encode(line[i : i + 6]) for i in (0, 10, 20)
    ]


def test_long_texts_are_thinned_out_to_pieces_of_themselves():
    long = "".join(np.random.default_rng(0).choice(LETTERS, 200_000))
    rows = ids_of(calibration([long], letters(), samples=6, length=16))
    pieces = ["".join(LETTERS[i - 2] for i in row) for row in rows]
    places = [long.find(piece) for piece in pieces]
    assert len(set(places)) == 6 and max(places) - min(places) > 50_000
    assert sum(place < 0 for place in places) <= 1  # one may lie across two stretches
    again = ids_of(calibration([long], letters(), samples=6, length=16, seed=1))
    assert not {tuple(row) for row in rows.tolist()} & {tuple(row) for row in again.tolist()}


def test_random_tokens_are_of_the_whole_vocabulary():
    rows = ids_of(calibration("random-tokens", opened(tokenizer=letters(bos=0)), samples=200, length=64))
    assert set(rows[:, 0].tolist()) == {0}
    counts = np.bincount(rows[:, 1:].flatten(), minlength=96)
    assert len(counts) == 96 and abs(counts / counts.mean() - 1).max() < 0.4
    assert ids_of(calibration("random-tokens", opened(tokenizer=None), samples=1, length=9)).shape == (1, 9)
    bare = calibration("random-tokens", opened(keywords=False), samples=3, length=9, batch_size=2)
    assert [tuple(batch.shape) for batch in bare] == [(2, 9), (1, 9)]


def test_texts_of_names_and_files(tmp_path):
    whole = "Grüße, Welt.\n"
    plain, packed = tmp_path / "a.txt", tmp_path / "a.txt.xz"
    plain.write_text(whole, encoding="utf-8")
    packed.write_bytes(lzma.compress(whole.encode()))
    assert text(plain) == text(str(packed)) == whole
    assert set(text("ascii")) == set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    assert "class TextWrapper" in text("code")
    assert {"classics", "wikitext2-valid", "licences", "german"} <= set(text_names())
    plain.write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(BadInput, match="cannot be read as text in UTF-8"):
        text(plain)
    packed.write_bytes(b"no archive")
    with pytest.raises(BadInput, match="cannot be read as text"):
        text(packed)
    with pytest.raises(UnknownName, match="nearest: 'wikitext2'"):
        text("wikitext")
    with pytest.raises(BadInput, match="put it in a list"):
        text("Two lines\nof text")


def test_messages_are_those_of_the_language(tmp_path, monkeypatch):
    from farout.data import texts

    def catalogue(pairs):
        """What msgfmt writes."""
        begin, ids, strings = 28, b"", b""
        spans = []
        for asked, said in sorted(pairs.items()):
            a, b = asked.encode(), said.encode()
            spans.append((len(a), len(ids), len(b), len(strings)))
            ids, strings = ids + a + b"\0", strings + b + b"\0"
        after = begin + 16 * len(spans)
        keys = [number for la, oa, _, _ in spans for number in (la, oa + after)]
        values = [number for _, _, lb, ob in spans for number in (lb, ob + after + len(ids))]
        head = [0x950412DE, 0, len(spans), begin, begin + 8 * len(spans), 0, 0]
        return np.array([*head, *keys, *values], "<u4").tobytes() + ids + strings

    folder = tmp_path / "share" / "locale" / "de" / "LC_MESSAGES"
    folder.mkdir(parents=True)
    said = {
        "": "Content-Type: text/plain; charset=UTF-8\n",
        "Cannot open": "Die Datei lässt sich leider nicht öffnen, denn sie fehlt.",
        "Quit": "Beenden",
    }
    (folder / "one.mo").write_bytes(catalogue(said))
    (folder / "two.mo").write_bytes(b"damaged")
    monkeypatch.setattr(texts, "Path", lambda one: Path(one) if "usr" not in str(one) else tmp_path / "nothing")
    monkeypatch.setattr(texts.sys, "prefix", str(tmp_path))
    assert text("german") == said["Cannot open"]
    with pytest.raises(BadInput, match="no program that is installed speaks 'ru'"):
        text("russian")


def test_bad_input():
    with pytest.raises(BadInput, match="holds 2 windows of 10 tokens, and 3 are asked for"):
        calibration(["abc" * 8], letters(), samples=3, length=10)
    with pytest.raises(BadInput, match="'m' sees 64 tokens at once, and windows of 65"):
        calibration("ascii", opened(), samples=1, length=65)
    with pytest.raises(BadInput, match="'m' has no tokenizer"):
        calibration("ascii", opened(tokenizer=None), samples=1, length=9)
    with pytest.raises(BadInput, match="do not belong together"):
        calibration("ascii", opened(facts={"vocabulary": 20}), samples=1, length=9)
    with pytest.raises(BadInput, match="no room for text"):
        token_windows(["abc"], Framed(), 2)
    with pytest.raises(BadInput, match="give what open_model returned"):
        calibration("random-tokens", letters(), samples=1)
    with pytest.raises(BadInput, match="are 1 at least"):
        calibration("ascii", letters(), samples=0)
