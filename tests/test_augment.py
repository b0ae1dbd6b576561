"Other light in training: the same for the same seed, pass and example, wherever a run was killed."
import json, shutil
from dataclasses import replace

import numpy as np
import pytest

from vlmtemporal.augment import Look, as_seen
from vlmtemporal.basics import BadInput, file_hash
from vlmtemporal.train import fit
from vlmtemporal.trainer import TrainConfig

LIT = TrainConfig(max_steps=5, save_steps=3, micro_batch=2, accumulation=1, learning_rate=2e-3, augment=1.)


@pytest.fixture(scope='module')
def four(mock, tmp_path_factory):
    "Four examples: a pass is two steps."
    from vlmtemporal.dataset import build
    out = tmp_path_factory.mktemp('four')/'shards'
    build(mock, out, 'train', max_clips=4)
    return out


def test_resumed_in_another_pass_and_light(four, tmp_path):
    "Killed after step 3, in the second pass: the losses and the adapter are the uninterrupted run's, to the bit."
    fit(four, tmp_path/'whole', config=LIT)
    shutil.copytree(tmp_path/'whole', tmp_path/'killed')
    for gone in ('adapter', 'checkpoints/checkpoint-5'): shutil.rmtree(tmp_path/'killed'/gone)
    assert fit(four, tmp_path/'killed', config=LIT, resume=True).resumed_from == 3
    losses, again = (json.loads((tmp_path/n/'history.json').read_text()) for n in ('whole', 'killed'))
    assert losses == again
    kept, found = (file_hash(tmp_path/n/'adapter'/'adapter_model.safetensors') for n in ('whole', 'killed'))
    assert kept == found
    on = replace(LIT, start=str(tmp_path/'whole'/'adapter'), max_steps=1, augment=0.)
    with pytest.raises(BadInput, match='lora_r'): fit(four, tmp_path/'no', config=replace(on, lora_r=8))


def test_one_look_a_clip():
    "Frames of a clip differ by their noise alone."
    grey = np.full((6, 40, 40, 3), 128, np.uint8)
    for i in range(60):
        seen = as_seen(grey, 1, 0, i)
        assert np.ptp(seen.mean((1, 2, 3))) < 2 and seen.shape == grey.shape and (seen == as_seen(grey, 1, 0, i)).all()
    assert (Look(exposure=.2)(grey) == 179).all() and (Look(gamma=2.)(grey) == 64).all()


@pytest.mark.parametrize('value', [-.1, 2.1, True, float('nan')])
def test_refused(value):
    with pytest.raises(BadInput, match='augment'): TrainConfig(augment=value)
