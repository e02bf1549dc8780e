"""What `midge serve` is made of, without a broker: whom an answer goes to, and how the command is run."""

import json
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from midge.cli.serve import Address, address_of
from midge.cli.serve_command import Answer, Request, Runner

DEADLINE_S = 30


@pytest.mark.parametrize(("topic", "response_topic", "expected"), [
    ("calc", "my/answer", Address("calc", "my/answer", "my/answer", b"7")),
    ("calc/request/7", "my/answer", Address("calc/request/7", "my/answer", "my/answer", b"7")),
    ("calc/request/7", None, Address("calc", "calc/response/7", "calc/response/7/error", None)),
    ("a/b/request/c", None, Address("a/b", "a/b/response/c", "a/b/response/c/error", None)),
    ("calc", None, None),
    ("request/7", None, None),
    ("calc/response/7", None, None),
    ("calc/request/7/error", None, None),
])  # fmt: skip
def test_where_an_answer_goes(topic: str, response_topic: str | None, expected: Address | None) -> None:
    assert address_of(topic, response_topic, b"7") == expected


def request(payload: bytes = b"", number: int = 0, expires_in_s: int | None = None) -> Request:
    return Request("a/b", payload, "text/plain", [("k", "v")], expires_in_s, number)


@pytest.fixture
def runners() -> Iterator[list[Runner]]:
    made: list[Runner] = []
    yield made
    for runner in made:
        runner.close()


def answers_of(runner: Runner, count: int) -> list[tuple[Request, Answer]]:
    answers: list[tuple[Request, Answer]] = []
    end = time.monotonic() + DEADLINE_S
    while len(answers) < count and time.monotonic() < end:
        if select.select([runner.fileno()], [], [], 1)[0]:
            answers += runner.finished()
    return answers


CASES = [
    (["tr", "a-z", "A-Z"], 30, Answer(b"HELLO")),
    (["sh", "-c", 'echo "$MIDGE_TOPIC $MIDGE_CONTENT_TYPE"'], 30, Answer(b"a/b text/plain\n")),
    (["sh", "-c", "echo half; echo why >&2; exit 3"], 30, Answer(b"why\n", "exit code 3")),
    (["sh", "-c", "kill -9 $$"], 30, Answer(b"", "ended by signal SIGKILL")),
    (["sleep", "60"], 0.2, Answer(b"", "no answer within 0.2 s")),
    # what the command has started ends with it: else its output would stay open
    (["sh", "-c", "sleep 60 & sleep 60"], 0.2, Answer(b"", "no answer within 0.2 s")),
]


@pytest.mark.parametrize(("command", "timeout_s", "expected"), CASES)
def test_a_command_answers(command: list[str], timeout_s: float, expected: Answer, runners: list[Runner]) -> None:
    runner = Runner(command, 1, timeout_s)
    runners.append(runner)
    runner.submit(request(b"hello"))
    assert [answer for _, answer in answers_of(runner, 1)] == [expected]
    assert runner.is_idle


def test_a_command_that_is_not_there_is_told(runners: list[Runner]) -> None:
    runner = Runner(["/nonexistent"], 1, 1)
    runners.append(runner)
    runner.submit(request())
    [(_, answer)] = answers_of(runner, 1)
    assert answer.error is not None
    assert "can't run /nonexistent" in answer.error


def test_user_properties_come_as_json(runners: list[Runner]) -> None:
    runner = Runner(["sh", "-c", 'printf %s "$MIDGE_USER_PROPERTIES"'], 1, DEADLINE_S)
    runners.append(runner)
    runner.submit(request())
    [(_, answer)] = answers_of(runner, 1)
    assert json.loads(answer.payload) == [["k", "v"]]


def test_a_request_that_expires_sooner_shortens_the_wait(runners: list[Runner]) -> None:
    runner = Runner(["sleep", "60"], 1, 60)
    runners.append(runner)
    runner.submit(request(expires_in_s=1))
    [(_, answer)] = answers_of(runner, 1)
    assert answer.error == "no answer within 1 s"


def test_no_more_commands_run_at_a_time_than_jobs(
    runners: list[Runner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNING", str(tmp_path))
    runner = Runner(["sh", "-c", 'touch $RUNNING/$$; ls $RUNNING | wc -l; sleep 0.1; rm $RUNNING/$$'], 2, DEADLINE_S)
    runners.append(runner)
    for number in range(6):
        runner.submit(request(number=number))
    answers = answers_of(runner, 6)
    assert {each.context for each, _ in answers} == set(range(6))
    assert max(int(answer.payload) for _, answer in answers) <= 2
