"""Who somebody is at the OpenID provider, and whether that is enough to become a member. Nothing here waits.

Only `issuer` and `subject` together name a person for good (OpenID Connect Core 1.0, section 5.7): names and
e-mail addresses change hands, so no member is ever found by one.
"""

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from coordinator.naming import CHARS_MAX
from coordinator.settings import Settings

SUBJECT_CHARS_MAX: Final = 255  # OpenID Connect Core 1.0, section 2
NAMES_TRIED: Final = 9
_GROUPS_MAX: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """As the provider signed it. `email` is empty unless the provider says that it is verified."""

    issuer: str
    subject: str
    name: str = ""
    email: str = ""
    groups: frozenset[str] = frozenset()

    @property
    def domain(self) -> str:
        person, _, domain = self.email.rpartition("@")
        return domain.lower() if person else ""


def identity_of(claims: Mapping[str, Any], settings: Settings) -> Identity:
    """From claims whose signature and audience were checked."""
    verified = claims.get("email_verified") in (True, "true")  # some providers send the word
    groups = claims.get(settings.oidc_groups_claim)
    listed = groups[:_GROUPS_MAX] if isinstance(groups, list) else [groups]
    return Identity(
        issuer=str(claims["iss"]),
        subject=str(claims["sub"]),
        name=_text(claims.get(settings.oidc_name_claim)),
        email=_text(claims.get("email")) if verified else "",
        groups=frozenset(group for group in listed if isinstance(group, str)),
    )


def may_join(identity: Identity, settings: Settings) -> bool:
    """Without an invitation: by the domain of a verified e-mail address, or by a group."""
    domains = {domain.lower() for domain in words_of(settings.oidc_join_domains)}
    groups = set(words_of(settings.oidc_join_groups))
    return identity.domain in domains or not identity.groups.isdisjoint(groups)


def names_for(identity: Identity) -> Iterator[str]:
    """What a new member may be called: as at the provider, or so with a number behind it."""
    name = unicodedata.normalize("NFKC", identity.name.partition("@")[0]).replace("/", "-").strip()
    name = name[: CHARS_MAX - 2] or "member"
    yield name
    yield from (f"{name}-{number}" for number in range(2, NAMES_TRIED + 1))


def words_of(listed: str) -> list[str]:
    """Of a setting that lists some, with commas or blanks between them."""
    return listed.replace(",", " ").split()


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) and value.isprintable() else ""
