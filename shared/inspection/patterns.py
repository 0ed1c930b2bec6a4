"""The rules: what each detector looks for. Every repeat is bounded, save in PEM blocks, so that matching stays linear.

A rule's pattern must not look further than LOOK_AHEAD characters behind its end: `scanner` relies on it to know when a
match can no longer change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import regex

from shared.inspection import validators


LOOK_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One detector: a pattern, a check of what it matched, and substrings without one of which it cannot match."""

    name: str
    kind: str
    pattern: str
    valid: Callable[[str], bool] | None = None
    needs: tuple[str, ...] = ()
    needs_digit: bool = False
    score: float = 1.0
    label: str = ""
    ignore_case: bool = False
    search: regex.Pattern[str] = field(init=False, repr=False)
    grow: regex.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compile the pattern, and the one whose partial match says where it could still grow."""
        flags = regex.IGNORECASE if self.ignore_case else 0
        object.__setattr__(self, "search", regex.compile(self.pattern, flags))
        # It can never match whole; a partial match is a way for the pattern to reach the end of the text.
        object.__setattr__(self, "grow", regex.compile(rf"(?:{self.pattern})\Z(?s:.)", flags))


_A = r"(?<![A-Za-z0-9])"
_Z = r"(?![A-Za-z0-9])"

PERSONAL: Sequence[Rule] = (
    Rule(
        name="email",
        kind="PERSONAL_EMAIL",
        pattern=r"(?<![\w.+-])[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])",
        needs=("@",),
    ),
    Rule(
        name="iban",
        kind="PERSONAL_IBAN",
        pattern=rf"{_A}[A-Z]{{2}}\d{{2}}(?: ?[A-Z0-9]{{4}}){{2,7}}(?: ?[A-Z0-9]{{1,3}})?{_Z}",
        valid=validators.iban,
        needs_digit=True,
    ),
    Rule(
        name="card",
        kind="PERSONAL_CARD",
        pattern=r"(?<![\d.-])(?:\d[ -]?){12,18}\d(?![\d])",
        valid=validators.luhn,
        needs_digit=True,
    ),
    Rule(
        name="ssn",
        kind="PERSONAL_US_SSN",
        pattern=r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])",
        valid=validators.ssn,
        needs=("-",),
    ),
    Rule(
        name="nhs",
        kind="PERSONAL_UK_NHS",
        pattern=r"(?<![\d-])\d{3}[ -]\d{3}[ -]\d{4}(?![\d-])",
        valid=validators.nhs,
        needs_digit=True,
    ),
    Rule(
        name="nino",
        kind="PERSONAL_UK_NINO",
        pattern=rf"{_A}[ABCEGHJ-PRSTW-Z][ABCEGHJ-NPRSTW-Z] ?\d{{2}} ?\d{{2}} ?\d{{2}} ?[A-D]{_Z}",
        needs_digit=True,
    ),
    Rule(
        name="dni",
        kind="PERSONAL_ES_ID",
        pattern=rf"{_A}[XYZ\d]-?\d{{7}}-?[A-Z]{_Z}",
        valid=validators.dni,
        needs_digit=True,
    ),
    Rule(
        name="steuer-id",
        kind="PERSONAL_DE_TAX_ID",
        pattern=r"(?<![\d-])\d{2} \d{3} \d{3} \d{3}(?![\d-])|(?<![\d-])\d{11}(?![\d-])",
        valid=validators.german_tax_id,
        needs_digit=True,
    ),
    Rule(
        name="nir",
        kind="PERSONAL_FR_NIR",
        pattern=r"(?<!\d)[12] ?\d{2} ?\d{2} ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}(?!\d)",
        valid=validators.french_nir,
        needs_digit=True,
    ),
    Rule(
        name="ipv4",
        kind="PERSONAL_IP",
        pattern=r"(?<![\d.])(?<![Vv]ersion )(?:\d{1,3}\.){3}\d{1,3}(?!\d|\.\d)",
        valid=validators.ip,
        needs=(".",),
        needs_digit=True,
    ),
    Rule(
        name="ipv6",
        kind="PERSONAL_IP",
        pattern=r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])",
        valid=validators.ip,
        needs=(":",),
    ),
    Rule(
        name="phone",
        kind="PERSONAL_PHONE",
        pattern=r"(?<![\w+])(?:\+|00)?\(?\d(?:[ ().\-/]{0,3}\d){6,16}(?!\w)",
        valid=validators.phone,
        needs_digit=True,
        score=0.9,
    ),
)

_TOKENS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "aws-access-key": ("SECRET_AWS_KEY", rf"{_A}(?:AKIA|ASIA)[A-Z2-7]{{16}}{_Z}", ("AKIA", "ASIA")),
    "gcp-api-key": ("SECRET_GCP_KEY", r"(?<![\w-])AIza[\w-]{35}(?![\w-])", ("AIza",)),
    "azure-storage": ("SECRET_AZURE_KEY", r"AccountKey=[A-Za-z0-9+/]{86}==", ("AccountKey=",)),
    "github": ("SECRET_TOKEN", r"(?<!\w)(?:gh[pousr]_\w{36,251}|github_pat_\w{22,255})(?!\w)", ("gh", "github_pat_")),
    "gitlab": ("SECRET_TOKEN", r"(?<![\w-])glpat-[\w-]{20,64}(?![\w-])", ("glpat-",)),
    "slack": ("SECRET_TOKEN", r"(?<![\w-])xox[abposr]-[\w-]{10,128}(?![\w-])", ("xox",)),
    "stripe": ("SECRET_TOKEN", r"(?<!\w)[sr]k_(?:live|test)_[A-Za-z0-9]{16,128}(?!\w)", ("k_live_", "k_test_")),
    "openai": ("SECRET_TOKEN", r"(?<![\w-])sk-(?:proj-|ant-)?[\w-]{20,200}(?![\w-])", ("sk-",)),
    "huggingface": ("SECRET_TOKEN", r"(?<!\w)hf_[A-Za-z0-9]{30,64}(?!\w)", ("hf_",)),
    "npm": ("SECRET_TOKEN", r"(?<!\w)npm_[A-Za-z0-9]{36}(?!\w)", ("npm_",)),
    "jwt": (
        "SECRET_JWT",
        r"(?<![\w.-])eyJ[\w-]{8,2048}\.eyJ[\w-]{8,4096}\.[\w-]{0,1024}(?![\w-])",
        ("eyJ",),
    ),
    "connection-string": (
        "SECRET_CONNECTION_STRING",
        r"(?<!\w)[a-z][a-z0-9+.-]{1,30}://[^\s:@/]{1,128}:[^\s@/]{1,256}@[^\s/@]{1,255}(?![^\s/])",
        ("://",),
    ),
    "private-key": (
        "SECRET_PRIVATE_KEY",
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?s:.*?)"
        r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
        ("-----",),
    ),
    "assigned": (
        "SECRET_PASSWORD",
        r"(?i)(?<![\w-])(?:password|passwd|pwd|secret|api[_-]?key|access[_-]?token)[\"']?\s{0,4}[:=]\s{0,4}[\"']?"
        r"[^\s\"'<>,;]{8,128}(?![^\s\"'<>,;])",
        ("=", ":"),
    ),
}
SECRET: Sequence[Rule] = tuple(
    Rule(name=name, kind=kind, pattern=pattern, needs=needs) for name, (kind, pattern, needs) in _TOKENS.items()
)

_S = r"\s{1,8}"
_ALL = r"(?:(?:all|any|the|your|my|these|those|of|previous|prior|above|earlier|preceding|foregoing|system)\s{1,8}){0,5}"
_RULES = r"(?:instructions?|prompts?|rules?|directives?|guidelines?|context|messages?|restrictions?)"
_INJECTIONS: Mapping[str, tuple[float, str]] = {
    "override": (
        0.9,
        rf"\b(?:ignore|disregard|forget|override|bypass|skip){_S}{_ALL}(?:previous|prior|above|earlier|preceding|system|all){_S}{_ALL}{_RULES}\b",
    ),
    "override-short": (0.7, rf"\b(?:ignore|disregard|forget){_S}(?:all|your|the|my){_S}{_RULES}\b"),
    "reveal": (
        0.8,
        rf"\b(?:reveal|show|print|repeat|output|tell{_S}me|display|leak){_S}(?:me{_S})?(?:your|the){_S}"
        rf"(?:(?:full|entire|exact|original|hidden|initial|secret){_S}){{0,3}}(?:system{_S})?(?:prompt|instructions)\b",
    ),
    "role": (
        0.8,
        rf"\b(?:you{_S}are{_S}now|act{_S}as|pretend{_S}(?:to{_S}be|you{_S}are)){_S}(?:an?{_S}|the{_S})?(?:DAN|jailbroken|unrestricted|unfiltered|evil|uncensored)\b",
    ),
    "mode": (
        0.8,
        rf"\b(?:developer|debug|god|jailbreak|DAN|sudo|admin){_S}mode{_S}(?:is{_S})?(?:now{_S})?(?:on|enabled|activated|engaged)\b",
    ),
    "no-limits": (
        0.7,
        rf"\b(?:without|no){_S}(?:any{_S})?(?:restrictions|filters|safety|guardrails|censorship|content{_S}polic(?:y|ies))\b",
    ),
    "new-instructions": (0.7, r"(?:^|\n)\s{0,8}(?:new|updated|real){1}\s{1,8}(?:system\s{1,8})?instructions?\s{0,4}:"),
}
INJECTION: Sequence[Rule] = tuple(
    Rule(name=f"injection-{name}", kind="INJECTION", pattern=pattern, score=score, label=name, ignore_case=True)
    for name, (score, pattern) in _INJECTIONS.items()
)

CONTROL: Sequence[Rule] = (
    Rule(name="angle-bar", kind="CONTROL_TOKEN", pattern=r"<\|[A-Za-z0-9_ -]{1,40}\|>", needs=("<|",)),
    Rule(
        name="bracket",
        kind="CONTROL_TOKEN",
        pattern=r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|<</?SYS>>",
        needs=("[", "<<"),
    ),
    Rule(
        name="tag",
        kind="CONTROL_TOKEN",
        pattern=r"</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|<｜[^｜<>]{1,40}｜>",
        needs=("<",),
    ),
)


def topics(terms: Mapping[str, Sequence[str]]) -> tuple[Rule, ...]:
    """Return a rule for each topic; spaces in a term stand for any short white space, case does not matter."""
    rules = []
    for name, words in terms.items():
        alternatives = "|".join(r"\s{1,8}".join(map(regex.escape, word.split())) for word in words if word.split())
        if alternatives:
            rules.append(
                Rule(
                    name=f"topic-{name}",
                    kind="TOPIC",
                    pattern=rf"(?<!\w)(?:{alternatives})(?!\w)",
                    label=name,
                    ignore_case=True,
                )
            )
    return tuple(rules)


KINDS: tuple[str, ...] = tuple(sorted({rule.kind for rule in (*PERSONAL, *SECRET, *INJECTION, *CONTROL)} | {"TOPIC"}))
