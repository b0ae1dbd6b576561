"The HSMM against brute force, live against offline, nothing impossible, what sharpening maximises."
import itertools, math
from dataclasses import replace

import numpy as np
import pytest

from vlmtemporal.basics import rng
from vlmtemporal.clips import CLIP_SECONDS, window_starts
from vlmtemporal.operations import Grammar, Operation, Segment, Taxonomy
from vlmtemporal.timeline import (HSMM, STEP, WindowPredictions, _durations, _later, apply_grammar,
                                  apply_grammar_to_clips, decode_timeline, emissions, fit_grammar_weight, fit_timeline,
                                  live_labels)


def some_grammar(seed, classes=3, fastest=.3, slowest=1.5):
    "Random counts and durations of a second or so, with zeros among the counts."
    names = Taxonomy('test', tuple(Operation(i, f'op {i}', '') for i in range(classes)), 'op 0')
    r = rng(seed, 'grammar')
    counts = r.integers(0, 6, (classes, classes))*(r.random((classes, classes)) < .6)
    return Grammar(names, counts*1., np.log(r.uniform(fastest, slowest, classes)), r.uniform(.25, .8, classes))


def segmentations(n, classes):
    "Every way to cut n rows into runs (class, first, stop) whose neighbours differ."
    for cuts in itertools.chain.from_iterable(itertools.combinations(range(1, n), k) for k in range(n)):
        edges = (0, *cuts, n)
        for labels in itertools.product(range(classes), repeat=len(edges) - 1):
            if all(a != b for a, b in zip(labels, labels[1:])): yield list(zip(labels, edges, edges[1:]))


def survival(g, c, seconds):
    return math.erfc((math.log(seconds) - g.log_mean[c])/g.log_std[c]/math.sqrt(2))/2


def left_over(g, c, seconds, steps=4000):
    "Integral of the survival function from `seconds` on, by the midpoint rule in log time."
    top = g.log_mean[c] + 9*g.log_std[c]
    low = math.log(max(seconds, 1e-9))
    d = (top - low)/steps
    return sum(survival(g, c, math.exp(u))*math.exp(u)*d for u in (low + (i + .5)*d for i in range(steps)))


def score(g, rows, runs, emission_scale, prior_weight):
    "The formula of the page, term by term, on one segmentation."
    total, n = 0., len(rows)
    mean = [math.exp(m + s*s/2) for m, s in zip(g.log_mean, g.log_std)]
    for i, (c, a, b) in enumerate(runs):
        x, s = (b - a)*STEP, g.log_std[c]
        for t in range(a, b):
            total += emission_scale*STEP*(math.log(.99*rows[t, c] + .01*g.prior[c]) - prior_weight*math.log(g.prior[c]))
        total += math.log(g.transitions[runs[i - 1][0], c] if i else g.prior[c])
        if a and b < n: p = STEP/(x*s*math.sqrt(2*math.pi))*math.exp(-((math.log(x) - g.log_mean[c])/s)**2/2)
        elif a: p = survival(g, c, x - STEP/2)
        elif b < n: p = survival(g, c, x - STEP/2)*STEP/mean[c]
        else: p = left_over(g, c, x - STEP)/mean[c]
        total += math.log(p)
    return total


def decode(g, rows, **options):
    h = HSMM(g, rows=1, **options) # grows as it must
    for r in rows: h.push(r)
    return h.best()


@pytest.mark.parametrize('seed', range(12))
def test_viterbi_is_the_best_of_all_segmentations(seed):
    r = rng(seed, 'rows')
    n, classes = (7, 3) if seed % 2 else (9, 2)
    g = some_grammar(seed, classes)
    rows = r.dirichlet(np.full(classes, .5), n)
    scale, prior_weight = float(r.uniform(0, 8)), float(r.uniform(0, 1.5))
    best = max(segmentations(n, classes), key=lambda runs: score(g, rows, runs, scale, prior_weight))
    found, runs = decode(g, rows, emission_scale=scale, prior_weight=prior_weight)
    assert runs == best
    assert found == pytest.approx(score(g, rows, best, scale, prior_weight), rel=1e-5) # `left_over` is a sum


def test_all_segmentations_together_are_certain():
    "Without emissions the score is a log probability: a session begun anywhere is cut in some way."
    g = some_grammar(1, 2, 2, 4)
    rows = np.full((10, 2), .5) # the sum over rows nears the integral for long segments
    assert sum(math.exp(score(g, rows, runs, 0, 0)) for runs in segmentations(10, 2)) == pytest.approx(1, abs=.01)


