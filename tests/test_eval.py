"Evaluation: numbers that follow from predictions, reports from results, and what no evaluation may be made of."
import html, json, math, re, shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from vlmtemporal.adapters import Adapter
from vlmtemporal.backbones import bundled_model
from vlmtemporal.findings import terms_in
from vlmtemporal.frames import FrameSpec
from vlmtemporal.illustrations import clip_shown
from vlmtemporal.loading import load_model
from vlmtemporal.basics import BadInput, json_hash, read_json, write_json
from vlmtemporal.clips import Answer, Clip, session_clips
from vlmtemporal.dataset import build
from vlmtemporal.decode import Prediction
from vlmtemporal.engine import Engine
from vlmtemporal import evaluation, experiments, report
from vlmtemporal.calibration import calibrate
from vlmtemporal.evaluation import evaluate, evaluation_set
from vlmtemporal.experiments import REMEDIES, SAMPLERS, LeaveOneOut, Variant, ablate, compare, leave_one_person_out
from vlmtemporal.metrics import count_session, timeline_metrics, tiou
from vlmtemporal.openpack import sessions
from vlmtemporal.operations import LOGISTICS, Grammar
from vlmtemporal.report import PHASES, Code, Section, Text, paired_table, phases, save_result, write_report
from vlmtemporal.results import (MethodComparison, MethodPredictions, Provenance, Result, SessionPredictions, Table,
                                 anticipation_table, class_table, distinct_methods, evidence_hash, rescore, score_table)
from vlmtemporal.shards import find_split, write_shards, sessions_root
from vlmtemporal.timeline import (EM_ITERATIONS, GRAMMAR_WEIGHT, TimelinePrior, WindowPredictions, apply_grammar,
                                  decode_timeline, raw_timeline)
from vlmtemporal.train import TrainConfig, fit
from vlmtemporal.trainer import make_trainer

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
                      versions={}, evidence=evidence_hash(clips, train, models))


def random_result(seed, n=24, who=('U0108',)):
    g = np.random.default_rng(seed)
    def clip(i):
        session = f'{who[i % len(who)]}-S0100'
        return Clip(f'{session}-{i//4:03d}{"abcd"[i % 4]}', session, 5.*i, 125, 150. if i % 4 == 3 else 60.,
                    random_answer(g) if i % 3 else Answer('Tape', 0, 124, 'Pack'))
    clips = [clip(i) for i in range(n)]
    train = [random_answer(g) for _ in range(30)]
    models = [MethodPredictions.of(name, [random_prediction(g, c) for c in clips]) for name in ('base', 'fine-tuned')]
    return Result(LOGISTICS, clips, train, models, source(clips, train, models))


def plain(result):
    "Positions of the clips that are not for AA@1 strict alone."
    return [i for i, c in enumerate(result.clips) if c.kind != 'anticipation']


def names_of(m):
    "The operations that a method answers."
    return [a.dominant_operation for a in m.answers]


def hits(result, m, field='dominant_operation'):
    "For each plain clip, whether the method is right."
    pairs = [(m.answers[i], result.clips[i].answer) for i in plain(result)]
    return [a is not None and getattr(a, field) == getattr(true, field) for a, true in pairs]


@pytest.fixture(scope='module')
def result(): return random_result(0)


@pytest.fixture(scope='module')
def written(result, tmp_path_factory):
    out = tmp_path_factory.mktemp('eval')
    save_result(result, out)
    return out


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
    for name, row in class_table(result.comparison.confusion(m), LOGISTICS).items():
        tp = sum(t == p == name for t, p in zip(true, said))
        p, t = said.count(name), true.count(name)
        for k, a, b in (('precision', tp, p), ('recall', tp, t), ('F1', 2*tp, p + t)):
            assert (math.isnan(row[k]) and b == 0) or abs(row[k] - a/b) < 1e-12, (name, k)
        assert row['support'] == t


def test_paired(result, written):
    base, tuned = (hits(result, m) for m in result.models)
    t, = read_json(written/'results.json')['paired']
    assert 'mcnemar' not in t and t['against'] == 'base'
    d = t['differences']['all clips']['OCA']
    assert abs(d['value'] - (np.mean(tuned) - np.mean(base))) < 1e-12
    assert d['low'] is None and d['p'] == 1, 'one session has neither'


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
    write_json(tmp_path/'results.json', d)
    other = rescore(tmp_path/'results.json')
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
    'clips of no frames': (lambda d: [c.update(n_frames=0) for c in d['clips']], 'is no evaluation'),
    'a clip without a start': (lambda d: d['clips'][0].update(start=None), 'is no evaluation'),
    'frames beyond number': (lambda d: d['clips'][0].update(n_frames=10**400), 'is no evaluation'),
    'a word as probability': (lambda d: d['methods'][0]['predictions'][0]['probabilities'].update(Tape='much'),
                              'is no evaluation'),
    'no probabilities': (lambda d: d['methods'][1]['predictions'][0].update(probabilities=None), 'is no evaluation'),
    'a word as frame': (lambda d: d['train'][0]['temporal_segment'].update(end_frame='x'), 'is no evaluation'),
    'nothing': (lambda d: d.clear(), 'is no evaluation')}


@pytest.mark.parametrize('what', BROKEN)
def test_broken_file(what, written, tmp_path):
    d = read_json(written/'results.json')
    harm, says = BROKEN[what]
    harm(d)
    write_json(tmp_path/'results.json', d)
    with pytest.raises(BadInput, match=re.escape(says)): rescore(tmp_path/'results.json')


@pytest.mark.parametrize('field', ['command', 'time', 'commit', 'decoder', 'evidence', 'data', 'model', 'adapters',
                                   'training'])
def test_no_result_without_provenance(field, result):
    fields = asdict(result.provenance)
    clips = fields['data']['clips']
    empty = dict(data=dict(clips=clips), model={}, adapters={'x': 'no hash'}, training={})
    with pytest.raises(BadInput): Provenance(**{**fields, field: empty.get(field, '')})
    with pytest.raises(TypeError): Provenance(**{k: v for k, v in fields.items() if k != field})
    for worse in (None, fields):
        with pytest.raises(BadInput, match='without its provenance'): replace(result, provenance=worse)


