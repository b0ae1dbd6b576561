"What intervals and p-values promise, simulated; several evaluations counted as one, by person."
import gzip, importlib.util, json, math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_eval import random_result, source

from vlmtemporal.backbones import bundled_model
from vlmtemporal.basics import BadInput, read_json, write_json
from vlmtemporal.clips import Answer
from vlmtemporal.eval import VariantComparison, pool, rescore
from vlmtemporal.metrics import clip_report, score_clips, side_by_side
from vlmtemporal.operations import LOGISTICS
from vlmtemporal.report import paired_table, save_result
from vlmtemporal.results import MethodPredictions, PooledResult, format_interval, group_sessions, score_table
from vlmtemporal.statistics import estimate, estimate_mean, estimate_median, paired, ranges_over, smallest_p

NAMES = LOGISTICS.names
SHIPPED = [bundled_model()/'results'/f'{seed}.json.gz' for seed in (101, 102, 103)]


@pytest.fixture(scope='module')
def one(): return rescore(SHIPPED[0])


@pytest.fixture(scope='module')
def three(): return rescore(*SHIPPED)


# ---- coverage and type I error ---------------------------------------------------------------------------------------
spec = importlib.util.spec_from_file_location('bench_coverage', Path(__file__).parents[1]/'bench'/'coverage.py')
assert spec and spec.loader
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)


@pytest.mark.parametrize('groups', [8, 10])
@pytest.mark.parametrize('rate', [.93, .5])
def test_an_interval_of_a_mean_holds_the_truth(groups, rate):
    g, held, before = np.random.default_rng(groups), 0, 0
    for _ in range(1500):
        hits = bench.hits_of(g, groups, rate, .05)
        found = estimate_mean(hits, share=True)
        held += found['low'] <= rate <= found['high']
        low, high = bench.percentile(hits, g)
        before += low <= rate <= high
    assert .93 <= held/1500 <= .97 and before/1500 < .92


def clips_of(g, groups, rate, clips=30):
    "Answers to clips whose operation is right at a rate that differs between groups: what `clip_report` gets."
    hits = bench.hits_of(g, groups, rate, .05, clips).ravel()
    true = g.choice(5, len(hits), p=[.35, .25, .2, .12, .08])
    said = np.where(hits, true, (true + g.integers(1, 5, len(hits))) % 5)
    end = np.clip(70 + np.round(g.standard_t(3, len(hits))*3), 1, 124).astype(int)
    def answers(names, ends): return [Answer(NAMES[n], 0, int(e), NAMES[n]) for n, e in zip(names, ends, strict=True)]
    return score_clips(answers(said, end), answers(true, np.full(len(hits), 70)), LOGISTICS)


def test_intervals_of_a_report_hold_the_truth():
    "Macro F1, class-mean recall, the median boundary error, mIoU: everything that a table shows."
    g = np.random.default_rng(0)
    many = clips_of(np.random.default_rng(1), 3000, .8)
    truth, groups = many.metrics(), np.repeat(range(8), 30).tolist()
    names = 'OCA', 'macro F1', 'class-mean recall', 'mIoU', 'boundary error'
    held = dict.fromkeys(names, 0)
    for _ in range(150):
        found = clip_report(clips_of(g, 8, .8), groups)
        for n in names: held[n] += found[n]['low'] <= truth[n] <= found[n]['high']
    assert min(held.values()) >= .9*150, held # 93% less chance; `bench/coverage.py` has thousands


def test_equal_methods_differ_rarely():
    g, rejected, groups = np.random.default_rng(2), 0, np.repeat(range(8), 54).tolist()
    for _ in range(250):
        both = np.concatenate([bench.hits_of(g, 8, .93, .05).ravel() for _ in range(2)]).astype(float)
        rejected += paired(lambda at, both=both: both[at].mean(), groups)['p'] <= .05
    assert rejected/250 <= .07


def test_better_methods_are_found():
    g, found, groups = np.random.default_rng(3), 0, np.repeat(range(8), 30).tolist()
    for _ in range(5):
        both = side_by_side(clips_of(g, 8, .85), clips_of(g, 8, .5))
        found += paired(both.metrics, groups)['macro F1']['p'] <= .05
    assert found >= 4


