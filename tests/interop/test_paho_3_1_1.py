"""Paho's client over MQTT 3.1.1 against the host's broker, the board's broker and Mosquitto alike.

The tests share a broker of each kind and leave nothing on it; a case that Mosquitto fails is suspected first.
"""

import pytest
from paho.mqtt.client import MQTTv31

from brokers import BROKERS, START

# What the board's broker is asked to carry in one message; the host and Mosquitto get more.
BIG_BYTES = {"board": 4_000, "host": 200_000, "mosquitto": 200_000}
# Messages that may be under way unseen: the board's queue is bounded by its memory, and drops by rule beyond.
WINDOW = {"board": 10, "host": 200, "mosquitto": 200}


@pytest.fixture(scope="module", params=BROKERS)
def broker(request: pytest.FixtureRequest):
    with START[request.param]() as running:
        yield running


def test_connect_is_accepted_without_a_session(broker, paho):
    peer = paho(broker, "newcomer")
    assert peer.connect_reason == 0
    assert not peer.session_present


def test_mqtt_3_1_is_spoken_too(broker, paho):
    peer = paho(broker, "old", version=MQTTv31)
    peer.subscribe("a")
    peer.publish("a", "still here")
    assert peer.receive().payload == b"still here"


def test_username_and_password_are_accepted_where_anonymous_is(broker, paho):
    assert paho(broker, username="alice", password="secret").connect_reason == 0
    assert paho(broker, username="alice").connect_reason == 0


def test_an_empty_client_id_gets_one_from_the_broker(broker, paho):
    first, second = paho(broker, ""), paho(broker, "")
    second.subscribe("a")
    first.publish("a", "x")
    assert second.receive().payload == b"x"
    assert not first.lost.is_set()


@pytest.mark.parametrize("published", [0, 1, 2])
@pytest.mark.parametrize("subscribed", [0, 1, 2])
def test_a_message_arrives_once_with_the_lower_qos(broker, paho, published, subscribed):
    sender, receiver = paho(broker), paho(broker)
    assert receiver.subscribe("a/b", qos=subscribed) == [subscribed]
    sender.publish("a/b", b"\x00\xff payload", published)
    message = receiver.receive()
    assert (message.topic, message.payload) == ("a/b", b"\x00\xff payload")
    assert message.qos == min(published, subscribed)
    assert not message.retain and not message.dup
    assert receiver.receive_all() == []


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_an_empty_payload_is_a_message(broker, paho, qos):
    peer = paho(broker)
    peer.subscribe("a", qos=2)
    peer.publish("a", b"", qos)
    assert peer.receive().payload == b""


def test_topics_of_several_bytes_a_character_arrive_unchanged(broker, paho):
    peer = paho(broker)
    peer.subscribe("küche/+/温度")
    peer.publish("küche/😀/温度", "ü")
    assert peer.receive().topic == "küche/😀/温度"


def test_several_filters_in_one_subscribe_are_granted_each(broker, paho):
    peer = paho(broker)
    assert peer.subscribe("a", "b/+", "#", qos=2) == [2, 2, 2]


def test_unsubscribe_ends_the_messages(broker, paho):
    peer = paho(broker)
    peer.subscribe("a", "b", qos=1)
    peer.unsubscribe("a")
    peer.publish("a", "no", 1)
    peer.publish("b", "yes", 1)
    assert [message.topic for message in peer.receive_all()] == ["b"]


def test_a_retained_message_waits_for_the_subscriber(broker, paho):
    sender, late = paho(broker), paho(broker)
    sender.publish("state", "on", 1, retain=True)
    late.subscribe("state", qos=1)
    message = late.receive()
    assert (message.payload, message.retain, message.qos) == (b"on", True, 1)


def test_a_live_message_has_no_retain_flag(broker, paho):
    # [MQTT-3.3.1-9]
    peer = paho(broker)
    peer.subscribe("state", qos=1)
    peer.publish("state", "on", 1, retain=True)
    assert not peer.receive().retain


def test_a_retained_message_is_replaced_by_the_next(broker, paho):
    sender, late = paho(broker), paho(broker)
    sender.publish("state", "first, and longer", 1, retain=True)
    sender.publish("state", "second", 1, retain=True)
    sender.publish("state", "not retained", 1)
    late.subscribe("state", qos=1)
    assert [message.payload for message in late.receive_all()] == [b"second"]


def test_an_empty_payload_deletes_the_retained_message(broker, paho):
    # [MQTT-3.3.1-10], [MQTT-3.3.1-11]
    sender, late = paho(broker), paho(broker)
    sender.publish("state", "on", 1, retain=True)
    sender.publish("state", b"", 1, retain=True)
    late.subscribe("state", qos=1)
    assert late.receive_all() == []


def test_each_new_subscription_sends_the_retained_messages_again(broker, paho):
    # [MQTT-3.8.4-3]
    peer = paho(broker)
    peer.publish("state/a", "1", 1, retain=True)
    peer.publish("state/b", "2", 1, retain=True)
    for _ in range(2):
        peer.subscribe("state/#", qos=1)
        assert sorted(message.topic for message in peer.receive_all()) == ["state/a", "state/b"]


def test_a_broken_connection_sends_the_will(broker, paho):
    watcher = paho(broker)
    watcher.subscribe("will/#", qos=1)
    dying = paho(broker, will=("will/dying", b"gone", 1, True))
    dying.cut()
    message = watcher.receive()
    assert (message.topic, message.payload, message.qos, message.retain) == ("will/dying", b"gone", 1, False)
    late = paho(broker)
    late.subscribe("will/dying")
    assert late.receive().retain


