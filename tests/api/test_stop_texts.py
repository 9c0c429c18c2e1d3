"""Where generated text ends, whatever the texts: held against a search in the whole text at once."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from cellstream.api.stop_texts import StopTexts
from cellstream.text import ByteTokenizer

ALPHABET = "aé€"
TEXTS = st.text(ALPHABET, max_size=12)
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3)


@given(text=TEXTS, stops=STOPS)
def test_all_before_the_first_stop_text_is_sent_and_nothing_of_it(text: str, stops: list[str]) -> None:
    """Tokens and text alike, byte by byte; what is sent is never taken back."""
    held, decoder = StopTexts(stops), ByteTokenizer().decoder()
    sent, ids = "", []
    absorbed = 0
    for token in text.encode():
        more, tokens = held.push(token, decoder.feed([token]))
        sent, ids, absorbed = sent + more, ids + tokens, absorbed + 1
        if held.stopped:
            break
    else:
        more, tokens = held.finish(decoder.finish())
        sent, ids = sent + more, ids + tokens
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    if not ends:
        assert (sent, held.stopped) == (text, False)
    else:
        stop = max((stop for stop in stops if text[: ends[0]].endswith(stop)), key=len)
        assert (sent, held.stopped) == (text[: ends[0] - len(stop)], True)
        assert absorbed == len(text[: ends[0]].encode()), "it ends right behind the stop text"
    assert bytes(ids) == sent.encode()


@given(text=TEXTS, stops=STOPS)
def test_no_more_is_held_back_than_may_become_a_stop_text(text: str, stops: list[str]) -> None:
    """After each token, what waits begins a stop text, or is a character that is not whole."""
    held, decoder = StopTexts(stops), ByteTokenizer().decoder()
    seen = sent = ""
    for token in text.encode():
        completed = decoder.feed([token])
        seen += completed
        sent += held.push(token, completed)[0]
        if held.stopped:
            break
        waiting = seen[len(sent) :]
        assert not waiting or any(stop.startswith(waiting) for stop in stops)
