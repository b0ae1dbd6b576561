"Machines train together: two nodes of one CPU process each, as torchrun would start them, with folders of their own."
import json, os, shutil, socket

import pytest
from safetensors.torch import load_file

import forked
from vlmtemporal.adapters import Adapter
from vlmtemporal.basics import file_hash
from vlmtemporal.checkpoints import last_checkpoint

def options(*settings): return [a for s in settings for a in ('--set', s)]
SETTINGS = options('micro_batch=1', 'accumulation=2', 'learning_rate=0.002', 'validate_steps=0', 'save_steps=1')


def history(run): return json.loads((run/'history.json').read_text())
def weights_hash(run): return file_hash(run/'adapter'/'adapter_model.safetensors')


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def environment(port, node, count=2, **more):
    "What torchrun tells the only process of a node."
    where = dict(RANK=node, LOCAL_RANK=0, WORLD_SIZE=count, LOCAL_WORLD_SIZE=1, MASTER_ADDR='127.0.0.1',
                 MASTER_PORT=port, TORCH_CPP_LOG_LEVEL='ERROR')
    return os.environ | {k: str(v) for k, v in (where | more).items()}


def started(env, *command):
    "A process by these words, and what it says."
    return forked.Command(forked.started(*command), env=env, stdout=-1, stderr=-1, text=True)


def ended(process): return process.communicate(timeout=900), process.returncode


def both(shards, folder, *more, second=()):
    "Two nodes with a run, and the second with shards, of its own, until they end."
    port, words = free_port(), [*SETTINGS, *options('max_steps=2'), *more]
    nodes = [started(environment(port, i), '-m', 'vlmtemporal.cli', 'train', data, folder/f'run-{i}', *words, *own)
             for i, (data, own) in enumerate([(shards, ()), (folder/'shards', second)])]
    return [ended(node) for node in nodes]


@pytest.fixture(scope='module')
def pair(shards, tmp_path_factory):
    "The folder of two nodes that have trained, and what they said."
    folder = tmp_path_factory.mktemp('pair')
    shutil.copytree(shards, folder/'shards')
    return folder, both(shards, folder)


def test_two_nodes_train_as_one(pair, shards, tmp_path):
    "Each with its own shards and folder; one killed, both go on from what both have; other settings are refused."
    folder, (((out, err), code), ((other, complaint), last)) = pair
    runs = [folder/'run-0', folder/'run-1']
    assert (code, last) == (0, 0) and '2 steps in' in out and f'adapter in {runs[0]}/adapter' in out, err + complaint
    assert 'the first node has the adapter' in other and not (runs[1]/'adapter').exists()
    assert 'arning' not in err + complaint and 'destroy_process_group' not in err + complaint, err + complaint
    assert Adapter.load(runs[0]/'adapter').training['processes'] == 2
    for i, run in enumerate(runs):
        parts = [p.name for p in last_checkpoint(run).glob('rng_state*')]
        assert last_checkpoint(run).name == 'checkpoint-2' and parts == [f'rng_state_{i}.pth']

    shutil.copytree(folder, tmp_path/'again')
    folder = tmp_path/'again'
    shutil.rmtree(folder/'run-0'/'adapter')
    shutil.rmtree(folder/'run-0'/'checkpoints'/'checkpoint-2') # this node died while it wrote
    ((out, err), code), (_, last) = both(shards, folder, '--resume')
    assert (code, last) == (0, 0) and 'resumed from step 1' in out, err
    assert history(folder/'run-0') == history(runs[0]) and weights_hash(folder/'run-0') == weights_hash(runs[0])

    for (out, err), code in both(shards, folder, '--resume', second=options('seed=1')):
        assert code == 2 and not out and err.count('error:') == 1 and 'Traceback' not in err
        assert 'process 1: ' in err and 'was started with another config (seed)' in err, err


def test_what_a_node_is_told(cli, shards, tmp_path):
    "Half an environment, no address, a first node that nobody joins: one sentence, and soon."
    command = '-m', 'vlmtemporal.cli', 'train', shards, tmp_path/'run', *SETTINGS
    (_, err), code = ended(started(environment(1, 0, MASTER_PORT=''), *command))
    assert code == 2 and 'MASTER_PORT: is not set, though others of its kind are' in err and err.count('\n') == 1
    (_, err), code = ended(started(environment(free_port(), 0, VLMTEMPORAL_WAIT='0.05'), *command))
    assert code == 1 and 'not all of 2 processes met there within 0.05 min' in err and err.count('\n') == 1, err
    assert not (tmp_path/'run').exists()
    code, _, err = cli('train', shards, tmp_path/'run', '--nodes', 2, '--node', 0)
    assert code == 2 and '--master: nodes must find the first one' in err


