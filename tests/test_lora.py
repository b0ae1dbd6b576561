"peft's layers in one step of autograd: the same numbers and gradients as peft's, whatever is done to them meanwhile."
import copy, weakref

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from vlmtemporal import lora
from vlmtemporal.kernels import fuse_adapters, guard_fp16, quiet, run_in_float32
from vlmtemporal.loading import load_model
from vlmtemporal.shards import Shards
from vlmtemporal.trainer import TrainConfig, make_trainer

WIDTH, INNER = 64, 128

NEAR = 3e-6 if torch.cuda.is_available() else 1e-6 # a GPU adds up in another order


def nf4(layer, dtype=torch.float32):
    "The layer in four bits, double-quantised, as the loader makes it."
    small = bnb.nn.Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, dtype, True, 'nf4')
    small.weight = bnb.nn.Params4bit(layer.weight.data.to(dtype), requires_grad=False, compress_statistics=True,
                                     quant_type='nf4', module=small)
    if layer.bias is not None: small.bias = nn.Parameter(layer.bias.data.to(dtype), requires_grad=False)
    small.support_avx512bf16_for_cpu = False
    return small.to('cpu')


class Attention(nn.Module):
    "Layers by the names that all families share, without the softmax."
    def __init__(self, bias):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, n, bias) for n in (WIDTH, WIDTH//2, WIDTH//2))
        self.o_proj = nn.Linear(WIDTH, WIDTH, False)
    def forward(self, x, y=None):
        y = x if y is None else y
        return self.o_proj(self.q_proj(x)*torch.cat([self.k_proj(y), self.v_proj(y)], -1))


class Feed(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(WIDTH, INNER, False), nn.Linear(WIDTH, INNER, False)
        self.down_proj = nn.Linear(INNER, WIDTH, False)
    def forward(self, x): return self.down_proj(silu(self.gate_proj(x))*self.up_proj(x))


class Block(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.attention, self.feed = Attention(bias), Feed()
    def forward(self, x):
        x = x + self.attention(x)
        return x + self.feed(x)


TARGETS = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']


def block(bits=32, bias=True, dtype=torch.float32, targets=TARGETS, **settings):
    "A peft model of one block whose adapters have learnt something, always the same one."
    torch.manual_seed(0)
    base = Block(bias).requires_grad_(False).to(dtype)
    for parent in (base.attention, base.feed):
        for name, layer in list(parent.named_children()):
            if bits == 4: setattr(parent, name, nf4(layer, dtype))
    if bits == 4: base.is_loaded_in_4bit = True
    config = LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False, **settings)
    return get_peft_model(base, config).train()


def some_input(*shape, dtype=torch.float32):
    return torch.randn(*shape or (2, 9), WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)


def results(model, x, run=None, **kwargs):
    "What a model answers, and the gradients of its input and of all that is trained."
    x, trained = x.clone().requires_grad_(), [p for p in model.parameters() if p.requires_grad]
    out = (run or model)(x, **kwargs)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)
    return [out.detach(), *torch.autograd.grad(out, [x, *trained], grad)]


def furthest(ours, theirs):
    assert len(ours) == len(theirs) and all(a.dtype == b.dtype for a, b in zip(ours, theirs))
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(ours, theirs)]
    return max(float((a - b).norm()/b.norm()) for a, b in pairs)


def fused(*args, **kwargs):
    model = block(*args, **kwargs)
    assert fuse_adapters(model) == len(kwargs.get('targets', TARGETS))
    return model


@pytest.fixture
def calls(monkeypatch):
    "How many layers each step of autograd computed, and which was one whose input is made of two."
    seen, right, right_of_two = [], lora.low_rank, lora.low_rank_of_two
    def counted(x, layers, dtype=None):
        seen.append(len(layers))
        return right(x, layers, dtype)
    def counted_of_two(*args):
        seen.append('of two')
        return right_of_two(*args)
    monkeypatch.setattr(lora, 'low_rank', counted)
    monkeypatch.setattr(lora, 'low_rank_of_two', counted_of_two)
    return seen


@pytest.mark.parametrize('bits', (32, 4))
@pytest.mark.parametrize('bias', (True, False))
@pytest.mark.parametrize('shape', ((2, 9), (7,), (1, 1), (2, 3, 5)))
def test_numbers_and_gradients_are_pefts(bits, bias, shape, calls):
    x, ours = some_input(*shape), fused(bits, bias)
    calls.clear()
    assert furthest(results(ours, x), results(block(bits, bias), x)) < NEAR
    assert calls == [3, 1, 2, 1], 'q, k, v in one step, gate and up in one'


