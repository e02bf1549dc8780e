"""What the board's broker does not do of MQTT 5.0, and says so: the tests that it doesn't run, with the reason.

A name is a test's, or `test[its id without "board-"]`. Of 3.1.1 it shows all that it offers: test_table.py looks.
"""

from __future__ import annotations

NO_ALIAS = "Topic Alias Maximum 0: a table of topics for each connection"
NO_IDENTIFIER = "Subscription Identifiers Available 0"
NO_RESPONSE_INFORMATION = "Response Information is the server's choice (§3.2.2.3.15)"

NOT_ON_THE_BOARD: dict[str, str] = {
    "test_response_information_is_given_to_who_asks": NO_RESPONSE_INFORMATION,
    "test_all_topic_aliases_that_connack_allows_stand_for_their_topics": NO_ALIAS,
    "test_the_broker_assigns_topic_aliases_up_to_the_clients_maximum": NO_ALIAS,
    "test_what_a_statement_forbids_is_refused[5.0-3.3.2-7]": NO_ALIAS,
    "test_overlapping_subscriptions_are_one_copy_at_the_highest_qos[5.0]": NO_IDENTIFIER,
    "test_a_shared_message_comes_at_no_more_than_the_granted_qos": NO_IDENTIFIER,
    "test_an_identifier_that_is_not_to_be_had_is_refused": "there is none: it has no bridges of its own",
    "test_clients_of_3_1_are_served": "of MQTT 3.1 there is CONNECT; DUP in SUBSCRIBE is refused",
    "test_a_subscription_identifier_is_that_of_the_last_subscribe": NO_IDENTIFIER,
}

# Statements of 3.1.1 that need a configuration, which the host has in a file and the board in its program.
ELSEWHERE = {
    "3.2.2-6": "tests/device/test_broker.py::test_the_auth_hook_decides",
    "3.3.5-2": "tests/device/test_broker_features.py::test_what_is_not_allowed_is_not_done",
    "7.0.0-2": "tests/interop/test_mosquitto_clients.py::test_each_subscriber_sees_exactly_what_it_asked_for",
}

NOT_OFFERED = {
    "4.8.0-2": "no error there is transient that a test could cause",
    "6.0.0-1": "no WebSocket on a board",
    "6.0.0-2": "no WebSocket on a board",
    "6.0.0-4": "no WebSocket on a board",
}