@pytest.mark.parametrize('seed', range(6))
def test_a_full_lag_is_the_offline_answer(seed):
    r = rng(seed, 'live')
    g = some_grammar(seed, 4)
    n = int(r.integers(1, 80))
    rows = r.dirichlet(np.full(4, .3), n)
    offline = [s for c, a, b in decode(g, rows)[1] for s in [g.taxonomy.names[c]]*(b - a)]
    assert list(live_labels(iter(rows), g, n*STEP)) == list(live_labels(iter(rows), g, 1e6)) == offline
    for lag in (0, 3, 10): # what is committed at a moment owes nothing to rows after lag
        committed = list(live_labels(rows, g, lag*STEP))
        assert len(committed) == n
        for t in range(0, n - lag, 7):
            seen = [g.taxonomy.names[c] for c, a, b in decode(g, rows[:t + lag + 1])[1] for _ in range(a, b)]
            assert committed[t] == seen[t]
    assert list(live_labels([], g)) == []


@pytest.mark.parametrize('seed', range(8))
def test_nothing_is_impossible(seed):
    "Any sequence of operations, of any durations, is decoded when the evidence for it is strong enough."
    r = rng(seed, 'any')
    g = some_grammar(seed, 5, 3, 9)
    labels = [int(r.integers(5))]
    while len(labels) < 12: labels.append(int(r.choice([c for c in range(5) if c != labels[-1]])))
    lengths = r.choice([1, 2, 30, 900], 12) # .2 s to three minutes
    rows = np.eye(5)[np.repeat(labels, lengths)]
    ends = np.cumsum(lengths).tolist()
    found, runs = decode(g, rows, emission_scale=2000.)
    assert np.isfinite(found) and runs == list(zip(labels, [0, *ends], ends))


@pytest.mark.parametrize('seed', range(5))
def test_each_iteration_of_sharpening_explains_the_votes_better(seed):
    r = rng(seed, 'votes')
    duration = int(r.integers(30, 200))*STEP
    starts = window_starts(duration)
    p = r.dirichlet(np.full(4, .5), len(starts))
    at = lambda n: (np.arange(n) + .5)*STEP
    inside = lambda n: (at(n) >= starts[:, None]) & (at(n) < starts[:, None] + CLIP_SECONDS)
    def likelihood(rows):
        i = inside(len(rows))
        return (p*np.log(i@rows/i.sum(1, keepdims=True))).sum()
    sharpened = [emissions(starts, p, duration, k) for k in (1, 2, 4, 8, 16)]
    assert all(np.allclose(x.sum(1), 1) and (x >= 0).all() for x in sharpened)
    values = [likelihood(x) for x in sharpened]
    assert values == sorted(values) and values[-1] > values[0]
    i = inside(len(sharpened[0])).T
    covered = i.any(1) # the first iteration is the mean of the windows that cover a moment
    assert np.allclose(sharpened[0][covered], (i@p)[covered]/i.sum(1, keepdims=True)[covered])


@pytest.mark.parametrize('seed', range(8))
def test_one_iteration_is_the_plain_mean_whatever_the_gaps(seed):
    "Where no window covers a moment, the nearer one speaks for it; elsewhere each that covers it counts once."
    r = rng(seed, 'gaps')
    starts = np.cumsum(r.choice([.2, 1., 2.4, 4., 9., 31.], 30)) # s
    p, duration = r.dirichlet(np.ones(4), 30), float(starts[-1] + r.choice([1., 5., 20.]))
    rows = emissions(starts, p, duration)
    for row, t in zip(rows, (np.arange(len(rows)) + .5)*STEP, strict=True):
        far = np.maximum(np.maximum(starts - t, t - starts - CLIP_SECONDS), 0)
        nearest = np.flatnonzero(far == far.min())
        if far.min() and abs(np.diff(np.sort(far)[:2])[0]) < STEP: continue # half way between two
        assert np.allclose(row, p[nearest].mean(0))
    longer = [emissions(starts, p, duration, k) for k in (2, 16)]
    assert all(np.isfinite(x).all() and np.allclose(x.sum(1), 1) for x in longer)