@pytest.mark.parametrize('bits', (32, 4))
@pytest.mark.parametrize('dtype', (torch.float16, torch.bfloat16))
def test_under_autocast(bits, dtype):
    "16-bit weights, float32 adapters, as on a GPU; peft's own distance to float32 is the measure."
    x, exact = some_input(), results(block(32), some_input())
    with torch.autocast('cpu', dtype):
        theirs, ours = (results(m, x.to(dtype)) for m in (block(bits, dtype=dtype), fused(bits, dtype=dtype)))
    assert all(g.dtype == torch.float32 for g in ours[2:]) and furthest(ours, theirs) < .05
    if bits == 32: assert furthest([t.float() for t in ours], exact) < .05


def test_without_autocast_in_16_bits():
    "peft computes the adapters in float32 then; ours are in the format of the layer, and as near."
    theirs, ours = (results(m, some_input(dtype=torch.bfloat16)) for m in (block(4, dtype=torch.bfloat16),
                                                                           fused(4, dtype=torch.bfloat16)))
    assert furthest(ours, theirs) < .05


def test_a_scaler_steps_and_skips():
    "Scaled gradients arrive in float32 and are the same when they are scaled back; an infinite one is seen."
    updates = []
    for model in (block(4, dtype=torch.float16), fused(4, dtype=torch.float16)):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.)
        scaler = torch.amp.GradScaler('cpu', init_scale=2.**8)
        before = [p.detach().clone() for p in optimizer.param_groups[0]['params']]
        for factor in (1., float('inf')):
            optimizer.zero_grad()
            with torch.autocast('cpu', torch.float16): out = model(some_input(dtype=torch.float16))
            loss = out.float().square().mean()
            scaler.scale(loss*factor).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 2.**7, 'the second step was skipped'
        updates.append([p - b for p, b in zip(optimizer.param_groups[0]['params'], before)])
    assert furthest(updates[1], updates[0]) < .05


@pytest.mark.parametrize('reentrant', (False, True))
def test_recomputed(reentrant, calls):
    ours, x = fused(4), some_input()
    calls.clear()
    def run(x): return checkpoint(ours, x, use_reentrant=reentrant)
    if reentrant: # only `backward` goes with it
        x.requires_grad_()
        run(x).sum().backward()
        found, ours = [p.grad for p in ours.parameters() if p.requires_grad], block(4)
        ours(x).sum().backward()
        assert furthest(found, [p.grad for p in ours.parameters() if p.requires_grad]) < NEAR
    else: assert furthest(results(ours, x, run), results(block(4), x)) < NEAR
    assert calls[-4:] == [3, 1, 2, 1]


def shared_of(model, parent='attention'):
    return getattr(model.base_model.model, parent).get_submodule('q_proj').forward.shared


def test_nothing_waits_after_a_forward_pass(calls):
    "Not even when it fails between two layers; the next one begins anew."
    ours, x = fused(), some_input()
    ours(x)
    shared, attention = shared_of(ours), ours.base_model.model.attention
    assert shared.x is None and not shared.ready and not shared.open
    hook = attention.k_proj.register_forward_pre_hook(lambda *_: 1/0)
    with pytest.raises(ZeroDivisionError): ours(x)
    assert shared.x is None and not shared.ready and not shared.open
    hook.remove()
    calls.clear()
    assert furthest(results(ours, x), results(block(), x)) < NEAR and calls == [3, 1, 2, 1]


def test_outputs_live_no_longer_than_pefts():
    "Values that the pass has used up are gone although its result is still there."
    ours, x, seen = fused(), some_input().requires_grad_(), []
    value = ours.base_model.model.attention.v_proj
    hook = value.register_forward_hook(lambda m, args, out: seen.append(weakref.ref(out)))
    out = ours(x)
    hook.remove()
    assert out.requires_grad and seen[0]() is None


@pytest.mark.parametrize('targets', (['q_proj', 'v_proj'], ['k_proj'], ['up_proj', 'down_proj']))
def test_some_are_adapted(targets, calls):
    ours = fused(4, targets=targets)
    calls.clear()
    assert furthest(results(ours, some_input()), results(block(4, targets=targets), some_input())) < NEAR
    assert sum(calls) == len(targets)