COUNTING = """
import json, sys
from collections import Counter
from pathlib import Path
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback
from vlmtemporal.loading import load_model
from vlmtemporal.processes import any_process, rank, together
from vlmtemporal.shards import find_split
from vlmtemporal.trainer import TrainConfig, make_trainer
config = TrainConfig(max_steps=3, micro_batch=1, accumulation=4, save_steps=9, validate_steps=0)
class Third(TrainerCallback): # DDP sorts its buckets in the second
    def on_step_end(self, args, state, control, **_): # after the votes: this callback is the last
        if state.global_step == 2: self.profile = profile(activities=[ProfilerActivity.CPU]).__enter__()
        if state.global_step == 3: self.profile.__exit__(None, None, None)
out = Path(sys.argv[2])
with together(out):
    trainer = make_trainer(load_model('tiny'), find_split(sys.argv[1], 'train'), out, config)
    third = Third()
    trainer.add_callback(third)
    trainer.train()
names = Counter(e.name for e in third.profile.events() if e.name.startswith('c10d::'))
if not rank(): print(json.dumps(names))
"""


def test_what_a_step_tells_the_other_process(shards, tmp_path):
    "Gradients, the number of tokens, the loss, and one vote, however many forward passes a step has."
    port = free_port()
    both = [started(environment(port, i, LOCAL_RANK=i, LOCAL_WORLD_SIZE=2), '-c', COUNTING, shards, tmp_path/'run')
            for i in (0, 1)]
    ((out, err), code), (_, last) = map(ended, both)
    assert (code, last) == (0, 0), err
    counted = json.loads(out.splitlines()[-1]) # TRL gathered 8 times, DDP sent its buffers
    assert counted == {'c10d::allgather_': 2, 'c10d::allreduce_': 3}, 'two buckets of gradients, and the vote'


SPREAD = """
import sys
from collections import Counter
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
PartialState._prepare_backend = lambda self, *_, **__: ('gloo', DistributedType.MULTI_GPU) # it spreads over GPUs alone
from vlmtemporal import cli, train
end = train._trained_to_end
def looked(watch, checkpoint):
    done = end(watch, checkpoint)
    spread = [n for n, p in watch.loaded.model.named_parameters() if isinstance(p.data, DTensor)]
    own = sum(p.to_local().numel() for p in watch.loaded.model.parameters() if isinstance(p.data, DTensor))
    whole = sum(p.numel() for p in watch.loaded.model.parameters() if isinstance(p.data, DTensor))
    tower = any('visual' in n for n in spread)
    four_bits = any('down_proj.base_layer.weight' in n for n in spread)
    print('spread', four_bits, tower, round(whole/own, 1))
    return done
train._trained_to_end, train.check_sharded = looked, lambda *_: None
cli.main()
"""


def test_a_base_that_is_spread(pair, shards, tmp_path):
    "FSDP on two CPU processes: losses and adapter are those of processes that have the whole base; it goes on, too."
    run = tmp_path/'run'
    def spread(*more):
        port, words = free_port(), ['train', shards, run, *SETTINGS, *options('max_steps=2'), '--sharded', *more]
        env = dict(LOCAL_WORLD_SIZE=2, ACCELERATE_TORCH_DEVICE='cpu')
        nodes = [started(environment(port, i, LOCAL_RANK=i, **env), '-c', SPREAD, *words) for i in (0, 1)]
        return [ended(node) for node in nodes]
    def check():
        for a, b in zip(history(pair[0]/'run-0'), history(run), strict=True):
            assert b['loss'] == pytest.approx(a['loss'], rel=1e-3)
        one, two = (load_file(r/'adapter'/'adapter_model.safetensors') for r in (pair[0]/'run-0', run))
        assert one.keys() == two.keys() and all(one[k].shape == two[k].shape for k in one)
        apart = sum(float(((one[k] - two[k])**2).sum()) for k in one)
        assert apart < 1e-4*sum(float((one[k]**2).sum()) for k in one)

    ((out, err), code), (_, last) = spread()
    assert (code, last) == (0, 0) and 'spread True False 2.0' in out, out + err
    check()
    shutil.rmtree(run/'adapter')
    shutil.rmtree(run/'checkpoints'/'checkpoint-2')
    ((out, err), code), _ = spread('--resume')
    assert code == 0 and 'resumed from step 1' in out, err
    check()


def test_a_base_is_not_spread_over_a_cpu(cli, shards, tmp_path, monkeypatch):
    monkeypatch.setenv('VLMTEMPORAL_TESTS_PYTHON', forked.python())
    code, _, err = cli('train', shards, tmp_path/'run', *SETTINGS, '--processes', 2, '--sharded')
    assert code == 2 and '--sharded: accelerate spreads a base over GPUs alone' in err and err.count('error:') == 1