# ---- whole sessions --------------------------------------------------------------------------------------------------
def windows_of(g, session, taxonomy=LOGISTICS):
    "What a model that knows little says about a session."
    starts = np.arange(0, session.segments[-1].end - 5, 2.)
    p = g.dirichlet(np.ones(len(NAMES)), len(starts))
    found = WindowPredictions(taxonomy, session.segments[-1].end, starts, p, dict(zip(NAMES, p[-1])))
    return WindowPredictions.from_dict(found.to_dict(), taxonomy)


@pytest.fixture(scope='module')
def long(mock):
    "A result on clips and on whole sessions."
    g, r = np.random.default_rng(5), random_result(4)
    recorded = sessions(mock)[-3:]
    windows = {m.name: [windows_of(g, s) for s in recorded] for m in r.models}
    priors = {'fine-tuned': TimelinePrior(Grammar.learn([s.segments for s in sessions(mock)[:5]], LOGISTICS), 2.)}
    asked = SessionPredictions(recorded, windows, priors)
    evidence = evidence_hash(r.clips, r.train, r.models, priors, asked)
    return replace(r, timeline_priors=priors, sessions=asked, provenance=replace(r.provenance, evidence=evidence))


def test_view_takes_the_file(long, tmp_path):
    "The timelines of an evaluation stand below the labels; one without sessions is refused."
    from vlmtemporal.cli import _lines_of_result
    save_result(long, tmp_path)
    lines = _lines_of_result(tmp_path/'results.json')
    assert list(lines) == [s.key for s in long.sessions.sessions]
    for i, some in enumerate(lines.values()):
        assert [line.name for line in some] == list(long.sessions.timelines)
        assert [list(line.segments) for line in some] == [list(t[i].segments) for t in long.sessions.timelines.values()]
    save_result(random_result(4), tmp_path/'clips')
    with pytest.raises(BadInput, match='holds no timeline'): _lines_of_result(tmp_path/'clips'/'results.json')


def test_timelines_follow_from_the_windows_in_the_file(long, tmp_path):
    save_result(long, tmp_path)
    again = rescore(tmp_path/'results.json')
    d = read_json(tmp_path/'results.json')
    assert again.to_dict() == d == json.loads(json.dumps(long.to_dict())) and not again.changed
    w = long.sessions
    windows, prior = w.windows['fine-tuned'], long.timeline_priors['fine-tuned']
    def heeding(w):
        return decode_timeline(w.rows(prior.em_iterations), prior.grammar, w.duration, emission_scale=2.)
    read = {'base, windows': [raw_timeline(x.rows(), LOGISTICS, x.duration) for x in w.windows['base']],
            'fine-tuned, windows': [raw_timeline(x.rows(), LOGISTICS, x.duration) for x in windows],
            'fine-tuned, HSMM': [heeding(x) for x in windows]}
    assert list(d['timelines']['metrics']) == list(read)
    for name, lines in read.items():
        counts = [count_session(list(t.segments), list(t.probabilities), s) for t, s in zip(lines, w.sessions)]
        for metric, value in timeline_metrics(counts).items():
            found = d['timelines']['metrics'][name][metric]['value']
            assert found is None and math.isnan(value) or abs(found - value) < 1e-12
    page, text = (tmp_path/'report.html').read_text(), (tmp_path/'report.md').read_text()
    assert '<h2>Whole sessions</h2>' in page and text.count('](whole-sessions-') == 3 and 'rework recall' in text
    assert 'Whole sessions' in long._repr_markdown_()


def test_a_changed_window_and_a_lost_session(long, tmp_path):
    def changed(harm):
        d = json.loads(json.dumps(long.to_dict()))
        harm(d)
        write_json(tmp_path/'r.json', d)
        return rescore(tmp_path/'r.json')
    def surer(d):
        for w in d['timelines']['windows']['base']: w['probabilities'] = [[.91, *[.01]*9]]*len(w['starts'])
    other = changed(surer)
    before, after = (r.sessions.reports['base, windows']['frame accuracy']['value'] for r in (long, other))
    assert other.changed and before != after and other.to_dict()['methods'] == long.to_dict()['methods']
    assert changed(lambda d: d['timelines']['sessions'][0]['segments'].pop()).changed
    assert changed(lambda d: d['timeline_priors']['fine-tuned'].update(emission_scale=9.)).changed
    for harm in (lambda d: d['timelines']['windows']['base'].pop(), lambda d: d['timelines']['sessions'].pop(),
                 lambda d: d['timelines']['windows']['base'][0]['starts'].pop(),
                 lambda d: d['timelines'].update(sessions=[], windows={'base': []}),
                 lambda d: d['timelines'].update(sessions=[]), lambda d: d['timelines'].update(windows={}),
                 lambda d: d['timelines']['sessions'][0].update(start=None),
                 lambda d: d['timelines']['windows']['base'][0]['next'].update(Tape='much'),
                 lambda d: d['timelines']['windows']['base'][0].update(duration=None),
                 lambda d: d['timeline_priors']['fine-tuned'].update(em_iterations=1.5),
                 lambda d: d['timeline_priors']['fine-tuned'].pop('grammar')):
        with pytest.raises(BadInput, match='is no evaluation'): changed(harm)
    with pytest.raises(BadInput, match='Juggle'):
        changed(lambda d: d['timelines']['sessions'][1]['segments'][0].__setitem__(0, 'Juggle'))


def first_format(result):
    "A result as files had it before they had a format, with evidence of its own."
    d = json.loads(json.dumps(result.to_dict()))
    old = {'base (tiny)': 'base (twin)', 'tiny adapter': 'twin adapter'}
    def renamed(named): return {old.get(name, name): value for name, value in named.items()}
    for m in d['methods']: m.update(name=old.get(m['name'], m['name']), ruled=m.pop('grammar_rescored'))
    priors, timelines = renamed(d.pop('timeline_priors')), d.pop('timelines')
    del d['format'], d['provenance']['migrated_from']
    asked = [m for m in d['methods'] if m['predictions'] and not m['ruled']]
    observed = [d['clips'], d['train'], [[m['name'], m['predictions']] for m in asked]]
    if priors or timelines:
        d |= dict(orders=priors, timelines=timelines and timelines | dict(windows=renamed(timelines['windows'])))
        observed += [priors, timelines and dict(sessions=timelines['sessions'], windows=d['timelines']['windows'])]
    d['provenance']['evidence'] = json_hash(observed)
    return d


