"Evaluation: numbers that follow from predictions, reports from results, and what no evaluation may be made of."
import html, json, math, re, shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from vlmtemporal.backbones import load_model
from vlmtemporal.basics import BadInput, read_json, write_json
from vlmtemporal.clips import Answer, Clip
from vlmtemporal.dataset import build
from vlmtemporal.decode import Prediction
from vlmtemporal.engine import Engine
from vlmtemporal.eval import (PHASES, REMEDIES, SAMPLERS, LeaveOneOut, Order, Panel, Provenance, Result, Variant, Watched, _evidence,
                              _trained, calibrate, class_table, compare, evaluate, evaluation_set, failures, leave_one_person_out, phases,
                              rescore, save_result, write_report)
from vlmtemporal.metrics import count_session, mcnemar, timeline_metrics, tiou
from vlmtemporal.openpack import sessions
from vlmtemporal.operations import LOGISTICS, Grammar
from vlmtemporal.shards import find_split, write_shards
from vlmtemporal.timeline import FUSION, ROUNDS, Windows, fuse, hsmm_timeline, raw_timeline
from vlmtemporal.train import TrainConfig, fit, make_trainer

NAMES = LOGISTICS.names


def random_answer(g):
    s, e = sorted(g.choice(125, 2, replace=False).tolist())
    return Answer(str(g.choice(NAMES)), s, e, str(g.choice(NAMES)), 1.)


def random_prediction(g, clip):
    if g.random() < .1: return Prediction(clip.id, None, 'none', {})
    a, p = random_answer(g), g.dirichlet(np.ones(len(NAMES))).round(6).tolist() # as they are written
    best = NAMES[int(np.argmax(p))]
    answer = replace(a, dominant_operation=best, confidence=max(p))
    return Prediction(clip.id, answer, 'constrained', dict(zip(NAMES, p)), latency_ms=1.5)


def source(clips, train, models):
    "What a run would have remembered."
    adapted = [m.name for m in models[1:]]
    return Provenance(command='vlmtemporal eval', time='2026-01-01T00:00:00Z', commit='0'*12, seed=0,
                      decoder='constrained', data=dict(config='c', shards={'shard-000000.tar': 'a'*64},
                                                          clips=[c.id for c in clips]),
                      model=dict(name='m', fingerprint='f', weights={'m.safetensors': 'b'*64}),
                      adapters=dict.fromkeys(adapted, 'c'*64), training=dict.fromkeys(adapted, {}), machine={},
                      versions={}, evidence=_evidence(clips, train, models))


def random_result(seed, n=24, who=('U0108',)):
    g = np.random.default_rng(seed)
    def clip(i):
        session = f'{who[i % len(who)]}-S0100'
        return Clip(f'{session}-{i//4:03d}{"abcd"[i % 4]}', session, 5.*i, 125, 150. if i % 4 == 3 else 60.,
                    random_answer(g) if i % 3 else Answer('Tape', 0, 124, 'Pack'))
    clips = [clip(i) for i in range(n)]; train = [random_answer(g) for _ in range(30)]
    models = [_trained(name, [random_prediction(g, c) for c in clips]) for name in ('base', 'fine-tuned')]
    return Result(LOGISTICS, clips, train, models, source(clips, train, models))


def plain(result):
    "Positions of the clips that are not for AA@1 strict alone."
    return [i for i, c in enumerate(result.clips) if c.kind != 'anticipation']


def hits(result, m, field='dominant_operation'):
    "For each plain clip, whether the method is right."
    pairs = [(m.answers[i], result.clips[i].answer) for i in plain(result)]
    return [a is not None and getattr(a, field) == getattr(true, field) for a, true in pairs]


@pytest.fixture(scope='module')
def result(): return random_result(0)


@pytest.fixture(scope='module')
def written(result, tmp_path_factory):
    out = tmp_path_factory.mktemp('eval'); save_result(result, out); return out


