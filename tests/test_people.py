"The headline is over twelve people of twelve seeds, whom nobody has trained on; what other light costs is known."
import re

from vlmtemporal.adapters import Adapter
from vlmtemporal.backbones import bundled_model
from vlmtemporal.basics import file_hash, read_json
from vlmtemporal.eval import compare, rescore
from vlmtemporal.robustness import AS_RECORDED, CONDITIONS, RECORDINGS, Trial

RESULTS = bundled_model()/'results'
FILES = sorted(RESULTS.glob('2*.json.gz'))
ADAPTER = bundled_model()/'adapter'/'adapter_model.safetensors'


def test_twelve_people_of_the_model_that_ships():
    "Their files are of these very weights, are small, and pool to twelve groups."
    assert [f.name for f in FILES] == [f'{seed}.json.gz' for seed in range(201, 213)]
    assert sum(f.stat().st_size for f in FILES) < 4*2**20
    for f in FILES:
        said = read_json(f)['provenance']
        assert said['model']['weights'] == {'model.safetensors': file_hash(bundled_model()/'model.safetensors')}
        assert list(said['adapters'].values()) == [file_hash(ADAPTER)]
    people = rescore(*FILES)
    assert len(set(people.comparison.groups)) == 12 and not people.changed
    ours = people.comparison.reports[people.models[1].name]['all clips']['OCA']
    assert ours['low'] > people.comparison.reports[people.models[0].name]['all clips']['OCA']['high']
    assert all(len(r.sessions.sessions) >= 1 for r in people.parts)


def test_nobody_of_them_was_seen_in_training():
    twin = Adapter.load('tiny').training['twin']
    assert twin['seed'] not in range(201, 213)
    assert read_json(bundled_model()/'recipe.json')['first_world'] > 212


def test_old_claims_are_gone(root):
    "What ten sessions of one person said is not said of the model any more."
    pages = [root/'README.md', root/'nbs'/'index.ipynb'] # page 3 has that person's row, as one of three
    for page in pages:
        if not page.exists(): continue # not in an installed package
        text = page.read_text()
        assert not re.search(r'tiny adapter \| 0\.94 \[0\.92, 0\.96\]|0\.75 \[0\.71, 0\.80\]', text), page
        assert 'twelve people' in text and 'over 12 people' in text


def test_files_that_shipped_before_are_read():
    "Whatever the format of their day: results by seed, samplers by run."
    old = [rescore(RESULTS/f'{seed}.json.gz') for seed in (101, 102, 103)]
    assert not any(r.changed for r in old) and rescore(RESULTS/'free-101.json.gz').clips == old[0].clips
    assert compare({f.name: f for f in sorted(RESULTS.glob('sampler-*-0.json.gz'))}).rows


def test_robustness_is_known():
    "Every condition was tried on the same clips of twelve people, with the adapter that ships."
    trial = Trial.from_dict(read_json(RESULTS/'robustness.json.gz'))
    assert trial.made_by['adapter'] == file_hash(ADAPTER) and len(set(trial.people)) == 12
    assert set(trial.answers) >= {AS_RECORDED, *CONDITIONS, *RECORDINGS}
    assert len(trial.table.rows) == len(trial.answers)