@pytest.mark.parametrize('which', ['clips alone', 'clips and sessions'])
def test_a_file_of_the_first_format(which, long, result):
    "Its evidence is checked as it was written; then its names are those of today."
    today = result if which == 'clips alone' else long
    d = first_format(today)
    read = Result.from_dict(d)
    assert not read.changed and read.provenance.migrated_from == d['provenance']['evidence']
    again = read.to_dict()
    expected = json.loads(json.dumps(today.to_dict()))
    assert again | dict(provenance=None) == expected | dict(provenance=None)
    assert not Result.from_dict(again).changed
    d['methods'][1]['predictions'][2]['temporal_segment']['start_frame'] = 0
    assert Result.from_dict(d).changed and Result.from_dict(Result.from_dict(d).to_dict()).changed


def test_names_of_the_model_that_ships_in_files_of_the_first_format(result):
    names = {'base': 'base (tiny)', 'fine-tuned': 'tiny adapter'}
    models = [replace(m, name=names[m.name]) for m in result.models]
    source = replace(result.provenance, evidence=evidence_hash(result.clips, result.train, models))
    d = first_format(replace(result, models=models, provenance=source))
    assert [m['name'] for m in d['methods'][:2]] == ['base (twin)', 'twin adapter']
    read = Result.from_dict(d)
    assert [m.name for m in read.models] == ['base (tiny)', 'tiny adapter'] and not read.changed
    with pytest.raises(BadInput, match='format 4'): Result.from_dict(d | dict(format=4))


SHIPPED = { # file -> OCA, mIoU and AA@1 of its second model
    '101.json.gz': (0.9429097606, 0.9213250759, 0.8066298343),
    '102.json.gz': (0.9470588235, 0.9310678068, 0.8137254902),
    '103.json.gz': (0.9372693727, 0.9157535023, 0.8191881919),
    '201.json.gz': (0.9270833333, 0.9231111095, 0.7916666667),
    '202.json.gz': (0.9555555556, 0.9387756303, 0.8444444444),
    '203.json.gz': (0.9479166667, 0.9521257986, 0.8020833333),
    '204.json.gz': (0.8888888889, 0.9163911246, 0.8181818182),
    '205.json.gz': (0.9313725490, 0.9348710807, 0.7450980392),
    '206.json.gz': (0.9230769231, 0.9348592610, 0.7596153846),
    '207.json.gz': (0.9047619048, 0.8855293739, 0.8095238095),
    '208.json.gz': (0.9444444444, 0.9058991360, 0.7685185185),
    '209.json.gz': (0.9696969697, 0.9210290536, 0.7777777778),
    '210.json.gz': (0.8888888889, 0.9130305179, 0.7962962963),
    '211.json.gz': (0.9047619048, 0.9301424531, 0.8380952381),
    '212.json.gz': (0.9523809524, 0.9541804355, 0.8285714286),
    'free-101.json.gz': (0.9429097606, 0.9015971317, 0.7937384899),
    'sampler-entropy-0.json.gz': (0.8305709024, 0.8267021642, 0.6813996317),
    'sampler-entropy-1.json.gz': (0.8342541436, 0.8323788347, 0.6537753223),
    'sampler-entropy-2.json.gz': (0.8526703499, 0.8388512963, 0.6574585635),
    'sampler-novelty-inverse-0.json.gz': (0.8858195212, 0.9235197243, 0.7348066298),
    'sampler-novelty-inverse-1.json.gz': (0.8821362799, 0.9242381709, 0.6979742173),
    'sampler-novelty-inverse-2.json.gz': (0.8987108656, 0.9230722087, 0.6924493554),
    'sampler-uniform-0.json.gz': (0.8895027624, 0.9167545442, 0.7605893186),
    'sampler-uniform-1.json.gz': (0.8968692449, 0.9068390192, 0.7145488029),
    'sampler-uniform-2.json.gz': (0.9244935543, 0.9127669537, 0.7458563536),
}


def test_all_that_ships_is_pinned():
    names = {p.name for p in (bundled_model()/'results').glob('*.json.gz')}
    others = 'remedies', 'robustness', 'robustness-first', 'robustness-second'
    assert names == {*SHIPPED, *(f'{name}.json.gz' for name in others)}


@pytest.mark.parametrize('name', SHIPPED)
def test_what_ships_is_unchanged(name):
    r = rescore(bundled_model()/'results'/name)
    assert not r.changed and (r.provenance.migrated_from or name.startswith('2')) # the newest were written as they are
    assert [m.name for m in r.models] == ['base (tiny)', 'fine-tuned (run)' if 'sampler' in name else 'tiny adapter']
    found = r.comparison.scores(r.models[1]).metrics()
    for metric, value in zip(('OCA', 'mIoU', 'AA@1'), SHIPPED[name], strict=True):
        assert found[metric] == pytest.approx(value, rel=1e-9)


# ---- grammar ---------------------------------------------------------------------------------------------------------
def test_clips_decided_with_grammar(mock, tmp_path):
    "A row that follows from the predictions and the order of work, each clip after what was decided before it."
    plain_result = random_result(4)
    base = plain_result.models[1]
    prior = TimelinePrior(Grammar.learn([s.segments for s in sessions(mock)[:5]], LOGISTICS), grammar_weight=.8)
    result = replace(plain_result, timeline_priors={'fine-tuned': prior})
    save_result(result, tmp_path)
    row, = (m for m in result.comparison.methods if m.name == 'fine-tuned + grammar')
    before = {}
    assert [m.name for m in result.comparison.models] == ['base', 'fine-tuned', 'fine-tuned + grammar']
    for i in sorted(range(len(result.clips)), key=lambda i: result.clips[i].start):
        c, p, found = result.clips[i], base.predictions[i], row.predictions[i]
        if not p.probabilities:
            assert found == p
            continue
        last, at = before.get(c.session, (None, c.start))
        q = apply_grammar(p.probabilities, last, c.start - at, prior.grammar, .8)
        best = max(q, key=q.get)
        before[c.session] = best, c.start
        assert found.answer.dominant_operation == best and abs(found.answer.confidence - q[best]) < 1e-9
        for field in ('start_frame', 'end_frame', 'anticipated_next_operation'):
            assert getattr(found.answer, field) == getattr(p.answer, field)
    assert row.answers != base.answers
    assert [t['method'] for t in result.comparison.paired] == ['fine-tuned', 'fine-tuned + grammar']
    again = rescore(tmp_path/'results.json')
    d, off = read_json(tmp_path/'results.json'), plain_result.to_dict()
    assert again.to_dict() == d and len(again.models) == 2 and d['finetuned_model'] == off['finetuned_model']
    assert [m['name'] for m in d['methods'] if m['grammar_rescored']] == ['fine-tuned + grammar']
    assert '| fine-tuned + grammar |' in (tmp_path/'report.md').read_text()
    assert not any(m['grammar_rescored'] for m in off['methods']), 'off where it was not asked for'
    assert len(off['methods']) == len(d['methods']) - 1