# ---- results.json ----------------------------------------------------------------------------------------------------
def test_numbers_follow_from_the_file(result, written):
    d, true = read_json(written/'results.json'), [c.answer for c in result.clips]
    for key, m in zip(('base_model', 'finetuned_model'), result.models):
        found = {k: abs(v - np.mean(x)) for (k, v), x in zip(d[key].items(), (
            hits(result, m), [tiou(m.answers[i], true[i]) >= .5 for i in plain(result)],
            hits(result, m, 'anticipated_next_operation')))}
        assert list(found) == ['OCA', 'tIoU@0.5', 'AA@1'] and max(found.values()) < 1e-4
    inner = [i for i in plain(result) if (true[i].start_frame, true[i].end_frame) != (0, 124)]
    found = d['methods'][0]['inner_boundary']['mIoU']
    overlap = [tiou(result.models[0].answers[i], true[i]) for i in inner]
    assert found['clips'] == len(inner) and abs(found['mean'] - np.mean(overlap)) < 1e-12
    assert d['methods'][0]['metrics']['AA@1 strict']['clips'] == len(true) - len(plain(result))


def test_tables_of_operations(result):
    m = result.models[0]
    true = [result.clips[i].answer.dominant_operation for i in plain(result)]
    said = [m.answers[i] and m.answers[i].dominant_operation for i in plain(result)]
    for name, row in class_table(result.panel.confusion(m), LOGISTICS).items():
        tp = sum(t == p == name for t, p in zip(true, said)); p, t = said.count(name), true.count(name)
        for k, a, b in (('precision', tp, p), ('recall', tp, t), ('F1', 2*tp, p + t)):
            assert (math.isnan(row[k]) and b == 0) or abs(row[k] - a/b) < 1e-12, (name, k)
        assert row['support'] == t


def test_paired(result, written):
    base, tuned = (hits(result, m) for m in result.models)
    t, = read_json(written/'results.json')['paired']
    assert t['mcnemar']['OCA'] == mcnemar(tuned, base) and t['against'] == 'base'
    d = t['differences']['all clips']['OCA']
    assert abs(d['value'] - (np.mean(tuned) - np.mean(base))) < 1e-12 and d['low'] <= d['value'] <= d['high']


def test_no_nan_and_the_shape_a_card_reads(written):
    def refuse(x): raise AssertionError(f'{x} is no JSON')
    d = json.loads((written/'results.json').read_text(), parse_constant=refuse)
    assert [m['name'] for m in d['methods'][:2]] == ['base', 'fine-tuned'] and len(d['provenance']['adapters']) == 1
    assert all(m['predictions'] == [] for m in d['methods'][2:]) and d['provenance']['command'] and d['title']
    assert all(set(v) == {'mean', 'low', 'high', 'clips'} for m in d['methods'] for v in m['metrics'].values())
    base, *_, blind = d['methods']
    assert blind['metrics']['ECE']['mean'] is None and base['calibration']['ECE'] == base['metrics']['ECE']['mean']
    assert sum(base['calibration']['count']) == base['clips']


# ---- again, and changed ----------------------------------------------------------------------------------------------
def test_the_same_again(result, written, tmp_path):
    again = rescore(written/'results.json')
    save_result(again, tmp_path)
    assert again.to_dict() == read_json(written/'results.json') and not again.changed
    assert all((tmp_path/p.name).read_bytes() == p.read_bytes() for p in written.iterdir())


def test_one_changed_prediction(result, written, tmp_path):
    d = read_json(written/'results.json')
    at = next(i for i, (p, c) in enumerate(zip(d['methods'][1]['predictions'], d['clips']))
              if p['dominant_operation'] not in (None, c['answer']['dominant_operation']) and c['id'][-1] != 'd')
    d['methods'][1]['predictions'][at]['dominant_operation'] = d['clips'][at]['answer']['dominant_operation']
    write_json(tmp_path/'results.json', d); other = rescore(tmp_path/'results.json')
    gain = other.to_dict()['finetuned_model']['OCA'] - d['finetuned_model']['OCA']
    assert abs(gain - 1/d['methods'][1]['clips']) < 2e-4
    assert other.to_dict()['base_model'] == d['base_model'] and other.changed and 'CHANGED BY HAND' in other.title
    save_result(other, tmp_path/'page')
    pages = [(tmp_path/'page'/f'report.{kind}').read_text() for kind in ('md', 'html')]
    assert all('were changed after the run' in p for p in pages)


