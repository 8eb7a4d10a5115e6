"""What is done to bytes and texts, whatever they hold."""

from __future__ import annotations

import random
from collections.abc import Sequence

#: Texts that break careless code: of other scripts, directions and widths, empty, huge, like options, paths, escapes.
ODD_TEXTS = (
    *("", " ", "\t", "\n", "a\nb", "a\r\nb", "\x00", "a\x00b", "\x1b[31mred", "\x7f", "\x85", "\u2028", "\ufeff"),
    *("-", "--", "-x", "--json", "--set", "=", "@", "%", "%s%n", "{}", "${HOME}", "$(id)", "`id`", "'", '"', "\\"),
    *("..", "../..", "/", "//", "~", "~nobody-here", ".", "/dev/zero", "C:\\x", "con", "a/../b", "./a", "*", "?"),
    *(
        "null",
        "true",
        "NaN",
        "inf",
        "-inf",
        "1e999",
        "0x10",
        "1_0",
        "٣",
        "2001-01-01",
        "1:2",
        "<<",
        "&a",
        "*a",
        "!!int",
    ),
    *("é", "e\u0301", "漢字", "שלום", "\u202eabc", "👩‍⚕️", "ﬁ", "ß", "İ", "\U0010ffff", "\udcff", "a\udc80"),
    *("9" * 400, "9" * 5000, "x" * 255, "x" * 5000, "漢" * 90, "[" * 60, "[" * 5000, "{a: " * 3000, "0x" + "f" * 5000),
)


def odd_text(chance: random.Random) -> str:
    """One of the odd texts, at times two of them, at times any characters."""
    if chance.random() < 0.6:
        return chance.choice(ODD_TEXTS)
    if chance.random() < 0.5:
        return chance.choice(ODD_TEXTS) + chance.choice(ODD_TEXTS)
    return "".join(
        chr(chance.choice((chance.randrange(128), chance.randrange(0x3000)))) for _ in range(chance.randrange(12))
    )


def mutated(content: bytes, chance: random.Random, others: Sequence[bytes] = ()) -> tuple[str, bytes]:
    """The name of a mutation, and the bytes after it."""
    kinds = ["truncated", "flipped", "set", "cut", "doubled", "inserted", "zeroed", "shuffled"] + ["spliced"] * bool(
        others
    )
    kind = chance.choice(kinds)
    return kind, _changed(kind, bytearray(content), chance, others)


def _changed(kind: str, content: bytearray, chance: random.Random, others: Sequence[bytes]) -> bytes:
    size = len(content)
    start = chance.randrange(size + 1)
    end = min(size, start + chance.choice((1, 4, 16, 100, 1000)))
    match kind:
        case "truncated":
            del content[start:]
        case "flipped" if size:
            for _ in range(chance.choice((1, 1, 2, 8, 64))):
                content[_place(size, chance)] ^= 1 << chance.randrange(8)
        case "set" if size:
            for _ in range(chance.choice((1, 2, 4))):
                content[_place(size, chance)] = chance.choice((0, 1, 127, 128, 254, 255))
        case "cut":
            del content[start:end]
        case "doubled":
            content[end:end] = content[start:end] * chance.choice((1, 2, 50))
        case "inserted":
            content[start:start] = chance.randbytes(chance.choice((1, 2, 8, 300)))
        case "zeroed":
            content[start:end] = bytes(end - start)
        case "shuffled":
            parts = [content[at : at + 64] for at in range(0, size, 64)]
            head = chance.randrange(min(4, len(parts) + 1))
            tail = parts[head:]
            chance.shuffle(tail)
            content = bytearray().join(parts[:head] + tail)
        case "spliced":
            other = chance.choice(others)
            content = content[:start] + other[chance.randrange(len(other) + 1) :]
    return bytes(content)


def _place(size: int, chance: random.Random) -> int:
    """Heads are where formats are decided: every second change lies in one."""
    return chance.randrange(min(size, 400) if chance.random() < 0.5 else size)