# ---- reports ---------------------------------------------------------------------------------------------------------
def test_both_reports_say_the_same(result, written):
    page, text = (written/'report.html').read_text(), (written/'report.md').read_text()
    headings = re.findall(r'<h2>(.*?)</h2>', page)
    assert [html.unescape(h) for h in headings] == re.findall(r'^## (.*)', text, re.M) and len(headings) == 6
    pictures = re.findall(r'!\[.*?\]\((.*?)\)', text)
    assert page.count('src="data:image/png;base64,') == len(pictures) and 'http' not in page and '<script' not in page
    assert all((written/p).read_bytes()[:4] == b'\x89PNG' for p in pictures) and not list(written.glob('.*'))
    cells = lambda row: [c.strip() for c in row.strip('|').split('|')]
    rows = [cells(r) for r in text.splitlines() if r.startswith('|') and not set(r) <= set('|- ')]
    found = [re.findall(r'<t[dh]>(.*?)</t[dh]>', r) for r in re.findall(r'<tr>(.*?)</tr>', page)]
    assert rows == [list(map(html.unescape, r)) for r in found]
    assert result.provenance.evidence in page and result.provenance.evidence in text


@pytest.fixture(scope='module')
def long_written(long, tmp_path_factory):
    out = tmp_path_factory.mktemp('long')
    save_result(long, out)
    return out


def test_the_first_screen_answers(long, long_written):
    "Three answers and two pictures, in words that need no table; all else is folded, where numbers come from last."
    page = (long_written/'report.html').read_text()
    first, *folded = page.split('<details>')
    questions = [question for question, _ in long.comparison.findings.sentences]
    assert re.findall(r'<b>(.*?)</b>', first) == questions and len(questions) == 3
    assert first.count('<img') == 2 == first.count('media="(max-width')
    assert '<table' not in first and not terms_in(first)
    titles = [html.unescape(re.search('<h2>(.*?)</h2>', part)[1]) for part in folded]
    assert titles[:2] == ['Every method, and what a guess scores', 'Whole sessions']
    assert titles[-1] == 'Where these numbers come from' and '<h2>' not in first
    figure, table = (folded[0].index(tag) for tag in ('<img', '<table'))
    assert figure < table, 'a figure comes before a table'


def test_abbreviations_are_spelled_out_where_they_are_first_met(long_written):
    text = (long_written/'report.md').read_text().partition('## Where these numbers come from')[0]
    met = terms_in(text)
    assert len(met) > 6 and {'OCA', 'AA@1', 'tIoU', 'mIoU', 'F1@50', 'HSMM'} <= met.keys()
    for term in met:
        explained = re.search(rf'\*\*{re.escape(term)}\*\*: ', text)
        before = re.sub(r'\*\*.*', '', text[:explained.start()])
        assert text.count(explained[0]) == 1 and term not in terms_in(before)


def with_answers(r, answers):
    "The same result, whose adapter gives these answers."
    told = [replace(p, answer=a, probabilities={}) for p, a in zip(r.models[1].predictions, answers)]
    models = [r.models[0], MethodPredictions.of(r.models[1].name, told)]
    return replace(r, models=models, provenance=source(r.clips, r.train, models))


def first_answers(r): return [answer for _, answer in r.comparison.findings.sentences]


def test_the_answer_is_yes_no_or_open():
    "Of six people, each of whom has sessions of their own; then of one, where there is no interval."
    many = random_result(3, 96, tuple(f'U{i:04d}' for i in range(300, 306)))
    true, base = [c.answer for c in many.clips], many.models[0].answers
    right = with_answers(many, true)
    assert first_answers(right)[0].startswith('Yes: it names the operation of 100% of 72 clips, the base of ')
    assert first_answers(right)[1].startswith('In half of the ') and 'within 0.0 frames' in first_answers(right)[1]
    assert 'took no operation for another one here' in first_answers(right)[2]
    assert 'other kinds of work' in first_answers(right)[2]
    assert right.comparison.findings.note.endswith('In brackets: 95% intervals over 6 people.')
    assert first_answers(with_answers(many, base))[0].startswith('No: '), 'an adapter that changes nothing'
    mute = first_answers(with_answers(many, [None]*96))
    assert mute[0].startswith('No: ') and '100% of its answers could not be read' in mute[2]
    better = with_answers(many, [t if i % 7 == 0 else b for i, (t, b) in enumerate(zip(true, base))])
    gains = better.comparison.findings.gains
    assert [g['value'] > 0 for g in gains] == [True]*2 and any(g['low'] < 0 for g in gains)
    assert first_answers(better)[0].startswith('That cannot be told, the difference may be chance: it names')
    one = random_result(3, 48)
    one_right = with_answers(one, [c.answer for c in one.clips])
    assert first_answers(one_right)[0].startswith('On these clips, yes; they are too few to tell of others: ')
    assert '[' not in ''.join(first_answers(one_right))
    same = first_answers(with_answers(one, one.models[0].answers))
    assert same[0].startswith('Not on these clips; they are too few to tell of others: ')
    assert '1 session: too few for an interval' in one_right.comparison.findings.note
    few = random_result(3) # 18 clips
    for answers in ([c.answer for c in few.clips], few.models[0].answers):
        said = first_answers(with_answers(few, answers))
        assert all(s.startswith('Too few clips to tell: ') for s in said[:2])


def test_a_report_without_adapter_sessions_or_boundaries(result, written, tmp_path):
    "Each is said where it would have stood, and nothing is drawn of it."
    alone = replace(result, models=result.models[:1], provenance=source(result.clips, result.train, result.models[:1]))
    page = save_result(alone, tmp_path/'alone').read_text()
    assert 'What does the model know?' in page and 'No adapter was tested: it names the operation of' in page
    assert 'No whole session was asked about' in page and 'difference to the base' not in page
    clips = [replace(c, answer=replace(c.answer, start_frame=0, end_frame=124)) for c in result.clips]
    flat = replace(result, clips=clips, provenance=source(clips, result.train, result.models))
    page = save_result(flat, tmp_path/'flat').read_text()
    assert 'That cannot be told: no clip holds a boundary between two operations.' in html.unescape(page)
    assert page.count('<table') == (written/'report.html').read_text().count('<table') - 1


