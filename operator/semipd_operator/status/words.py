"""Words of others on their way into a status: bounded, on one line, and without secrets.

What a container writes last, an agent reports and a registry or webhook answers is shown to whoever may read the
service, so everything that has the form of a credential is masked: headers, hub and cloud tokens, values that are named
as a secret, users and signatures in URLs. A secret of no known form cannot be told from a word: programs of ours never
write one (`semipd_engine.hub.fetch` masks its own token by value).
"""

from __future__ import annotations

import re
from functools import lru_cache

MAX_MESSAGE = 1024
MAX_REASON = 128
_MASK = "***"

_PLAIN = {"\\n": " ", "\\r": " ", "\\t": " ", '\\"': '"', "\\'": "'"}
_ESCAPED = re.compile(r"\\[nrt\"']")
"""Of a text within a text, as JSON and tracebacks show it; such a letter would hide where a word begins."""
_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), shown)
    for pattern, shown in (
        # Headers, also as a dictionary or a command line shows them; of two words the second is the secret.
        (r"(?i)\b((?:proxy-)?authorization|x-api-key|api-key|cookie)(['\"]?\s*[:=]\s*(?:b?['\"])?)"
         r"(?:(bearer|basic|token)\s+)?(?!(?:authorization|authentication|server|access|no|failed|denied)\s)"
         r"[^\s'\",;}\]]+", rf"\1\2{_MASK}"),
        (r"(?i)\b(bearer)\s+(?!token|auth|key\b|scheme)[^\s'\",;}\]]+", rf"\1 {_MASK}"),
        (r"(?i)\b(basic)\s+[A-Za-z0-9+/]{8,}={1,2}", rf"\1 {_MASK}"),
        # Tokens that say what they are: hubs, OpenAI's style of API keys, forges, clouds, JSON Web Tokens, PEM.
        (r"\b(hf_|api_org_|sk-|gh[opsur]_|github_pat_|glpat-|xox[abprs]-|AKIA|ASIA)[A-Za-z0-9_-]{8,}", rf"\1{_MASK}"),
        (r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?", _MASK),
        (r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", _MASK),
        # Named values: HF_TOKEN=…, "password": "…", --api-key=…
        (r"(?i)\b((?:[a-z0-9]{1,20}[_-]){0,4}(?:api[_-]?key|(?:hf|hub|access|auth|api|refresh|bearer|session)[_-]?token|"
         r"secret[_-]?(?:access[_-]?)?key|client[_-]?secret|password|passwd|pwd)['\"]?[:=]\s?(?:b?['\"])?)"
         r"[^\s'\",;&}\]]+", rf"\1{_MASK}"),
        # Users and signatures in URLs.
        (r"(\b[a-z][a-z0-9+.-]{0,20}://)[^/\s@'\"]+@", rf"\1{_MASK}@"),
        (r"(?i)([?&](?:x-(?:amz|goog)-(?:signature|credential|security-token)|signature|sig|policy|key-pair-id|token|"
         r"access_token|se)=)[^&\s'\"]+", rf"\1{_MASK}"),
    )
)  # fmt: skip


def masked(text: str) -> str:
    """`text` without what has the form of a secret. Before it is cut: half of a secret has no form."""
    text = _ESCAPED.sub(lambda found: _PLAIN[found[0]], text)
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return text


def told(text: str, most: int = MAX_MESSAGE) -> str:
    """`text` as a status shows it. What is cut ends with an ellipsis."""
    return _told(text[: 4 * MAX_MESSAGE], most)


@lru_cache(maxsize=4096)  # a message stands for long, and every round of the agents shows it again
def _told(text: str, most: int) -> str:
    line = masked(" ".join(_printable(text).split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def reason(word: str) -> str:
    """A reason of a pod's own: one CamelCase word, as `metav1.Condition` wants it."""
    kept = re.sub(r"[^A-Za-z0-9_,:]", "", word)[:MAX_REASON].strip(",:")
    return kept if kept[:1].isalpha() else "Unknown"


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else " " for one in text)
