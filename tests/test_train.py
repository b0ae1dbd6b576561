"A training run is killed; what it had finished is kept."
import json, os, signal, subprocess, sys, time
from pathlib import Path

from vlmtemporal.train import last_checkpoint

SETTINGS = [a for s in ('max_steps=6', 'save_steps=2', 'micro_batch=2', 'accumulation=1', 'learning_rate=0.002') for a in ('--set', s)]


def test_killed_and_resumed(cli, shards, video, tmp_path):
    assert cli('train', shards, tmp_path/'whole', *SETTINGS)[0] == 0
    out = tmp_path/'killed'
    process = subprocess.Popen([str(Path(sys.executable).parent/'vlmtemporal'), 'train', str(shards), str(out), *SETTINGS], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 300
    while last_checkpoint(out) is None and time.time() < deadline and process.poll() is None: time.sleep(.02)
    process.send_signal(signal.SIGKILL); process.wait()
    assert (at := last_checkpoint(out)) is not None and not (out/'adapter').exists()

    code, _, err = cli('train', shards, out, *SETTINGS)
    assert code == 2 and '--resume' in err, 'a run is never mixed with another'
    code, text, err = cli('train', shards, out, *SETTINGS, '--resume')
    assert code == 0 and f'resumed from step {at.name[11:]}' in text, err

    history = [json.loads((tmp_path/run/'history.json').read_text()) for run in ('whole', 'killed')]
    assert [h['step'] for h in history[1]] == [1, 2, 3, 4, 5, 6]
    assert all(abs(a['loss'] - b['loss']) < 1e-4 for a, b in zip(*history)), history
    code, answer, _ = cli('predict', video, '--adapter', out/'adapter', '--json')
    assert code == 0 and json.loads(answer)['parsed_by'] == 'constrained'

    weights = out/'adapter'/'adapter_model.safetensors'; weights.write_bytes(weights.read_bytes()[:1000])
    code, text, err = cli('predict', video, '--adapter', out/'adapter')
    assert code == 2 and not text and 'cannot be loaded' in err and 'Traceback' not in err
