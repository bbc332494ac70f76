"""When a worker that dies is replaced, and when the run gives up; with made-up workers."""

from queue import SimpleQueue

import pytest
from flwr.app import Message, RecordDict

from simulations.engines.local_grid import WorkersLost
from simulations.engines.ray_recovery import MOST_DEATHS, ActorConnection, Post
from strategies.server import flower_messages, flower_private

LACK = "Task was killed due to the node running low on memory."


class Call:
    """A method of a made-up actor, as Ray has them."""

    def __init__(self, work):
        self.work = work

    def remote(self, *arguments):
        return lambda: self.work(*arguments)


class Worker:
    """Answers messages until `dies`, given how often workers were asked, says so."""

    def __init__(self, dies, seen, why):
        self.dies, self.seen, self.why = dies, seen, why
        self.is_dead = False
        self.open, self.answer = Call(self._open), Call(self._answer)

    def _open(self, *parts):
        if self.is_dead:
            raise RuntimeError(self.why)

    def _answer(self, parts):
        asked = [message for message, _ in flower_messages.from_wire(parts)]
        self.seen.append([message.metadata.message_id for message in asked])
        self.is_dead = self.is_dead or self.dies(self.seen)
        if self.is_dead:
            raise RuntimeError(self.why)
        replies = [(Message(RecordDict(), reply_to=message), ()) for message in asked]
        return flower_messages.to_wire(replies)


def messages(*names):
    found = [Message(RecordDict(), dst_node_id=2, message_type="train") for _ in names]
    for message, name in zip(found, names, strict=True):
        flower_private.set_message_id(message, name)
    return found


@pytest.fixture
def connect():
    """Connect to a worker whose successors are like it; yield how, and end it."""
    flower_private.be_in_a_run()
    opened = []

    def begin(dies, why="the worker died"):
        seen = []
        post = Post(lambda: Worker(dies, seen, why), lambda actor: None)
        done = SimpleQueue()
        one = ActorConnection(post, (None, 1.0), done, get=lambda call, timeout: call())
        opened.append(one)

        def ask(*names):
            one.push(messages(*names))
            replies = []
            while one.sent:
                connection, result = done.get(timeout=10)
                replies += connection.take(result)
            return {reply.metadata.reply_to_message_id: reply.has_error() for reply in replies}

        one.open()
        return ask, seen, one

    yield begin
    for one in opened:
        one.close()


def test_a_worker_that_only_dies_ends_the_run_in_one_line(connect):
    """Nothing that is asked of it can be at fault: each message would be given up in turn."""
    ask, seen, _ = connect(lambda seen: True)
    with pytest.raises(WorkersLost, match=rf"died {MOST_DEATHS} times in a row.*the worker died"):
        ask(*"abcdefgh")
    assert len(seen) == MOST_DEATHS


def test_what_lacks_memory_is_told_so(connect):
    ask, _, _ = connect(lambda seen: True, LACK)
    with pytest.raises(WorkersLost, match=r"for lack of memory 6 times.*fewer workers") as told:
        ask(*"abcdefgh")
    assert "\n" not in str(told.value)


def test_a_worker_that_answers_between_its_deaths_goes_on(connect):
    """It dies over every message the first time, and far more often than a run gives up."""
    names = [f"m{number}" for number in range(3 * MOST_DEATHS)]
    ask, seen, one = connect(lambda seen: seen[-1] not in seen[:-1])
    assert [ask(name) for name in names] == [{name: False} for name in names]
    assert len(seen) == 2 * len(names) and one.deaths == 0


def test_a_message_that_kills_is_given_up_alone(connect):
    ask, _, one = connect(lambda seen: "b" in seen[-1])
    assert ask(*"abcd") == {"a": False, "b": True, "c": False, "d": False}
    assert ask("e") == {"e": False}
    assert one.deaths == 0