def test_layers_with_different_inputs_share_no_more(calls):
    "Attention to something else: what is computed in vain is so once, in the first pass."
    targets = ['q_proj', 'k_proj', 'v_proj', 'o_proj']
    ours, theirs, x, y = fused(targets=targets), block(targets=targets), some_input(), some_input().flip(1)
    def run(model): return lambda x: model.base_model.model.attention(x, y)
    for expected in ([3, 3, 1], [1, 1, 1, 1]):
        calls.clear()
        assert furthest(results(ours, x, run(ours)), results(theirs, x, run(theirs))) < NEAR and calls == expected


def test_changed_between_two_passes():
    "The same input object, other numbers in it or in the adapters: nothing old is used."
    ours, theirs, x = fused(), block(), some_input()
    results(ours, x)
    with torch.no_grad():
        for m in (ours, theirs):
            for p in m.parameters():
                if p.requires_grad: p.mul_(1.5)
        ours_again, theirs_again = ours(x), theirs(x)
        x.neg_()
    assert furthest([ours_again], [theirs_again]) < NEAR and furthest(results(ours, x), results(theirs, x)) < NEAR


def test_off_merged_and_back(calls):
    ours, theirs, x = fused(), block(), some_input()
    with ours.disable_adapter(), theirs.disable_adapter(): assert torch.equal(ours(x), theirs(x))
    for model in (ours, theirs): model.merge_adapter()
    calls.clear()
    assert torch.equal(ours(x), theirs(x)) and not calls
    for model in (ours, theirs): model.unmerge_adapter()
    assert furthest(results(ours, x), results(theirs, x)) < 1e-5 and calls == [3, 1, 2, 1]
    assert furthest([ours.merge_and_unload()(x)], [theirs(x)]) < 1e-5


def test_another_adapter_and_two_at_once(tmp_path):
    ours, theirs, x = fused(), block(), some_input()
    for model in (ours, theirs):
        torch.manual_seed(5)
        model.add_adapter('other', LoraConfig(r=2, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False))
        model.set_adapter('other')
    assert furthest(results(ours, x), results(theirs, x)) < NEAR
    for model in (ours, theirs): model.base_model.set_adapter(['default', 'other'])
    assert furthest(results(ours, x), results(theirs, x)) < NEAR


@pytest.mark.parametrize('settings', (dict(use_dora=True), dict(lora_bias=True)))
def test_what_is_not_plain_runs_as_in_peft(settings, calls):
    ours, theirs, x = block(**settings), block(**settings), some_input()
    assert fuse_adapters(ours) == 0 and furthest(results(ours, x), results(theirs, x)) < NEAR and not calls


def test_a_bias_that_is_trained_gets_its_gradient(calls):
    "Three layers have one; the others do as before."
    ours, theirs, x = fused(), block(), some_input()
    for model in (ours, theirs):
        for name, p in model.named_parameters():
            if name.endswith('bias'): p.requires_grad_(True)
    calls.clear()
    assert furthest(results(ours, x), results(theirs, x)) < NEAR and calls == [1, 2, 1]


def test_dropout_is_pefts(calls):
    "In training the same random numbers; in evaluation, where nothing is dropped, ours."
    ours, theirs, x = fused(lora_dropout=.3), block(lora_dropout=.3), some_input()
    calls.clear()
    got = []
    for model in (ours, theirs):
        torch.manual_seed(9)
        got.append(results(model, x))
    assert all(map(torch.equal, *got)) and not calls
    assert furthest(results(ours.eval(), x), results(theirs.eval(), x)) < NEAR and calls == [3, 1, 2, 1]
    with torch.no_grad(): assert torch.equal(ours(x), theirs(x)), 'few tokens and no gradients: bitsandbytes knows best'


