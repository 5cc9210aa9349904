"""Encoding: which tokens carry loss, and which rows are refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from martlet_inputs.rows.formats import RowError
from martlet_inputs.rows.turns import check_conversation
from martlet_trainer.data.encode import EncodedRow, RowEncoder


def conversation(*turns: tuple[str, str], **values: Any) -> Any:
    messages = [
        {"role": role.rstrip("-"), "content": text, "weight": 0}
        if role.endswith("-")
        else {"role": role, "content": text}
        for role, text in turns
    ]
    return check_conversation(messages, "messages", values)


def targets(row: EncodedRow, tokenizer: Any) -> str:
    return tokenizer.decode(row.input_ids[row.is_target])


@pytest.fixture
def encoder(tiny_tokenizer: Any) -> RowEncoder:
    return RowEncoder(tiny_tokenizer, max_length=200)


def test_only_the_answer_and_its_end_carry_loss(encoder: RowEncoder, tiny_tokenizer: Any) -> None:
    row = encoder.encode(conversation(("system", "s"), ("user", "hello"), ("assistant", "yes")), "messages")
    assert targets(row, tiny_tokenizer) == "yes<|im_end|>"
    text = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"
    assert tiny_tokenizer.decode(row.input_ids) == text, "nothing is kept behind the last target"
    assert row.target_count == 4


def test_every_assistant_turn_carries_loss_unless_its_weight_is_0(encoder: RowEncoder, tiny_tokenizer: Any) -> None:
    turns = [
        ("user", "a"),
        ("assistant", "one"),
        ("user", "b"),
        ("assistant-", "two"),
        ("user", "c"),
        ("assistant", "three"),
    ]
    assert targets(encoder.encode(conversation(*turns), "messages"), tiny_tokenizer) == "one<|im_end|>three<|im_end|>"


def test_an_answer_that_stands_in_the_question_too(encoder: RowEncoder, tiny_tokenizer: Any) -> None:
    row = encoder.encode(conversation(("user", "yes yes"), ("assistant", "yes")), "messages")
    assert targets(row, tiny_tokenizer) == "yes<|im_end|>"
    assert np.flatnonzero(row.is_target)[0] == len(row.input_ids) - 4


def test_characters_of_several_tokens(encoder: RowEncoder, tiny_tokenizer: Any) -> None:
    row = encoder.encode(conversation(("user", "é"), ("assistant", "日本 ok\n")), "messages")
    assert targets(row, tiny_tokenizer) == "日本 ok\n<|im_end|>"


def test_the_template_speaks_for_itself_unless_a_system_message_is_given(tiny_tokenizer: Any) -> None:
    row = conversation(("user", "a"), ("assistant", "b"))
    plain = RowEncoder(tiny_tokenizer, max_length=200).encode(row, "messages")
    assert "You help." in tiny_tokenizer.decode(plain.input_ids)
    given = RowEncoder(tiny_tokenizer, max_length=200, system="Be brief.").encode(row, "messages")
    assert "Be brief." in tiny_tokenizer.decode(given.input_ids)
    assert "You help." not in tiny_tokenizer.decode(given.input_ids)


def test_loss_on_every_token(tiny_tokenizer: Any) -> None:
    row = RowEncoder(tiny_tokenizer, max_length=200, assistant_only_loss=False).encode(
        conversation(("user", "a"), ("assistant", "b")), "messages"
    )
    assert row.target_count == len(row.input_ids) - 1


def test_long_rows_are_cut_or_refused(tiny_tokenizer: Any) -> None:
    row = conversation(("user", "q"), ("assistant", "x" * 300))
    cut = RowEncoder(tiny_tokenizer, max_length=100).encode(row, "messages")
    assert cut.truncated
    assert len(cut.input_ids) == 100
    with pytest.raises(RowError, match=r"more than data\.max_length 100"):
        RowEncoder(tiny_tokenizer, max_length=100, on_long_rows="refuse").encode(row, "messages")
    with pytest.raises(RowError, match="all its trained tokens lie behind"):
        RowEncoder(tiny_tokenizer, max_length=20).encode(row, "messages")


def test_a_template_that_rewrites_earlier_turns_is_refused(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {% if loop.last %}[{{ m['content'] }}]{% else %}{{ m['content'] }}{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    encoder = RowEncoder(tokenizer, max_length=200)
    with pytest.raises(RowError, match="rewrites earlier turns"):
        encoder.encode(conversation(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")), "messages")


def test_what_a_template_raises_is_said(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RowError, match="roles must alternate"):
        RowEncoder(tokenizer, max_length=200).encode(conversation(("user", "a"), ("assistant", "b")), "messages")


def test_tools_are_refused_where_the_template_leaves_them_out(encoder: RowEncoder) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    with pytest.raises(RowError, match="doesn't render tools"):
        encoder.encode(conversation(("user", "a"), ("assistant", "b"), tools=tools), "messages")


def test_a_turn_without_an_end_gets_one(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    encoder = RowEncoder(tokenizer, max_length=200)
    row = encoder.encode(conversation(("user", "a"), ("assistant", "b")), "messages")
    assert targets(row, tiny_tokenizer) == "b\n<|im_end|>"
    assert encoder.rows_with_added_eos == 1


def test_base_models_without_a_template_take_plain_text_only(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = None
    encoder = RowEncoder(tokenizer, max_length=200)
    row = encoder.encode(conversation(("user", "1+1="), ("assistant", "2")), "prompt_completion")
    assert tokenizer.decode(row.input_ids) == "1+1=2<|im_end|>"
    assert targets(row, tiny_tokenizer) == "2<|im_end|>"
    with pytest.raises(RowError, match="no chat template"):
        encoder.encode(conversation(("user", "a"), ("assistant", "b")), "messages")