BROKEN = { # what is done to results.json, and what the error says
    'no provenance': (lambda d: d.pop('provenance'), 'is no evaluation'),
    'no command': (lambda d: d['provenance'].update(command=''), 'without its command'),
    'no shards': (lambda d: d['provenance']['data'].update(shards={}), 'without its shards'),
    'a lost prediction': (lambda d: d['methods'][1]['predictions'].pop(3), 'the clip U0108-S0100-000d is missing'),
    'a lost clip': (lambda d: d['clips'].pop(0), 'the clip U0108-S0100-000a was not asked'),
    'no prediction': (lambda d: d.update(methods=d['methods'][2:]), 'is no evaluation'),
    'an odd operation': (lambda d: d['methods'][0]['predictions'][0].update(dominant_operation='Juggle'), "'Juggle'"),
    'another taxonomy': (lambda d: d.update(taxonomy='openpack'), 'is no operation of openpack'),
    'nothing': (lambda d: d.clear(), 'is no evaluation')}


@pytest.mark.parametrize('what', BROKEN)
def test_broken_file(what, written, tmp_path):
    d = read_json(written/'results.json'); harm, says = BROKEN[what]
    harm(d); write_json(tmp_path/'results.json', d)
    with pytest.raises(BadInput, match=re.escape(says)): rescore(tmp_path/'results.json')


@pytest.mark.parametrize('field', 'command time commit decoder evidence data model adapters training'.split())
def test_no_result_without_provenance(field, result):
    fields = asdict(result.provenance); clips = fields['data']['clips']
    empty = dict(data=dict(clips=clips), model={}, adapters={'x': 'no hash'}, training={})
    with pytest.raises(BadInput): Provenance(**{**fields, field: empty.get(field, '')})
    with pytest.raises(TypeError): Provenance(**{k: v for k, v in fields.items() if k != field})
    for worse in (None, fields):
        with pytest.raises(BadInput, match='without its provenance'): replace(result, provenance=worse)


# ---- whole sessions --------------------------------------------------------------------------------------------------
def windows_of(g, session, taxonomy=LOGISTICS):
    "What a model that knows little says about a session."
    starts = np.arange(0, session.segments[-1].end - 5, 2.); p = g.dirichlet(np.ones(len(NAMES)), len(starts))
    return Windows.from_dict(Windows(taxonomy, session.segments[-1].end, starts, p, dict(zip(NAMES, p[-1]))).to_dict(), taxonomy)


@pytest.fixture(scope='module')
def long(mock):
    "A result on clips and on whole sessions."
    g, r = np.random.default_rng(5), random_result(4); recorded = sessions(mock)[-3:]
    windows = {m.name: [windows_of(g, s) for s in recorded] for m in r.models}
    orders = {'fine-tuned': Order(Grammar.learn([s.segments for s in sessions(mock)[:5]], LOGISTICS), 2.)}
    watched = Watched(recorded, windows, orders); evidence = _evidence(r.clips, r.train, r.models, orders, watched)
    return replace(r, orders=orders, watched=watched, provenance=replace(r.provenance, evidence=evidence))


def test_timelines_follow_from_the_windows_in_the_file(long, tmp_path):
    save_result(long, tmp_path); again = rescore(tmp_path/'results.json'); d = read_json(tmp_path/'results.json')
    assert again.to_dict() == d == json.loads(json.dumps(long.to_dict())) and not again.changed
    w = long.watched; seen, order = w.windows['fine-tuned'], long.orders['fine-tuned']
    read = {'base, windows': [raw_timeline(x.rows(), LOGISTICS, x.duration) for x in w.windows['base']],
            'fine-tuned, windows': [raw_timeline(x.rows(), LOGISTICS, x.duration) for x in seen],
            'fine-tuned, HSMM': [hsmm_timeline(x.rows(order.rounds), order.grammar, x.duration, weight=2.) for x in seen]}
    assert list(d['timelines']['metrics']) == list(read)
    for name, lines in read.items():
        counts = [count_session(list(t.segments), list(t.probabilities), s) for t, s in zip(lines, w.sessions)]
        for metric, value in timeline_metrics(counts).items():
            found = d['timelines']['metrics'][name][metric]['value']
            assert found is None and math.isnan(value) or abs(found - value) < 1e-12
    page, text = (tmp_path/'report.html').read_text(), (tmp_path/'report.md').read_text()
    assert '<h2>Whole sessions</h2>' in page and text.count('](whole-sessions-') == 3 and 'rework recall' in text
    assert 'Whole sessions' in long._repr_markdown_()