@pytest.mark.parametrize('seed', range(4))
def test_what_is_under_way_later(seed):
    "The chain against one that is played, its own composition, and where it comes to rest."
    g = some_grammar(seed, 5, 2, 6)
    r = rng(seed, 'chain')
    mean = np.exp(g.log_mean + g.log_std**2/2)
    for t in (0., .4, 3., 500.):
        x = _later(g, t)
        assert np.allclose(x.sum(1), 1) and (x >= -1e-12).all()
        assert np.allclose(x@_later(g, 1.7), _later(g, t + 1.7)) and np.allclose(g.prior@x, g.prior)
    assert np.allclose(_later(g, 0.), np.eye(5)) and np.allclose(_later(g, 1e4), g.prior)
    count = np.zeros(5)
    for _ in range(3000):
        c, left = 0, 2.5
        while (left := left - r.exponential(mean[c])) > 0: c = int(r.choice(5, p=g.transitions[c]))
        count[c] += 1
    assert np.abs(count/3000 - _later(g, 2.5)[0]).max() < .04


def clips(seed, chain, n=300, sharp=4.):
    "Sessions of clips from a chain (C, C) of seconds, and what a calibrated model says that knows the classes' shares."
    r = rng(seed, 'clips')
    k = len(chain(1.))
    share = chain(1e5)[0]
    out = []
    for _ in range(4):
        at, true = np.cumsum(r.choice([.5, 2., 6.], n)), [int(r.choice(k, p=share))]
        for t in np.diff(at):
            p = np.maximum(chain(t)[true[-1]], 0)
            true.append(int(r.choice(k, p=p/p.sum())))
        logits = sharp*np.eye(k)[true] + math.sqrt(sharp)*r.normal(size=(n, k)) + np.log(share)
        p = np.exp(logits - logits.max(1, keepdims=True))
        out.append((at, p/p.sum(1, keepdims=True), [f'op {c}' for c in true]))
    return out


@pytest.mark.parametrize('seed', range(3))
def test_fusion_weighs_the_grammar_by_its_worth(seed):
    "One, by Bayes' rule, for a chain that it describes, less what a decision before may be wrong; else nothing."
    g = some_grammar(seed, 4, 2, 5)
    def right(weight, clips):
        return np.mean([f'op {q.argmax()}' == n for at, p, true in clips
                        for q, n in zip(apply_grammar_to_clips(at, p, g, weight), true)])
    true = clips(seed, lambda t: _later(g, t))
    w = fit_grammar_weight(true, g)
    assert .4 < w < 1.3 and right(w, true) > right(0, true) + .02
    unordered = clips(seed, lambda t: np.tile(g.prior, (4, 1))) # whatever comes before, anything follows
    assert fit_grammar_weight(unordered, g) <= .1
    back = replace(g, counts=np.roll(g.counts, 2, 1), log_mean=g.log_mean[::-1]) # another one's order and durations
    assert fit_grammar_weight(true, back) < w


def test_fusion_keeps_what_it_is_given():
    g = some_grammar(0, 5)
    p = rng(0, 'fuse').dirichlet(np.ones(5))
    names = g.taxonomy.names
    for previous, seconds, weight in ((names[1], 2., 0), (None, 2., 1), (names[1], 1e6, 1)):
        assert np.allclose(apply_grammar(p, previous, seconds, g, weight), p)
    by_name = apply_grammar(dict(zip(names, p)), names[1], 2., g, .7)
    assert np.allclose(list(by_name.values()), apply_grammar(p, names[1], 2., g, .7))
    assert math.isclose(sum(by_name.values()), 1)
    certain = np.eye(5)[2]
    assert np.allclose(apply_grammar(certain, names[4], 0., g, 2.), certain), 'even what cannot have begun since'


def test_what_was_decided_before_counts_and_not_what_is_true():
    g = some_grammar(3, 4, 2, 5)
    r = rng(3, 'decided')
    at, p = np.cumsum(r.uniform(.2, 4, 30)), r.dirichlet(np.ones(4), 30)
    found, before = apply_grammar_to_clips(at, p, g, .8), None
    for i in range(30):
        q = apply_grammar(p[i], before, at[i] - at[i - 1] if i else 0., g, .8)
        before = g.taxonomy.names[int(q.argmax())]
        assert np.allclose(found[i], q)
    assert np.allclose(apply_grammar_to_clips(at, p, g, 0.), p)
    assert len(apply_grammar_to_clips(at[:0], p[:0], g)) == 0
    assert np.allclose(apply_grammar_to_clips(at[:1], p[:1], g), p[:1])


