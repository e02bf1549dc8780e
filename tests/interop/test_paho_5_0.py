"""Paho's client over MQTT 5.0 against the host's broker, the board's and Mosquitto alike: what 5.0 adds.

The board's has no subscription identifiers and says so; that is tested here too.
"""

import time

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.client import SubscribeOptions

from brokers import BOARD, BROKERS_5_0, START
from paho_peer import properties

V5 = mqtt.MQTTv5
SUCCESS, NO_SUBSCRIPTION_EXISTED, SESSION_TAKEN_OVER, NO_SHARED_SUBSCRIPTIONS = 0, 0x11, 0x8E, 0x9E


@pytest.fixture(scope="module", params=BROKERS_5_0)
def broker_5_0(request: pytest.FixtureRequest):
    with START[request.param]() as running:
        yield running


@pytest.fixture
def peer(broker_5_0, paho):
    """Makes 5.0 clients of the broker under test."""
    return lambda *args, **options: paho(broker_5_0, *args, version=V5, **options)


@pytest.fixture(scope="module", params=[kind for kind in BROKERS_5_0 if kind is not BOARD])
def identifying_broker(request: pytest.FixtureRequest):
    with START[request.param]() as running:
        yield running


@pytest.fixture
def identifying_peer(identifying_broker, paho):
    """Makes 5.0 clients of a broker that has subscription identifiers."""
    return lambda *args, **options: paho(identifying_broker, *args, version=V5, **options)


def lasting(seconds: int = 60):
    return properties("CONNECT", SessionExpiryInterval=seconds)


def test_connect_is_accepted_without_a_session(peer):
    newcomer = peer("newcomer")
    assert newcomer.connect_reason == 0
    assert not newcomer.session_present


def test_the_board_says_what_it_does_not_have(board_broker, paho):
    # §3.2.2.3.12; a topic alias maximum of 0 is the default (§3.2.2.3.8).
    told = paho(board_broker, version=V5).connack_properties
    assert told.SubscriptionIdentifierAvailable == 0
    assert told.TopicAliasMaximum == 0
    assert told.ReceiveMaximum > 0 and told.MaximumPacketSize > 0


def test_an_empty_client_id_gets_one_and_is_told(peer):
    # [MQTT-3.2.2-16]
    first, second = peer(""), peer("")
    names = [one.connack_properties.AssignedClientIdentifier for one in (first, second)]
    assert all(names) and names[0] != names[1]


def test_username_and_password_are_accepted_where_anonymous_is(peer):
    assert peer(username="alice", password="secret").connect_reason == 0


@pytest.mark.parametrize("published", [0, 1, 2])
@pytest.mark.parametrize("subscribed", [0, 1, 2])
def test_a_message_arrives_once_with_the_lower_qos(peer, published, subscribed):
    sender, receiver = peer(), peer()
    assert receiver.subscribe("a/b", qos=subscribed) == [subscribed]
    sender.publish("a/b", b"\x00\xff", published)
    message = receiver.receive()
    assert (message.topic, message.payload, message.qos) == ("a/b", b"\x00\xff", min(published, subscribed))
    assert receiver.receive_all() == []


def test_the_properties_of_a_message_arrive_unaltered_and_in_order(peer):
    # [MQTT-3.3.2-4], [-15], [-16], [-17], [-18], [-20]
    receiver = peer()
    receiver.subscribe("a", qos=1)
    pairs = [("k", "2"), ("k", "1"), ("größe", "😀"), ("", "")]
    peer().publish("a", "grün", 1, pub_properties=properties(
        "PUBLISH", PayloadFormatIndicator=1, ContentType="text/plain", ResponseTopic="r/ü",
        CorrelationData=b"\x00\x01\xff", UserProperty=pairs))
    got = receiver.receive().properties
    assert (got.PayloadFormatIndicator, got.ContentType, got.ResponseTopic) == (1, "text/plain", "r/ü")
    assert got.CorrelationData == b"\x00\x01\xff"
    assert [tuple(pair) for pair in got.UserProperty] == pairs


def test_a_retained_message_keeps_its_properties(peer):
    peer().publish("a", "x", 1, True, properties("PUBLISH", ContentType="t", UserProperty=("k", "v")))
    late = peer()
    late.subscribe("a", qos=1)
    got = late.receive()
    assert got.retain and got.properties.ContentType == "t"
    assert [tuple(pair) for pair in got.properties.UserProperty] == [("k", "v")]


def test_a_3_1_1_subscriber_gets_a_5_0_message_without_its_properties(broker_5_0, paho, peer):
    old = paho(broker_5_0)
    old.subscribe("a", qos=1)
    extra = properties("PUBLISH", ContentType="t", UserProperty=("k", "v"))
    peer().publish("a", "x", 1, pub_properties=extra)
    assert old.receive().payload == b"x"


