# The broker's matcher and its checks against tests/vectors/topics.json. Runs from the project's root.
import json
import os
import sys

sys.path.insert(0, os.getenv("MIDGE_DEVICE") or "device")

import midge_broker

with open("tests/vectors/topics.json") as file:
    vectors = json.load(file)


def is_valid(check, text):
    try:
        check(text)
        midge_broker._text(text.encode())
    except (midge_broker._Malformed, UnicodeError):
        return False
    return True


wrong = []
for topic_filter, topic, expected, section in vectors["matches"]:
    if "MQTT 5.0" not in section and midge_broker.matches(topic_filter, topic) != expected:
        wrong.append((topic_filter, topic))
for topic_filter, expected, section in vectors["filters"]:
    if "MQTT 5.0" not in section and is_valid(midge_broker.check_filter, topic_filter) != expected:
        wrong.append(topic_filter)
for topic, expected, section in vectors["topic_names"]:
    if is_valid(midge_broker.check_topic, topic) != expected:
        wrong.append(topic)
print(wrong)
if not wrong:
    print("done")
