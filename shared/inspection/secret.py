"""Detectors of credentials. The vendors' published prefixes; runs are as long as they are, so none escapes by growing."""

from __future__ import annotations

import math
import re
from collections import Counter

from shared.inspection.rules import AFTER_WORD, BEFORE_WORD, Rule, Span, whole

_KEY = r"(?<![A-Za-z0-9_-])"
_KEY_END = r"(?![A-Za-z0-9_-])"

_VENDOR_TOKENS = (
    ("aws-access-key", "SECRET_AWS_KEY", r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?![A-Za-z0-9])", "akia asia abia acca"),
    ("google-api-key", "SECRET_GOOGLE_KEY", rf"{_KEY}AIza[A-Za-z0-9_-]{{35}}{_KEY_END}", "aiza"),
    ("google-oauth-secret", "SECRET_GOOGLE_KEY", rf"{_KEY}GOCSPX-[A-Za-z0-9_-]{{28}}{_KEY_END}", "gocspx-"),
    ("google-oauth-token", "SECRET_GOOGLE_KEY", r"(?<![A-Za-z0-9_.-])ya29\.[A-Za-z0-9_-]{20,}+", "ya29."),
    ("azure-account-key", "SECRET_API_KEY", r"(?:AccountKey|SharedAccessKey)=[A-Za-z0-9+/]{43,86}={1,2}", "accesskey= accountkey="),
    ("azure-client-secret", "SECRET_API_KEY", r"(?<![A-Za-z0-9_~.-])[A-Za-z0-9_~.]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34}(?![A-Za-z0-9_~.-])", "q~"),
    ("github", "SECRET_GITHUB_TOKEN", rf"{BEFORE_WORD}(?:gh[pousr]_[A-Za-z0-9]{{36,}}+|github_pat_[A-Za-z0-9_]{{22,}}+)", "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_"),
    ("gitlab", "SECRET_API_KEY", rf"{_KEY}gl(?:pat|dt|rt)-[A-Za-z0-9_-]{{20,}}+", "glpat- gldt- glrt-"),
    ("slack", "SECRET_SLACK_TOKEN", rf"{_KEY}(?:xox[abeoprs]|xapp)-[A-Za-z0-9-]{{10,}}+", "xox xapp-"),
    ("slack-webhook", "SECRET_SLACK_TOKEN", r"hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/_-]{20,}+", "hooks.slack.com"),
    ("stripe", "SECRET_STRIPE_KEY", rf"{BEFORE_WORD}(?:[sr]k_(?:live|test)_|whsec_)[A-Za-z0-9]{{16,}}+", "k_live_ k_test_ whsec_"),
    # OpenAI and Anthropic (sk-ant-) among those who begin so.
    ("sk-key", "SECRET_API_KEY", rf"{_KEY}sk-[A-Za-z0-9_-]{{20,}}+", "sk-"),
    ("hugging-face", "SECRET_API_KEY", rf"{BEFORE_WORD}hf_[A-Za-z0-9]{{30,}}+", "hf_"),
    ("npm", "SECRET_API_KEY", rf"{BEFORE_WORD}npm_[A-Za-z0-9]{{36,}}+", "npm_"),
    ("pypi", "SECRET_API_KEY", rf"{_KEY}pypi-[A-Za-z0-9_-]{{50,}}+", "pypi-"),
    ("sendgrid", "SECRET_API_KEY", r"(?<![A-Za-z0-9_.-])SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}(?![A-Za-z0-9_-])", "sg."),
    ("telegram", "SECRET_API_KEY", rf"(?<![A-Za-z0-9])[0-9]{{8,10}}:AA[A-Za-z0-9_-]{{33}}{_KEY_END}", ":aa"),
    # RFC 7519 over RFC 7515: both parts begin with the base64 of '{"'.
    ("jwt", "SECRET_JWT", r"(?<![A-Za-z0-9_.-])eyJ[A-Za-z0-9_-]{8,}+\.eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]*+", "eyj"),
)  # fmt: skip

_MARKED_VALUE = re.compile(r"[^\s\"'<>,;(){}\[\]]+\Z")
_URL_PASSWORD = re.compile(r"://[^:@/]*:(.*)@", re.DOTALL)


def _generated(candidate: str) -> Span | None:
    """Take a whole token that holds a digit, which words joined by hyphens do not."""
    return (0, len(candidate)) if any(map(str.isdigit, candidate)) else None


def _password(candidate: str) -> Span | None:
    """Return the value of an assignment if it looks made up rather than spoken: two classes of character, 2.5 bits."""
    match = _MARKED_VALUE.search(candidate)
    if match is None:
        return None
    value = match.group()
    classes = (str.islower, str.isupper, str.isdigit, lambda character: not character.isalnum())
    mixed = sum(any(map(kind, value)) for kind in classes)
    counts = Counter(value)
    entropy = -sum(count / len(value) * math.log2(count / len(value)) for count in counts.values())
    return match.span() if mixed >= 2 and entropy >= 2.5 else None


SECRET: tuple[Rule, ...] = (
    *(
        Rule(name=name, kind=kind, pattern=pattern, locate=_generated, needs=tuple(needs.split()))
        for name, kind, pattern, needs in _VENDOR_TOKENS
    ),
    Rule(
        name="url-password",
        kind="SECRET_PASSWORD",
        pattern=r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{1,30}://[^\s:@/]{0,128}:[^\s@/]{1,256}@[^\s/@\"'<>]{1,255}",
        locate=lambda candidate: match.span(1) if (match := _URL_PASSWORD.search(candidate)) else None,
        needs=("://",),
    ),
    Rule(
        name="assignment",
        kind="SECRET_PASSWORD",
        pattern=r"(?<![A-Za-z0-9])(?i:password|passwd|passphrase|pwd|secret|api[_-]?key|(?:access|secret|account|private)[_-]?key"
        r"|(?:access|auth|bearer|refresh|api)[_-]?token|bearer)"
        r"[\"']?(?:\s{0,4}(?::=|=>|[:=])|\s)\s{0,4}[\"']?[^\s\"'<>,;(){}\[\]]{8,}+",
        locate=_password,
        needs=("pass", "pwd", "secret", "key", "token", "bearer"),
        score=0.8,
    ),
    Rule(
        name="private-key",
        kind="SECRET_PRIVATE_KEY",
        # RFC 7468 and OpenPGP armour, of any length: up to its end, another beginning, or the end of the text.
        pattern=r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
        r"(?:[^-]++|-(?!----(?:BEGIN |END [A-Z0-9 ]{0,40}PRIVATE KEY)))*+"
        r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?",
        locate=whole,
        needs=("private key",),
    ),
)
