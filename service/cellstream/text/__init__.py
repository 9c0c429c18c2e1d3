"""From text to tokens and back, for training and for serving.

A tokeniser knows one vocabulary. It knows nothing of models, and needs nothing but Python; only BPE needs
Hugging Face's `tokenizers`, and imports it when it is used.
"""

from cellstream.text.bpe_tokenizer import BpeTokenizer
from cellstream.text.byte_tokenizer import ByteTokenizer
from cellstream.text.character_tokenizer import CharacterTokenizer
from cellstream.text.files import load_tokenizer, tokenizer_from_json
from cellstream.text.tokenizer import Decoder, Tokenizer

__all__ = [
    "BpeTokenizer",
    "ByteTokenizer",
    "CharacterTokenizer",
    "Decoder",
    "Tokenizer",
    "load_tokenizer",
    "tokenizer_from_json",
]
