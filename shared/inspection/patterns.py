"""The rules: what each detector looks for, in ASCII (`normalisation` brings the rest there) save for topics and e-mail.

Matching stays linear: a repeat is bounded, or possessive behind an anchored start. A pattern must not look further back
than LOOK_BEHIND characters: `streaming` keeps that many of what was released.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import regex

from shared.inspection import validators
from shared.inspection.credentials import SECRET
from shared.inspection.normalisation import normalise
from shared.inspection.rules import ANYWHERE, AT_DIGIT, AT_MARK, AT_UNSEEN, AT_WORD, TAGS, UNSEEN, Rule

_A = AT_WORD
_ASCII = "[A-Za-z0-9]"
_IS_ASCII = f"(?={_ASCII})"
_Z = f"(?!{_ASCII})"
_ESCAPED = r"(?<=\\[nrt])"
# No part of a longer number; what letters are glued to it, by a dash or without, does not matter.
_ALONE = r"(?<!\d)(?<!\d-)"
_ENDS = r"(?!\d|-\d)"
# Neither a part of a longer number, nor of a digest.
_CARD_START = r"(?<!\d)(?<!\d[.-])(?<![0-9a-f]{4}[a-f])(?<![0-9A-F]{4}[A-F])"
_CARD_END = r"(?!\d|\.\d|[a-f][0-9a-f]{4}|[A-F][0-9A-F]{4})"
_GAP = "[ ._/+-]{1,3}"
_LAST_GROUP = regex.compile(r"[ ()\[\].\-/]+\d+\Z")
# What a phone number or an address does not follow; at most LOOK_BEHIND characters. A repeat right behind literals is
# written out: looking back over one, a partial search takes what does not match for what could.
_NO_PHONE = (
    r"(?<!(?i:\b(?:order|invoice|ticket|case|account|customer|contract|part|item|batch|serial|reference|ref|po|sku|id|isbn"
    r"|ean)(?: ?(?:no|nr|number|id|code))?"
    r"|(?:bestell|kunden|rechnungs|auftrags|vertrags|steuer|konto|artikel|serien|vorgangs)(?:nummer|nr))[.:#]{0,2} ?)"
)
_NO_ADDRESS = (
    r"(?<!(?i:\b(?:version|build|release|section|sections|chapter|firmware|rev|clause|kapitel|abschnitt)[ :=]{1,2}"
    r"|§ ?|\brc\d |\brc\d\d ))"
)

# Between the name of a number and the number.
_NUMBER_IS = r"(?:[ _-](?:number|num|no|nr|id))?(?:[\"':=#.(\s-]|is\s){0,4}"
_MARK = "[ ./-]?"

_NO_UUID = r"(?!(?<=[0-9a-f]{4}-)(?:[0-9a-f]{4}-){1,3}[0-9a-f]{12}(?![A-Za-z0-9]))"


def _card(name: str, digits: str) -> Rule:
    return Rule(
        name=f"card-{name}",
        kind="PERSONAL_CARD",
        pattern=rf"{_CARD_START}{digits}{_CARD_END}",
        valid=validators.card,
        lead=AT_DIGIT,
        digits=13,
    )


def _iban(length: int, countries: Sequence[str]) -> str:
    groups, rest = divmod(length - 4, 4)
    gap = r"[\s._/+-]{0,3}"
    tail = rf"{gap}[A-Z0-9]{{{rest}}}" if rest else ""
    return rf"(?i:{'|'.join(countries)}) ?\d{{2}}(?i:{gap}[A-Z0-9]{{4}}){{{groups}}}(?i:{tail})"


PERSONAL: Sequence[Rule] = (
    Rule(
        name="email",
        lead=AT_WORD,
        kind="PERSONAL_EMAIL",
        # Nothing after it, and before it neither a mark nor a line to write on, may hide one.
        pattern=rf"(?:(?<![^\W_])|(?<!{_ASCII}){_IS_ASCII})\w[\w.+%-]{{0,63}}@"
        r"(?:[\w-]{1,63}(?:\.|[。｡](?=[A-Za-z]))){1,8}(?:xn--[a-z0-9-]{1,59}|[A-Za-z]{2,24}|[^\W\d_]{2,24})",
        needs=("@",),
        ascii=False,
    ),
    Rule(
        name="iban",
        lead=AT_WORD,
        kind="PERSONAL_IBAN",
        pattern=rf"{_A}{_NO_UUID}"
        rf"(?:{'|'.join(_iban(*item) for item in validators.IBAN_LENGTHS.items())}){_Z}",
        valid=validators.iban,
        country=True,
    ),
    _card("16", r"[2-6]\d{3}(?:(?:[ _/+-]{0,3}\d{4}){3}|(?:\.\d{4}){3})"),
    _card("19", rf"[3-6]\d{{3}}(?:{_GAP}\d{{4}}){{3}}{_GAP}\d{{3}}"),
    _card("15", rf"3[47]\d{{2}}(?:(?:{_GAP})?\d{{6}}(?:{_GAP})?\d{{5}}|(?:{_GAP}\d{{4}}){{2}}{_GAP}\d{{3}})"),
    _card("14", rf"3[0689]\d{{2}}(?:(?:{_GAP})?\d{{6}}(?:{_GAP})?\d{{4}}|(?:{_GAP}\d{{4}}){{2}}{_GAP}\d{{2}})"),
    _card("unspaced", r"(?<!\+)[3-6]\d{12,18}"),
    _card("spelled", r"(?<!\d[ -])[3-6](?:(?: \d){12,18}|(?:-\d){12,18})(?![ -]\d)"),
    Rule(
        name="ssn",
        lead=AT_DIGIT,
        kind="PERSONAL_US_SSN",
        pattern=rf"(?=\d{{3}}[ -]){_ALONE}\d{{3}}(?:-\d{{2}}-| \d{{2}} )\d{{4}}{_ENDS}",
        valid=validators.ssn,
        digits=9,
    ),
    Rule(
        name="nhs",
        lead=AT_DIGIT,
        kind="PERSONAL_UK_NHS",
        pattern=rf"(?=\d{{3}}[ -]){_ALONE}\d{{3}}[ -]\d{{3}}[ -]\d{{4}}{_ENDS}",
        valid=validators.nhs,
        digits=10,
    ),
    Rule(
        name="ssn-named",
        lead=AT_WORD,
        kind="PERSONAL_US_SSN",
        pattern=rf"{_A}(?:ssn|social[ _-]security){_NUMBER_IS}\d{{3}}{_MARK}\d{{2}}{_MARK}\d{{4}}(?!\d)",
        valid=validators.ssn,
        ignore_case=True,
        needs=("ssn", "social"),
        needs_digit=True,
    ),
    Rule(
        name="nhs-named",
        lead=AT_WORD,
        kind="PERSONAL_UK_NHS",
        pattern=rf"{_A}nhs{_NUMBER_IS}\d{{3}}{_MARK}\d{{3}}{_MARK}\d{{4}}(?!\d)",
        valid=validators.nhs,
        ignore_case=True,
        needs=("nhs",),
        needs_digit=True,
    ),
    Rule(
        name="nino",
        lead=AT_WORD,
        kind="PERSONAL_UK_NINO",
        pattern=rf"(?=[A-Z]{{2}} ?\d){_A}(?!BG|GB|KN|NK|NT|TN|ZZ)[ABCEGHJ-PRSTW-Z][ABCEGHJ-NPRSTW-Z]"
        rf" ?\d{{2}} ?\d{{2}} ?\d{{2}} ?[A-D]{_Z}",
        country=True,
    ),
    Rule(
        name="dni",
        lead=AT_DIGIT,
        kind="PERSONAL_ES_ID",
        pattern=rf"(?<!\d)(?=[XYZ\d][ -]?\d{{7}}){_A}[XYZ\d][ -]?\d{{7}}[ -]?[A-Z]{_Z}",
        valid=validators.dni,
        digits=7,
    ),
    Rule(
        name="steuer-id",
        lead=AT_DIGIT,
        kind="PERSONAL_DE_TAX_ID",
        pattern=rf"(?<![\d.-])(?=\d\d[ \d]\d)(?:(?<!\w)|{_ESCAPED})"
        r"(?:\d{2} \d{3} \d{3} \d{3}|\d{11})(?![\w-])",
        valid=validators.german_tax_id,
        digits=11,
    ),
    Rule(
        name="nir",
        lead=AT_DIGIT,
        kind="PERSONAL_FR_NIR",
        pattern=rf"(?<!\d)(?=[12] ?\d\d)(?:(?<!\w)|{_ESCAPED})"
        r"[12] ?\d{2} ?(?:0[1-9]|[1-9]\d) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}(?!\w)",
        valid=validators.french_nir,
        digits=13,
    ),
    Rule(
        name="ipv4",
        lead=AT_DIGIT,
        kind="PERSONAL_IP",
        pattern=rf"(?:(?<![\w.])(?<!\w/){_NO_ADDRESS}|{_ESCAPED}|(?<=://))(?:\d{{1,3}}\[?\.\]?){{3}}\d{{1,3}}(?!\w|\.\d)",
        valid=validators.ip,
        needs=(".",),
        needs_digit=True,
    ),
    Rule(
        name="ipv6",
        kind="PERSONAL_IP",
        pattern=r"(?:(?<![\w:.])|(?<=\b[G-Zg-z][A-Za-z]:))(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])",
        valid=validators.ip,
        needs=(":",),
        needs_digit=True,
    ),
    Rule(
        name="phone-international",
        lead=AT_DIGIT,
        kind="PERSONAL_PHONE",
        pattern=rf"(?:(?<![\w+])|{_ESCAPED})(?:\+|00) ?\(?[1-9](?:[ ()\[\].\-/]{{0,3}}\d){{6,14}}(?!\d)",
        valid=validators.international_phone,
        needs=("+", "00"),
        trim=_LAST_GROUP,
        digits=7,
        score=0.9,
    ),
    Rule(
        name="phone-national",
        lead=AT_DIGIT,
        kind="PERSONAL_PHONE",
        pattern=rf"(?=\(?0[1-9])(?:(?<![\w+,])(?<!\d:)(?<!\w[.\-/]){_NO_PHONE}|{_ESCAPED})"
        r"\(?0[1-9](?:[ ().\-/]{0,3}\d){7,10}(?!\w)",
        valid=validators.national_phone,
        trim=_LAST_GROUP,
        digits=9,
        score=0.8,
    ),
    Rule(
        name="phone-north-america",
        lead=AT_DIGIT,
        kind="PERSONAL_PHONE",
        pattern=rf"(?<!\d)(?=(?:1[ .-])?\(?[2-9]\d\d)(?:(?<![\w+,])(?<!\d:)(?<!\w[.\-/]){_NO_PHONE}|{_ESCAPED})"
        r"(?:1[ .-])?(?:\([2-9]\d{2}\)(?: {0,2}| ?- ?)|[2-9]\d{2}(?:[ ./-]| - ))[2-9]\d{2}(?:[ .-]| - )\d{4}"
        r"(?!\w|[.\-/]\d)",
        valid=validators.north_american_phone,
        digits=10,
        score=0.8,
    ),
)

_S = r"[\s_]{1,8}"
# What ends no phrase of those that nobody writes by chance.
_P = r"[\s_.,;:!?'\"*/|~<>()\[\]{}+=#&-]{1,8}"
_WHICH = "all|any|the|your|my|these|those|of|previous|prior|above|earlier|preceding|foregoing|system"
_RULES = "(?:instructions?|prompts?|rules?|directives?|guidelines?|context|messages?|restrictions?)"
_INJECTIONS: Mapping[str, tuple[float, tuple[str, ...], str]] = {
    "override": (
        0.9,
        ("ignore", "disregard", "forget"),
        rf"(?:ignore|disregard|forget){_P}(?:(?:{_WHICH}){_P}){{0,5}}"
        rf"(?:previous|prior|above|earlier|preceding|system|all){_P}(?:(?:{_WHICH}){_P}){{0,5}}{_RULES}",
    ),
    "bypass": (
        0.9,
        ("override", "bypass", "skip"),
        rf"(?:override|bypass|skip){_S}(?:(?:{_WHICH}){_S}){{0,5}}"
        rf"(?:previous|prior|above|earlier|preceding|system|all){_S}(?:(?:{_WHICH}){_S}){{0,5}}{_RULES}",
    ),
    "override-short": (
        0.7,
        ("ignore", "disregard", "forget"),
        rf"(?:ignore|disregard|forget){_S}(?:all|your|the|my){_S}{_RULES}",
    ),
    "reveal": (
        0.8,
        ("prompt", "instructions"),
        rf"(?:reveal|show|print|repeat|output|tell{_S}me|display|leak){_S}(?:me{_S})?(?:your|the){_S}"
        rf"(?:(?:full|entire|exact|original|hidden|initial|secret){_S}){{0,3}}(?:system{_S})?(?:prompt|instructions)",
    ),
    "role": (
        0.8,
        ("jailbroken", "unrestricted", "unfiltered", "evil", "uncensored", "dan"),
        rf"(?:you{_P}are{_P}now|act{_P}as|pretend{_P}(?:to{_P}be|you{_P}are)){_P}(?:an?{_P}|the{_P})?"
        r"(?:DAN|jailbroken|unrestricted|unfiltered|evil|uncensored)",
    ),
    "mode": (
        0.8,
        ("mode",),
        rf"(?:developer|debug|god|jailbreak|DAN|sudo|admin){_S}mode{_S}(?:is{_S})?(?:now{_S})?"
        r"(?:on|enabled|activated|engaged)",
    ),
    "no-limits": (
        0.7,
        ("restriction", "filter", "safety", "guardrail", "censorship", "polic"),
        rf"(?:without|no){_S}(?:any{_S})?(?:restrictions|filters|safety|guardrails|censorship|content{_S}polic(?:y|ies))",
    ),
}
# Letters that nobody sees and some models read; the longest flag emoji has six tags. Marks of several kinds in a row
# may be bits; one kind alone is padding.
_MARKS = "\u0300-\u036f"
_TAGS = rf"(?:[{TAGS}][{_MARKS}{UNSEEN}]{{0,8}}){{8,64}}"
INJECTION: Sequence[Rule] = (
    *(
        Rule(
            name=f"injection-{name}",
            kind="INJECTION",
            pattern=f"{_A}{pattern}{_Z}",
            lead=AT_WORD,
            needs=needs,
            score=score,
            label=name,
            ignore_case=True,
        )
        for name, (score, needs, pattern) in _INJECTIONS.items()
    ),
    Rule(
        name="injection-new-instructions",
        kind="INJECTION",
        pattern=r"(?<![^\n])\s{0,8}(?:new|updated|real)\s{1,8}(?:system\s{1,8})?instructions?\s{0,4}:",
        lead=AT_WORD,
        needs=("instruction",),
        score=0.7,
        label="new-instructions",
        ignore_case=True,
    ),
    Rule(name="injection-hidden", kind="INJECTION", lead=AT_UNSEEN, pattern=_TAGS, score=0.9, label="hidden"),
    Rule(
        name="injection-unseen",
        kind="INJECTION",
        lead=AT_UNSEEN,
        pattern=rf"(?:[{UNSEEN}][{_MARKS}{TAGS}]{{0,8}}+){{16,64}}+",
        valid=validators.varied,
        overlapping=False,
        score=0.7,
        label="hidden",
    ),
)

CONTROL: Sequence[Rule] = (
    Rule(name="angle-bar", kind="CONTROL_TOKEN", lead=AT_MARK, pattern=r"<\|[A-Za-z0-9_ -]{1,40}\|>", needs=("<|",)),
    Rule(
        name="bracket",
        kind="CONTROL_TOKEN",
        lead=AT_MARK,
        pattern=r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|PREFIX|MIDDLE|SUFFIX|gMASK)\]|<</?SYS>>",
        needs=("[", "<<"),
    ),
    Rule(
        name="tag",
        kind="CONTROL_TOKEN",
        lead=AT_MARK,
        pattern=r"</?s>|<(?:start|end)_of_(?:turn|image|utterance)>|<(?:bos|eos|pad|unk|sop|eop)>|</?tool_(?:call|response)>"
        r"|<｜[^｜<>]{1,40}｜>",
        needs=("<",),
    ),
)


# Scripts that put no space between words, or join to a word what belongs to it (Hangul, of which a normalised syllable
# may go on with one more consonant).
_WORD_BEGINS = r"(?<!\w)"
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")


def topics(terms: Mapping[str, Sequence[str]]) -> tuple[Rule, ...]:
    """Return a rule for each topic: whole words in any case; spaces in a term stand for any short white space."""
    rules = []
    for name, words in terms.items():
        forms = {_pieces(form) for word in words for form in (word, _normal(word)) if form.split()}
        for lead in (AT_WORD, ANYWHERE):
            # A search skips where a lead cannot hold: each has its own rule.
            alternatives = _alternatives(
                sorted(form for form in forms if (form[0] == _WORD_BEGINS) is (lead == AT_WORD))
            )
            if alternatives:
                rules.append(
                    Rule(
                        name=f"topic-{name}",
                        kind="TOPIC",
                        pattern=f"(?:{alternatives})",
                        lead=lead,
                        label=name,
                        ignore_case=True,
                        ascii=False,
                    )
                )
    return tuple(rules)


def _pieces(term: str) -> tuple[str, ...]:
    words = term.split()
    first = "" if _UNSPACED.match(words[0]) else _WORD_BEGINS
    last = r"(?![\u11a8-\u11ff])" if _UNSPACED.match(words[-1][-1]) else r"(?!\w)"
    return first, *(r"\s{1,8}" if letter == " " else regex.escape(letter) for letter in " ".join(words)), last


def _alternatives(forms: Sequence[tuple[str, ...]], depth: int = 4) -> str:
    """Return what matches any of the sorted `forms`, what they begin with written once: long lists must stay quick."""
    if depth == 0 or len(forms) <= 1:
        return "|".join(map("".join, forms))
    groups = itertools.groupby(forms, key=lambda form: form[:1])
    return "|".join(
        f"{''.join(first)}(?:{_alternatives([form[1:] for form in same], depth - 1)})" for first, same in groups
    )


def _normal(word: str) -> str:
    normal = normalise(word)
    return word if normal is None else normal.text


KINDS: tuple[str, ...] = tuple(sorted({rule.kind for rule in (*PERSONAL, *SECRET, *INJECTION, *CONTROL)} | {"TOPIC"}))
