"""Chunks: never too long, never a word lost, each at its exact place, cut where a reader would."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest

from tests.memory.reading import small_tokenizer
from turnwire import weights
from turnwire.memory.documents.chunking import Span, chunked
from turnwire.memory.documents.document import Refused
from turnwire.memory.documents.sections import Sections
from turnwire.memory.documents.worker import ByTokenizer

if TYPE_CHECKING:
    from turnwire.memory.documents.chunking import Tokens


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> ByTokenizer:
    return ByTokenizer(str(small_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")))


def _sections(*paragraphs: str) -> Sections:
    sections = Sections(20_000_000)
    for paragraph in paragraphs:
        sections.add(paragraph)
    return sections


def _cut(sections: Sections, tokens: Tokens, size: int, overlap: int) -> list[Span]:
    return list(chunked(sections.text, sections.all, tokens, chunk_size_tokens=size, overlap_tokens=overlap))


def _texts(sections: Sections, tokens: Tokens, size: int, overlap: int) -> list[str]:
    return [sections.text[span.start : span.end] for span in _cut(sections, tokens, size, overlap)]


_PIECES = (
    lambda chance: "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(1, 12))),
    lambda chance: chance.choice(("the", "and", "of", "with", "this")),
    lambda chance: "".join(chance.choices("abcdef0123456789", k=chance.randint(90, 900))),
    lambda chance: "".join(chance.choices("漢字仮名交じり文。한국어", k=chance.randint(1, 40))),
    lambda chance: "".join(chance.choices("ภาษาไทยไม่มีช่องว่าง", k=chance.randint(1, 400))),
    lambda chance: "".join(chance.choices("éàüñçåøßſﬁ㎏İıǅ", k=chance.randint(1, 20))),
    lambda chance: "e\u0301" * chance.randint(1, 30),
    lambda chance: chance.choice(
        ("👩\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "\U0010fffd", "\u202eabc\u202c", "\u200b")
    ),
    lambda chance: chance.choice((".", "!", "?", "…", "...", "—", "(a)", '"b."', "$5.00", "[1]", "?!")),
    lambda chance: chance.choice(
        (". ", "\n", "\n\n", "\t", "  ", "\u3000", "\u00a0", " " * 300, "\n \n", "\r\n", "\x0c")
    ),
    lambda chance: chance.choice(("\x00", "\x07", "\ufeff", "\ud800", "\u0301")),
)


def _random_text(chance: random.Random) -> str:
    kinds = chance.sample(_PIECES, k=chance.randint(1, len(_PIECES)))
    between = chance.choice((" ", "", " ", "\n"))
    return between.join(chance.choice(kinds)(chance) for _ in range(chance.randint(1, 400)))


@pytest.mark.parametrize("seed", range(120))
def test_any_text_is_cut_without_loss_and_within_the_size(seed: int, tokens: ByTokenizer):
    chance = random.Random(seed)
    sections = Sections(20_000_000)
    for page in range(chance.randint(1, 3)):
        sections.page(page + 1)
        sections.add(_random_text(chance))
    text = sections.text
    size = chance.choice((16, 17, 32, 64, 256))
    overlap = chance.choice((0, 1, size // 8, size // 2, size - 1))
    spans = _cut(sections, tokens, size, overlap)
    covered: set[int] = set()
    for span in spans:
        piece = text[span.start : span.end]
        assert tokens.count(piece) == span.tokens
        # A word of which the tokenizer knows pieces only is cut where there is no room for it.
        assert span.tokens <= size
        assert span.section.start <= span.start < span.end <= span.section.end
        assert len(piece) <= 16 * size + 96 + 2 * 1024
        assert piece == piece.strip()
        covered.update(range(span.start, span.end))
    for earlier, later in itertools.pairwise(spans):
        assert earlier.start < later.start
        assert earlier.end < later.end
        if later.start < earlier.end:
            assert earlier.section is later.section
            assert tokens.count(text[later.start : earlier.end]) <= max(overlap, 1)
    # Text without a single token (control characters, accents of nothing) is the only one left out.
    if spans:
        for section in sections.all:
            inside = [span for span in spans if span.section is section]
            if inside:
                seen = [at for at in range(section.start, section.end) if not text[at].isspace()]
                assert [] == [at for at in seen if at not in covered]


def test_a_chunk_ends_with_a_paragraph_else_a_sentence_else_a_word(tokens: ByTokenizer):
    sentences = ["the of and to in. "] * 6
    paragraphs = _sections("".join(sentences), "".join(sentences))
    # 36 tokens each; both do not fit into 60.
    assert ["".join(sentences).strip()] * 2 == _texts(paragraphs, tokens, 60, 0)
    # One does not fit into 32, but five sentences do.
    assert "".join(sentences[:5]).strip() == _texts(paragraphs, tokens, 32, 0)[0]
    words = _texts(_sections("the of and to in " * 4), tokens, 16, 0)
    assert ["the of and to in the of and to in the of and to in the", "of and to in"] == words


def test_chunks_overlap_from_the_start_of_a_sentence(tokens: ByTokenizer):
    numbered = " ".join(f"{number} the of and to." for number in range(1, 10))
    first, second, *_ = _texts(_sections(numbered), tokens, 24, 8)
    assert "1 the of and to. 2 the of and to. 3 the of and to. 4 the of and to." == first
    assert second.startswith("4 the of and to. 5 ")


def test_chunks_overlap_by_words_where_a_sentence_is_longer(tokens: ByTokenizer):
    words = " ".join(str(number % 10) for number in range(60))
    first, second, *_ = _texts(_sections(words), tokens, 20, 5)
    assert words[:39] == first
    assert words[30:69] == second


def test_a_chunk_stays_on_its_page_and_under_its_heading(tokens: ByTokenizer):
    sections = Sections(1_000)
    sections.heading(1, "One")
    sections.add("the first.")
    sections.heading(2, "Two")
    sections.page(2)
    sections.add("the second.")
    sections.heading(1, "Three")
    sections.add("the third.")
    spans = _cut(sections, tokens, 64, 8)
    assert [
        ("One\n\nthe first.", 0, "One"),
        ("Two", 0, "One > Two"),
        ("the second.", 2, "One > Two"),
        ("Three\n\nthe third.", 2, "Three"),
    ] == [(sections.text[span.start : span.end], span.section.page, span.section.heading) for span in spans]


def test_a_heading_above_a_heading_is_no_chunk_of_its_own(tokens: ByTokenizer):
    sections = Sections(1_000)
    sections.heading(1, "One")
    sections.heading(2, "Two")
    sections.add("the text.")
    (span,) = _cut(sections, tokens, 64, 8)
    assert ("One\n\nTwo\n\nthe text.", "One > Two") == (sections.text[span.start : span.end], span.section.heading)


def test_a_word_without_end_is_cut_and_kept(tokens: ByTokenizer):
    word = "0123456789abcdef" * 1_000
    texts = _texts(_sections(word), tokens, 256, 0)
    assert word == "".join(texts)
    assert all(tokens.count(text) <= 256 for text in texts)


def test_a_script_that_the_model_does_not_know_makes_chunks_of_bounded_length(tokens: ByTokenizer):
    text = "ไม่มีช่องว่าง" * 5_000
    texts = _texts(_sections(text), tokens, 32, 0)
    assert text == "".join(texts)
    assert max(len(piece) for piece in texts) <= 16 * 32 + 96 + 1024


@pytest.mark.parametrize(("size", "overlap"), [(15, 0), (0, 0), (32, 32), (32, 40), (32, -1)])
def test_sizes_that_make_no_sense_are_refused(size: int, overlap: int, tokens: ByTokenizer):
    with pytest.raises(Refused, match=f"chunks of {size} tokens"):
        _cut(_sections("a text"), tokens, size, overlap)


@pytest.mark.model
@pytest.mark.everyday
def test_the_tokenizer_of_the_embedding_model_counts_the_same_in_pieces_and_at_once():
    tokens = ByTokenizer(str(weights.locate("minilm", "tokenizer.json")))
    chance = random.Random(7)
    for _ in range(20):
        sections = _sections(_random_text(chance))
        for span in _cut(sections, tokens, 64, 16):
            piece = sections.text[span.start : span.end]
            assert tokens.count(piece) == span.tokens <= 64