def test_a_changed_window_a_lost_session_and_a_file_from_before(long, result, tmp_path):
    def changed(harm):
        d = json.loads(json.dumps(long.to_dict())); harm(d); write_json(tmp_path/'r.json', d); return rescore(tmp_path/'r.json')
    def surer(d):
        for w in d['timelines']['windows']['base']: w['probabilities'] = [[.91, *[.01]*9]]*len(w['starts'])
    other = changed(surer); before, after = (r.watched.reports['base, windows']['frame accuracy']['value'] for r in (long, other))
    assert other.changed and before != after and other.to_dict()['methods'] == long.to_dict()['methods']
    assert changed(lambda d: d['timelines']['sessions'][0]['segments'].pop()).changed
    assert changed(lambda d: d['orders']['fine-tuned'].update(weight=9.)).changed
    for harm in (lambda d: d['timelines']['windows']['base'].pop(), lambda d: d['timelines']['sessions'].pop(),
                 lambda d: d['timelines']['windows']['base'][0]['starts'].pop(), lambda d: d['orders']['fine-tuned'].pop('grammar')):
        with pytest.raises(BadInput, match='is no evaluation'): changed(harm)
    with pytest.raises(BadInput, match='Juggle'): changed(lambda d: d['timelines']['sessions'][1]['segments'][0].__setitem__(0, 'Juggle'))
    old = {k: v for k, v in json.loads(json.dumps(result.to_dict())).items() if k not in ('orders', 'timelines')}
    write_json(tmp_path/'old.json', old); assert not rescore(tmp_path/'old.json').changed


# ---- grammar ---------------------------------------------------------------------------------------------------------
def test_clips_decided_with_grammar(mock, tmp_path):
    "A row that follows from the predictions and the order of work, each clip after what was decided before it."
    long = random_result(4); order, base = Order(Grammar.learn([s.segments for s in sessions(mock)[:5]], LOGISTICS), fusion=.8), long.models[1]
    ruled = replace(long, orders={'fine-tuned': order}); save_result(ruled, tmp_path)
    row, = (m for m in ruled.panel.methods if m.name == 'fine-tuned + grammar'); before = {}
    assert [m.name for m in ruled.panel.models] == ['base', 'fine-tuned', 'fine-tuned + grammar']
    for i in sorted(range(len(long.clips)), key=lambda i: long.clips[i].start):
        c, p, said = long.clips[i], base.predictions[i], row.predictions[i]
        if not p.probabilities: assert said == p; continue
        last, at = before.get(c.session, (None, c.start)); q = fuse(p.probabilities, last, c.start - at, order.grammar, .8)
        best = max(q, key=q.get); before[c.session] = best, c.start
        assert said.answer.dominant_operation == best and abs(said.answer.confidence - q[best]) < 1e-9
        assert (said.answer.start_frame, said.answer.anticipated_next_operation) == (p.answer.start_frame, p.answer.anticipated_next_operation)
    assert row.answers != base.answers and [t['method'] for t in ruled.panel.paired] == ['fine-tuned', 'fine-tuned + grammar']
    again = rescore(tmp_path/'results.json'); d = read_json(tmp_path/'results.json'); off = long.to_dict()
    assert again.to_dict() == d and len(again.models) == 2 and d['finetuned_model'] == off['finetuned_model']
    assert [m['name'] for m in d['methods'] if m['ruled']] == ['fine-tuned + grammar'] and '| fine-tuned + grammar |' in (tmp_path/'report.md').read_text()
    assert not any(m['ruled'] for m in off['methods']) and len(off['methods']) == len(d['methods']) - 1, 'off where it was not asked for'


# ---- reports ---------------------------------------------------------------------------------------------------------
def test_both_reports_say_the_same(result, written):
    page, text = (written/'report.html').read_text(), (written/'report.md').read_text()
    headings = re.findall(r'<h2>(.*?)</h2>', page)
    assert [html.unescape(h) for h in headings] == re.findall(r'^## (.*)', text, re.M) and len(headings) == 8
    pictures = re.findall(r'!\[.*?\]\((.*?)\)', text)
    assert page.count('data:image/png;base64,') == len(pictures) and 'http' not in page and '<script' not in page
    assert all((written/p).read_bytes()[:4] == b'\x89PNG' for p in pictures) and not list(written.glob('.*'))
    cells = lambda row: [c.strip() for c in row.strip('|').split('|')]
    rows = [cells(r) for r in text.splitlines() if r.startswith('|') and not set(r) <= set('|- ')]
    found = [re.findall(r'<t[dh]>(.*?)</t[dh]>', r) for r in re.findall(r'<tr>(.*?)</tr>', page)]
    assert rows == [list(map(html.unescape, r)) for r in found]
    assert result.provenance.evidence in page and result.provenance.evidence in text