def test_request_and_response(peer):
    asker, answerer = peer(), peer()
    answerer.subscribe("question", qos=1)
    asker.subscribe("answer/asker", qos=1)
    asker.publish("question", "6*7", 1,
                  pub_properties=properties("PUBLISH", ResponseTopic="answer/asker", CorrelationData=b"7"))
    asked = answerer.receive().properties
    answerer.publish(asked.ResponseTopic, "42", 1,
                     pub_properties=properties("PUBLISH", CorrelationData=asked.CorrelationData))
    answer = asker.receive()
    assert (answer.payload, answer.properties.CorrelationData) == (b"42", b"7")


def test_the_rest_of_a_message_s_life_is_told(peer):
    # [MQTT-3.3.2-6]
    peer().publish("a", "x", 1, True, properties("PUBLISH", MessageExpiryInterval=100))
    late = peer()
    late.subscribe("a")
    assert 95 <= late.receive().properties.MessageExpiryInterval <= 100


def test_an_expired_message_is_not_delivered(peer, eventually):
    # [MQTT-3.3.2-5]
    sleeper = peer("sleeper", clean=False, connect_properties=lasting())
    sleeper.subscribe("a", qos=1)
    sleeper.disconnect()
    sender = peer()
    published_s = time.monotonic()
    sender.publish("a", "short", 1, pub_properties=properties("PUBLISH", MessageExpiryInterval=1))
    sender.publish("a", "long", 1, pub_properties=properties("PUBLISH", MessageExpiryInterval=100))
    eventually(lambda: time.monotonic() > published_s + 2.1)  # Mosquitto counts whole seconds
    awake = peer("sleeper", clean=False, connect_properties=lasting())
    assert [message.payload for message in awake.receive_all()] == [b"long"]


def test_no_local_keeps_a_client_s_own_messages_away(peer):
    # [MQTT-3.8.3-3]
    me, other = peer(), peer()
    me.subscribe("a", options=SubscribeOptions(1, noLocal=True))
    me.publish("a", "mine", 1)
    other.publish("a", "other's", 1)
    assert [message.payload for message in me.receive_all()] == [b"other's"]


@pytest.mark.parametrize("as_published", [False, True])
def test_retain_as_published(peer, as_published):
    # [MQTT-3.3.1-12], [MQTT-3.3.1-13]
    receiver = peer()
    receiver.subscribe("a", options=SubscribeOptions(1, retainAsPublished=as_published))
    sender = peer()
    sender.publish("a", "x", 1, retain=True)
    sender.publish("a", "y", 1, retain=False)
    assert [receiver.receive().retain, receiver.receive().retain] == [as_published, False]


@pytest.mark.parametrize(("handling", "first", "second"), [(0, 1, 1), (1, 1, 0), (2, 0, 0)])
def test_retain_handling(peer, handling, first, second):
    # [MQTT-3.3.1-9], [-10], [-11]
    receiver = peer()
    receiver.publish("a", "x", 1, retain=True)
    options = SubscribeOptions(1, retainHandling=handling)
    receiver.subscribe("a", options=options)
    assert len(receiver.receive_all()) == first
    receiver.subscribe("a", options=options)
    assert len(receiver.receive_all()) == second


def test_subscription_identifiers_come_with_the_messages(identifying_peer):
    # [MQTT-3.3.4-3], [-4]
    receiver = identifying_peer()
    receiver.subscribe("a/+", qos=1, sub_properties=properties("SUBSCRIBE", SubscriptionIdentifier=7))
    receiver.subscribe("b", qos=1, sub_properties=properties("SUBSCRIBE", SubscriptionIdentifier=268_435_455))
    receiver.subscribe("c", qos=1)
    for topic in ["a/x", "b", "c"]:
        receiver.publish(topic, "", 1)
    got = [receiver.receive().properties for _ in range(3)]
    assert [getattr(one, "SubscriptionIdentifier", []) for one in got] == [[7], [268_435_455], []]


def test_overlapping_subscriptions_bring_all_their_identifiers(identifying_peer):
    # [MQTT-3.3.4-4], [-5]: in one copy, or one in each.
    receiver = identifying_peer()
    receiver.subscribe("a/#", qos=1, sub_properties=properties("SUBSCRIBE", SubscriptionIdentifier=1))
    receiver.subscribe("a/+", qos=1, sub_properties=properties("SUBSCRIBE", SubscriptionIdentifier=2))
    receiver.publish("a/b", "x", 1)
    received = [message for message in receiver.receive_all() if message.topic == "a/b"]
    assert sorted(one for message in received for one in message.properties.SubscriptionIdentifier) == [1, 2]


