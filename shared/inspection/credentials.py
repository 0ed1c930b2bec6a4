"""The rules for secrets: tokens by their issuer's prefix, keys, connection strings, and what is called a password."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shared.inspection import validators
from shared.inspection.rules import AT_MARK, AT_WORD, Rule

_Z = r"(?![A-Za-z0-9])"

# Detector: kind, what it looks like from the start of a word on, and what none is without.
_ISSUED: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "aws-access-key": (
        "SECRET_AWS_KEY",
        rf"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{{16}}{_Z}",
        ("AKIA", "ASIA", "ABIA", "ACCA"),
    ),
    "gcp-api-key": ("SECRET_GCP_KEY", r"AIza[\w-]{35}(?![\w-])", ("AIza",)),
    "gcp-oauth": ("SECRET_GCP_KEY", r"(?:ya29\.[\w-]{20,512}+|GOCSPX-[\w-]{28})(?![\w-])", ("ya29.", "GOCSPX-")),
    "azure-storage": ("SECRET_AZURE_KEY", r"AccountKey=[A-Za-z0-9+/]{86}==", ("AccountKey=",)),
    "azure-shared-access": (
        "SECRET_AZURE_KEY",
        r"(?:SharedAccessKey=[A-Za-z0-9+/]{42,88}+={0,2}|sig=[A-Za-z0-9%+/]{40,128}(?:=|%3D)?)(?![\w%])",
        ("SharedAccessKey=", "sig="),
    ),
    "azure-client": ("SECRET_AZURE_KEY", r"[\w~.-]{3}[78]Q~[\w~.-]{31,34}+(?![\w~-])", ("7Q~", "8Q~")),
    "github": (
        "SECRET_TOKEN",
        r"(?:gh[pousr]_\w{36,251}+|github_pat_\w{22,255}+)(?!\w)",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    ),
    "gitlab": (
        "SECRET_TOKEN",
        r"gl(?:pat|dt|rt|cbt|ptt|oas)-[\w.-]{20,128}+(?![\w-])",
        ("glpat-", "gldt-", "glrt-", "glcbt-", "glptt-", "gloas-"),
    ),
    "slack": ("SECRET_TOKEN", r"(?:xox[a-z]\.)?xox[a-z]-[\w-]{10,255}+(?![\w-])", ("xox",)),
    "slack-app": ("SECRET_TOKEN", r"xapp-\d-[\w-]{20,160}+(?![\w-])", ("xapp-",)),
    "web-hook": (
        "SECRET_TOKEN",
        r"(?:hooks\.slack\.com/(?:services|workflows|triggers)|discord(?:app)?\.com/api/webhooks)/[\w/-]{30,160}+(?![\w/-])",
        ("hooks.slack.com/", "/api/webhooks/"),
    ),
    "stripe": (
        "SECRET_TOKEN",
        r"(?:[sr]k_(?:live|test)_[A-Za-z0-9]{16,128}+|whsec_[A-Za-z0-9+/]{24,64}+)(?!\w)",
        ("k_live_", "k_test_", "whsec_"),
    ),
    "openai": ("SECRET_TOKEN", r"sk-(?:[a-z]{3,8}-)?[\w-]{20,256}+(?![\w-])", ("sk-",)),
    "huggingface": ("SECRET_TOKEN", r"hf_[A-Za-z0-9]{30,64}+(?!\w)", ("hf_",)),
    "npm": ("SECRET_TOKEN", r"npm_[A-Za-z0-9]{36}(?!\w)", ("npm_",)),
    "pypi": ("SECRET_TOKEN", r"pypi-AgE[\w-]{50,512}+(?![\w-])", ("pypi-AgE",)),
    "sendgrid": ("SECRET_TOKEN", r"SG\.[\w-]{22}\.[\w-]{43}(?![\w-])", ("SG.",)),
    "telegram": ("SECRET_TOKEN", r"\d{8,10}:AA[\w-]{33}(?![\w-])", (":AA",)),
    "vault": ("SECRET_TOKEN", r"hv[sbr]\.[\w-]{24,256}+(?![\w-])", ("hvs.", "hvb.", "hvr.")),
    "terraform": ("SECRET_TOKEN", r"[A-Za-z0-9]{14}\.atlasv1\.[\w-]{60,80}+(?![\w-])", (".atlasv1.",)),
    "age": ("SECRET_PRIVATE_KEY", rf"AGE-SECRET-KEY-1[0-9A-Z]{{58}}{_Z}", ("AGE-SECRET-KEY-1",)),
    "putty": ("SECRET_PRIVATE_KEY", r"PuTTY-User-Key-File-\d", ("PuTTY-User-Key-File-",)),
    "prefixed": (
        "SECRET_TOKEN",
        r"(?:dop_v1_|shp(?:at|ca|pa|ss)_|dapi|gsk_|r8_|lin_api_|glsa_|sq0csp-|NRAK-|dp\.(?:pt|st|ct)\.)[A-Za-z0-9_]{27,80}+(?!\w)",
        (
            "dop_v1_",
            "shpat_",
            "shpca_",
            "shppa_",
            "shpss_",
            "dapi",
            "gsk_",
            "r8_",
            "lin_api_",
            "glsa_",
            "sq0csp-",
            "NRAK-",
            "dp.",
        ),
    ),
    # Signed, or encrypted; a header is a JSON object, spaced in any way.
    "jwt": (
        "SECRET_JWT",
        r"e(?:yJ|yA|w0K|wo|wk)[\w-]{8,}+(?:\.e(?:yJ|yA|w0K|wo|wk)[\w-]{8,}+\.[\w-]*+|\.[\w-]*+\.[\w-]{16,24}\.[\w-]{4,}+\.[\w-]{22,}+)",
        ("eyJ", "eyA", "ew0K", "ewo", "ewk"),
    ),
}

_PASSWORD = r"(?:pass(?:word|wd|phrase|code)|pwd|passwort|kennwort|mot\s{1,4}de\s{1,4}passe|contrase[nñ]a)"  # noqa: S105  (not a password)
_NAME = (
    rf"(?:{_PASSWORD}|secret(?:[_-]?(?:access[_-]?)?key)?|(?:api|access)[ _-]?key|client[_-]?secret|private[_-]?key"
    r"|(?:access|auth|bearer|refresh|session|security)[ _-]?token)"
)
_SAID = (
    rf"(?:{_NAME}[\"']?\s{{0,4}}(?:[:=]{{1,2}}>?|>)\s{{0,4}}|--{_NAME} |{_PASSWORD}\s{{1,4}}(?:is|ist|est)\s{{1,4}})"
)
_NEEDS = ("pass", "pwd", "secret", "key", "token", "kennwort", "contrase")

SECRET: Sequence[Rule] = (
    *(
        Rule(name=name, kind=kind, pattern=AT_WORD + pattern, needs=needs, lead=AT_WORD, shortest=15)
        for name, (kind, pattern, needs) in _ISSUED.items()
    ),
    Rule(
        name="connection-string",
        kind="SECRET_CONNECTION_STRING",
        pattern=AT_WORD + r"[A-Za-z][A-Za-z0-9+.-]{1,30}://[^\s:@/]{0,128}:[^\s/]{1,256}@[^\s/@]{1,255}",
        lead=AT_WORD,
        needs=("://",),
    ),
    Rule(
        name="private-key",
        kind="SECRET_PRIVATE_KEY",
        # Atomic: a block that has ended goes on to no other end.
        pattern=r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
        r"(?>(?s:.*?)(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z))",
        lead=AT_MARK,
        needs=("-----",),
    ),
    Rule(
        name="assigned-quoted",
        kind="SECRET_PASSWORD",
        pattern=_SAID + r"""(?:"[^\s"]{8,}+"|'[^\s']{8,}+')""",
        needs=_NEEDS,
        ignore_case=True,
    ),
    Rule(
        name="assigned",
        kind="SECRET_PASSWORD",
        pattern=_SAID + r"""[^\s"'<>,;]{8,}+""",
        valid=validators.secret_assignment,
        overlapping=False,
        needs=_NEEDS,
        ignore_case=True,
    ),
    Rule(
        name="authorization",
        kind="SECRET_TOKEN",
        pattern=r"(?:authorization[\"']?\s{0,4}[:=]\s{0,4}[\"']?(?:[a-z]{3,10}\s{1,4})?|bearer\s{1,4})[\w.~+/-]{16,}+={0,2}",
        valid=validators.secret_assignment,
        overlapping=False,
        needs=("authorization", "bearer"),
        ignore_case=True,
    ),
)
