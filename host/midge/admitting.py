"""From `[access]`, and what a listener has of its own, to the rules and limits of each listener.
Knows which key names which file, not what is in it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from midge.access import Rules, acl, passwords
from midge.access.errors import AccessFileError
from midge.access.hook import Hook
from midge.access.tokens import TokenRules, Tokens
from midge.config import Config, ConfigError, JwtSection, Listener
from midge.core.limits import Limits


class RulesLoader:
    """Loads each file and each hook once, however many listeners use it. ConfigError: one can't be used."""

    def __init__(self, config: Config, hooks: dict[str, Hook] | None = None) -> None:
        """*hooks*: those that run already, which go on."""
        self._config = config
        self._running = hooks or {}
        self._users: dict[str, dict[str, str]] = {}
        self._acls: dict[str, acl.Acl] = {}
        self._tokens: dict[TokenRules, Tokens] = {}
        self.hooks: dict[str, Hook] = {}  # by name

    def rules_of(self, listener: Listener) -> Rules:
        common = self._config.access
        try:
            return Rules(
                self._load_users(_own(listener.password_file, common.password_file)),
                self._load_acl(_own(listener.acl_file, common.acl_file)),
                self._load_tokens(common.jwt if listener.jwt is None else listener.jwt or None),
                self._load_hook(_own(listener.auth_hook, common.auth_hook)),
            )
        except AccessFileError as error:
            raise ConfigError(str(error)) from None

    def _load_users(self, name: str | None) -> dict[str, str] | None:
        if not name:
            return None
        if name not in self._users:
            self._users[name] = passwords.load(self._config.path(name))
        return self._users[name]

    def _load_acl(self, name: str | None) -> acl.Acl | None:
        if not name:
            return None
        if name not in self._acls:
            self._acls[name] = acl.load(self._config.path(name))
        return self._acls[name]

    def _load_tokens(self, section: JwtSection | None) -> Tokens | None:
        if section is None:
            return None
        rules = TokenRules(
            self._config.path(section.key_file),
            tuple(section.algorithms),
            section.issuer,
            section.audience,
            section.username_claim,
            section.client_id_claim,
            section.topics_claim,
        )
        if rules not in self._tokens:
            self._tokens[rules] = Tokens(rules)
        return self._tokens[rules]

    def _load_hook(self, name: str | None) -> Hook | None:
        if not name:
            return None
        if name not in self.hooks:
            self.hooks[name] = self._running.get(name) or Hook(name)
        return self.hooks[name]

    def close_hooks(self, but: Collection[str] = ()) -> None:
        for name, hook in self.hooks.items():
            if name not in but:
                hook.close()


def _own(of_listener: str | None, of_all: str | None) -> str | None:
    """A listener's own value, if it has one."""
    return of_all if of_listener is None else of_listener


def asks(config: Config, listener: Listener) -> bool:
    """Whether *listener* has any way to show who one is."""
    common = config.access
    return bool(
        _own(listener.password_file, common.password_file)
        or (common.jwt if listener.jwt is None else listener.jwt)
        or _own(listener.auth_hook, common.auth_hook)
    )


def allows_anonymous(config: Config, listener: Listener) -> bool:
    for allowed in (listener.allow_anonymous, config.access.allow_anonymous):
        if allowed is not None:
            return allowed
    return not asks(config, listener)


def limits_of(config: Config, listener: Listener) -> Limits:
    """Those of its connections."""
    limits = config.core_limits()
    if listener.limits is None:
        return limits
    own = listener.limits.model_dump()
    return replace(limits, **{name: value for name, value in own.items() if value is not None})
