"""Texts that tell a wrong engine from a right one: the same on every machine and in every run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mixc.rng import Stream

_Ranges = tuple[tuple[int, int], ...]

# Letters, marks and numbers of Unicode 14 to 17: engines carry tables of different age.
_RECENT: _Ranges = (
    *((0x870, 0x890), (0x897, 0x8A0), (0xC5C, 0xC5D), (0x1AC0, 0x1AF0), (0x1C89, 0x1C8B)),
    *((0x2C2F, 0x2C30), (0xA7C0, 0xA7DD), (0xA7F1, 0xA7F5), (0x10570, 0x105F4)),
    *((0x10780, 0x107BB), (0x10D40, 0x10D90), (0x10EC2, 0x10F00), (0x10F70, 0x10F8A)),
    *((0x11070, 0x11076), (0x11380, 0x113E3), (0x116D0, 0x116E4), (0x11740, 0x11747)),
    *((0x11B60, 0x11B68), (0x11BC0, 0x11BFA), (0x11DB0, 0x11DEA), (0x11F00, 0x11F5B)),
    *((0x12F90, 0x12FF3), (0x13430, 0x13460), (0x16100, 0x1613A), (0x16A70, 0x16ACA)),
    *((0x16D40, 0x16D7A), (0x16EA0, 0x16ED4), (0x16FF2, 0x16FF7), (0x1AFF0, 0x1AFFF)),
    *((0x1CCF0, 0x1CCFA), (0x1CF00, 0x1CFC4), (0x1DF00, 0x1DF2B), (0x1E290, 0x1E2AF)),
    *((0x1E4D0, 0x1E4FA), (0x1E5D0, 0x1E600), (0x1E6C0, 0x1E700), (0x1E7E0, 0x1E7FF)),
)

# Code points of a kind, as half-open ranges. None holds a surrogate.
_KINDS: dict[str, _Ranges] = {
    "ascii": ((0x20, 0x7F),),
    "letters": ((0x61, 0x7B),),
    "controls": ((0x00, 0x20), (0x7F, 0xA0)),
    "latin": ((0xC0, 0x250), (0x1E00, 0x1F00)),
    "ipa and modifiers": ((0x250, 0x300),),
    "greek and cyrillic": ((0x370, 0x530), (0x1F00, 0x2000), (0x1C80, 0x1C8B), (0xA640, 0xA6A0)),
    "hebrew": ((0x591, 0x5F5), (0x20, 0x21), (0xFB1D, 0xFB50)),
    "arabic": ((0x600, 0x700), (0x750, 0x780), (0x20, 0x21), (0xFB50, 0xFE00), (0xFE70, 0xFEFF)),
    "indic": ((0x900, 0xE00),),
    "thai, lao, tibetan, myanmar": ((0xE00, 0x10A0),),
    "ethiopic to mongolian": ((0x1200, 0x18B0),),
    "jamo": ((0x1100, 0x1200), (0xA960, 0xA980), (0xD7B0, 0xD800)),
    "hangul": ((0xAC00, 0xD7A4),),
    "cjk": ((0x3000, 0x3100), (0x4E00, 0xA000), (0xF900, 0xFB00), (0xFF00, 0xFFF0)),
    "cjk beyond the bmp": ((0x20000, 0x20100), (0x2A6D0, 0x2A6F0), (0x2F800, 0x2FA20)),
    "marks": ((0x300, 0x370), (0x61, 0x66), (0x1AB0, 0x1B00), (0x1DC0, 0x1E00), (0x20D0, 0x2100)),
    "marks of old scripts": ((0x10A00, 0x10A60), (0x11000, 0x11300), (0x1D165, 0x1D1AE)),
    "signs": ((0x2000, 0x2C00), (0x3200, 0x3400)),
    "numbers": ((0x30, 0x3A), (0x660, 0x66A), (0x966, 0x970), (0xB2, 0xBF), (0x2150, 0x218C)),
    "old numbers": ((0x10107, 0x10134), (0x1D7CE, 0x1D800), (0x102E0, 0x102FC), (0x30, 0x3A)),
    "old scripts": ((0x10000, 0x10A00), (0x12000, 0x12400), (0x13000, 0x13430)),
    "mathematical letters": ((0x1D400, 0x1D800),),
    "emoji": ((0x1F300, 0x1FB00), (0x2600, 0x27C0), (0xFE0E, 0xFE10), (0x200D, 0x200E)),
    "flags": ((0x1F1E6, 0x1F200),),
    "tags": ((0xE0000, 0xE0080), (0x61, 0x63)),
    "variation selectors": ((0xFE00, 0xFE10), (0xE0100, 0xE01F0), (0x4E00, 0x4E10)),
    "bidi and invisible": ((0x200B, 0x2010), (0x202A, 0x2030), (0x2060, 0x2070), (0xFEFF, 0xFF00)),
    "private use": ((0xE000, 0xE100), (0xF0000, 0xF0080), (0x10FF80, 0x10FFFE)),
    "unassigned": ((0x378, 0x37A), (0x2FE0, 0x2FF0), (0x30000, 0x30010), (0xAFFF0, 0xB0000)),
    "noncharacters": ((0xFDD0, 0xFDF0), (0xFFFE, 0x10000), (0x1FFFE, 0x20000), (0x61, 0x63)),
    "the bmp": ((0x00, 0xD800), (0xE000, 0x10000)),
    "all planes": ((0x00, 0xD800), (0xE000, 0x110000)),
    "of late": _RECENT,
    "mixed": ((0x20, 0x7F), (0x20, 0x7F), (0x400, 0x450), (0x4E00, 0x4E80), (0x600, 0x650)),
}

_SPACES = (
    *" \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0",
    *"\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000",
    *("\r\n", "\n\n", "  ", "\u200b", "\ufeff", "\u180e"),
)

# Pieces of a kind, that random texts are put together from.
_PIECES: dict[str, tuple[str, ...]] = {
    "whitespace": (*_SPACES, "a", "1", ".", "é", "漢"),
    "newlines": ("\n", "\n\n\n", "\r\n", "\r", " \n", "\n ", "\t\n", "a", "}", ";", "//"),
    "tabs": ("\t", "\t\t\t\t", "    ", " ", "\n", "x", "if", "{", "}"),
    "contractions": (
        *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'T", "'RE", "'Ve", "'lL", "'D"),
        *("'\u017f", "'\u212a", "\u2019s", "''", "'", "I", "don", "we", " ", "x'y", "k"),
        "\u017ft",
    ),
    "case": (
        *("\u017f", "\u212a", "\u0130", "\u0131", "\u00df", "\u1e9e", "\u01c4", "\u01c5"),
        *("\u01c6", "\ufb01", "A", "aB", "\u2126", "\u03a9"),
    ),
    "nfd": (
        *("e\u0301", "a\u0308", "n\u0303", "o\u0302\u0301", "a\u0323\u0302", "u", " "),
        *("\u00c5", "\u212b"),
    ),
    "canonical": (
        *("\u0344", "\u0958", "\u2126", "\u2adc", "\ufb1f", "\u1e9b\u0323", "\u0f73"),
        *("\U0001d15e", "\u0f71", "\u0f72", "\u0f74"),
    ),
    "hangul parts": ("\u1100", "\u1161", "\u11a8", "가", "각", "\uac00\u11a8", " ", "\u302e"),
    "digits": (
        *("0", "12", "345", "6789", " ", ",", ".", "-", "1e9", "0x1F", "\u00bd", "\u00b2"),
        *("\u0663", "a"),
    ),
    "numbers": ("1,234,567.89", "$5", "10%", "3.14159", "2024-01-31", " ", "\n", "+1 (555) 0100"),
    "code": (
        *("def f(x):\n    return ", "x += 1;", "/* ", " */", "::", "->", "!=", "{\n\t\t", "}\n\n"),
        *("#include <a.h>\n", "self._x", "camelCase", "snake_case", "ALL_CAPS", '"'),
        *("`", "\\n", "$"),
    ),
    "web": (
        *("https://", "www.", "example.org", "/a/b?c=d&e=%20f", "#x", "@user", "a.b+c@d.example"),
        *("<p class='x'>", "</p>", "&amp;", "&#233;", "<br/>", " ", "\n", "[1](#a)", "|---|"),
        "***",
    ),
    "base64": ("SGVsbG8gd29ybGQ", "+/", "==", "aGk", "Zm9v", "0x", "deadbeef", "YmFy", "Zz", "9"),
    "emoji": (
        *("\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd", " ", "a"),
        *("\U0001f3f3\ufe0f\u200d\U0001f308", "\u2764\ufe0f", "1\ufe0f\u20e3"),
        *("\U0001f1e9\U0001f1ea", "\U0001f3f4\U000e0067\U000e0062\U000e007f", "\U0001f600"),
    ),
    "punctuation": (
        *("...", "!!", "?!", "\u2014", "\u201c", "\u201d", "\u00ab", "\u201e", "(", ")", " ."),
        *("'", '"', "\u3001", "\u3002"),
    ),
    "nul": ("\0", "\0\0", "a", " ", "\n", "\x01", "\x7f", "\ufffd", "\ufffe", "\x1b[0m"),
    "sentencepiece": (
        *("\u2581", "\u2581\u2581", " ", "a", "\u2581a", "<0x0A>", "\n", "<unk>", "##a"),
    ),
    "words": (
        *("the ", "quick ", "Brown ", "fox, ", "jumps\n", "naïve ", "über ", "Straße "),
        "don't ",
    ),
}  # fmt: skip

_RUNS = (" ", "a", "\n", "=", "é", "漢", "😀", "\t", "0", "\u0301", "\0", "' ", "\r\n", "ab")
# One text after another that begins like it: an engine may remember what it cut before.
_SPLITS = (" " * 70, "\n\n", "'", "12", " !!", "\r\n ", "x" * 60, "é\u0301")
_TAILS = ("x", "  ", "\n", "\t", "s", "1", "\u0301", "漢", " y", "", " " * 90)


def pack(specials: Sequence[str]) -> list[str]:
    """Texts for a check at start-up, under a second of work of the reference engine.

    `specials`: the added tokens of the tokenizer at hand.
    """
    return [*_random(specials, 6, 250), *_long(60_000, 3), *_alike(2), "", *_sweep(29)]


def wide_pack(specials: Sequence[str]) -> list[str]:
    """Texts for the tests, half a minute of work: more, longer, and every kind of run."""
    return [*_random(specials, 40, 600), *_long(1_000_000, 9), *_alike(12), "", *_sweep(1)]


def _random(specials: Sequence[str], count: int, size: int) -> Iterator[str]:
    for kind, ranges in _KINDS.items():
        yield from (_characters(f"{kind} {i}", ranges, 1 + size * i // count) for i in range(count))
    for kind, pieces in _PIECES.items():
        yield from (_joined(f"{kind} {i}", pieces, 1 + size * i // count) for i in range(count))
    if specials:
        yield from _special(specials, count, size)


def _special(specials: Sequence[str], count: int, size: int) -> Iterator[str]:
    """Special strings whole, cut, doubled, and among spaces, words and each other."""
    for one in specials[: 8 * count]:
        yield from (one, f"a{one}b", f" {one} ", f"\n{one}{one}\n", one[:-1], f"{one[1:]} {one[0]}")
        yield from (f"e\u0301 {one}\u0301", one.upper(), f"{one[:-1]} {one[-1]}", f"1{one}\t")
    among = (*specials, *specials, " ", "a", "\n", "é", "e\u0301", "  ", "<", "|", ">", "'s", "1")
    yield from (_joined(f"specials {i}", among, 1 + size * i // count) for i in range(count))


def _long(size: int, runs: int) -> Iterator[str]:
    """Texts of about `size` bytes: engines cut long texts into parts at places of their own."""
    yield from (run * (size // len(run.encode())) for run in _RUNS[:runs])
    yield _characters("a long word", _KINDS["letters"], size // 3)
    yield _characters("long cjk", _KINDS["cjk"], size // 12)
    yield _joined("long words", _PIECES["words"], size // 6)
    yield _joined("long code", _PIECES["code"], size // 12)
    lengths = Stream(0, "adversarial", "lengths").words(64) % np.uint64(size // 32)
    yield "".join(_RUNS[i % len(_RUNS)] * (1 + int(n) // 4) for i, n in enumerate(lengths))


def _alike(count: int) -> Iterator[str]:
    start = _joined("start", _PIECES["words"], 1000)[:4500]
    for number, split in enumerate(_SPLITS):
        for i in range(count):
            yield start + split + _TAILS[(number + i) % len(_TAILS)]


def _sweep(step: int) -> Iterator[str]:
    """Code points of the first two planes, each after a letter, after a space, before a mark."""
    many = np.array([*range(0xD800), *range(0xE000, 0x20000)], np.uint32)[::step]
    points = np.concatenate([many, *(np.arange(*one, dtype=np.uint32) for one in _RECENT)])
    for start in range(0, len(points), 512):
        part = points[start : start + 512]
        columns = np.full((len(part), 5), ord("a"), np.uint32)
        columns[:, 1] = columns[:, 3] = part
        columns[:, 2], columns[:, 4] = ord(" "), 0x301
        yield _text(columns.ravel())


def _characters(name: str, ranges: _Ranges, count: int) -> str:
    points = np.concatenate([np.arange(*one, dtype=np.uint32) for one in ranges])
    return _text(points[_draws(name, len(points), count)])


def _joined(name: str, pieces: Sequence[str], count: int) -> str:
    return "".join(pieces[i] for i in _draws(name, len(pieces), count))


def _draws(name: str, n: int, count: int) -> NDArray[np.int64]:
    words = Stream(0, "adversarial", name).words(count)
    return (words % np.uint64(n)).astype(np.int64)


def _text(points: NDArray[np.uint32]) -> str:
    return points.astype("<u4").tobytes().decode("utf-32-le")
