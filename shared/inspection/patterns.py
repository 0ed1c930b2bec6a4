"""The rules: what each detector looks for, in ASCII (`normalisation` brings the rest there) save for topics and e-mail.

Matching stays linear: a repeat is bounded, or possessive behind an anchored start. A pattern must not look further back
than LOOK_BEHIND characters: `streaming` keeps that many of what was released.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import regex

from shared.inspection import validators
from shared.inspection.normalisation import normalise
from shared.inspection.rules import AT_DIGIT, AT_MARK, AT_WORD, Rule

_A = r"(?<![A-Za-z0-9])"
_Z = r"(?![A-Za-z0-9])"
_CARD_START = r"(?<![\d+])(?<!\d[.-])"
_CARD_END = r"(?!\d|\.\d)"
_LAST_GROUP = regex.compile(r"[ ().\-/]+\d+\Z")


def _card(name: str, digits: str) -> Rule:
    return Rule(
        name=f"card-{name}",
        kind="PERSONAL_CARD",
        pattern=rf"{_CARD_START}{digits}{_CARD_END}",
        valid=validators.card,
        lead=AT_DIGIT,
        needs_digit=True,
    )


def _iban(length: int, countries: Sequence[str]) -> str:
    groups, rest = divmod(length - 4, 4)
    tail = rf" ?[A-Z0-9]{{{rest}}}" if rest else ""
    return rf"(?:{'|'.join(countries)})\d{{2}}(?: ?[A-Z0-9]{{4}}){{{groups}}}{tail}"


PERSONAL: Sequence[Rule] = (
    Rule(
        name="email",
        lead=AT_WORD,
        kind="PERSONAL_EMAIL",
        pattern=r"(?<![\w.+%-])\w[\w.+%-]{0,63}@(?:[\w-]{1,63}\.){1,8}(?:[^\W\d_]{2,24}|xn--[a-z0-9-]{1,59})(?![\w-])",
        needs=("@",),
        ascii=False,
    ),
    Rule(
        name="iban",
        lead=AT_WORD,
        kind="PERSONAL_IBAN",
        pattern=rf"{_A}(?:{'|'.join(_iban(*item) for item in validators.IBAN_LENGTHS.items())}){_Z}",
        valid=validators.iban,
        needs_digit=True,
    ),
    _card("16", r"[2-6]\d{3}(?:(?:[ -]?\d{4}){3}|(?:\.\d{4}){3})"),
    _card("19", r"[3-6]\d{3}[ .-]\d{4}[ .-]\d{4}[ .-]\d{4}[ .-]\d{3}"),
    _card("15", r"3[47]\d{2}[ .-]?\d{6}[ .-]?\d{5}"),
    _card("14", r"3[0689]\d{2}[ .-]?\d{6}[ .-]?\d{4}"),
    _card("unspaced", r"[3-6]\d{12,18}"),
    Rule(
        name="ssn",
        lead=AT_DIGIT,
        kind="PERSONAL_US_SSN",
        pattern=r"(?<![\w-])\d{3}(?:-\d{2}-| \d{2} )\d{4}(?![\w-])",
        valid=validators.ssn,
        needs_digit=True,
    ),
    Rule(
        name="nhs",
        lead=AT_DIGIT,
        kind="PERSONAL_UK_NHS",
        pattern=r"(?<![\w-])\d{3}[ -]\d{3}[ -]\d{4}(?![\w-])",
        valid=validators.nhs,
        needs_digit=True,
    ),
    Rule(
        name="nino",
        lead=AT_WORD,
        kind="PERSONAL_UK_NINO",
        pattern=rf"{_A}(?=[A-Z]{{2}} ?\d)(?!BG|GB|KN|NK|NT|TN|ZZ)[ABCEGHJ-PRSTW-Z][ABCEGHJ-NPRSTW-Z]"
        rf" ?\d{{2}} ?\d{{2}} ?\d{{2}} ?[A-D]{_Z}",
        needs_digit=True,
    ),
    Rule(
        name="dni",
        lead=AT_DIGIT,
        kind="PERSONAL_ES_ID",
        pattern=rf"{_A}[XYZ\d][ -]?\d{{7}}[ -]?[A-Z]{_Z}",
        valid=validators.dni,
        needs_digit=True,
    ),
    Rule(
        name="steuer-id",
        lead=AT_DIGIT,
        kind="PERSONAL_DE_TAX_ID",
        pattern=r"(?<![\w.-])(?:\d{2} \d{3} \d{3} \d{3}|\d{11})(?![\w-])",
        valid=validators.german_tax_id,
        needs_digit=True,
    ),
    Rule(
        name="nir",
        lead=AT_DIGIT,
        kind="PERSONAL_FR_NIR",
        pattern=r"(?<!\w)[12] ?\d{2} ?(?:0[1-9]|[1-9]\d) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}(?!\w)",
        valid=validators.french_nir,
        needs_digit=True,
    ),
    Rule(
        name="ipv4",
        lead=AT_DIGIT,
        kind="PERSONAL_IP",
        pattern=r"(?<![\w.])(?<!\w/)(?<![Vv]ersion[ :])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)",
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
        needs_digit=True,
    ),
    Rule(
        name="phone-international",
        lead=AT_DIGIT,
        kind="PERSONAL_PHONE",
        pattern=r"(?<![\w+])(?:\+|00) ?\(?[1-9](?:[ ().\-/]{0,3}\d){6,14}(?!\d)",
        valid=validators.international_phone,
        trim=_LAST_GROUP,
        needs_digit=True,
        score=0.9,
    ),
    Rule(
        name="phone-national",
        lead=AT_DIGIT,
        kind="PERSONAL_PHONE",
        pattern=r"(?<![\w+:,])(?<!\w[.\-/])\(?0[1-9](?:[ ().\-/]{0,3}\d){7,10}(?!\w)",
        valid=validators.national_phone,
        trim=_LAST_GROUP,
        needs=("0",),
        score=0.8,
    ),
    Rule(
        name="phone-north-america",
        lead=AT_DIGIT,
        kind="PERSONAL_PHONE",
        pattern=r"(?=[1-9(][\d .-])(?<![\w+:,])(?<!\w[.\-/])(?:1[ .-])?"
        r"(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}(?!\w|[.\-/]\d)",
        valid=validators.north_american_phone,
        needs_digit=True,
        score=0.8,
    ),
)

_ASSIGNMENT = (
    r"(?:password|passwd|passphrase|pwd|secret|api[_-]?key|access[_-]?key|client[_-]?secret|private[_-]?key"
    r"|(?:access|auth|bearer|refresh)[_-]?token)[\"']?\s{0,4}[:=]{1,2}\s{0,4}"
)
_ASSIGNED = ("pass", "pwd", "secret", "key", "token")

_TOKENS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "aws-access-key": ("SECRET_AWS_KEY", rf"{_A}(?:AKIA|ASIA)[A-Z2-7]{{16}}{_Z}", ("AKIA", "ASIA")),
    "gcp-api-key": ("SECRET_GCP_KEY", r"(?<![\w-])AIza[\w-]{35}(?![\w-])", ("AIza",)),
    "github": (
        "SECRET_TOKEN",
        r"(?<!\w)(?:gh[pousr]_\w{36,251}|github_pat_\w{22,255})(?!\w)",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    ),
    "gitlab": ("SECRET_TOKEN", r"(?<![\w-])glpat-[\w-]{20,64}(?![\w-])", ("glpat-",)),
    "slack": ("SECRET_TOKEN", r"(?<![\w-])xox[abposr]-[\w-]{10,128}(?![\w-])", ("xox",)),
    "stripe": ("SECRET_TOKEN", r"(?<!\w)[sr]k_(?:live|test)_[A-Za-z0-9]{16,128}(?!\w)", ("k_live_", "k_test_")),
    "openai": ("SECRET_TOKEN", r"(?<![\w-])sk-(?:proj-|ant-)?[\w-]{20,200}(?![\w-])", ("sk-",)),
    "huggingface": ("SECRET_TOKEN", r"(?<!\w)hf_[A-Za-z0-9]{30,64}(?!\w)", ("hf_",)),
    "npm": ("SECRET_TOKEN", r"(?<!\w)npm_[A-Za-z0-9]{36}(?!\w)", ("npm_",)),
    "jwt": ("SECRET_JWT", r"(?<![\w.-])eyJ[\w-]{8,}+\.eyJ[\w-]{8,}+\.[\w-]*+", ("eyJ",)),
    "connection-string": (
        "SECRET_CONNECTION_STRING",
        r"(?<!\w)[a-z][a-z0-9+.-]{1,30}://[^\s:@/]{0,128}:[^\s/]{1,256}@[^\s/@]{1,255}",
        ("://",),
    ),
}
SECRET: Sequence[Rule] = (
    *(
        Rule(name=name, kind=kind, pattern=pattern, needs=needs, lead=AT_WORD)
        for name, (kind, pattern, needs) in _TOKENS.items()
    ),
    Rule(
        name="azure-storage",
        kind="SECRET_AZURE_KEY",
        pattern=r"AccountKey=[A-Za-z0-9+/]{86}==",
        needs=("AccountKey=",),
    ),
    Rule(
        name="private-key",
        kind="SECRET_PRIVATE_KEY",
        pattern=r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?s:.*?)"
        r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
        lead=AT_MARK,
        needs=("-----",),
    ),
    Rule(
        name="assigned-quoted",
        kind="SECRET_PASSWORD",
        pattern=_ASSIGNMENT + r"""(?:"[^\s"]{8,}+"|'[^\s']{8,}+')""",
        needs=_ASSIGNED,
        ignore_case=True,
    ),
    Rule(
        name="assigned",
        kind="SECRET_PASSWORD",
        pattern=_ASSIGNMENT + r"""[^\s"'<>,;]{8,}+""",
        valid=validators.secret_assignment,
        overlapping=False,
        needs=_ASSIGNED,
        ignore_case=True,
    ),
)

