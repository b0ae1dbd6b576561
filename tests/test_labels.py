"Taxonomies as files, and many labels of any script: read, stored, asked."
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT
from vlmtemporal.basics import BadInput
from vlmtemporal.decode import constrained
from vlmtemporal.loading import load_model
from vlmtemporal.operations import BUILT_IN, LOGISTICS, Grammar, Segment, Taxonomy, get_taxonomy, name_key
from vlmtemporal.prompts import answer_text, messages, parse_answer
from vlmtemporal.clips import Answer
from vlmtemporal.timeline import HSMM, raw_timeline

sys.path.append(str(ROOT/'bench'))
from labels import VERBS, clips, measure, taxonomy, words # noqa: E402


@pytest.fixture(scope='module')
def tiny(): return load_model('tiny', quantize=False)


text = st.text(st.characters(exclude_categories=('Cc', 'Cs', 'Cn', 'Zl', 'Zp')), min_size=1, max_size=12)


@given(st.lists(text.filter(str.strip), min_size=2, max_size=8, unique_by=name_key), text, st.booleans())
@settings(max_examples=80, deadline=None)
def test_any_words_survive_a_file(tmp_path_factory, names, description, describe):
    path = tmp_path_factory.mktemp('words')/'taxonomy.yaml'
    made = Taxonomy.from_dict(dict(name='x', null=names[0], describe=describe, operations=[
        dict(name=n, description=description) for n in names]))
    made.save(path)
    assert get_taxonomy(path).to_dict() == made.to_dict() and Taxonomy.of(made.stored()) == made
    for n in made.names:
        assert parse_answer(answer_text(Answer(n, 3, 9, made.null)), made).answer.dominant_operation == n


WRONG = {
    'operatoins:\n- a\n- b\nnull: a': 'line 1: unknown key',
    'null: a\noperations:\n- a\n- A': 'line 4: A is there twice, first as a (line 3)',
    'null: a\noperations:\n- name: a\n  aliases: [b]\n- b': 'line 5: b is there twice',
    'null: a\noperations: [a]': 'line 2: 1 operation;',
    'null: a\noperations:\n- {name: a, id: 3}\n- {name: b, id: 3}': 'line 4: the id 3 is there twice',
    'operations: []\nnull: a': 'line 1: 0 operations',
    'null: x1\noperations:\n' + '\n'.join(f'- x{i}' for i in range(401)): 'line 2: 401 operations',
    'operations: [a, b]\nnull: c': "line 2: the null 'c' is none",
    'operations: [a, b]': 'no operation is the null',
    'null: a\noperations:\n- a\n- name: b\n  colour: red': "line 5: 'red' is no colour",
    'null: a\noperations:\n- a\n- {}': 'line 4: the name is empty',
    'null: a\noperations:\n- a\n- !!python/name:os.system x': 'line 4: the tag',
    'null: a\noperations:\n- a\n- [b': 'is no YAML',
    'null: a\nnull: b\noperations: [a, b]': "line 2: 'null' is there twice",
    'a: &x [1]\nb: *x': 'refers to another part',
    'just words': 'is no list of keys'}


@pytest.mark.parametrize('written', WRONG)
def test_what_is_wrong_is_told_with_its_line(tmp_path, written):
    path = tmp_path/'taxonomy.yaml'
    path.write_text(written)
    with pytest.raises(BadInput) as e: get_taxonomy(path)
    assert WRONG[written] in str(e.value) and e.value.fix and '\n' not in str(e.value)


def test_words_that_yaml_takes_for_others(tmp_path):
    (tmp_path/'t.yaml').write_text('null: null\noperations: [no, 12, null, 1e3, 2024-01-01]')
    assert get_taxonomy(tmp_path/'t.yaml').names == ('no', '12', 'null', '1e3', '2024-01-01')


def test_files_of_before_stay(tmp_path):
    for t in BUILT_IN.values():
        t.save(tmp_path/'x.yaml')
        assert t.stored() == t.name and Taxonomy.load(tmp_path/'x.yaml').stored() == t.name
        assert len({t.colour(n) for n in t.names}) == len(t)
    assert 'packing work (125 frames at 25 fps, numbered 0 to 124). Operations: Box Setup, Inner Packing,' in str(
        messages([0], LOGISTICS))


@pytest.mark.filterwarnings('ignore:Glyph')
def test_four_hundred():
    t = taxonomy(words(400), False)
    assert len({t.colour(n) for n in t.names}) == 400 and t.colour(t.null) == '#c8c8c8'
    grammar = Grammar.learn([[Segment(n, i, i + 1) for i, n in enumerate(t.names)]], t)
    assert Grammar.from_dict(grammar.to_dict()).taxonomy == t
    rows = np.random.default_rng(0).dirichlet(np.full(400, .1), 20)
    assert raw_timeline(rows, t, 4.)._repr_png_()


@pytest.mark.parametrize('seed', range(3))
def test_sorting_starts_out_changes_nothing(seed):
    g, names = np.random.default_rng(seed), taxonomy(words(6), False)
    ends = np.cumsum(g.lognormal(.5, .6, 60))
    grammar = Grammar.learn([[Segment(str(g.choice(names.names)), b - .1, float(b)) for b in ends]], names)
    rows, found = np.repeat(g.dirichlet(np.full(6, .3), 40), 8, 0), []
    for every in (10**4, 7):
        hsmm, scores = HSMM(grammar), []
        hsmm.every = every
        for row in rows:
            hsmm.push(row)
            scores.append(hsmm.best()[0])
        found.append((scores, hsmm.best()[1]))
    assert np.allclose(found[0][0], found[1][0], rtol=1e-12) and found[0][1] == found[1][1] and hsmm._cut > 100


def test_many_labels_answer_and_cost_little(tiny):
    "A third more at most is the aim, which `bench/labels.py` holds; here other programs are in the way."
    many, some = taxonomy(words(120), False), clips(4, 112)
    few, cost = measure(tiny, [taxonomy(list(VERBS[0]), False), many], some, 2)
    assert cost < 2*few
    for p in constrained(tiny, some, many):
        assert tuple(p.probabilities) == many.names and min(p.probabilities.values()) > 0
        assert abs(sum(p.probabilities.values()) - 1) < 1e-9 and abs(sum(p.next_probabilities.values()) - 1) < 1e-9
        assert p.answer.dominant_operation == max(p.probabilities, key=p.probabilities.get)
        assert p.answer.start_frame < p.answer.end_frame
