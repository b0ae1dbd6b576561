"Frame scores of real work: what is fitted, what is refused, and that live reading never looks ahead."
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from vlmtemporal import real_work
from vlmtemporal.basics import BadInput, rng
from vlmtemporal.real_work import fit_evidence, fit_order, fit_reader, live_reading, reading_scores, segments_of

DATA = Path(__file__).parents[2]/'shared'/'real-labels'/'timelines'


def played(*seed, classes=4):
    "Margins and truth of a video in which 1, 2, 3 come in order, 0 between them"
    r, labels = rng(*seed), [0]*3
    for step in (1, 2, 3, 1, 3):
        if r.random() < .85: labels += [step]*int(r.integers(5, 15)) + [0]*int(r.integers(2, 6))
    truth = np.array(labels)
    return 1.5*np.eye(classes)[truth] + r.normal(size=(len(truth), classes)), truth


@pytest.fixture(scope='module')
def videos():
    return list(zip(*(played(0, i) for i in range(5))))


@pytest.fixture(scope='module')
def reader(videos):
    return real_work.Reader(fit_evidence(*videos), fit_order(videos[1], 4), .6)


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e/e.sum(1, keepdims=True)


KINDS = [lambda x: x, softmax, lambda x: softmax(x).astype(np.float16), lambda x: np.log(softmax(x))]


@pytest.mark.parametrize('shape', KINDS)
def test_any_kind_of_score_is_read_better_than_frame_by_frame(shape, videos):
    scores = [shape(x) for x in videos[0]]
    fitted = real_work.Reader(fit_evidence(scores, videos[1]), fit_order(videos[1], 4), .6)
    new, truth = zip(*(played(1, i) for i in range(4)))
    plain = reading_scores([x.argmax(1) for x in new], truth)
    read = reading_scores([fitted.read(shape(x)) for x in new], truth)
    live = reading_scores([np.array(list(live_reading(fitted, shape(x), 2))) for x in new], truth)
    for found in (read, live): assert found['F1@50'] > plain['F1@50'] + 15 and found['edit'] > plain['edit']


def test_one_video_one_frame_and_classes_never_seen():
    x, y = played(2, 0, classes=7)
    fitted = fit_reader([x], [y])
    assert fitted.read(x).shape == y.shape and fitted.scale == .6
    assert fitted.read(x[:1]).shape == (1,) and len(list(live_reading(fitted, x[:1], 3))) == 1
    assert list(live_reading(fitted, x[:0], 3)) == []
    tiny = fit_reader([x[:1], x], [y[:1], np.zeros(len(y), int)])
    assert tiny.read(x).shape == y.shape
    o = fitted.order
    assert all(np.isfinite(v).all() for v in (o.first, o.again, o.std, o.share))


def test_what_cannot_be_read_is_refused_in_a_sentence(videos, reader):
    x, y = videos[0][0], videos[1][0]
    bad = x.copy()
    bad[3, 1] = np.nan
    refused = [(([], []), 'no videos'), (([bad], [y]), 'video 0: scores that are no finite'),
               (([x[:, 0]], [y]), 'shape'),
               (([x, x[:, :3]], [y, y]), '3 classes, video 0 has 4'), (([x], [y[:-1]]), 'whole numbers from 0 to 3'),
               (([x], [y + 4]), 'whole numbers'), (([x], [y, y]), '2 truths of 1 videos'),
               (([x], [y], ['a', 'b']), '2 groups')]
    for given, said in refused:
        with pytest.raises(BadInput, match=said): fit_reader(*given)
    for given in (bad, x[:, :3], x[:0]):
        with pytest.raises(BadInput): reader.read(given)
    with pytest.raises(BadInput, match='finite'): list(live_reading(reader, bad, 1))
    with pytest.raises(BadInput, match='lag'): list(live_reading(reader, x, -1))


