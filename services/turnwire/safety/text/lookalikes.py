"""Characters that nobody sees, and characters that look like others."""

from __future__ import annotations

_INVISIBLE_RANGES = (
    (0x00AD, 0x00AD),  # soft hyphen
    (0x034F, 0x034F),  # combining grapheme joiner
    (0x061C, 0x061C),  # Arabic letter mark
    (0x115F, 0x1160),  # Hangul fillers
    (0x17B4, 0x17B5),  # Khmer inherent vowels
    (0x180B, 0x180F),  # Mongolian selectors
    (0x200B, 0x200F),  # zero-width spaces and joiners, marks of direction
    (0x202A, 0x202E),  # embeddings and overrides of direction
    (0x2060, 0x206F),  # word joiner, invisible operators, isolates
    (0x3164, 0x3164),  # Hangul filler
    (0xFE00, 0xFE0F),  # variation selectors
    (0xFEFF, 0xFEFF),  # byte order mark
    (0xFFA0, 0xFFA0),  # half-width Hangul filler
    (0x1BCA0, 0x1BCA3),  # shorthand controls
    (0x1D173, 0x1D17A),  # musical controls
    (0xE0000, 0xE0FFF),  # tags, further variation selectors
)

INVISIBLE: dict[int, None] = {code: None for first, last in _INVISIBLE_RANGES for code in range(first, last + 1)}
"""For `str.translate`: takes out what has no shape."""

# Capital and small letters apart, since capitals of other scripts look like other Latin letters than their small forms.
_LOOKALIKES = {
    "a": "аαɑ",
    "b": "Ьʙ",
    "c": "сϲᴄ",
    "d": "ԁɗᴅ",
    "e": "еєҽɛᴇ",
    "f": "ƒϝ",
    "g": "ɡգԍ",
    "h": "һհʜ",
    "i": "іιıɩӏ",
    "j": "јϳ",
    "k": "кκᴋ",
    "l": "ⅼʟ",
    "m": "мᴍ",
    "n": "пηոɴ",
    "o": "оοσօᴏ०૦௦๐໐",
    "p": "рρᴘ",
    "q": "ԛ",
    "r": "гᴦʀ",
    "s": "ѕꜱ",
    "t": "тτᴛ",
    "u": "υսᴜ",
    "v": "ѵνᴠ",
    "w": "ԝωшᴡ",
    "x": "хχ",
    "y": "уүγʏ",
    "z": "ᴢ",
    "A": "АΑᎪ",
    "B": "ВΒᏴ",
    "C": "СϹᏟ",
    "D": "Ꭰ",
    "E": "ЕΕᎬ",
    "G": "Ԍ",
    "H": "НΗᎻ",
    "I": "ІΙӀ",
    "J": "ЈᎫ",
    "K": "КΚᏦ",
    "L": "Ꮮ",
    "M": "МΜᎷ",
    "N": "Ν",
    "O": "ОΟՕ",
    "P": "РΡᏢ",
    "Q": "Ԛ",
    "S": "ЅՏᏚ",
    "T": "ТΤᎢ",
    "V": "ѴᏙ",
    "W": "ԜᎳ",
    "X": "ХΧ",
    "Y": "УΥҮ",
    "Z": "ΖᏃ",
}


def _table() -> dict[int, str]:
    table = {ord(character): letter for letter, similar in _LOOKALIKES.items() for character in similar}
    # Letters in black squares and circles, and the letters of flags, have no Latin letter by Unicode's own tables.
    for first in (0x1F150, 0x1F170, 0x1F1E6):
        table |= {first + offset: chr(ord("a") + offset) for offset in range(26)}
    return table


LOOKALIKES: dict[int, str] = _table()
"""For `str.translate`: the Latin letter that a character looks like."""
