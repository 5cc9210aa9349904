"""Going on with pretraining: the model learns to predict every token of plain texts.

A text longer than ``max_length`` is cut into pieces, each a row of its own: nothing of it is left out.
"""

from __future__ import annotations

from martlet_trainer.data.examples import encode_text
from martlet_trainer.recipes.method import Method
from martlet_trainer.recipes.next_token import next_token_lesson

METHOD = Method(encode_text, next_token_lesson)
