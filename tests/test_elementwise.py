"Kernels in Triton's interpreter and compiled for cards that are not here; a wider tower; training with and without."
import os, subprocess, sys, warnings
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import pad, silu
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from vlmtemporal import elementwise, tower_weights
from vlmtemporal.backbones import bundled_model
from vlmtemporal.basics import BadInput, VLMTemporalWarning
from vlmtemporal.elementwise import gated, gated_back, turned
from vlmtemporal.kernels import unpack, widen_feed_forward
from vlmtemporal.loading import load_model
from vlmtemporal.shards import Shards
from vlmtemporal.trainer import TrainConfig, make_trainer, save_adapter

needs_triton = pytest.mark.skipif(not find_spec('triton'), reason='Triton is not installed')
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
interpreted = pytest.mark.skipif(not INTERPRETED, reason='runs in a process of its own, with TRITON_INTERPRET=1')


def apart(a, b): return float((a.detach().float() - b.detach().float()).norm()/b.detach().float().norm())


@needs_triton
def test_the_kernels_in_the_interpreter():
    "The tests below that are marked `interpreted`."
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', __file__, '-k', 'interpreted']
    r = subprocess.run(command, env={**os.environ, 'TRITON_INTERPRET': '1'}, capture_output=True, text=True)
    assert r.returncode == 0 and ' passed' in r.stdout and 'skipped' not in r.stdout, r.stdout + r.stderr


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@interpreted
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('columns', [1, 7, 64, 1500])
def test_interpreted_gate(columns, dtype):
    "Odd sizes; inputs that are halves of one tensor, and a derivative that lies otherwise."
    both = draw(2, 3, 2*columns, dtype=dtype)
    gate, up = (x.detach().requires_grad_() for x in both.split(columns, -1))
    assert elementwise._ways(gate) is elementwise._TRITON
    d = draw(3, 2, columns, seed=1, dtype=dtype).transpose(0, 1)
    ours = gated(gate, up)
    found = ours, *torch.autograd.grad(ours, (gate, up), d)
    wide = [x.detach().double().requires_grad_() for x in (gate, up)]
    truth = silu(wide[0])*wide[1]
    right = truth, *torch.autograd.grad(truth, wide, d.double())
    assert all(a.dtype == dtype and apart(a, b) < TOLERANCE[dtype] for a, b in zip(found, right))
    kept = gate.detach().clone()
    assert torch.equal(gated(kept, up.detach(), out=kept), ours) and torch.equal(kept, ours)
    spent = d.contiguous().clone()
    to_gate, to_up = gated_back(gate.detach(), up.detach(), spent)
    assert torch.equal(to_gate, found[1]) and torch.equal(to_up, found[2]) and to_up.data_ptr() == spent.data_ptr()


