"""The book of messages: what arrived, what waits, and why the rest didn't arrive."""

from midge.sim import ledger
from midge.sim.ledger import Book


def _book(*names: str, qos: int = 1) -> Book:
    book = Book()
    for packet_id, name in enumerate(names, 1):
        book.made(name, qos, 10.0, packet_id)
    return book


def test_message_that_arrived_twice_is_doubled_and_keeps_its_first_time() -> None:
    book = _book("1.0")
    book.arrived("1.0", 1, 10.0, 11.0)
    book.arrived("1.0", 1, 10.0, 12.0)
    assert (book.entries["1.0"].count, book.entries["1.0"].arrived_at) == (2, 11.0)
    assert not book.causes()


def test_message_that_arrives_before_the_board_says_that_it_made_it_is_one_message() -> None:
    book = Book()
    book.arrived("1.0", 1, 10.0, 11.0)
    book.made("1.0", 1, 11.5, 1)
    assert len(book.entries) == 1
    assert book.entries["1.0"].made_at == 10.0


def test_what_the_outbox_holds_waits_and_what_it_let_go_is_unexplained() -> None:
    book = _book("1.0", "1.1")
    book.kept([2])
    assert book.causes() == {ledger.ON_THE_BOARD: 1, ledger.UNEXPLAINED: 1}
    assert book.entries["1.1"].was_kept


def test_packet_identifier_that_is_used_again_means_the_later_message() -> None:
    book = _book("1.0")
    book.arrived("1.0", 1, 10.0, 11.0)
    book.kept([])
    book.made("2.0", 1, 20.0, 1)
    book.dropped(1)
    assert book.causes() == {ledger.OUTBOX_FULL: 1}
    assert book.entries["2.0"].cause


def test_power_cut_loses_what_the_outbox_held_but_only_in_memory() -> None:
    book = _book("1.0", "1.1")
    book.arrived("1.0", 1, 10.0, 11.0)
    book.power_cut(is_outbox_lost=False)
    assert book.causes() == {ledger.ON_THE_BOARD: 1}
    book.power_cut(is_outbox_lost=True)
    assert book.causes() == {ledger.POWER_CUT: 1}


def test_power_cut_of_a_board_without_an_outbox_loses_all_that_has_not_arrived() -> None:
    book = Book()
    book.made("1.0", 1, 10.0)
    book.power_cut(is_outbox_lost=True, are_all=True)
    book.made("2.0", 1, 20.0)
    assert book.causes("elsewhere") == {ledger.POWER_CUT: 1, "elsewhere": 1}


def test_deep_sleep_loses_an_outbox_in_memory() -> None:
    book = _book("1.0")
    book.deep_sleep()
    assert book.causes() == {ledger.DEEP_SLEEP: 1}


def test_message_of_qos_0_that_is_nowhere_was_on_a_connection_that_was_lost() -> None:
    book = _book("1.0", qos=0)
    book.kept([])
    assert book.causes() == {ledger.QUICK: 1}


def test_outstanding_is_what_is_on_its_way() -> None:
    book = _book("1.0", "1.1", "1.2")
    book.kept([2])
    book.arrived("1.0", 1, 10.0, 11.0)
    assert book.outstanding(made_before=20.0) == 1
    assert book.outstanding(made_before=5.0) == 0
    book.forget_since(5.0)
    assert list(book.entries) == ["1.0"]