_S = r"\s{1,8}"
_ALL = r"(?:(?:all|any|the|your|my|these|those|of|previous|prior|above|earlier|preceding|foregoing|system)\s{1,8}){0,5}"
_RULES = r"(?:instructions?|prompts?|rules?|directives?|guidelines?|context|messages?|restrictions?)"
_INJECTIONS: Mapping[str, tuple[float, tuple[str, ...], str]] = {
    "override": (
        0.9,
        ("ignore", "disregard", "forget", "override", "bypass", "skip"),
        rf"\b(?:ignore|disregard|forget|override|bypass|skip){_S}{_ALL}(?:previous|prior|above|earlier|preceding|system|all){_S}{_ALL}{_RULES}\b",
    ),
    "override-short": (
        0.7,
        ("ignore", "disregard", "forget"),
        rf"\b(?:ignore|disregard|forget){_S}(?:all|your|the|my){_S}{_RULES}\b",
    ),
    "reveal": (
        0.8,
        ("prompt", "instructions"),
        rf"\b(?:reveal|show|print|repeat|output|tell{_S}me|display|leak){_S}(?:me{_S})?(?:your|the){_S}"
        rf"(?:(?:full|entire|exact|original|hidden|initial|secret){_S}){{0,3}}(?:system{_S})?(?:prompt|instructions)\b",
    ),
    "role": (
        0.8,
        ("jailbroken", "unrestricted", "unfiltered", "evil", "uncensored", "dan"),
        rf"\b(?:you{_S}are{_S}now|act{_S}as|pretend{_S}(?:to{_S}be|you{_S}are)){_S}(?:an?{_S}|the{_S})?(?:DAN|jailbroken|unrestricted|unfiltered|evil|uncensored)\b",
    ),
    "mode": (
        0.8,
        ("mode",),
        rf"\b(?:developer|debug|god|jailbreak|DAN|sudo|admin){_S}mode{_S}(?:is{_S})?(?:now{_S})?(?:on|enabled|activated|engaged)\b",
    ),
    "no-limits": (
        0.7,
        ("restriction", "filter", "safety", "guardrail", "censorship", "polic"),
        rf"\b(?:without|no){_S}(?:any{_S})?(?:restrictions|filters|safety|guardrails|censorship|content{_S}polic(?:y|ies))\b",
    ),
    "new-instructions": (
        0.7,
        ("instruction",),
        r"(?<![^\n])\s{0,8}(?:new|updated|real)\s{1,8}(?:system\s{1,8})?instructions?\s{0,4}:",
    ),
}
# Letters that nobody sees and some models read (Unicode tags); the longest flag emoji has six of them.
_UNSEEN = r"(?:[\U000e0020-\U000e007e][\u0300-\u036f\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f]{0,3}){8,64}"
INJECTION: Sequence[Rule] = (
    *(
        Rule(
            name=f"injection-{name}",
            kind="INJECTION",
            pattern=pattern,
            lead=AT_WORD,
            needs=needs,
            score=score,
            label=name,
            ignore_case=True,
        )
        for name, (score, needs, pattern) in _INJECTIONS.items()
    ),
    Rule(name="injection-hidden", kind="INJECTION", pattern=_UNSEEN, score=0.9, label="hidden"),
)

