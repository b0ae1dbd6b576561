"The queue before the model, under people who hurry, leave and ask for what cannot be."
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vlmtemporal import batching
from vlmtemporal.batching import Batches, Cancelled, Late, Ticket, Turns, result, turn


def doubled(kind, items, prepared, memory):
    "What a model would do: slow, the whole batch at once, and at fault for some items."
    assert len({kind}) == 1 and prepared == [kind, *items]
    time.sleep(.001)
    if any(item % 50 == 13 for item in items): raise ValueError('thirteen')
    return [(kind, 2*item) for item in items]


def test_each_gets_his_own_answer_whoever_else_leaves_or_fails():
    queue, chance = Batches(lambda kind, items: [kind, *items], doubled, most=8), random.Random(0)
    plans = [(i, chance.choice('ab'), chance.random() < .3, chance.random()*.01) for i in range(600)]
    def ask(plan):
        i, kind, leaves, after = plan
        ticket = Ticket()
        future, = queue.put([i], kind, ticket)
        if leaves: threading.Timer(after, ticket.cancel).start()
        try: return result(future, ticket)
        except Cancelled: return 'gone' if leaves else 'lost'
        except ValueError: return 'failed'
        finally: ticket.close()
    with ThreadPoolExecutor(24) as people: found = list(people.map(ask, plans))
    for (i, kind, leaves, _), answer in zip(plans, found):
        assert answer == ('failed' if i % 50 == 13 else (kind, 2*i)) or leaves and answer == 'gone', (i, answer)
    until = time.monotonic() + 30 # the last one who left is dropped when the thread looks again
    while len(queue) and time.monotonic() < until: time.sleep(.01)
    assert 'gone' in found and not len(queue) and max(queue.sizes) > 1


def test_what_goes_on_at_once_is_counted_once():
    "Twelve windows that wait together, each for up to .3 s, make no request that is longer than it was."
    def work(kind, items, prepared, memory):
        time.sleep(.1)
        return items
    queue, ticket, begin = Batches(lambda kind, items: None, work, most=4), Ticket(), time.perf_counter()
    for future in queue.put(list(range(12)), '', ticket): result(future, ticket)
    took, stages = 1000*(time.perf_counter() - begin), ticket.stages
    assert set(stages) == {'queue', 'model'} and stages['model'] >= 300 and stages['queue'] >= 200
    assert max(stages.values()) <= took, (stages, took)


def test_a_clip_does_not_wait_behind_a_film():
    begun, go_on, order = threading.Event(), threading.Event(), []
    def work(kind, items, prepared, memory):
        begun.set()
        go_on.wait(60)
        order.extend(items)
        return items
    queue, film, clip = Batches(lambda kind, items: None, work, most=4), Ticket(), Ticket()
    windows = queue.put(range(100), 'x', film)
    assert begun.wait(60)
    asked, = queue.put(['clip'], 'x', clip)
    go_on.set()
    assert result(asked, clip) == 'clip' and result(windows[-1], film) == 99
    assert order.index('clip') < 12 # behind the batch that runs and the one that is ready, no other
    assert [n for n in order if n != 'clip'] == list(range(100))


def test_a_full_batch_is_made_ready_while_another_is_answered():
    working, readied = threading.Event(), []
    def prepare(kind, items):
        time.sleep(.02)
        readied.append((working.is_set(), len(items)))
        return None
    def work(kind, items, prepared, memory):
        working.set()
        time.sleep(.2)
        working.clear()
        return items
    queue, ticket = Batches(prepare, work, most=4), Ticket()
    for future in queue.put(range(14), 'x', ticket): result(future, ticket)
    assert [n for _, n in readied] == [4, 4, 4, 2] and [beside for beside, _ in readied][1:3] == [True, True]


def test_what_is_kept_lives_as_long_as_the_work(monkeypatch):
    monkeypatch.setattr(batching, 'LINGER', .2)
    def work(kind, items, prepared, memory):
        memory['n'] = memory.get('n', 0) + len(items)
        return [memory['n']]*len(items)
    queue, ticket = Batches(lambda kind, items: None, work), Ticket()
    def ask(): return result(queue.put([0], 'x', ticket)[0], ticket)
    before = {t.ident for t in threading.enumerate()}
    assert [ask(), ask(), ask()] == [1, 2, 3]
    deadline = time.monotonic() + 30
    while {t.ident for t in threading.enumerate()} - before and time.monotonic() < deadline: time.sleep(.05)
    assert {t.ident for t in threading.enumerate()} <= before, 'a thread stays that has nothing to do'
    assert ask() == 1


def test_time_that_is_over_ends_every_wait():
    turns, stuck = Turns(1), Batches(lambda kind, items: None, lambda *rest: time.sleep(1))
    with turn(turns, Ticket()):
        begin = time.monotonic()
        with pytest.raises(Late), turn(turns, Ticket(.1)): pass
        ticket = Ticket(.1)
        with pytest.raises(Late): result(stuck.put([1], 'x', ticket)[0], ticket)
        assert time.monotonic() - begin < .9 # not the second that the work takes
    assert turns.free == 1
    with pytest.raises(Late): ticket.check()


def test_turns_are_never_lost():
    turns, chance, at_once, most = Turns(3), random.Random(1), [], []
    def come(i):
        ticket = Ticket()
        if chance.random() < .4: threading.Timer(chance.random()*.02, ticket.cancel).start()
        try:
            with turn(turns, ticket):
                at_once.append(i)
                most.append(len(at_once))
                time.sleep(.002)
                at_once.remove(i)
        except Cancelled: return 'gone'
    with ThreadPoolExecutor(16) as people: found = list(people.map(come, range(300)))
    assert turns.free == 3 and max(most) == 3 and 'gone' in found and not turns._line


@pytest.mark.parametrize('most', [1, 2, 8])
def test_nobody_waits_for_a_thread_that_has_nothing_to_do(most):
    queue, ticket = Batches(lambda kind, items: None, lambda kind, items, prepared, memory: items, most), Ticket()
    begin = time.monotonic()
    for n in range(10): assert result(queue.put([n], 'x', ticket)[0], ticket) == n
    assert time.monotonic() - begin < batching.LINGER/2
    assert len([t for t in threading.enumerate() if getattr(t, '_target', None) == queue._run]) == 1


def test_a_thread_that_cannot_be_had_is_tried_again(monkeypatch):
    queue, start = Batches(lambda *rest: None, lambda kind, items, *rest: items), threading.Thread.start
    ticket = Ticket()
    def fails(self):
        if self.name == 'model': raise RuntimeError("can't start new thread")
        start(self)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, 'start', fails)
        with pytest.raises(RuntimeError): queue.put([1], 'x', ticket)
    assert result(queue.put([2], 'x', ticket)[0], ticket) == 2
