"Labels that overlap, and who is on which side: what holds for any segments and any people."
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmtemporal.basics import BadInput
from vlmtemporal.operations import Segment
from vlmtemporal.sessions import OVERLAPS, ROUNDING, by_turns, check_split, fold, on_two_sides, person, resolve

RULES = OVERLAPS[1:]
tenths = st.integers(0, 300).map(lambda n: n/10)
segment = st.builds(Segment, st.sampled_from('abcd'), tenths, tenths)
many = st.lists(segment, max_size=12)
few = settings(max_examples=100, deadline=None)


def union(segments):
    "The moments that are claimed, in twentieths of a second."
    return {n for s in segments for n in range(round(s.start*20), round(s.end*20))}


def claims(segments, n):
    "The names of all that claim a twentieth of a second."
    return {s.operation for s in segments if round(s.start*20) <= n < round(s.end*20)}


@given(many, st.sampled_from(RULES))
@few
def test_nothing_overlaps_and_no_time_is_lost_or_won(segments, rule):
    found = resolve(segments, rule)
    out = found.segments
    assert all(a.end <= b.start for a, b in zip(out, out[1:])) and all(s.end > s.start for s in out)
    real = [s for s in segments if s.end > s.start]
    assert union(out) == union(real) and len(found.empty) == len(segments) - len(real)
    assert all(s.operation in claims(real, n) for s in out for n in union([s]))
    total = sum(s.duration for s in real) - sum(s.duration for s in out)
    assert abs(found.seconds - total) < 1e-6 and (found.overlaps == 0) == (found.seconds < 1e-6)


@given(many, st.sampled_from(RULES))
@few
def test_what_is_in_order_stays_and_a_second_time_changes_nothing(segments, rule):
    once = resolve(segments, rule).segments
    again = resolve(once, rule)
    assert again.segments == once and again.overlaps == 0 and again.gone == ()
    assert resolve(once, 'refuse').segments == once


@given(many, st.sampled_from(RULES), st.integers(0, 99))
@few
def test_the_order_of_different_lines_does_not_matter(segments, rule, seed):
    distinct = list({(s.start, s.end): s for s in segments}.values())
    shuffled = distinct[:]
    random.Random(seed).shuffle(shuffled)
    assert resolve(shuffled, rule).segments == resolve(distinct, rule).segments


@given(many)
@few
def test_refuse_refuses_just_what_overlaps(segments):
    try: resolved = resolve(segments)
    except BadInput: assert resolve(segments, 'later wins').overlaps > 0
    else: assert resolved.overlaps == 0 and resolve(segments, 'later wins').segments == resolved.segments


RULED = [
    ('later wins', [('a', 0, 4), ('b', 4, 9)]),
    ('longer wins', [('a', 0, 6), ('b', 6, 9)]),
    ('split at the middle', [('a', 0, 5), ('b', 5, 9)]),
]


@pytest.mark.parametrize('rule, out', RULED)
def test_each_rule(rule, out):
    found = resolve([Segment('b', 4, 9), Segment('a', 0, 6)], rule)
    assert [(s.operation, s.start, s.end) for s in found.segments] == out
    assert found.to_dict() == dict(rule=rule, overlaps=1, seconds=2., rounded=0, gone=0, empty=0)


@pytest.mark.parametrize('rule', RULES)
def test_one_inside_another(rule):
    found = resolve([Segment('a', 0, 10), Segment('b', 3, 5)], rule, ['x, line 2', 'x, line 3'])
    if rule == 'longer wins': assert found.gone == ('x, line 3',) and found.segments == (Segment('a', 0, 10),)
    else: assert [(s.operation, s.start, s.end) for s in found.segments] == [('a', 0, 3), ('b', 3, 5), ('a', 5, 10)]


def test_the_complaint_names_both_lines():
    with pytest.raises(BadInput) as e:
        resolve([Segment('a', 0, 10), Segment('b', 3, 5)], 'refuse', ['x.csv, line 2', 'x.csv, line 3'])
    assert "x.csv, line 3: 'b' overlaps 'a' (x.csv, line 2) by 2.00 s" in str(e.value) and 'later wins' in str(e.value)
    with pytest.raises(BadInput, match='no rule'): resolve([], 'newest')


def test_rounding_is_no_overlap():
    found = resolve([Segment('a', 0, 1 + ROUNDING/2), Segment('b', 1, 2)])
    assert found.overlaps == 0 and found.segments == (Segment('a', 0, 1), Segment('b', 1, 2))


@given(st.sets(st.text('abcdefgüжд', min_size=1, max_size=4), min_size=3, max_size=20), st.integers(3, 8))
@few
def test_folds_test_everybody_once(names, k):
    people = sorted(names)
    if len(people) < k:
        with pytest.raises(BadInput): fold(people, 1, k)
        return
    splits = [by_turns(f'fold:{i}/{k}', people) for i in range(1, k + 1)]
    assert sorted(s for split in splits for s in split['test']) == people
    for split in splits:
        check_split(split)
        assert sorted(sum(split.values(), ())) == people and all(split.values())
        assert on_two_sides({side: map(person, who) for side, who in split.items()}) == {}
