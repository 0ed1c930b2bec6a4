"""Detectors of prompt injection by its set phrases. A score is a fact for policy, never a verdict."""

from __future__ import annotations

from shared.inspection.rules import AFTER_WORD, BEFORE_WORD, Rule

_S = r"[\s,]{1,8}"
_STOP = r"(?:ignore|disregard|forget|override|bypass|skip)"
_ORDERS = r"(?:instructions?|prompts?|directives?|guidelines?|programming|training)"
_QUALIFIERS = rf"(?:(?:all|any|every|the|your|my|these|those|of|other|previous|prior|above|earlier|preceding|foregoing|system|original|initial|safety){_S}){{1,6}}"

# Label, score, pattern, and the words of which each match holds one.
_PHRASES: tuple[tuple[str, float, str, str], ...] = (
    ("override", 0.9, rf"{_STOP}{_S}{_QUALIFIERS}{_ORDERS}", "ignore disregard forget override bypass skip"),
    # Said of mail and rules of a game too.
    ("override-weak", 0.4, rf"{_STOP}{_S}{_QUALIFIERS}(?:rules?|messages?|context|restrictions?|conversation)", "ignore disregard forget override bypass skip"),
    ("override-de", 0.9, rf"(?:ignoriere?|vergiss|missachte){_S}(?:(?:alle|deine|die|vorherigen|bisherigen|obigen|fruheren){_S}){{1,4}}(?:anweisungen|instruktionen|vorgaben|regeln)", "ignorier vergiss missachte"),
    ("override-fr", 0.9, rf"(?:ignore[zr]?|oublie[zr]?){_S}(?:(?:toutes|tes|vos|les|precedentes){_S}){{1,4}}(?:instructions|consignes|directives)", "ignore oublie"),
    ("override-es", 0.9, rf"(?:ignora|olvida|ignore|olvide){_S}(?:(?:todas|tus|sus|las|anteriores|previas){_S}){{1,4}}(?:instrucciones|indicaciones|reglas)", "ignora olvida ignore olvide"),
    ("reveal", 0.8, rf"(?:reveal|show|print|repeat|output|tell|display|leak|dump|give){_S}(?:me{_S})?(?:(?:your|the|all|of|full|entire|exact|original|hidden|initial|secret|complete){_S}){{1,5}}(?:system{_S}(?:prompt|message|instructions)|prompt|instructions)", "prompt instructions message"),
    ("role", 0.8, rf"(?:you{_S}are{_S}now|act{_S}as|pretend{_S}(?:to{_S}be|you{_S}are)){_S}(?:(?:an?|the){_S})?(?:DAN|jailbroken|unrestricted|unfiltered|evil|uncensored|amoral)", "you act pretend"),
    ("mode", 0.8, rf"(?:developer|debug|god|jailbreak|DAN|sudo|admin){_S}mode{_S}(?:is{_S})?(?:now{_S})?(?:on|enabled|activated|engaged)", "mode"),
    ("no-limits", 0.6, rf"(?:without|no|ignoring){_S}(?:any{_S}|your{_S})?(?:restrictions|filters|guardrails|censorship|safety{_S}guidelines|content{_S}polic(?:y|ies))", "restrictions filters guardrails censorship guidelines polic"),
    ("new-orders", 0.7, r"(?<![^\n])[ \t#*]{0,8}(?:new|updated|real|actual)\s{1,8}(?:system\s{1,8})?instructions?\s{0,4}:", "instruction"),
    ("exfiltration", 0.8, r"!\[[^\]\n]{0,80}\]\(https?://[^\s)]{1,200}[?&][^\s)=]{1,40}=(?:\{|%7B|\[|<)", "]("),
)  # fmt: skip

INJECTION: tuple[Rule, ...] = tuple(
    Rule(
        name=f"injection-{label}",
        kind="INJECTION",
        pattern=pattern if label in ("new-orders", "exfiltration") else rf"{BEFORE_WORD}{pattern}{AFTER_WORD}",
        needs=tuple(needs.split()),
        score=score,
        label=label,
        ignore_case=True,
    )
    for label, score, pattern, needs in _PHRASES
)
