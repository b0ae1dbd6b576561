"A run is cut up for a card by trying: what fits and is done soonest, on one model, and how many hours it takes."
import json, math, subprocess
from dataclasses import replace

import pytest
import torch

from conftest import ROOT
from forked import started
from vlmtemporal import planning, train
from vlmtemporal.basics import BadInput, VLMTemporalError
from vlmtemporal.memory import Budget, Measured
from vlmtemporal.planning import Cut, Length, Pace, Plan, Search, length_of, soonest
from vlmtemporal.shards import Shards
from vlmtemporal.train import Preflight, fit
from vlmtemporal.trainer import TrainConfig

MICROS, DEPTH = [16, 8, 4, 2, 1], 36
SHORT = TrainConfig(max_steps=2, save_steps=2, micro_batch=2, accumulation=1, learning_rate=2e-3)


class Card:
    "A card of so many GiB, on which a pass costs so many seconds besides its arithmetic. It counts what is asked."
    def __init__(self, room, launches, error=None, again=1., held=.138, passing=0.):
        self.room, self.launches, self.held, self.passing = room, launches, held, passing
        self.error = error or torch.OutOfMemoryError('planted')
        self.length, self.asked = replace(length_of(TrainConfig(max_steps=1500), 8000), again=again), []
    def __call__(self, cut: Cut) -> Pace:
        self.asked.append(cut)
        kept = cut.micro_batch*self.held*cut.kept_layers
        wide = .9*(cut.tower_bits == 16)
        peak = 2.6 + wide + cut.micro_batch*.1 + max(kept + cut.micro_batch*.34, self.passing)
        if peak > self.room + .4: raise self.error
        passes, tower = 16/cut.micro_batch, 3. - .3*(cut.tower_bits == 16)
        twice = 1 - cut.kept_layers/DEPTH
        return Pace(tower + 8 + 4*twice + passes*self.launches*(2 + twice), tower, .5, peak)
    def search(self, paper=.12) -> Search:
        "For the cut that is best here; `paper` is what one kept layer holds on paper."
        return Search(self, DEPTH, self.room, lambda micro: micro*paper, self.length.seconds)
    def least(self) -> float:
        "The seconds of the run with the best of all cuts that fit."
        costs = []
        for cut in (Cut(m, k, b) for m in MICROS for k in range(DEPTH + 1) for b in (4, 16)):
            try: pace = self(cut)
            except RuntimeError: continue
            if pace.peak <= self.room: costs.append(self.length.seconds(pace))
        return min(costs)


@pytest.fixture
def on_paper(monkeypatch):
    "Cards on paper hold nothing that would have to be released."
    monkeypatch.setattr(planning, '_release', lambda: None)


@pytest.mark.parametrize('launches', [0., .01, .05, .2, .6])
@pytest.mark.parametrize('room', [3.2, 4., 6., 9., 13.7, 22., 79.])
def test_the_cut_is_the_one_that_is_done_soonest(on_paper, room, launches):
    "On cards of every size, with paper that is right, too low or too high: it fits, and no cut that fits is faster."
    for paper in (.08, .138, .25):
        for more in ({}, dict(held=.09), dict(passing=5.), dict(again=0.)):
            card = Card(room, launches, **more)
            if more.get('passing') and room < 7: continue
            cut, pace = soonest(card.search(paper), MICROS, unpacked=True)
            assert pace.peak <= room and len(card.asked) == len(set(card.asked)) <= 30, 'each is tried once'
            bits = [c.tower_bits for c in card.asked]
            assert bits == sorted(bits), 'unpacked weights are not packed again'
            assert card.length.seconds(pace) <= 1.03*card.least(), (cut, paper, more)


