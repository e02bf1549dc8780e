"""Who may connect, publish and subscribe: password files, ACL files, certificates, tokens, a hook.
Knows neither connections nor sessions, only what they ask.
"""

from midge.access.login import MAX_FAILED_LOGINS, CertificateAccess, Desk, ListenerAccess, Rules

__all__ = ["MAX_FAILED_LOGINS", "CertificateAccess", "Desk", "ListenerAccess", "Rules"]