def test_markup_in_names_is_text(tmp_path):
    odd = '<img src=x>'
    page = write_report(tmp_path, odd, [(odd, odd, f'pre:{odd}', f'| {odd} |\n| --- |\n| {odd} |')], odd)
    assert odd not in page.read_text() and page.read_text().count(html.escape(odd)) == 8


def test_results_come_last(result, tmp_path, monkeypatch):
    "Where a disk is full, no results.json says that all is there."
    import vlmtemporal.eval as module
    monkeypatch.setattr(module, 'write_text', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError): save_result(result, tmp_path)
    assert not list(tmp_path.glob('*.json')) and not list(tmp_path.glob('report.*'))


# ---- failures --------------------------------------------------------------------------------------------------------
def test_phases_against_counting(mock):
    g = np.random.default_rng(1); recorded = sessions(mock); s = recorded[-1]
    starts = np.round(g.uniform(0, s.segments[-1].end - 5, 40)*25)/25
    clips = [Clip(f'{i}', s.key, float(t), 125, 60., random_answer(g)) for i, t in enumerate(starts)]
    m, words = _trained('m', [random_prediction(g, c) for c in clips]), ['Tape', 'Pack', 'Wrap']
    m = replace(m, answers=[a and replace(a, dominant_operation=str(g.choice(words))) for a in m.answers])
    expected = np.zeros((3, 4), int)
    for c, a in zip(clips, m.answers):
        for frame, x in ((f, x) for f in range(125) for x in s.segments if x.operation == 'Tape'):
            t = c.start + frame/25
            if not x.start - 1e-6 <= t < x.end - 1e-6: continue
            phase = 2 if t >= x.end - .5 - 1e-6 else 1 if t >= (x.start + x.end)/2 - 1e-6 else 0
            named = a is not None and a.start_frame <= frame <= a.end_frame
            expected[phase, words.index(a.dominant_operation) if named else 3] += 1
    found = phases(Panel(LOGISTICS, clips, [m], [s.key]*40), recorded)
    assert len(PHASES) == 3 and (found.counts['m'] == expected).all() and expected.sum() > 50


def test_compare_pairs_only_what_is_alike(result):
    told = [replace(p, answer=c.answer) for p, c in zip(result.models[1].predictions, result.clips)]
    better = replace(result, models=[result.models[0], _trained('told', told)])
    rows = compare({'a': result, 'b': better, 'c': random_result(1)}).rows
    assert rows[0]['differences'] is None is rows[2]['differences'] and rows[1]['metrics']['OCA'] == 1
    d = rows[1]['differences']['OCA']
    assert abs(d['value'] - (1 - rows[0]['metrics']['OCA'])) < 1e-12 and d['low'] > 0 and d['p'] < .05
    assert rows[1]['metrics']['Tape taken for Pack'] == 0


def test_persons_are_drawn_together():
    "Two ids of one human are one group, and the pooled numbers are those of all clips."
    folds = {'U0103': random_result(2, 16, ('U0103', 'U0210')), 'U0108': random_result(3)}; left = LeaveOneOut(folds)
    assert set(left.panel.groups) == {'U0103', 'U0108'} and len(left.panel.clips) == 40
    found = left.panel.reports['fine-tuned']['all clips']['OCA']
    assert abs(found['value'] - np.mean(sum((hits(f, f.models[1]) for f in folds.values()), []))) < 1e-12
    assert 'majority, best span' in left.panel.reports
    assert len(left.to_dict()['methods']) == len(folds['U0103'].panel.methods)


# ---- with a model ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def tiny():
    return TrainConfig(max_steps=2, micro_batch=1, accumulation=1)


def test_lopo(mock, tiny, tmp_path, monkeypatch):
    import vlmtemporal.eval as module
    def run(clips=1, people=('U0101', 'U0108')):
        return leave_one_person_out(mock, tmp_path, 'twin', tiny, clips, 2, people, dict(sampler='uniform'))
    done = run()
    for who, f in done.folds.items():
        taught, = f.provenance.training.values()
        assert who not in taught['people'] and {c.session[:5] for c in f.clips} == {who} and len(plain(f)) == 1
    assert all((tmp_path/name).exists() for name in ('lopo.json', 'report.md', 'report.html'))
    # one fold is done, the other was killed between its training and its result
    shutil.rmtree(tmp_path/'U0108'/'shards'); (tmp_path/'U0101'/'results.json').unlink()
    monkeypatch.setattr(module, 'fit', lambda *_, **__: pytest.fail('it trains again'))
    again = run()
    assert not (tmp_path/'U0108'/'shards').exists() and again.folds.keys() == done.folds.keys()
    assert all(again.folds[w].models[1].answers == f.models[1].answers for w, f in done.folds.items())
    with pytest.raises(BadInput, match='another clips'): run(clips=2)
    with pytest.raises(BadInput, match='unknown person'): run(people=['U0999'])


