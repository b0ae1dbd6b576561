"Every metric against a slow, literal reading of its published definition, on random answers and timelines."
import itertools, math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from vlmtemporal.baselines import baselines, bigram, bigram_on_predictions
from vlmtemporal.clips import Answer
from vlmtemporal.metrics import (BOUNDARY_TOLERANCES, DETECTION_THRESHOLDS, OVERLAP_THRESHOLDS, boundary_counts,
                                 class_f1, class_mean_recall, clip_report, confusion, count_session, edit_score,
                                 macro_f1, match_detections, mean_average_precision, overlap_counts, score_clips,
                                 timeline_metrics, timeline_report)
from vlmtemporal.openpack import Session
from vlmtemporal.operations import LOGISTICS, Segment
from vlmtemporal.statistics import estimate, estimate_mean, estimate_median, paired

NAMES, NULL = LOGISTICS.names, LOGISTICS.null
TICK = 25 # a second; the timelines below lie on frames, so that the references count in integers


def same(a, b): return abs(a - b) < 1e-9 or (math.isnan(a) and math.isnan(b))


def agree(found, expected):
    assert found.keys() == expected.keys()
    wrong = {k: (found[k], expected[k]) for k in found if not same(found[k], expected[k])}
    assert not wrong, wrong


def ratio(a, b): return a/b if b else math.nan


def mean(values): return ratio(sum(values), len(values))


# ---- clips -----------------------------------------------------------------------------------------------------------
def random_answer(g, operations):
    kind = g.random()
    if kind < .1: return None
    s, e = sorted(g.integers(0, 125, 2).tolist())
    if kind < .2: s, e = None, None
    if kind > .9: s = 0
    if kind > .95: e = 124
    return Answer(str(g.choice(operations)), s, e, None if g.random() < .1 else str(g.choice(NAMES)), float(g.random()))


def random_truth(g, operations):
    s, e = sorted(g.integers(0, 125, 2).tolist())
    cut = g.random()
    if cut < .4: s = 0
    elif cut < .8: e = 124
    elif cut < .9: s, e = 0, 124
    return Answer(str(g.choice(operations)), s, e, None if g.random() < .1 else str(g.choice(NAMES)))


def frames(a): return set(range(a.start_frame, a.end_frame + 1)) if a and a.start_frame is not None else set()


def recall_and_f1(pairs, operation):
    tp = sum(t == operation and p == operation for p, t in pairs)
    fp = sum(t != operation and p == operation for p, t in pairs)
    fn = sum(t == operation and p != operation for p, t in pairs)
    precision, recall = (tp/(tp + fp) if tp + fp else 0), (tp/(tp + fn) if tp + fn else 0)
    return recall, (2*precision*recall/(precision + recall) if precision + recall else 0)