def test_what_runs_out_of_memory_is_tried_smaller_and_other_errors_are_errors(on_paper):
    for error in (torch.OutOfMemoryError('planted'), RuntimeError('CUDA error: out of memory'),
                  RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`')):
        card = Card(6., .2, error)
        cut, pace = soonest(card.search(), MICROS)
        assert card.asked[0] == Cut(16) and cut.micro_batch < 16 and pace.peak <= 6.
        assert soonest(Card(1., .2, error).search(), MICROS) is None
    with pytest.raises(RuntimeError, match='illegal'):
        soonest(Card(6., .2, RuntimeError('an illegal memory access')).search(), MICROS)


def test_a_card_whose_memory_cannot_be_watched_gets_the_largest():
    card = Card(79., .2)
    search = replace(card.search(), measure=lambda cut: replace(card(cut), peak=None))
    assert soonest(search, MICROS, unpacked=True)[0] == Cut(16) and card.asked == [Cut(16)]


def test_the_length_of_a_run():
    config = TrainConfig(epochs=2.5, micro_batch=4, accumulation=4)
    assert length_of(config, 100) == Length(18, 7), '7 steps a pass, the last of 4 examples'
    assert length_of(replace(config, max_steps=5), 100) == Length(5, 5)
    known = set(TrainConfig.__dataclass_fields__)
    if {'tower_cache', 'validate_steps', 'validate_clips'} <= known:
        config = replace(config, tower_cache=1e-6, validate_steps=5, validate_clips=20)
        assert length_of(config, 100, output=100., validated=30) == Length(18, 7, .1, 60)
        assert length_of(replace(config, augment=1.), 100, output=100., validated=8) == Length(18, 7, 0., 24)
    half = Length(18, 7, .5, 60)
    assert math.isclose(half.seconds(Pace(10., 4., .25)), 7*10 + 11*(10 - .5*4) + 60*.25)


def flight(hours_left, again=0., peak=13.2):
    "What `preflight` would say of a run of 1,500 steps of 12 s."
    found = Plan(Cut(8, 12), Pace(12., 2., 0., peak), Length(1500, 500, again), Budget({}, 0, 0), 36, {})
    return Preflight('tiny', 14.56, found, 2, 50, 1, hours_left)


def test_hours_and_sessions_in_words():
    assert flight(None).hours == 5. and flight(None, again=1.).hours == pytest.approx(5 - 2000/3600)
    assert flight(None).lines == ['8 x 2 examples a step, 12 of 36 layers computed once, the tower in 4 bits: 12.0 s a '
                                  'step, 13.2 of 14.6 GiB', '1500 steps take 5.0 hours']
    assert flight(None, again=1., peak=None).lines[0].endswith(': 12.0 s a step in the first epoch, 10.0 s later')
    assert flight(11.75).lines[1] == '1500 steps take 5.0 hours; 11.8 hours are left' and flight(11.75).sessions == 1
    short = flight(2.)
    assert short.sessions == 3 and short.to_dict()['sessions'] == 3 and json.dumps(short.to_dict())
    assert '5.0 hours, and 2.0 hours are left: it takes 3 such sessions' in short.lines[1]
    assert 'one every 50 steps' in short.lines[1] and '30 min are left' in flight(.5).lines[1]
    assert short.config(TrainConfig(seed=3)) == TrainConfig(seed=3, micro_batch=8, accumulation=2, kept_layers=12)


def test_one_model_is_loaded_and_nothing_of_a_try_reaches_the_run(shards, tmp_path, monkeypatch):
    "A run before a preflight, and one after it in which layers keep what they computed: the same to the bit."
    before = fit(shards, tmp_path/'before', config=SHORT)
    loads, load, measured = [], planning.load_model, []
    def measure(work):
        work()
        measured.append(1)
        if len(measured) < 3: raise torch.OutOfMemoryError('planted')
        return Measured(1., None)
    monkeypatch.setattr(planning, 'load_model', lambda *a: (loads.append(a), load(*a))[1])
    monkeypatch.setattr(planning, 'measure', measure)
    monkeypatch.setenv('VLMTEMPORAL_UNTIL', '2000-01-01T00:00')
    p = train.preflight(shards, config=replace(SHORT, accumulation=4, max_steps=30), hours=.001)
    assert len(loads) == 1 and len(measured) == 3 and p.micro_batch == 2 and p.accumulation == 4
    assert p.plan.pace.seconds >= 4. and p.hours_left == .001 and p.sessions > 1
    monkeypatch.undo()
    after = fit(shards, tmp_path/'after', config=replace(SHORT, kept_layers=4))
    assert before.history == after.history


def test_where_nothing_fits_there_is_one_sentence(shards, monkeypatch):
    def full(*_, **__): raise torch.OutOfMemoryError('planted')
    monkeypatch.setattr(planning, 'load_model', full)
    says = r'one example at a time does not fit 14\.6 GiB, though \d+\.\d were planned'
    with pytest.raises(BadInput, match=says): train.preflight(shards)
    with pytest.raises(BadInput, match='cannot be shared by 3 processes'): train.preflight(shards, processes=3)


def test_train_takes_the_cut_of_preflight(shards, tmp_path, monkeypatch):
    "A new run is cut up first, in a process of its own; one that is begun keeps its cut."
    asked, said, data = [], [], Shards(shards/'train')
    def answer(words, say):
        asked.append([str(w) for w in words])
        return ['loading', json.dumps(flight(2.).to_dict())]
    monkeypatch.setattr(train, 'run_command', answer)
    config = TrainConfig(micro_batch=2, accumulation=8)
    cut = train.cut_first(data, tmp_path/'run', 'tiny', config, 2, said.append)
    assert (cut.micro_batch, cut.accumulation, cut.kept_layers) == (8, 2, 12) and asked[0][0] == 'preflight'
    assert asked[0][asked[0].index('--processes') + 1] == '2' and 'micro_batch=2' in asked[0]
    assert len(said) == 2 and all(line.startswith('preflight: ') for line in said)
    begun = replace(SHORT, kept_layers=3)
    fit(shards, tmp_path/'run', config=begun)
    other = replace(SHORT, micro_batch=1, accumulation=2)
    assert train.cut_first(data, tmp_path/'run', 'tiny', other, 1, said.append) == begun and len(asked) == 1
    def broken(words, say): raise VLMTemporalError('it broke')
    monkeypatch.setattr(train, 'run_command', broken)
    with pytest.raises(VLMTemporalError, match='it broke'):
        train.cut_first(data, tmp_path/'other', 'tiny', config, 1, said.append)


def test_the_bench_runs_and_goes_on(tmp_path):
    "`bench/train.py` on the small model; what is finished is not run again."
    command = [*started(ROOT/'bench'/'train.py'), tmp_path, '--model', 'tiny', '--effective', '2', '--steps', '2',
               '--rows', 'ours:2,ours:2:nonsense=1', '--out', tmp_path/'out.json']
    done = subprocess.run([*command, '--tables', 'counts'], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and '| ours:2 | later |' in done.stdout, done.stderr
    assert 'no setting nonsense in this version' in done.stdout
    kept = json.loads((tmp_path/'out.json').read_text())
    counted = kept['counts ours:2 2']['found']
    assert counted['first epoch']['flops'] > 1.1*counted['later']['flops'] > 1e9, 'the tower is remembered'
    assert counted['first epoch']['bytes'] > counted['later']['bytes'] > 1e8
    again = [*command[:-3], 'ours:2', *command[-2:], '--tables', 'counts']
    done = subprocess.run(again, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and 'counts ours:2' not in done.stderr and '| ours:2 | later |' in done.stdout