def test_failures(mock, tiny, tmp_path):
    half = Variant('half of the clips', share=.5); specified, _, second, _, _, ruled = REMEDIES
    table = failures(mock, tmp_path, 'twin', tiny, 1, 4, (specified, second, half, ruled), options=dict(sampler='uniform'))
    assert [r['variant'] for r in table.rows] == ['as specified', 'preceding second', 'half of the clips', 'as specified + grammar']
    assert all(r['differences'] for r in table.rows[1:]), 'all are asked about the same clips'
    assert [len(rescore(tmp_path/n/'results.json').train) for n in ('as-specified', 'half-of-the-clips')] == [4, 2]
    led = tmp_path/'preceding-second'
    assert {find_split(led/'shards', s).index['lead'] for s in ('train', 'test')} == {1} == {read_json(led/'run'/'adapter'/'vlmtemporal.json')['lead']}
    d = read_json(tmp_path/'failures.json')
    assert len(d['rows']) == 4 and set(d['provenance']) == {'as specified', 'preceding second', 'half of the clips'}
    assert 'as specified + grammar' in (tmp_path/'report.md').read_text()


def test_runs_of_a_variant_share_its_shards_and_differ_in_their_seed(mock, tiny, tmp_path):
    how = dict(clips=2, max_clips=4, options=dict(sampler='entropy'))
    table = failures(mock, tmp_path, 'twin', tiny, variants=SAMPLERS[:1], seeds=2, **how); row, = table.rows
    place = tmp_path/'uniform'; first, second = (rescore(d/'results.json') for d in (place, place/'seed-1'))
    assert find_split(place/'shards', 'test').index['sampler'] == 'uniform' and not (place/'seed-1'/'shards').exists()
    assert [read_json(d/'run'/'adapter'/'vlmtemporal.json')['config']['seed'] for d in (place, place/'seed-1')] == [tiny.seed, tiny.seed + 1]
    for n in ('OCA', 'mIoU, inner boundary'): assert [m[n] for m in row['runs']] == [compare({'one': r}).rows[0]['metrics'][n] for r in (first, second)]
    assert row['metrics']['mIoU, inner boundary'] == pytest.approx(np.mean([r['mIoU, inner boundary'] for r in row['runs']]))
    assert [len(p) for p in read_json(tmp_path/'failures.json')['provenance'].values()] == [2]
    with pytest.raises(BadInput, match='different clips'): compare({'mixed': [first, replace(second, clips=second.clips[1:], models=[
        replace(m, answers=m.answers[1:], predictions=m.predictions[1:]) for m in second.models], provenance=replace(
        second.provenance, data=second.provenance.data | dict(clips=second.provenance.data['clips'][1:])))]})


def test_a_first_variant_that_cannot_be_first(mock, tmp_path):
    for variants, seeds in (((), 1), (REMEDIES[5:], 1), (REMEDIES[3:4], 1), (SAMPLERS, 0)):
        with pytest.raises(BadInput): failures(mock, tmp_path/'out', variants=variants, seeds=seeds)
    assert not (tmp_path/'out').exists()


def test_remedies_are_what_the_specification_proposes():
    assert [v.name for v in REMEDIES] == ['as specified', 'Tape/Pack within 0.5 s', 'preceding second', 'half of the clips', 'sliding clips too', 'as specified + grammar']
    assert REMEDIES[0] == Variant('as specified') and REMEDIES[1].build == dict(hard_jitter=.5) and REMEDIES[2].both == dict(lead=1.)