def test_the_frames_that_were_shown(mock, tmp_path):
    "They are cut from the recording where it is the same one; without it, or with another, the answers stand alone."
    recorded = sessions(mock, ('U0108',))
    clips = [c for c in session_clips(recorded[0], spec=FrameSpec('uniform')) if c.kind == 'boundary'][:6]
    g = np.random.default_rng(0)
    models = [MethodPredictions.of(n, [random_prediction(g, c) for c in clips]) for n in ('base', 'fine-tuned')]
    made = source(clips, [], models)
    made = replace(made, data=made.data | dict(frames=FrameSpec('uniform', k=6).to_dict()))
    r = Result(LOGISTICS, clips, [], models, made)
    assert 'the 6 frames that the model saw' in save_result(r, tmp_path, recorded=recorded).read_text()
    for given in (None, [replace(s, segments=s.segments[2:]) for s in recorded]):
        assert 'whose frames are not at hand' in clip_shown(r.comparison, made.data['frames'], given).caption


def test_frames_come_out_of_the_shards(shards, mock):
    "Without the recordings, the clips that were asked about hold what the model saw of them."
    test = find_split(shards, 'test')
    asked = [evaluation.clip_of(e) for e in evaluation_set(test, 2)]
    g = np.random.default_rng(0)
    answers = MethodPredictions.of('base (tiny)', [random_prediction(g, c) for c in asked])
    compared = MethodComparison(test.taxonomy, asked, [answers], [0]*len(asked), 0, 'people')
    frames = test.spec.to_dict()
    there = clip_shown(compared, frames, None, test)
    again = clip_shown(compared, frames, sessions(mock, ('U0108',)))
    assert len(there.frames) == test.spec.k and np.allclose(there.seconds, again.seconds)
    assert all(np.abs(a.astype(int) - b).mean() < 12 for a, b in zip(there.frames, again.frames, strict=True))
    assert not clip_shown(compared, frames | dict(sampler='entropy'), None, test).frames, 'other frames than it saw'


def test_methods_that_are_equal_share_a_row(result):
    twin = replace(result.models[1], name='fine-tuned + grammar')
    found = replace(result.comparison, methods=[*result.comparison.methods, twin])
    for block in found.blocks:
        names = [row[0] for row in score_table(found, block).rows]
        assert 'fine-tuned, also + grammar' in names and len(names) == len(distinct_methods(found)) < len(found.methods)
        assert not any(name.startswith('bigram') for name in names)
    assert [row[0] for row in anticipation_table(found).rows] == ['base', 'fine-tuned', 'the true operation is given']
    assert {row[0] for row in paired_table(found).rows} == {'fine-tuned'}


def test_markup_in_names_is_text(tmp_path):
    odd = '<img src=x>'
    page = write_report(tmp_path, odd, [Section(odd, [Text(odd), Code(odd), Table([odd], [[odd]])])], odd)
    assert odd not in page.read_text() and page.read_text().count(html.escape(odd)) == 8


def test_results_come_last(result, tmp_path, monkeypatch):
    "Where a disk is full, no results.json says that all is there."
    monkeypatch.setattr(report, 'write_text', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError): save_result(result, tmp_path)
    assert not list(tmp_path.glob('*.json')) and not list(tmp_path.glob('report.*'))


# ---- where it fails ------------------------------------------------------------------------------------------------
def test_phases_against_counting(mock):
    g = np.random.default_rng(1)
    recorded = sessions(mock)
    s = recorded[-1]
    starts = np.round(g.uniform(0, s.segments[-1].end - 5, 40)*25)/25
    clips = [Clip(f'{i}', s.key, float(t), 125, 60., random_answer(g)) for i, t in enumerate(starts)]
    m, words = MethodPredictions.of('m', [random_prediction(g, c) for c in clips]), ['Tape', 'Pack', 'Wrap']
    m = replace(m, answers=[a and replace(a, dominant_operation=str(g.choice(words))) for a in m.answers])
    expected = np.zeros((3, 4), int)
    for c, a in zip(clips, m.answers):
        for frame, x in ((f, x) for f in range(125) for x in s.segments if x.operation == 'Tape'):
            t = c.start + frame/25
            if not x.start - 1e-6 <= t < x.end - 1e-6: continue
            phase = 2 if t >= x.end - .5 - 1e-6 else 1 if t >= (x.start + x.end)/2 - 1e-6 else 0
            named = a is not None and a.start_frame <= frame <= a.end_frame
            expected[phase, words.index(a.dominant_operation) if named else 3] += 1
    found = phases(MethodComparison(LOGISTICS, clips, [m], [s.key]*40), recorded)
    assert len(PHASES) == 3 and (found.counts['m'] == expected).all() and expected.sum() > 50


def test_compare_pairs_only_what_is_alike(result):
    right = [replace(p, answer=c.answer) for p, c in zip(result.models[1].predictions, result.clips)]
    better = replace(result, models=[result.models[0], MethodPredictions.of('right', right)])
    rows = compare({'a': result, 'b': better, 'c': random_result(1)}).rows
    assert rows[0]['differences'] is None is rows[2]['differences'] and rows[1]['metrics']['OCA'] == 1
    d = rows[1]['differences']['OCA']
    assert abs(d['value'] - (1 - rows[0]['metrics']['OCA'])) < 1e-12
    assert np.isnan(d['low']) and 'p' not in d # one session is no evidence, whatever the difference
    assert rows[1]['metrics']['Tape taken for Pack'] == 0


def test_persons_are_drawn_together():
    "Two ids of one human are one group, and the pooled numbers are those of all clips."
    folds = {'U0103': random_result(2, 16, ('U0103', 'U0210')), 'U0108': random_result(3)}
    left = LeaveOneOut(folds)
    assert set(left.comparison.groups) == {'U0103', 'U0108'} and len(left.comparison.clips) == 40
    found = left.comparison.reports['fine-tuned']['all clips']['OCA']
    assert abs(found['value'] - np.mean(sum((hits(f, f.models[1]) for f in folds.values()), []))) < 1e-12
    assert 'majority, best span' in left.comparison.reports
    assert len(left.to_dict()['methods']) == len(folds['U0103'].comparison.methods)