# ---- what a table says -----------------------------------------------------------------------------------------------
def test_below_five_groups_there_is_no_interval(three):
    for n in (1, 2, 3, 4):
        assert math.isnan(estimate_mean([np.array([1., 0, 1])*k/9 for k in range(1, n + 1)])['low'])
    r = three
    table = score_table(r.comparison)
    note = '3 people: too few for an interval (5 are needed).'
    assert table.note.startswith(note)
    assert not any('[' in cell for row in table.rows for cell in row)
    assert r.sessions.table.note == note and '3 people' in r._repr_markdown_()
    assert '3 people' in paired_table(r.comparison).note and 'none can be below 0.25' in paired_table(r.comparison).note


def test_a_table_says_of_whom_it_speaks(one):
    r = one
    note = '95% intervals over 10 sessions of one person: they say nothing of other people.'
    assert score_table(r.comparison).note.startswith(note) and r.sessions.table.note == note
    assert '[' in score_table(r.comparison).rows[1][1] and '[' in r.sessions.table.rows[2][4]
    people = [f'U{100 + i}-S{j}' for i in range(6) for j in range(2)]
    assert group_sessions(people)[1] == 'people' and group_sessions(people[:6]) == (people[:6], 'sessions')
    assert ranges_over(*group_sessions(people), 6) == '95% intervals over 6 people.'
    assert 'of 3 people: they say little of other people' in ranges_over(*group_sessions(people[:6]), 3)


def test_no_p_is_smaller_than_groups_allow(one):
    found = [v['p'] for test in one.comparison.paired for block in test['differences'].values() for v in block.values()]
    assert min(found) == smallest_p(10) == 2/2**10


def test_a_number_that_is_the_same_everywhere_has_no_interval(one):
    failures = one.comparison.reports['tiny adapter']['all clips']['parse failures']
    assert failures['value'] == 0 and format_interval(failures) == '0.00'


# ---- pooling ---------------------------------------------------------------------------------------------------------
def of_people(n, seed=0):
    "Evaluations of so many people by the same model, each with an id of their own."
    return [random_result(seed + i, who=(f'U{100 + i:04d}',)) for i in range(n)]


def test_people_are_the_groups_of_a_pool():
    parts = of_people(6)
    r = pool(parts)
    assert isinstance(r, PooledResult) and {*r.comparison.groups} == {f'U{100 + i:04d}' for i in range(6)}
    hits = [p.comparison.scores(p.models[1]) for p in parts]
    values = [h.scores['OCA'][~h.anticipation] for h in hits]
    want = estimate_mean(values, share=True)
    found = r.comparison.reports['fine-tuned']['all clips']['OCA']
    assert found['value'] == pytest.approx(want['mean']) and found['low'] == pytest.approx(want['low'])
    assert score_table(r.comparison).note.startswith('95% intervals over 6 people.') and not r.changed
    assert '6 people' in r.title and len(r.comparison.paired) == 1


def test_the_same_id_in_another_recording_is_another_person():
    r = pool([random_result(seed) for seed in range(5)], labels=[f'seed-{i}' for i in range(5)])
    assert {*r.comparison.groups} == {f'seed_{i}/U0108' for i in range(5)} and len({c.id for c in r.clips}) == 5*24


def test_shipped_evaluations_are_three_people(three):
    assert {*three.comparison.groups} == {f'{s}/U0108' for s in (101, 102, 103)} and not three.changed
    assert len(three.sessions.sessions) == 30


def renamed(r, session):
    "The same evaluation, as if of another session of that person."
    ids = {c.id: session + c.id.removeprefix(c.session) for c in r.clips}
    clips = [replace(c, id=ids[c.id], session=session) for c in r.clips]
    models = [MethodPredictions.of(m.name, [replace(p, key=ids[p.key]) for p in m.predictions]) for m in r.models]
    return replace(r, clips=clips, models=models, provenance=source(clips, r.train, models))


def test_the_same_person_in_two_files_is_one():
    r = pool([random_result(0), renamed(random_result(1), 'U0108-S0200')])
    assert {*r.comparison.groups} == {'U0108'} and {c.session for c in r.clips} == {'U0108-S0100', 'U0108-S0200'}