def test_a_shared_subscription_gives_each_message_to_one(peer):
    # [MQTT-4.8.2-4]
    workers, watcher = [peer(), peer()], peer()
    granted = [worker.subscribe("$share/crew/jobs/#", qos=1) for worker in workers]
    if getattr(watcher.connack_properties, "SharedSubscriptionAvailable", 1) == 0:
        assert granted == [[NO_SHARED_SUBSCRIPTIONS]] * 2
        pytest.skip("this broker announces that it has no shared subscriptions, and refuses them")
    watcher.subscribe("jobs/#", qos=1)
    sender = peer()
    for number in range(20):
        sender.publish("jobs/x", str(number), 1)
    work = [[int(message.payload) for message in worker.receive_all()] for worker in workers]
    assert sorted(work[0] + work[1]) == list(range(20))
    assert len(watcher.receive_all()) == 20


def test_unsubscribe_says_whether_there_was_a_subscription(peer):
    one = peer()
    one.subscribe("a")
    assert one.unsubscribe("a") == [SUCCESS]
    assert one.unsubscribe("a") == [NO_SUBSCRIPTION_EXISTED]


def test_the_client_that_is_taken_over_is_told_so(broker_5_0, peer):
    # [MQTT-3.1.4-3]
    first = peer("same")
    peer("same")
    assert first.lost.wait(10)
    if broker_5_0.kind != "mosquitto":  # 2.0.11 closes without a DISCONNECT
        assert first.lost_reason == SESSION_TAKEN_OVER


def test_a_session_lasts_as_long_as_asked(peer):
    sleeper = peer("sleeper", connect_properties=lasting())
    sleeper.subscribe("a", qos=1)
    sleeper.disconnect()
    peer().publish("a", "kept", 1)
    awake = peer("sleeper", clean=False, connect_properties=lasting())
    assert awake.session_present
    assert [message.payload for message in awake.receive_all()] == [b"kept"]


def test_a_session_without_an_expiry_interval_ends_with_its_connection(peer):
    # §3.1.2.11.2: absent is zero.
    peer("sleeper", clean=False).disconnect()
    assert not peer("sleeper", clean=False).session_present


def test_a_session_ends_when_its_interval_is_over(peer, eventually):
    peer("sleeper", clean=False, connect_properties=lasting(1)).disconnect()
    gone_s = time.monotonic()
    eventually(lambda: time.monotonic() > gone_s + 2.1)  # Mosquitto counts whole seconds
    assert not peer("sleeper", clean=False, connect_properties=lasting(1)).session_present


def test_clean_start_ends_the_session_that_was_there(peer):
    # [MQTT-3.1.2-4]
    peer("sleeper", clean=False, connect_properties=lasting()).subscribe("a", qos=1)
    assert not peer("sleeper", clean=True, connect_properties=lasting()).session_present


def test_a_broken_connection_sends_the_will(peer):
    watcher = peer()
    watcher.subscribe("will", qos=1)
    peer(will=("will", b"gone", 1, False, properties("WILLMESSAGE", ContentType="t"))).cut()
    message = watcher.receive()
    assert (message.payload, message.properties.ContentType) == (b"gone", "t")


def test_disconnect_with_will_message_sends_the_will(peer):
    # Reason code 0x04, §3.14.2.1
    watcher = peer()
    watcher.subscribe("will", qos=1)
    parting = peer(will=("will", b"gone", 1, False))
    parting.client.disconnect(reasoncode=mqtt.ReasonCode(mqtt.PacketTypes.DISCONNECT, identifier=4))
    assert watcher.receive().payload == b"gone"


def test_a_delayed_will_is_not_sent_when_the_client_returns(peer):
    # [MQTT-3.1.3-9]
    watcher = peer()
    watcher.subscribe("will", qos=1)
    will = ("will", b"gone", 1, False, properties("WILLMESSAGE", WillDelayInterval=30))
    peer("blinking", clean=False, will=will, connect_properties=lasting()).cut()
    assert peer("blinking", clean=False, connect_properties=lasting()).session_present
    assert watcher.receive_all() == []


def test_the_server_s_receive_maximum_window_is_enough_for_a_burst(peer):
    sender, receiver = peer(), peer(connect_properties=properties("CONNECT", ReceiveMaximum=1))
    receiver.subscribe("count", qos=2)
    for number in range(50):
        sender.client.publish("count", str(number), 2)
    assert [int(receiver.receive().payload) for _ in range(50)] == list(range(50))


def test_a_message_above_the_subscriber_s_maximum_packet_size_is_left_out(peer):
    # [MQTT-3.1.2-24], [MQTT-3.1.2-25]
    small = peer(connect_properties=properties("CONNECT", MaximumPacketSize=200))
    small.subscribe("a", qos=1)
    sender = peer()
    sender.publish("a", b"x" * 300, 1)
    sender.publish("a", b"x" * 100, 1)
    assert [len(message.payload) for message in small.receive_all()] == [100]