# ---- with a model ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def tiny():
    return TrainConfig(max_steps=2, micro_batch=1, accumulation=1)


def test_lopo(brief, tiny, tmp_path, monkeypatch):
    def run(clips=1, people=('U0101', 'U0108')):
        return leave_one_person_out(brief, tmp_path, 'tiny', tiny, people=people, clips=clips, max_clips=2,
                                    spec=FrameSpec('uniform'))
    done = run()
    for who, f in done.folds.items():
        taught, = f.provenance.training.values()
        assert who not in taught['people'] and {c.session[:5] for c in f.clips} == {who} and len(plain(f)) == 1
    assert all((tmp_path/name).exists() for name in ('lopo.json', 'report.md', 'report.html'))
    # one fold is done, the other was killed between its training and its result
    shutil.rmtree(tmp_path/'U0108'/'shards')
    (tmp_path/'U0101'/'results.json').unlink()
    monkeypatch.setattr(experiments, 'fit', lambda *_, **__: pytest.fail('it trains again'))
    again = run()
    assert not (tmp_path/'U0108'/'shards').exists() and again.folds.keys() == done.folds.keys()
    assert all(again.folds[w].models[1].answers == f.models[1].answers for w, f in done.folds.items())
    with pytest.raises(BadInput, match='another clips'): run(clips=2)
    with pytest.raises(BadInput, match='unknown person'): run(people=['U0999'])


def test_remedies_side_by_side(brief, tiny, tmp_path):
    half = Variant('half of the clips', share=.5)
    specified, _, second, _, _, grammar = REMEDIES
    variants = specified, second, half, grammar
    table = ablate(brief, tmp_path, 'tiny', tiny, variants=variants, clips=1, max_clips=4, spec=FrameSpec('uniform'))
    assert [r['variant'] for r in table.rows] == [v.name for v in variants]
    assert all(r['differences'] for r in table.rows[1:]), 'all are asked about the same clips'
    assert [len(rescore(tmp_path/n/'results.json').train) for n in ('as-specified', 'half-of-the-clips')] == [4, 2]
    place = tmp_path/'preceding-second'
    specs = [find_split(place/'shards', s).spec for s in ('train', 'test')] + [Adapter.load(place/'run'/'adapter').spec]
    assert specs == [FrameSpec('uniform', context_seconds=1.)]*3
    d = read_json(tmp_path/'ablation.json')
    assert len(d['rows']) == 4 and set(d['provenance']) == {'as specified', 'preceding second', 'half of the clips'}
    assert [r[0] for r in d['phases']['rows']] == [v.name for v in variants]
    assert 'as specified + grammar' in (tmp_path/'report.md').read_text()


def test_runs_of_a_variant_share_its_shards_and_differ_in_their_seed(brief, tiny, tmp_path):
    how = dict(clips=2, max_clips=4, spec=FrameSpec('entropy'))
    table = ablate(brief, tmp_path, 'tiny', tiny, variants=SAMPLERS[:1], seeds=2, **how)
    row, = table.rows
    place = tmp_path/'uniform'
    first, second = (rescore(d/'results.json') for d in (place, place/'seed-1'))
    assert find_split(place/'shards', 'test').spec.sampler == 'uniform' and not (place/'seed-1'/'shards').exists()
    adapters = [Adapter.load(d/'run'/'adapter') for d in (place, place/'seed-1')]
    assert [a.training['config']['seed'] for a in adapters] == [tiny.seed, tiny.seed + 1]
    alone = [compare({'one': r}).rows[0]['metrics'] for r in (first, second)]
    for n in ('OCA', 'mIoU, inner boundary'):
        assert [m[n] for m in row['runs']] == [m[n] for m in alone]
        assert row['metrics'][n] == pytest.approx(np.mean([m[n] for m in row['runs']]))
    assert [len(p) for p in read_json(tmp_path/'ablation.json')['provenance'].values()] == [2]
    models = [replace(m, answers=m.answers[1:], predictions=m.predictions[1:]) for m in second.models]
    data = second.provenance.data | dict(clips=second.provenance.data['clips'][1:])
    fewer = replace(second, clips=second.clips[1:], models=models, provenance=replace(second.provenance, data=data))
    with pytest.raises(BadInput, match='different clips'): compare({'mixed': [first, fewer]})


def test_a_first_variant_that_cannot_be_first(mock, tmp_path):
    for variants, seeds in (((), 1), (REMEDIES[5:], 1), (REMEDIES[3:4], 1), (SAMPLERS, 0)):
        with pytest.raises(BadInput): ablate(mock, tmp_path/'out', variants=variants, seeds=seeds)
    assert not (tmp_path/'out').exists()


def test_remedies_are_what_the_specification_proposes():
    names = ['as specified', 'Tape/Pack within 0.5 s', 'preceding second', 'half of the clips', 'sliding clips too',
             'as specified + grammar']
    assert [v.name for v in REMEDIES] == names and REMEDIES[0] == Variant('as specified')
    assert REMEDIES[1].build == dict(hard_jitter=.5) and REMEDIES[2].spec == dict(context_seconds=1.)


def test_a_model_is_asked_as_it_was_trained(mock, shards, tiny, tmp_path, video):
    "An adapter that saw the second before sees it again, here and in use; one that did not is not shown it."
    for who in ('U0102', 'U0108'): shutil.copytree(mock/who, tmp_path/'two'/who)
    build(tmp_path/'two', tmp_path/'led', spec=FrameSpec('uniform', context_seconds=1.))
    build(tmp_path/'two', tmp_path/'plain', spec=FrameSpec('uniform'))
    train = find_split(tmp_path/'led', 'train')
    pictures = [len(train.meta(i)['indices']) for i in range(len(train))]
    assert set(pictures) >= {8, 10}, 'a batch of both kinds'
    rows = [pictures.index(8), pictures.index(10)]
    mixed = make_trainer(load_model('tiny'), train, tmp_path/'mixed', replace(tiny, micro_batch=2), rows=rows)
    mixed.train()
    assert math.isfinite(mixed.state.log_history[0]['loss'])
    led = Path(fit(tmp_path/'led', tmp_path/'run', config=tiny).adapter)
    engine = Engine('tiny', led)
    assert engine.sample(video, 20.).indices.tolist()[:3] == [-19, -7, 7] and len(engine.sample(video).indices) == 8
    assert engine.predict(video, 20.).answer and engine.analyze(video, stride=30.).windows > 2
    with pytest.raises(BadInput, match='context_seconds 1.0, not 0.0'):
        evaluation.check_test(Adapter.load(led), 'tiny', find_split(shards, 'test'))
    alone = Path(fit(tmp_path/'plain', tmp_path/'alone', config=tiny).adapter)
    shown = []
    predict = evaluation.predict_examples
    def seen(loaded, examples, *rest, **named):
        shown.append({len(e.indices) for e in examples})
        return predict(loaded, examples, *rest, **named)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, 'predict_examples', seen)
        evaluate(tmp_path/'led', 'tiny', [led, alone], clips=2)
    assert shown[0] == shown[1] and 10 in shown[0] and shown[2] == {8}