def test_disconnect_discards_the_will(broker, paho):
    # [MQTT-3.14.4-3]
    watcher = paho(broker)
    watcher.subscribe("will/#", qos=1)
    paho(broker, "polite", will=("will/polite", b"gone", 1, False)).disconnect()
    paho(broker, "polite").disconnect()  # the broker has seen the first one's end before it answers this one
    assert watcher.receive_all() == []


def test_a_silent_client_is_cut_and_one_that_pings_is_not(broker, paho):
    # [MQTT-3.1.2-24]
    watcher = paho(broker)
    watcher.subscribe("will/#", qos=1)
    idle = paho(broker, keep_alive_s=1, will=("will/idle", b"gone", 1, False))
    silent = paho(broker, keep_alive_s=1, will=("will/silent", b"gone", 1, False))
    silent.stop_answering()
    assert watcher.receive().topic == "will/silent"
    assert watcher.receive_all() == []
    assert not idle.lost.is_set()


def test_a_second_client_of_the_same_id_takes_over(broker, paho):
    # [MQTT-3.1.4-2]
    first = paho(broker, "same", will=("will/same", b"gone", 1, False))
    first.subscribe("a", qos=1)
    second = paho(broker, "same")
    assert first.lost.wait(10)
    assert not second.session_present
    second.subscribe("a", qos=1)
    second.publish("a", "x", 1)
    assert second.receive().payload == b"x"


def test_takeover_of_a_persistent_session_keeps_its_subscriptions(broker, paho):
    first = paho(broker, "same", clean=False)
    first.subscribe("a", qos=1)
    second = paho(broker, "same", clean=False)
    assert second.session_present
    assert first.lost.wait(10)
    second.publish("a", "x", 1)
    assert second.receive().payload == b"x"


@pytest.mark.parametrize("qos", [1, 2])
def test_a_persistent_session_has_what_was_sent_while_it_was_away(broker, paho, qos):
    sleeper = paho(broker, "sleeper", clean=False)
    assert not sleeper.session_present
    sleeper.subscribe("a", qos=qos)
    sleeper.disconnect()
    sender = paho(broker)
    for number in range(10):
        sender.publish("a", str(number), qos)
    awake = paho(broker, "sleeper", clean=False)
    assert awake.session_present
    assert [message.payload for message in awake.receive_all()] == [b"%d" % number for number in range(10)]


def test_a_persistent_session_survives_a_broken_connection(broker, paho):
    sleeper = paho(broker, "sleeper", clean=False)
    sleeper.subscribe("a", qos=1)
    sleeper.cut()
    sender = paho(broker)
    sender.publish("a", "kept", 1)
    awake = paho(broker, "sleeper", clean=False)
    assert awake.session_present
    assert [message.payload for message in awake.receive_all()] == [b"kept"]


def test_a_clean_session_forgets(broker, paho):
    # [MQTT-3.1.2-6]
    paho(broker, "sleeper", clean=False).subscribe("a", qos=1)
    clean = paho(broker, "sleeper", clean=True)
    assert not clean.session_present
    clean.disconnect()
    paho(broker).publish("a", "x", 1)
    again = paho(broker, "sleeper", clean=False)
    assert not again.session_present
    assert again.receive_all() == []


def test_a_wildcard_sees_what_it_names_and_no_more(broker, paho):
    peer = paho(broker)
    peer.subscribe("a/+/c", "b/#", qos=1)
    for topic in ["a/b/c", "a//c", "a/b", "a/b/c/d", "b", "b/c/d", "c"]:
        peer.publish(topic, "", 1)
    assert [message.topic for message in peer.receive_all()] == ["a/b/c", "a//c", "b", "b/c/d"]


def test_hash_does_not_see_dollar_topics(broker, paho):
    # [MQTT-4.7.2-1]
    peer = paho(broker)
    peer.subscribe("#", "+/#", qos=1)
    assert [message.topic for message in peer.receive_all() if message.topic.startswith("$")] == []


def test_overlapping_subscriptions_deliver_with_the_higher_qos(broker, paho):
    # [MQTT-3.3.5-1]; one copy or one for each subscription is the broker's choice.
    peer = paho(broker)
    peer.subscribe("a/#", qos=0)
    peer.subscribe("a/+", qos=2)
    peer.publish("a/b", "x", 2)
    received = [message.qos for message in peer.receive_all()]
    assert 1 <= len(received) <= 2
    if broker.kind != "mosquitto":  # 2.0 delivers once, with the QoS of the subscription that it meets first
        assert max(received) == 2


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_thousand_messages_keep_their_order(broker, paho, qos):
    # [MQTT-4.6.0-6]
    sender, receiver = paho(broker), paho(broker)
    receiver.subscribe("count", qos=qos)
    received = []
    for number in range(1000):
        sender.client.publish("count", str(number), qos)
        while len(received) < number - WINDOW[broker.kind]:
            received.append(int(receiver.receive().payload))
    while len(received) < 1000:
        received.append(int(receiver.receive().payload))
    assert received == list(range(1000))
    assert receiver.receive_all() == []


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_big_payload_arrives_whole(broker, paho, qos):
    payload = bytes(index % 251 for index in range(BIG_BYTES[broker.kind]))
    sender, receiver = paho(broker), paho(broker)
    receiver.subscribe("big", qos=qos)
    sender.publish("big", payload, qos)
    assert receiver.receive().payload == payload


def test_a_big_retained_payload_arrives_whole(broker, paho):
    payload = bytes(index % 253 for index in range(BIG_BYTES[broker.kind]))
    sender, late = paho(broker), paho(broker)
    sender.publish("big", payload, 1, retain=True)
    late.subscribe("big", qos=1)
    assert late.receive().payload == payload