def test_what_does_not_fit_is_refused():
    a, b = of_people(2)
    for other, says in ((replace(b, provenance=replace(b.provenance, decoder='generate')), 'other decoder'),
                        (replace(b, provenance=replace(b.provenance, adapters={'x': 'd'*64}, training={'x': {}})),
                         'other adapters'),
                        (replace(b, models=b.models[:1]), 'other methods')):
        with pytest.raises(BadInput, match=says): pool([a, other])
    with pytest.raises(BadInput, match='stands in 1, too'): pool([a, a])
    with pytest.raises(BadInput, match='nothing to pool'): pool([])
    with pytest.raises(BadInput, match='no file'): rescore()
    with pytest.raises(BadInput, match='stands in'): rescore(SHIPPED[0], SHIPPED[1], SHIPPED[0])


def test_a_pool_is_kept_and_read_again(tmp_path):
    parts = of_people(5)
    for i, p in enumerate(parts): write_json(tmp_path/f'p{i}.json', p.to_dict())
    r = rescore(*(tmp_path/f'p{i}.json' for i in range(5)))
    assert r.to_dict()['methods'] == pool(parts).to_dict()['methods']
    page = save_result(r, tmp_path/'out')
    again = rescore(tmp_path/'out'/'results.json')
    assert again.to_dict() == r.to_dict() and '95% intervals over 5 people.' in page.read_text()
    d = read_json(tmp_path/'out'/'results.json')
    answered = next(p for p in d['parts'][2]['methods'][1]['predictions'] if p['dominant_operation'])
    answered['dominant_operation'] = next(n for n in NAMES if n != answered['dominant_operation'])
    write_json(tmp_path/'forged.json', d)
    assert rescore(tmp_path/'forged.json').changed
    with pytest.raises(BadInput, match='is no evaluation'):
        write_json(tmp_path/'broken.json', d | dict(parts=[{}]))
        rescore(tmp_path/'broken.json')


def test_rescore_is_a_command(cli, tmp_path):
    for i, p in enumerate(of_people(5)): write_json(tmp_path/f'p{i}.json', p.to_dict())
    files = [tmp_path/f'p{i}.json' for i in range(5)]
    code, out, err = cli('rescore', *files, '--out', tmp_path/'report')
    assert code == 0 and '95% intervals over 5 people.' in out and (tmp_path/'report'/'report.html').exists(), err
    code, out, _ = cli('rescore', files[0], '--json')
    assert code == 0 and json.loads(out)['intervals']['clips']['note'].startswith('1 session: too few')
    code, _, err = cli('rescore', files[0], files[0])
    assert code == 2 and 'stands in' in err and len(err.splitlines()) == 1


# ---- files that were there before ------------------------------------------------------------------------------------
def test_intervals_of_older_files_are_counted_again(one):
    d = json.loads(gzip.decompress(SHIPPED[0].read_bytes()))
    kept = next(m for m in d['methods'] if m['name'] == 'twin adapter')['metrics']['OCA']
    found = one.comparison.reports['tiny adapter']['all clips']['OCA']
    assert found['value'] == pytest.approx(kept['mean']) and found['low'] < kept['low']


def test_differences_of_older_comparisons_are_shown_without_intervals():
    kept = read_json(bundled_model()/'results'/'remedies.json.gz', 'it comes with the package')
    tables = [VariantComparison.from_dict(d).table for d in (kept, {k: v for k, v in kept.items() if k != 'note'})]
    now, before = ([str(c) for r in t.rows for c in r] for t in tables)
    assert 'without' in tables[1].note and any('[' in c for c in now) and not any('[' in c for c in before)


def test_nobody_is_no_group():
    "A column of missing persons must not count as so many people."
    for groups in (np.full(20, np.nan), [float('nan')]*20):
        with pytest.raises(BadInput, match='nobody'): estimate(lambda at: float(len(at)), groups)
    with pytest.raises(BadInput, match='2 groups of 3 values'): estimate_median([1, 2, 3], [0, 1])