def test_frames_are_cut_again_as_build_would_have(mock, shards, tmp_path):
    "Where the shards hold other frames than an adapter needs, it is shown those that it was trained on, or refused."
    for who in ('U0102', 'U0108'): shutil.copytree(mock/who, tmp_path/'two'/who)
    spec = FrameSpec('novelty', k=6, roi=(0, .25, .75, 1), context_seconds=1.)
    build(tmp_path/'two', tmp_path/'other', 'test', spec)
    held, wanted = find_split(shards, 'test'), {e.key: e for e in find_split(tmp_path/'other', 'test')}
    examples = evaluation_set(held, 2)
    for e in evaluation.show_examples(examples, spec, held, mock):
        assert e.indices.tolist() == wanted[e.key].indices.tolist() and (e.frames == wanted[e.key].frames).all()
    assert evaluation.show_examples(examples, held.spec, held)[0].indices.tolist() == examples[0].indices.tolist()
    with pytest.raises(BadInput, match='is missing'): evaluation.cut_again(examples, spec, sessions(mock, ('U0101',)))
    other = find_split(tmp_path/'other', 'test')
    assert sessions_root(other) == tmp_path/'two', 'build notes where the sessions are'
    annotation = tmp_path/'two'/next(n for n in other.index['sources'] if n.endswith('.csv'))
    annotation.write_text(annotation.read_text() + '\n')
    assert sessions_root(other) is None, 'another recording is not taken for it'


def test_protocol_needs_its_clips(shards, tmp_path):
    "Too few clips; one of the first whose frames were lacking when the shards were built; a shard that is gone."
    test = find_split(shards, 'test')
    whole = evaluation_set(test, 0)
    n = sum(e.kind == 'boundary' for e in whole)
    assert [e.key for e in whole] == sorted(test.keys) and n > 2
    with pytest.raises(BadInput, match=f'holds {n} of {n + 1}'): evaluation_set(test, n + 1)
    first = next(e.key for e in whole if e.kind == 'boundary')
    before = first[:-4] + '000a'
    members = ((k, test.members(i)) for i, k in enumerate(test.keys) if k != before)
    about = {k: v for k, v in test.index.items() if k not in ('format', 'examples', 'shards', 'checksum')}
    write_shards(tmp_path/'test', members, about | dict(lacking={first.rsplit('-', 1)[0]: [before]}))
    with pytest.raises(BadInput, match=before): evaluation_set(find_split(tmp_path, 'test'), 2)
    shutil.copytree(shards/'test', tmp_path/'gone')
    (tmp_path/'gone'/'shard-000000.tar').unlink()
    with pytest.raises(BadInput, match='is missing'): evaluate(tmp_path/'gone')


def test_a_sample_is_spread_over_a_split_of_others(shards, tmp_path, monkeypatch):
    "The specification's person is asked about from the first clip on, as its table has it; anybody else everywhere."
    test = find_split(shards, 'test')
    keys = evaluation.boundary_keys(test)
    asked = [k for k in evaluation.evaluated_keys(test, 4) if k in keys]
    assert asked == keys[:4] and evaluation.usual_clips(test) in (0, 30)
    members = ((k, test.members(i)) for i, k in enumerate(test.keys))
    about = {k: v for k, v in test.index.items() if k not in ('format', 'examples', 'shards', 'checksum')}
    write_shards(tmp_path/'test', members, about | dict(people=['Dana']))
    other = find_split(tmp_path, 'test')
    n = len(keys)
    for many in (1, 4, n - 1, n):
        asked = [keys.index(k) for k in evaluation.evaluated_keys(other, many) if k in keys]
        assert len(asked) == many and all(i*n <= at*many < (i + 1)*n for i, at in enumerate(asked)), 'one of each part'
    assert evaluation.usual_clips(other) == 0 and evaluation.evaluated_keys(other) == sorted(test.keys)
    monkeypatch.setattr(evaluation, '_MOST', n - 1)
    assert evaluation.usual_clips(other) == n - 1


def test_a_report_on_a_sample_says_so(result, tmp_path):
    "In the title and before the answers; an older file, which does not know how many there are, says nothing."
    assert not result.sample and f'A test on {count_clips(result)} clips' in result.title
    data = result.provenance.data | dict(boundary_clips=500)
    sampled = replace(result, provenance=replace(result.provenance, data=data))
    said = f"Asked about {count_clips(result)} of the test split's 500 clips: `--clips 0` asks about all."
    assert f'A test on {count_clips(result)} of 500 clips' in sampled.title
    assert sampled._repr_markdown_().startswith(said)
    save_result(sampled, tmp_path)
    text = (tmp_path/'report.md').read_text()
    assert text.index(said) < text.index('Did it learn?')
    assert rescore(tmp_path/'results.json').sample == said


def count_clips(result): return sum(c.kind != 'anticipation' for c in result.clips)


def test_refused_before_anything_is_predicted(shards, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, 'predict_examples', lambda *_, **__: pytest.fail('it predicts'))
    about = dict(model='tiny', taxonomy='logistics', people=['U0101'], config={})
    from vlmtemporal.backbones import fingerprint, model_config
    about['fingerprint'] = fingerprint(model_config('tiny')[0])
    shipped = Path(evaluation.__file__).parent/'tiny_model'/'adapter'
    def adapter(name, **change):
        (tmp_path/name).mkdir()
        for half in ('adapter_model.safetensors', 'adapter_config.json'): shutil.copy(shipped/half, tmp_path/name)
        write_json(tmp_path/name/'vlmtemporal.json', about | change)
        return tmp_path/name
    for a, says in ((adapter('base', fingerprint='x', model='Qwen/other'), 'was trained on Qwen/other, not on tiny'),
                    (adapter('words', taxonomy='openpack'), 'speaks the taxonomy openpack'),
                    (adapter('leak', people=['U0203']), 'was trained on U0108')):
        with pytest.raises(BadInput, match=says): evaluate(shards, 'tiny', [a], clips=1)
    shutil.copytree(shards/'test', tmp_path/'two'/'test')
    write_shards(tmp_path/'two'/'train', [('a', find_split(shards, 'train').members(0))],
                 dict(split='train', taxonomy='openpack', frames=FrameSpec('uniform').to_dict()))
    with pytest.raises(BadInput, match='train speaks the taxonomy openpack, test logistics'):
        evaluate(tmp_path/'two', 'tiny', clips=1)


