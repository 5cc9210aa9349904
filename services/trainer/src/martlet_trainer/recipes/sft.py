"""Supervised fine-tuning: the model learns to predict the assistant's tokens of each row."""

from __future__ import annotations

from martlet_trainer.data.examples import encode_conversation
from martlet_trainer.recipes.method import Method
from martlet_trainer.recipes.next_token import next_token_lesson

METHOD = Method(encode_conversation, next_token_lesson)