def test_fusing_draws_no_random_number_and_changes_no_weight():
    ours, theirs = block(4, lora_dropout=.1), block(4, lora_dropout=.1)
    state = torch.get_rng_state()
    assert fuse_adapters(ours) == 7 and torch.equal(torch.get_rng_state(), state)
    for (name, a), (other, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other and torch.equal(a, b) and a.requires_grad == b.requires_grad and a.grad is None
    assert [m.training for m in ours.modules()] == [m.training for m in theirs.modules()]


def test_saved_and_loaded(tmp_path):
    "The same files as an unfused model's, and they load into either."
    ours, theirs, x = fused(4), block(4), some_input()
    for name, model in (('ours', ours), ('theirs', theirs)): model.save_pretrained(tmp_path/name)
    a, b = (load_file(tmp_path/name/'adapter_model.safetensors') for name in ('ours', 'theirs'))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    again = PeftModel.from_pretrained(block(4).unload(), tmp_path/'ours', is_trainable=True).train()
    assert fuse_adapters(again) == 7 and furthest(results(again, x), results(theirs, x)) < NEAR
    with torch.no_grad(): [p.zero_() for p in ours.parameters() if p.requires_grad]
    ours.load_adapter(tmp_path/'theirs', 'default', is_trainable=True)
    assert furthest(results(ours, x), results(theirs, x)) < NEAR


def test_a_copy_has_its_own_weights():
    ours, x = fused(), some_input()
    twin = copy.deepcopy(ours)
    with torch.no_grad(): [p.zero_() for p in ours.parameters() if p.requires_grad]
    assert furthest(results(twin, x), results(block(), x)) < NEAR


def test_hooks_on_the_inner_layers_are_called():
    "Whoever looks at a base layer sees it: peft's forward runs then."
    ours, x, seen = fused(), some_input(), []
    layer = ours.base_model.model.attention.k_proj
    inner = layer.base_layer, layer.lora_A['default']
    hooks = [m.register_forward_hook(lambda m, args, out: seen.append(m)) for m in inner]
    assert furthest(results(ours, x), results(block(), x)) < NEAR and len(seen) == 2
    for h in hooks: h.remove()
    ours(x)
    assert len(seen) == 2


@pytest.mark.parametrize('name', ('attention.k_proj', 'attention.k_proj.base_layer', 'attention', 'feed.down_proj'))
def test_a_module_in_float32_stays_so(name):
    "As the fp16 guard makes it: numbers beyond fp16 come out whole, beside others in fp16."
    def widened(model):
        run_in_float32(model.base_model.model.get_submodule(name))
        return model
    x, models = some_input(dtype=torch.float16), [block(4, dtype=torch.float16), fused(4, dtype=torch.float16)]
    with torch.autocast('cpu', torch.float16): theirs, ours = (results(widened(m), x) for m in models)
    assert furthest(ours, theirs) < .05


def test_fusing_under_autocast_leaves_nothing_behind():
    "What the trial multiplies with is no part of autocast's memory."
    x = some_input(dtype=torch.float16)
    with torch.autocast('cpu', torch.float16):
        ours, theirs = fused(4, dtype=torch.float16), block(4, dtype=torch.float16)
        for m in (ours, theirs): run_in_float32(m.base_model.model.attention.k_proj.base_layer)
        assert furthest(results(ours, x), results(theirs, x)) < .05


def test_the_guard_finds_the_same_module():
    found = []
    for model in (block(4, dtype=torch.float16), fused(4, dtype=torch.float16)):
        model.base_model.model.feed.up_proj.base_layer.weight.quant_state.offset.mul_(1e5)
        found.append(guard_fp16(model, lambda m=model: m(some_input(dtype=torch.float16))))
    assert found[0] == found[1] and found[0], found


def losses(shards, out, calls, **settings):
    "Of five steps; `calls` are those of the steps alone."
    config = TrainConfig(max_steps=5, micro_batch=2, accumulation=1, learning_rate=2e-3, save_steps=100, **settings)
    with quiet():
        trainer = make_trainer(load_model('tiny'), Shards(shards/'train'), out, config)
        trainer.args.save_strategy = 'no'
        calls.clear()
        trainer.train()
    return [h['loss'] for h in trainer.state.log_history if 'loss' in h]


def test_a_training_has_the_same_losses(shards, tmp_path, calls):
    "Of `tiny` in NF4, with recomputing."
    ours = losses(shards, tmp_path/'ours', calls)
    assert calls[:4] == [3, 1, 2, 'of two'] and len({calls.count(n) for n in (3, 1, 2, 'of two')}) == 1
    theirs = losses(shards, tmp_path/'theirs', calls, fused=False)
    assert not calls and len(ours) == 5 and max(abs(a - b)/b for a, b in zip(ours, theirs)) < 1e-5