def clip_reference(predicted, true, kinds, rows):
    "The metrics of clips as they are defined, a clip at a time."
    plain = [i for i in range(len(true)) if kinds[i] != 'anticipation']
    ious, errors, gaps, squares = [], [], [[] for _ in range(15)], []
    for i in plain:
        p, q = predicted[i], true[i]
        ious.append(len(frames(p) & frames(q))/len(frames(p) | frames(q)))
        edges = [(p.start_frame if frames(p) else None, q.start_frame)] if q.start_frame > 0 else []
        edges += [(p.end_frame if frames(p) else None, q.end_frame)] if q.end_frame < 124 else []
        if edges: errors.append(125 if not frames(p) else mean([abs(a - b) for a, b in edges]))
        row = [rows[i].get(n, 0) for n in NAMES] if rows[i] else None
        confidence, right = (max(row), NAMES[row.index(max(row))] == q.dominant_operation) if row else (1., False)
        at = [b for b in range(15) if (b/15 < confidence or b == 0) and confidence <= (b + 1)/15]
        assert len(at) == 1
        gaps[at[0]].append((confidence, right))
        squares.append(sum((x - (n == q.dominant_operation))**2 for n, x in zip(NAMES, row)) if row else 2)
    pairs = [(predicted[i].dominant_operation if predicted[i] else None, true[i].dominant_operation) for i in plain]
    after = lambda a: a and a.anticipated_next_operation
    agrees = lambda i: after(predicted[i]) is not None and after(predicted[i]) == after(true[i])
    next_right = lambda at: mean([agrees(i) for i in at])
    there = {t for _, t in pairs}
    e = sorted(errors)
    n = len(plain)
    gap = lambda b: len(b)/n*abs(mean([c for c, _ in b]) - mean([r for _, r in b]))
    out = {'OCA': mean([p == t for p, t in pairs]), 'mIoU': mean(ious), 'AA@1': next_right(plain),
           'macro F1': mean([recall_and_f1(pairs, o)[1] for o in there]),
           'class-mean recall': mean([recall_and_f1(pairs, o)[0] for o in there]),
           'boundary error': (e[(len(e) - 1)//2] + e[len(e)//2])/2 if e else math.nan,
           'parse failures': mean([p is None for p, _ in pairs]),
           'ECE': sum(gap(b) for b in gaps if b) if n else math.nan, 'Brier': mean(squares)}
    out |= {f'tIoU@{t}': mean([x >= t for x in ious]) for t in (.3, .5, .7)}
    if ahead := [i for i in range(len(true)) if kinds[i] == 'anticipation']: out['AA@1 strict'] = next_right(ahead)
    return out


def random_clips(g, n=None):
    operations = g.choice(NAMES, g.choice([1, 2, 5, 10]), replace=False)
    n = int(g.choice([1, 2, 5, 30, 60])) if n is None else n
    true = [random_truth(g, operations) for _ in range(n)]
    predicted = [t if g.random() < .3 else random_answer(g, NAMES if g.random() < .5 else operations) for t in true]
    if g.random() < .05: predicted = [None]*n
    kinds = g.choice(['boundary', 'anticipation', 'sliding'], n, p=[.6, .2, .2]).tolist()
    if g.random() < .1: kinds = ['boundary']*n
    levels = g.dirichlet(np.ones(10), n).round(int(g.choice([1, 2, 6]))) # rounded to tenths: on the edges of bins, too
    rows = [dict(zip(NAMES, r.tolist())) if p else {} for p, r in zip(predicted, levels)]
    return predicted, true, kinds, rows


@pytest.mark.parametrize('seed', range(300))
def test_clips_agree_with_the_definitions(seed):
    clips = random_clips(np.random.default_rng(seed))
    predicted, true, kinds, rows = clips
    agree(score_clips(predicted, true, LOGISTICS, kinds, rows).metrics(), clip_reference(*clips))
    table = confusion(predicted, true, LOGISTICS)
    pairs = [(t.dominant_operation, p.dominant_operation if p else None) for p, t in zip(predicted, true)]
    assert all(table[i, j] == pairs.count((a, b)) for i, a in enumerate(NAMES) for j, b in enumerate([*NAMES, None]))


@pytest.mark.parametrize('seed', range(40))
def test_tables_agree_with_scikit_learn(seed):
    g = np.random.default_rng(seed)
    none = len(NAMES)
    true = g.integers(0, int(g.choice([1, 3, none])), int(g.choice([1, 5, 60])))
    predicted = np.where(g.random(len(true)) < .4, true, g.integers(0, none + 1, len(true)))
    answers = [Answer(NAMES[i], 0, 124, None) if i < none else None for i in predicted]
    table = confusion(answers, [Answer(NAMES[i], 0, 124, None) for i in true], LOGISTICS)
    assert (table == confusion_matrix(true, predicted, labels=range(none + 1))[:none]).all()
    occurs = np.unique(true)
    options = dict(labels=occurs, zero_division=0)
    _, recall, f1_scores, _ = precision_recall_fscore_support(true, predicted, **options)
    assert np.allclose(class_f1(table)[occurs], f1_scores, rtol=1e-12, atol=0)
    assert np.isclose(macro_f1(table), f1_score(true, predicted, average='macro', **options), rtol=1e-12)
    assert np.isclose(class_mean_recall(table), recall.mean(), rtol=1e-12)


def test_clips_of_another_length_have_other_ends():
    whole, early = Answer('Tape', 0, 99, None), Answer('Tape', 0, 49, None)
    scored = score_clips([early, None], [whole, early], LOGISTICS, n_frames=100)
    assert np.isnan(scored.boundary_errors[0]) and scored.boundary_errors[1] == 100
    assert score_clips([early], [whole], LOGISTICS).boundary_errors[0] == 50 # the end of a longer clip is a boundary


def test_no_clips_no_numbers():
    agree(score_clips([], [], LOGISTICS, [], []).metrics(), clip_reference([], [], [], []))
    assert clip_report(score_clips([], [], LOGISTICS), []).keys() == score_clips([], [], LOGISTICS).metrics().keys()


def test_anticipation_clips_change_strict_alone():
    g = np.random.default_rng(5)
    predicted, true, _, rows = random_clips(g, 40)
    late, after, _, more = random_clips(g, 9)
    alone = score_clips(predicted, true, LOGISTICS, ['boundary']*40, rows).metrics()
    kinds = ['boundary']*40 + ['anticipation']*9
    both = score_clips(predicted + late, true + after, LOGISTICS, kinds, rows + more).metrics()
    agree({k: v for k, v in both.items() if k != 'AA@1 strict'}, alone)


# ---- intervals and tests ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize('seed', range(20))
def test_the_estimate_of_a_mean_is_the_mean_s_estimate(seed):
    g = np.random.default_rng(seed)
    x = g.random(60)
    groups = g.integers(0, int(g.choice([1, 5, 12])), 60).tolist()
    for share in (False, True):
        found = estimate(lambda at: x[at].mean(), groups, {None} if share else ())
        want = estimate_mean([x[np.array(groups) == h] for h in dict.fromkeys(groups)], share)
        assert np.allclose(list(found.values()), list(want.values()), rtol=0, atol=1e-9, equal_nan=True)


STUDENT = {5: 2.776445, 6: 2.570582, 7: 2.446912, 8: 2.364624} # 97.5% quantiles for so many groups, from a table


def interval_reference(value, without, share):
    "Low and high by the formula of page 0b, one number after another."
    def logit(x): return math.log(x/(1 - x))
    if share and 0 < value < 1:
        moved = [logit(min(max(x, value/4), 1 - (1 - value)/4)) - logit(value) for x in without]
    else: moved = [x - value for x in without]
    n = len(without)
    reach = STUDENT[n]*math.sqrt((n - 1)/n*sum(m*m for m in moved))
    if share and 0 < value < 1: return [1/(1 + math.exp(-(logit(value) + s*reach))) for s in (-1, 1)]
    return [value - reach, value + reach]


def test_a_pooled_statistic_is_computed_anew_without_every_session():
    g = np.random.default_rng(3)
    predicted, true, kinds, rows = random_clips(g, 60)
    groups = [f's{i}' for i in [*range(6)]*10]
    found = clip_report(score_clips(predicted, true, LOGISTICS, kinds, rows), groups)
    def reference(at): return clip_reference(*([x[i] for i in at] for x in (predicted, true, kinds, rows)))
    whole = reference(range(60))
    without = [reference([i for i, s in enumerate(groups) if s != f's{k}']) for k in range(6)]
    compared = 0
    for name, row in found.items():
        if name == 'boundary error' or row['groups'] < 6 or math.isnan(row['low']): continue
        want = interval_reference(whole[name], [w[name] for w in without], name != 'Brier')
        assert np.allclose([row['low'], row['high']], want, rtol=1e-5), name
        compared += 1
    assert compared >= 8
    plain = [i for i, k in enumerate(kinds) if k != 'anticipation']
    assert found['OCA']['clips'] == len(plain) and found['AA@1 strict']['clips'] == len(true) - len(plain)
    assert found['boundary error']['clips'] == sum((true[i].start_frame, true[i].end_frame) != (0, 124) for i in plain)


def test_a_median_of_whole_frames_has_an_interval():
    g = np.random.default_rng(5)
    off = np.round((np.abs(g.standard_t(2, (8, 60)))*2*np.exp(g.normal(0, .4, (8, 1)))).ravel())
    groups = np.repeat(range(8), 60).tolist()
    for found in (estimate_median(off, groups), estimate(lambda at: np.median(off[at]), groups)):
        assert found['low'] <= found['value'] <= found['high'] and found['low'] < found['high']


def test_a_group_without_items_of_a_kind_has_no_say():
    hits = np.r_[np.tile([1., 0.], 12), np.ones(16)]
    groups = [*np.repeat(range(6), 4), *np.repeat(range(6, 10), 4)]
    def first_kind(at):
        kind = at[at < 24]
        return hits[kind].mean() if len(kind) else math.nan
    assert estimate(first_kind, groups)['groups'] == 6


def test_paired_sees_what_both_share():
    g = np.random.default_rng(1)
    hard = g.normal(0, 1, 60)
    groups = np.repeat(np.arange(12), 5).tolist()
    a, b = hard + g.normal(.2, .2, 60), hard + g.normal(0, .2, 60)
    def of(*x):
        both = np.concatenate(x)
        return lambda at: both[at].mean()
    d = paired(of(a, b), groups)
    wide = [estimate(of(x), groups) for x in (a, b)]
    assert wide[0]['low'] < wide[1]['high'] and 0 < d['low'] < d['value'] < d['high'] and d['p'] < .01
    back = paired(of(b, a), groups)
    assert same(back['value'], -d['value']) and same(back['low'], -d['high']) and back['p'] == d['p']
    assert paired(of(a, a), groups)['p'] == 1


@pytest.mark.parametrize('n', range(1, 8))
def test_p_is_the_share_of_swaps_as_far_from_zero(n):
    g = np.random.default_rng(n)
    a, b = g.normal(.5, 1, n), g.normal(0, 1, n)
    signs = list(itertools.product((-1, 1), repeat=n))
    as_far = sum(abs(np.dot(s, a - b)) >= abs((a - b).sum()) - 1e-9 for s in signs)
    assert same(paired(lambda at: np.r_[a, b][at].mean(), range(n))['p'], as_far/2**n)
    drawn = paired(lambda at: np.r_[a, b][at].mean(), range(n), n=2**(n - 1) - 1 or 1)['p'] # too few for all ways
    assert 0 < drawn <= 1


# ---- timelines -------------------------------------------------------------------------------------------------------
def random_ticks(g, operations):
    "A timeline on frames: gaps, null rows, touching neighbours of one operation."
    out, t = [], int(g.integers(0, 60))
    for _ in range(int(g.integers(1, 14))):
        if g.random() < .25: t += int(g.integers(1, 50))
        out.append((str(g.choice(operations)), t, t := t + int(g.choice([1, 5, 25, 50, 120]))))
    return out


def disturbed(g, ticks, operations):
    "A prediction that has something to do with the truth: shifted, relabelled, split."
    out, end = [], 0
    for o, a, b in ticks:
        a, b = max(a + int(g.integers(-20, 21)), end), b + int(g.integers(-20, 21))
        if b <= a: continue
        o = o if g.random() < .8 else str(g.choice(operations))
        m = int(g.integers(a, b + 1))
        end = b
        out += [(o, a, m), (str(g.choice(operations)), m, b)] if g.random() < .2 and a < m < b else [(o, a, b)]
    return out


def random_pair(g):
    operations = g.choice(NAMES, g.choice([1, 2, 4, 10]), replace=False)
    kind = g.random()
    true = [] if kind < .05 else random_ticks(g, operations)
    if .03 < kind < .1: predicted = []
    elif .1 < kind < .15: predicted = true
    else: predicted = random_ticks(g, NAMES) if kind < .4 else disturbed(g, true, operations)
    return true, predicted, g.choice([.25, .5, .75, 1.], len(predicted)).tolist(), int(g.integers(0, 25))


def seconds(ticks): return [Segment(o, a/TICK, b/TICK) for o, a, b in ticks]


def session_of(true, phase=0, key=0):
    start = 1648515544 + phase/TICK
    return Session(f'U{key:04d}', 'S0100', LOGISTICS, tuple(seconds(true)), (0,)*len(true), start, None, None)


def per_frame(ticks, n):
    labels = [None]*n
    for o, a, b in ticks:
        for i in range(a, min(b, n)): labels[i] = o
    return labels


def runs(labels): # operation, first frame, frame after the last; null and gaps are background, as in MS-TCN
    out = []
    for i, o in enumerate(labels):
        if o in (None, NULL): continue
        if out and out[-1][0] == o and out[-1][2] == i: out[-1][2] = i + 1
        else: out.append([o, i, i + 1])
    return out


def levenshtein(p, q):
    d = [[i + j if not i*j else 0 for j in range(len(q) + 1)] for i in range(len(p) + 1)]
    for i in range(1, len(p) + 1):
        for j in range(1, len(q) + 1):
            d[i][j] = min(d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (p[i - 1] != q[j - 1]))
    return d[-1][-1]


def iou(p, q):
    both = min(p[2], q[2]) - max(p[1], q[1])
    return both/(max(p[2], q[2]) - min(p[1], q[1])) if both > 0 else 0.


def f1_counts(p, q, k):
    "As MS-TCN's evaluation: every predicted segment goes to the true one that it overlaps best."
    hit, tp = [False]*len(q), 0
    for s in p:
        best, at = 0., None
        for j, t in enumerate(q):
            if s[0] == t[0] and iou(s, t) > best: best, at = iou(s, t), j
        if at is not None and best >= k - 1e-9 and not hit[at]: hit[at], tp = True, tp + 1
    return tp, len(p) - tp, len(q) - tp


def most_pairs(p, q, near):
    "Size of the largest one-to-one matching of near points: augmenting paths (Kuhn)."
    partner = {}
    def place(i, tried):
        for j in range(len(q)):
            if near(p[i], q[j]) and j not in tried:
                tried.add(j)
                if j not in partner or place(partner[j], tried):
                    partner[j] = i
                    return True
        return False
    return sum(place(i, set()) for i in range(len(p)))


def changes(labels): return [i for i in range(1, len(labels)) if (labels[i] or NULL) != (labels[i - 1] or NULL)]


def f1(tp, fp, fn): return 2*tp/(2*tp + fp + fn) if tp + fp + fn else math.nan


def average_precision(detections, truths, k):
    """As ActivityNet's evaluation: detections (score, video, segment) of one operation against {video: segments}. Equal
    scores: the earlier goes first, and points of the curve lie where the score changes."""
    order, hits = sorted(detections, key=lambda d: (-d[0], d[2][1:])), []
    free = {v: list(range(len(s))) for v, s in truths.items()}
    for _, video, s in order:
        found = sorted(((iou(s, truths[video][j]), -j) for j in free.get(video, [])), reverse=True)
        hits.append(bool(found) and found[0][0] >= k - 1e-9)
        if hits[-1]: free[video].remove(-found[0][1])
    n = sum(map(len, truths.values()))
    area, recall = 0., 0.
    changes = [i for i, d in enumerate(order) if i + 1 == len(order) or order[i + 1][0] < d[0]]
    points = [(sum(hits[:i + 1])/n, sum(hits[:i + 1])/(i + 1)) for i in changes]
    for r, _ in points:
        if r > recall: area, recall = area + (r - recall)*max(b for a, b in points if a >= r), r
    return area


def macro_average_precision(sessions, k):
    true = {(o, v) for v, (t, _, _) in enumerate(sessions) for o, *_ in t if o != NULL}
    def one(o):
        found = [(x, v, s) for v, (_, p, xs) in enumerate(sessions) for s, x in zip(p, xs) if s[0] == o]
        return average_precision(found, {v: [s for s in t if s[0] == o] for v, (t, _, _) in enumerate(sessions)}, k)
    return mean([one(o) for o in sorted({o for o, _ in true})])


def official(sessions):
    "OpenPack: the last label begun by the end of each second; null dropped; every other operation counts the same."
    pairs = []
    for true, predicted, phase in sessions:
        if not true: continue
        start = 1648515544*TICK + phase
        first, last = start + true[0][1], start + true[-1][2]
        for second in range(first//TICK, -(-last//TICK)):
            at = (second + 1)*TICK - start
            p, t = ([o for o, a, _ in x if a <= at][-1:] or [None] for x in (predicted, true))
            if t[0] not in (None, NULL): pairs.append((p[0], t[0]))
    return mean([recall_and_f1(pairs, o)[1] for o in NAMES if o != NULL]) if pairs else math.nan


def rework_found(true, predicted):
    "How much of what is done again is found as in F1@50, and how much there is; the sessions here have one box."
    again, done = [], []
    for o, a, _ in true:
        if o in (NULL, 'Idle'): continue
        if o in done and done[-1] != o: again.append((o, a))
        done.append(o)
    p, q = joined(predicted), joined(true)
    hit = set()
    for s in p:
        values = [iou(s, t) if s[0] == t[0] else 0. for t in q]
        if values and max(values) >= .5 - 1e-9: hit.add(values.index(max(values)))
    back = {j for o, a in again for j, t in enumerate(q) if t[0] == o and t[1] <= a < t[2]}
    return len(back & hit), len(back)


def timeline_reference(sessions):
    "The metrics of timelines as they are defined, frame by frame: sessions of (true, predicted, scores, phase)."
    right = total = 0
    edits = []
    segments, moments = ({k: [0, 0, 0] for k in ks} for ks in (OVERLAP_THRESHOLDS, BOUNDARY_TOLERANCES))
    for true, predicted, _, _ in sessions:
        end = max((b for _, _, b in true), default=0)
        n = max((b for _, _, b in true + predicted), default=0)
        t, p = per_frame(true, n), per_frame(predicted, n)
        for i in range(true[0][1] if true else 0, end):
            total += 1
            right += p[i] == (t[i] or NULL)
        a, b = runs(p), runs(t)
        if a or b: edits.append(1 - levenshtein([s[0] for s in a], [s[0] for s in b])/max(len(a), len(b)))
        for k in OVERLAP_THRESHOLDS: segments[k] = [x + y for x, y in zip(segments[k], f1_counts(a, b, k))]
        seen, real = (changes(x[:end] if true else x + [None]) for x in (p, t))
        for tolerance in BOUNDARY_TOLERANCES:
            tp = most_pairs(seen, real, lambda x, y, most=tolerance*TICK: abs(x - y) <= most)
            moments[tolerance] = [x + y for x, y in zip(moments[tolerance], (tp, len(seen) - tp, len(real) - tp))]
    scored = [(t, p, x) for t, p, x, _ in sessions]
    return {'1 Hz macro F1': official([(t, p, phase) for t, p, _, phase in sessions]),
            'frame accuracy': ratio(right, total), 'edit': mean(edits),
            **{f'F1@{round(100*k)}': f1(*c) for k, c in segments.items()},
            **{f'mAP@{k}': macro_average_precision(scored, k) for k in DETECTION_THRESHOLDS},
            **{f'boundary F1 {k:g} s': f1(*c) for k, c in moments.items()},
            'rework recall': ratio(*map(sum, zip(*(rework_found(t, p) for t, p, _, _ in sessions))))}


@pytest.mark.parametrize('seed', range(250))
def test_timelines_agree_with_the_definitions(seed):
    g = np.random.default_rng(seed)
    sessions = [random_pair(g) for _ in range(int(g.choice([1, 2, 4])))]
    counts = [count_session(seconds(p), x, session_of(t, phase)) for t, p, x, phase in sessions]
    agree(timeline_metrics(counts), timeline_reference(sessions))


def joined(segments): # null and empty ones dropped, touching ones of one operation made one
    out = []
    for o, a, b in sorted((s for s in segments if s[0] != NULL and s[2] > s[1]), key=lambda s: (s[1], s[2])):
        if out and out[-1][0] == o and a <= out[-1][2]: out[-1] = (o, out[-1][1], max(b, out[-1][2]))
        else: out.append((o, a, b))
    return out


def anywhere(g, n, empty):
    "Segments at any times, some without duration."
    cuts = np.sort(g.uniform(0, 30, 2*n)).reshape(n, 2).tolist()
    return [(str(g.choice(NAMES[:3] + (NULL,))), a, a if g.random() < empty else b) for a, b in cuts]


@pytest.mark.parametrize('seed', range(200))
def test_segments_at_any_time_and_without_duration(seed):
    g = np.random.default_rng(seed)
    true, predicted = (anywhere(g, int(g.integers(0, 12)), e) for e in (.1, .3))
    if g.random() < .5: # near it, and overlapping
        predicted = [(o, max(a + g.normal(0, .3), 0), b + g.normal(1, .3)) for o, a, b in true]
    p, q = ([Segment(*s) for s in x] for x in (predicted, true))
    a, b = joined(predicted), joined(true)
    edit = 1 - levenshtein([s[0] for s in a], [s[0] for s in b])/max(len(a), len(b)) if a or b else math.nan
    assert same(edit_score(p, q, NULL), edit)
    assert overlap_counts(p, q, NULL).tolist() == [list(f1_counts(a, b, k)) for k in OVERLAP_THRESHOLDS]
    end = max((s[2] for s in true if s[2] > s[1]), default=math.inf)
    seen, real = (sorted({t for s in x for t in s[1:] if 0 < t < end}) for x in (a, b))
    for tolerance, row in zip(BOUNDARY_TOLERANCES, boundary_counts(p, q, NULL).tolist()):
        tp = most_pairs(seen, real, lambda x, y, most=tolerance: abs(x - y) <= most)
        assert row == [tp, len(seen) - tp, len(real) - tp]
    scores = g.random(len(p)).tolist()
    found = mean_average_precision([match_detections(p, scores, q, LOGISTICS)])
    lasting = [(s, x) for s, x in zip(predicted, scores) if s[2] > s[1]]
    shown = [s for s in true if s[2] > s[1]], [s for s, _ in lasting], [x for _, x in lasting]
    for x, k in zip(found, DETECTION_THRESHOLDS, strict=True): assert same(x, macro_average_precision([shown], k))


def test_a_segment_without_duration_is_none_anywhere():
    "Not in the order, not as a false alarm, not as a boundary, not as a detection, and not in a table."
    true = [Segment('Tape', 0, 4), Segment('Pack', 4, 9), Segment('Wrap', 12, 12)]
    empty = [Segment('Wrap', 2, 2), Segment('Tape', 6, 6), Segment(NULL, 7, 7), Segment('Pack', 10, 10)]
    truth = session_of([('Tape', 0, 4*TICK), ('Pack', 4*TICK, 9*TICK)])
    with_empty = sorted([*truth.segments, *empty], key=lambda s: s.start)
    for p, q in ((true[:2], true), (with_empty, true[:2])):
        assert edit_score(p, q, NULL) == 1 and (overlap_counts(p, q, NULL) == [2, 0, 0]).all()
        assert (boundary_counts(p, q, NULL) == [1, 0, 0]).all()
        assert mean_average_precision([match_detections(p, [.5]*len(p), q, LOGISTICS)]).tolist() == [1, 1, 1]
    a, b = (count_session(p, [.5]*len(p), truth) for p in (truth.segments, with_empty))
    agree(timeline_metrics([a]), timeline_metrics([b]))


@pytest.mark.parametrize('seed', range(60))
def test_ties_of_iou_go_to_the_earlier_segment(seed):
    "As the published code, which counts frames and takes argmax: times in seconds must not decide by rounding."
    g = np.random.default_rng(seed)
    a, gap, n = (int(x) for x in g.integers(2, 200, 3))
    at = int(g.integers(0, 90_000)) # frames: up to an hour
    true = [('Tape', at, at + n + a), ('Tape', at + n + a + gap, at + 2*n + 2*a + gap)]
    both = ('Tape', at + a, at + 2*n + a + gap) # as much of either
    rest = ('Tape', both[2] + 1, true[1][2])    # of the second
    for fps in (25, 30, 29.97, 3):
        p, q = ([Segment(o, x/fps, y/fps) for o, x, y in s] for s in ([both, rest], true))
        for k in (.001, .1, .25, .5, .9):
            assert overlap_counts(p, q, NULL, [k])[0].tolist() == list(f1_counts([both, rest], true, k))
        assert match_detections(p, [.9, .8], q, LOGISTICS, [.001]).hits.tolist() == [[True], [True]]


@pytest.mark.parametrize('seed', range(40))
def test_no_order_changes_average_precision(seed):
    "Equal scores, in any order of segments and of sessions, and split into sessions with other names."
    g = np.random.default_rng(seed)
    sessions = [random_pair(g) for _ in range(4)]
    def score(order, shuffle):
        found = []
        for i in order:
            t, p, x, _ = sessions[i]
            at = shuffle(len(p))
            found.append(match_detections([seconds(p)[j] for j in at], [x[j] for j in at], seconds(t), LOGISTICS))
        return mean_average_precision(found)
    expected = score(range(4), range)
    for _ in range(5): assert np.array_equal(score(g.permutation(4), g.permutation), expected, equal_nan=True)


@pytest.mark.parametrize('seed', range(40))
def test_the_order_of_sessions_does_not_matter(seed):
    g = np.random.default_rng(seed)
    sessions = [random_pair(g) for _ in range(4)]
    sessions = [(t, p, g.random(len(p)).tolist(), phase) for t, p, _, phase in sessions] # no equal scores
    counts = [count_session(seconds(p), x, session_of(t, phase)) for t, p, x, phase in sessions]
    agree(timeline_metrics(counts), timeline_metrics(counts[::-1]))


def test_a_prediction_is_never_better_for_being_silent():
    for seed in range(60):
        true, predicted, scores, phase = random_pair(np.random.default_rng(seed))
        if not joined(true) or not predicted: continue
        silent = timeline_metrics([count_session([], [], session_of(true, phase))])
        spoken = timeline_metrics([count_session(seconds(predicted), scores, session_of(true, phase))])
        assert all(not silent[k] > spoken[k] for k in silent) and not any(v > 0 for v in silent.values())


def test_timeline_intervals_hold_the_value_and_need_two_sessions():
    g = np.random.default_rng(2)
    sessions = []
    while len(sessions) < 6:
        t = random_ticks(g, NAMES[:5])
        p = disturbed(g, t, NAMES[:5])
        if len(p) > 2: sessions.append((t, p, g.random(len(p)).tolist(), 0))
    counts = [count_session(seconds(p), x, session_of(t)) for t, p, x, _ in sessions]
    groups = [f's{i}' for i in range(6)]
    found = timeline_report(counts, groups)
    assert all(v['low'] <= v['value'] <= v['high'] for v in found.values() if 0 < v['value'] < 1 and v['groups'] > 4)
    assert found['edit']['low'] < found['edit']['high']
    assert all(math.isnan(v['low']) for v in timeline_report(counts[:4], groups[:4]).values()), 'four are too few'
    assert all(math.isnan(v['low']) for v in timeline_report(counts[:1], ['s']).values())


# ---- baselines -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('seed', range(30))
def test_baselines_learn_from_training_alone(seed):
    g = np.random.default_rng(seed)
    train = [random_truth(g, NAMES) for _ in range(int(g.integers(0, 40)))]
    true, other = ([random_truth(g, NAMES) for _ in range(15)] for _ in range(2))
    a, b = (baselines(train, t, LOGISTICS, seed) for t in (true, other))
    assert a.keys() == b.keys() and all(a[k] == b[k] for k in a if k != 'bigram, operation given')
    count = {}
    for t in train: count.setdefault(t.dominant_operation, []).append(t.anticipated_next_operation)
    best = lambda o: max(dict.fromkeys(count[o]), key=count[o].count) if o in count else NULL # ties to the first seen
    assert bigram(train, [*NAMES, None], LOGISTICS) == [*map(best, NAMES), None]
    predicted = [random_answer(g, NAMES) for _ in true]
    found = bigram_on_predictions(train, predicted, LOGISTICS)
    assert all((p is None) == (f is None) for p, f in zip(predicted, found))
    for p, f in zip(predicted, found):
        if p is None: continue
        assert (f.dominant_operation, f.start_frame) == (p.dominant_operation, p.start_frame)
        assert f.anticipated_next_operation == best(p.dominant_operation)