def test_live_reading_does_not_look_ahead_and_forgets(videos, reader):
    x, other = videos[0][0], videos[0][1]
    for lag in (0, 2):
        labels = list(live_reading(reader, x, lag))
        assert len(labels) == len(x)
        mixed = np.vstack([x[:30], other])
        assert list(islice(live_reading(reader, mixed, lag), 30 - lag)) == labels[:30 - lag]
        assert list(live_reading(reader, x, lag, longest=25)) == labels
    stream = real_work._Stream(reader.order, 25)
    for row in np.tile(reader.rows(x), (6, 1)):
        stream.push(row)
        assert np.isclose(real_work._class_at(stream, 1).sum(), 1)
    assert stream.begin.shape == (4, 51)


def test_a_long_video_has_few_cuts(monkeypatch, videos, reader):
    x = np.vstack(videos[0])
    every = reader.read(x)
    monkeypatch.setattr(real_work, 'CUTS', 80)
    assert (reader.read(x) == every).mean() > .9


def test_hits_are_counted_as_by_hand(videos):
    r = rng(0, 'hits')
    sampled = np.array([(int(r.integers(3)), *sorted(r.choice(13, 2, replace=False).tolist())) for _ in range(9)])
    weight, cuts = r.random(9), np.arange(13)
    found = real_work._hits(sampled, weight, cuts, 3)
    for c in range(3):
        for a in range(12):
            for b in range(a + 1, 13):
                by_hand = sum(w for (d, s, e), w in zip(sampled.tolist(), weight)
                              if c == d and (min(b, e) - max(a, s))/(max(b, e) - min(a, s)) >= .5)
                assert np.isclose(found[c, a, b], by_hand)


def test_measures_by_hand():
    truth, found = np.array([0]*4 + [1]*4 + [2]*4), np.array([0]*5 + [1]*2 + [2]*1 + [1]*1 + [2]*3)
    got = reading_scores([found], [truth])
    assert got['F1@50'] == pytest.approx(200*3/(5 + 3)) and got['edit'] == pytest.approx(60)
    assert got['boundary'] == pytest.approx(200*2/(4 + 2)) and got['accuracy'] == pytest.approx(100*9/12)
    assert [x.tolist() for x in segments_of(truth)] == [[0, 1, 2], [0, 4, 8], [4, 8, 12]]


@pytest.mark.skipif(not DATA.exists(), reason='needs the published frame scores of GTEA')
def test_breakfasts_are_read_better_than_frame_by_frame():
    data = np.load(DATA/'GTEA-SVM.npz')
    names = [name.removesuffix('_truth') for name in data if name.endswith('_truth')]
    read = {n: (data[f'{n}_scores'].astype(float), data[f'{n}_truth'].astype(int)) for n in names}
    parts = [[x for n, x in read.items() if (n[5] == '2') == test] for test in (False, True)]
    (scores, truth), (new, true) = (list(zip(*part)) for part in parts)
    fitted = real_work.Reader(fit_evidence(scores, truth), fit_order(truth, 11), .6)
    plain = reading_scores([x.argmax(1) for x in new], true)
    for labels in ([fitted.read(x) for x in new], [np.array(list(live_reading(fitted, x, 5))) for x in new]):
        found = reading_scores(labels, true)
        assert found['F1@50'] > plain['F1@50'] + 8 and found['edit'] > plain['edit'] + 8


@pytest.mark.parametrize(('predicted', 'truth'), [
    ([], []), ([[0]], [[0, 1]]), ([[0, 1]], []), ([np.zeros((2, 2), int)],)*2, ([[.5, np.nan]], [[0, 1]]), ([[]], [[]]),
    (['ab'], ['ab'])])
def test_labels_that_do_not_fit_are_refused(predicted, truth):
    with pytest.raises(BadInput, match='labels'): reading_scores(predicted, truth)


def test_nothing_to_find_is_found():
    "A video of one class has no inner boundary."
    assert reading_scores([[1, 1, 1]], [[1, 1, 1]])['boundary'] == 100


def test_names_are_no_classes():
    with pytest.raises(BadInput, match='whole numbers'): fit_reader([np.eye(3)], [['Cut', 'Cut', 'Peel']])
    with pytest.raises(BadInput, match='whole numbers'): fit_reader([np.eye(3)], [[None]*3])