def test_a_model_is_asked_as_it_was_trained(mock, shards, tiny, tmp_path, video):
    "An adapter that saw the second before sees it again, here and in use; one that did not is not shown it."
    for who in ('U0102', 'U0108'): shutil.copytree(mock/who, tmp_path/'two'/who)
    build(tmp_path/'two', tmp_path/'led', sampler='uniform', lead=1.)
    train = find_split(tmp_path/'led', 'train'); pictures = [len(train.meta(i)['indices']) for i in range(len(train))]
    assert set(pictures) >= {8, 10}, 'a batch of both kinds'
    mixed = make_trainer(load_model('twin'), train, tmp_path/'mixed', replace(tiny, micro_batch=2), rows=[pictures.index(8), pictures.index(10)])
    mixed.train(); assert math.isfinite(mixed.state.log_history[0]['loss'])
    led = Path(fit(tmp_path/'led', tmp_path/'run', config=tiny).adapter); engine = Engine('twin', led)
    assert engine.sample(video, 20.).indices.tolist()[:3] == [-19, -7, 7] and len(engine.sample(video).indices) == 8
    assert engine.predict(video, 20.).answer and engine.analyze(video, stride=30.).windows > 2
    with pytest.raises(BadInput, match='with a lead of 1 s, the shards have 0 s'): evaluate(shards, 'twin', [led], 1)
    alone = Path(fit(shards, tmp_path/'alone', config=tiny).adapter)
    shown = []; import vlmtemporal.eval as module; predict = module.predict_all
    def seen(loaded, examples, *rest, **named): shown.append({len(e.indices) for e in examples}); return predict(loaded, examples, *rest, **named)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, 'predict_all', seen); evaluate(tmp_path/'led', 'twin', [led, alone], 2)
    assert shown[0] == shown[1] and 10 in shown[0] and shown[2] == {8}


def test_protocol_needs_its_clips(shards, tmp_path):
    "Too few clips; one of the first whose frames were lacking when the shards were built; a shard that is gone."
    test = find_split(shards, 'test'); whole = evaluation_set(test, 0); n = sum(e.kind == 'boundary' for e in whole)
    assert [e.key for e in whole] == sorted(test.keys) and n > 2
    with pytest.raises(BadInput, match=f'holds {n} of {n + 1}'): evaluation_set(test, n + 1)
    first = next(e.key for e in whole if e.kind == 'boundary'); before = first[:-4] + '000a'
    members = ((k, test.members(i)) for i, k in enumerate(test.keys) if k != before)
    about = {k: v for k, v in test.index.items() if k not in ('format', 'examples', 'shards', 'checksum')}
    write_shards(tmp_path/'test', members, about | dict(lacking={first.rsplit('-', 1)[0]: [before]}))
    with pytest.raises(BadInput, match=before): evaluation_set(find_split(tmp_path, 'test'), 2)
    shutil.copytree(shards/'test', tmp_path/'gone'); (tmp_path/'gone'/'shard-000000.tar').unlink()
    with pytest.raises(BadInput, match='is missing'): evaluate(tmp_path/'gone')


def test_refused_before_anything_is_predicted(shards, tiny, tmp_path, monkeypatch):
    import vlmtemporal.eval as module
    monkeypatch.setattr(module, 'predict_all', lambda *_, **__: pytest.fail('it predicts'))
    about = dict(model='twin', taxonomy='logistics', people=['U0101'], config={})
    from vlmtemporal.backbones import _fingerprint, model_config
    about['fingerprint'] = _fingerprint(model_config('twin')[0])
    def adapter(name, **change):
        (tmp_path/name).mkdir(); (tmp_path/name/'adapter_model.safetensors').touch()
        write_json(tmp_path/name/'vlmtemporal.json', about | change)
        return tmp_path/name
    for a, says in ((adapter('base', fingerprint='x', model='Qwen/other'), 'was trained on Qwen/other, not on twin'),
                    (adapter('words', taxonomy='openpack'), 'speaks the taxonomy openpack'),
                    (adapter('leak', people=['U0203']), 'was trained on U0108')):
        with pytest.raises(BadInput, match=says): evaluate(shards, 'twin', [a], 1)
    shutil.copytree(shards/'test', tmp_path/'two'/'test')
    write_shards(tmp_path/'two'/'train', [('a', find_split(shards, 'train').members(0))],
                 dict(split='train', taxonomy='openpack', sampler='uniform'))
    with pytest.raises(BadInput, match='train speaks the taxonomy openpack, test logistics'):
        evaluate(tmp_path/'two', 'twin', clips=1)