CONTROL: Sequence[Rule] = (
    Rule(name="angle-bar", kind="CONTROL_TOKEN", lead=AT_MARK, pattern=r"<\|[A-Za-z0-9_ -]{1,40}\|>", needs=("<|",)),
    Rule(
        name="bracket",
        kind="CONTROL_TOKEN",
        lead=AT_MARK,
        pattern=r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|<</?SYS>>",
        needs=("[", "<<"),
    ),
    Rule(
        name="tag",
        kind="CONTROL_TOKEN",
        lead=AT_MARK,
        pattern=r"</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|<｜[^｜<>]{1,40}｜>",
        needs=("<",),
    ),
)


def topics(terms: Mapping[str, Sequence[str]]) -> tuple[Rule, ...]:
    """Return a rule for each topic; spaces in a term stand for any short white space, case does not matter."""
    rules = []
    for name, words in terms.items():
        forms = dict.fromkeys(form for word in words for form in (word, _normal(word)) if form.split())
        alternatives = "|".join(r"\s{1,8}".join(map(regex.escape, form.split())) for form in forms)
        if alternatives:
            rules.append(
                Rule(
                    name=f"topic-{name}",
                    kind="TOPIC",
                    pattern=rf"(?<!\w)(?:{alternatives})(?!\w)",
                    lead=AT_WORD,
                    label=name,
                    ignore_case=True,
                    ascii=False,
                )
            )
    return tuple(rules)


def _normal(word: str) -> str:
    normal = normalise(word)
    return word if normal is None else normal.text


KINDS: tuple[str, ...] = tuple(sorted({rule.kind for rule in (*PERSONAL, *SECRET, *INJECTION, *CONTROL)} | {"TOPIC"}))
