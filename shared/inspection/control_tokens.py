"""Detectors of the tokens by which chat templates mark roles and turns: in content they can only be forgeries."""

from __future__ import annotations

from shared.inspection.rules import Rule

_FORMS = (
    # ChatML, Llama 3, Phi, GPT; DeepSeek writes full-width bars, which normalisation makes plain.
    ("bars", r"<\|[A-Za-z0-9_ \u2581-]{1,48}\|>", "<|"),
    ("deepseek", r"<\uff5c[A-Za-z0-9_ \u2581-]{1,48}\uff5c>", "<\uff5c"),
    ("brackets", r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|IMG|PREFIX|SUFFIX|MIDDLE)\]", "]"),
    ("llama-2", r"<</?SYS>>|</?s>", "sys>> s>"),
    ("gemma", r"<(?:start|end)_of_(?:turn|image)>|<(?:bos|eos|pad|unk|mask)>", "_of_ os> pad> unk> mask>"),
    ("tools", r"</?(?:tool_call|tool_response|function_calls?|think)>", "tool_ function_call think>"),
)

CONTROL_TOKENS: tuple[Rule, ...] = tuple(
    Rule(name=f"control-{name}", kind="CONTROL_TOKEN", pattern=pattern, needs=tuple(needs.split()))
    for name, pattern, needs in _FORMS
)