def test_sessions_are_asked_about_as_in_use(shards, mock, tiny, tmp_path, video, monkeypatch):
    "What the report says of a session is what `analyze` says of its video; from the file come the same numbers."
    from typer.testing import CliRunner
    from vlmtemporal.cli import app
    monkeypatch.setattr(evaluation, 'predict_windows', partial(evaluation.predict_windows, stride=5.))
    adapter = Path(fit(shards, tmp_path/'run', config=tiny).adapter)
    args = ['eval', shards, tmp_path/'eval', '--adapter', adapter, '--clips', 1, '--root', mock, '--sessions', 1,
            '--grammar']
    ran = CliRunner().invoke(app, list(map(str, args)), catch_exceptions=False)
    assert ran.exit_code == 0 and 'Whole sessions' in ran.output and '+ grammar |' in ran.output
    r = rescore(tmp_path/'eval'/'results.json')
    assert r.to_dict() == read_json(tmp_path/'eval'/'results.json')
    assert [s.key for s in r.sessions.sessions] == ['U0108-S0100'] == list(r.provenance.data['sessions'])
    assert len(r.sessions.timelines) == 4 and r.timeline_priors.keys() == r.sessions.windows.keys()
    found = Engine('tiny', adapter).analyze(video, stride=5.)
    name = r.models[1].name
    for line, mine in ((found.raw, f'{name}, windows'), (found.timeline, f'{name}, HSMM')):
        a, b = line.segments, r.sessions.timelines[mine][0].segments
        assert [s.operation for s in a] == [s.operation for s in b]
        assert np.allclose([s.end for s in a], [s.end for s in b], atol=.41)
    shutil.copytree(mock/'U0101', tmp_path/'nobody'/'U0101')
    with pytest.raises(BadInput, match='records nobody of the test split'):
        evaluate(shards, clips=1, root=tmp_path/'nobody')


def test_eval_from_results(cli, written, tmp_path):
    code, out, _ = cli('eval', written/'results.json', tmp_path/'again')
    assert code == 0 and 'inner boundary' in out
    assert read_json(tmp_path/'again'/'results.json') == read_json(written/'results.json')
    (tmp_path/'none.json').write_text('{}')
    code, out, err = cli('eval', tmp_path/'none.json', tmp_path/'x')
    assert code == 2 and 'is no evaluation' in err and not (tmp_path/'x').exists()


def test_eval_refuses_a_file_as_out(monkeypatch, written, tmp_path):
    "Before any model is asked, and where a file stands above the folder, too."
    from vlmtemporal import cli, eval as whole
    def never(*args, **options): raise AssertionError('asked')
    for name in ('evaluate', 'rescore'): monkeypatch.setattr(whole, name, never)
    (tmp_path/'taken').write_text('mine')
    for out in (tmp_path/'taken', tmp_path/'taken'/'below'):
        for what in (tmp_path, written/'results.json'):
            with pytest.raises(BadInput, match='taken: is a file; name a folder'): cli.eval(what, out)
    assert (tmp_path/'taken').read_text() == 'mine'


def test_runners_refuse_before_they_write(cli, mock, tmp_path):
    for args, says in ((('lopo', '--person', 'U0999'), 'unknown person U0999'),
                       (('ablate', '--set', 'lr=1'), "unknown setting 'lr'"),
                       (('ablate', '--compare', 'cameras'), "nothing is called 'cameras'")):
        code, out, err = cli(args[0], mock, tmp_path/'out', *args[1:])
        assert code == 2 and out == '' and says in err and not (tmp_path/'out').exists()


def test_calibrated_on_the_validation_person(shards, brief, tmp_path):
    "Temperature and timeline weight are kept beside the adapter; whoever loads it answers with them."
    adapter = Path(fit(shards, tmp_path/'run', config=TrainConfig(max_steps=1, micro_batch=2, accumulation=1)).adapter)
    made = calibrate(shards, adapter, clips=4, root=brief)
    engine = Engine('tiny', adapter)
    assert made.people == ('U0107',) and made.nll_after <= made.nll_before
    assert made.emission_scale in (.25, .5, .75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16)
    assert made.em_iterations in (1, 2, 4, EM_ITERATIONS) and made.grammar_weight in [i/10 for i in range(21)]
    assert engine.loaded.temperature == made.temperature
    assert (engine.prior.emission_scale, engine.prior.em_iterations) == (made.emission_scale, made.em_iterations)
    for stored, used in ((made.grammar_weight, made.grammar_weight), (0., 0.), (None, GRAMMAR_WEIGHT)):
        write_json(adapter/'calibration.json', read_json(adapter/'calibration.json') | dict(grammar_weight=stored))
        r = evaluate(shards, 'tiny', [adapter], clips=2, grammar=True)
        prior, = r.timeline_priors.values()
        assert prior.grammar_weight == used
        assert [m.name for m in r.comparison.models][2:] == [f'{r.models[1].name} + grammar']
        if used == 0: assert names_of(r.grammar_rescored[0]) == names_of(r.models[1])
    (adapter/'grammar.json').unlink()
    with pytest.raises(BadInput, match='lacks grammar.json'): load_model('tiny', adapter)
    known = read_json(adapter/'vlmtemporal.json')
    write_json(adapter/'vlmtemporal.json', known | dict(files=[f for f in known['files'] if f != 'grammar.json']))
    assert not evaluate(shards, 'tiny', [adapter], clips=1, grammar=True).timeline_priors
    with pytest.raises(BadInput, match="is the split 'train', not 'val'"): calibrate(shards/'train', adapter)
    (adapter/'calibration.json').write_text('{"temperature": -1}')
    with pytest.raises(BadInput, match='holds no temperature'): load_model('tiny', adapter)
