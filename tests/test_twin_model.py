"The model that ships: what trained it shares no seed, person or frame with what it is judged on; it can do its work."
import hashlib, json

import numpy as np

from vlmtemporal.adapters import Adapter, Calibration
from vlmtemporal.backbones import bundled_model
from vlmtemporal.basics import file_hash, read_json
from vlmtemporal.frames import FrameSpec
from vlmtemporal.twin import MOCK
from vlmtemporal.twin_drawing import render
from vlmtemporal.twin_script import session_script, world

RECIPE = read_json(bundled_model()/'recipe.json')
ADAPTER = Adapter.load('tiny')
BEFORE = ADAPTER.training['before'] # the first stage of its training, on all sessions of the same people
TWIN = BEFORE['twin']


def sessions(recipe, only=()):
    "The scripts of a twin."
    for i in range(1, recipe['subjects'] + 1):
        for j in range(1, recipe['sessions'] + 1):
            if not only or f'U{100 + i:04d}' in only:
                yield session_script(recipe['seed'], f'U{100 + i:04d}', f'S{j:02d}00', recipe['boxes'],
                                     recipe['taxonomy'])


EVALUATED = sorted(int(p.name.split('.')[0]) for p in (bundled_model()/'results').glob('1*.json.gz'))
PEOPLE = sorted(int(p.name.split('.')[0]) for p in (bundled_model()/'results').glob('2*.json.gz'))

def fitted(): return sessions(TWIN)
def judged():
    yield from sessions(MOCK)
    for seed in EVALUATED: yield from sessions(TWIN | dict(seed=seed, subjects=8, sessions=10), ('U0108',))
    for seed in PEOPLE: yield from sessions(TWIN | dict(seed=seed, subjects=8, sessions=2), ('U0108',))


def test_files_are_the_recipes():
    assert EVALUATED == [101, 102, 103] and [*range(201, 213)] == PEOPLE and TWIN['seed'] == 7
    assert RECIPE['sha256'] == file_hash(bundled_model()/'model.safetensors')
    assert ADAPTER.people == tuple(f'U010{i}' for i in range(1, 7)) and ADAPTER.base == 'tiny'
    assert ADAPTER.calibration.people == ('U0107',)


def test_results_are_the_shipped_files():
    "Of the adapter that ships; those of 101 to 103, of what it was before its second stage."
    place = bundled_model()
    hashes = {k: file_hash(place/k) for k in ('model.safetensors', 'adapter/adapter_model.safetensors')}
    for name in (*EVALUATED, *PEOPLE, 'free-101'):
        said = read_json(place/'results'/f'{name}.json.gz')['provenance']
        assert said['model']['weights'] == {'model.safetensors': hashes['model.safetensors']}
        ours = hashes['adapter/adapter_model.safetensors'] if name in PEOPLE else BEFORE['weights']
        (adapter, weights), = said['adapters'].items()
        assert weights == ours
        fitted = Calibration.from_dict(said['training'][adapter]['calibration'])
        assert (fitted == ADAPTER.calibration) == (name in PEOPLE)


def test_second_stage_saw_the_same_people():
    "Fewer sessions of the same twin, and other light."
    now = ADAPTER.training
    assert now['twin'] | dict(sessions=TWIN['sessions']) == TWIN and now['twin']['sessions'] < TWIN['sessions']
    assert now['config']['augment'] == 1 and 'augment' not in BEFORE['config']


def test_no_seed_and_no_person_twice():
    theirs, ours = {(s.seed, s.subject) for s in fitted()}, {(s.seed, s.subject) for s in judged()}
    assert not theirs & ours and RECIPE['first_world'] > max(seed for seed, _ in theirs | ours)
    parts = ('places', 'camera', 'box', 'shirt', 'items', 'build')
    looks = lambda who: json.dumps([getattr(world(*who), k) for k in parts], default=str)
    assert not {looks(w) for w in theirs} & {looks(w) for w in ours}


def test_no_frame_and_no_plan_twice():
    def frames(script):
        drawn = (render(script, t, (64, 48))[:, :, :3] for t in np.linspace(0, script.duration, 8))
        return {hashlib.sha256(picture.tobytes()).hexdigest() for picture in drawn}
    def plan(script): return json.dumps([(s.operation, s.start, s.end) for s in script.segments])
    theirs, ours = list(fitted()), list(judged())
    assert not {plan(s) for s in theirs} & {plan(s) for s in ours}
    assert not set().union(*map(frames, theirs[::4])) & set().union(*map(frames, ours[::4]))


def test_it_knows_the_task_only_with_its_adapter(mock, tmp_path):
    "The mock data's U0108, with the frames that the adapter was trained on."
    from vlmtemporal.dataset import build
    from vlmtemporal.evaluation import evaluation_set, predict_examples
    from vlmtemporal.loading import load_model
    from vlmtemporal.shards import find_split
    build(mock, tmp_path, 'test', FrameSpec(ADAPTER.spec.sampler), max_clips=32)
    test = find_split(tmp_path, 'test')
    found = [e for e in evaluation_set(test, 0) if e.kind == 'boundary']
    def right(adapter):
        said = predict_examples(load_model('tiny', adapter), found, test.taxonomy)
        return np.mean([p.answer.dominant_operation == e.answer.dominant_operation for p, e in zip(said, found)])
    assert right('tiny') >= .7 and right(None) < .35
