"""The tables of the SQLite store, and the steps from each version of them to the next.
Knows SQL only; what a row means is said where it is written and read.
"""

from __future__ import annotations

# "midg" in SQLite's `application_id`: tells our file from another program's database.
APPLICATION_ID = 0x6D69_6467

_VERSION_1 = [
    """CREATE TABLE sessions (
        key INTEGER PRIMARY KEY, client_id TEXT NOT NULL UNIQUE, expiry_s INTEGER NOT NULL, ended_at REAL
    )""",
    """CREATE TABLE subscriptions (
        session_key INTEGER NOT NULL, topic_filter TEXT NOT NULL, qos INTEGER NOT NULL,
        no_local INTEGER NOT NULL, retain_as_published INTEGER NOT NULL, identifier INTEGER NOT NULL,
        PRIMARY KEY (session_key, topic_filter)
    ) WITHOUT ROWID""",
    """CREATE TABLE messages (
        key INTEGER PRIMARY KEY, topic TEXT NOT NULL, payload BLOB NOT NULL, qos INTEGER NOT NULL,
        retain INTEGER NOT NULL, properties BLOB, expires_at REAL
    )""",
    """CREATE TABLE queue (
        session_key INTEGER NOT NULL, position INTEGER NOT NULL, message_key INTEGER NOT NULL,
        qos INTEGER NOT NULL, retain INTEGER NOT NULL, identifiers TEXT,
        packet_id INTEGER NOT NULL, is_released INTEGER NOT NULL,
        PRIMARY KEY (session_key, position)
    ) WITHOUT ROWID""",
    """CREATE TABLE received (
        session_key INTEGER NOT NULL, packet_id INTEGER NOT NULL, PRIMARY KEY (session_key, packet_id)
    ) WITHOUT ROWID""",
    "CREATE TABLE retained (topic TEXT PRIMARY KEY, message_key INTEGER NOT NULL) WITHOUT ROWID",
]

# Version 2: batches go into a journal first, one row each, and only what is still there some time later into
# the tables: nine of ten messages are acknowledged before. A queue's row holds its message itself (topic and
# payload) unless several wait for it or it is large; then `messages` has it once, and counts who refers to it.
_VERSION_2 = [
    "ALTER TABLE messages RENAME TO messages_1",
    "ALTER TABLE queue RENAME TO queue_1",
    "ALTER TABLE retained RENAME TO retained_1",
    "CREATE TABLE journal (number INTEGER PRIMARY KEY, batch BLOB NOT NULL)",
    """CREATE TABLE messages (
        key INTEGER PRIMARY KEY, queued INTEGER NOT NULL, topic TEXT NOT NULL, payload BLOB NOT NULL,
        qos INTEGER NOT NULL, retain INTEGER NOT NULL, properties BLOB, expires_at REAL
    )""",
    """CREATE TABLE queue (
        session_key INTEGER NOT NULL, position INTEGER NOT NULL, qos INTEGER NOT NULL, retain INTEGER NOT NULL,
        identifiers TEXT, shared TEXT, packet_id INTEGER NOT NULL, is_released INTEGER NOT NULL,
        size INTEGER NOT NULL, message_key INTEGER, topic TEXT, payload BLOB, message_qos INTEGER,
        message_retain INTEGER, properties BLOB, expires_at REAL,
        PRIMARY KEY (session_key, position)
    ) WITHOUT ROWID""",
    """CREATE TRIGGER queue_row_is_gone AFTER DELETE ON queue WHEN old.message_key IS NOT NULL BEGIN
        DELETE FROM messages WHERE key = old.message_key AND queued = 1;
        UPDATE messages SET queued = queued - 1 WHERE key = old.message_key;
    END""",
    # `name` is the topic name with its levels divided by NUL, which no topic name contains: so all that is
    # below a level lies together, in the order of the levels.
    """CREATE TABLE retained (
        name BLOB PRIMARY KEY, payload BLOB NOT NULL, qos INTEGER NOT NULL, properties BLOB, expires_at REAL
    ) WITHOUT ROWID""",
    """CREATE TABLE wills (
        session_key INTEGER PRIMARY KEY, client_id TEXT NOT NULL, topic TEXT NOT NULL, payload BLOB NOT NULL,
        qos INTEGER NOT NULL, retain INTEGER NOT NULL, properties BLOB, expires_at REAL,
        delay_s INTEGER NOT NULL, due REAL
    )""",
    """INSERT INTO messages SELECT key, count(*), topic, payload, messages_1.qos, messages_1.retain, properties,
        expires_at FROM queue_1 JOIN messages_1 ON key = message_key GROUP BY key HAVING count(*) > 1""",
    """INSERT INTO queue SELECT session_key, position, q.qos, q.retain, identifiers, NULL, packet_id, is_released,
        length(m.topic) + length(m.payload), shared.key,
        CASE WHEN shared.key IS NULL THEN m.topic END, CASE WHEN shared.key IS NULL THEN m.payload END,
        CASE WHEN shared.key IS NULL THEN m.qos END, CASE WHEN shared.key IS NULL THEN m.retain END,
        CASE WHEN shared.key IS NULL THEN m.properties END, CASE WHEN shared.key IS NULL THEN m.expires_at END
        FROM queue_1 q JOIN messages_1 m ON m.key = message_key LEFT JOIN messages shared ON shared.key = m.key""",
    """INSERT INTO retained SELECT retained_name(m.topic), payload, qos, properties, expires_at
        FROM retained_1 JOIN messages_1 m ON m.key = message_key""",
    "DROP TABLE retained_1",
    "DROP TABLE queue_1",
    "DROP TABLE messages_1",
]

# Version 3: what is kept for replay. A history's name is its topic filter; a segment is some hundreds of its messages
# in one row (see `midge.store.segments`), with large values last: who looks at the others needn't read those.
_VERSION_3 = [
    """CREATE TABLE histories (
        key INTEGER PRIMARY KEY, filter TEXT NOT NULL UNIQUE, last INTEGER NOT NULL, age_s REAL NOT NULL,
        max_messages INTEGER NOT NULL, max_bytes INTEGER NOT NULL
    )""",
    """CREATE TABLE segments (
        first INTEGER PRIMARY KEY, history INTEGER NOT NULL, last INTEGER NOT NULL, last_at REAL NOT NULL,
        count INTEGER NOT NULL, bytes INTEGER NOT NULL, topics BLOB NOT NULL, messages BLOB NOT NULL
    )""",
    "CREATE INDEX segments_of_history ON segments (history, last, last_at, count, bytes)",
    """CREATE TABLE positions (
        session_key INTEGER NOT NULL, topic_filter TEXT NOT NULL, after INTEGER NOT NULL,
        PRIMARY KEY (session_key, topic_filter)
    ) WITHOUT ROWID""",
]

# What leads to each version from the one before. A file of a later version is refused, never guessed at.
MIGRATIONS = {1: _VERSION_1, 2: _VERSION_2, 3: _VERSION_3}
VERSION = max(MIGRATIONS)


def retained_name(topic: str) -> bytes:
    """The key of a retained message."""
    return topic.encode().replace(b"/", b"\0")