@pytest.mark.parametrize('seed', range(3))
def test_the_fitted_timeline_scores_best(seed):
    r = rng(seed, 'weights')
    g = some_grammar(seed, 3, 2, 5)
    grid = (8, 1, .25, 3)
    truths = [[Segment('op 1', 0, 4), Segment('op 2', 4, 5), Segment('op 1', 9, 13.5)], [Segment('op 2', 1, 6)]]
    ends, rows = (14., 8.), []
    for truth, end in zip(truths, ends): # what no segment covers is null, 'op 0'
        at = (np.arange(round(end/STEP)) + .5)*STEP
        true = [next((s.operation for s in truth if s.start <= t < s.end), 'op 0') for t in at]
        blocks = np.repeat(r.dirichlet(np.full(3, .5), -(-len(at)//5)), 5, 0)[:len(at)]
        rows.append((.4*np.eye(3)[[int(n[-1]) for n in true]] + .6*blocks, at, true))
    def right(lines): # moments
        found = [next(s.operation for s in line if t < s.end) == n
                 for line, (_, at, true) in zip(lines, rows) for t, n in zip(at, true)]
        return np.array([sum(found)])
    sharp = [x for x, *_ in rows]
    uniform = [np.full_like(x, 1/3) for x in sharp]
    def value(scale):
        lines = [decode_timeline(x, g, end, emission_scale=scale).segments for x, end in zip(sharp, ends)]
        return right(lines)[0]
    values = {scale: value(scale) for scale in grid}
    best = max(scale for scale in grid if values[scale] == max(values.values()))
    assert fit_timeline({1: uniform, 16: sharp}, g, right, grid, 0) == (16, best)
    nothing = lambda lines: np.zeros(2)
    assert fit_timeline({16: sharp, 1: uniform}, g, nothing, grid) == (1, 8), 'the fewest iterations of equals'
    assert len(set(values.values())) > 1


def chosen(plain, *measures, slack=.02):
    "What is fitted when the plain windows measure so, and then three scales after one iteration, and after four."
    rows, calls = [np.full((20, 3), 1/3)], iter([plain, *measures])
    score = lambda lines: np.array(next(calls))
    return fit_timeline({1: rows, 4: rows}, some_grammar(0, 3, 2, 5), score, (1, 2, 3), slack)


POOR, GOOD, LOPSIDED = (.1, .1), (.6, .6), (.75, .45)


@pytest.mark.parametrize('plain, measures, expected', [
    pytest.param((.5, .5), [POOR, POOR, POOR, GOOD, (.59, .6), LOPSIDED], (4, 2), id='no measure is given for another'),
    pytest.param((.9, .9), [POOR, POOR, POOR, GOOD, (.59, .6), LOPSIDED], (4, 3), id='the largest where all are below'),
    pytest.param((.5, .5), [POOR, (.59, .6), POOR, GOOD, GOOD, GOOD], (1, 2), id='the fewest iterations as good'),
    pytest.param((.5, .5), [POOR, (.76, .44), POOR, GOOD, GOOD, GOOD], (4, 3), id='no measure below the plain windows'),
])
def test_the_fitted_timeline_leaves_no_measure_below_the_plain_windows(plain, measures, expected):
    assert chosen(plain, *measures) == expected


def test_durations_far_in_the_tail_still_fall():
    "A segment of hours is improbable, not impossible, and a longer one is more so."
    found = _durations(some_grammar(2, 4), 40_000)
    for log_p in (found.running, found.ending, found.passing):
        assert np.isfinite(log_p).all() and (np.diff(log_p[:, 100:]) < 0).all()


def test_windows_of_another_length_cover_their_own_seconds():
    names = some_grammar(0, 2).taxonomy
    two = WindowPredictions(names, 8., np.array([0., 4.]), np.eye(2), {}, window_seconds=4.)
    again = WindowPredictions.from_dict(two.to_dict(), names)
    assert again.window_seconds == 4. and (again.rows() == two.rows()).all()
    assert [(s.operation, s.start, s.end) for s in two.timeline().segments] == [('op 0', 0, 4), ('op 1', 4, 8)]
    assert 'window_seconds' not in replace(two, window_seconds=CLIP_SECONDS).to_dict()