def test_sessions_are_watched_as_in_use(shards, mock, tiny, tmp_path, video, monkeypatch):
    "What the report says of a session is what `analyze` says of its video; from the file come the same numbers."
    import vlmtemporal.eval as module
    from typer.testing import CliRunner
    from vlmtemporal.cli import app
    monkeypatch.setattr(module, 'watch', partial(module.watch, stride=5.)); adapter = Path(fit(shards, tmp_path/'run', config=tiny).adapter)
    said = CliRunner().invoke(app, ['eval', str(shards), str(tmp_path/'eval'), '--adapter', str(adapter), '--clips', '1', '--root', str(mock),
                                    '--sessions', '1', '--grammar'], catch_exceptions=False)
    assert said.exit_code == 0 and 'Whole sessions' in said.output and '+ grammar |' in said.output
    r = rescore(tmp_path/'eval'/'results.json'); assert r.to_dict() == read_json(tmp_path/'eval'/'results.json')
    assert [s.key for s in r.watched.sessions] == ['U0108-S0100'] == list(r.provenance.data['sessions'])
    assert len(r.watched.timelines) == 4 and r.orders.keys() == r.watched.windows.keys()
    found = Engine('twin', adapter).analyze(video, stride=5.); name = r.models[1].name
    for line, mine in ((found.raw, f'{name}, windows'), (found.timeline, f'{name}, HSMM')):
        a, b = line.segments, r.watched.timelines[mine][0].segments
        assert [s.operation for s in a] == [s.operation for s in b] and np.allclose([s.end for s in a], [s.end for s in b], atol=.41)
    shutil.copytree(mock/'U0101', tmp_path/'nobody'/'U0101')
    with pytest.raises(BadInput, match='records nobody of the test split'): evaluate(shards, clips=1, root=tmp_path/'nobody')


def test_eval_from_results(cli, written, tmp_path):
    code, out, _ = cli('eval', written/'results.json', tmp_path/'again')
    assert code == 0 and 'inner boundary' in out
    assert read_json(tmp_path/'again'/'results.json') == read_json(written/'results.json')
    (tmp_path/'none.json').write_text('{}'); code, out, err = cli('eval', tmp_path/'none.json', tmp_path/'x')
    assert code == 2 and 'is no evaluation' in err and not (tmp_path/'x').exists()


def test_runners_refuse_before_they_write(cli, mock, tmp_path):
    for args, says in ((('lopo', '--person', 'U0999'), 'unknown person U0999'),
                       (('failures', '--set', 'lr=1'), "unknown setting 'lr'"), (('failures', '--compare', 'cameras'), "nothing is called 'cameras'")):
        code, out, err = cli(args[0], mock, tmp_path/'out', *args[1:])
        assert code == 2 and out == '' and says in err and not (tmp_path/'out').exists()


def test_calibrated_on_the_validation_person(shards, mock, tmp_path):
    "Temperature and timeline weight are kept beside the adapter; whoever loads it answers with them."
    adapter = Path(fit(shards, tmp_path/'run', config=TrainConfig(max_steps=1, micro_batch=2, accumulation=1)).adapter)
    made = calibrate(shards, adapter, clips=4, root=mock); engine = Engine('twin', adapter)
    assert made.people == ('U0107',) and made.nll_after <= made.nll_before and made.weight in (.25, .5, .75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16)
    assert engine.loaded.temperature == made.temperature and (engine.order.weight, engine.order.rounds) == (made.weight, made.rounds) and made.rounds in (1, 2, 4, ROUNDS)
    assert made.fusion in [i/10 for i in range(21)]
    for fusion, told in ((made.fusion, made.fusion), (0., 0.), (None, FUSION)): # as it is, off, and as if from before
        write_json(adapter/'calibration.json', read_json(adapter/'calibration.json') | dict(fusion=fusion))
        r = evaluate(shards, 'twin', [adapter], 2, grammar=True); order, = r.orders.values()
        assert order.fusion == told and [m.name for m in r.panel.models][2:] == [f'{r.models[1].name} + grammar']
        if not told: assert [a.dominant_operation for a in r.ruled[0].answers] == [a.dominant_operation for a in r.models[1].answers]
    (adapter/'grammar.json').unlink(); assert not evaluate(shards, 'twin', [adapter], 1, grammar=True).orders
    with pytest.raises(BadInput, match='adapter was trained on|trained on'): calibrate(shards/'train', adapter)
    (adapter/'calibration.json').write_text('{"temperature": -1}')
    with pytest.raises(BadInput, match='holds no temperature'): load_model('twin', adapter)