@interpreted
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('heads,width', [(1, 2), (5, 80), (16, 128), (17, 96)])
def test_interpreted_rotation(heads, width, dtype):
    "As transformers hands heads over, with angles for every text or one for all, forward, backward and in place."
    x = draw(2, 7, heads + 3, width, dtype=dtype)[:, :, :heads].transpose(1, 2).requires_grad_()
    for texts in (1, 2):
        cos, sin = draw(2, texts, 7, width, seed=1, dtype=dtype)
        d = draw(2, heads, 7, width, seed=2, dtype=dtype)
        ours = turned(x, cos, sin)
        assert elementwise._ways(x) is elementwise._TRITON and ours.transpose(1, 2).is_contiguous()
        wide = x.detach().double().requires_grad_()
        c, s = cos.double()[:, None], sin.double()[:, None]
        truth = wide*c + torch.cat((-wide[..., width//2:], wide[..., :width//2]), -1)*s
        pairs = (ours, truth), (*torch.autograd.grad(ours, x, d), *torch.autograd.grad(truth, wide, d.double()))
        assert all(a.dtype == dtype and apart(a, b) < TOLERANCE[dtype] for a, b in pairs)
        over = x.detach().clone()
        assert torch.equal(turned(over, cos, sin, out=over), ours) and torch.equal(over, ours)


@interpreted
def test_interpreted_nothing():
    none = torch.empty(0, 4, requires_grad=True)
    gated(none, none).sum().backward()
    assert none.grad.shape == (0, 4) and gated(torch.empty(3, 0), torch.empty(3, 0)).shape == (3, 0)
    angles = torch.empty(2, 0, 8)
    assert turned(torch.empty(2, 3, 0, 8), angles, angles).shape == (2, 3, 0, 8)


GATE = dict(pointers='gate up out', BLOCK=1024)
KERNELS = {'_gate_kernel': GATE, '_gate_back_kernel': dict(GATE, pointers='gate up d to_gate to_up'),
           '_turn_kernel': dict(pointers='x cos sin y', BACK=True, HEADS=16, HALF=40, BLOCK=64)}
CARDS = {75: ('fp16', 'fp32'), 90: ('fp16', 'bf16', 'fp32')} # a T4 has no bf16


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason='nothing is compiled in the interpreter')
@pytest.mark.parametrize('card', CARDS)
@pytest.mark.parametrize('name', KERNELS)
def test_a_kernel_compiles_for_a_card(name, card, tmp_path, monkeypatch):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    kernel, fixed = getattr(elementwise, name), dict(KERNELS[name])
    pointers = fixed.pop('pointers').split()
    for dtype in CARDS[card]:
        names = kernel.__code__.co_varnames[:kernel.__code__.co_argcount]
        signature = {n: 'constexpr' if n in fixed else f'*{dtype}' if n in pointers else 'i32' for n in names}
        source = ASTSource(fn=elementwise._compiled(kernel), signature=signature, constexprs=fixed)
        assert triton.compile(source, target=GPUTarget('cuda', card, 32)).asm['cubin']


@pytest.mark.parametrize('fault', [OSError('no compiler'), None])
def test_triton_that_does_not_work_is_done_without(fault, monkeypatch):
    def broken(gate, up, out=None):
        if fault: raise fault
        return gate + up
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    monkeypatch.setattr(elementwise._TRITON, 'gate', broken)
    elementwise._works.cache_clear()
    try:
        gate, up = draw(3, 5), draw(3, 5, seed=1)
        said = 'no compiler' if fault else 'results are wrong'
        with pytest.warns(VLMTemporalWarning, match=said): y = gated(gate, up)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert torch.equal(gated(gate, up), y) and torch.allclose(y, silu(gate)*up) # said once
    finally: elementwise._works.cache_clear()


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    "A checkpoint whose tower is 500 wide inside, as the 3B model's 3,420 is no multiple of 64."
    path = tmp_path_factory.mktemp('odd')
    config = AutoConfig.from_pretrained(bundled_model())
    config.vision_config.intermediate_size = 500
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(path)
    AutoProcessor.from_pretrained(bundled_model()).save_pretrained(path)
    return str(path)


def look(tower, dtype=torch.float32):
    "What it makes of two pictures."
    grid, here = torch.tensor([[1, 8, 8], [1, 6, 10]]), next(tower.parameters())
    pixels = draw(124, 1176, dtype=dtype).to(here.device, tower.dtype)
    with torch.no_grad(): return tower(pixels, grid_thw=grid.to(here.device)).pooler_output.float()


def test_a_wider_tower_computes_the_same(odd):
    "In NF4, and unpacked: values bit for bit, outputs but for rounding; a second time there is nothing to do."
    outs = []
    for bits in (4, 16):
        tower = load_model(odd).tower.requires_grad_(False)
        before, mlp = look(tower), tower.blocks[1].mlp
        gate, down = (tower_weights._values(layer) for layer in (mlp.gate_proj, mlp.down_proj))
        assert gate.shape == (500, 192) and mlp.gate_proj.weight.quant_state.nested
        linears = 5*len(tower.blocks) + 2
        if bits == 16: assert unpack(tower) == linears
        assert widen_feed_forward(tower) == len(tower.blocks) and widen_feed_forward(tower) == 0
        wider = mlp.gate_proj.weight if bits == 16 else tower_weights._values(mlp.gate_proj)
        assert torch.equal(wider, pad(gate, (0, 0, 0, 12))) and mlp.gate_proj.bias.shape == (512,)
        if bits == 16: assert torch.equal(mlp.down_proj.weight, pad(down, (0, 12)))
        near = 1e-5 if tower.dtype == torch.float32 else 5e-2
        assert apart(look(tower), before) < near
        outs.append(look(tower))
        if bits == 16: continue
        assert unpack(tower) == linears and torch.equal(mlp.down_proj.weight, pad(down, (0, 12)))
        assert apart(look(tower), before) < near, 'unpacked when it is wider already'
    assert apart(*outs) < near


def test_blocks_that_cannot_be_widened_stay(odd, monkeypatch):
    tower = load_model(odd).tower
    before = look(tower)
    longer = tower_weights._longer_state
    def other(state, rows):
        "As a bitsandbytes that packs otherwise would have it."
        new = longer(state, rows)
        new.absmax = new.absmax.flip(0)
        return new
    monkeypatch.setattr(tower_weights, '_longer_state', other)
    with pytest.warns(VLMTemporalWarning, match='keep their width'):
        assert widen_feed_forward(tower) == 0
    assert torch.equal(look(tower), before) and tower.blocks[0].mlp.up_proj.out_features == 500


def trained(model, shards, out, **settings):
    "The trained model, and the losses of four steps."
    loaded = load_model(model)
    config = TrainConfig(max_steps=4, micro_batch=2, accumulation=1, learning_rate=1e-2, warmup=0, lora_dropout=0,
                         **settings)
    trainer = make_trainer(loaded, Shards(shards/'train'), out, config, rows=[0, 1, 2, 3])
    trainer.args.save_strategy = 'no'
    trainer.train()
    return loaded, [h['loss'] for h in trainer.state.log_history if 'loss' in h]


def test_training_is_the_same_with_and_without(odd, shards, tmp_path):
    stock, losses = trained(odd, shards, tmp_path, fused=False)
    assert 'forward' not in vars(stock.base.model.language_model.norm)
    for bits in (4, 16):
        loaded, ours = trained(odd, shards, tmp_path, tower_bits=bits)
        attention = loaded.base.model.language_model.layers[0].self_attn
        assert 'forward' in vars(attention) and loaded.tower.blocks[0].mlp.gate_proj.out_features == 512
        assert type(loaded.tower.blocks[0].attn.qkv).__name__ == {4: 'Linear4bit', 16: 'Linear'}[bits]
        assert ours == pytest.approx(losses, rel=1e-4) and losses[-1] < losses[0] - .01
    save_adapter(loaded, tmp_path/'adapter', Shards(shards/'train'), dict(steps=4))
    names = load_file(tmp_path/'adapter'/'adapter_model.safetensors')
    assert names and all('lora_' in name and 'visual' not in name for name in names)
    again = load_model(odd, tmp_path/'adapter') # whose tower is as it was
    assert again.tower.blocks[0].mlp.gate_proj.out_features == 500


def test_only_two_widths_of_a_weight():
    with pytest.raises(BadInput, match='tower_bits: 8 bits are not allowed; give 4 or 16'): TrainConfig(tower_bits=8)
